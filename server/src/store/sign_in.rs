//! Sign-ins with the OpenID provider: ID tokens that were traded, who somebody is here, and how often it went wrong.

use std::time::Duration;

use cloudlink_proto::ids::{PersonId, TenantId};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::StoreError;
use crate::model::person::Role;
use crate::secret::TokenHash;

/// Failing addresses and people that are counted apart. Beyond that, further ones are not: the limit of each node holds.
pub const FAILURES_MAX: i64 = 100_000;
/// Held by the transaction that brings a person up to date: two first sign-ins of one person do not make two people. Any number
/// will do.
const LOCK: i64 = 0x0073_6967_6e2d_696e;

/// Notes that an ID token was traded. `false`: it was before. Only those are kept that could come again.
pub async fn id_token_spend(
    connection: &mut PgConnection,
    token: TokenHash,
    expires_at: OffsetDateTime,
) -> Result<bool, StoreError> {
    // A minute more than any clock is off.
    sqlx::query!("delete from spent_id_tokens where expires_at <= clock_timestamp() - interval '5 minutes'")
        .execute(&mut *connection)
        .await?;
    let spent = sqlx::query!(
        "insert into spent_id_tokens (token_hash, expires_at) values ($1, $2) on conflict do nothing",
        token.as_bytes(),
        expires_at
    )
    .execute(connection)
    .await?;
    Ok(spent.rows_affected() == 1)
}

/// Lets sign-ins be brought in one after the other, until the transaction ends.
pub async fn sign_in_lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("select pg_advisory_xact_lock($1)", LOCK).fetch_one(connection).await?;
    Ok(())
}

/// The tenants of these ids or names.
pub async fn tenant_list_named(
    connection: &mut PgConnection,
    ids_or_names: &[String],
) -> Result<Vec<TenantId>, StoreError> {
    let ids = sqlx::query_scalar!(
        "select id from tenants where id::text = any ($1) or name = any ($1) order by id limit 2",
        ids_or_names
    );
    Ok(ids.fetch_all(connection).await?.into_iter().map(TenantId::from_uuid).collect())
}

/// Somebody that the provider knows, as it is here.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: PersonId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    pub tenant: Option<TenantId>,
    pub active: bool,
    pub shut_out_by_groups: bool,
}

pub async fn person_of_identity(
    connection: &mut PgConnection,
    issuer: &str,
    subject: &str,
) -> Result<Option<Known>, StoreError> {
    let row = sqlx::query!(
        "select id, name, email, role, tenant_id, active, shut_out_by_groups from people
          where issuer = $1 and subject = $2 for update",
        issuer,
        subject
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| {
        Ok(Known {
            id: PersonId::from_uuid(row.id),
            name: row.name,
            email: row.email,
            role: Role::named(&row.role).ok_or(StoreError::Inconsistent { table: "people", column: "role" })?,
            tenant: row.tenant_id.map(TenantId::from_uuid),
            active: row.active,
            shut_out_by_groups: row.shut_out_by_groups,
        })
    })
    .transpose()
}

/// The first of these names that nobody else has among the vendor's people, or among those of the tenant.
pub async fn person_free_name(
    connection: &mut PgConnection,
    names: &[String],
    tenant: Option<TenantId>,
    except: Option<PersonId>,
) -> Result<Option<String>, StoreError> {
    let free = sqlx::query_scalar!(
        r#"select asked.name as "name!" from unnest($1::text[]) with ordinality as asked (name, place)
            where not exists (select from people p
                where p.name = asked.name and p.tenant_id is not distinct from $2 and p.id is distinct from $3)
            order by asked.place limit 1"#,
        names,
        tenant.map(TenantId::as_uuid),
        except.map(PersonId::as_uuid)
    );
    Ok(free.fetch_optional(connection).await?)
}

/// What a sign-in says of a person.
#[derive(Clone, Copy, Debug)]
pub struct SignedIn<'a> {
    pub name: &'a str,
    pub email: Option<&'a str>,
    pub role: Role,
    pub tenant: Option<TenantId>,
}

/// Makes the person of a first sign-in.
pub async fn person_create_signed_in(
    connection: &mut PgConnection,
    id: PersonId,
    issuer: &str,
    subject: &str,
    now: SignedIn<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into people (id, name, email, role, tenant_id, issuer, subject, signed_in_at)
         values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())",
        id.as_uuid(),
        now.name,
        now.email,
        now.role.name(),
        now.tenant.map(TenantId::as_uuid),
        issuer,
        subject
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Brings the person of a later sign-in up to date, and lets it in again if it was its groups that kept it out.
pub async fn person_update_signed_in(
    connection: &mut PgConnection,
    id: PersonId,
    now: SignedIn<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "update people set name = $2, email = $3, role = $4, tenant_id = $5, signed_in_at = clock_timestamp(),
                active = active or shut_out_by_groups, shut_out_by_groups = false
          where id = $1",
        id.as_uuid(),
        now.name,
        now.email,
        now.role.name(),
        now.tenant.map(TenantId::as_uuid)
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps a person out whose groups no longer let it in. `false`: it was out before.
pub async fn person_shut_out_by_groups(connection: &mut PgConnection, id: PersonId) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "update people set active = false, shut_out_by_groups = true where id = $1 and active",
        id.as_uuid()
    );
    Ok(done.execute(connection).await?.rows_affected() == 1)
}

/// For how long sign-ins of one of these keys are refused still.
pub async fn sign_in_locked_for(
    connection: &mut PgConnection,
    keys: &[String],
) -> Result<Option<Duration>, StoreError> {
    let seconds = sqlx::query_scalar!(
        "select extract(epoch from max(locked_until) - clock_timestamp())::float8 from sign_in_failures
          where key = any ($1) and locked_until > clock_timestamp()",
        keys
    );
    let seconds = seconds.fetch_one(connection).await?;
    Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
}

/// Counts a failure, and says whether the key is locked by it. What is long ago counts no more.
pub async fn sign_in_fail(
    connection: &mut PgConnection,
    key: &str,
    lock_after: u32,
    lock_for: Duration,
) -> Result<bool, StoreError> {
    sqlx::query!(
        "delete from sign_in_failures where key in (
             select key from sign_in_failures
              where coalesce(locked_until, first_at + make_interval(secs => $1)) <= clock_timestamp()
              limit 1000)",
        lock_for.as_secs_f64()
    )
    .execute(&mut *connection)
    .await?;
    let locked = sqlx::query_scalar!(
        r#"insert into sign_in_failures as f (key, failures, locked_until)
           select $1, 1, case when $2 <= 1 then clock_timestamp() + make_interval(secs => $3) end
            where exists (select from sign_in_failures where key = $1)
               or (select count(*) from sign_in_failures) < $4
           on conflict (key) do update
              set failures = f.failures + 1,
                  locked_until = case when f.failures + 1 >= $2
                                      then coalesce(f.locked_until, clock_timestamp() + make_interval(secs => $3)) end
           returning failures = $2 as "is_locked_now!""#,
        key,
        i32::try_from(lock_after).unwrap_or(i32::MAX),
        lock_for.as_secs_f64(),
        FAILURES_MAX
    );
    Ok(locked.fetch_optional(connection).await?.unwrap_or(false))
}

/// Forgets the failures of a key.
pub async fn sign_in_forgive(connection: &mut PgConnection, key: &str) -> Result<(), StoreError> {
    sqlx::query!("delete from sign_in_failures where key = $1 and locked_until is null", key)
        .execute(connection)
        .await?;
    Ok(())
}
