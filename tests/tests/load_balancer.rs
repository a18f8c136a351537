//! Nodes behind a load balancer: HAProxy and nginx as Debian has them, with the very configuration of `docker/`, on a host of their
//! own, and customers behind them. Where a customer is, as the server sees it, is where it really is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::balancer::{Balancer, DEVICE_PORT, OPERATIONS_PORT, PEOPLE_PORT};
use cloudlink_tests::dial;
use cloudlink_tests::fleet::{self, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::Machine;
use cloudlink_tests::netns::{self, SERVER_IPV4, Site};
use cloudlink_tests::openvpn::{Client, Profile};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::{ENROLL_NAME, Plan, Server, Settings};
use cloudlink_tests::traffic::metric;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Of the second node, where there is one.
const SECOND_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// For a connection to be closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x9c\x40\x01\xbb";

/// A server that takes the word of the host at a site, with all of its ports on the addresses of `docker/haproxy.cfg`.
fn behind(balancer: &Site, names: &[&Site], set: &[&str]) -> Settings {
    let trusted = format!("{},{}", balancer.ipv4, balancer.ipv6);
    let names: Vec<_> =
        names.iter().flat_map(|site| [site.router_ipv4.to_string(), site.router_ipv6.to_string()]).collect();
    let more = [
        format!("device.proxy_from={trusted}"),
        format!("people.proxy_from={trusted}"),
        format!("people.names=localhost,{SERVER_IPV4},{}", names.join(",")),
    ];
    let mut settings = Settings::with_tunnels(set);
    settings.people = Some((SERVER_IPV4, PEOPLE_PORT).into());
    settings.operations = Some((SERVER_IPV4, OPERATIONS_PORT).into());
    settings.set.extend(more);
    settings
}

/// An agent at a customer's, linked over WebSocket. Gives back its device, as the tenant sees it.
async fn agent(fleet: &Fleet, name: &str, site: &Arc<Site>, server: SocketAddr) -> anyhow::Result<(Machine, Value)> {
    let mut machine = fleet.new_machine_dialling(name, server)?.at(site);
    machine.enroll(&fleet.enrollment_token(name).await?)?;
    machine.power_on()?;
    let shown = wait_for("a live link", LINK_LIMIT, async || {
        let devices = fleet.tenant.get("/devices").await?;
        let shown = devices["items"].as_array().into_iter().flatten().find(|device| device["name"] == name);
        let shown = shown.filter(|device| device["link"]["state"] == "live").cloned();
        shown.with_context(|| format!("{devices}\n{}", machine.log_text().unwrap_or_default()))
    })
    .await?;
    Ok((machine, shown))
}

fn is_from(device: &Value, transport: &str, address: impl Into<IpAddr>) -> anyhow::Result<()> {
    let link = &device["link"];
    ensure!(link["transport"] == transport, "{device}");
    ensure!(link["remote_address"] == address.into().to_string(), "{device}");
    Ok(())
}

/// Signs in with a token that nobody has.
fn guess(customer: &Site, fleet: &Fleet) -> anyhow::Result<String> {
    let [address, _] = Balancer::addresses(customer, PEOPLE_PORT);
    let ca_file = fleet.server.ca_file();
    customer.run(async || {
        let nobody = Api::new(&format!("https://{address}"), &ca_file, "")?;
        let wrong = json!({ "bootstrap_token": format!("clb_{}", "0".repeat(43)) });
        let answer = nobody.call(http::Method::POST, "/auth/session", &[], Some(&wrong)).await?;
        Ok(answer.problem().to_owned())
    })
}

/// What comes on a connection that begins with these bytes, until the other side closes it.
async fn answer_to(address: SocketAddr, first: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(first).await?;
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(CLOSE_LIMIT, stream.read_to_end(&mut answer)).await.context("nobody closes it")?;
    Ok(answer)
}

#[test]
fn behind_haproxy_devices_and_people_are_where_they_are() -> anyhow::Result<()> {
    netns::test("behind_haproxy_devices_and_people_are_where_they_are", async || {
        let host = Arc::new(Site::join()?);
        let files = fleet::directory()?;
        let mut balancer = Balancer::haproxy(&host, files.path(), [SERVER_IPV4, SECOND_IPV4])?;
        let (one, other) = (balancer.customer()?, balancer.customer()?);
        let settings = behind(&host, &[&one, &other], &["sign_in.lock_after_failures=3", "people.failures_burst=1000"]);
        let fleet = Fleet::start_with(&settings).await?;
        balancer.sees("device", 1, "UP").await?;
        balancer.sees("people", 1, "UP").await?;
        balancer.sees("device", 2, "DOWN").await?;

        let [ipv4, ipv6] = Balancer::addresses(&one, DEVICE_PORT);
        let (_first, shown) = agent(&fleet, "gateway-4", &one, ipv4).await?;
        is_from(&shown, "websocket", one.ipv4)?;
        let (_second, shown) = agent(&fleet, "gateway-6", &one, ipv6).await?;
        is_from(&shown, "websocket", one.ipv6)?;

        let ca_pem = std::fs::read_to_string(fleet.server.ca_file())?;
        for (name, address, expected) in
            [("tunnel-4", ipv4, IpAddr::from(one.ipv4)), ("tunnel-6", ipv6, IpAddr::from(one.ipv6))]
        {
            let device = fleet.enrolled(name).await?;
            let profile = Profile::new(address, &ca_pem).with_credentials(&device.credentials);
            let mut client = Client::start(&one, files.path(), name, &profile)?;
            client.is_up(1).await?;
            is_from(&fleet.wait_for_link(&device.id, "live").await?, "openvpn", expected)?;
        }

        // Three wrong tokens lock out the address that they came from, and nobody else behind the same load balancer.
        for _ in 0..3 {
            ensure!(guess(&one, &fleet)? == "sign_in_failed");
        }
        ensure!(guess(&one, &fleet)? == "locked_out");
        ensure!(guess(&other, &fleet)? == "sign_in_failed");
        let audit = fleet.admin.get("/audit?limit=200").await?;
        let mut locked = Vec::new();
        for item in audit["items"].as_array().into_iter().flatten() {
            let entry: Value = serde_json::from_str(item["entry"].as_str().context("no entry")?)?;
            locked.extend((entry["action"] == "sign_in.locked_out").then(|| entry["details"]["key"].clone()));
        }
        ensure!(locked == [json!(one.ipv4.to_string())], "{audit}");
        let (_, metrics) = fleet.server.operations("/metrics").await?;
        for reason in ["proxy_header", "proxy_untrusted"] {
            ensure!(metric(&metrics, "cloudlink_people_proxy_refused_total", reason)? == 0.0, "{metrics}");
            ensure!(metric(&metrics, "cloudlink_device_handshake_failures_total", reason)? == 0.0, "{metrics}");
        }
        Ok(())
    })
}

#[test]
fn behind_haproxy_the_limits_of_an_address_are_those_of_a_customer() -> anyhow::Result<()> {
    netns::test("behind_haproxy_the_limits_of_an_address_are_those_of_a_customer", async || {
        let host = Arc::new(Site::join()?);
        let files = fleet::directory()?;
        let mut balancer = Balancer::haproxy(&host, files.path(), [SERVER_IPV4, SECOND_IPV4])?;
        let (one, other) = (balancer.customer()?, balancer.customer()?);
        let set = ["device.unauthenticated_per_address_max=2", "device.handshake_timeout_seconds=60"];
        let fleet = Fleet::start_with(&behind(&host, &[&one, &other], &set)).await?;
        balancer.sees("device", 1, "UP").await?;

        let [address, _] = Balancer::addresses(&one, DEVICE_PORT);
        let mut silent = Vec::new();
        for _ in 0..2 {
            silent.push(one.run(async || Ok(std::net::TcpStream::connect(address)?))?);
        }
        wait_for("two strangers", LINK_LIMIT, async || {
            let (_, metrics) = fleet.server.operations("/metrics").await?;
            let strangers = metric(&metrics, "cloudlink_device_connections_unauthenticated", "")?;
            ensure!(strangers == 2.0, "{strangers}");
            Ok(())
        })
        .await?;
        let answer = one.run(async || answer_to(address, b"").await)?;
        ensure!(answer.is_empty(), "{answer:?}");
        // Behind the same load balancer, and not concerned.
        let [address, _] = Balancer::addresses(&other, DEVICE_PORT);
        let (_machine, shown) = agent(&fleet, "gateway", &other, address).await?;
        is_from(&shown, "websocket", other.ipv4)?;
        let (_, metrics) = fleet.server.operations("/metrics").await?;
        let refused = metric(&metrics, "cloudlink_device_handshake_failures_total", "overload")?;
        ensure!(refused == 1.0, "{refused}");
        Ok(())
    })
}

#[test]
fn nobody_but_the_load_balancer_says_who_somebody_is() -> anyhow::Result<()> {
    netns::test("nobody_but_the_load_balancer_says_who_somebody_is", async || {
        let (host, stranger) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let fleet = Fleet::start_with(&behind(&host, &[], &[])).await?;
        let (device, people) = (fleet.server.device, fleet.server.people);
        let refused = async |name: &str, reason: &str, expected: f64| {
            wait_for(&format!("{expected} of {reason}"), LINK_LIMIT, async || {
                let (_, metrics) = fleet.server.operations("/metrics").await?;
                let count = metric(&metrics, name, &format!("reason=\"{reason}\""))?;
                ensure!(count == expected, "{count}");
                Ok(())
            })
            .await
        };
        for (port, name) in
            [(device, "cloudlink_device_handshake_failures_total"), (people, "cloudlink_people_proxy_refused_total")]
        {
            for header in [V1, V2] {
                ensure!(stranger.run(async || answer_to(port, header).await)?.is_empty());
            }
            refused(name, "proxy_untrusted", 2.0).await?;
            // Nor is the load balancer served without a header.
            ensure!(host.run(async || answer_to(port, b"\x16\x03\x01").await)?.is_empty());
            refused(name, "proxy_header", 1.0).await?;
        }
        // Who says nothing of the kind is served, and is where it is.
        let (_machine, shown) = agent(&fleet, "gateway", &stranger, device).await?;
        is_from(&shown, "websocket", stranger.ipv4)?;
        let log = fleet.server.log_text()?;
        for part in ["device.proxy_from does not name its sender", "people.proxy_from names its sender"] {
            ensure!(log.contains(part), "no {part:?} in the log:\n{log}");
        }
        Ok(())
    })
}

/// Another node, on the second address, with the database and the keys of the first. Without tunnels: one host has room for those
/// of one node.
async fn second_node(fleet: &Fleet, directory: &Path, settings: &Settings) -> anyhow::Result<Server> {
    let mut ip = Command::new("ip");
    ip.args(["address", "add", &format!("{SECOND_IPV4}/32"), "dev", "lo"]);
    netns::done(ip)?;
    let socket = fleet.server.data_dir().join("postgres/run").canonicalize()?;
    let url = |login| format!("postgres://{login}@localhost/cloudlink?host={}", socket.display());
    let mut set = settings.set.clone();
    set.push("node=second-node".to_owned());
    set.push("tunnel.enabled=false".to_owned());
    set.push(format!("database.url={}", url("cloudlink_server")));
    set.push(format!("database.migrate_url={}", url("postgres")));
    let settings = Settings {
        device: Some((SECOND_IPV4, DEVICE_PORT).into()),
        people: Some((SECOND_IPV4, PEOPLE_PORT).into()),
        operations: Some((SECOND_IPV4, OPERATIONS_PORT).into()),
        set,
        runner: None,
        ..Settings::default()
    };
    let plan = Plan::new(directory, &settings)?;
    std::fs::create_dir_all(directory.join("data"))?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(fleet.server.data_dir().join("pki")).arg(directory.join("data"));
    netns::done(copy)?;
    plan.start().await
}

/// The live links by their devices: node and epoch.
async fn live(fleet: &Fleet) -> anyhow::Result<BTreeMap<String, (String, i64)>> {
    let devices = fleet.tenant.get("/devices").await?;
    let devices = devices["items"].as_array().cloned().unwrap_or_default();
    let live = devices.iter().filter(|device| device["link"]["state"] == "live").map(|device| {
        let link = &device["link"];
        Ok((text(device, "name")?, (text(link, "node")?, link["epoch"].as_i64().context("no epoch")?)))
    });
    live.collect()
}

#[test]
fn a_node_that_is_not_ready_gets_nobody_new_and_one_that_stops_loses_nobody() -> anyhow::Result<()> {
    netns::test("a_node_that_is_not_ready_gets_nobody_new_and_one_that_stops_loses_nobody", async || {
        let host = Arc::new(Site::join()?);
        let files = fleet::directory()?;
        let mut balancer = Balancer::haproxy(&host, files.path(), [SERVER_IPV4, SECOND_IPV4])?;
        let customer = balancer.customer()?;
        let set = [
            "link.reconnect_spread_seconds=3",
            "shutdown.drain_seconds=20",
            "device.connects_per_address_burst=100000",
        ];
        let settings = behind(&host, &[&customer], &set);
        let fleet = Fleet::start_with(&settings).await?;
        let mut second = second_node(&fleet, &files.path().join("second"), &settings).await?;
        for number in [1, 2] {
            balancer.sees("device", number, "UP").await?;
        }
        let [address, _] = Balancer::addresses(&customer, DEVICE_PORT);
        let mut machines = Vec::new();
        for number in 0..4 {
            machines.push(agent(&fleet, &format!("gateway-{number}"), &customer, address).await?);
        }
        let before = live(&fleet).await?;
        for node in ["test-node", "second-node"] {
            ensure!(before.values().any(|link| link.0 == node), "nobody is at {node}: {before:?}");
        }

        // The second answers nobody, and nobody who comes now has to wait for it. Who is there stays there.
        second.program().signal(Signal::SIGSTOP)?;
        balancer.sees("device", 2, "DOWN").await?;
        for number in 4..6 {
            machines.push(agent(&fleet, &format!("gateway-{number}"), &customer, address).await?);
        }
        let meanwhile = live(&fleet).await?;
        ensure!(["gateway-4", "gateway-5"].iter().all(|name| meanwhile[*name].0 == "test-node"), "{meanwhile:?}");
        second.program().signal(Signal::SIGCONT)?;
        balancer.sees("device", 2, "UP").await?;
        let after = live(&fleet).await?;
        ensure!(before.iter().all(|(name, link)| after.get(name) == Some(link)), "{before:?}\n{after:?}");

        // It stops, and whoever dials meanwhile is served by the other: before the load balancer has asked again, too.
        let config = dial::client_config(&fleet.server.ca_file(), None, &[&rustls::version::TLS13])?;
        second.program().signal(Signal::SIGTERM)?;
        let (served, cut) = customer.run(async || {
            let (mut served, mut cut) = (0, 0);
            while second.program().exit_status()?.is_none() {
                match dial::tls(address, ENROLL_NAME, config.clone()).await {
                    Ok(_) => served += 1,
                    Err(_) => cut += 1,
                }
            }
            Ok((served, cut))
        })?;
        // Between the last look into the queue of the listener and its end there is a moment.
        ensure!(served > 0 && cut <= 1, "{served} were served, {cut} cut");
        wait_for("all devices at the first node", LINK_LIMIT, async || {
            let live = live(&fleet).await?;
            ensure!(live.len() == 6 && live.values().all(|link| link.0 == "test-node"), "{live:?}");
            Ok(())
        })
        .await?;
        Ok(())
    })
}

#[test]
fn behind_nginx_devices_are_where_they_are() -> anyhow::Result<()> {
    netns::test("behind_nginx_devices_are_where_they_are", async || {
        let host = Arc::new(Site::join()?);
        let files = fleet::directory()?;
        let balancer = Balancer::nginx(&host, files.path(), [SERVER_IPV4, SECOND_IPV4])?;
        let customer = balancer.customer()?;
        let fleet = Fleet::start_with(&behind(&host, &[&customer], &[])).await?;

        let [ipv4, ipv6] = Balancer::addresses(&customer, DEVICE_PORT);
        let (_first, shown) = agent(&fleet, "gateway-4", &customer, ipv4).await?;
        is_from(&shown, "websocket", customer.ipv4)?;
        let (_second, shown) = agent(&fleet, "gateway-6", &customer, ipv6).await?;
        is_from(&shown, "websocket", customer.ipv6)?;
        let device = fleet.enrolled("tunnel").await?;
        let ca_pem = std::fs::read_to_string(fleet.server.ca_file())?;
        let profile = Profile::new(ipv6, &ca_pem).with_credentials(&device.credentials);
        let mut client = Client::start(&customer, files.path(), "tunnel", &profile)?;
        client.is_up(1).await?;
        is_from(&fleet.wait_for_link(&device.id, "live").await?, "openvpn", customer.ipv6)?;

        let [people, _] = Balancer::addresses(&customer, PEOPLE_PORT);
        let (ca_file, token) = (fleet.server.ca_file(), fleet.tenant.token().to_owned());
        let me = customer.run(async || Api::new(&format!("https://{people}"), &ca_file, &token)?.get("/me").await)?;
        ensure!(text(&me, "role")? == "tenant", "{me}");
        Ok(())
    })
}

#[test]
fn a_node_that_takes_its_own_host_for_a_load_balancer_proves_its_isolation() -> anyhow::Result<()> {
    netns::test("a_node_that_takes_its_own_host_for_a_load_balancer_proves_its_isolation", async || {
        // As on a host with a load balancer of its own, or with one network for all of them.
        let trusted = "device.proxy_from=198.51.100.0/24,127.0.0.0/8";
        let fleet = Fleet::start_with(&Settings::with_tunnels(&["isolation.proofs=true", trusted])).await?;
        let asked = fleet.admin.post("/isolation/proofs", &json!({})).await?;
        ensure!(asked["outcome"] == "proven", "{asked}\n{}", fleet.server.log_text()?);
        Ok(())
    })
}
