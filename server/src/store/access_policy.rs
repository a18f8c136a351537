//! Access policies. Whether one allows a request is decided by `access_policy_in_force()` and `access_policy_holds()` in the
//! database, when the request is made.

use cloudlink_proto::ids::{AccessPolicyId, GrantId, PersonId, TenantId};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::access_policy::{AccessPolicy, AccessPolicyState, POLICIES_MAX};
use crate::model::selector::Selector;

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    name: String,
    scopes: Vec<String>,
    device_ids: Option<Vec<Uuid>>,
    selector: Option<Json<Selector>>,
    operator_ids: Option<Vec<Uuid>>,
    days: Vec<i32>,
    from_minute: i32,
    to_minute: i32,
    time_zone: String,
    max_seconds: i32,
    state: String,
    created_by: Uuid,
    created_at: OffsetDateTime,
    approved_by: Option<Uuid>,
    approved_at: Option<OffsetDateTime>,
    revoked_by: Option<Uuid>,
    revoked_at: Option<OffsetDateTime>,
}

fn unreadable(column: &'static str) -> StoreError {
    StoreError::Inconsistent { table: "access_policies", column }
}

impl TryFrom<Row> for AccessPolicy {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let (selector, selector_text) = row.selector.map(|Json(selector)| selector.forms()).unzip();
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: row.name,
            scopes: row.scopes,
            device_ids: row.device_ids,
            selector,
            selector_text,
            operator_ids: row.operator_ids,
            days: row.days,
            from_minute: row.from_minute,
            to_minute: row.to_minute,
            time_zone: row.time_zone,
            max_seconds: row.max_seconds,
            state: AccessPolicyState::named(&row.state).ok_or_else(|| unreadable("state"))?,
            created_by: row.created_by,
            created_at: row.created_at,
            approved_by: row.approved_by,
            approved_at: row.approved_at,
            revoked_by: row.revoked_by,
            revoked_at: row.revoked_at,
        })
    }
}

/// A statement that yields access policies `p`: the head comes before the columns, the tail after them.
macro_rules! access_policy_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" p.id, p.tenant_id, p.name, p.scopes, p.device_ids, p.selector as "selector: Json<Selector>", p.operator_ids,
                      p.days, p.from_minute, p.to_minute, p.time_zone, p.max_seconds,
                      case when p.revoked_at is not null then 'revoked'
                           when access_policy_in_force(p, (select t.approvals_needed from tenants t where t.id = p.tenant_id))
                               then 'in_force'
                           else 'proposed' end as "state!",
                      p.created_by, p.created_at, p.approved_by, p.approved_at, p.revoked_by, p.revoked_at "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A policy to be made. At most one of `device_ids` and `selector` is set.
#[derive(Clone, Copy, Debug)]
pub struct NewAccessPolicy<'a> {
    pub id: AccessPolicyId,
    pub tenant: TenantId,
    pub created_by: PersonId,
    pub name: &'a str,
    pub scopes: &'a [String],
    pub device_ids: Option<&'a [Uuid]>,
    pub selector: Option<&'a Selector>,
    pub operator_ids: Option<&'a [Uuid]>,
    pub days: &'a [i32],
    pub from_minute: i32,
    pub to_minute: i32,
    pub time_zone: &'a str,
    pub max_seconds: i32,
}

/// Makes a policy, in a transaction of the tenant. `None` when the tenant has [`POLICIES_MAX`] already.
pub async fn access_policy_create(
    connection: &mut PgConnection,
    new: &NewAccessPolicy<'_>,
) -> Result<Option<AccessPolicy>, StoreError> {
    access_policy_query!(
        "insert into access_policies as p (id, tenant_id, created_by, name, scopes, device_ids, selector, operator_ids, days,
                                           from_minute, to_minute, time_zone, max_seconds)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
          where (select count(*) from access_policies o where o.tenant_id = $2 and o.revoked_at is null) < $14
         returning",
        "",
        new.id.as_uuid(),
        new.tenant.as_uuid(),
        new.created_by.as_uuid(),
        new.name,
        new.scopes,
        new.device_ids,
        new.selector.map(Json) as _,
        new.operator_ids,
        new.days,
        new.from_minute,
        new.to_minute,
        new.time_zone,
        new.max_seconds,
        POLICIES_MAX
    )
    .fetch_optional(connection)
    .await?
    .map(AccessPolicy::try_from)
    .transpose()
}

/// Whether the database knows a time zone of this name. Not what it would take as well: abbreviations, and rules of one's own.
pub async fn time_zone_is_known(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select from pg_timezone_names
                           where name = $1 and (name like '%/%' or name = 'UTC') and name !~ '^(posix|right)/') as "known!""#,
        name
    )
    .fetch_one(connection)
    .await?)
}

pub async fn access_policy_show(
    connection: &mut PgConnection,
    id: AccessPolicyId,
) -> Result<Option<AccessPolicy>, StoreError> {
    access_policy_query!("select", "from access_policies p where p.id = $1", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(AccessPolicy::try_from)
        .transpose()
}

/// Like [`access_policy_show`], and nobody else changes it, or makes a grant under it, before the end of this transaction.
pub async fn access_policy_lock(
    connection: &mut PgConnection,
    id: AccessPolicyId,
) -> Result<Option<AccessPolicy>, StoreError> {
    access_policy_query!("select", "from access_policies p where p.id = $1 for no key update of p", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(AccessPolicy::try_from)
        .transpose()
}

/// Policies, newest first, after the position given.
pub async fn access_policy_list(
    connection: &mut PgConnection,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<AccessPolicy>, StoreError> {
    let (after_time, after_id) = after.unzip();
    access_policy_query!(
        "select",
        "from access_policies p
          where $1::timestamptz is null or (p.created_at, p.id) < ($1, $2::uuid)
          order by p.created_at desc, p.id desc limit $3",
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(AccessPolicy::try_from)
    .collect()
}

/// What came of a second person's approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyApproved {
    Approved,
    /// A second person has approved it before.
    Again,
    Unknown,
    NoPerson,
    /// A service account counts for nobody.
    Robot,
    /// Whoever made it.
    Own,
    Revoked,
}

/// In a transaction of the tenant.
pub async fn access_policy_approve(
    connection: &mut PgConnection,
    id: AccessPolicyId,
    person: PersonId,
) -> Result<PolicyApproved, StoreError> {
    let verdict =
        sqlx::query_scalar!(r#"select access_policy_approve($1, $2) as "verdict!""#, id.as_uuid(), person.as_uuid());
    Ok(match verdict.fetch_one(connection).await?.as_str() {
        "approved" => PolicyApproved::Approved,
        "again" => PolicyApproved::Again,
        "unknown" => PolicyApproved::Unknown,
        "person" => PolicyApproved::NoPerson,
        "robot" => PolicyApproved::Robot,
        "own" => PolicyApproved::Own,
        "revoked" => PolicyApproved::Revoked,
        _ => return Err(unreadable("verdict")),
    })
}

/// Takes back a policy that was locked in the same transaction. Grants that were made under it stay.
pub async fn access_policy_revoke_in_txn(
    connection: &mut PgConnection,
    id: AccessPolicyId,
    by: PersonId,
) -> Result<AccessPolicy, StoreError> {
    access_policy_query!(
        "update access_policies p set revoked_at = clock_timestamp(), revoked_by = $2 where p.id = $1 returning",
        "",
        id.as_uuid(),
        by.as_uuid()
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// The grants under a policy that are not over.
pub async fn access_policy_grants(
    connection: &mut PgConnection,
    id: AccessPolicyId,
) -> Result<Vec<GrantId>, StoreError> {
    let ids = sqlx::query_scalar!(
        "select id from grants where policy_id = $1 and revoked_at is null and ends_at > clock_timestamp() order by id",
        id.as_uuid()
    );
    Ok(ids.fetch_all(connection).await?.into_iter().map(GrantId::from_uuid).collect())
}

#[cfg(test)]
mod tests;
