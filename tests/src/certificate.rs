//! Certificates that are about to end.

use anyhow::ensure;
use cloudlink_certs::pem::{certificate_to_pem, certificates_from_pem};
use cloudlink_certs::{CertificateRequest, DeviceCertificate, PrivateKey, Serial, Validity, create_request};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use time::Duration as Days;
use uuid::Uuid;

use crate::clock;
use crate::fleet::{Fleet, LINK_LIMIT};
use crate::machine::Machine;
use crate::poll::wait_for;

/// The server's own Postgres, as its owner.
async fn database(fleet: &Fleet) -> anyhow::Result<PgConnection> {
    let socket = fleet.server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    Ok(PgConnection::connect_with(&options).await?)
}

/// Makes the device's certificate as old as it is when it must be renewed, on the device and at the server.
pub async fn age(fleet: &Fleet, machine: &Machine, device: &str) -> anyhow::Result<Vec<u8>> {
    let slot = machine.state_dir().join("current.pem");
    let pem = std::fs::read(&slot)?;
    let key = PrivateKey::from_pem(&pem)?;
    let identity = DeviceCertificate::parse(&certificates_from_pem(&pem)?[0])?.identity;
    let request = CertificateRequest::from_der(&create_request(&key)?)?;
    let begun = clock::now() - Days::days(81);
    let serial = Serial::from_random(*Uuid::new_v4().as_bytes());
    let validity = Validity::new(begun, begun + Days::days(90))?;
    let certificate = fleet.server.authority()?.issue_device(&request, &identity, serial, validity)?;
    let old = DeviceCertificate::parse(&certificate)?;
    let aged = sqlx::query(
        "with old as (select * from certificates where device_id = $3),
              aged as (
                  insert into certificates (serial, der, device_id, tenant_id, key_hash, state, used_at, issued_at, not_after)
                  select $1, $2, device_id, tenant_id, key_hash, state, used_at,
                         issued_at - interval '81 days', not_after - interval '81 days'
                    from old
              ),
              linked as (update links set certificate_serial = $1 where device_id = $3),
              polled as (update polls set certificate_serial = $1 where device_id = $3)
         delete from certificates c using old where c.serial = old.serial",
    )
    .bind(&old.serial)
    .bind(&certificate[..])
    .bind(Uuid::parse_str(device)?)
    .execute(&mut database(fleet).await?)
    .await?;
    ensure!(aged.rows_affected() == 1, "{aged:?}");
    std::fs::write(slot, format!("{}{}", key.to_pem().as_str(), certificate_to_pem(&certificate)))?;
    Ok(old.serial)
}

/// Waits until the device has another certificate than this one, and no two.
pub async fn renewed(machine: &Machine, old: &[u8]) -> anyhow::Result<Vec<u8>> {
    wait_for("the renewed certificate", LINK_LIMIT, async || {
        let pem = std::fs::read(machine.state_dir().join("current.pem"))?;
        let serial = DeviceCertificate::parse(&certificates_from_pem(&pem)?[0])?.serial;
        ensure!(serial != old && !machine.state_dir().join("next.pem").exists(), "{}", machine.log_text()?);
        Ok(serial)
    })
    .await
}

/// The states of the device's certificates, oldest first.
pub async fn known(fleet: &Fleet, device: &str) -> anyhow::Result<Vec<(Vec<u8>, String)>> {
    let rows = sqlx::query("select serial, state from certificates where device_id = $1 order by issued_at")
        .bind(Uuid::parse_str(device)?)
        .fetch_all(&mut database(fleet).await?)
        .await?;
    Ok(rows.iter().map(|row| (row.get("serial"), row.get("state"))).collect())
}
