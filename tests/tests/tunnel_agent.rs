//! The main job through a tunnel: from the agent's link on, all is the same as without one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT};
use cloudlink_tests::machine::{Machine, SERVICE};
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::openvpn::UP;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where agents find their link, unless configured otherwise.
const LINK_PORT: u16 = 80;

async fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&[])).await
}

/// Waits until an agent answers on the device's tunnel, or no longer does.
async fn has_agent(fleet: &Fleet, device: &str, has_agent: bool) -> anyhow::Result<Value> {
    wait_for(&format!("has_agent to be {has_agent}"), LINK_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        let link = &shown["link"];
        ensure!(link["state"] == "live" && link["has_agent"] == has_agent, "{shown}");
        ensure!(link["transport"] == "openvpn" && shown["tunnel"] != Value::Null, "{shown}");
        Ok(shown)
    })
    .await
}

/// What the vendor does with a device once it may.
async fn is_worked_on(fleet: &Fleet, device: &str, machine: &Machine) -> anyhow::Result<()> {
    let grant = fleet.grant(device, &["metrics:read", "service:restart", "device:reboot"]).await?;
    let command = fleet.command(device, "metrics.collect", &json!({})).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded" && done["grant_id"] == grant.as_str(), "{done}");
    ensure!(done["data"]["uptime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{done}");

    let restarts = machine.restarts();
    let command = fleet.command(device, "service.restart", &json!({ "service": SERVICE })).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded" && machine.restarts() == restarts + 1, "{done}");

    let (before, reboots) = (machine.boot_id()?, machine.reboots());
    let command = fleet.command(device, "device.reboot", &json!({})).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded" && machine.reboots() == reboots + 1, "{done}");
    let after = machine.boot_id()?;
    ensure!(before != after && done["proof"].to_string().contains(&after), "{done}");

    fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;
    let body = json!({ "kind": "device.reboot", "arguments": {}, "reason": "once more" });
    let refused = fleet.operator.command(device, &body).await?;
    ensure!(refused.problem() == "grant_required", "{:?}", refused.body);
    ensure!(machine.reboots() == reboots + 1);
    Ok(())
}

#[test]
fn an_agent_beside_a_stock_client_makes_a_device_of_it() -> anyhow::Result<()> {
    netns::test("an_agent_beside_a_stock_client_makes_a_device_of_it", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let device = fleet.enrolled("gateway").await?;
        let profile = fleet.issued_profile(&device).await?;
        let mut client = fleet.start_client(&site, "gateway", &profile)?;
        let tunnel = client.is_up(1).await?;
        ensure!(tunnel.interface == "tun0", "{tunnel:?}");
        let alone = has_agent(&fleet, &device.id, false).await?;
        ensure!(alone["link"]["epoch"] == 1, "{alone}");

        // Never enrolled: the tunnel is all that it has.
        let mut machine = fleet.new_machine("machine")?.at(&site).through_tunnel("interface = \"tun0\"")?;
        machine.power_on()?;
        let linked = has_agent(&fleet, &device.id, true).await?;
        let link = &linked["link"];
        ensure!(link["epoch"] == 2 && link["boot_id"] == machine.boot_id()?.as_str(), "{linked}");
        ensure!(linked["tunnel"]["ipv4"] == tunnel.ipv4.to_string(), "{linked}");
        is_worked_on(&fleet, &device.id, &machine).await?;
        has_agent(&fleet, &device.id, true).await?;
        let said = fleet.cli(fleet.tenant.token()).run(&["devices"]).await?.stdout;
        ensure!(said.contains("openvpn") && !said.contains("no agent"), "{said}");

        // The agent goes, the tunnel stays.
        machine.stop()?;
        has_agent(&fleet, &device.id, false).await?;
        fleet.grant(&device.id, &["device:reboot"]).await?;
        let body = json!({ "kind": "device.reboot", "arguments": {}, "reason": "a test" });
        ensure!(fleet.operator.command(&device.id, &body).await?.problem() == "no_agent");
        machine.power_on()?;
        has_agent(&fleet, &device.id, true).await?;
        ensure!(client.log_text()?.matches(UP).count() == 1, "the tunnel was cut: {}", client.log_text()?);

        // The tunnel goes, and takes the link with it at once.
        client.kill()?;
        fleet.wait_for_link(&device.id, "closed").await?;
        client.start_again()?;
        client.is_up(2).await?;
        has_agent(&fleet, &device.id, true).await?;
        Ok(())
    })
}

#[test]
fn an_agent_with_a_client_of_its_own_does_the_main_job() -> anyhow::Result<()> {
    netns::test("an_agent_with_a_client_of_its_own_does_the_main_job", async || {
        let mut fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let mut machine = fleet.new_machine("gateway")?.at(&site).through_tunnel("start = true")?;
        machine.enroll(&fleet.enrollment_token("gateway").await?)?;
        machine.power_on()?;
        let device = wait_for("the device", LINK_LIMIT, async || {
            let devices = fleet.tenant.get("/devices").await?;
            Ok(devices["items"][0]["id"].as_str().context("nobody is there")?.to_owned())
        })
        .await?;
        has_agent(&fleet, &device, true).await?;
        is_worked_on(&fleet, &device, &machine).await?;

        // The server goes without a word, and comes back: so does the link.
        fleet.server.kill()?;
        fleet.server.start_again().await?;
        has_agent(&fleet, &device, true).await?;
        fleet.grant(&device, &["metrics:read"]).await?;
        let command = fleet.command(&device, "metrics.collect", &json!({})).await?;
        let done = fleet.finished(&command).await?;
        ensure!(done["state"] == "succeeded", "{done}");

        // Revoked: both end. The client ends with its agent.
        fleet.tenant.post(&format!("/devices/{device}/revoke"), &json!({})).await?;
        fleet.wait_for_link(&device, "closed").await?;
        machine.stop()?;
        ensure!(!site.sh("ip -br link")?.contains("cloudlink"), "the tunnel's interface is still there");
        Ok(())
    })
}

#[test]
fn the_link_in_a_tunnel_is_for_tunnels_only() -> anyhow::Result<()> {
    netns::test("the_link_in_a_tunnel_is_for_tunnels_only", async || {
        let fleet = fleet().await?;
        let (site, elsewhere) = (Arc::new(Site::join()?), Site::join()?);
        let (_, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        let ask = async || {
            let mut stream = TcpStream::connect((tunnel.gateway_ipv4, LINK_PORT)).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let asked = async || Ok(tokio::time::timeout(Duration::from_secs(3), ask()).await);
        let answer = site.run(asked)???;
        ensure!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        // From the Internet, to the same address: nobody is there.
        let refused = elsewhere.run(asked)?;
        ensure!(!matches!(refused, Ok(Ok(_))), "{refused:?}");
        // For the host itself somebody is there, as the kernel sees it, and does not listen.
        let cut = asked().await?;
        ensure!(!matches!(&cut, Ok(Ok(answer)) if !answer.is_empty()), "{cut:?}");
        Ok(())
    })
}
