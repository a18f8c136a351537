//! Groups of devices. `owner` says whose: a tenant's, or with `None` the vendor's.

use std::collections::BTreeMap;

use cloudlink_proto::ids::{GroupId, PersonId, TenantId};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::group::{GROUPS_MAX, Group};
use crate::model::selector::Selector;

/// The constraint that refuses a name that another group of the same owner has.
pub const NAME_TAKEN: &str = "device_groups_name";

struct Row {
    id: Uuid,
    tenant_id: Option<Uuid>,
    name: String,
    selector: Json<Selector>,
    created_by: Uuid,
    created_at: OffsetDateTime,
    deleted_at: Option<OffsetDateTime>,
    version: i64,
}

impl From<Row> for Group {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: row.name,
            selector: row.selector.0.to_string(),
            created_by: row.created_by,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
            version: row.version,
        }
    }
}

/// A statement that yields groups: the head comes before the columns, the tail after them.
macro_rules! group_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" id, tenant_id, name, selector as "selector: _", created_by, created_at, deleted_at, version "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A group to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewGroup<'a> {
    pub id: GroupId,
    pub owner: Option<TenantId>,
    pub name: &'a str,
    pub selector: &'a Selector,
    pub created_by: PersonId,
}

/// Makes a group. `None` when the owner has [`GROUPS_MAX`] already; fails on [`NAME_TAKEN`].
pub async fn group_create(connection: &mut PgConnection, new: NewGroup<'_>) -> Result<Option<Group>, StoreError> {
    let group = group_query!(
        "insert into device_groups (id, tenant_id, name, selector, created_by)
         select $1, $2, $3, $4, $5
          where (select count(*) from device_groups o where o.tenant_id is not distinct from $2 and o.deleted_at is null) < $6
         returning",
        "",
        new.id.as_uuid(),
        new.owner.map(TenantId::as_uuid),
        new.name,
        Json(new.selector) as _,
        new.created_by.as_uuid(),
        GROUPS_MAX
    );
    Ok(group.fetch_optional(connection).await?.map(Group::from))
}

/// Newest first, after the position given; none that are deleted.
pub async fn group_list(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    name: Option<&str>,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Group>, StoreError> {
    let (after_time, after_id) = after.unzip();
    let groups = group_query!(
        "select",
        "from device_groups
          where tenant_id is not distinct from $1 and deleted_at is null and ($2::text is null or name = $2)
            and ($3::timestamptz is null or (created_at, id) < ($3, $4::uuid))
          order by created_at desc, id desc limit $5",
        owner.map(TenantId::as_uuid),
        name,
        after_time,
        after_id,
        limit
    );
    Ok(groups.fetch_all(connection).await?.into_iter().map(Group::from).collect())
}

pub async fn group_show(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    id: GroupId,
) -> Result<Option<Group>, StoreError> {
    let group = group_query!(
        "select",
        "from device_groups where id = $1 and tenant_id is not distinct from $2",
        id.as_uuid(),
        owner.map(TenantId::as_uuid)
    );
    Ok(group.fetch_optional(connection).await?.map(Group::from))
}

/// Like [`group_show`], and nobody else changes it before the end of this transaction.
pub async fn group_lock(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    id: GroupId,
) -> Result<Option<Group>, StoreError> {
    let group = group_query!(
        "select",
        "from device_groups where id = $1 and tenant_id is not distinct from $2 for no key update",
        id.as_uuid(),
        owner.map(TenantId::as_uuid)
    );
    Ok(group.fetch_optional(connection).await?.map(Group::from))
}

/// Changes what is given of a group that was locked in the same transaction and is not deleted. Fails on [`NAME_TAKEN`].
pub async fn group_update_in_txn(
    connection: &mut PgConnection,
    id: GroupId,
    name: Option<&str>,
    selector: Option<&Selector>,
) -> Result<Group, StoreError> {
    let group = group_query!(
        "update device_groups set name = coalesce($2, name), selector = coalesce($3, selector), version = version + 1
          where id = $1 returning",
        "",
        id.as_uuid(),
        name,
        selector.map(Json) as _
    );
    Ok(group.fetch_one(connection).await?.into())
}

/// Deletes a group that was locked in the same transaction and is not deleted. Its name is free then.
pub async fn group_delete_in_txn(connection: &mut PgConnection, id: GroupId) -> Result<Group, StoreError> {
    let group = group_query!(
        "update device_groups set deleted_at = clock_timestamp(), version = version + 1 where id = $1 returning",
        "",
        id.as_uuid()
    );
    Ok(group.fetch_one(connection).await?.into())
}

/// What the owner's groups of these names mean now; those that there are.
pub async fn group_selectors(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    names: &[String],
) -> Result<BTreeMap<String, Selector>, StoreError> {
    let rows = sqlx::query!(
        r#"select name, selector as "selector: Json<Selector>" from device_groups
            where tenant_id is not distinct from $1 and name = any ($2) and deleted_at is null"#,
        owner.map(TenantId::as_uuid),
        names
    );
    Ok(rows.fetch_all(connection).await?.into_iter().map(|row| (row.name, row.selector.0)).collect())
}
