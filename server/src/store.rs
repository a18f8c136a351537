//! All SQL. One file an entity, functions named noun first (`grant_revoke`), each on the caller's connection so that what
//! belongs together commits together. Queries are checked at build time against `migrations/` (see docs/DATABASE.md).

pub mod access_policy;
pub mod access_request;
pub mod audit;
pub mod boot;
pub mod busy_lock;
pub mod certificate;
pub mod command;
pub mod configuration;
pub mod deadline;
pub mod device;
pub mod dispatch;
pub(crate) mod drift;
pub mod drop;
pub mod enrollment;
pub mod enrollment_token;
pub mod first_admin;
pub mod grant;
pub mod group;
pub mod isolation_statement;
pub mod link;
pub mod link_test;
pub mod network;
pub mod node;
pub mod notice;
pub mod opening;
pub mod person;
pub mod poll;
mod primary;
pub mod proof;
pub mod quarantine;
pub mod receipt;
pub mod recording;
pub mod report;
pub mod retention;
pub mod rollout;
pub mod sample;
pub mod setup;
pub mod sign_in;
pub mod signing_key;
pub mod status;
pub mod support_session;
pub mod tenant;
pub mod threshold;
pub(crate) mod ticket;
pub mod token;
pub mod transition;
pub mod transport_failure;
pub mod tunnel;
pub mod webhook;

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool, Postgres};
use tokio::time::timeout;

pub use self::primary::{Hosts, Probe};

use self::primary::{History, Primary, QUESTION};

/// The schema that this binary needs.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// For a lease's renewal, and for looking at others' leases meanwhile, which may wait for a row.
const RESERVED_CONNECTIONS: u32 = 2;
/// A pooled connection that was idle for longer is tried before it is used.
const TRUST_IDLE_FOR: Duration = Duration::from_secs(1);
/// How long a connection may take to answer that comes back to the pool while the database seems to be away.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);
/// How long an answer may take, unless it is said otherwise: more than Postgres gives a statement by default.
const PATIENCE: Duration = Duration::from_secs(15);
/// When something ended is known as exactly as the answer was quick. A slower answer is asked for once more: the database may have
/// stood still between the question and the answer, which would make the end seem that much earlier than it was.
const TELLS_WHEN_WITHIN: Duration = Duration::from_millis(100);

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, is starting or stopping, or somebody holds a row for too long: ask again.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Anything else: a fault of ours.
    #[error("a query failed")]
    Query(#[source] sqlx::Error),
    /// A row that this binary cannot read.
    #[error("table {table} holds a row with an unreadable {column}")]
    Inconsistent { table: &'static str, column: &'static str },
}

impl StoreError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The name of the constraint that refused a write, if one did.
    #[must_use]
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Query(sqlx::Error::Database(error)) => error.constraint(),
            Self::Query(_) | Self::Unavailable(_) | Self::Inconsistent { .. } => None,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Query(error) }
    }
}

/// Whether an error tells of the state that the database is in.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named here is a fault of ours, in a newer sqlx as well"
)]
fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        // What stands in front of a database that is away may take a connection, and break off in the middle of it.
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_retryable_code(&code)),
        _ => false,
    }
}

/// Whether an SQLSTATE tells of the state that the database is in, and not of the statement.
fn is_retryable_code(code: &str) -> bool {
    // 08: the connection broke. 40: two transactions waited for one another. 53: no slot, memory or disk left. 57: it stopped,
    // crashed, is not yet up, or the statement took too long. 58: an error of its host.
    ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
        // Too long a wait for a lock, too long a transaction; a standby, which somebody is about to promote.
        || matches!(code, "55P03" | "25P03" | "25P04" | "25006")
}

/// Whose rows a transaction may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Every tenant's: devices, operators, administrators, reconcilers.
    All,
    /// One tenant's, by row-level security.
    Tenant(TenantId),
}

/// A transaction of the pool; let go of, it has never been.
pub type Transaction = sqlx::Transaction<'static, Postgres>;

/// A connection of the pool that was taken for a single statement. Sees every tenant.
#[derive(Debug)]
pub struct Connection(Taken);

#[derive(Debug)]
enum Taken {
    Whole(sqlx::pool::PoolConnection<Postgres>),
    /// Of a pooler: only in a transaction do two messages reach the same session.
    ForTransaction(Transaction),
}

impl Connection {
    /// Whether it may be used for one statement after another.
    #[must_use]
    pub fn is_for_many(&self) -> bool {
        matches!(self.0, Taken::Whole(_))
    }

    /// Makes what the statement did last. Without it nothing may have been.
    pub async fn finish(self) -> Result<(), StoreError> {
        match self.0 {
            Taken::Whole(_) => Ok(()),
            Taken::ForTransaction(transaction) => Ok(transaction.commit().await?),
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.0 {
            Taken::Whole(connection) => connection,
            Taken::ForTransaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.0 {
            Taken::Whole(connection) => connection,
            Taken::ForTransaction(transaction) => transaction,
        }
    }
}

/// What a single statement gives that needs no transaction of several: `single!(store, |connection| node_leave(connection, &node))`.
/// A function would take a closure whose future cannot be shown to be `Send`.
macro_rules! single {
    ($store:expr, |$connection:ident| $statement:expr) => {
        async {
            let mut taken = $store.take().await?;
            let $connection = &mut *taken;
            let done = $statement.await?;
            taken.finish().await?;
            Ok::<_, $crate::store::StoreError>(done)
        }
        .await
    };
}
pub(crate) use single;

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
    /// See [`Self::reserved`].
    reserved: PgPool,
    /// How long an answer may take, beyond which the connection is taken to be dead.
    patience: Duration,
    is_in_doubt: Arc<AtomicBool>,
    primary: Arc<Primary>,
    /// What each transaction sets for itself, where a session is nobody's own.
    settings: Option<Arc<str>>,
}

impl Store {
    /// Prepares a pool whose every connection acts as the role `cloudlink_app`, at the host that is the database. Connects when
    /// first used, to the first host until [`Probe::run`] has found another one.
    #[must_use]
    pub fn new(pool: PgPoolOptions, hosts: impl Into<Hosts>) -> Self {
        Self::prepare(pool, hosts.into(), None)
    }

    /// The same, through a pooler that gives a session of the database for one transaction, and another one for the next. Nothing
    /// is left in a session: not the role, not a setting (`settings` are names and values of ours), not a prepared statement. What
    /// an earlier transaction of anybody has prepared there, would meet our names.
    #[must_use]
    pub fn through_pooler(pool: PgPoolOptions, hosts: Hosts, settings: &[(&str, String)]) -> Self {
        // Poolers know some of what a client may ask for at the start of a session, and refuse all else.
        let hosts = hosts.map(|host| host.extra_float_digits(None).statement_cache_capacity(0));
        let set = settings.iter().map(|(name, value)| format!("; set local {name} = '{value}'"));
        let settings = std::iter::once("begin; deallocate all".to_owned()).chain(set).collect::<String>();
        Self::prepare(pool, hosts, Some(settings.into()))
    }

    fn prepare(pool: PgPoolOptions, hosts: Hosts, settings: Option<Arc<str>>) -> Self {
        let primary = Arc::new(Primary::new(hosts));
        let first =
            if settings.is_some() { QUESTION.to_owned() } else { format!("set role cloudlink_app; {QUESTION}") };
        let first: Arc<str> = first.into();
        let is_in_doubt = Arc::new(AtomicBool::new(false));
        let in_doubt = Arc::clone(&is_in_doubt);
        let (admitting, dating, parting) = (Arc::clone(&primary), Arc::clone(&primary), Arc::clone(&primary));
        let pool = pool
            .after_connect(move |connection, _| {
                let (primary, first) = (Arc::clone(&admitting), Arc::clone(&first));
                Box::pin(async move {
                    let answer = connection.fetch_one(AssertSqlSafe(first)).await?;
                    primary.ask_others().await;
                    Ok(primary.admit(History::of(&answer)?)?)
                })
            })
            // A connection that was busy a moment ago works: asking it first would cost each request a round trip.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let is_outdated = dating.is_outdated(meta.age);
                Box::pin(async move {
                    if is_outdated {
                        return Ok(false);
                    }
                    if meta.idle_for > TRUST_IDLE_FOR {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            // The pool tries each connection that comes back, for however long: dead ones would fill all its places.
            .after_release(move |connection, meta| {
                let is_in_doubt = in_doubt.load(Ordering::Relaxed);
                let is_outdated = parting.is_outdated(meta.age);
                Box::pin(async move {
                    // The host of before may be gone without a word, while another one is the database without a doubt.
                    if is_outdated {
                        return Ok(false);
                    }
                    if is_in_doubt && !matches!(timeout(RELEASE_WITHIN, connection.ping()).await, Ok(Ok(()))) {
                        return Err(sqlx::Error::PoolTimedOut);
                    }
                    Ok(true)
                })
            });
        let reserved = pool.clone().max_connections(RESERVED_CONNECTIONS).connect_lazy_with(primary.chosen());
        let pool = pool.connect_lazy_with(primary.chosen());
        Self { pool, reserved, patience: PATIENCE, is_in_doubt, primary, settings }
    }

    /// With another limit to how long an answer may take. Must be above the database's own limit for a statement.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same on connections that are kept for what must not wait behind everything else: a node whose devices all come at once
    /// still has its place.
    #[must_use]
    pub fn reserved(&self) -> Self {
        Self { pool: self.reserved.clone(), ..self.clone() }
    }

    /// New connections are made to where the database is now.
    fn turn(&self) {
        self.pool.set_connect_options(self.primary.chosen());
        self.reserved.set_connect_options(self.primary.chosen());
    }

    /// Says whether the database seems to be away: connections are then looked at more closely.
    pub fn doubt(&self, is_in_doubt: bool) {
        self.is_in_doubt.store(is_in_doubt, Ordering::Relaxed);
    }

    /// What earlier runs of this node have learned of where the database is, out of a file that [`Probe`] writes.
    pub fn recall(&self, path: &Path) -> std::io::Result<()> {
        self.primary.recall(path)
    }

    /// Whether a connection that was taken out of the pool so long ago may be one to a host that is not the database any more.
    #[must_use]
    pub fn is_outdated(&self, age: Duration) -> bool {
        self.primary.is_outdated(age)
    }

    /// Waits for what the database does, but not for ever: one that is cut off, or whose host is gone, says nothing at all.
    /// For whoever has no other limit; the API's requests have one.
    pub async fn within<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        timeout(self.patience, work).await.unwrap_or(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)))
    }

    /// The same, for what may take longer.
    pub async fn within_time<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(limit, work).await.unwrap_or(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)))
    }

    /// Begins a transaction that sees what `visibility` says.
    pub async fn begin(&self, visibility: Visibility) -> Result<Transaction, StoreError> {
        if let Some(settings) = &self.settings {
            let visibility = match visibility {
                Visibility::All => "; set local role cloudlink_app".to_owned(),
                Visibility::Tenant(tenant) => {
                    format!("; set local role cloudlink_tenant; set local cloudlink.tenant = '{tenant}'")
                }
            };
            return Ok(self.pool.begin_with(AssertSqlSafe(format!("{settings}{visibility}"))).await?);
        }
        let mut transaction = self.pool.begin().await?;
        if let Visibility::Tenant(tenant) = visibility {
            // The same as `set local role`, without a second round trip.
            sqlx::query(
                "select set_config('role', 'cloudlink_tenant', true), set_config('cloudlink.tenant', $1, true)",
            )
            .bind(tenant.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction)
    }

    /// A connection for a single statement that needs no transaction of several. See `single!`.
    pub async fn take(&self) -> Result<Connection, StoreError> {
        Ok(Connection(match self.settings {
            None => Taken::Whole(self.pool.acquire().await?),
            Some(_) => Taken::ForTransaction(self.begin(Visibility::All).await?),
        }))
    }

    /// A connection for a test that does what it likes.
    #[cfg(test)]
    pub async fn connection(&self) -> Result<sqlx::pool::PoolConnection<Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Whether nobody has to wait for a connection, even if one is kept.
    #[must_use]
    pub fn has_spare_connections(&self) -> bool {
        self.pool.num_idle() > 0 || self.pool.size() < self.pool.options().get_max_connections()
    }

    /// Makes what a transaction did last.
    pub async fn commit(&self, transaction: Transaction) -> Result<(), StoreError> {
        Ok(transaction.commit().await?)
    }

    /// The pool, for its figures only.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// Applies the migrations that the database lacks, as its owner. What a newer version has added is left as it is: it only adds
/// (docs/DATABASE.md), and a node of this version may start again while a cluster is upgraded.
///
/// A change of a table waits until whoever uses it is done, and everybody else waits behind it: so it does not wait for long, and is to be
/// tried again.
pub async fn migrate(owner: &mut PgConnection) -> Result<(), MigrateError> {
    owner.execute("set lock_timeout = '3s'").await?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.set_ignore_missing(true).run_direct(None, owner, false).await
}

#[cfg(test)]
mod tests;
