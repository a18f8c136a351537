//! Tenants.

use cloudlink_proto::ids::TenantId;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::tenant::Tenant;

/// The constraint that refuses a name that another tenant has.
pub const NAME_TAKEN: &str = "tenants_name_key";

/// `grant_max_seconds`: 30 days if `None`.
pub async fn tenant_create(
    connection: &mut PgConnection,
    id: TenantId,
    name: &str,
    grant_max_seconds: Option<i32>,
) -> Result<Tenant, StoreError> {
    Ok(sqlx::query_as!(
        Tenant,
        "insert into tenants (id, name, grant_max_seconds) values ($1, $2, coalesce($3, 2592000))
         returning id, name, grant_max_seconds, created_at",
        id.as_uuid(),
        name,
        grant_max_seconds
    )
    .fetch_one(connection)
    .await?)
}

pub async fn tenant_show(connection: &mut PgConnection, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    Ok(sqlx::query_as!(
        Tenant,
        "select id, name, grant_max_seconds, created_at from tenants where id = $1 and not internal",
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Like [`tenant_show`], and nobody else changes it before the end of this transaction.
pub async fn tenant_lock(connection: &mut PgConnection, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    Ok(sqlx::query_as!(
        Tenant,
        "select id, name, grant_max_seconds, created_at from tenants where id = $1 and not internal for no key update",
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Tenants, newest first, after the position given.
pub async fn tenant_list(
    connection: &mut PgConnection,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let (after_time, after_id) = after.unzip();
    Ok(sqlx::query_as!(
        Tenant,
        "select id, name, grant_max_seconds, created_at from tenants
          where not internal and ($1::timestamptz is null or (created_at, id) < ($1, $2::uuid))
          order by created_at desc, id desc limit $3",
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Sets how long a grant may be. Grants that are there already keep their end.
pub async fn tenant_set_grant_max(
    connection: &mut PgConnection,
    id: TenantId,
    grant_max_seconds: i32,
) -> Result<Tenant, StoreError> {
    Ok(sqlx::query_as!(
        Tenant,
        "update tenants set grant_max_seconds = $2 where id = $1 returning id, name, grant_max_seconds, created_at",
        id.as_uuid(),
        grant_max_seconds
    )
    .fetch_one(connection)
    .await?)
}
