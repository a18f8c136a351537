//! What happens to the database before the first query of a running server: reaching it, making it, checking it.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::timeout;

use super::{Hosts, MIGRATOR, Store, StoreError};
use crate::config;

/// How long a database that was reached may take to answer, or to part.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer may take beyond the time that Postgres gives a statement.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A transaction in which nothing happens for so long is ended by Postgres, so that it cannot hold locks for ever.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);

/// Why the database is not one that this server may run on.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "{key} is not the address of a Postgres: expected postgres://login:password@host:port/database, with up to {max} hosts as \
         host:port,host:port", max = Hosts::COUNT_MAX
    )]
    Url { key: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot apply the migrations")]
    Migrate(#[from] MigrateError),
    #[error(
        "the schema is not this version's: migration {version} {what}. Set database.migrate = true, or apply the migrations by \
         hand"
    )]
    Schema { version: i64, what: &'static str },
    #[error(
        "the server must be able neither to rewrite its history nor to decide for a tenant, yet its role {role} may {privilege} on table {table}. As the owner \
         of the database: revoke {privilege} on {table} from {role}"
    )]
    Privilege { role: String, table: String, privilege: String },
    #[error(
        "the server's role cloudlink_app must have nothing of the tenants' role but the right to take it, yet it inherits \
         cloudlink_tenant. As a superuser: alter role cloudlink_app noinherit (Postgres 15), or: grant cloudlink_tenant to \
         cloudlink_app with inherit false (newer)"
    )]
    Inherits,
}

impl SetupError {
    /// Whether the database may be there later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Migrate(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                super::is_unavailable(error)
            }
            Self::Url { .. } | Self::Migrate(_) | Self::Schema { .. } | Self::Privilege { .. } | Self::Inherits => {
                false
            }
        }
    }
}

/// A database behind a Unix socket.
#[must_use]
pub fn socket_options(directory: &Path, port: u16, login: &str, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(directory)
        .port(port)
        .username(login)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// A database of somebody else, at one host or, separated by commas, at one of several. The error does not repeat the address: it
/// may hold a password.
pub fn url_hosts(key: &'static str, url: &config::Secret) -> Result<Hosts, SetupError> {
    url.expose().parse().map_err(|()| SetupError::Url { key })
}

/// The pool of the running server.
#[must_use]
pub fn store(config: &config::Database, node: &str, hosts: Hosts, has_mail: bool) -> Store {
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    let mut settings = vec![
        ("statement_timeout", milliseconds(config.statement_timeout_seconds.duration())),
        ("lock_timeout", milliseconds(config.lock_timeout_seconds.duration())),
        ("idle_in_transaction_session_timeout", milliseconds(IDLE_IN_TRANSACTION)),
        // Every statement wants a few rows by their keys, of tables that are in memory or on a solid-state disk. By its
        // defaults the planner fears random reads, and reads all devices and links to look at one.
        ("random_page_cost", "1.1".to_owned()),
        // Compiling takes longer than any of the statements.
        ("jit", "off".to_owned()),
    ];
    if has_mail {
        // What notice_emit() writes mail by.
        settings.push(("cloudlink.mail", "on".to_owned()));
    }
    let name = format!("cloudlinkd {node}");
    let hosts = hosts.map(|host| host.application_name(&name));
    let pool = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(config.acquire_timeout_seconds.duration())
        .idle_timeout(config.idle_timeout_seconds.duration())
        .max_lifetime(config.lifetime_seconds.duration());
    let store = match config.pooler {
        config::Pooler::None => Store::new(pool, hosts.map(|host| host.options(settings.clone()))),
        config::Pooler::Transaction => Store::through_pooler(pool, hosts, &settings),
    };
    store.with_patience(config.statement_timeout_seconds.duration() + ANSWER_WITHIN)
}

/// Whether a Postgres takes connections there.
pub async fn answers(options: &PgConnectOptions) -> bool {
    let Ok(mut connection) = connect(&options.clone().into()).await else { return false };
    matches!(timeout(CONNECT_WITHIN, connection.ping()).await, Ok(Ok(())))
}

/// Makes the database and the server's login in a cluster of our own, if they are missing.
pub async fn cluster_prepare(
    maintenance: &Hosts,
    owner: &Hosts,
    database: &str,
    login: &str,
) -> Result<(), SetupError> {
    let mut connection = connect(maintenance).await?;
    let exists = sqlx::query_scalar::<_, bool>("select exists (select from pg_database where datname = $1)")
        .bind(database)
        .fetch_one(&mut connection)
        .await
        .map_err(StoreError::from)?;
    if !exists {
        let create = format!("create database \"{database}\" template template0 encoding 'UTF8' locale 'C.UTF-8'");
        connection.execute(AssertSqlSafe(create)).await.map_err(StoreError::from)?;
    }
    close(connection).await;

    migrate(owner).await?;
    let mut connection = connect(owner).await?;
    let exists = sqlx::query_scalar::<_, bool>("select exists (select from pg_roles where rolname = $1)")
        .bind(login)
        .fetch_one(&mut connection)
        .await
        .map_err(StoreError::from)?;
    if !exists {
        // One statement string is one transaction: a login without its role does not stay behind.
        let create = format!("create role \"{login}\" login; grant cloudlink_app to \"{login}\"");
        connection.execute(AssertSqlSafe(create)).await.map_err(StoreError::from)?;
    }
    close(connection).await;
    Ok(())
}

/// Applies the migrations that the database lacks, as its owner.
pub async fn migrate(owner: &Hosts) -> Result<(), SetupError> {
    let mut connection = connect(owner).await?;
    super::migrate(&mut connection).await?;
    close(connection).await;
    Ok(())
}

/// Checks that this version's migrations were applied. What a newer version has added is not in its way.
pub async fn schema_check(owner: &Hosts) -> Result<(), SetupError> {
    let mut connection = connect(owner).await?;
    // A pooler may give the next transaction another connection, and this one to somebody else: nothing is left behind in it.
    let mut transaction = connection.begin().await.map_err(StoreError::from)?;
    let applied: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("select version, checksum, success from _sqlx_migrations order by version")
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await
            .map_err(StoreError::from)?;
    transaction.commit().await.map_err(StoreError::from)?;
    close(connection).await;
    for needed in MIGRATOR.iter() {
        let version = needed.version;
        match applied.iter().find(|(of, ..)| *of == version) {
            None => return Err(SetupError::Schema { version, what: "is missing" }),
            Some((_, _, false)) => return Err(SetupError::Schema { version, what: "was applied in part" }),
            Some((_, checksum, true)) if **checksum != *needed.checksum => {
                return Err(SetupError::Schema { version, what: "was another one when it was applied" });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Checks that no role of the server may rewrite what must not be rewritten: the audit log, and the ways around the grant; and
/// that the server's own role decides nothing for a tenant.
pub async fn privilege_check(store: &Store) -> Result<(), SetupError> {
    let mut connection = store.take().await?;
    let excess = sqlx::query!(
        r#"select role as "role!", relation as "relation!", privilege as "privilege!",
                  pg_has_role('cloudlink_app', 'cloudlink_tenant', 'usage') as "inherits!"
             from (values (true, 'audit', 'insert', null), (true, 'audit', 'update', null), (true, 'audit', 'delete', null),
                          (true, 'audit', 'truncate', null),
                          (true, 'audit_chains', 'insert', null), (true, 'audit_chains', 'update', null),
                          (true, 'audit_chains', 'delete', null), (true, 'audit_chains', 'truncate', null),
                          (true, 'commands', 'insert', null), (true, 'commands', 'delete', null),
                          (true, 'commands', 'truncate', null),
                          (false, 'grants', 'insert', null), (false, 'grants', 'update', 'ends_at'),
                          (false, 'access_policies', 'insert', null), (false, 'access_decisions', 'insert', null),
                          (false, 'signing_keys', 'insert', null), (false, 'signing_keys', 'update', 'revoked_at'),
                          (false, 'tenants', 'update', 'signed_grants'), (false, 'tenants', 'update', 'approvals_needed'),
                          (false, 'tenants', 'update', 'recording_keep_days'))
                      as forbidden (to_tenants, relation, privilege, of_column)
            cross join unnest(array['cloudlink_app', 'cloudlink_tenant']) as role
            where (to_tenants or role = 'cloudlink_app')
              and case when of_column is not null then has_column_privilege(role, relation, of_column, privilege)
                       when privilege in ('insert', 'update') then has_any_column_privilege(role, relation, privilege)
                       else has_table_privilege(role, relation, privilege) end
            -- What cloudlink_tenant may, cloudlink_app may where it inherits: name the one that was given it.
            order by role desc
            limit 1"#
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(StoreError::from)?;
    connection.finish().await?;
    match excess {
        Some(row) if row.inherits && row.role == "cloudlink_app" => Err(SetupError::Inherits),
        Some(row) => Err(SetupError::Privilege { role: row.role, table: row.relation, privilege: row.privilege }),
        None => Ok(()),
    }
}

async fn connect(hosts: &Hosts) -> Result<PgConnection, StoreError> {
    Ok(hosts.connect().await?)
}

/// Says good-bye, so that Postgres does not log a lost connection. That it cannot be said changes nothing.
async fn close(connection: PgConnection) {
    let _ = timeout(CONNECT_WITHIN, connection.close()).await;
}
