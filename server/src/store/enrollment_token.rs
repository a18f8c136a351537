//! Enrollment tokens as people see them; `store::enrollment` uses them up.

use cloudlink_proto::ids::{EnrollmentTokenId, PersonId, TenantId};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::device::Labels;
use crate::model::enrollment_token::EnrollmentToken;
use crate::secret::TokenHash;

/// The constraint that refuses a tenant that does not exist.
pub const TENANT_UNKNOWN: &str = "enrollment_tokens_tenant_id_fkey";

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    device_name: String,
    labels: Json<Labels>,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    used_at: Option<OffsetDateTime>,
    device_id: Option<Uuid>,
}

impl From<Row> for EnrollmentToken {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            device_name: row.device_name,
            labels: row.labels.0,
            created_at: row.created_at,
            expires_at: row.expires_at,
            used_at: row.used_at,
            device_id: row.device_id,
        }
    }
}

/// A token to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewEnrollmentToken<'a> {
    pub id: EnrollmentTokenId,
    pub tenant: TenantId,
    pub created_by: PersonId,
    pub secret: TokenHash,
    pub device_name: &'a str,
    pub labels: &'a Labels,
    pub expires_in: std::time::Duration,
}

pub async fn enrollment_token_create(
    connection: &mut PgConnection,
    token: NewEnrollmentToken<'_>,
) -> Result<EnrollmentToken, StoreError> {
    let row = sqlx::query_as!(
        Row,
        r#"insert into enrollment_tokens (id, tenant_id, created_by, secret_hash, device_name, labels, expires_at)
           values ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7))
           returning id, tenant_id, device_name, labels as "labels: _", created_at, expires_at, used_at, device_id"#,
        token.id.as_uuid(),
        token.tenant.as_uuid(),
        token.created_by.as_uuid(),
        token.secret.as_bytes(),
        token.device_name,
        Json(token.labels) as _,
        token.expires_in.as_secs_f64()
    );
    Ok(row.fetch_one(connection).await?.into())
}

/// Tokens, newest first, after the position given.
pub async fn enrollment_token_list(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<EnrollmentToken>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let rows = sqlx::query_as!(
        Row,
        r#"select id, tenant_id, device_name, labels as "labels: _", created_at, expires_at, used_at, device_id
             from enrollment_tokens
            where ($1::uuid is null or tenant_id = $1)
              and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
            order by created_at desc, id desc limit $4"#,
        tenant.map(TenantId::as_uuid),
        after_time,
        after_id,
        limit
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(EnrollmentToken::from).collect())
}
