//! Devices whose network lets no link through: they poll, are shown so, and do what may be done that way, once.

use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::text;
use cloudlink_tests::fleet::{COMMAND_LIMIT, Device, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::middlebox::{Middlebox, Passes};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use serde_json::{Value, json};

/// A device dials on while it polls, with a pause between that grows.
const LINK_AGAIN_LIMIT: Duration = Duration::from_secs(180);

/// A server that wants to be polled often, and a device that polls as soon as it has no link.
async fn fleet(passes: Passes) -> anyhow::Result<(Fleet, Middlebox, Device)> {
    let set = vec!["poll.interval_seconds=2".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let middlebox = Middlebox::start(fleet.server.device, Passes::Everything).await?;
    let mut machine = fleet.new_machine_dialling("gateway", middlebox.address)?.polling_after(1)?;
    machine.enroll(&fleet.enrollment_token("gateway").await?)?;
    middlebox.set(passes);
    machine.power_on()?;
    let listed = wait_for("the device to be listed", LINK_LIMIT, async || {
        let devices = fleet.tenant.get("/devices").await?;
        text(&devices["items"][0], "id")
    });
    let device = Device { id: listed.await?, name: "gateway".to_owned(), machine };
    fleet.grant(&device.id, &["metrics:read", "service:restart", "device:reboot", "shell:open"]).await?;
    Ok((fleet, middlebox, device))
}

async fn reached_by(fleet: &Fleet, device: &Device, transport: &str, limit: Duration) -> anyhow::Result<Value> {
    wait_for(&format!("the device to be reached by {transport}"), limit, async || {
        let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["transport"] == transport, "{shown}");
        Ok(shown)
    })
    .await
}

async fn queued_metrics(fleet: &Fleet, device: &Device) -> anyhow::Result<Value> {
    let body = json!({ "kind": "metrics.collect", "reason": "a test", "queue_for_seconds": 600 });
    fleet.operator.command(&device.id, &body).await?.success()
}

/// How often the agent began this command.
fn begun(device: &Device, command: &str) -> anyhow::Result<usize> {
    let log = device.machine.log_text()?;
    Ok(log.lines().filter(|line| line.contains("beginning a command") && line.contains(command)).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_link_polls_and_links_again_when_it_can() -> anyhow::Result<()> {
    let (fleet, middlebox, device) = fleet(Passes::WholeAnswers).await?;
    let shown = reached_by(&fleet, &device, "polling", COMMAND_LIMIT).await?;
    let poll = &shown["poll"];
    ensure!(poll["boot_id"] == device.machine.boot_id()?, "{shown}");
    ensure!(poll["interval_seconds"] == 2 && poll["next_poll_by"].is_string(), "{shown}");
    let listed = fleet.cli(fleet.tenant.token()).run(&["devices"]).await?;
    ensure!(listed.stdout.contains("polling"), "{}", listed.stdout);
    wait_for("its metrics", LINK_LIMIT, async || {
        let metrics = fleet.tenant.get(&format!("/devices/{}/metrics", device.id)).await?;
        ensure!(metrics["report"]["memory_total_bytes"].as_u64() > Some(0), "{metrics}");
        Ok(())
    })
    .await?;

    // What needs a link is refused at once, and says why.
    let restart = json!({ "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test" });
    for body in [json!({ "kind": "device.reboot", "reason": "a test", "queue_for_seconds": 600 }), restart] {
        let refused = fleet.operator.command(&device.id, &body).await?;
        ensure!((refused.status.as_u16(), refused.problem()) == (409, "polling"), "{:?}", refused.body);
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains("it polls") && detail.contains("ask again when it is linked"), "{detail}");
    }
    let path = format!("/devices/{}/support-sessions", device.id);
    let body = json!({ "kind": "terminal", "reason": "a test" });
    let refused = fleet.operator.call(reqwest::Method::POST, &path, &[], Some(&body)).await?;
    ensure!(refused.problem() == "polling", "{:?}", refused.body);
    ensure!(device.machine.restarts() == 0 && device.machine.reboots() == 0);

    // What does not is run by the next poll, and told by one soon after.
    let command = queued_metrics(&fleet, &device).await?;
    ensure!(command["runs_by"].is_string(), "{command}");
    let id = text(&command, "id")?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["memory_total_bytes"].is_u64(), "{done}");
    ensure!(begun(&device, &id)? == 1);

    // One that was begun, and of which the server has not heard, is known when the link asks for it again.
    let id = text(&queued_metrics(&fleet, &device).await?, "id")?;
    wait_for("the device to begin", COMMAND_LIMIT, async || {
        ensure!(begun(&device, &id)? > 0);
        Ok(())
    })
    .await?;
    middlebox.set(Passes::Nothing);
    middlebox.set(Passes::Everything);
    let shown = reached_by(&fleet, &device, "websocket", LINK_AGAIN_LIMIT).await?;
    ensure!(shown["poll"]["next_poll_by"].is_null(), "{shown}");
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && begun(&device, &id)? == 1, "{done}");
    let id = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    ensure!(fleet.finished(&id).await?["state"] == "succeeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poll_in_ten_is_enough() -> anyhow::Result<()> {
    let (fleet, middlebox, device) = fleet(Passes::WholeAnswers).await?;
    reached_by(&fleet, &device, "polling", COMMAND_LIMIT).await?;
    middlebox.set(Passes::OneInTen);
    let before = middlebox.let_through();
    let id = text(&queued_metrics(&fleet, &device).await?, "id")?;
    let done = wait_for("the end of the command", LINK_AGAIN_LIMIT, async || {
        let shown = fleet.operator.get(&format!("/commands/{id}")).await?;
        ensure!(!shown["finished_at"].is_null(), "{shown}");
        Ok(shown)
    })
    .await?;
    ensure!(done["state"] == "succeeded" && begun(&device, &id)? == 1, "{done}");
    ensure!(middlebox.let_through() > before, "something was let through all the same");
    Ok(())
}
