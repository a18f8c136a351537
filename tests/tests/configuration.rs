//! What devices are to be like: given over the link or with a poll, kept by the agent, made so by an application on the device, and shown.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::fleet::{Device, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::Machine;
use cloudlink_tests::middlebox::{Middlebox, Passes};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use reqwest::Method;
use serde_json::{Value, json};

/// For what is told to be known, at either end.
const LIMIT: Duration = Duration::from_secs(60);

/// What an application does: waits for another version than the one that it knows.
async fn heard(machine: &Machine, known: u64) -> anyhow::Result<Value> {
    wait_for("the application to hear of another configuration", LIMIT, async || {
        let shown = machine.ask("GET", &format!("/v1/configuration?after={known}&wait=20"), &Value::Null).await?;
        ensure!(shown["version"].as_u64().is_some_and(|version| version != known), "{shown}");
        Ok(shown)
    })
    .await
}

async fn says(machine: &Machine, said: Value) -> anyhow::Result<()> {
    machine.ask("PUT", "/v1/configuration/applied", &said).await.map(drop)
}

async fn stands(fleet: &Fleet, device: &str, state: &str, desired: u64, applied: u64) -> anyhow::Result<Value> {
    wait_for(&format!("the device to be shown as {state} with version {desired}"), LIMIT, async || {
        let shown = fleet.operator.get(&format!("/devices/{device}")).await?["configuration"].clone();
        let (is_desired, is_applied) = (shown["desired_version"] == desired, shown["applied_version"] == applied);
        ensure!(shown["state"] == state && is_desired && is_applied, "{shown}");
        Ok(shown)
    })
    .await
}

async fn change(fleet: &Fleet, document: &Value, body: &Value) -> anyhow::Result<Value> {
    let path = format!("/configuration-documents/{}", text(document, "id")?);
    fleet.tenant.call(Method::PUT, &path, &[("if-match", "*")], Some(body)).await?.success()
}

async fn drifting(fleet: &Fleet) -> anyhow::Result<Vec<Value>> {
    let page = fleet.operator.get("/configuration-drift").await?;
    Ok(page["items"].as_array().context("no items")?.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_desired_is_given_at_once_and_what_came_of_it_is_shown() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut device = fleet.device("gateway").await?;
    let id = device.id.clone();
    ensure!(fleet.operator.get(&format!("/devices/{id}")).await?["configuration"].is_null());
    ensure!(device.machine.ask("GET", "/v1/configuration", &Value::Null).await?.is_null());
    let tenant = text(&fleet.operator.get(&format!("/devices/{id}")).await?, "tenant_id")?;
    let schema = json!({"schema": {"properties": {"interval": {"type": "integer", "minimum": 1}}}});
    let path = format!("/tenants/{tenant}/configuration-schema");
    fleet.admin.call(Method::PUT, &path, &[("if-match", "*")], Some(&schema)).await?.success()?;

    // An application waits, and hears of it over the link.
    let body = json!({"device_id": id, "content": {"interval": 60, "unit": "s"}, "reason": "first"});
    let create = async { fleet.tenant.post("/configuration-documents", &body).await };
    let (document, shown) = tokio::join!(create, heard(&device.machine, 0));
    let (document, shown) = (document?, shown?);
    ensure!(shown["version"] == 1 && shown["document"] == json!({"interval": 60, "unit": "s"}), "{shown}");
    stands(&fleet, &id, "pending", 1, 0).await?;
    ensure!(drifting(&fleet).await?.len() == 1);
    says(&device.machine, json!({"version": 1, "applied": true})).await?;
    stands(&fleet, &id, "applied", 1, 1).await?;
    ensure!(drifting(&fleet).await?.is_empty());

    // Nonsense does not get there.
    let refused = json!({"content": {"interval": 0}, "reason": "nonsense"});
    let path = format!("/configuration-documents/{}", text(&document, "id")?);
    let refused = fleet.tenant.call(Method::PUT, &path, &[("if-match", "*")], Some(&refused)).await?;
    ensure!(
        refused.problem() == "configuration_invalid" && refused.body["pointer"] == "/interval",
        "{:?}",
        refused.body
    );

    // The application cannot do it, says why, and that is seen.
    change(&fleet, &document, &json!({"content": {"interval": 10}, "reason": "faster"})).await?;
    let shown = heard(&device.machine, 1).await?;
    ensure!(shown["document"] == json!({"interval": 10}), "{shown}");
    says(&device.machine, json!({"version": 2, "applied": false, "reason": "the meter is too slow"})).await?;
    let shown = stands(&fleet, &id, "failed", 2, 1).await?;
    ensure!(shown["error"] == "the meter is too slow", "{shown}");
    let drift = fleet.cli(fleet.operator.token()).run(&["config", "drift"]).await?;
    ensure!(drift.stdout.contains("gateway") && drift.stdout.contains("the meter is too slow"), "{}", drift.stdout);

    // The agent is off while it is rolled back; when it is there again, so is what it had, and then what it is to have.
    device.machine.kill_agent()?;
    let rollback = json!({"version": 1, "reason": "as before"});
    let path = format!("{path}/rollback");
    let restored = fleet.tenant.call(Method::POST, &path, &[("if-match", "*")], Some(&rollback)).await?.success()?;
    ensure!(restored["version"] == 3 && restored["restores"] == 1, "{restored}");
    stands(&fleet, &id, "pending", 3, 1).await?;
    device.machine.power_on()?;
    let shown = heard(&device.machine, 2).await?;
    ensure!(shown["version"] == 3 && shown["document"]["unit"] == "s", "{shown}");
    says(&device.machine, json!({"version": 3, "applied": true})).await?;
    stands(&fleet, &id, "applied", 3, 3).await?;

    // What is on the disk outlives the agent, also without a server.
    device.machine.kill_agent()?;
    let log = fleet.tenant.get("/audit?limit=200").await?.to_string();
    for word in
        ["configuration.created", "configuration.changed", "configuration.rolled_back", "device.configuration_failed"]
    {
        ensure!(log.matches(word).count() == 1, "{word}: {log}");
    }
    fleet.server.kill()?;
    device.machine.power_on()?;
    let kept = wait_for("the agent to serve applications", LINK_LIMIT, async || {
        device.machine.ask("GET", "/v1/configuration", &Value::Null).await
    });
    ensure!(kept.await? == shown);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_say_which_devices_have_it_and_the_command_line_does_all_of_it() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let (north, south) = (fleet.device("north").await?, fleet.device("south").await?);
    let cli = fleet.cli(fleet.tenant.token());
    for device in [&north, &south] {
        let label = format!("site={}", device.name);
        cli.json(&["device", "set", &device.name, "--label", &label]).await?;
    }
    let file = fleet.path("document.json");
    let write = |content: Value| std::fs::write(&file, content.to_string());
    let path = file.to_str().context("a path of another kind")?.to_owned();
    let set = async |more: &[&str]| {
        let mut arguments = vec!["config", "set", "--file", &path, "--reason", "a test"];
        arguments.extend(more);
        cli.json(&arguments).await
    };
    write(json!({"interval": 60, "who": "all"}))?;
    set(&["--name", "base", "--selector", "site", "--priority", "-1"]).await?;
    write(json!({"who": "north"}))?;
    set(&["--name", "north", "--selector", "site=north"]).await?;
    for (device, version, who) in [(&north, 2, "north"), (&south, 1, "all")] {
        let shown = heard(&device.machine, version - 1).await?;
        ensure!(shown["document"] == json!({"interval": 60, "who": who}), "{shown}");
    }
    // A device moves, and what it is to have with it.
    cli.json(&["device", "set", "south", "--label", "site=north"]).await?;
    let shown = heard(&south.machine, 1).await?;
    ensure!(shown["version"] == 2 && shown["document"]["who"] == "north", "{shown}");
    says(&south.machine, json!({"version": 2, "applied": true})).await?;
    stands(&fleet, &south.id, "applied", 2, 2).await?;

    write(json!({"who": "nobody"}))?;
    set(&["--name", "north"]).await?;
    heard(&south.machine, 2).await?;
    let versions = cli.run(&["config", "versions", "--name", "north"]).await?;
    ensure!(versions.stdout.contains("a test"), "{}", versions.stdout);
    let back = ["config", "rollback", "--name", "north", "--to", "1", "--reason", "back"];
    cli.json(&back).await?;
    let shown = heard(&south.machine, 3).await?;
    ensure!(shown["version"] == 4 && shown["document"]["who"] == "north", "{shown}");
    let shown = cli.run(&["config", "show", "south"]).await?;
    ensure!(shown.stdout.contains("\"who\": \"north\"") && shown.stdout.contains("pending"), "{}", shown.stdout);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_polls_gets_it_with_a_poll_and_tells_with_one() -> anyhow::Result<()> {
    let set = vec!["poll.interval_seconds=2".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let middlebox = Middlebox::start(port::free()?, fleet.server.device, Passes::Everything).await?;
    let mut machine = fleet.new_machine_dialling("gateway", middlebox.address)?.polling_after(1)?;
    machine.enroll(&fleet.enrollment_token("gateway").await?)?;
    middlebox.set(Passes::WholeAnswers);
    machine.power_on()?;
    let id = text(&fleet.tenant.get("/devices").await?["items"][0], "id")?;
    let mut device = Device { id, name: "gateway".to_owned(), machine };
    let body = json!({"device_id": device.id, "content": {"interval": 60}, "reason": "first"});
    let document = fleet.tenant.post("/configuration-documents", &body).await?;
    let shown = heard(&device.machine, 0).await?;
    ensure!(shown["document"] == json!({"interval": 60}), "{shown}");
    says(&device.machine, json!({"version": 1, "applied": false, "reason": "not today"})).await?;
    let shown = stands(&fleet, &device.id, "failed", 1, 0).await?;
    ensure!(shown["error"] == "not today", "{shown}");
    device.machine.kill_agent()?;
    change(&fleet, &document, &json!({"content": {"interval": 5}, "reason": "r"})).await?;
    device.machine.power_on()?;
    ensure!(heard(&device.machine, 1).await?["version"] == 2);
    says(&device.machine, json!({"version": 2, "applied": true})).await?;
    stands(&fleet, &device.id, "applied", 2, 2).await?;

    // Over the link that comes about in the end, nothing is said or given anew.
    middlebox.set(Passes::Everything);
    wait_for("the device to be linked", Duration::from_secs(180), async || {
        let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["transport"] == "websocket", "{shown}");
        Ok(())
    })
    .await?;
    stands(&fleet, &device.id, "applied", 2, 2).await?;
    Ok(())
}
