//! Whatever crashes while a command is under way: it is run at most once, and ends in exactly one final state.

use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::text;
use cloudlink_tests::fleet::{Device, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};

async fn restart(fleet: &Fleet, device: &Device) -> anyhow::Result<String> {
    fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await
}

/// Asks for a restart that is held up, and waits until the device is at it.
async fn restart_under_way(fleet: &Fleet, device: &Device) -> anyhow::Result<String> {
    device.machine.hold_restarts()?;
    let command = restart(fleet, device).await?;
    fleet.reaches(&command, "running").await?;
    wait_for("the restart to begin", LINK_LIMIT, async || {
        ensure!(device.machine.restarts() == 1, "{} restarts", device.machine.restarts());
        Ok(())
    })
    .await?;
    Ok(command)
}

async fn queued(fleet: &Fleet, device: &str, kind: &str, arguments: Value) -> anyhow::Result<String> {
    let body = json!({ "kind": kind, "arguments": arguments, "reason": "a test", "queue_for_seconds": 600 });
    text(&fleet.operator.command(device, &body).await?.success()?, "id")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_crashes_does_not_begin_again() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["service:restart"]).await?;
    let command = restart_under_way(&fleet, &device).await?;

    device.machine.kill_agent()?;
    device.machine.release_restarts()?;
    device.machine.power_on()?;
    let done = fleet.finished(&command).await?;
    assert_eq!((&done["state"], &done["code"]), (&json!("failed"), &json!("interrupted")), "{done}");
    assert_eq!(device.machine.restarts(), 1);

    let command = restart(&fleet, &device).await?;
    assert_eq!(fleet.finished(&command).await?["state"], "succeeded");
    assert_eq!(device.machine.restarts(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_learns_the_result_when_it_is_back() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["service:restart"]).await?;
    let command = restart_under_way(&fleet, &device).await?;

    fleet.server.kill()?;
    device.machine.release_restarts()?;
    fleet.server.start_again().await?;
    let done = fleet.finished(&command).await?;
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(device.machine.restarts(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_proven_to_a_server_that_was_away_meanwhile() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["device:reboot"]).await?;
    let command = fleet.command(&device.id, "device.reboot", &json!({})).await?;
    wait_for("the reboot", Duration::from_secs(20), async || {
        ensure!(device.machine.reboots() == 1, "{} reboots", device.machine.reboots());
        Ok(())
    })
    .await?;
    fleet.server.kill()?;
    fleet.server.start_again().await?;
    let done = fleet.finished(&command).await?;
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(device.machine.reboots(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_command_waits_for_its_device() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.stop()?;
    fleet.wait_for_link(&device.id, "closed").await?;
    let command = queued(&fleet, &device.id, "service.restart", json!({ "service": SERVICE })).await?;

    // It is in the database, so it does not matter who is away meanwhile.
    fleet.server.stop()?;
    fleet.server.start_again().await?;
    device.machine.power_on()?;
    let done = fleet.finished(&command).await?;
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(device.machine.restarts(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_takes_its_queue_with_it() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    let grant = fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.stop()?;
    fleet.wait_for_link(&device.id, "closed").await?;
    let command = queued(&fleet, &device.id, "service.restart", json!({ "service": SERVICE })).await?;

    fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;
    // In the same transaction: no waiting.
    let shown = fleet.operator.get(&format!("/commands/{command}")).await?;
    assert_eq!(shown["state"], "cancelled", "{shown}");
    device.machine.power_on()?;
    fleet.wait_for_link(&device.id, "live").await?;
    assert_eq!(device.machine.restarts(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_gets_its_devices_back() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    let before = fleet.wait_for_link(&device.id, "live").await?["link"]["epoch"].as_i64();
    let status = fleet.server.stop()?;
    ensure!(status.success(), "{status}");
    fleet.server.start_again().await?;
    wait_for("the device to be back", Duration::from_secs(90), async || {
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        ensure!(shown["link"]["epoch"].as_i64() > before, "{shown}");
        Ok(())
    })
    .await?;
    fleet.grant(&device.id, &["service:restart"]).await?;
    let command = restart(&fleet, &device).await?;
    assert_eq!(fleet.finished(&command).await?["state"], "succeeded");
    Ok(())
}
