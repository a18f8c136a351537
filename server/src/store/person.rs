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

/// A statement that yields people `p`: the head comes before the columns, the tail after them. What is nobody else's to see, the
/// database leaves out in a transaction of a tenant.
macro_rules! person_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" p.id, p.name, p.role, p.tenant_id, p.kind, (person_private(p.id)).email, p.active, p.created_at,
                      (person_private(p.id)).signed_in_at "#
                + $tail
            $(, $argument)*
        )
    };
}

pub async fn person_create(
    connection: &mut PgConnection,
    id: PersonId,
    name: &str,
    role: Role,
    tenant: Option<TenantId>,
    kind: PersonKind,
) -> Result<Person, StoreError> {
    person_query!(
        "insert into people as p (id, name, role, tenant_id, kind) values ($1, $2, $3, $4, $5) returning",
        "",
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
    let person = person_query!("select", "from people p where p.id = $1", id.as_uuid());
    person.fetch_optional(connection).await?.map(Person::try_from).transpose()
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
    person_query!(
        "select",
        "from people p
          where ($1::text is null or p.role = $1) and ($2::uuid is null or p.tenant_id = $2)
            and ($3::timestamptz is null or (p.created_at, p.id) < ($3, $4::uuid))
          order by p.created_at desc, p.id desc limit $5",
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
    person_query!(
        "update people as p set active = $2, shut_out_by_groups = false where p.id = $1 returning",
        "",
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
    let found =
        sqlx::query_scalar!(r#"select coalesce((person_private($1)).signs_in, false) as "signs_in!""#, id.as_uuid());
    Ok(found.fetch_one(connection).await?)
}
