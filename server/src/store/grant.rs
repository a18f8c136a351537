//! Grants. What a grant allows is decided by `grant_covers()` and `grant_in_force()` in the database, and nowhere else.

use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, SigningKeyId, TenantId};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::grant::{Grant, GrantState};
use crate::model::selector::Selector;

/// The constraint that refuses a grant that is longer than its tenant's policy allows.
pub const BEYOND_POLICY: &str = "grants_within_policy";
/// The constraint that refuses a grant that ends before it starts.
pub const ENDS_BEFORE_START: &str = "grants_ends_after_start";
/// The constraint that refuses what one person alone does, where two of the tenant's people must approve.
pub const NEEDS_APPROVAL: &str = "grants_approved";

/// The constraint that refuses a grant, or a later end, that is not signed where it must be.
pub const UNSIGNED: &str = "grants_signed";
/// The constraint that refuses an id that a grant has already.
pub const ID_TAKEN: &str = "grants_pkey";

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    created_by: Uuid,
    reason: String,
    scopes: Vec<String>,
    operator_ids: Option<Vec<Uuid>>,
    device_ids: Option<Vec<Uuid>>,
    selector: Option<Json<Selector>>,
    starts_at: OffsetDateTime,
    ends_at: OffsetDateTime,
    created_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
    statement: Option<String>,
    request_id: Option<Uuid>,
    policy_id: Option<Uuid>,
    version: i64,
    state: String,
}

impl TryFrom<Row> for Grant {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let (selector, selector_text) = row.selector.map(|Json(selector)| selector.forms()).unzip();
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            created_by: row.created_by,
            reason: row.reason,
            scopes: row.scopes,
            operator_ids: row.operator_ids,
            device_ids: row.device_ids,
            selector,
            selector_text,
            starts_at: row.starts_at,
            ends_at: row.ends_at,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
            statement: row.statement,
            request_id: row.request_id,
            policy_id: row.policy_id,
            version: row.version,
            state: GrantState::named(&row.state)
                .ok_or(StoreError::Inconsistent { table: "grants", column: "state" })?,
        })
    }
}

/// A statement that yields grants `g`: the head comes before the columns, the tail after them.
macro_rules! grant_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" g.id, g.tenant_id, g.created_by, g.reason, g.scopes, g.operator_ids, g.device_ids,
                      g.selector as "selector: _", g.starts_at, g.ends_at, g.created_at, g.revoked_at,
                      g.statement, g.request_id, g.policy_id, g.version,
                      grant_state(g, clock_timestamp()) as "state!" "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A grant to be made. Exactly one of `device_ids` and `selector` is set.
#[derive(Clone, Copy, Debug)]
pub struct NewGrant<'a> {
    pub id: GrantId,
    pub tenant: TenantId,
    pub created_by: PersonId,
    pub reason: &'a str,
    pub scopes: &'a [String],
    pub operator_ids: Option<&'a [Uuid]>,
    pub device_ids: Option<&'a [Uuid]>,
    pub selector: Option<&'a Selector>,
    /// Now, if it is `None` or in the past.
    pub starts_at: Option<OffsetDateTime>,
    pub ends_at: End,
    /// As the tenant signed it, and with which key.
    pub statement: Option<(&'a str, SigningKeyId)>,
}

/// When a grant ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    At(OffsetDateTime),
    /// This long after its start.
    After(std::time::Duration),
}

/// Makes a grant. Fails on [`BEYOND_POLICY`], [`ENDS_BEFORE_START`] or [`NEEDS_APPROVAL`]; a grant that ends in the past is made as `ended`.
pub async fn grant_create(connection: &mut PgConnection, grant: NewGrant<'_>) -> Result<Grant, StoreError> {
    let (statement, signing_key) = grant.statement.unzip();
    let (ends_at, seconds) = match grant.ends_at {
        End::At(at) => (Some(at), None),
        End::After(duration) => (None, Some(duration.as_secs_f64())),
    };
    grant_query!(
        "with time as (select greatest($9::timestamptz, clock_timestamp()) as starts_at)
         insert into grants as g (id, tenant_id, created_by, reason, scopes, operator_ids, device_ids, selector,
                                  starts_at, ends_at, policy_max_seconds, statement, signing_key_id)
         select $1, $2, $3, $4, $5, $6, $7, $8, starts_at,
                coalesce($10::timestamptz, starts_at + make_interval(secs => $11)), 0, $12, $13
           from time returning",
        "",
        grant.id.as_uuid(),
        grant.tenant.as_uuid(),
        grant.created_by.as_uuid(),
        grant.reason,
        grant.scopes,
        grant.operator_ids,
        grant.device_ids,
        grant.selector.map(Json) as _,
        grant.starts_at,
        ends_at,
        seconds,
        statement,
        signing_key.map(SigningKeyId::as_uuid)
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// One grant; if an operator is given, only one that names it.
pub async fn grant_show(
    connection: &mut PgConnection,
    id: GrantId,
    operator: Option<Uuid>,
) -> Result<Option<Grant>, StoreError> {
    grant_query!(
        "select",
        "from grants g where g.id = $1 and ($2::uuid is null or g.operator_ids is null or $2 = any (g.operator_ids))",
        id.as_uuid(),
        operator
    )
    .fetch_optional(connection)
    .await?
    .map(Grant::try_from)
    .transpose()
}

/// Like [`grant_show`], and nobody else changes it before the end of this transaction. New commands under it wait.
pub async fn grant_lock(connection: &mut PgConnection, id: GrantId) -> Result<Option<Grant>, StoreError> {
    grant_query!("select", "from grants g where g.id = $1 for no key update of g", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(Grant::try_from)
        .transpose()
}

/// What [`grant_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrantFilter {
    /// Only what names this operator.
    pub operator: Option<Uuid>,
    pub tenant: Option<TenantId>,
    pub state: Option<GrantState>,
    /// Only what covers this device, by name or by selector.
    pub device: Option<DeviceId>,
}

/// Grants, newest first, after the position given.
pub async fn grant_list(
    connection: &mut PgConnection,
    filter: GrantFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Grant>, StoreError> {
    let (after_time, after_id) = after.unzip();
    grant_query!(
        "select",
        "from grants g
          where ($1::uuid is null or g.operator_ids is null or $1 = any (g.operator_ids))
            and ($2::uuid is null or g.tenant_id = $2)
            and ($3::text is null or grant_state(g, clock_timestamp()) = $3)
            and ($4::uuid is null or exists (
                select from devices d where d.id = $4 and d.tenant_id = g.tenant_id
                   and coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector))))
            and ($5::timestamptz is null or (g.created_at, g.id) < ($5, $6::uuid))
          order by g.created_at desc, g.id desc limit $7",
        filter.operator,
        filter.tenant.map(TenantId::as_uuid),
        filter.state.map(GrantState::name),
        filter.device.map(DeviceId::as_uuid),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Grant::try_from)
    .collect()
}

/// Revokes a grant that was locked in the same transaction and is not revoked.
pub async fn grant_revoke_in_txn(
    connection: &mut PgConnection,
    id: GrantId,
    by: PersonId,
) -> Result<Grant, StoreError> {
    grant_query!(
        "update grants g set revoked_at = clock_timestamp(), revoked_by = $2, version = version + 1
          where g.id = $1 returning",
        "",
        id.as_uuid(),
        by.as_uuid()
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// Moves the end of a grant that was locked in the same transaction. Fails on [`BEYOND_POLICY`] or [`NEEDS_APPROVAL`].
pub async fn grant_extend_in_txn(
    connection: &mut PgConnection,
    id: GrantId,
    ends_at: OffsetDateTime,
    statement: Option<(&str, SigningKeyId)>,
) -> Result<Grant, StoreError> {
    let (statement, signing_key) = statement.unzip();
    grant_query!(
        "update grants g set ends_at = $2, version = version + 1, statement = coalesce($3, statement),
                           signing_key_id = coalesce($4, signing_key_id) where g.id = $1 returning",
        "",
        id.as_uuid(),
        ends_at,
        statement,
        signing_key.map(SigningKeyId::as_uuid)
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// One grant whose time is up, and of which the tenant was not told yet: marked as told. Not one that was revoked: that was told.
pub async fn grant_tell_ended_in_txn(connection: &mut PgConnection) -> Result<Option<Grant>, StoreError> {
    grant_query!(
        "update grants g set end_told_at = clock_timestamp()
          where g.id = (select o.id from grants o
                         where o.end_told_at is null and o.revoked_at is null and o.ends_at <= clock_timestamp()
                         order by o.ends_at limit 1 for no key update skip locked)
         returning",
        ""
    )
    .fetch_optional(connection)
    .await?
    .map(Grant::try_from)
    .transpose()
}
