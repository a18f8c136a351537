//! Rollouts to real devices: by an operator's hand, and with a node that dies in the middle.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::cli::Cli;
use cloudlink_tests::cluster::{Cluster, Switch};
use cloudlink_tests::fleet::{Device, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};

/// For devices to come back over another node, and for what they are to do then.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// In which a rollout that begins more than it may would do so: it is looked at four times a second.
const STILL_FOR: Duration = Duration::from_secs(2);

async fn totals_add_up(fleet: &Fleet, rollout: &str, devices: u64) -> anyhow::Result<Value> {
    let shown = fleet.operator.get(&format!("/rollouts/{rollout}")).await?;
    let totals = shown["totals"].as_object().cloned().unwrap_or_default();
    let sum: u64 = totals.values().filter_map(Value::as_u64).sum();
    ensure!(sum == devices, "{shown}");
    Ok(shown)
}

/// Waits until the rollout is in this state, with these totals.
async fn comes_to(fleet: &Fleet, rollout: &str, state: &str, totals: &Value) -> anyhow::Result<()> {
    wait_for(&format!("the rollout to be {state}"), DONE_WITHIN, async || {
        let shown = totals_add_up(fleet, rollout, 3).await?;
        ensure!(shown["state"] == state, "{shown}");
        for (name, expected) in totals.as_object().into_iter().flatten() {
            ensure!(shown["totals"][name] == *expected, "{name}: {shown}");
        }
        Ok(())
    })
    .await
}

/// Three linked devices, and a grant to restart services on them.
async fn three(fleet: &Fleet, dialling: std::net::SocketAddr) -> anyhow::Result<(Vec<Device>, String)> {
    let mut devices: Vec<Device> = Vec::new();
    for name in ["gw-1", "gw-2", "gw-3"] {
        let device = fleet.device_dialling(name, dialling).await?;
        fleet.wait_for_link(&device.id, "live").await?;
        device.machine.hold_restarts()?;
        devices.push(device);
    }
    let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
    let grant = json!({"reason": "r", "scopes": ["service:restart"], "device_ids": ids, "duration_seconds": 900});
    let grant = text(&fleet.tenant.post("/grants", &grant).await?, "id")?;
    Ok((devices, grant))
}

fn restarts(devices: &[Device]) -> usize {
    devices.iter().map(|device| device.machine.restarts()).sum()
}

/// Plans from the command line: one device after the other. Gives back id and hash.
async fn plan(operator: &Cli, grant: &str, service: &str) -> anyhow::Result<(String, String)> {
    let arguments = json!({ "service": service }).to_string();
    let plan = ["rollout", "plan", "service.restart", "--arguments", &arguments, "--grant", grant, "-l", "!retired"];
    let planned = operator.run(&[&plan[..], &["--reason", "r", "--batch", "1", "--json"]].concat()).await?;
    ensure!(planned.code == Some(0), "{planned:?}");
    let planned: Value = serde_json::from_str(&planned.stdout)?;
    ensure!(planned["totals"]["waiting"] == 3, "{planned}");
    Ok((text(&planned, "id")?, text(&planned, "hash")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_plans_applies_pauses_and_takes_back() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let (mut devices, grant) = three(&fleet, fleet.server.device).await?;
    let operator = fleet.cli(fleet.operator.token());

    // What was planned is not what there is any more.
    let (id, hash) = plan(&operator, &grant, SERVICE).await?;
    devices[2].machine.kill_agent()?;
    fleet.wait_for_link(&devices[2].id, "closed").await?;
    let moved = operator.run(&["rollout", "apply", &id, &hash]).await?;
    ensure!(moved.code == Some(8) && moved.stderr.contains("not_linked"), "{moved:?}");
    devices[2].machine.power_on()?;
    fleet.wait_for_link(&devices[2].id, "live").await?;

    let (id, hash) = plan(&operator, &grant, SERVICE).await?;
    let begun = operator.run(&["rollout", "apply", &id, &hash, "--no-wait"]).await?;
    ensure!(begun.code == Some(0), "{begun:?}");
    comes_to(&fleet, &id, "running", &json!({ "under_way": 1, "waiting": 2 })).await?;
    ensure!(operator.run(&["rollout", "pause", &id]).await?.code == Some(0));
    let (canary, others): (Vec<_>, Vec<_>) = devices.iter().partition(|device| device.machine.restarts() == 1);
    canary.first().context("no device was begun")?.machine.release_restarts()?;
    comes_to(&fleet, &id, "paused", &json!({ "succeeded": 1, "waiting": 2 })).await?;
    tokio::time::sleep(STILL_FOR).await;
    ensure!(restarts(&devices) == 1, "a paused rollout begins something");

    // What is under way when it is taken back ends as it does; the rest is not begun.
    ensure!(operator.run(&["rollout", "resume", &id]).await?.code == Some(0));
    comes_to(&fleet, &id, "running", &json!({ "under_way": 1, "waiting": 1 })).await?;
    wait_for("the second to begin", LINK_LIMIT, async || {
        ensure!(restarts(&devices) == 2);
        Ok(())
    })
    .await?;
    ensure!(operator.run(&["rollout", "cancel", &id, "--yes"]).await?.code == Some(0));
    comes_to(&fleet, &id, "cancelling", &json!({ "under_way": 1, "skipped": 1 })).await?;
    others.iter().try_for_each(|device| device.machine.release_restarts())?;
    let watched = operator.run(&["rollout", "watch", &id]).await?;
    ensure!(watched.code == Some(6) && watched.stdout.contains("2 succeeded"), "{watched:?}");
    comes_to(&fleet, &id, "cancelled", &json!({ "succeeded": 2, "skipped": 1 })).await?;
    ensure!(restarts(&devices) == 2);

    // A canary that fails is the only one to do so.
    let (id, hash) = plan(&operator, &grant, "no-such-service").await?;
    let halted = operator.run(&["rollout", "apply", &id, &hash]).await?;
    ensure!(halted.code == Some(6) && halted.stdout.contains("halted"), "{halted:?}");
    comes_to(&fleet, &id, "halted", &json!({ "failed": 1 })).await?;
    ensure!(restarts(&devices) == 2);
    for device in &mut devices {
        device.machine.stop()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_when_a_node_dies_in_the_middle_and_does_nothing_twice() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let (mut devices, grant) = three(&cluster.fleet, switch.address).await?;
    let plan = json!({
        "grant_id": grant, "selector": "!retired", "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "r",
        "canaries": 1, "batch": 2, "queue_for_seconds": 600,
    });
    let plan = cluster.fleet.operator.post("/rollouts", &plan).await?;
    ensure!(plan["totals"]["waiting"] == 3, "{plan}");
    let id = text(&plan, "id")?;
    cluster.fleet.operator.post(&format!("/rollouts/{id}/apply"), &json!({ "hash": plan["hash"] })).await?;
    comes_to(&cluster.fleet, &id, "running", &json!({ "under_way": 1, "waiting": 2 })).await?;
    wait_for("the canary to begin", LINK_LIMIT, async || {
        ensure!(restarts(&devices) == 1);
        Ok(())
    })
    .await?;
    switch.choose(1);
    cluster.others[0].kill()?;
    for device in &devices {
        device.machine.release_restarts()?;
    }
    comes_to(&cluster.fleet, &id, "finished", &json!({ "succeeded": 3 })).await?;
    for device in &mut devices {
        ensure!(device.machine.restarts() == 1, "{} was restarted {} times", device.id, device.machine.restarts());
        device.machine.stop()?;
    }
    Ok(())
}
