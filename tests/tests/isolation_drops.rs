//! What a device tries and may not: who gets to know of it, and what becomes of the device.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::Api;
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT};
use cloudlink_tests::netns::{self, Site, done};
use cloudlink_tests::openvpn::{Client, Pings, Tunnel};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic::metric;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// What devices try is known within this time.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// What the product promises.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);
/// For a connection that is answered, if only to be refused.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const SUPPORT_PORT: u16 = 2222;

/// How often a device tried something, by reason.
async fn drops(api: &Api, device: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let shown = api.get(&format!("/devices/{device}/drops")).await?;
    let items = shown["items"].as_array().context("a list")?;
    let read = |item: &Value| Some((item["reason"].as_str()?.to_owned(), item["packets"].as_u64()?));
    let mut drops: Vec<_> = items.iter().map(|item| read(item).context("a drop")).collect::<Result<_, _>>()?;
    drops.sort();
    Ok(drops)
}

async fn are_known(api: &Api, device: &str, expected: &[(&str, u64)]) -> anyhow::Result<()> {
    wait_for(&format!("{expected:?}"), KNOWN_WITHIN, async || {
        let drops = drops(api, device).await?;
        let is_known = drops.len() == expected.len()
            && drops.iter().zip(expected).all(|(found, (reason, least))| found.0 == *reason && found.1 >= *least);
        ensure!(is_known, "{drops:?}");
        Ok(())
    })
    .await
}

/// The entries of one action in the log that somebody sees, oldest first.
async fn audited(api: &Api, action: &str) -> anyhow::Result<Vec<Value>> {
    let page = api.get("/audit?limit=200").await?;
    let entries = page["items"].as_array().context("a list")?.iter().rev();
    let entries = entries.map(|item| Ok(serde_json::from_str(item["entry"].as_str().context("a text")?)?));
    let entries: Vec<Value> = entries.collect::<anyhow::Result<_>>()?;
    Ok(entries.into_iter().filter(|entry| entry["action"] == action).collect())
}

/// Sends datagrams to the node out of a tunnel.
fn datagrams(site: &Site, gateway: impl Into<IpAddr>, count: usize) -> anyhow::Result<()> {
    let to = SocketAddr::new(gateway.into(), 53);
    site.run(async || {
        let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await?;
        for _ in 0..count {
            socket.send_to(b"who is there?", to).await?;
        }
        Ok(())
    })
}

async fn answers_pings(client: &Client, tunnel: &Tunnel) -> anyhow::Result<bool> {
    let ping = Pings { count: 1, ..Pings::default() };
    Ok(ping.send(&client.site, &tunnel.interface, tunnel.gateway_ipv4).await? == 1)
}

/// Whether the host of the node reaches a port of the device: there, nobody listens, which is said.
async fn reaches(tunnel: &Tunnel) -> anyhow::Result<bool> {
    for address in [IpAddr::from(tunnel.ipv4), tunnel.ipv6.into()] {
        match timeout(ANSWER_LIMIT, TcpStream::connect((address, SUPPORT_PORT))).await {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Ok(Ok(_)) => anyhow::bail!("somebody listens on {address}"),
            Ok(Err(_)) | Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether the kernel itself holds a device for quarantined.
fn kernel_knows(tunnel: &Tunnel) -> anyhow::Result<bool> {
    let mut sets = String::new();
    for set in ["cl_quarantined4", "cl_quarantined6"] {
        let mut nft = Command::new("nft");
        nft.args(["list", "set", "inet", "cloudlink", set]);
        sets.push_str(&done(nft)?);
    }
    let known = [tunnel.ipv4.to_string(), tunnel.ipv6.to_string()].map(|address| sets.contains(&address));
    ensure!(known[0] == known[1], "{sets}");
    Ok(known[0])
}

#[test]
fn what_a_device_tries_is_known_to_its_tenant_and_to_nobody_elses() -> anyhow::Result<()> {
    netns::test("what_a_device_tries_is_known_to_its_tenant_and_to_nobody_elses", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let (stranger, _) = fleet.other_tenant("stranger").await?;
        let (site, quiet) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let (other, mut other_client) = fleet.client(&quiet, "quiet").await?;
        let (tunnel, others) = (client.is_up(1).await?, other_client.is_up(1).await?);
        Pings::default().come_back(&client, &tunnel).await?;
        Pings::default().come_back(&other_client, &others).await?;
        let through = &tunnel.interface;

        // Other ports, of TCP and of UDP.
        for gateway in [IpAddr::from(tunnel.gateway_ipv4), tunnel.gateway_ipv6.into()] {
            for port in [22, 443, 8443, 9090] {
                let dial = async || Ok(timeout(Duration::from_millis(200), TcpStream::connect((gateway, port))).await);
                ensure!(!matches!(site.run(dial)?, Ok(Ok(_))), "{gateway}:{port} answers a device");
            }
            datagrams(&site, gateway, 5)?;
        }
        // Another device, as itself and as somebody else.
        site.sh(&format!("ip addr add 10.9.9.9/32 dev {through}"))?;
        let ping = |from: &str, to: IpAddr| {
            site.sh(&format!("ping -c 3 -i 0.2 -W 1 -I {from} {to} || true")).map(|said| said.contains(" 0 received"))
        };
        ensure!(ping(through, others.ipv4.into())? && ping(through, others.ipv6.into())?);
        site.sh(&format!("ip route add {}/32 dev {through} src 10.9.9.9", tunnel.gateway_ipv4))?;
        ensure!(ping("10.9.9.9", tunnel.gateway_ipv4.into())?);
        site.sh(&format!(
            "ip route del {}/32 dev {through}; ip addr del 10.9.9.9/32 dev {through}",
            tunnel.gateway_ipv4
        ))?;

        // Nothing of that is the client's own doing: a stock one tries nothing by itself, as the quiet one shows.
        let expected = [("destination", 6), ("port", 8), ("protocol", 10), ("source", 3)];
        are_known(&fleet.tenant, &device.id, &expected).await?;
        ensure!(drops(&fleet.tenant, &other.id).await?.is_empty());
        ensure!(drops(&fleet.operator, &device.id).await?.len() == 4);

        // More of the same only counts: one event each.
        datagrams(&site, tunnel.gateway_ipv4, 200)?;
        are_known(&fleet.tenant, &device.id, &[("destination", 6), ("port", 8), ("protocol", 210), ("source", 3)])
            .await?;
        let events = audited(&fleet.tenant, "device.drops").await?;
        let mut reasons: Vec<_> = events.iter().map(|event| event["details"]["reason"].to_string()).collect();
        reasons.sort();
        ensure!(reasons == ["\"destination\"", "\"port\"", "\"protocol\"", "\"source\""], "{events:?}");
        ensure!(events.iter().all(|event| event["subject"]["id"] == device.id.as_str()), "{events:?}");

        // On the command line.
        let cli = fleet.cli(fleet.tenant.token());
        let said = cli.run(&["device", "drops", "gateway"]).await?.stdout;
        ensure!(said.contains("protocol") && said.contains("to speak for another address"), "{said}");
        let shown = cli.json(&["device", "drops", "gateway", "--from", "today"]).await?;
        ensure!(shown["items"].as_array().is_some_and(|items| items.len() == 4), "{shown}");

        // To another tenant it is not there.
        let refused = stranger.call(Method::GET, &format!("/devices/{}/drops", device.id), &[], None).await?;
        ensure!(refused.problem() == "not_found", "{:?}", refused.body);
        ensure!(audited(&stranger, "device.drops").await?.is_empty());
        Ok(())
    })
}

#[test]
fn in_quarantine_a_device_works_on_and_reaches_nothing() -> anyhow::Result<()> {
    netns::test("in_quarantine_a_device_works_on_and_reaches_nothing", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let (site, bystander) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let (_, mut other) = fleet.client(&bystander, "other").await?;
        let (tunnel, others) = (client.is_up(1).await?, other.is_up(1).await?);
        let mut machine = fleet.new_machine("machine")?.at(&site).through_tunnel("interface = \"tun0\"")?;
        machine.power_on()?;
        let has_agent = async || {
            wait_for("the agent", LINK_LIMIT, async || {
                let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
                ensure!(shown["link"]["state"] == "live" && shown["link"]["has_agent"] == true, "{shown}");
                Ok(())
            })
            .await
        };
        let takes_a_command = async || {
            let command = fleet.command(&device.id, "metrics.collect", &json!({})).await?;
            let done = fleet.finished(&command).await?;
            ensure!(done["state"] == "succeeded", "{done}");
            Ok(())
        };
        has_agent().await?;
        fleet.grant(&device.id, &["metrics:read"]).await?;
        let opening = fleet.open_port(&device.id, SUPPORT_PORT).await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(reaches(&tunnel).await? && !kernel_knows(&tunnel)?);

        let cli = fleet.cli(fleet.tenant.token());
        let said = cli.run(&["device", "quarantine", "gateway", "--reason", "scans its node"]).await?;
        ensure!(said.code == Some(0) && said.stdout.contains("is in quarantine"), "{said:?}");
        wait_for("the kernel to know", IN_FORCE_WITHIN, async || {
            ensure!(kernel_knows(&tunnel)?);
            Ok(())
        })
        .await?;
        ensure!(!answers_pings(&client, &tunnel).await? && !reaches(&tunnel).await?);
        let ended = fleet.tenant.get(&format!("/openings/{}", opening["id"].as_str().context("an id")?)).await?;
        ensure!(ended["state"] == "ended" && ended["end_reason"] == "quarantined", "{ended}");
        // The link is as it was, and does what it did.
        takes_a_command().await?;
        ensure!(client.log_text()?.matches("Initialization Sequence Completed").count() == 1);
        ensure!(answers_pings(&other, &others).await?, "another device is cut off");
        let listed = cli.run(&["devices", "--quarantined"]).await?.stdout;
        ensure!(listed.contains("gateway") && !listed.contains("other"), "{listed}");
        let shown = cli.run(&["device", "show", "gateway"]).await?.stdout;
        ensure!(shown.contains("scans its node"), "{shown}");

        // A new tunnel is no way out.
        client.kill()?;
        fleet.wait_for_link(&device.id, "closed").await?;
        client.start_again()?;
        let tunnel = client.is_up(2).await?;
        // The client says so as soon as it has its addresses; from when the server does, packets are let through.
        wait_for("the tunnel at the server", LINK_LIMIT, async || {
            let metrics = fleet.server.operations("/metrics").await?.1;
            ensure!(metric(&metrics, "cloudlink_tunnels_live", "")? == 2.0, "{metrics}");
            Ok(())
        })
        .await?;
        ensure!(kernel_knows(&tunnel)?, "the kernel does not know it from the first packet on");
        ensure!(!answers_pings(&client, &tunnel).await?);
        has_agent().await?;
        takes_a_command().await?;
        // What it tries is known, and what it may do otherwise is told apart.
        datagrams(&site, tunnel.gateway_ipv4, 3)?;
        are_known(&fleet.tenant, &device.id, &[("protocol", 3), ("quarantine", 2)]).await?;

        let said = cli.run(&["device", "release", "gateway"]).await?;
        ensure!(said.code == Some(0), "{said:?}");
        wait_for("the end", IN_FORCE_WITHIN, async || {
            ensure!(!kernel_knows(&tunnel)?);
            Ok(())
        })
        .await?;
        Pings::default().come_back(&client, &tunnel).await?;
        // What was open before stays closed, and can be opened again.
        ensure!(!reaches(&tunnel).await?);
        fleet.open_port(&device.id, SUPPORT_PORT).await?;
        ensure!(reaches(&tunnel).await?);
        let released = audited(&fleet.tenant, "device.released").await?;
        ensure!(released.len() == 1 && released[0]["actor"]["kind"] == "person", "{released:?}");
        Ok(())
    })
}

#[test]
fn whoever_tries_too_much_is_put_into_quarantine() -> anyhow::Result<()> {
    netns::test("whoever_tries_too_much_is_put_into_quarantine", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&["isolation.quarantine_after_packets=50"])).await?;
        let (site, bystander) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let (other, mut other_client) = fleet.client(&bystander, "other").await?;
        let (tunnel, others) = (client.is_up(1).await?, other_client.is_up(1).await?);
        datagrams(&site, tunnel.gateway_ipv4, 40)?;
        datagrams(&bystander, others.gateway_ipv6, 49)?;
        are_known(&fleet.tenant, &device.id, &[("protocol", 40)]).await?;
        ensure!(answers_pings(&client, &tunnel).await?, "it is not as many yet");
        datagrams(&site, tunnel.gateway_ipv6, 20)?;
        wait_for("quarantine", KNOWN_WITHIN, async || {
            let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
            let quarantine = &shown["quarantine"];
            let reason = quarantine["reason"].as_str().unwrap_or_default();
            ensure!(quarantine["by"].is_null() && reason.contains("protocol 60"), "{shown}");
            Ok(())
        })
        .await?;
        wait_for("it to be in force", IN_FORCE_WITHIN, async || {
            ensure!(kernel_knows(&tunnel)?);
            Ok(())
        })
        .await?;
        ensure!(!answers_pings(&client, &tunnel).await?);
        let audited = audited(&fleet.tenant, "device.quarantined").await?;
        ensure!(audited.len() == 1 && audited[0]["actor"]["kind"] == "server", "{audited:?}");
        are_known(&fleet.tenant, &other.id, &[("protocol", 49)]).await?;
        ensure!(answers_pings(&other_client, &others).await?, "another device is cut off");
        Ok(())
    })
}
