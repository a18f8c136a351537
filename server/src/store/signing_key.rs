//! The keys with which tenants sign grants.

use cloudlink_certs::PublicKey;
use cloudlink_proto::ids::{PersonId, SigningKeyId, TenantId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::signing_key::{self, SigningKey};

/// The constraint that refuses a key that somebody has enrolled before.
pub const KEY_TAKEN: &str = "signing_keys_public_key_key";
/// The constraint that keeps a key for a tenant whose grants must be signed.
pub const NEEDS_A_KEY: &str = "signed_grants_need_a_key";

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    name: String,
    algorithm: String,
    public_key: Vec<u8>,
    created_by: Uuid,
    created_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for SigningKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let (key_id, public_key_pem) = signing_key::shown(&read(&row.public_key)?);
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            name: row.name,
            algorithm: row.algorithm,
            key_id,
            public_key_pem,
            created_by: row.created_by,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
        })
    }
}

fn read(der: &[u8]) -> Result<PublicKey, StoreError> {
    PublicKey::from_der(der).map_err(|_| StoreError::Inconsistent { table: "signing_keys", column: "public_key" })
}

/// A key to be enrolled.
#[derive(Clone, Copy, Debug)]
pub struct NewSigningKey<'a> {
    pub id: SigningKeyId,
    pub tenant: TenantId,
    pub created_by: PersonId,
    pub name: &'a str,
    pub algorithm: &'static str,
    pub key: &'a PublicKey,
}

/// How many keys the tenant has that are not revoked. Nobody else enrolls one before the end of this transaction.
pub async fn signing_key_count_in_txn(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, StoreError> {
    sqlx::query!("select from tenants where id = $1 for no key update", tenant.as_uuid())
        .fetch_optional(&mut *connection)
        .await?;
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from signing_keys where tenant_id = $1 and revoked_at is null"#,
        tenant.as_uuid()
    );
    Ok(count.fetch_one(connection).await?)
}

/// Enrolls a key. Fails on [`KEY_TAKEN`].
pub async fn signing_key_create(
    connection: &mut PgConnection,
    key: NewSigningKey<'_>,
) -> Result<SigningKey, StoreError> {
    sqlx::query_as!(
        Row,
        "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by) values ($1, $2, $3, $4, $5, $6)
         returning id, tenant_id, name, algorithm, public_key, created_by, created_at, revoked_at",
        key.id.as_uuid(),
        key.tenant.as_uuid(),
        key.name,
        key.algorithm,
        key.key.to_der(),
        key.created_by.as_uuid()
    )
    .fetch_one(connection)
    .await?
    .try_into()
}

/// All keys, newest first, after the position given.
pub async fn signing_key_list(
    connection: &mut PgConnection,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<SigningKey>, StoreError> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as!(
        Row,
        "select id, tenant_id, name, algorithm, public_key, created_by, created_at, revoked_at
           from signing_keys where $1::timestamptz is null or (created_at, id) < ($1, $2::uuid)
          order by created_at desc, id desc limit $3",
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(SigningKey::try_from)
    .collect()
}

/// Revokes a key; whether it was not before is the second of the answer. Fails on [`NEEDS_A_KEY`].
pub async fn signing_key_revoke(
    connection: &mut PgConnection,
    id: SigningKeyId,
) -> Result<Option<(SigningKey, bool)>, StoreError> {
    let row = sqlx::query_as!(
        Row,
        "update signing_keys set revoked_at = clock_timestamp() where id = $1 and revoked_at is null
         returning id, tenant_id, name, algorithm, public_key, created_by, created_at, revoked_at",
        id.as_uuid()
    );
    if let Some(row) = row.fetch_optional(&mut *connection).await? {
        return Ok(Some((row.try_into()?, true)));
    }
    let row = sqlx::query_as!(
        Row,
        "select id, tenant_id, name, algorithm, public_key, created_by, created_at, revoked_at from signing_keys where id = $1",
        id.as_uuid()
    );
    row.fetch_optional(connection).await?.map(|row| Ok((row.try_into()?, false))).transpose()
}

/// The keys of a tenant that are not revoked.
#[derive(Clone, Debug)]
pub struct ActiveKey {
    pub id: SigningKeyId,
    pub key: PublicKey,
}

/// The keys whose signatures count. They are not revoked before the end of this transaction.
pub async fn signing_key_active_in_txn(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<Vec<ActiveKey>, StoreError> {
    let rows = sqlx::query!(
        "select id, public_key from signing_keys where tenant_id = $1 and revoked_at is null order by created_at, id for share",
        tenant.as_uuid()
    );
    let active = rows
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Ok(ActiveKey { id: SigningKeyId::from_uuid(row.id), key: read(&row.public_key)? }));
    active.collect()
}

/// What devices of a tenant are told when they enroll: whether grants must be signed, and the keys.
pub async fn signing_key_rules(
    connection: &mut PgConnection,
    tenant: TenantId,
) -> Result<(bool, Vec<PublicKey>), StoreError> {
    let rows = sqlx::query!(
        r#"select t.signed_grants, k.public_key as "public_key?"
             from tenants t left join signing_keys k on k.tenant_id = t.id and k.revoked_at is null
            where t.id = $1 order by k.created_at, k.id"#,
        tenant.as_uuid()
    )
    .fetch_all(connection)
    .await?;
    let is_required = rows.first().is_some_and(|row| row.signed_grants);
    let keys = rows.iter().filter_map(|row| row.public_key.as_deref()).map(read).collect::<Result<_, _>>()?;
    Ok((is_required, keys))
}

/// Sets whether grants must be signed; whether that is new is the answer. Fails on [`NEEDS_A_KEY`].
pub async fn signing_key_require(
    connection: &mut PgConnection,
    tenant: TenantId,
    is_required: bool,
) -> Result<bool, StoreError> {
    let changed = sqlx::query!(
        "update tenants set signed_grants = $2 where id = $1 and signed_grants <> $2",
        tenant.as_uuid(),
        is_required
    );
    Ok(changed.execute(connection).await?.rows_affected() > 0)
}
