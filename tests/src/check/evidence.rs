//! What a run has left behind.

use std::path::Path;

use anyhow::Context as _;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use crate::history::{self, Asked, Entry, Harm, Sample, us};

/// What devices, harness and database remember.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub entries: Vec<Entry>,
    pub asked: Vec<Asked>,
    pub harms: Vec<Harm>,
    pub samples: Vec<Sample>,
    pub commands: Vec<CommandRow>,
    pub grants: Vec<GrantRow>,
    pub audit: Vec<AuditRow>,
    pub chains: Vec<ChainRow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRow {
    pub id: Uuid,
    pub tenant: Uuid,
    pub device: Uuid,
    pub grant: Uuid,
    pub requested_by: Uuid,
    pub kind: String,
    pub state: String,
    pub sent_us: Option<i64>,
    pub expires_us: i64,
    pub finished_us: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    pub id: Uuid,
    pub tenant: Uuid,
    pub scopes: Vec<String>,
    /// None: every operator.
    pub operators: Option<Vec<Uuid>>,
    /// None: by labels, which all devices of a run share.
    pub devices: Option<Vec<Uuid>>,
    pub starts_us: i64,
    pub ends_us: i64,
    pub revoked_us: Option<i64>,
}

/// In the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub tenant: Uuid,
    pub seq: i64,
    pub entry: String,
    pub hash: Vec<u8>,
}

/// The end of a tenant's audit log, as the database keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRow {
    pub tenant: Uuid,
    pub seq: i64,
    pub hash: Vec<u8>,
}

impl Evidence {
    /// Reads the histories of a directory and a database, as whoever owns that.
    pub async fn read(directory: &Path, database: &str) -> anyhow::Result<Self> {
        let mut database = PgConnection::connect(database).await.context("cannot connect to the database")?;
        let evidence = Self {
            entries: history::read_devices(directory)?,
            asked: history::read(&directory.join(history::ASKED))?,
            harms: history::read(&directory.join(history::HARMS))?,
            samples: history::read(&directory.join(history::PRESENCE))?,
            commands: rows(&mut database, COMMANDS, command).await?,
            grants: rows(&mut database, GRANTS, grant).await?,
            audit: rows(&mut database, AUDIT, audit).await?,
            chains: rows(&mut database, CHAINS, chain).await?,
        };
        database.close().await?;
        Ok(evidence)
    }
}

const COMMANDS: &str = "select id, tenant_id, device_id, grant_id, requested_by, kind, state, sent_at, expires_at, finished_at from commands";
const GRANTS: &str =
    "select id, tenant_id, scopes, operator_ids, device_ids, starts_at, ends_at, revoked_at from grants";
const AUDIT: &str = "select tenant_id, seq, entry, hash from audit order by tenant_id, seq";
const CHAINS: &str = "select tenant_id, seq, hash from audit_chains";

async fn rows<T>(
    database: &mut PgConnection,
    query: &'static str,
    read: fn(&PgRow) -> sqlx::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let rows = sqlx::query(query).fetch_all(database).await.with_context(|| query)?;
    Ok(rows.iter().map(read).collect::<sqlx::Result<_>>()?)
}

fn command(row: &PgRow) -> sqlx::Result<CommandRow> {
    Ok(CommandRow {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant_id")?,
        device: row.try_get("device_id")?,
        grant: row.try_get("grant_id")?,
        requested_by: row.try_get("requested_by")?,
        kind: row.try_get("kind")?,
        state: row.try_get("state")?,
        sent_us: row.try_get::<Option<_>, _>("sent_at")?.map(us),
        expires_us: us(row.try_get("expires_at")?),
        finished_us: row.try_get::<Option<_>, _>("finished_at")?.map(us),
    })
}

fn grant(row: &PgRow) -> sqlx::Result<GrantRow> {
    Ok(GrantRow {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant_id")?,
        scopes: row.try_get("scopes")?,
        operators: row.try_get("operator_ids")?,
        devices: row.try_get("device_ids")?,
        starts_us: us(row.try_get("starts_at")?),
        ends_us: us(row.try_get("ends_at")?),
        revoked_us: row.try_get::<Option<_>, _>("revoked_at")?.map(us),
    })
}

fn audit(row: &PgRow) -> sqlx::Result<AuditRow> {
    Ok(AuditRow {
        tenant: row.try_get("tenant_id")?,
        seq: row.try_get("seq")?,
        entry: row.try_get("entry")?,
        hash: row.try_get("hash")?,
    })
}

fn chain(row: &PgRow) -> sqlx::Result<ChainRow> {
    Ok(ChainRow { tenant: row.try_get("tenant_id")?, seq: row.try_get("seq")?, hash: row.try_get("hash")? })
}
