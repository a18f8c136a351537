//! Receipts: what a tenant is told when a grant is over. Made once a grant, when nothing under it can change any more.

use cloudlink_certs::receipt::{
    Audit, Command, Entry, Grant, LINES_MAX, Named, Opening, Receipt, Request, Session, VERSION,
};
use cloudlink_proto::ids::{GrantId, TenantId};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Visibility};
use crate::model::selector::Selector;

/// One more than is told, so that it shows when there are more.
const ROWS_MAX: i64 = LINES_MAX as i64 + 1;
/// A session that has ended says within this time how soon it was cut, and its recording is finished; or never will.
const FIGURES_WITHIN_SECONDS: f64 = 60.0;

/// A grant that is over, with nothing under it that could still change.
#[derive(Clone, Copy, Debug)]
pub struct DueReceipt {
    pub grant: GrantId,
    pub tenant: TenantId,
}

/// The next grants that are to have a receipt.
pub async fn receipt_list_due(connection: &mut PgConnection, count: i64) -> Result<Vec<DueReceipt>, StoreError> {
    let rows = sqlx::query!(
        r#"select g.id, g.tenant_id
             from grants g
            where g.receipted_at is null and (g.revoked_at is not null or g.ends_at <= clock_timestamp())
              and not exists (select from commands c where c.grant_id = g.id and c.finished_at is null)
              and not exists (select from openings o where o.grant_id = g.id and o.ended_at is null)
              and not exists (
                  select from support_sessions s left join recordings r on r.session_id = s.id
                   where s.grant_id = g.id
                     and (s.ended_at is null
                          or (s.ended_at > clock_timestamp() - make_interval(secs => $2)
                              and ((s.cut_off_ms is null and s.end_reason not in ('closed', 'exited', 'refused', 'idle'))
                                   or (r.finished_at is null and not coalesce(r.is_cut_short, true))))))
            order by g.ends_at
            limit $1"#,
        count,
        FIGURES_WITHIN_SECONDS
    )
    .fetch_all(connection)
    .await?;
    let due = rows.into_iter();
    Ok(due
        .map(|row| DueReceipt { grant: GrantId::from_uuid(row.id), tenant: TenantId::from_uuid(row.tenant_id) })
        .collect())
}

/// A receipt that is being made: while it is, nothing is added to the tenant's audit log.
#[derive(Debug)]
pub struct Draft {
    transaction: Transaction<'static, Postgres>,
    due: DueReceipt,
}

impl Draft {
    /// `None`: somebody else makes it, or has made it.
    pub async fn begin(store: &Store, due: DueReceipt) -> Result<Option<Self>, StoreError> {
        let mut transaction = store.begin(Visibility::All).await?;
        let grant = sqlx::query_scalar!(
            "select id from grants where id = $1 and receipted_at is null for update skip locked",
            due.grant.as_uuid()
        );
        let is_ours = grant.fetch_optional(&mut *transaction).await?.is_some();
        Ok(is_ours.then_some(Self { transaction, due }))
    }

    /// All that is known of the grant.
    pub async fn content(&mut self, trust_domain: String) -> Result<Receipt, StoreError> {
        let mut omitted = 0;
        let (tenant, made_at) = self.tenant().await?;
        let request = self.request().await?;
        let commands: Vec<Command> = cut(self.commands().await?, &mut omitted);
        let sessions: Vec<Session> = cut(self.sessions().await?, &mut omitted);
        let openings: Vec<Opening> = cut(self.openings().await?, &mut omitted);
        let cut_off_ms_max = sessions.iter().filter_map(|session| session.cut_off_ms).max();
        let head = self.head().await?;
        let mut receipt = Receipt {
            version: VERSION,
            trust_domain,
            made_at,
            tenant,
            grant: self.grant().await?,
            request,
            commands,
            sessions,
            openings,
            cut_off_ms_max,
            audit: Audit { entries: Vec::new(), head },
            omitted,
        };
        receipt.audit.entries = cut(self.entries(&receipt).await?, &mut receipt.omitted);
        Ok(receipt)
    }

    /// Keeps the signed receipt. The rest is the caller's transaction.
    pub async fn keep(
        mut self,
        made_at: OffsetDateTime,
        statement: &str,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        sqlx::query!(
            "with made as (insert into receipts (grant_id, tenant_id, made_at, statement) values ($1, $2, $3, $4))
             update grants set receipted_at = $3 where id = $1",
            self.due.grant.as_uuid(),
            self.due.tenant.as_uuid(),
            made_at,
            statement
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(self.transaction)
    }

    async fn tenant(&mut self) -> Result<(Named, OffsetDateTime), StoreError> {
        let row = sqlx::query!(
            r#"select id, name, clock_timestamp() as "now!" from tenants where id = $1"#,
            self.due.tenant.as_uuid()
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        Ok((Named { id: row.id, name: row.name }, row.now))
    }

    async fn grant(&mut self) -> Result<Grant, StoreError> {
        let grant = sqlx::query_scalar!(
            r#"select jsonb_build_object(
                   'id', g.id, 'created_by', named(g.created_by, 'people'), 'reason', g.reason, 'scopes', g.scopes,
                   'operators', (select jsonb_agg(named(o, 'people')) from unnest(g.operator_ids) as o),
                   'devices', (select jsonb_agg(named(d, 'devices')) from unnest(g.device_ids) as d), 'selector', g.selector,
                   'created_at', g.created_at, 'starts_at', g.starts_at, 'ends_at', g.ends_at, 'revoked_at', g.revoked_at,
                   'revoked_by', named(g.revoked_by, 'people'), 'signing_key_id', g.signing_key_id) as "grant!: Json<Grant>"
                 from grants g where g.id = $1"#,
            self.due.grant.as_uuid()
        );
        let mut grant: Grant = grant.fetch_one(&mut *self.transaction).await?.0;
        grant.selector = grant.selector.map(told).transpose()?;
        Ok(grant)
    }

    async fn request(&mut self) -> Result<Option<Request>, StoreError> {
        let request = sqlx::query_scalar!(
            r#"select jsonb_build_object(
                   'id', r.id, 'requested_by', named(r.requested_by, 'people'), 'reason', r.reason, 'ticket', r.ticket,
                   'scopes', r.scopes, 'created_at', r.created_at, 'access_until', r.access_until,
                   'decisions', coalesce((
                       select jsonb_agg(jsonb_build_object('by', named(a.person_id, 'people'), 'decision', a.decision,
                                                           'comment', a.comment, 'at', a.created_at) order by a.created_at)
                         from access_decisions a where a.request_id = r.id), '[]'),
                   'policy', (select jsonb_build_object('id', p.id, 'name', p.name) from access_policies p
                               where p.id = g.policy_id)) as "request!: Json<Request>"
                 from grants g join access_requests r on r.id = g.request_id where g.id = $1"#,
            self.due.grant.as_uuid()
        );
        Ok(request.fetch_optional(&mut *self.transaction).await?.map(|Json(request)| request))
    }

    async fn commands(&mut self) -> Result<Vec<Command>, StoreError> {
        let commands = sqlx::query_scalar!(
            r#"select jsonb_build_object(
                   'id', c.id, 'device', named(c.device_id, 'devices'), 'requested_by', named(c.requested_by, 'people'),
                   'kind', c.kind, 'arguments', c.arguments, 'reason', c.reason, 'state', c.state, 'code', c.code,
                   'message', c.message, 'created_at', c.created_at, 'finished_at', c.finished_at) as "command!: Json<Command>"
                 from commands c where c.grant_id = $1 order by c.created_at, c.id limit $2"#,
            self.due.grant.as_uuid(),
            ROWS_MAX
        );
        Ok(plain(commands.fetch_all(&mut *self.transaction).await?))
    }

    async fn sessions(&mut self) -> Result<Vec<Session>, StoreError> {
        let sessions = sqlx::query_scalar!(
            r#"select jsonb_build_object(
                   'id', s.id, 'device', named(s.device_id, 'devices'), 'opened_by', named(s.opened_by, 'people'),
                   'guests', coalesce((select jsonb_agg(distinct named(h.person_id, 'people')) from support_guests h
                                        where h.session_id = s.id), '[]'),
                   'kind', s.kind, 'target', s.target, 'reason', s.reason, 'created_at', s.created_at,
                   'started_at', s.started_at, 'ended_at', s.ended_at, 'end_reason', s.end_reason,
                   'cut_off_ms', s.cut_off_ms, 'bytes_to_device', s.bytes_to_device,
                   'bytes_from_device', s.bytes_from_device, 'result', s.result,
                   'recording', (select jsonb_build_object('format', r.format, 'bytes', r.bytes,
                                                           'sha256', encode(r.digest, 'hex'), 'is_cut_short', r.is_cut_short)
                                   from recordings r where r.session_id = s.id)) as "session!: Json<Session>"
                 from support_sessions s where s.grant_id = $1 order by s.created_at, s.id limit $2"#,
            self.due.grant.as_uuid(),
            ROWS_MAX
        );
        Ok(plain(sessions.fetch_all(&mut *self.transaction).await?))
    }

    async fn openings(&mut self) -> Result<Vec<Opening>, StoreError> {
        let openings = sqlx::query_scalar!(
            r#"select jsonb_build_object(
                   'id', o.id, 'device', named(o.device_id, 'devices'), 'opened_by', named(o.opened_by, 'people'),
                   'port', o.port, 'reason', o.reason, 'opened_at', o.opened_at, 'ended_at', o.ended_at,
                   'end_reason', o.end_reason) as "opening!: Json<Opening>"
                 from openings o where o.grant_id = $1 order by o.created_at, o.id limit $2"#,
            self.due.grant.as_uuid(),
            ROWS_MAX
        );
        Ok(plain(openings.fetch_all(&mut *self.transaction).await?))
    }

    /// The end of the log, which stays where it is until the transaction is over.
    async fn head(&mut self) -> Result<Entry, StoreError> {
        let row = sqlx::query!(
            r#"select a.seq, encode(a.hash, 'hex') as "hash!", a.action
                 from audit_head($1) c join audit a on a.tenant_id = $1 and a.seq = c.seq"#,
            self.due.tenant.as_uuid()
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        entry(row.seq, row.hash, row.action)
    }

    /// The entries about anything in the receipt, or that name the grant.
    async fn entries(&mut self, receipt: &Receipt) -> Result<Vec<Entry>, StoreError> {
        let subjects: Vec<Uuid> = receipt.subjects().collect();
        let begun = receipt.request.as_ref().map_or(receipt.grant.created_at, |request| request.created_at);
        let rows = sqlx::query!(
            r#"select a.seq, encode(a.hash, 'hex') as "hash!", a.action
                 from audit a, cast(a.entry as jsonb) as e
                where a.tenant_id = $1 and a.at >= least($4::timestamptz, $5) - interval '1 minute'
                  and (e #>> '{subject,id}' = any ($3::uuid[]::text[]) or e #>> '{details,grant_id}' = $2::uuid::text)
                order by a.seq
                limit $6"#,
            self.due.tenant.as_uuid(),
            self.due.grant.as_uuid(),
            &subjects,
            begun,
            receipt.grant.created_at,
            ROWS_MAX
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        rows.into_iter().map(|row| entry(row.seq, row.hash, row.action)).collect()
    }
}

/// The receipt of a grant, as it was signed.
pub async fn receipt_show(connection: &mut PgConnection, grant: GrantId) -> Result<Option<String>, StoreError> {
    let receipt = sqlx::query_scalar!("select statement from receipts where grant_id = $1", grant.as_uuid());
    Ok(receipt.fetch_optional(connection).await?)
}

fn entry(seq: i64, hash: String, action: String) -> Result<Entry, StoreError> {
    let seq = u64::try_from(seq).map_err(|_| StoreError::Inconsistent { table: "audit", column: "seq" })?;
    Ok(Entry { seq, hash, action })
}

/// A stored selector as people read it: labels with their values, or else its text.
fn told(stored: Value) -> Result<Value, StoreError> {
    let selector: Selector =
        serde_json::from_value(stored).map_err(|_| StoreError::Inconsistent { table: "grants", column: "selector" })?;
    Ok(if selector.is_labels() { json!(selector.equals()) } else { selector.to_string().into() })
}

fn plain<T: DeserializeOwned>(rows: Vec<Json<T>>) -> Vec<T> {
    rows.into_iter().map(|Json(row)| row).collect()
}

/// Leaves out what finds no room, and counts that there is more: at least as many.
fn cut<T>(mut rows: Vec<T>, omitted: &mut u64) -> Vec<T> {
    *omitted += u64::try_from(rows.len().saturating_sub(LINES_MAX)).unwrap_or(u64::MAX);
    rows.truncate(LINES_MAX);
    rows
}
