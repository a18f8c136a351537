//! The story: refused, granted, done and proven, revoked, refused again; a terminal with its recording and its receipt; then, where
//! that can be, the same commands through a tunnel.

use cloudlink_tests::api::text;
use cloudlink_tests::fleet::LINK_LIMIT;
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::netns;
use cloudlink_tests::poll::wait_for;

use crate::stage::{DEVICE, Expect, Person, Ports, Stage, chapter, shown};
use crate::{support, tunnel};

pub(crate) async fn run(ports: Ports) -> anyhow::Result<()> {
    chapter(
        "A fleet",
        "A server is started with its own Postgres, a new PKI, and nobody in it but the first administrator.",
    );
    let mut stage = Stage::set(ports, false).await?;
    println!("\n   devices dial {}, people call {}", stage.server.device, stage.server.api_url());
    stage.people().await?;

    chapter(
        "A device",
        "The customer makes a single-use token. With it, the device gets a certificate for a key that never leaves it.",
    );
    stage.enroll().await?;
    wait_for_link(&stage).await?;
    stage.cloudlink(Person::Customer, &["devices"], Expect::Success).await?;

    chapter("No grant, no command", "The operator sees the device, but may do nothing with it.");
    let metrics = ["metrics", DEVICE, "--reason", "the customer reports it as slow"];
    stage.cloudlink(Person::Operator, &metrics, Expect::Refusal).await?;

    chapter("The customer grants access", "For 15 minutes, to this operator, for this device, for three things.");
    let grant = ["grant", "create", "--device", DEVICE, "--operator", Person::Operator.profile(), "--for", "15m"];
    let scopes = ["--scope", "metrics:read", "--scope", "service:restart", "--scope", "device:reboot"];
    let reason = ["--reason", "find out why it is slow"];
    stage.cloudlink(Person::Customer, &[&grant[..], &scopes, &reason].concat(), Expect::Success).await?;

    chapter("The operator works", "Each command is stored, run at most once, and its result is stored with its proof.");
    stage.cloudlink(Person::Operator, &metrics, Expect::Success).await?;
    let restart = ["restart", DEVICE, SERVICE, "--reason", "it leaks memory"];
    stage.cloudlink(Person::Operator, &restart, Expect::Success).await?;
    anyhow::ensure!(stage.device.restarts() == 1, "the service was restarted {} times", stage.device.restarts());
    let before = stage.device.boot_id()?;
    let reboot = ["reboot", DEVICE, "--reason", "a new kernel is installed"];
    stage.cloudlink(Person::Operator, &reboot, Expect::Success).await?;
    let after = stage.device.boot_id()?;
    anyhow::ensure!(
        before != after && stage.device.reboots() == 1,
        "the device was rebooted {} times",
        stage.device.reboots()
    );
    println!("\n   It came back with another boot id: {before} before, {after} now.");

    chapter("What was not granted is refused", "Shutting down is another scope.");
    let shutdown = ["shutdown", DEVICE, "--reason", "no longer needed", "--yes"];
    stage.cloudlink(Person::Operator, &shutdown, Expect::Refusal).await?;

    chapter("The customer ends it", "Revoked is revoked, at once.");
    let grants = stage.ask(Person::Customer, &["grant", "list"]).await?;
    let id = text(&grants[0], "id")?;
    stage.cloudlink(Person::Customer, &["grant", "revoke", &id], Expect::Success).await?;
    stage.cloudlink(Person::Operator, &reboot, Expect::Refusal).await?;
    anyhow::ensure!(stage.device.reboots() == 1, "the device was rebooted {} times", stage.device.reboots());

    let receipt = support::run(&stage).await?;

    match netns::lacking() {
        None => tunnel::run(&stage).await?,
        Some(what) => println!("\n\n   Skipped, the same through the stock OpenVPN client: {what}."),
    }

    chapter(
        "What is left is the record",
        "Who did what under which grant, in a chain of hashes that can be checked without the server.",
    );
    stage.cloudlink(Person::Customer, &["commands"], Expect::Success).await?;
    let export = stage.path("audit.ndjson").display().to_string();
    stage.cloudlink(Person::Customer, &["audit"], Expect::Success).await?;
    stage.cloudlink(Person::Customer, &["audit", "export", "--output", &export], Expect::Success).await?;
    stage.cloudlink(Person::Customer, &["audit", "verify", &export], Expect::Success).await?;
    let (ca, receipt) = (shown(&stage.server.ca_file())?, shown(&receipt)?);
    let verify = ["receipt", "verify", &receipt, "--ca", &ca, "--audit", &export];
    stage.cloudlink(Person::Customer, &verify, Expect::Success).await?;

    stage.clear()?;
    chapter("The end", "Everything was stopped and removed. `make up` gives you the same fleet to try yourself.");
    Ok(())
}

/// Until the customer sees the device as live.
pub(crate) async fn wait_for_link(stage: &Stage) -> anyhow::Result<serde_json::Value> {
    wait_for("the device's link", LINK_LIMIT, async || {
        let shown = stage.ask(Person::Customer, &["device", "show", DEVICE]).await?;
        anyhow::ensure!(shown["link"]["state"] == "live", "{shown}");
        Ok(shown)
    })
    .await
}
