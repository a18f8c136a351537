//! The receipt of a grant: made by itself when the grant is over, and believed by somebody who has nothing but the fleet's
//! certificate and an export of the audit log.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};

/// For a receipt to be made of a grant that is over.
const MADE_LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn whoever_has_granted_access_can_show_what_was_done() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    let cli = fleet.cli(fleet.tenant.token());
    let other = fleet.grant(&device.id, &["metrics:read"]).await?;
    let grant = fleet.grant(&device.id, &["metrics:read", "service:restart"]).await?;
    let body = json!({ "kind": "metrics.collect", "reason": "a look", "grant_id": grant });
    let command = fleet.operator.post(&format!("/devices/{}/commands", device.id), &body).await?;
    fleet.finished(command["id"].as_str().context("no id")?).await?;

    let early = cli.run(&["receipt", "show", &grant]).await?;
    ensure!(early.code != Some(0) && early.stderr.contains("in_force"), "{early:?}");
    fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;
    let receipt = wait_for("the receipt", MADE_LIMIT, async || cli.json(&["receipt", "show", &grant]).await).await?;
    ensure!(
        receipt["grant"]["id"] == grant && receipt["grant"]["revoked_by"]["name"] == "customer user",
        "{receipt:#}"
    );
    let commands = receipt["commands"].as_array().context("no commands")?;
    ensure!(commands.len() == 1 && commands[0]["id"] == command["id"], "{receipt:#}");
    ensure!(commands[0]["state"] == "succeeded" && commands[0]["device"]["name"] == "gateway", "{receipt:#}");
    let actions: Vec<_> =
        receipt["audit"]["entries"].as_array().into_iter().flatten().map(|entry| &entry["action"]).collect();
    ensure!(
        actions.first() == Some(&&json!("grant.created")) && actions.contains(&&json!("grant.revoked")),
        "{actions:?}"
    );
    // The other one is not over.
    ensure!(cli.run(&["receipt", "show", &other]).await?.code != Some(0));

    verifies(&fleet, &cli, &grant).await
}

/// With files alone; and what somebody else would make of them.
async fn verifies(fleet: &Fleet, cli: &Cli, grant: &str) -> anyhow::Result<()> {
    let [receipt, log, changed] = ["receipt.jws", "audit.ndjson", "changed.ndjson"].map(|name| fleet.path(name));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("not UTF-8");
    let saved = cli.run(&["receipt", "show", grant, "--output", &text(&receipt)?]).await?;
    ensure!(saved.code == Some(0) && saved.stdout.contains("metrics.collect"), "{saved:?}");
    ensure!(cli.run(&["audit", "export", "--output", &text(&log)?]).await?.code == Some(0));

    let (offline, ca) = (Cli::new(&fleet.path("nobody")), fleet.server.ca_file());
    let verify = async |receipt: &Path, log: &Path| -> anyhow::Result<Said> {
        let (receipt, log, ca) = (text(receipt)?, text(log)?, text(&ca)?);
        offline.run(&["receipt", "verify", &receipt, "--audit", &log, "--ca", &ca]).await
    };
    let valid = verify(&receipt, &log).await?;
    ensure!(valid.code == Some(0) && valid.stdout.contains("The audit log is whole"), "{valid:?}");
    let lines: Vec<_> = valid.stdout.lines().collect();
    ensure!(
        lines.len() > 10 && lines[0].starts_with("Receipt for grant") && lines[1].starts_with("Made "),
        "{valid:?}"
    );

    // An entry less; the receipt's head is not there any more.
    let entries = std::fs::read_to_string(&log)?;
    let lines: Vec<&str> = entries.lines().collect();
    std::fs::write(&changed, lines[..lines.len() - 3].join("\n"))?;
    let cut = verify(&receipt, &changed).await?;
    ensure!(cut.code == Some(1) && cut.stderr.contains("do not say the same"), "{cut:?}");
    // Something in it is another word.
    std::fs::write(&changed, entries.replacen("a look", "a peek", 1))?;
    ensure!(verify(&receipt, &changed).await?.code == Some(1));
    // And a receipt in which somebody has changed the content.
    let signed = std::fs::read_to_string(&receipt)?;
    let mut parts: Vec<String> = signed.split('.').map(str::to_owned).collect();
    let content = data_encoding::BASE64URL_NOPAD.decode(parts[1].as_bytes())?;
    let mut content: Value = serde_json::from_slice(&content)?;
    content["commands"] = json!([]);
    parts[1] = data_encoding::BASE64URL_NOPAD.encode(content.to_string().as_bytes());
    std::fs::write(&changed, parts.join("."))?;
    let forged = verify(&changed, &log).await?;
    ensure!(forged.code == Some(1) && forged.stderr.contains("not valid"), "{forged:?}");
    Ok(())
}
