//! Device certificates: what they are worth at this moment.
//!
//! A device holds up to two. The second, renewed one is `issued` until a link with it is welcomed, or a poll answered; that makes it `active`
//! and every older one of the device `superseded`. A superseded certificate is refused: a copy of an old key stops being of
//! use the moment its owner has moved on. A device that is told `certificate_superseded` dials with its other slot.

use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TenantId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;

/// What a certificate in the table is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It, and its device, may open a link.
    Good,
    Revoked,
    /// A newer certificate of the device was used.
    Superseded,
    DeviceRevoked,
}

/// A certificate that was issued, as the database knows it.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub serial: Vec<u8>,
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub standing: Standing,
}

/// Those of the serials that were ever issued.
pub async fn certificate_list(
    connection: &mut PgConnection,
    serials: &[Vec<u8>],
) -> Result<Vec<Certificate>, StoreError> {
    let rows = sqlx::query!(
        r#"select c.serial, c.device_id, c.tenant_id, c.state, d.state as device_state
             from certificates c join devices d on d.id = c.device_id
            where c.serial = any($1)"#,
        serials,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Certificate {
            serial: row.serial,
            device_id: DeviceId::from_uuid(row.device_id),
            tenant_id: TenantId::from_uuid(row.tenant_id),
            standing: standing(&row.state, &row.device_state),
        })
        .collect())
}

/// Anything but the states that are known to be good counts as revoked.
fn standing(certificate: &str, device: &str) -> Standing {
    match (device, certificate) {
        ("active", "issued" | "active") => Standing::Good,
        ("active", "superseded") => Standing::Superseded,
        ("active", _) => Standing::Revoked,
        _ => Standing::DeviceRevoked,
    }
}

/// A certificate that was just signed.
#[derive(Clone, Copy, Debug)]
pub struct NewCertificate<'a> {
    pub serial: &'a [u8],
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    /// SHA-256 of the public key.
    pub key_hash: &'a [u8],
    /// The leaf, DER.
    pub der: &'a [u8],
    pub not_after: OffsetDateTime,
}

/// Records a certificate before it is handed out.
pub async fn certificate_insert(
    connection: &mut PgConnection,
    certificate: NewCertificate<'_>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into certificates (serial, device_id, tenant_id, key_hash, der, not_after) values ($1, $2, $3, $4, $5, $6)",
        certificate.serial,
        certificate.device_id.as_uuid(),
        certificate.tenant_id.as_uuid(),
        certificate.key_hash,
        certificate.der,
        certificate.not_after,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// What a device proves who it is with.
#[derive(Clone, Debug)]
pub struct UsableCertificate {
    /// Hex.
    pub serial: String,
    /// The leaf, DER.
    pub der: Vec<u8>,
}

/// The certificate that the device uses, or will use first; none if it has expired.
pub async fn certificate_usable(
    connection: &mut PgConnection,
    device: DeviceId,
) -> Result<Option<UsableCertificate>, StoreError> {
    Ok(sqlx::query_as!(
        UsableCertificate,
        r#"select encode(serial, 'hex') as "serial!", der from certificates
            where device_id = $1 and state in ('active', 'issued') and not_after > clock_timestamp()
            order by state = 'active' desc, issued_at desc limit 1"#,
        device.as_uuid()
    )
    .fetch_optional(connection)
    .await?)
}

/// Certificates that a device may renew in [`RENEWALS_WITHIN`].
const RENEWALS_MAX: i64 = 6;
const RENEWALS_WITHIN: Duration = Duration::from_secs(3600);

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    Recorded,
    /// The device renews too often.
    TooMany,
    /// The device is not active any more.
    Revoked,
}

/// Records the renewed certificate of an active device, with its audit entry, in one statement.
pub async fn certificate_renew(
    connection: &mut PgConnection,
    certificate: NewCertificate<'_>,
) -> Result<Renewal, StoreError> {
    let row = sqlx::query!(
        r#"with device as (
               select d.id, d.tenant_id,
                      (select count(*) from certificates c
                        where c.device_id = d.id
                          and c.issued_at > clock_timestamp() - make_interval(secs => $7)) < $6 as may_renew
                 from devices d where d.id = $2 and d.state = 'active'
           ),
           issued as (
               insert into certificates (serial, device_id, tenant_id, key_hash, der, not_after)
               select $1, id, tenant_id, $3, $4, $5 from device where may_renew
               returning serial, device_id, tenant_id, not_after
           )
           select d.may_renew as "may_renew!",
                  case when i.serial is not null then
                      audit_append(i.tenant_id,
                                   jsonb_build_object('kind', 'device', 'id', i.device_id),
                                   'certificate.renewed',
                                   jsonb_build_object('kind', 'device', 'id', i.device_id),
                                   jsonb_build_object('serial', encode(i.serial, 'hex'), 'not_after', i.not_after))
                  end as audited
             from device d left join issued i on true"#,
        certificate.serial,
        certificate.device_id.as_uuid(),
        certificate.key_hash,
        certificate.der,
        certificate.not_after,
        RENEWALS_MAX,
        RENEWALS_WITHIN.as_secs_f64(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        Some(row) if row.may_renew => Renewal::Recorded,
        Some(_) => Renewal::TooMany,
        None => Renewal::Revoked,
    })
}

/// What was revoked since a moment, and the database's time of the answer.
#[derive(Clone, Debug)]
pub struct Revocations {
    pub at: OffsetDateTime,
    pub devices: Vec<DeviceId>,
    /// Device and serial.
    pub certificates: Vec<(DeviceId, Vec<u8>)>,
}

/// Devices and certificates that were revoked at or after `since`.
pub async fn revocation_list(connection: &mut PgConnection, since: OffsetDateTime) -> Result<Revocations, StoreError> {
    let rows = sqlx::query!(
        r#"select clock_timestamp() as "at!", r.device_id as "device_id?: Uuid", r.serial as "serial?: Vec<u8>"
             from (select 1) as always
             left join (
                 select id as device_id, null::bytea as serial from devices where revoked_at >= $1
                 union all
                 select device_id, serial from certificates where revoked_at >= $1
             ) r on true"#,
        since,
    )
    .fetch_all(connection)
    .await?;
    let mut revocations = Revocations { at: since, devices: Vec::new(), certificates: Vec::new() };
    for row in rows {
        revocations.at = revocations.at.max(row.at);
        match (row.device_id.map(DeviceId::from_uuid), row.serial) {
            (Some(device), None) => revocations.devices.push(device),
            (Some(device), Some(serial)) => revocations.certificates.push((device, serial)),
            (None, _) => {}
        }
    }
    Ok(revocations)
}

/// The live links of a node whose device or certificate was revoked, however long ago.
pub async fn revocation_list_live(connection: &mut PgConnection, node: &str) -> Result<Revocations, StoreError> {
    let rows = sqlx::query!(
        r#"select now.at as "at!", r.device_id as "device_id?: Uuid", r.serial as "serial?: Vec<u8>"
             from (select clock_timestamp() as at) as now
             left join (
                 select l.device_id, c.serial
                   from links l
                   join devices d on d.id = l.device_id
                   join certificates c on c.serial = l.certificate_serial
                  where l.node = $1 and l.closed_at is null and (d.revoked_at is not null or c.revoked_at is not null)
             ) r on true"#,
        node,
    )
    .fetch_all(connection)
    .await?;
    let at = rows.first().map_or(OffsetDateTime::UNIX_EPOCH, |row| row.at);
    let certificates =
        rows.into_iter().filter_map(|row| Some((DeviceId::from_uuid(row.device_id?), row.serial?))).collect();
    Ok(Revocations { at, devices: Vec::new(), certificates })
}
