//! The kernel's rules around a real server: in force while it lives, put right when somebody changes them, and told of.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::openvpn::Pings;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::program::binary;
use cloudlink_tests::server::{Runner, Settings};
use cloudlink_tests::traffic::metric;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

/// From a change to its repair, on a machine that does much else besides.
const REPAIR_LIMIT: Duration = Duration::from_secs(10);
/// What is promised.
const REPAIR_PROMISED: Duration = Duration::from_secs(1);
/// For a client to notice that it was cut off, and to come again.
const BACK_LIMIT: Duration = Duration::from_secs(60);

/// The same program asks about isolation: its exit code, and what it said.
fn asked(fleet: &Fleet, verb: &[&str]) -> anyhow::Result<(i32, String)> {
    let output = fleet.server.command(&[&["isolation"], verb].concat())?.output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().context("killed")?, String::from_utf8(said)?))
}

fn nft(arguments: &str) -> anyhow::Result<String> {
    let output = Command::new("nft").args(arguments.split_whitespace()).output()?;
    ensure!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

async fn drifts(fleet: &Fleet, kind: &str) -> anyhow::Result<f64> {
    let metrics = fleet.server.operations("/metrics").await?.1;
    metric(&metrics, "cloudlink_isolation_drifts_total", &format!("kind=\"{kind}\""))
}

async fn readiness(fleet: &Fleet) -> anyhow::Result<(u16, Value)> {
    let (status, report) = fleet.server.operations("/readyz").await?;
    Ok((status, serde_json::from_str(&report)?))
}

#[test]
fn the_live_rules_are_shown_compared_and_put_right() -> anyhow::Result<()> {
    netns::test("the_live_rules_are_shown_compared_and_put_right", async || {
        nft("add table inet other")?;
        nft("add chain inet other input { type filter hook input priority 0 ; }")?;
        nft("add rule inet other input counter")?;
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (_, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        Pings::default().come_back(&client, &tunnel).await?;

        let (code, shown) = asked(&fleet, &["show"])?;
        ensure!(code == 0 && shown.contains("the link's port on the node"), "{code}: {shown}");
        ensure!(shown.contains("anything at all: this host forwards nothing"), "{shown}");
        ensure!(!shown.contains("UNKNOWN"), "{shown}");
        let (code, shown) = asked(&fleet, &["show", "--json"])?;
        let shown: Value = serde_json::from_str(&shown)?;
        let pings = shown["rules"].as_array().context("no rules")?.iter();
        let pings = pings.filter(|rule| rule["what"] == "a ping" && rule["packets"].as_u64() >= Some(3)).count();
        ensure!(code == 0 && pings == 2, "{shown}");
        let (code, said) = asked(&fleet, &["verify"])?;
        ensure!(code == 0, "{code}: {said}");
        let (status, report) = readiness(&fleet).await?;
        ensure!(status == 200 && report["isolation"] == "enforced", "{report}");

        // Nobody repairs anything while the server is stopped, and nothing passes either.
        let mut fleet = fleet;
        fleet.server.program().signal(Signal::SIGSTOP)?;
        nft("insert rule inet cloudlink cl_enter accept")?;
        let (code, said) = asked(&fleet, &["verify"])?;
        ensure!(code == 1 && said.contains("rules: chain \"cl_enter\": the rule"), "{code}: {said}");
        let (code, said) = asked(&fleet, &["show"])?;
        ensure!(code == 0 && said.contains("UNKNOWN"), "{said}");
        nft("delete table inet cloudlink")?;
        std::fs::write("/proc/sys/net/ipv4/conf/cloudlink0/forwarding", "1")?;
        let (code, said) = asked(&fleet, &["verify", "--json"])?;
        let said: Value = serde_json::from_str(&said)?;
        ensure!(code == 1 && said["equal"] == false, "{said}");
        let words = said["differences"].to_string();
        ensure!(words.contains("the table is missing") && words.contains("conf/cloudlink0/forwarding"), "{said}");
        ensure!(Pings::default().send(&site, &tunnel.interface, tunnel.gateway_ipv4).await? == 0);

        let begun = Instant::now();
        fleet.server.program().signal(Signal::SIGCONT)?;
        wait_for("the repair", REPAIR_LIMIT, async || {
            let (code, said) = asked(&fleet, &["verify"])?;
            ensure!(code == 0, "{code}: {said}");
            Ok(())
        })
        .await?;
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("repaired within {:?} of its going on\n", begun.elapsed()),
        );
        wait_for("the drifts to be counted", REPAIR_LIMIT, async || {
            let (rules, settings) = (drifts(&fleet, "rules").await?, drifts(&fleet, "setting").await?);
            ensure!(rules >= 1.0 && settings >= 1.0, "{rules} {settings}");
            Ok(())
        })
        .await?;
        ensure!(nft("list table inet other")?.contains("hook input"), "what is others' was touched");
        Pings::default().come_back(&client, &tunnel).await?;

        // While it runs, each change is found by itself.
        for change in ["flush table inet cloudlink", "delete table inet cloudlink"] {
            let (begun, before) = (Instant::now(), drifts(&fleet, "rules").await?);
            nft(change)?;
            wait_for("the repair", REPAIR_LIMIT, async || {
                ensure!(drifts(&fleet, "rules").await? > before);
                ensure!(nft("list table inet cloudlink")?.contains("policy drop"));
                Ok(())
            })
            .await?;
            ensure!(begun.elapsed() < REPAIR_PROMISED, "{change}: {:?}", begun.elapsed());
        }
        ensure!(asked(&fleet, &["verify"])?.0 == 0);
        wait_for("the audit log", REPAIR_LIMIT, async || {
            let audit = fleet.admin.get("/audit?limit=50").await?.to_string();
            ensure!(audit.matches("isolation.drift").count() >= 2, "{audit}");
            // What a look that was under way when the server was stopped had seen, or what was there when it went on.
            ensure!(audit.contains("the table is missing") || audit.contains("is not declared"), "{audit}");
            Ok(())
        })
        .await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(client.complaints()?.is_empty(), "{:?}", client.complaints()?);

        // Without the right to look, it cannot be told.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
        let asks = fleet.server.command(&["isolation", "verify"])?;
        let output = command.arg(asks.get_program()).args(asks.get_args()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains("CAP_NET_ADMIN"), "{:?}: {said}", output.status);
        Ok(())
    })
}

#[test]
fn the_rules_outlive_a_server_that_is_killed_and_go_with_one_that_stops() -> anyhow::Result<()> {
    netns::test("the_rules_outlive_a_server_that_is_killed_and_go_with_one_that_stops", async || {
        let mut fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (_, mut client) = fleet.client(&site, "gateway").await?;
        client.is_up(1).await?;
        fleet.server.kill()?;
        ensure!(nft("list table inet cloudlink")?.contains("policy drop"));
        let (code, said) = asked(&fleet, &["verify"])?;
        ensure!(code == 0 && said.contains("there is no interface"), "{code}: {said}");

        fleet.server.start_again().await?;
        let (code, said) = asked(&fleet, &["verify"])?;
        ensure!(code == 0 && !said.contains("there is no interface"), "{code}: {said}");
        let tunnel = client.is_up(2).await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(drifts(&fleet, "rules").await? == 0.0, "its own rules are no drift");

        drop(client);
        ensure!(fleet.server.stop()?.success(), "{}", fleet.server.log_text()?);
        ensure!(!nft("list tables")?.contains("cloudlink"), "{}", fleet.server.log_text()?);
        let (code, said) = asked(&fleet, &["verify"])?;
        ensure!(code == 2 && said.contains("no policy is in force"), "{code}: {said}");
        Ok(())
    })
}

#[test]
fn while_the_rules_cannot_be_set_there_are_no_tunnels() -> anyhow::Result<()> {
    netns::test("while_the_rules_cannot_be_set_there_are_no_tunnels", async || {
        let programs = cloudlink_tests::fleet::directory()?;
        let nft_of_test = |script: &str| put(programs.path(), script);
        nft_of_test("#!/bin/sh\nexec /usr/sbin/nft \"$@\"\n")?;
        let path = format!("PATH={}:{}", programs.path().display(), std::env::var("PATH")?);
        let runner = Runner { user: geteuid(), command: vec!["env".to_owned(), path, program("cloudlinkd")?] };
        let fleet = Fleet::start_with(&Settings { runner: Some(runner), ..Settings::with_tunnels(&[]) }).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        client.is_up(1).await?;
        fleet.wait_for_link(&device.id, "live").await?;

        nft_of_test("#!/bin/sh\necho 'no more of that' >&2\nexit 1\n")?;
        let begun = Instant::now();
        nft("flush table inet cloudlink")?;
        wait_for("the node not to be ready", REPAIR_LIMIT, async || {
            let (status, report) = readiness(&fleet).await?;
            ensure!(status == 503 && report["isolation"] == "unrepairable", "{report}");
            Ok(())
        })
        .await?;
        let took = begun.elapsed();
        wait_for("no tunnel", REPAIR_LIMIT, async || {
            let metrics = fleet.server.operations("/metrics").await?.1;
            ensure!(metric(&metrics, "cloudlink_tunnels_live", "")? == 0.0);
            ensure!(metric(&metrics, "cloudlink_isolation_enforced", "")? == 0.0);
            Ok(())
        })
        .await?;
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("not ready after {took:?}, without tunnels after {:?}\n", begun.elapsed()),
        );
        wait_for("a refused client", BACK_LIMIT, async || {
            let metrics = fleet.server.operations("/metrics").await?.1;
            let refused = "reason=\"isolation\"";
            ensure!(metric(&metrics, "cloudlink_device_handshake_failures_total", refused)? >= 1.0, "{metrics}");
            Ok(())
        })
        .await?;

        nft_of_test("#!/bin/sh\nexec /usr/sbin/nft \"$@\"\n")?;
        wait_for("the node to be ready", REPAIR_LIMIT, async || {
            let (status, report) = readiness(&fleet).await?;
            ensure!(status == 200, "{report}");
            Ok(())
        })
        .await?;
        let tunnel = client.is_up(2).await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(asked(&fleet, &["verify"])?.0 == 0);
        Ok(())
    })
}

fn program(name: &str) -> anyhow::Result<String> {
    let path = binary(name)?;
    Ok(path.to_str().context("not UTF-8")?.to_owned())
}

/// A program of the test's own in place of `nft`. At once: the server may be about to start it.
fn put(directory: &Path, script: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (new, program) = (directory.join("nft.new"), directory.join("nft"));
    std::fs::write(&new, script)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    Ok(std::fs::rename(new, program)?)
}
