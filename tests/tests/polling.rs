//! Devices whose network lets no link through: they poll, are shown so, and do what may be done that way, once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::certificate;
use cloudlink_tests::fleet::{COMMAND_LIMIT, Device, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::middlebox::{Middlebox, Passes};
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use serde_json::{Value, json};

/// A device dials on while it polls, with a pause between that grows.
const LINK_AGAIN_LIMIT: Duration = Duration::from_secs(180);
/// Two polls must pass, of some twenty, each a few seconds after the other; a command waits for 600 s.
const ONE_IN_TEN_LIMIT: Duration = Duration::from_secs(580);

/// How often it is tried to cut a device off before it has told.
const UNHEARD_ATTEMPTS: usize = 10;
/// A transport is remembered when it was proven for a minute.
const PROVEN_LIMIT: Duration = Duration::from_secs(180);

/// A server that wants to be polled often, and a device that polls as soon as it has no link.
async fn fleet(passes: Passes) -> anyhow::Result<(Fleet, Middlebox, Device)> {
    fleet_with(passes, "", None).await
}

/// The same, with more under `[server]`, and the device at a site that has no other way than through the box.
async fn fleet_with(
    passes: Passes,
    server: &str,
    site: Option<Arc<Site>>,
) -> anyhow::Result<(Fleet, Middlebox, Device)> {
    let set = vec!["poll.interval_seconds=2".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let address = site.as_ref().map_or_else(port::free, |site| Ok((site.router_ipv4, 443).into()))?;
    let middlebox = Middlebox::start(address, fleet.server.device, Passes::Everything).await?;
    let mut machine = fleet.new_machine_dialling("gateway", middlebox.address)?.polling_after(1)?;
    if let Some(site) = &site {
        let out =
            "add table inet filter; add chain inet filter out { type filter hook output priority 0; policy drop; }";
        let box_alone = format!("ip daddr {} tcp dport {} accept", address.ip(), address.port());
        site.sh(&format!("nft '{out}; add rule inet filter out {box_alone}'"))?;
        machine = machine.at(site);
    }
    let config = std::fs::read_to_string(machine.config_file())?;
    std::fs::write(machine.config_file(), config.replace("[server]\n", &format!("[server]\n{server}\n")))?;
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

/// A command that the device has carried out, and the server has no word of it: from now on nothing passes.
async fn unheard(fleet: &Fleet, middlebox: &Middlebox, device: &Device) -> anyhow::Result<String> {
    for _ in 0..UNHEARD_ATTEMPTS {
        let id = text(&queued_metrics(fleet, device).await?, "id")?;
        wait_for("the device to begin", COMMAND_LIMIT, async || {
            ensure!(begun(device, &id)? > 0);
            Ok(())
        })
        .await?;
        middlebox.set(Passes::Nothing);
        wait_for("the command to end", COMMAND_LIMIT, async || {
            let log = device.machine.log_text()?;
            ensure!(log.lines().any(|line| line.contains("a command ended") && line.contains(&id)), "{log}");
            Ok(())
        })
        .await?;
        // The device tells within a second or two: this machine may have been too slow to cut it off before.
        if fleet.operator.get(&format!("/commands/{id}")).await?["state"] == "sent" {
            return Ok(id);
        }
        middlebox.set(Passes::WholeAnswers);
    }
    bail!("the device was heard each time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_link_polls_and_links_again_when_it_can() -> anyhow::Result<()> {
    let (fleet, middlebox, mut device) = fleet(Passes::WholeAnswers).await?;
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

    // One that has ended, and of which the server has not heard, is known when a link comes with it. So that no poll tells of it before,
    // the device comes back without; and the line is slow, so that the server gives it again before it hears of it.
    let id = unheard(&fleet, &middlebox, &device).await?;
    device.machine.kill_agent()?;
    let config = std::fs::read_to_string(device.machine.config_file())?;
    std::fs::write(device.machine.config_file(), config.replace("[poll]\n", "[poll]\nenabled = false\n"))?;
    middlebox.set(Passes::Slowly);
    device.machine.power_on()?;
    let shown = reached_by(&fleet, &device, "websocket", LINK_AGAIN_LIMIT).await?;
    ensure!(shown["poll"]["next_poll_by"].is_null(), "{shown}");
    wait_for("the link to come with the command", COMMAND_LIMIT, async || {
        let log = device.machine.log_text()?;
        ensure!(log.lines().any(|line| line.contains("a command came again: told") && line.contains(&id)), "{log}");
        Ok(())
    })
    .await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && begun(&device, &id)? == 1, "{done}\n{}", device.machine.log_text()?);
    let id = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    ensure!(fleet.finished(&id).await?["state"] == "succeeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_only_polls_renews_its_certificate() -> anyhow::Result<()> {
    let (fleet, _middlebox, mut device) = fleet(Passes::WholeAnswers).await?;
    reached_by(&fleet, &device, "polling", COMMAND_LIMIT).await?;
    device.machine.kill_agent()?;
    let old = certificate::age(&fleet, &device.machine, &device.id).await?;
    device.machine.power_on()?;
    let renewed = certificate::renewed(&device.machine, &old).await?;
    let known = certificate::known(&fleet, &device.id).await?;
    ensure!(known == [(old, "superseded".to_owned()), (renewed, "active".to_owned())], "{known:?}");
    let id = text(&queued_metrics(&fleet, &device).await?, "id")?;
    ensure!(fleet.finished(&id).await?["state"] == "succeeded" && begun(&device, &id)? == 1);
    Ok(())
}

#[test]
fn where_nothing_but_one_poll_in_ten_passes_it_is_enough() -> anyhow::Result<()> {
    netns::test("where_nothing_but_one_poll_in_ten_passes_it_is_enough", one_poll_in_ten)
}

async fn one_poll_in_ten() -> anyhow::Result<()> {
    let site = Arc::new(Site::join()?);
    let (fleet, middlebox, device) = fleet_with(Passes::WholeAnswers, "", Some(site)).await?;
    // One more, so that the device too has heard: how often it may poll is in the answer, and without it its pauses soon last minutes.
    let first = reached_by(&fleet, &device, "polling", COMMAND_LIMIT).await?;
    wait_for("another poll", COMMAND_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["poll"]["last_poll_at"] != first["poll"]["last_poll_at"], "{shown}");
        Ok(())
    })
    .await?;
    middlebox.set(Passes::OneInTen);
    let before = middlebox.let_through();
    let id = text(&queued_metrics(&fleet, &device).await?, "id")?;
    let done = wait_for("the end of the command", ONE_IN_TEN_LIMIT, async || {
        let shown = fleet.operator.get(&format!("/commands/{id}")).await?;
        ensure!(!shown["finished_at"].is_null(), "{shown}");
        Ok(shown)
    })
    .await?;
    ensure!(done["state"] == "succeeded" && begun(&device, &id)? == 1, "{done}");
    ensure!(middlebox.let_through() > before, "something was let through all the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_as_a_transport_is_found_told_remembered_and_left_for_a_link() -> anyhow::Result<()> {
    let server = "transports = [\"websocket\", \"polling\"]\nbetter_after_seconds = 20";
    let (fleet, middlebox, mut device) = fleet_with(Passes::WholeAnswers, server, None).await?;
    reached_by(&fleet, &device, "polling", LINK_AGAIN_LIMIT).await?;
    let id = text(&queued_metrics(&fleet, &device).await?, "id")?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && begun(&device, &id)? == 1, "{done}");

    // A device that only ever polls says why.
    wait_for("how the link failed", LINK_AGAIN_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        let failures = shown["transport_failures"].as_array().into_iter().flatten();
        let told = failures.filter(|failure| failure["transport"] == "websocket");
        // The first of them before it polled.
        ensure!(told.filter_map(|failure| failure["count"].as_u64()).sum::<u64>() >= 2, "{shown}");
        Ok(())
    })
    .await?;

    // What works here is tried first after the next start.
    let memory = device.machine.state_dir().join("networks.json");
    wait_for("the network to be remembered", PROVEN_LIMIT, async || {
        let text = std::fs::read_to_string(&memory)?;
        ensure!(text.contains("\"transport\":\"polling\""), "{text}");
        Ok(())
    })
    .await?;
    device.machine.kill_agent()?;
    let before = device.machine.log_text()?.len();
    device.machine.power_on()?;
    wait_for("a poll after the start", LINK_LIMIT, async || {
        let log = device.machine.log_text()?;
        let log = log.get(before..).unwrap_or(&log);
        let until = log.split("no link: the device polls").next().filter(|until| until.len() < log.len());
        ensure!(until.is_some_and(|until| !until.contains("no link transport=")), "{log}");
        Ok(())
    })
    .await?;

    middlebox.set(Passes::Everything);
    let shown = reached_by(&fleet, &device, "websocket", LINK_AGAIN_LIMIT).await?;
    ensure!(shown["poll"]["next_poll_by"].is_null(), "{shown}");
    let id = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    ensure!(fleet.finished(&id).await?["state"] == "succeeded");
    Ok(())
}
