//! Nodes that share a few sessions of the database by the transaction, with nothing of their own in any of them.

use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cluster::{Cluster, Database, PgBouncer};
use cloudlink_tests::poll::wait_for;
use futures_util::future::{join_all, try_join_all};
use serde_json::json;

/// Fewer than one node alone would have.
const SESSIONS: u32 = 4;
const BACK_LIMIT: Duration = Duration::from_secs(30);

/// Looks at the devices of a tenant again and again: there is its own, and no other.
async fn sees_its_own(tenant: &Api, name: &str) -> anyhow::Result<()> {
    for _ in 0..20 {
        let devices = tenant.get("/devices").await?;
        let names: Vec<_> = devices["items"].as_array().into_iter().flatten().map(|device| &device["name"]).collect();
        ensure!(names == [name], "{names:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_through_pgbouncer() -> anyhow::Result<()> {
    let database = Database::start().await?;
    let pgbouncer = PgBouncer::start(database.address(), SESSIONS).await?;
    let set = [
        format!("database.url={}", pgbouncer.url()),
        format!("database.migrate_url={}", database.url()),
        "database.pooler=transaction".to_owned(),
    ];
    let mut cluster = Cluster::start_on(database, 2, &set).await?;
    let fleet = &cluster.fleet;
    let mut device = fleet.device("gw-1").await?;
    let ca_file = fleet.server.ca_file();
    let other_node = Api::new(&cluster.others[0].api_url(), &ca_file, fleet.operator.token())?;

    // Tenants, at both nodes at once, each in the place of the one before.
    let (other, _) = fleet.other_tenant("another customer").await?;
    let token = text(&other.post("/enrollment-tokens", &json!({ "device_name": "gw-2" })).await?, "token")?;
    let mut others_machine = fleet.new_machine("gw-2")?;
    others_machine.enroll(&token)?;
    others_machine.power_on()?;
    wait_for("the other customer's device", BACK_LIMIT, async || sees_its_own(&other, "gw-2").await).await?;
    let elsewhere = |tenant: &Api| Api::new(&cluster.others[0].api_url(), &ca_file, tenant.token());
    let (tenant_elsewhere, other_elsewhere) = (elsewhere(&fleet.tenant)?, elsewhere(&other)?);
    let looks = [(&fleet.tenant, "gw-1"), (&other, "gw-2"), (&tenant_elsewhere, "gw-1"), (&other_elsewhere, "gw-2")];
    try_join_all(looks.map(|(tenant, name)| sees_its_own(tenant, name))).await?;

    // Commands, and a session that is recorded.
    fleet.grant(&device.id, &["metrics:read"]).await?;
    let body = json!({ "kind": "metrics.collect", "arguments": {}, "reason": "a test" });
    let asked = join_all((0..6).map(|at| [&fleet.operator, &other_node][at % 2].command(&device.id, &body))).await;
    for command in asked {
        let done = fleet.finished(&text(&command?.success()?, "id")?).await?;
        ensure!(done["state"] == "succeeded", "{done}");
    }
    fleet.support_grant(&device.id, 900).await?;
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    terminal.answers("echo answer=$((6 * 7))", "answer=42").await?;
    terminal.type_in("exit 3\r")?;
    ensure!(terminal.ends().await? == 3, "{}", terminal.seen());
    // What somebody may not is refused, and the refusal is in the tenant's log.
    let body = json!({ "kind": "device.reboot", "arguments": {}, "reason": "a test" });
    let refused = fleet.operator.command(&device.id, &body).await?;
    ensure!(refused.problem() == "grant_required", "{}", refused.body);
    let audit = fleet.tenant.get("/audit?limit=5").await?;
    let entries = audit["items"].as_array().into_iter().flatten().filter_map(|item| item["entry"].as_str());
    ensure!(entries.into_iter().any(|entry| entry.contains("command.refused")), "{audit}");

    let mut owner = cluster.database.look().await?;
    let sessions: i64 =
        sqlx::query_scalar("select count(*) from pg_stat_activity where application_name like 'cloudlinkd%'")
            .fetch_one(&mut owner)
            .await?;
    ensure!((1..=i64::from(SESSIONS)).contains(&sessions), "{sessions} sessions");
    drop(owner);

    // The database goes, and comes back.
    cluster.database.kill()?;
    cluster.database.start_again().await?;
    cluster.fleet.server.ready().await?;
    let fleet = &cluster.fleet;
    wait_for("a command after that", BACK_LIMIT, async || {
        let command = fleet.command(&device.id, "metrics.collect", &json!({})).await?;
        ensure!(fleet.finished(&command).await?["state"] == "succeeded");
        Ok(())
    })
    .await?;
    for node in [&fleet.server, &cluster.others[0]] {
        let log = node.log_text()?;
        ensure!(!log.contains("prepared statement") && !log.contains("a query failed"), "{log}");
    }
    others_machine.stop()?;
    device.machine.stop()
}
