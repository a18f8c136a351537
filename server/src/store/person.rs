//! People.

use cloudlink_proto::ids::{PersonId, TenantId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::person::{Person, PersonKind, Role};

/// The constraint that refuses a name that somebody has.
pub const NAME_TAKEN: &str = "people_name_key";
/// The constraint that refuses a tenant that does not exist.
pub const TENANT_UNKNOWN: &str = "people_tenant_id_fkey";

struct Row {
    id: Uuid,
    name: String,
    role: String,
    tenant_id: Option<Uuid>,
    kind: String,
    email: Option<String>,
    active: bool,
    created_at: OffsetDateTime,
    signed_in_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for Person {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            role: Role::named(&row.role).ok_or(StoreError::Inconsistent { table: "people", column: "role" })?,
            tenant_id: row.tenant_id,
            kind: PersonKind::named(&row.kind).ok_or(StoreError::Inconsistent { table: "people", column: "kind" })?,
            email: row.email,
            active: row.active,
            created_at: row.created_at,
            signed_in_at: row.signed_in_at,
        })
    }
}

pub async fn person_create(
    connection: &mut PgConnection,
    id: PersonId,
    name: &str,
    role: Role,
    tenant: Option<TenantId>,
    kind: PersonKind,
) -> Result<Person, StoreError> {
    sqlx::query_as!(
        Row,
        "insert into people (id, name, role, tenant_id, kind) values ($1, $2, $3, $4, $5)
         returning id, name, role, tenant_id, kind, email, active, created_at, signed_in_at",
        id.as_uuid(),
        name,
        role.name(),
        tenant.map(TenantId::as_uuid),
        kind.name()
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

pub async fn person_show(connection: &mut PgConnection, id: PersonId) -> Result<Option<Person>, StoreError> {
    sqlx::query_as!(
        Row,
        "select id, name, role, tenant_id, kind, email, active, created_at, signed_in_at from people where id = $1",
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?
    .map(Person::try_from)
    .transpose()
}

/// What [`person_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PersonFilter {
    pub role: Option<Role>,
    pub tenant: Option<TenantId>,
}

/// People, newest first, after the position given.
pub async fn person_list(
    connection: &mut PgConnection,
    filter: PersonFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Person>, StoreError> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as!(
        Row,
        "select id, name, role, tenant_id, kind, email, active, created_at, signed_in_at from people
          where ($1::text is null or role = $1) and ($2::uuid is null or tenant_id = $2)
            and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
          order by created_at desc, id desc limit $5",
        filter.role.map(Role::name),
        filter.tenant.map(TenantId::as_uuid),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Person::try_from)
    .collect()
}

/// Lets a person in, or keeps it out. `None` when there is no such person.
pub async fn person_set_active(
    connection: &mut PgConnection,
    id: PersonId,
    active: bool,
) -> Result<Option<Person>, StoreError> {
    sqlx::query_as!(
        Row,
        "update people set active = $2, shut_out_by_groups = false where id = $1
         returning id, name, role, tenant_id, kind, email, active, created_at, signed_in_at",
        id.as_uuid(),
        active
    )
    .fetch_optional(connection)
    .await?
    .map(Person::try_from)
    .transpose()
}

/// How many of these are operators.
pub async fn person_count_operators(connection: &mut PgConnection, ids: &[Uuid]) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(r#"select count(*) as "count!" from people where role = 'operator' and id = any ($1)"#, ids)
        .fetch_one(connection)
        .await?)
}

/// Whether it is somebody that the OpenID provider knows.
pub async fn person_signs_in(connection: &mut PgConnection, id: PersonId) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"select exists (select from people where id = $1 and issuer is not null) as "signs_in!""#,
        id.as_uuid()
    );
    Ok(found.fetch_one(connection).await?)
}
