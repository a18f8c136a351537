//! A whole machine under Cloudlink: a real kernel, real reboots, real boot ids.

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::vm::{BOOT_LIMIT, Vm};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_enrolls_is_rebooted_loses_power_and_is_shut_down() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let token = fleet.enrollment_token("gateway").await?;
    let mut vm = Vm::new(&fleet.path("gateway"), fleet.server.device, &fleet.server.ca_file(), &token)?;

    vm.power_on()?;
    let device = linked(&fleet, &vm, 1).await?;
    fleet.grant(&device, &["device:reboot", "device:shutdown"]).await?;

    let done = finished(&fleet, &fleet.command(&device, "device.reboot", &json!({})).await?).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    linked(&fleet, &vm, 2).await?;
    let booted = vm.boot_ids()?;
    ensure!(booted.len() == 2 && booted[0] != booted[1], "{booted:?}");
    // The proof names what the kernel itself printed.
    ensure!(done["proof"].to_string().contains(&booted[1]), "{done} and {booted:?}");

    // Nobody ordered this one, and nobody stopped the agent.
    vm.power_cut()?;
    vm.power_on()?;
    linked(&fleet, &vm, 3).await?;

    let done = finished(&fleet, &fleet.command(&device, "device.shutdown", &json!({})).await?).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    vm.wait_until_off().await?;

    let shown = fleet.operator.get(&format!("/devices/{device}/boots")).await?;
    let boots = shown["boots"].as_array().context("no boots")?;
    let seen: Vec<_> = boots.iter().rev().filter_map(|boot| boot["boot_id"].as_str()).collect();
    ensure!(seen == vm.boot_ids()?, "{shown} and {:?}", vm.boot_ids()?);
    let causes: Vec<_> = boots.iter().rev().filter_map(|boot| boot["cause"].as_str()).collect();
    ensure!(causes == ["unknown", "ordered", "power_loss"], "{shown}");
    ensure!(shown["missing"].is_null(), "{shown}");
    Ok(())
}

/// Waits until the machine has booted so many times and has a link from its last boot. Gives back the device's id.
async fn linked(fleet: &Fleet, vm: &Vm, boots: usize) -> anyhow::Result<String> {
    wait_for("a link from the boot", BOOT_LIMIT, async || {
        let devices = fleet.tenant.get("/devices").await?;
        let device = devices["items"].get(0).context("no device yet")?;
        let booted = vm.boot_ids()?;
        ensure!(device["link"]["state"] == "live" && booted.len() == boots, "{device} and {booted:?}");
        ensure!(device["link"]["boot_id"].as_str() == booted.last().map(String::as_str), "{device} and {booted:?}");
        text(device, "id")
    })
    .await
    .with_context(|| vm.console().unwrap_or_default())
}

/// A machine takes longer to boot than what other tests wait for.
async fn finished(fleet: &Fleet, command: &str) -> anyhow::Result<Value> {
    wait_for("the end of the command", BOOT_LIMIT, async || {
        let shown = fleet.operator.get(&format!("/commands/{command}")).await?;
        ensure!(!shown["finished_at"].is_null(), "{shown}");
        Ok(shown)
    })
    .await
}
