//! Thousands of devices in a server's database, as enrollment would have left them. Enrolling each through the device port
//! would take minutes, and is not what is measured.

use anyhow::{Context, Result};
use cloudlink_proto::ids::TenantId;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, types::Uuid};
use time::OffsetDateTime;

use crate::api::{Api, text};
use crate::fleet::Fleet as People;
use crate::load::Fleet;
use crate::server::Server;

/// The label of every device, which the grant selects.
const LABEL: (&str, &str) = ("fleet", "bench");
/// The server's default.
const TRUST_DOMAIN: &str = "cloudlink.internal";
/// Devices in one statement.
const BATCH: usize = 1000;

/// Issues certificates for `count` devices of the tenant and stores both, as the owner of the database.
pub async fn devices(people: &People, mut database: PgConnection, count: usize, now: OffsetDateTime) -> Result<Fleet> {
    let tenant: TenantId = people.tenant_id.parse().context("the tenant's id is no UUID")?;
    let fleet = Fleet::issue(people.server.authority()?, &TRUST_DOMAIN.parse()?, tenant, count, now)?;
    for (number, batch) in (0..).zip(fleet.devices.chunks(BATCH)) {
        let column = || batch.iter();
        let ids: Vec<Uuid> = column().map(|device| device.id.as_uuid()).collect();
        let names: Vec<String> = (number * BATCH..).zip(column()).map(|(index, _)| format!("bench-{index}")).collect();
        sqlx::query(
            "insert into devices (id, tenant_id, name, labels)
             select id, $3, name, jsonb_build_object($4::text, $5::text) from unnest($1::uuid[], $2::text[]) as t (id, name)",
        )
        .bind(&ids)
        .bind(&names)
        .bind(tenant.as_uuid())
        .bind(LABEL.0)
        .bind(LABEL.1)
        .execute(&mut database)
        .await
        .context("cannot store the devices")?;
        let serials: Vec<Vec<u8>> = column().map(|device| device.serial.as_bytes().to_vec()).collect();
        let hashes: Vec<Vec<u8>> = column().map(|device| device.key_hash.to_vec()).collect();
        let ders: Vec<Vec<u8>> = column().map(|device| device.certificate.to_vec()).collect();
        let ends: Vec<OffsetDateTime> = column().map(|device| device.not_after).collect();
        sqlx::query(
            "insert into certificates (serial, device_id, tenant_id, key_hash, der, not_after)
             select serial, device_id, $6, key_hash, der, not_after
               from unnest($1::bytea[], $2::uuid[], $3::bytea[], $4::bytea[], $5::timestamptz[])
                    as t (serial, device_id, key_hash, der, not_after)",
        )
        .bind(&serials)
        .bind(&ids)
        .bind(&hashes)
        .bind(&ders)
        .bind(&ends)
        .bind(tenant.as_uuid())
        .execute(&mut database)
        .await
        .context("cannot store the certificates")?;
    }
    // What a database that has grown slowly knows about itself.
    sqlx::query("analyze").execute(&mut database).await?;
    database.close().await?;
    Ok(fleet)
}

/// Selects all of them.
#[must_use]
pub fn selector() -> serde_json::Value {
    json!({ LABEL.0: LABEL.1 })
}

/// The same, written as people write it.
#[must_use]
pub fn selector_text() -> String {
    format!("{}={}", LABEL.0, LABEL.1)
}

/// The tenant lets the operator read the metrics of all of them.
pub async fn grant(people: &People) -> Result<String> {
    let grant = json!({
        "reason": "benchmark",
        "scopes": ["metrics:read"],
        "operator_ids": [people.operator_id],
        "selector": { LABEL.0: LABEL.1 },
        "duration_seconds": 3600,
    });
    text(&people.tenant.post("/grants", &grant).await?, "id")
}

/// Further tokens of the operator: the server bounds what one may ask for in a second.
pub async fn operators(people: &People, count: usize) -> Result<Vec<Api>> {
    let mut operators = Vec::with_capacity(count);
    for number in 0..count {
        let token = json!({ "person_id": people.operator_id, "name": format!("benchmark {number}") });
        let token = text(&people.admin.post("/tokens", &token).await?, "token")?;
        operators.push(people.operator.with_token(&token));
    }
    Ok(operators)
}

/// The server's own Postgres, as its owner.
pub async fn own_database(server: &Server) -> Result<PgConnection> {
    let socket = server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    PgConnection::connect_with(&options).await.context("cannot connect to the server's Postgres")
}
