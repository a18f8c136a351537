//! An agent that starts an OpenVPN client of its own, against the server: certificates, wrapping keys, a proxy in between.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::certificate;
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT};
use cloudlink_tests::machine::Machine;
use cloudlink_tests::netns::{self, SERVER_IPV4, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic;
use serde_json::{Value, json};

const NAME: &str = "gateway";
/// From the end of a tunnel until the agent knows that there will be no other.
const REFUSED_LIMIT: Duration = Duration::from_secs(60);

/// A device at a site, enrolled, with a client of its own, that has not been switched on.
async fn enrolled(fleet: &Fleet, site: &Arc<Site>, openvpn: &str) -> anyhow::Result<(Machine, String)> {
    let machine = fleet.new_machine(NAME)?.at(site);
    let text = std::fs::read_to_string(machine.config_file())?;
    let text = text
        .replace("[server]\n", &format!("[openvpn]\nstart = true\n{openvpn}\n\n[server]\ntransport = \"openvpn\"\n"));
    std::fs::write(machine.config_file(), text)?;
    machine.enroll(&fleet.enrollment_token(NAME).await?)?;
    let devices = fleet.tenant.get("/devices").await?;
    let id = devices["items"][0]["id"].as_str().context("nobody is enrolled")?.to_owned();
    Ok((machine, id))
}

async fn has_agent(fleet: &Fleet, device: &str, machine: &Machine) -> anyhow::Result<Value> {
    wait_for("an agent in a tunnel", LINK_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        let link = &shown["link"];
        ensure!(link["state"] == "live" && link["has_agent"] == true, "{shown}\n{}", machine.log_text()?);
        ensure!(link["transport"] == "openvpn", "{shown}");
        Ok(shown)
    })
    .await
}

async fn is_measured(fleet: &Fleet, device: &str) -> anyhow::Result<()> {
    let command = fleet.command(device, "metrics.collect", &json!({})).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded", "{done}");
    Ok(())
}

#[test]
fn a_renewed_certificate_comes_through_the_tunnel_and_makes_the_next_one() -> anyhow::Result<()> {
    netns::test("a_renewed_certificate_comes_through_the_tunnel_and_makes_the_next_one", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (mut machine, device) = enrolled(&fleet, &site, "").await?;
        let old = certificate::age(&fleet, &machine, &device).await?;
        machine.power_on()?;
        let renewed = certificate::renewed(&machine, &old).await?;
        has_agent(&fleet, &device, &machine).await?;
        fleet.grant(&device, &["metrics:read"]).await?;
        is_measured(&fleet, &device).await?;
        let known = certificate::known(&fleet, &device).await?;
        ensure!(known == [(old, "superseded".to_owned()), (renewed, "active".to_owned())], "{known:?}");

        // The new one serves for the next tunnels, too.
        machine.kill_agent()?;
        let links = machine.log_text()?.matches("link open").count();
        machine.power_on()?;
        wait_for("another link", LINK_LIMIT, async || {
            ensure!(machine.log_text()?.matches("link open").count() > links, "{}", machine.log_text()?);
            Ok(())
        })
        .await?;
        has_agent(&fleet, &device, &machine).await?;
        is_measured(&fleet, &device).await
    })
}

#[test]
fn a_device_behind_a_proxy_brings_the_key_that_its_profile_has() -> anyhow::Result<()> {
    netns::test("a_device_behind_a_proxy_brings_the_key_that_its_profile_has", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&["tunnel.wrapping=tls-crypt-v2"])).await?;
        let site = Arc::new(Site::join()?);
        let proxy = std::net::SocketAddr::from((site.router_ipv4, 3128));
        let key = fleet.path("wrapping.key");
        let openvpn = format!(
            "wrapping = \"tls-crypt-v2\"\nwrapping_key = \"{}\"\nhttp_proxy = \"{proxy}\"\ninterface = \"cla-vpn\"",
            key.display()
        );
        let (mut machine, device) = enrolled(&fleet, &site, &openvpn).await?;
        let profile = fleet.path("profile.ovpn");
        let output = profile.to_str().context("not UTF-8")?;
        let said =
            fleet.cli(fleet.tenant.token()).run(&["device", "openvpn-profile", &device, "--output", output]).await?;
        ensure!(said.code == Some(0), "{said:?}");
        let profile = std::fs::read_to_string(&profile)?;
        let (_, inline) = profile.split_once("<tls-crypt-v2>\n").context("no key in the profile")?;
        std::fs::write(&key, inline.split_once("</tls-crypt-v2>").context("half a key")?.0)?;

        // The proxy is the only way.
        let _proxy = traffic::proxy(proxy, &fleet.path("")).await?;
        site.sh(&format!("ip route add prohibit {SERVER_IPV4}/32"))?;
        machine.power_on()?;
        has_agent(&fleet, &device, &machine).await?;
        fleet.grant(&device, &["metrics:read"]).await?;
        is_measured(&fleet, &device).await?;
        ensure!(site.sh("ip -br addr")?.contains("cla-vpn"));
        Ok(())
    })
}

#[test]
fn a_revoked_device_is_told_so_and_tells_it() -> anyhow::Result<()> {
    netns::test("a_revoked_device_is_told_so_and_tells_it", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (mut machine, device) = enrolled(&fleet, &site, "").await?;
        machine.power_on()?;
        has_agent(&fleet, &device, &machine).await?;
        fleet.tenant.post(&format!("/devices/{device}/revoke"), &json!({})).await?;
        fleet.wait_for_link(&device, "closed").await?;
        wait_for("the agent to say why", REFUSED_LIMIT, async || {
            let log = machine.log_text()?;
            ensure!(log.contains("the server refuses the tunnel") && log.contains("the device was revoked"), "{log}");
            Ok(())
        })
        .await?;
        let mut doctor = site.command(cloudlink_tests::program::binary("cloudlink-agent")?);
        doctor.arg("doctor").arg("--config").arg(machine.config_file());
        let said = String::from_utf8(doctor.output()?.stdout)?;
        ensure!(said.contains("BAD   tunnel") && said.contains("The client said last:"), "{said}");
        ensure!(said.contains("BAD   admission") && said.contains("revoked"), "{said}");

        Ok(())
    })
}
