//! An agent that starts an OpenVPN client of its own, against the server: certificates, wrapping keys, a proxy in between.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_certs::pem::{certificate_to_pem, certificates_from_pem};
use cloudlink_certs::{CertificateRequest, DeviceCertificate, PrivateKey, Serial, Validity, create_request};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT};
use cloudlink_tests::machine::Machine;
use cloudlink_tests::netns::{self, SERVER_IPV4, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use time::Duration as Days;
use uuid::Uuid;

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

/// The server's own Postgres, as its owner.
async fn database(fleet: &Fleet) -> anyhow::Result<PgConnection> {
    let socket = fleet.server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    Ok(PgConnection::connect_with(&options).await?)
}

/// Makes the device's certificate as old as it is when it must be renewed, on the device and at the server.
async fn age_certificate(fleet: &Fleet, machine: &Machine, device: &str) -> anyhow::Result<Vec<u8>> {
    let slot = machine.state_dir().join("current.pem");
    let pem = std::fs::read(&slot)?;
    let key = PrivateKey::from_pem(&pem)?;
    let identity = DeviceCertificate::parse(&certificates_from_pem(&pem)?[0])?.identity;
    let request = CertificateRequest::from_der(&create_request(&key)?)?;
    let begun = clock::now() - Days::days(81);
    let serial = Serial::from_random(*Uuid::new_v4().as_bytes());
    let validity = Validity::new(begun, begun + Days::days(90))?;
    let certificate = fleet.server.authority()?.issue_device(&request, &identity, serial, validity)?;
    let old = DeviceCertificate::parse(&certificate)?;
    let updated = sqlx::query(
        "update certificates set serial = $1, der = $2, issued_at = issued_at - interval '81 days',
                not_after = not_after - interval '81 days'
          where device_id = $3",
    )
    .bind(&old.serial)
    .bind(&certificate[..])
    .bind(Uuid::parse_str(device)?)
    .execute(&mut database(fleet).await?)
    .await?;
    ensure!(updated.rows_affected() == 1);
    std::fs::write(slot, format!("{}{}", key.to_pem().as_str(), certificate_to_pem(&certificate)))?;
    Ok(old.serial)
}

/// The states of the device's certificates, oldest first.
async fn certificates(fleet: &Fleet, device: &str) -> anyhow::Result<Vec<(Vec<u8>, String)>> {
    let rows = sqlx::query("select serial, state from certificates where device_id = $1 order by issued_at")
        .bind(Uuid::parse_str(device)?)
        .fetch_all(&mut database(fleet).await?)
        .await?;
    Ok(rows.iter().map(|row| (row.get("serial"), row.get("state"))).collect())
}

#[test]
fn a_renewed_certificate_comes_through_the_tunnel_and_makes_the_next_one() -> anyhow::Result<()> {
    netns::test("a_renewed_certificate_comes_through_the_tunnel_and_makes_the_next_one", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (mut machine, device) = enrolled(&fleet, &site, "").await?;
        let old = age_certificate(&fleet, &machine, &device).await?;
        machine.power_on()?;
        let next = machine.state_dir().join("next.pem");
        let renewed = wait_for("the renewed certificate", LINK_LIMIT, async || {
            let pem = std::fs::read(machine.state_dir().join("current.pem"))?;
            let serial = DeviceCertificate::parse(&certificates_from_pem(&pem)?[0])?.serial;
            ensure!(serial != old && !next.exists(), "{}", machine.log_text()?);
            Ok(serial)
        })
        .await?;
        has_agent(&fleet, &device, &machine).await?;
        fleet.grant(&device, &["metrics:read"]).await?;
        is_measured(&fleet, &device).await?;
        let known = certificates(&fleet, &device).await?;
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
