//! API tokens. On behalf of a tenant, row-level security shows those of the tenant's people: whoever asks for rows here names
//! the person as well.

use cloudlink_proto::ids::{PersonId, TenantId, TokenId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::{StoreError, TELLS_WHEN_WITHIN};
use crate::model::api_scope::ApiScope;
use crate::model::person::Role;
use crate::model::token::{Kind, Session, Token};
use crate::secret::TokenHash;

/// The constraint that refuses a person that does not exist.
pub const PERSON_UNKNOWN: &str = "api_tokens_person_id_fkey";

/// Who the token belongs to, if it is valid now and its person is active. Now is the database's.
pub async fn token_authenticate(
    connection: &mut PgConnection,
    secret: TokenHash,
) -> Result<Option<Session>, StoreError> {
    let row = sqlx::query!(
        r#"select t.id, t.expires_at, t.kind, t.scopes, p.id as person_id, p.name, p.kind as person_kind, p.role, p.tenant_id,
                  coalesce(t.last_used_at < clock_timestamp() - interval '1 minute', true) as "is_stale!"
             from api_tokens t join people p on p.id = t.person_id
            where t.secret_hash = $1 and t.kind <> 'bootstrap' and t.revoked_at is null
              and t.expires_at > clock_timestamp() and p.active"#,
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
        kind: Kind::named(&row.kind).ok_or(StoreError::Inconsistent { table: "api_tokens", column: "kind" })?,
        scopes: row.scopes.map(|names| read_scopes(&names)).transpose()?,
        person: PersonId::from_uuid(row.person_id),
        name: row.name,
        is_service: row.person_kind == "service",
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

fn read_scopes(names: &[String]) -> Result<Vec<ApiScope>, StoreError> {
    let scopes = names.iter().map(|name| ApiScope::named(name)).collect::<Option<_>>();
    scopes.ok_or(StoreError::Inconsistent { table: "api_tokens", column: "scopes" })
}

/// A token that no longer lets its person in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverToken {
    pub id: TokenId,
    /// Whether the person may come in with another one.
    pub is_active: bool,
    /// When it ended, as far as is known. Never later than the database's clock says.
    pub since: Instant,
}

/// Which of these tokens no longer let their people in: for streams, which outlive the check at their start.
pub async fn token_list_over(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<OverToken>, StoreError> {
    // Before the database reads its clock.
    let mut asked_at = Instant::now();
    let mut over = over_rows(connection, ids).await?;
    if asked_at.elapsed() > TELLS_WHEN_WITHIN && !over.is_empty() {
        asked_at = Instant::now();
        over = over_rows(connection, ids).await?;
    }
    let since = |seconds_ago| {
        let ago = std::time::Duration::try_from_secs_f64(seconds_ago).unwrap_or_default();
        asked_at.checked_sub(ago).unwrap_or(asked_at)
    };
    let over = over.into_iter();
    Ok(over
        .map(|row| OverToken {
            id: TokenId::from_uuid(row.id),
            is_active: row.is_active,
            since: since(if row.is_active { row.seconds_ago } else { 0.0 }),
        })
        .collect())
}

struct OverRow {
    id: Uuid,
    is_active: bool,
    seconds_ago: f64,
}

async fn over_rows(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<OverRow>, StoreError> {
    let over = sqlx::query_as!(
        OverRow,
        r#"select asked.id as "id!", coalesce(p.active, false) as "is_active!",
                  coalesce(extract(epoch from clock_timestamp() - least(t.revoked_at, t.expires_at)), 0)::float8 as "seconds_ago!"
             from unnest($1::uuid[]) as asked (id)
             left join (api_tokens t join people p on p.id = t.person_id) on t.id = asked.id
            where t.id is null or t.revoked_at is not null or t.expires_at <= clock_timestamp() or not p.active"#,
        ids
    );
    Ok(over.fetch_all(connection).await?)
}

/// What is known of a token before it is there.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    pub id: TokenId,
    pub person: PersonId,
    pub name: &'a str,
    pub secret: TokenHash,
    pub expires_in: std::time::Duration,
    /// No later than that, whatever `expires_in` says.
    pub not_after: Option<OffsetDateTime>,
    /// `None`: all that the person may do.
    pub scopes: Option<&'a [ApiScope]>,
}

/// Stores a new token by its hash.
pub async fn token_create(connection: &mut PgConnection, new: NewToken<'_>) -> Result<Token, StoreError> {
    let scopes = new.scopes.map(|scopes| scopes.iter().map(|scope| scope.name().to_owned()).collect::<Vec<_>>());
    Ok(sqlx::query_as!(
        Token,
        "insert into api_tokens (id, person_id, name, secret_hash, expires_at, scopes)
         values ($1, $2, $3, $4, least(clock_timestamp() + make_interval(secs => $5), $7), $6)
         returning id, person_id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at",
        new.id.as_uuid(),
        new.person.as_uuid(),
        new.name,
        new.secret.as_bytes(),
        new.expires_in.as_secs_f64(),
        scopes.as_deref(),
        new.not_after
    )
    .fetch_one(connection)
    .await?)
}

/// The same for a token that a sign-in makes, or that waits for one. Not on behalf of a tenant.
pub async fn token_create_of_kind(
    connection: &mut PgConnection,
    kind: Kind,
    new: NewToken<'_>,
) -> Result<Token, StoreError> {
    let id = new.id.as_uuid();
    token_create(connection, new).await?;
    Ok(sqlx::query_as!(
        Token,
        "update api_tokens set kind = $2 where id = $1
         returning id, person_id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at",
        id,
        kind.name()
    )
    .fetch_one(connection)
    .await?)
}

/// What became of a bootstrap token that somebody showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// It was good, and is so no longer.
    Used { token: TokenId, person: PersonId },
    /// It was used before.
    UsedUp { token: TokenId, person: PersonId },
    /// There is none, or it has expired or was revoked.
    Unknown,
}

/// Uses a bootstrap token up. Of two who show it at once, one comes first.
pub async fn bootstrap_use(connection: &mut PgConnection, secret: TokenHash) -> Result<Bootstrap, StoreError> {
    let used = sqlx::query!(
        "update api_tokens t set used_up_at = clock_timestamp(), last_used_at = clock_timestamp()
           from people p
          where p.id = t.person_id and p.active and t.secret_hash = $1 and t.kind = 'bootstrap' and t.used_up_at is null
            and t.revoked_at is null and t.expires_at > clock_timestamp()
         returning t.id, t.person_id",
        secret.as_bytes()
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(row) = used {
        let (token, person) = (TokenId::from_uuid(row.id), PersonId::from_uuid(row.person_id));
        return Ok(Bootstrap::Used { token, person });
    }
    let before = sqlx::query!(
        "select id, person_id from api_tokens where secret_hash = $1 and kind = 'bootstrap' and used_up_at is not null",
        secret.as_bytes()
    )
    .fetch_optional(connection)
    .await?;
    Ok(before.map_or(Bootstrap::Unknown, |row| Bootstrap::UsedUp {
        token: TokenId::from_uuid(row.id),
        person: PersonId::from_uuid(row.person_id),
    }))
}

/// Revokes all tokens of a person that are valid still, and says how many.
pub async fn token_revoke_all(connection: &mut PgConnection, person: PersonId) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "update api_tokens set revoked_at = clock_timestamp() where person_id = $1 and revoked_at is null",
        person.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
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
        "select id, person_id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at from api_tokens
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

/// Whose tokens somebody rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reign {
    Everybody,
    Oneself(PersonId),
    /// And the service accounts of the own tenant.
    Tenant(PersonId, TenantId),
}

impl Reign {
    const fn ids(self) -> (Option<PersonId>, Option<TenantId>) {
        match self {
            Self::Everybody => (None, None),
            Self::Oneself(person) => (Some(person), None),
            Self::Tenant(person, tenant) => (Some(person), Some(tenant)),
        }
    }
}

/// Revokes a token, of those only that the caller rules. The second value says whether this call did it.
pub async fn token_revoke(
    connection: &mut PgConnection,
    id: TokenId,
    reign: Reign,
) -> Result<Option<(Token, bool)>, StoreError> {
    let (person, tenant) = reign.ids();
    let done = sqlx::query_as!(
        Token,
        "update api_tokens set revoked_at = clock_timestamp()
          where id = $1 and revoked_at is null and ($2::uuid is null or person_id = $2
                or person_id in (select p.id from people p where p.kind = 'service' and p.tenant_id = $3))
         returning id, person_id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at",
        id.as_uuid(),
        person.map(PersonId::as_uuid),
        tenant.map(TenantId::as_uuid)
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(token) = done {
        return Ok(Some((token, true)));
    }
    let present = sqlx::query_as!(
        Token,
        "select id, person_id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at from api_tokens
          where id = $1 and ($2::uuid is null or person_id = $2
                or person_id in (select p.id from people p where p.kind = 'service' and p.tenant_id = $3))",
        id.as_uuid(),
        person.map(PersonId::as_uuid),
        tenant.map(TenantId::as_uuid)
    )
    .fetch_optional(connection)
    .await?;
    Ok(present.map(|token| (token, false)))
}
