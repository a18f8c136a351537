//! A node that proves its isolation all the time: with devices of its own that nobody is shown, past both walls; and what it does
//! when something gets through.

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::api::Api;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use serde_json::{Value, json};

/// From the start, or from the end of one, until a round is over. Far above what it takes.
const ROUND_LIMIT: Duration = Duration::from_secs(30);
const EVERY: [&str; 2] = ["isolation.proofs=true", "isolation.proof_interval_seconds=10"];

async fn fleet(more: &[&str]) -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&[&EVERY, more].concat())).await
}

/// Waits for a round of which this is true, and gives it.
async fn round(admin: &Api, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    wait_for(what, ROUND_LIMIT, async || {
        let proofs = admin.get("/isolation/proofs").await?;
        let found = proofs["items"].as_array().into_iter().flatten().find(|proof| is_it(proof)).cloned();
        found.ok_or_else(|| anyhow::anyhow!("{proofs}"))
    })
    .await
}

fn nft(rules: &str) -> anyhow::Result<()> {
    let done = Command::new("nft").args(rules.split_whitespace()).output()?;
    ensure!(done.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

async fn metric(fleet: &Fleet, name: &str) -> anyhow::Result<f64> {
    let (_, text) = fleet.server.operations("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.ok_or_else(|| anyhow::anyhow!("there is no {name}"))?.parse()?)
}

#[test]
fn isolation_is_proven_at_the_start_and_on_demand_by_devices_that_nobody_sees() -> anyhow::Result<()> {
    netns::test("isolation_is_proven_at_the_start_and_on_demand_by_devices_that_nobody_sees", async || {
        let fleet = fleet(&[]).await?;
        let first = round(&fleet.admin, "the first round", |proof| proof["trigger"] == "start").await?;
        ensure!(first["outcome"] == "proven", "{first:#}");
        ensure!(first["attempts"].as_i64() > Some(30_000), "{first:#}");

        let asked = fleet.admin.post("/isolation/proofs", &json!({})).await?;
        ensure!(asked["outcome"] == "proven" && asked["trigger"] == "demand", "{asked:#}");
        let id = asked["id"].as_str().unwrap_or_default();
        let kept = fleet.admin.get(&format!("/isolation/proofs/{id}")).await?;
        ensure!(kept == asked, "{kept:#} is not {asked:#}");

        let cli = fleet.cli(fleet.admin.token());
        let said = cli.run(&["isolation", "prove"]).await?;
        ensure!(said.code == Some(0) && said.stdout.contains("proven"), "{said:?}");
        let listed = cli.json(&["isolation", "proofs", "--outcome", "proven"]).await?;
        ensure!(listed.as_array().is_some_and(|proofs| proofs.len() >= 3), "{listed}");

        for api in [&fleet.admin, &fleet.operator, &fleet.tenant] {
            let devices = api.get("/devices").await?;
            ensure!(devices["items"].as_array().is_some_and(Vec::is_empty), "{devices}");
        }
        let tenants = fleet.admin.get("/tenants").await?;
        ensure!(tenants["items"].as_array().is_some_and(|tenants| tenants.len() == 1), "{tenants}");
        for name in ["cloudlink_tunnels_live", "cloudlink_tunnels_opened_total"] {
            let count = metric(&fleet, name).await?;
            ensure!(count == 0.0, "{name} is {count}");
        }
        ensure!(metric(&fleet, "cloudlink_isolation_proven_timestamp_seconds").await? > 1.0e9);
        ensure!(metric(&fleet, "cloudlink_isolation_leaks_total").await? == 0.0);
        Ok(())
    })
}

#[test]
fn probes_have_tunnels_under_whatever_is_around_control_packets() -> anyhow::Result<()> {
    netns::test("probes_have_tunnels_under_whatever_is_around_control_packets", async || {
        for wrapping in ["tls-auth", "tls-crypt", "tls-crypt-v2"] {
            let fleet = fleet(&[&format!("tunnel.wrapping={wrapping}")]).await?;
            let first = round(&fleet.admin, "the first round", |proof| proof["trigger"] == "start").await?;
            ensure!(first["outcome"] == "proven", "{wrapping}: {first:#}");
        }
        Ok(())
    })
}

/// Rules of somebody else, in front of everything that the node can set: what a device sends to the Internet gets there.
const LEAK: &str = r#"
table netdev leak {
    chain ingress {
        type filter hook ingress device "cloudlink0" priority -500; policy accept;
        ip daddr 192.0.2.66 fwd to "cloudlink0-x"
    }
}
"#;

#[test]
fn a_leak_makes_the_node_unready_until_a_whole_round_is_proven_again() -> anyhow::Result<()> {
    netns::test("a_leak_makes_the_node_unready_until_a_whole_round_is_proven_again", async || {
        let fleet = fleet(&[]).await?;
        round(&fleet.admin, "the first round", |proof| proof["outcome"] == "proven").await?;
        let rules = tempfile::NamedTempFile::new()?;
        std::fs::write(rules.path(), LEAK)?;
        let done = Command::new("nft").arg("-f").arg(rules.path()).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

        let leak = round(&fleet.admin, "a leak", |proof| proof["outcome"] == "leak").await?;
        let wrong = |kind: &str| {
            let results = leak["results"].as_array().into_iter().flatten();
            results.filter(|result| result["kind"] == kind).any(|result| result["wrong"].as_i64() > Some(0))
        };
        ensure!(wrong("internet") && !wrong("device") && !wrong("ports"), "{leak:#}");
        let (status, body) = fleet.server.operations("/readyz").await?;
        ensure!(status == 503 && body.contains("leaking"), "{status} {body}");
        ensure!(metric(&fleet, "cloudlink_isolation_leaks_total").await? >= 1.0);
        let audit = fleet.admin.get("/audit").await?.to_string();
        ensure!(audit.contains("isolation.leak"), "{audit}");

        nft("delete table netdev leak")?;
        wait_for("a node that is ready again", ROUND_LIMIT, async || {
            let (status, body) = fleet.server.operations("/readyz").await?;
            ensure!(status == 200, "{status}: {body}");
            Ok(())
        })
        .await?;
        wait_for("an entry about the end", ROUND_LIMIT, async || {
            let audit = fleet.admin.get("/audit").await?.to_string();
            ensure!(audit.contains("isolation.leak_ended"), "{audit}");
            Ok(())
        })
        .await
    })
}
