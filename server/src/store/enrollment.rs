//! How a device comes to be: a token, used once, becomes a device with its first certificate.

use cloudlink_proto::ids::{DeviceId, EnrollmentTokenId, TenantId};
use sqlx::PgConnection;

use super::StoreError;
use super::certificate::{NewCertificate, certificate_insert};

/// A token as it was locked for its use.
#[derive(Clone, Debug)]
pub struct LockedToken {
    pub id: EnrollmentTokenId,
    pub tenant_id: TenantId,
    pub device_name: String,
    /// By the database's clock.
    pub is_expired: bool,
    /// The device that used it.
    pub device_id: Option<DeviceId>,
}

/// Finds a token by the hash of its secret and keeps others from using it until the transaction ends.
pub async fn enrollment_token_lock_in_txn(
    connection: &mut PgConnection,
    secret_hash: &[u8],
) -> Result<Option<LockedToken>, StoreError> {
    let row = sqlx::query!(
        r#"select id, tenant_id, device_name, expires_at <= clock_timestamp() as "is_expired!", device_id
             from enrollment_tokens where secret_hash = $1 for update"#,
        secret_hash,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| LockedToken {
        id: EnrollmentTokenId::from_uuid(row.id),
        tenant_id: TenantId::from_uuid(row.tenant_id),
        device_name: row.device_name,
        is_expired: row.is_expired,
        device_id: row.device_id.map(DeviceId::from_uuid),
    }))
}

/// The certificate that an enrollment with this key gave the device, while both are good: for a device that did not get
/// the answer.
pub async fn enrollment_certificate(
    connection: &mut PgConnection,
    device_id: DeviceId,
    key_hash: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select c.der
             from certificates c join devices d on d.id = c.device_id and d.state = 'active'
            where c.device_id = $1 and c.key_hash = $2 and c.state in ('issued', 'active')
            order by c.issued_at
            limit 1"#,
        device_id.as_uuid(),
        key_hash,
    )
    .fetch_optional(connection)
    .await?)
}

/// Makes the device, records its certificate, uses up the token and writes the audit entry. The token was locked in the
/// same transaction. Fails on the constraint `devices_tenant_id_name_key` when the tenant has a device of that name.
pub async fn enrollment_complete_in_txn(
    connection: &mut PgConnection,
    token: &LockedToken,
    certificate: NewCertificate<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"insert into devices (id, tenant_id, name, labels)
           select $1, tenant_id, device_name, labels from enrollment_tokens where id = $2"#,
        certificate.device_id.as_uuid(),
        token.id.as_uuid(),
    )
    .execute(&mut *connection)
    .await?;
    certificate_insert(&mut *connection, certificate).await?;
    sqlx::query!(
        "update enrollment_tokens set used_at = clock_timestamp(), device_id = $1 where id = $2 and used_at is null",
        certificate.device_id.as_uuid(),
        token.id.as_uuid(),
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        r#"select audit_append($1, jsonb_build_object('kind', 'device', 'id', $2::uuid), 'device.enrolled',
                               jsonb_build_object('kind', 'device', 'id', $2::uuid),
                               jsonb_build_object('name', $3::text, 'enrollment_token_id', $4::uuid,
                                                  'serial', encode($5, 'hex'), 'not_after', $6::timestamptz))"#,
        token.tenant_id.as_uuid(),
        certificate.device_id.as_uuid(),
        token.device_name,
        token.id.as_uuid(),
        certificate.serial,
        certificate.not_after,
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
