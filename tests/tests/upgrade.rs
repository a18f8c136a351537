//! A cluster that is upgraded node by node: the version before goes on beside today's, on today's schema.

use anyhow::ensure;
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cli::Cli;
use cloudlink_tests::cluster::{Cluster, Database, Switch};
use cloudlink_tests::fleet::{Device, LINK_LIMIT};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::support::PROMPT;
use cloudlink_tests::terminal::Terminal;
use cloudlink_tests::upgrade;
use serde_json::json;

async fn is_linked_to(tenant: &Api, device: &Device, node: &str) -> anyhow::Result<()> {
    wait_for(&format!("a link to {node}"), LINK_LIMIT, async || {
        let shown = tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["link"]["state"] == "live" && shown["link"]["node"] == node, "{shown}");
        Ok(())
    })
    .await
}

/// A command that is asked for at one node, and done.
async fn is_served(operator: &Api, device: &Device) -> anyhow::Result<()> {
    let body = json!({ "kind": "metrics.collect", "arguments": {}, "reason": "a test" });
    let command = text(&operator.command(&device.id, &body).await?.success()?, "id")?;
    let path = format!("/commands/{command}");
    wait_for("the end of the command", LINK_LIMIT, async || {
        let shown = operator.get(&path).await?;
        ensure!(shown["state"] == "succeeded", "{shown}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_before_works_beside_todays_on_todays_schema() -> anyhow::Result<()> {
    let Some(base) = upgrade::base()? else { return Ok(()) };
    // The first node makes the schema of before, and is at work while the second one brings it to today's.
    let mut cluster = Cluster::start_with(Database::start().await?, 1, &[], Some(base)).await?;
    let early = cluster.fleet.device("gw-0").await?;
    cluster.fleet.grant(&early.id, &["metrics:read"]).await?;
    is_served(&cluster.fleet.operator, &early).await?;
    cluster.join(&[]).await?;
    is_served(&cluster.fleet.operator, &early).await?;
    let Cluster { fleet, others, .. } = &mut cluster;
    let today = &others[0];
    let switch = Switch::start(vec![fleet.server.device, today.device]).await?;
    let at_today = |person: &Api| Api::new(&today.api_url(), &fleet.server.ca_file(), person.token());
    let (operator, tenant) = (at_today(&fleet.operator)?, at_today(&fleet.tenant)?);

    let mut before = fleet.device_dialling("gw-1", switch.address).await?;
    is_linked_to(&fleet.tenant, &before, "node-1").await?;
    switch.choose(1);
    let mut after = fleet.device_dialling("gw-2", switch.address).await?;
    is_linked_to(&fleet.tenant, &after, "node-2").await?;

    // Either device through either node, and a terminal from each to the other's.
    for device in [&before, &after] {
        fleet.grant(&device.id, &["metrics:read"]).await?;
        is_served(&fleet.operator, device).await?;
        is_served(&operator, device).await?;
        fleet.support_grant(&device.id, 900).await?;
        for node in [&fleet.server, today] {
            let cli = Cli::new(&fleet.path("cli"));
            let cli = cli.with_token(&node.api_url(), &fleet.server.ca_file(), fleet.operator.token());
            let mut terminal = Terminal::start(&cli, &["shell", &device.name, "--reason", "a test"], 100, 30)?;
            terminal.shows(PROMPT).await?;
            terminal.answers("echo answer=$((6 * 7))", "answer=42").await?;
            terminal.type_in("exit 3\r")?;
            ensure!(terminal.ends().await? == 3, "{}", terminal.seen());
        }
    }

    // The old one is stopped as a service manager does, what it had goes to the new one, and it comes back as a new one.
    let status = fleet.server.stop()?;
    ensure!(status.success(), "{status}");
    // It would come by itself, at a moment of its own within the minute that it was told.
    before.machine.stop()?;
    before.machine.power_on()?;
    is_linked_to(&tenant, &before, "node-2").await?;
    is_served(&operator, &before).await?;
    fleet.server.start_again_as(upgrade::current()?).await?;
    is_served(&fleet.operator, &before).await?;
    switch.choose(0);
    before.machine.stop()?;
    before.machine.power_on()?;
    is_linked_to(&tenant, &before, "node-1").await?;
    is_served(&operator, &before).await?;
    before.machine.stop()?;
    after.machine.stop()
}
