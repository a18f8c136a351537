//! Statements of isolation, from tunnels and proofs of a real node to whoever checks them with nothing but the fleet's certificate.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use cloudlink_tests::api::text;
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::dial::Credentials;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};

/// Two rounds of proofs, ten seconds apart, and what a busy machine needs for them.
const PROVEN_LIMIT: Duration = Duration::from_secs(90);
const PAGE: &str = include_str!("../../docs/ISOLATION.md");

async fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&["isolation.proofs=true", "isolation.proof_interval_seconds=10"])).await
}

/// The content of today's statement, as the tenant's command line shows it.
async fn today(cli: &Cli) -> anyhow::Result<Value> {
    Ok(cli.json(&["isolation", "report", "--day", "today"]).await?["content"].take())
}

#[test]
fn a_day_with_tunnels_is_proven_and_anybody_can_check_that() -> anyhow::Result<()> {
    netns::test("a_day_with_tunnels_is_proven_and_anybody_can_check_that", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let cli = fleet.cli(fleet.tenant.token());
        ensure!(today(&cli).await?["conclusion"] == "no_tunnels");

        let (device, mut client) = fleet.client(&site, "gateway").await?;
        client.is_up(1).await?;
        let content = wait_for("two proofs", PROVEN_LIMIT, async || {
            let content = today(&cli).await?;
            ensure!(content["nodes"][0]["proofs"]["proven"].as_u64() >= Some(2), "{content}");
            Ok(content)
        })
        .await?;
        ensure!(content["conclusion"] == "proven" && content["complete"] == false, "{content}");
        ensure!(content["tenant"] == json!({ "id": fleet.tenant_id, "name": "customer" }), "{content}");
        let node = &content["nodes"][0];
        ensure!(content["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{content}");
        ensure!(
            node["attempts"].as_u64() >= Some(100) && node["policies"].as_array().is_some_and(|all| all.len() == 1)
        );
        ensure!(node["drifts"] == json!([]) && node["leaks"] == json!([]), "{node}");

        let file = fleet.path("statement.jws");
        let path = file.to_str().context("not UTF-8")?;
        let shown = cli.run(&["isolation", "report", "--day", "today", "--output", path]).await?;
        ensure!(shown.code == Some(0) && shown.stdout.contains("conclusion  proven"), "{shown:?}");
        check_everything(&fleet, &file, &device.credentials).await
    })
}

/// What a customer's security team would, and what somebody else would try.
async fn check_everything(fleet: &Fleet, file: &Path, device: &Credentials) -> anyhow::Result<()> {
    let (offline, ca) = (Cli::new(&fleet.path("nobody")), fleet.server.ca_file());
    let check = async |file: &Path, ca: &Path| -> anyhow::Result<Said> {
        let arguments = [Path::new("isolation"), Path::new("check"), file, Path::new("--ca"), ca];
        offline.run(&arguments).await
    };
    let valid = check(file, &ca).await?;
    ensure!(valid.code == Some(0) && valid.stdout.contains("Valid: signed by spiffe://"), "{valid:?}");
    let by_hand = as_the_page_shows(file, &ca)?;
    ensure!(by_hand.0 && by_hand.1.contains("\"conclusion\":\"proven\""), "{}", by_hand.1);

    let other_ca = fleet.path("other-ca.pem");
    std::fs::write(&other_ca, other_authority()?)?;
    let refused = check(file, &other_ca).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("not issued by the authority"), "{refused:?}");
    ensure!(!as_the_page_shows(file, &other_ca)?.0);

    let statement = std::fs::read_to_string(file)?;
    let parts: Vec<_> = statement.trim_end().split('.').collect();
    let [header, content, signature] = parts[..] else { anyhow::bail!("not three parts: {statement}") };
    let rewritten = rewrite(content, |content| content["conclusion"] = "leak".into())?;
    let forged_header = rewrite(header, |header| header["x5c"] = json!([BASE64.encode(&device.certificate)]))?;
    let signed_by_device = sign(&format!("{forged_header}.{content}"), device)?;
    let changed = fleet.path("changed.jws");
    for (name, text, why) in [
        ("another content", format!("{header}.{rewritten}.{signature}"), "the signature does not fit"),
        ("another header", format!("{forged_header}.{content}.{signature}"), "not one for statements"),
        ("another signature", format!("{header}.{content}.{}", "A".repeat(86)), "the signature does not fit"),
        ("a device's signature", signed_by_device.clone(), "not one for statements"),
        ("a part less", format!("{header}.{content}"), "not a JSON Web Signature"),
        ("nothing", String::new(), "not a JSON Web Signature"),
    ] {
        std::fs::write(&changed, &text)?;
        let refused = check(&changed, &ca).await?;
        ensure!(refused.code == Some(1) && refused.stderr.contains(why), "{name}: {refused:?}");
        ensure!(refused.stdout.is_empty(), "{name}: nothing of it is shown");
        ensure!(!as_the_page_shows(&changed, &ca)?.0, "{name}");
    }
    Ok(())
}

/// With a shell and openssl alone.
fn as_the_page_shows(file: &Path, ca: &Path) -> anyhow::Result<(bool, String)> {
    let script = PAGE.split_once("```sh\n#!/bin/sh\n").and_then(|(_, rest)| rest.split_once("```\n"));
    let (script, _) = script.context("the page has no script")?;
    let output = Command::new("sh").args(["-c", script, "check.sh"]).arg(file).arg(ca).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

/// One part of a statement with other values.
fn rewrite(part: &str, change: impl FnOnce(&mut Value)) -> anyhow::Result<String> {
    let mut value: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes())?)?;
    change(&mut value);
    Ok(BASE64URL_NOPAD.encode(value.to_string().as_bytes()))
}

/// What a device could do with its own key and certificate.
fn sign(signed: &str, device: &Credentials) -> anyhow::Result<String> {
    let pkcs8 = device.key.as_pkcs8_der();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der())?;
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes())?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref())))
}

/// The certificate of another fleet's authority.
fn other_authority() -> anyhow::Result<String> {
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "/dev/null",
        ])
        .args(["-subj", "/CN=another fleet", "-days", "30"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn statements_are_about_whose_tunnels_there_were_and_for_whom_they_are() -> anyhow::Result<()> {
    netns::test("statements_are_about_whose_tunnels_there_were_and_for_whom_they_are", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        client.is_up(1).await?;
        client.program().stop()?;
        fleet.wait_for_link(&device.id, "closed").await?;
        // Seconds of a tunnel are a day with tunnels.
        let cli = fleet.cli(fleet.tenant.token());
        let content = today(&cli).await?;
        ensure!(content["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{content}");
        ensure!(content["conclusion"] != "no_tunnels", "{content}");

        // A link without a tunnel has no IP path, and its tenant has nothing of what others did.
        let (other, other_id) = fleet.other_tenant("other customer").await?;
        let token = other.post("/enrollment-tokens", &json!({ "device_name": "sensor" })).await?;
        let mut machine = fleet.new_machine("sensor")?;
        machine.enroll(&text(&token, "token")?)?;
        machine.power_on()?;
        wait_for("a link of the other customer", PROVEN_LIMIT, async || {
            let devices = other.get("/devices").await?;
            ensure!(devices["items"][0]["link"]["state"] == "live", "{devices}");
            ensure!(devices["items"][0]["link"]["transport"] == "websocket", "{devices}");
            Ok(())
        })
        .await?;
        let theirs = today(&fleet.cli(other.token())).await?;
        ensure!(theirs["conclusion"] == "no_tunnels" && theirs["nodes"] == json!([]), "{theirs}");

        let admin = fleet.cli(fleet.admin.token());
        let by_name = admin.json(&["isolation", "report", "--tenant", "customer", "--day", "today"]).await?;
        ensure!(by_name["content"]["tenant"]["id"] == fleet.tenant_id.as_str(), "{by_name}");
        let said = admin.run(&["isolation", "report", "--day", "today"]).await?;
        ensure!(said.code == Some(2) && said.stderr.contains("--tenant"), "{said:?}");
        let operator = fleet.cli(fleet.operator.token());
        let said = operator.run(&["isolation", "report", "--tenant", &fleet.tenant_id, "--day", "today"]).await?;
        ensure!(said.code == Some(3), "{said:?}");
        let said = cli.run(&["isolation", "report", "--tenant", &other_id, "--day", "today"]).await?;
        ensure!(said.code == Some(4), "{said:?}");
        let said = cli.run(&["isolation", "report"]).await?;
        ensure!(said.code == Some(4) && said.stderr.contains("The tenant is there since"), "{said:?}");
        Ok(())
    })
}
