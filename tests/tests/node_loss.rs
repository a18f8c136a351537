//! A node that dies, stands still or is cut off, with links and commands that were its own.

use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::text;
use cloudlink_tests::chaos::relay::Relay;
use cloudlink_tests::cluster::{Cluster, Database, Switch};
use cloudlink_tests::fleet::{Device, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Two leases of the tests, 5 s each, until others close what a node had, and what a busy machine takes besides.
const RIGHT_WITHIN: Duration = Duration::from_secs(20);
/// For a device to come back, which waits a random time before.
const BACK_LIMIT: Duration = Duration::from_secs(40);

/// A device of the fleet, linked to the second node; from now on it finds the first one.
async fn device(cluster: &Cluster, switch: &Switch, name: &str) -> anyhow::Result<Device> {
    let fleet = &cluster.fleet;
    switch.choose(0);
    let device = fleet.device_dialling(name, switch.address).await?;
    wait_for("a link to the second node", LINK_LIMIT, async || {
        let link = link(cluster, &device).await?;
        ensure!(link["node"] == "node-2" && link["state"] == "live", "{link}");
        Ok(())
    })
    .await?;
    switch.choose(1);
    Ok(device)
}

async fn link(cluster: &Cluster, device: &Device) -> anyhow::Result<Value> {
    Ok(cluster.fleet.tenant.get(&format!("/devices/{}", device.id)).await?["link"].clone())
}

async fn is_served_by_the_first(cluster: &Cluster, device: &Device) -> anyhow::Result<Value> {
    wait_for("a link to the first node", BACK_LIMIT, async || {
        let link = link(cluster, device).await?;
        ensure!(link["node"] == "node-1" && link["state"] == "live", "{link}");
        Ok(link)
    })
    .await
}

/// A restart that the device has begun, and that goes on until it is let go.
async fn restart_under_way(cluster: &Cluster, device: &Device) -> anyhow::Result<String> {
    cluster.fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.hold_restarts()?;
    let command = cluster.fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    cluster.fleet.reaches(&command, "running").await?;
    wait_for("the restart to begin", LINK_LIMIT, async || {
        ensure!(device.machine.restarts() == 1, "{} restarts", device.machine.restarts());
        Ok(())
    })
    .await?;
    Ok(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_node_has_died_ends_by_the_devices_report_over_another() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut device = device(&cluster, &switch, "gw-1").await?;
    let command = restart_under_way(&cluster, &device).await?;
    cluster.others[0].kill()?;
    // It ends while nobody hears of it.
    device.machine.release_restarts()?;
    let done = cluster.fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    ensure!(device.machine.restarts() == 1, "{} restarts", device.machine.restarts());
    let link = is_served_by_the_first(&cluster, &device).await?;
    // It was believed as the newest link's.
    ensure!(done["proof"]["epoch"] == link["epoch"], "{done}: {link}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_node_and_device_have_died_ends_by_its_deadline() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut device = device(&cluster, &switch, "gw-1").await?;
    let command = restart_under_way(&cluster, &device).await?;
    cluster.others[0].kill()?;
    device.machine.kill_agent()?;
    // The rest of its time, which is minutes, is not waited for: the deadline comes to it.
    let mut owner = cluster.database.look().await?;
    sqlx::query("update commands set deadline_at = clock_timestamp() where id = $1::uuid")
        .bind(&command)
        .execute(&mut owner)
        .await?;
    let ended = cluster.fleet.finished(&command).await?;
    ensure!(ended["state"] == "unconfirmed", "{ended}");
    // What the device has to say when it is back does not change it.
    device.machine.power_on()?;
    is_served_by_the_first(&cluster, &device).await?;
    let again = cluster.fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    device.machine.release_restarts()?;
    ensure!(cluster.fleet.finished(&again).await?["state"] == "succeeded");
    let shown = cluster.fleet.operator.get(&format!("/commands/{command}")).await?;
    ensure!(shown["state"] == "unconfirmed", "{shown}");
    ensure!(device.machine.restarts() == 2, "{} restarts", device.machine.restarts());
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_hold_a_link_only_the_newest_one_is_heard() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut device = device(&cluster, &switch, "gw-1").await?;
    cluster.fleet.grant(&device.id, &["service:restart"]).await?;
    // The second node is frozen with a link, of which it does not learn that it is over; what waits for the device, it has been told of.
    cluster.others[0].program().signal(Signal::SIGSTOP)?;
    device.machine.kill_agent()?;
    let body = json!({
        "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test", "queue_for_seconds": 600
    });
    let mut commands = Vec::new();
    for _ in 0..3 {
        commands.push(text(&cluster.fleet.operator.command(&device.id, &body).await?.success()?, "id")?);
    }
    device.machine.power_on()?;
    is_served_by_the_first(&cluster, &device).await?;
    cluster.others[0].program().signal(Signal::SIGCONT)?;
    for _ in 0..3 {
        commands.push(text(&cluster.fleet.operator.command(&device.id, &body).await?.success()?, "id")?);
    }
    for command in &commands {
        let done = cluster.fleet.finished(command).await?;
        ensure!(done["state"] == "succeeded", "{done}");
    }
    ensure!(device.machine.restarts() == commands.len(), "{} restarts", device.machine.restarts());
    cluster.others[0].ready().await?;
    ensure!(link(&cluster, &device).await?["node"] == "node-1");
    device.machine.stop()
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Kill,
    Freeze,
    /// From the database and from NATS; devices reach it still.
    CutOff,
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_right_soon_after_whatever_happens_to_a_node() -> anyhow::Result<()> {
    let database = Database::start().await?;
    let mut cluster = Cluster::start_on(database, 1, &[]).await?;
    let ways = [Relay::start(cluster.database.address()).await?, Relay::start(cluster.nats.address).await?];
    cluster
        .join(&[
            format!("database.url=postgres://postgres@{}/postgres", ways[0].address),
            format!("cluster.nats=nats://{}", ways[1].address),
        ])
        .await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut devices = Vec::new();
    for harm in [Harm::Freeze, Harm::CutOff, Harm::Kill] {
        let mut device = device(&cluster, &switch, &format!("gw-{harm:?}")).await?;
        let begun = Instant::now();
        match harm {
            Harm::Kill => drop(cluster.others[0].kill()?),
            Harm::Freeze => cluster.others[0].program().signal(Signal::SIGSTOP)?,
            Harm::CutOff => ways.iter().for_each(Relay::close),
        }
        // Either it says that nobody has it, or that the first node does.
        wait_for("a link that is right", RIGHT_WITHIN, async || {
            let link = link(&cluster, &device).await?;
            ensure!(
                link["state"] != "live" && link["close_reason"] == "node_lost" || link["node"] == "node-1",
                "{link}"
            );
            Ok(())
        })
        .await?;
        ensure!(begun.elapsed() < RIGHT_WITHIN, "{harm:?}: {:?}", begun.elapsed());
        match harm {
            Harm::Kill => cluster.others[0].start_again().await?,
            Harm::Freeze => cluster.others[0].program().signal(Signal::SIGCONT)?,
            Harm::CutOff => ways.iter().for_each(Relay::open),
        }
        cluster.others[0].ready().await?;
        // The node has let go of it, and the device is where it was told to go.
        is_served_by_the_first(&cluster, &device).await?;
        device.machine.stop()?;
        devices.push(device);
    }
    Ok(())
}
