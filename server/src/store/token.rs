//! API tokens. On behalf of a tenant, row-level security shows those of the tenant's people: whoever asks for rows here names
//! the person as well.

use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::person::Role;
use crate::model::token::{Session, Token};
use crate::secret::TokenHash;

/// The constraint that refuses a person that does not exist.
pub const PERSON_UNKNOWN: &str = "api_tokens_person_id_fkey";

/// Who the token belongs to, if it is valid now and its person is active. Now is the database's.
pub async fn token_authenticate(
    connection: &mut PgConnection,
    secret: TokenHash,
) -> Result<Option<Session>, StoreError> {
    let row = sqlx::query!(
        r#"select t.id, t.expires_at, p.id as person_id, p.name, p.role, p.tenant_id,
                  coalesce(t.last_used_at < clock_timestamp() - interval '1 minute', true) as "is_stale!"
             from api_tokens t join people p on p.id = t.person_id
            where t.secret_hash = $1 and t.revoked_at is null and t.expires_at > clock_timestamp() and p.active"#,
        secret.as_bytes()
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.is_stale {
        token_touch(connection, TokenId::from_uuid(row.id)).await?;
    }
    Ok(Some(Session {
        token: TokenId::from_uuid(row.id),
        token_expires_at: row.expires_at,
        person: PersonId::from_uuid(row.person_id),
        name: row.name,
        role: Role::named(&row.role).ok_or(StoreError::Inconsistent { table: "people", column: "role" })?,
        tenant: row.tenant_id.map(TenantId::from_uuid),
    }))
}

/// Notes that the token was used. Requests that come together do not wait for one another: one of them notes it.
/// Nobody waits for the disk, either: the next request says it again.
async fn token_touch(connection: &mut PgConnection, id: TokenId) -> Result<(), StoreError> {
    sqlx::query!(
        "update api_tokens set last_used_at = clock_timestamp()
          where id = (select id from api_tokens where id = $1
                         and coalesce(last_used_at < clock_timestamp() - interval '1 minute', true)
                         and set_config('synchronous_commit', 'off', true) is not null
                         for no key update skip locked)",
        id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the token still lets its person in: for streams, which outlive the check at their start.
pub async fn token_is_valid(connection: &mut PgConnection, id: TokenId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select from api_tokens t join people p on p.id = t.person_id
            where t.id = $1 and t.revoked_at is null and t.expires_at > clock_timestamp() and p.active) as "is_valid!""#,
        id.as_uuid()
    )
    .fetch_one(connection)
    .await?)
}

/// Stores a new token by its hash.
pub async fn token_create(
    connection: &mut PgConnection,
    id: TokenId,
    person: PersonId,
    name: &str,
    secret: TokenHash,
    expires_in: std::time::Duration,
) -> Result<Token, StoreError> {
    Ok(sqlx::query_as!(
        Token,
        "insert into api_tokens (id, person_id, name, secret_hash, expires_at)
         values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
         returning id, person_id, name, created_at, expires_at, revoked_at, last_used_at",
        id.as_uuid(),
        person.as_uuid(),
        name,
        secret.as_bytes(),
        expires_in.as_secs_f64()
    )
    .fetch_one(connection)
    .await?)
}

/// A person's tokens, newest first, after the position given.
pub async fn token_list(
    connection: &mut PgConnection,
    person: PersonId,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Token>, StoreError> {
    let (after_time, after_id) = after.unzip();
    Ok(sqlx::query_as!(
        Token,
        "select id, person_id, name, created_at, expires_at, revoked_at, last_used_at from api_tokens
          where person_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
          order by created_at desc, id desc limit $4",
        person.as_uuid(),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Revokes a token, of `owner` only if one is given. The second value says whether this call did it.
pub async fn token_revoke(
    connection: &mut PgConnection,
    id: TokenId,
    owner: Option<PersonId>,
) -> Result<Option<(Token, bool)>, StoreError> {
    let done = sqlx::query_as!(
        Token,
        "update api_tokens set revoked_at = clock_timestamp()
          where id = $1 and ($2::uuid is null or person_id = $2) and revoked_at is null
         returning id, person_id, name, created_at, expires_at, revoked_at, last_used_at",
        id.as_uuid(),
        owner.map(PersonId::as_uuid)
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(token) = done {
        return Ok(Some((token, true)));
    }
    let present = sqlx::query_as!(
        Token,
        "select id, person_id, name, created_at, expires_at, revoked_at, last_used_at from api_tokens
          where id = $1 and ($2::uuid is null or person_id = $2)",
        id.as_uuid(),
        owner.map(PersonId::as_uuid)
    )
    .fetch_optional(connection)
    .await?;
    Ok(present.map(|token| (token, false)))
}
