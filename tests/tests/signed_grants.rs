//! Grants that a tenant signs: what a device does with them, and without them when its server is somebody else's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::text;
use cloudlink_tests::cli::Cli;
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use serde_json::json;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use uuid::Uuid;

struct Signing {
    fleet: Fleet,
    cli: Cli,
    key: PathBuf,
}

impl Signing {
    /// A tenant that has enrolled a key, and wants it used.
    async fn start() -> anyhow::Result<Self> {
        let fleet = Fleet::start().await?;
        let (cli, key) = (fleet.cli(fleet.tenant.token()), fleet.path("tenant.pem"));
        cli.json(&["key", "create", path(&key)?, "--public", path(&fleet.path("tenant.pub.pem"))?]).await?;
        cli.json(&["key", "enroll", path(&key)?, "--name", "safe"]).await?;
        cli.json(&["key", "require", "yes"]).await?;
        Ok(Self { fleet, cli, key })
    }

    fn sign_with(&self) -> anyhow::Result<&str> {
        path(&self.key)
    }
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().ok_or_else(|| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

/// The server's own Postgres, as its owner, who is held up by no rule of it: what somebody has who has taken the server.
async fn taken(fleet: &Fleet) -> anyhow::Result<PgConnection> {
    let socket = fleet.server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    let mut database = PgConnection::connect_with(&options).await?;
    sqlx::query("set session_replication_role = replica").execute(&mut database).await?;
    Ok(database)
}

/// Writes a grant and a command under it, past everything that would refuse them.
async fn forge(fleet: &Fleet, device: &Device, kind: &str, statement: Option<&str>) -> anyhow::Result<String> {
    let (grant, command) = (Uuid::now_v7(), Uuid::now_v7());
    let mut database = taken(fleet).await?;
    sqlx::query(
        "insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at, policy_max_seconds,
                             statement, signing_key_id)
         select $1, d.tenant_id, p.id, 'r', array['device:reboot', 'device:shutdown', 'service:restart', 'metrics:read'],
                array[d.id], clock_timestamp(), clock_timestamp() + interval '1 hour', 86400, $3, k.id
           from devices d join people p on p.tenant_id = d.tenant_id
           left join signing_keys k on $3::text is not null and k.tenant_id = d.tenant_id
          where d.id = $2 limit 1",
    )
    .bind(grant)
    .bind(Uuid::parse_str(&device.id)?)
    .bind(statement)
    .execute(&mut database)
    .await?;
    let arguments = if kind == "service.restart" { json!({ "service": SERVICE }) } else { json!({}) };
    let made = sqlx::query(
        "insert into commands (id, tenant_id, device_id, grant_id, requested_by, kind, arguments, reason, expires_at, deadline_at,
                               run_seconds, request_hash)
         select $1, d.tenant_id, d.id, $2, p.id, $4, $5, 'r', clock_timestamp() + interval '1 minute',
                clock_timestamp() + interval '1 minute', 60, sha256('r')
           from devices d, people p where d.id = $3 and p.id = $6",
    )
    .bind(command)
    .bind(grant)
    .bind(Uuid::parse_str(&device.id)?)
    .bind(kind)
    .bind(arguments)
    .bind(Uuid::parse_str(&fleet.operator_id)?)
    .execute(&mut database)
    .await?;
    ensure!(made.rows_affected() == 1, "the command was not written");
    Ok(command.to_string())
}

async fn is_refused(fleet: &Fleet, command: &str, code: &str) -> anyhow::Result<()> {
    let done = fleet.finished(command).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("refused"), &json!(code)), "{done}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_taken_reboots_nothing_and_the_tenant_does() -> anyhow::Result<()> {
    let signing = Signing::start().await?;
    let fleet = &signing.fleet;
    let device = fleet.device("gateway").await?;
    let boot = device.machine.boot_id()?;
    let other = fleet.device("other").await?;

    // The rules of the server itself: whoever keeps to them makes nothing that is not signed.
    let refused = fleet.grant(&device.id, &["device:reboot"]).await;
    ensure!(refused.is_err(), "an unsigned grant was made");

    // Its database in other hands: rows for all that a device can be told.
    for kind in ["device.reboot", "device.shutdown", "service.restart", "metrics.collect"] {
        let command = forge(fleet, &device, kind, None).await?;
        is_refused(fleet, &command, "grant_unsigned").await?;
    }
    // With what the tenant has signed for something else: another device, another grant.
    let sign = ["grant", "create", "--scope", "device:reboot", "--device", &other.id, "--for", "1h", "--reason", "r"];
    let stolen = signing.cli.json(&[&sign[..], &["--sign-with", signing.sign_with()?]].concat()).await?;
    let stolen = text(&stolen, "statement")?;
    let command = forge(fleet, &device, "device.reboot", Some(&stolen)).await?;
    is_refused(fleet, &command, "grant_invalid").await?;
    // Keys that the taken server would like better, and the need for them gone.
    let mut database = taken(fleet).await?;
    for change in ["update tenants set signed_grants = false", "update signing_keys set revoked_at = clock_timestamp()"]
    {
        sqlx::query(change).execute(&mut database).await?;
    }
    let command = forge(fleet, &device, "device.reboot", None).await?;
    is_refused(fleet, &command, "grant_unsigned").await?;
    sqlx::query("update signing_keys set revoked_at = null").execute(&mut database).await?;
    ensure!((device.machine.reboots(), device.machine.restarts()) == (0, 0), "something was done");
    ensure!(device.machine.boot_id()? == boot);

    // What the tenant signs is done.
    let scopes = ["--scope", "device:reboot", "--scope", "service:restart"];
    let sign = ["grant", "create", "--device", "gateway", "--for", "1h", "--reason", "WLAN is down"];
    let sign = [&sign[..], &scopes, &["--sign-with", signing.sign_with()?]].concat();
    let grant = signing.cli.json(&sign).await?;
    let said = signing.cli.run(&["grant", "verify", &text(&grant, "id")?, "--key", signing.sign_with()?]).await?;
    ensure!(said.code == Some(0) && said.stdout.contains(&device.id), "{said:?}");
    let command = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    ensure!(fleet.finished(&command).await?["state"] == "succeeded");
    let command = fleet.command(&device.id, "device.reboot", &json!({})).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    ensure!((device.machine.reboots(), device.machine.restarts()) == (1, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_grant_ends_on_the_device_and_is_extended_by_another_signature() -> anyhow::Result<()> {
    let signing = Signing::start().await?;
    let fleet = &signing.fleet;
    let device = fleet.device("gateway").await?;
    let sign =
        ["grant", "create", "--scope", "service:restart", "--device", "gateway", "--for", "20s", "--reason", "r"];
    let grant = signing.cli.json(&[&sign[..], &["--sign-with", signing.sign_with()?]].concat()).await?;
    let id = text(&grant, "id")?;
    // The server would let it go on: the device does not.
    let mut database = taken(fleet).await?;
    let longer = "update grants set ends_at = ends_at + interval '1 hour' where id = $1";
    sqlx::query(longer).bind(Uuid::parse_str(&id)?).execute(&mut database).await?;
    let restart = async || fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await;
    let command = restart().await?;
    ensure!(fleet.finished(&command).await?["state"] == "succeeded");
    wait_for("the end that was signed", Duration::from_secs(60), async || {
        let command = restart().await?;
        is_refused(fleet, &command, "grant_invalid").await
    })
    .await?;
    let before = device.machine.restarts();
    ensure!(before >= 1);

    let restored = "update grants set ends_at = clock_timestamp() + interval '10 seconds' where id = $1";
    sqlx::query(restored).bind(Uuid::parse_str(&id)?).execute(&mut database).await?;
    let said = signing.cli.run(&["grant", "extend", &id, "--by", "1h"]).await?;
    ensure!(said.code != Some(0) && said.stderr.contains("signed"), "{said:?}");
    let longer = signing.cli.json(&["grant", "extend", &id, "--by", "1h", "--sign-with", signing.sign_with()?]).await?;
    ensure!(longer["statement"] != grant["statement"], "{longer}");
    let command = restart().await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    ensure!(device.machine.restarts() == before + 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_must_approve_the_last_one_signs_a_later_end() -> anyhow::Result<()> {
    let signing = Signing::start().await?;
    let fleet = &signing.fleet;
    let device = fleet.device("gateway").await?;
    let sign =
        ["grant", "create", "--scope", "service:restart", "--device", "gateway", "--for", "10m", "--reason", "r"];
    let grant = signing.cli.json(&[&sign[..], &["--sign-with", signing.sign_with()?]].concat()).await?;
    let id = text(&grant, "id")?;
    let body = json!({"name": "second user", "role": "tenant", "tenant_id": fleet.tenant_id});
    let second = text(&fleet.admin.post("/people", &body).await?, "id")?;
    let second = fleet.admin.post("/tokens", &json!({"name": "test", "person_id": second})).await?;
    let second = fleet.cli(&text(&second, "token")?);
    signing.cli.json(&["tenant", "set", "--approvals", "2"]).await?;

    signing.cli.json(&["grant", "extend", &id, "--by", "1h"]).await?;
    let open = second.json(&["access", "list", "--state", "open"]).await?;
    let request = text(&open[0], "id")?;
    let said = second.run(&["access", "approve", &request]).await?;
    ensure!(said.code != Some(0) && said.stderr.contains("signed"), "{said:?}");
    let less = ["access", "approve", &request, "--scope", "service:restart", "--sign-with", signing.sign_with()?];
    ensure!(second.run(&less).await?.code != Some(0), "another scope was signed");
    let approved = second.json(&["access", "approve", &request, "--sign-with", signing.sign_with()?]).await?;
    ensure!(approved["state"] == "approved", "{approved}");
    let longer = signing.cli.json(&["grant", "show", &id]).await?;
    ensure!(longer["statement"] != grant["statement"], "{longer}");
    ensure!(longer["ends_at"].as_str() > grant["ends_at"].as_str(), "{longer}");
    let command = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_enrolled_before_is_told_by_its_own_configuration() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    let grant = fleet.grant(&device.id, &["service:restart"]).await?;
    let restart = async || fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await;
    let command = restart().await?;
    ensure!(fleet.finished(&command).await?["state"] == "succeeded");

    let (cli, key, public) = (fleet.cli(fleet.tenant.token()), fleet.path("tenant.pem"), fleet.path("tenant.pub.pem"));
    cli.json(&["key", "create", path(&key)?, "--public", path(&public)?]).await?;
    let config = std::fs::read_to_string(device.machine.config_file())?;
    std::fs::write(device.machine.config_file(), format!("{config}\n[access]\nkeys = [{public:?}]\n"))?;
    device.machine.stop()?;
    fleet.wait_for_link(&device.id, "closed").await?;
    device.machine.power_on()?;
    fleet.wait_for_link(&device.id, "live").await?;
    let command = restart().await?;
    is_refused(&fleet, &command, "grant_unsigned").await?;
    fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;

    let doctor = device.machine.agent()?.arg("doctor").arg("--config").arg(device.machine.config_file()).output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let enrolled = cli.json(&["key", "enroll", path(&public)?, "--name", "safe"]).await?;
    ensure!(doctor.contains("must be signed") && doctor.contains(&text(&enrolled, "key_id")?), "{doctor}");
    let sign = ["grant", "create", "--scope", "service:restart", "--device", "gateway", "--for", "5m", "--reason", "r"];
    cli.json(&[&sign[..], &["--sign-with", path(&key)?]].concat()).await?;
    let command = restart().await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    Ok(())
}
