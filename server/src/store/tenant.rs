//! Tenants.

use cloudlink_proto::ids::{PersonId, TenantId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::tenant::{AGREE_WITHIN, ApprovalsVerdict, FewerApprovals, Tenant};

/// The constraint that refuses a name that another tenant has.
pub const NAME_TAKEN: &str = "tenants_name_key";

struct Row {
    id: Uuid,
    name: String,
    grant_max_seconds: i32,
    approvals_needed: i32,
    fewer_approvals_by: Option<Uuid>,
    fewer_approvals_until: Option<OffsetDateTime>,
    signed_grants: bool,
    recording_keep_days: i32,
    created_at: OffsetDateTime,
}

impl From<Row> for Tenant {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            name: row.name,
            grant_max_seconds: row.grant_max_seconds,
            approvals_needed: row.approvals_needed,
            fewer_approvals: row
                .fewer_approvals_by
                .zip(row.fewer_approvals_until)
                .map(|(proposed_by, until)| FewerApprovals { proposed_by, until }),
            signed_grants: row.signed_grants,
            recording_keep_days: row.recording_keep_days,
            created_at: row.created_at,
        }
    }
}

/// A statement that yields tenants `t`: the head comes before the columns, the tail after them.
macro_rules! tenant_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" t.id, t.name, t.grant_max_seconds, t.approvals_needed, t.signed_grants, t.recording_keep_days, t.created_at,
                      t.fewer_approvals_by,
                      case when t.fewer_approvals_until > clock_timestamp() then t.fewer_approvals_until end
                          as fewer_approvals_until "#
                + $tail
            $(, $argument)*
        )
    };
}

/// `grant_max_seconds`: 30 days if `None`.
pub async fn tenant_create(
    connection: &mut PgConnection,
    id: TenantId,
    name: &str,
    grant_max_seconds: Option<i32>,
) -> Result<Tenant, StoreError> {
    let tenant = tenant_query!(
        "insert into tenants as t (id, name, grant_max_seconds) values ($1, $2, coalesce($3, 2592000)) returning",
        "",
        id.as_uuid(),
        name,
        grant_max_seconds
    );
    Ok(tenant.fetch_one(connection).await?.into())
}

pub async fn tenant_show(connection: &mut PgConnection, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    let tenant = tenant_query!("select", "from tenants t where t.id = $1 and not t.internal", id.as_uuid());
    Ok(tenant.fetch_optional(connection).await?.map(Tenant::from))
}

/// Like [`tenant_show`], and nobody else changes it before the end of this transaction.
pub async fn tenant_lock(connection: &mut PgConnection, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    let tenant =
        tenant_query!("select", "from tenants t where t.id = $1 and not t.internal for no key update", id.as_uuid());
    Ok(tenant.fetch_optional(connection).await?.map(Tenant::from))
}

/// Tenants, newest first, after the position given.
pub async fn tenant_list(
    connection: &mut PgConnection,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let tenants = tenant_query!(
        "select",
        "from tenants t
          where not t.internal and ($1::timestamptz is null or (t.created_at, t.id) < ($1, $2::uuid))
          order by t.created_at desc, t.id desc limit $3",
        after_time,
        after_id,
        limit
    );
    Ok(tenants.fetch_all(connection).await?.into_iter().map(Tenant::from).collect())
}

/// Sets how long a grant may be. Grants that are there already keep their end.
pub async fn tenant_set_grant_max(
    connection: &mut PgConnection,
    id: TenantId,
    grant_max_seconds: i32,
) -> Result<(), StoreError> {
    sqlx::query!("update tenants set grant_max_seconds = $2 where id = $1", id.as_uuid(), grant_max_seconds)
        .execute(connection)
        .await?;
    Ok(())
}

/// Sets for how long recordings are kept, those that are there already as well.
pub async fn tenant_set_recording_keep_days(
    connection: &mut PgConnection,
    id: TenantId,
    days: i32,
) -> Result<(), StoreError> {
    sqlx::query!("update tenants set recording_keep_days = $2 where id = $1", id.as_uuid(), days)
        .execute(connection)
        .await?;
    Ok(())
}

/// Sets how many people must approve, in a transaction of the tenant. Fewer than before takes two people, who both ask for it.
pub async fn tenant_set_approvals(
    connection: &mut PgConnection,
    person: PersonId,
    needed: i32,
) -> Result<ApprovalsVerdict, StoreError> {
    let verdict = sqlx::query_scalar!(
        r#"select tenant_set_approvals($1, $2, make_interval(secs => $3)) as "verdict!""#,
        person.as_uuid(),
        needed,
        AGREE_WITHIN.as_secs_f64()
    );
    Ok(match verdict.fetch_one(connection).await?.as_str() {
        "set" => ApprovalsVerdict::Set,
        "proposed" => ApprovalsVerdict::Proposed,
        "person" => ApprovalsVerdict::Person,
        "robot" => ApprovalsVerdict::Robot,
        "too_few" => ApprovalsVerdict::TooFew,
        _ => return Err(StoreError::Inconsistent { table: "tenants", column: "verdict" }),
    })
}
