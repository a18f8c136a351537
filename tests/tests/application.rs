//! What applications on a device say to its agent, and hear of it: "not now", and restarts.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};

/// For what a device tells to be known.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a command of the agent on the device, and gives what it printed.
async fn agent(device: &Device, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = device.machine.agent()?;
    command.args(arguments).arg("--config").arg(device.machine.config_file());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// Waits until the server shows the device's lock like this.
async fn is_shown(fleet: &Fleet, device: &str, reason: Option<&str>) -> anyhow::Result<()> {
    wait_for("the lock to be known", LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        ensure!(shown["busy_lock"]["reason"].as_str() == reason, "{shown}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_lock_survives_a_reboot_and_blocks_the_next_until_it_is_overridden() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["device:reboot"]).await?;
    let reboot = async |more: Value| {
        let mut body = json!({"kind": "device.reboot", "reason": "a test"});
        body.as_object_mut().expect("it is one").extend(more.as_object().cloned().unwrap_or_default());
        fleet.operator.command(&device.id, &body).await
    };

    let said = agent(&device, &["busy", "set", "--seconds", "3600", "--reason", "writing results"]).await?;
    ensure!(said.starts_with("busy for another ") && said.contains("writing results"), "{said}");
    is_shown(&fleet, &device.id, Some("writing results")).await?;
    ensure!(reboot(json!({})).await?.problem() == "device_busy");
    ensure!(reboot(json!({"override_busy": true})).await?.problem() == "grant_required");

    fleet.grant(&device.id, &["device:reboot", "busy:override"]).await?;
    ensure!(reboot(json!({"queue_for_seconds": 60})).await?.problem() == "device_busy");
    let forced = reboot(json!({"override_busy": true})).await?.success()?;
    let done = fleet.finished(forced["id"].as_str().unwrap_or_default()).await?;
    ensure!(done["state"] == "succeeded" && done["override_busy"] == true, "{done}");
    ensure!(device.machine.reboots() == 1, "{} boots", device.machine.reboots());

    // It is still there, and holds on a device whose server has not heard of it.
    let said = agent(&device, &["busy", "show"]).await?;
    ensure!(said.contains("writing results"), "{said}");
    is_shown(&fleet, &device.id, Some("writing results")).await?;
    ensure!(reboot(json!({})).await?.problem() == "device_busy");
    device.machine.kill_agent()?;
    device.machine.power_on()?;
    fleet.wait_for_link(&device.id, "live").await?;
    is_shown(&fleet, &device.id, Some("writing results")).await?;

    agent(&device, &["busy", "clear"]).await?;
    is_shown(&fleet, &device.id, None).await?;
    let done = fleet.finished(&fleet.command(&device.id, "device.reboot", &json!({})).await?).await?;
    ensure!(done["state"] == "succeeded" && done["override_busy"] == false, "{done}");

    let log = fleet.tenant.get("/audit?limit=200").await?;
    let entries: Vec<&str> =
        log["items"].as_array().into_iter().flatten().filter_map(|entry| entry["entry"].as_str()).collect();
    for (word, times) in [("device.busy_lock_set", 1), ("device.busy_lock_cleared", 1), ("override_busy", 1)] {
        let found = entries.iter().filter(|entry| entry.contains(word)).count();
        ensure!(found == times, "{word} {found} times: {entries:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_restarted_by_its_application() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut machine = fleet.new_machine("gateway")?;
    let text = std::fs::read_to_string(machine.config_file())?;
    let text = text.replace("[service]\n", &format!("[service]\nby_application = [{SERVICE:?}]\n"));
    std::fs::write(machine.config_file(), text)?;
    machine.enroll(&fleet.enrollment_token("gateway").await?)?;
    machine.power_on()?;
    let devices = fleet.tenant.get("/devices").await?;
    let id = devices["items"][0]["id"].as_str().context("no device")?.to_owned();
    fleet.wait_for_link(&id, "live").await?;
    fleet.grant(&id, &["service:restart"]).await?;
    let status = machine.ask("GET", "/v1/status", &Value::Null).await?;
    ensure!(status["link"] == "websocket" && status["busy"].is_null(), "{status}");

    for said in [json!({"restarted": true}), json!({"restarted": false, "reason": "in a reading"})] {
        let command = fleet.command(&id, "service.restart", &json!({ "service": SERVICE })).await?;
        let path = format!("/v1/services/{SERVICE}/restart");
        let order = machine.ask("GET", &path, &Value::Null).await?;
        let order = order["id"].as_str().context("no order")?;
        machine.ask("POST", &format!("{path}/{order}"), &said).await?;
        let done = fleet.finished(&command).await?;
        if said["restarted"] == true {
            ensure!(done["state"] == "succeeded" && done["data"]["by_application"] == true, "{done}");
        } else {
            ensure!(done["state"] == "failed" && done["code"] == "application_refused", "{done}");
            ensure!(done["message"].as_str().is_some_and(|message| message.contains("in a reading")), "{done}");
        }
    }
    ensure!(machine.restarts() == 0, "somebody else has restarted it");
    machine.stop()
}
