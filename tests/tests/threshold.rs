//! Thresholds: from what an agent measures to what a webhook is told, and what is held back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_proto::ids::TenantId;
use cloudlink_proto::link::message::{MetricsReport, device_message};
use cloudlink_tests::api::text;
use cloudlink_tests::clock;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::load::fleet::{Fleet as Keys, new_authority};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::receiver::{Behaviour, Receiver};
use cloudlink_tests::server::Settings;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use uuid::Uuid;

/// A rule is looked at every ten seconds, by a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(90);

/// What was told, of each event once, whatever was sent again.
fn told(receiver: &Receiver, secret: &str) -> anyhow::Result<Vec<Value>> {
    let mut ids = Vec::new();
    let mut events = Vec::new();
    for request in receiver.requests() {
        let id = request.header("webhook-id")?.to_owned();
        if !ids.contains(&id) {
            ids.push(id);
            events.push(request.verified(secret)?);
        }
    }
    Ok(events)
}

fn names(event: &Value) -> Vec<&str> {
    event["data"]["devices"].as_array().into_iter().flatten().filter_map(|device| device["name"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_measures_is_told_once_and_the_next_of_its_site_is_held_back() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let authority = new_authority(clock::now())?;
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, authority.certificate_pem())?;
    let keys = Keys::issue(authority, &"cloudlink.test".parse()?, TenantId::from_uuid(Uuid::nil()), 0, clock::now())?;
    let credential = keys.issue_server(clock::now())?;
    let certificate = CertificateDer::from_pem_slice(credential.certificate_pem.as_bytes())?;
    let key = PrivateKeyDer::Pkcs8(credential.key.as_pkcs8_der().clone_key());
    let receiver = Receiver::start(port::free()?, certificate, key, Behaviour::Answer(200)).await?;
    let set = vec![
        "notice.webhook_private=true".to_owned(),
        format!("notice.webhook_ca_file={}", ca_file.display()),
        "link.metrics_interval_seconds=1".to_owned(),
    ];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let events = ["metric.threshold_crossed", "metric.threshold_cleared"];
    let webhook = fleet.tenant.post("/webhooks", &json!({"url": receiver.url("/"), "events": events})).await?;
    let secret = text(&webhook, "secret")?;
    let device = fleet.device("gateway").await?;
    let cli = fleet.cli(fleet.tenant.token());
    let at_site = async |name: &str| {
        let labelled = cli.run(&["device", "set", name, "--label", "site=north"]).await?;
        ensure!(labelled.code == Some(0), "{labelled:?}");
        Ok(())
    };
    at_site("gateway").await?;

    // From the command line; any machine has been up for longer.
    let create = [
        "threshold",
        "create",
        "up",
        "--metric",
        "uptime_seconds",
        "--above",
        "2",
        "-l",
        "site",
        "--severity",
        "critical",
    ];
    let created = cli.json(&[&create[..], &["--hold-down", "1h"]].concat()).await?;
    ensure!(created["hold_down_seconds"] == 3600, "{created}");
    let refused =
        cli.run(&["threshold", "create", "all", "--metric", "uptime_seconds", "--above", "2", "-l", ""]).await?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("empty"), "{refused:?}");
    let first = wait_for("the crossing to be told", LIMIT, async || {
        told(&receiver, &secret)?.into_iter().next().context("nothing was told")
    })
    .await?;
    ensure!(first["type"] == "metric.threshold_crossed" && first["tenant_id"] == json!(fleet.tenant_id), "{first}");
    let data = &first["data"];
    ensure!(data["count"] == 1 && names(&first) == ["gateway"] && data["site"] == "north", "{first}");
    ensure!(data["threshold"]["id"] == created["id"] && data["threshold"]["severity"] == "critical", "{first}");
    ensure!(data["devices"][0]["device_id"] == json!(device.id), "{first}");
    ensure!(data["devices"][0]["value"].as_f64().is_some_and(|uptime| uptime > 2.0), "{first}");

    // Another device of the site crosses it, too: seen at once, and not told.
    let second = fleet.enrolled("neighbour").await?;
    at_site("neighbour").await?;
    let (mut link, _) = fleet.live(&second).await?;
    let report = MetricsReport { uptime_seconds: Some(1000), ..MetricsReport::default() };
    link.send(device_message::Kind::Metrics(report)).await?;
    let alerts = wait_for("two alerts", LIMIT, async || {
        let alerts = cli.json(&["alerts", "--firing"]).await?;
        ensure!(alerts.as_array().is_some_and(|alerts| alerts.len() == 2), "{alerts}");
        Ok(alerts)
    })
    .await?;
    ensure!(alerts[0]["device_name"] == "neighbour" && alerts[0]["is_told"] == false, "{alerts}");
    ensure!(alerts[0]["site"] == "north" && alerts[1]["is_told"] == true, "{alerts}");
    ensure!(told(&receiver, &secret)?.len() == 1, "the hold-down is not over");

    // By what the rule says now, both are clear. Of the one of which nobody has heard, there is nothing to be told yet.
    let raised = cli.run(&["threshold", "set", "up", "--above", "1e12", "--clear", "1e12"]).await?;
    ensure!(raised.code == Some(0), "{raised:?}");
    let end = wait_for("the end to be told", LIMIT, async || {
        told(&receiver, &secret)?.into_iter().nth(1).context("nothing more was told")
    })
    .await?;
    ensure!(end["type"] == "metric.threshold_cleared" && names(&end) == ["gateway"], "{end}");
    let deleted = cli.run(&["threshold", "delete", "up", "--yes"]).await?;
    ensure!(deleted.code == Some(0), "{deleted:?}");
    let alerts = cli.run(&["alerts"]).await?;
    ensure!(alerts.code == Some(0) && !alerts.stdout.contains("gateway"), "{alerts:?}");
    let audit = fleet.tenant.get("/audit?limit=50").await?.to_string();
    ensure!(
        ["created", "updated", "deleted"].iter().all(|what| audit.contains(&format!("threshold.{what}"))),
        "{audit}"
    );
    Ok(())
}
