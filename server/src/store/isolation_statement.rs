//! What is known of a tenant's isolation on one day. Reads only, and all of it as of one moment.

use cloudlink_proto::ids::TenantId;
use sqlx::{Postgres, Transaction};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{Store, StoreError, Visibility};
use crate::model::isolation_statement::{
    Day, Drift, DropDay, LINES_MAX, NodeRecord, OpeningDay, QuarantineDay, Round, Span,
};
use crate::model::proof::Outcome;

/// One more than is told, so that it shows when there are more.
const ROWS_MAX: i64 = LINES_MAX as i64 + 1;

/// Whom a statement is about, and when it is made.
#[derive(Clone, Debug)]
pub struct StatementTenant {
    pub id: Uuid,
    pub name: String,
    pub created_at: OffsetDateTime,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// Everything about one day.
#[derive(Clone, Debug)]
pub struct Records {
    pub nodes: Vec<NodeRecord>,
    pub drops: Vec<DropDay>,
    pub quarantines: Vec<QuarantineDay>,
    pub openings: Vec<OpeningDay>,
    /// A list was longer than it may be.
    pub truncated: bool,
}

/// A view of the database that does not change. Sees every tenant: what nodes have proven is no tenant's.
#[derive(Debug)]
pub struct Snapshot(Transaction<'static, Postgres>);

impl Snapshot {
    pub async fn begin(store: &Store) -> Result<Self, StoreError> {
        let mut transaction = store.begin(Visibility::All).await?;
        sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *transaction).await?;
        Ok(Self(transaction))
    }

    pub async fn tenant(&mut self, id: TenantId) -> Result<Option<StatementTenant>, StoreError> {
        Ok(sqlx::query_as!(
            StatementTenant,
            r#"select id, name, created_at, clock_timestamp() as "now!" from tenants where id = $1 and not internal"#,
            id.as_uuid()
        )
        .fetch_optional(&mut *self.0)
        .await?)
    }

    pub async fn records(&mut self, tenant: TenantId, day: Day) -> Result<Records, StoreError> {
        let mut nodes = self.nodes(tenant, day.date()).await?;
        let names: Vec<String> = nodes.iter().map(|node| node.node.clone()).collect();
        self.rounds(&mut nodes, &names, day).await?;
        let mut truncated = self.drifts(&mut nodes, &names, day).await?;
        let (mut drops, mut quarantines) =
            (self.drops(tenant, day.date()).await?, self.quarantines(tenant, day).await?);
        let mut openings = self.openings(tenant, day).await?;
        truncated |= cut(&mut drops) | cut(&mut quarantines) | cut(&mut openings);
        Ok(Records { nodes, drops, quarantines, openings, truncated })
    }

    /// The nodes that carried tunnels of the tenant, in the order of their names, without what was measured on them.
    async fn nodes(&mut self, tenant: TenantId, day: Date) -> Result<Vec<NodeRecord>, StoreError> {
        let spans = sqlx::query!(
            r#"select t.node, lower(s.span) as "from!", upper(s.span) as "until!"
                 from tunnel_days t cross join unnest(t.spans) as s(span)
                where t.tenant_id = $1 and t.day = $2
                order by t.node, lower(s.span)"#,
            tenant.as_uuid(),
            day
        )
        .fetch_all(&mut *self.0)
        .await?;
        let mut nodes: Vec<NodeRecord> = Vec::new();
        for row in spans {
            let span = Span { from: row.from, until: row.until };
            match nodes.last_mut().filter(|node| node.node == row.node) {
                Some(node) => node.carried.push(span),
                None => nodes.push(NodeRecord {
                    node: row.node,
                    carried: vec![span],
                    rounds: Vec::new(),
                    drifts: Vec::new(),
                }),
            }
        }
        Ok(nodes)
    }

    async fn rounds(&mut self, nodes: &mut [NodeRecord], names: &[String], day: Day) -> Result<(), StoreError> {
        let rounds = sqlx::query!(
            r#"select node, started_at, outcome, encode(policy_hash, 'hex') as "policy!", attempts,
                      case when outcome = 'leak' then results end as results
                 from isolation_proofs
                where node = any($1) and started_at >= $2 and started_at < $3
                order by started_at"#,
            names,
            day.start(),
            day.end()
        )
        .fetch_all(&mut *self.0)
        .await?;
        for row in rounds {
            let outcome = Outcome::named(&row.outcome)
                .ok_or(StoreError::Inconsistent { table: "isolation_proofs", column: "outcome" })?;
            let round =
                Round { at: row.started_at, outcome, policy: row.policy, attempts: row.attempts, results: row.results };
            if let Some(node) = nodes.iter_mut().find(|node| node.node == row.node) {
                node.rounds.push(round);
            }
        }
        Ok(())
    }

    /// Those that were there at any time of the day. Returns whether there are too many.
    async fn drifts(&mut self, nodes: &mut [NodeRecord], names: &[String], day: Day) -> Result<bool, StoreError> {
        let mut drifts = sqlx::query!(
            r#"select node, kind, found_at, repaired_at, jsonb_array_length(differences) as "differences!"
                 from isolation_drifts
                where node = any($1) and found_at < $3 and (repaired_at is null or repaired_at >= $2)
                order by found_at, id limit $4"#,
            names,
            day.start(),
            day.end(),
            ROWS_MAX
        )
        .fetch_all(&mut *self.0)
        .await?;
        let truncated = cut(&mut drifts);
        for row in drifts {
            let drift = Drift {
                kind: row.kind,
                found_at: row.found_at,
                repaired_at: row.repaired_at,
                differences: row.differences,
            };
            if let Some(node) = nodes.iter_mut().find(|node| node.node == row.node) {
                node.drifts.push(drift);
            }
        }
        Ok(truncated)
    }

    async fn drops(&mut self, tenant: TenantId, day: Date) -> Result<Vec<DropDay>, StoreError> {
        Ok(sqlx::query_as!(
            DropDay,
            r#"select p.device_id, d.name as device_name, p.reason, p.packets, p.first_at, p.last_at
                 from device_drops p join devices d on d.id = p.device_id
                where p.tenant_id = $1 and p.day = $2
                order by p.packets desc, p.device_id, p.reason limit $3"#,
            tenant.as_uuid(),
            day,
            ROWS_MAX
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// As the audit log has them: one that is over by now as well.
    async fn quarantines(&mut self, tenant: TenantId, day: Day) -> Result<Vec<QuarantineDay>, StoreError> {
        Ok(sqlx::query_as!(
            QuarantineDay,
            r#"select d.id as device_id, d.name as device_name, a.at, a.entry::jsonb #>> '{details,reason}' as "reason!"
                 from audit a join devices d on d.id = (a.entry::jsonb #>> '{subject,id}')::uuid
                where a.tenant_id = $1 and a.action = 'device.quarantined' and a.at >= $2 and a.at < $3
                order by a.seq limit $4"#,
            tenant.as_uuid(),
            day.start(),
            day.end(),
            ROWS_MAX
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    async fn openings(&mut self, tenant: TenantId, day: Day) -> Result<Vec<OpeningDay>, StoreError> {
        Ok(sqlx::query_as!(
            OpeningDay,
            r#"select o.id, o.device_id, d.name as device_name, o.port, o.grant_id, o.opened_by, o.reason, o.created_at,
                      o.opened_at, o.expires_at, o.ended_at, o.end_reason
                 from openings o join devices d on d.id = o.device_id
                where o.tenant_id = $1 and o.created_at < $3 and coalesce(o.ended_at, o.expires_at) >= $2
                order by o.created_at, o.id limit $4"#,
            tenant.as_uuid(),
            day.start(),
            day.end(),
            ROWS_MAX
        )
        .fetch_all(&mut *self.0)
        .await?)
    }
}

/// Cuts a list to the longest that it may be. Returns whether that costs anything.
fn cut<T>(lines: &mut Vec<T>) -> bool {
    let is_too_long = lines.len() > LINES_MAX;
    lines.truncate(LINES_MAX);
    is_too_long
}
