//! Three nodes behind HAProxy, each on a host of its own, and one after the other is drained, by the command line and by SIGTERM,
//! while agents work, an operator is at a terminal, and stock OpenVPN clients are connected. Nobody is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cluster::Centre;
use cloudlink_tests::fleet::{Device, LINK_LIMIT};
use cloudlink_tests::machine::{Machine, SERVICE};
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::openvpn::{Client, Profile};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::ENROLL_NAME;
use cloudlink_tests::support::Forwarding;
use cloudlink_tests::terminal::Terminal;
use cloudlink_tests::{dial, port};
use nix::sys::signal::Signal;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const NODES: usize = 3;
const AGENTS: usize = 6;
const CLIENTS: usize = 3;
/// Connections that nobody has accepted when a node is told to stop.
const BACKLOG: usize = 12;
/// For a node to end: notice, drain and soft stop.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// Between two commands to one agent.
const COMMAND_EVERY: Duration = Duration::from_millis(200);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

#[test]
fn a_node_that_is_drained_loses_nobody() -> anyhow::Result<()> {
    netns::test("a_node_that_is_drained_loses_nobody", async || {
        let mut scene = Scene::start().await?;
        let working = scene.work()?;

        // By the command line, and of a node that the request has to be passed on to.
        let drained = scene.busiest(&[1, 2]).await?;
        let mut support = SupportWork::begin(&scene, drained).await?;
        let before = scene.links().await?;
        let said = scene.centre.fleet.cli(scene.centre.fleet.admin.token());
        let said = said.run(&["node", "drain", &name(drained), "--within", "20s", "--wait", "--json"]).await?;
        ensure!(said.code == Some(0), "{said:?}\n{}", scene.centre.node(drained).log_text()?);
        let node: Value = serde_json::from_str(&said.stdout)?;
        ensure!(node["links"] == 0 && node["state"] == "drained" && node["support_sessions"] == 2, "{node}");
        let (status, report) = scene.centre.node(drained).operations("/readyz").await?;
        ensure!(status == 503 && report.contains("\"draining\":true"), "{status}: {report}");
        scene.is_without(drained, &before).await?;
        // What went through the node goes on, and takes what is new over the device's link on another one.
        support.goes_on(&scene).await?;
        scene.centre.balancers[0].sees("device", drained + 1, "DOWN").await?;
        let admin = &scene.centre.fleet.admin;
        let resumed = admin.post(&format!("/nodes/{}/resume", name(drained)), &json!({})).await?;
        ensure!(resumed["state"] == "serving", "{resumed}");
        scene.centre.balancers[0].sees("device", drained + 1, "UP").await?;
        support.end().await?;

        // By SIGTERM, while connections wait that the node has not accepted.
        let stopped = if drained == 1 { 2 } else { 1 };
        let before = scene.links().await?;
        ensure!(before.values().any(|link| link.0 == name(stopped)), "nobody is at {}: {before:?}", name(stopped));
        scene.centre.node(stopped).program().signal(Signal::SIGSTOP)?;
        let config = dial::client_config(&scene.centre.fleet.server.ca_file(), None, &[&rustls::version::TLS13])?;
        let waiting = Backlog::of(scene.centre.node(stopped).device, config).await?;
        scene.centre.node(stopped).program().signal(Signal::SIGTERM)?;
        scene.centre.node(stopped).program().signal(Signal::SIGCONT)?;
        waiting.all_served().await?;
        let node = scene.centre.node(stopped);
        let ended = wait_for("the end of the node", STOP_LIMIT, async || {
            let status = node.program().exit_status()?;
            status.context("it runs")
        })
        .await?;
        ensure!(ended.success(), "{ended}: {}", node.log_text()?);
        scene.is_without(stopped, &before).await?;

        let commands = working.end().await?;
        ensure!(commands > 4 * AGENTS, "only {commands} commands");
        scene.nobody_was_without_a_link()?;
        let audit = scene.centre.fleet.admin.get("/audit?limit=200").await?.to_string();
        ensure!(audit.contains("node.drained") && audit.contains("node.resumed"), "{audit}");
        Ok(())
    })
}

fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// Dropped in this order: devices before the nodes.
struct Scene {
    agents: Vec<(String, Machine)>,
    clients: Vec<(String, Client, usize)>,
    centre: Centre,
}

/// By a device's id: the node of its live link, and its epoch.
type Links = BTreeMap<String, (String, i64)>;

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let set = [
            "tunnel.enabled=true",
            "isolation.proofs=false",
            "shutdown.drain_seconds=20",
            "shutdown.soft_seconds=5",
            "link.reconnect_spread_seconds=5",
            "device.connects_per_address_burst=100000",
        ];
        let centre = Centre::start(NODES, AGENTS + CLIENTS, false, &set.map(str::to_owned)).await?;
        let (fleet, address) = (&centre.fleet, centre.device_addresses()[0]);
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let Device { id, machine, .. } = fleet.device_dialling(&format!("gateway-{number}"), address).await?;
            agents.push((id, machine));
        }
        let (site, ca_pem) = (Arc::new(Site::join()?), std::fs::read_to_string(fleet.server.ca_file())?);
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let device = fleet.enrolled(&format!("tunnel-{number}")).await?;
            let profile = Profile::new(address, &ca_pem).with_credentials(&device.credentials);
            let mut client = fleet.start_client(&site, &format!("tunnel-{number}"), &profile)?;
            client.is_up(1).await?;
            fleet.wait_for_link(&device.id, "live").await?;
            clients.push((device.id, client, 1));
        }
        Ok(Self { agents, clients, centre })
    }

    async fn links(&self) -> anyhow::Result<Links> {
        let devices = self.centre.fleet.tenant.get("/devices?limit=200").await?;
        let devices = devices["items"].as_array().cloned().unwrap_or_default();
        let live = devices.iter().filter(|device| device["link"]["state"] == "live");
        live.map(|device| {
            let link = &device["link"];
            Ok((text(device, "id")?, (text(link, "node")?, link["epoch"].as_i64().context("no epoch")?)))
        })
        .collect()
    }

    /// Of these nodes, the one with most agents; it has one at least, so that there is something to see.
    async fn busiest(&self, nodes: &[usize]) -> anyhow::Result<usize> {
        let links = self.links().await?;
        let count = |node: usize| self.agents.iter().filter(|(id, _)| links[id].0 == name(node)).count();
        let busiest = nodes.iter().copied().max_by_key(|node| count(*node)).context("no nodes")?;
        ensure!(count(busiest) > 0, "nobody is at {}: {links:?}", name(busiest));
        Ok(busiest)
    }

    /// The first agent at a node.
    async fn agent_at(&self, node: usize) -> anyhow::Result<&(String, Machine)> {
        let links = self.links().await?;
        self.agents.iter().find(|(id, _)| links[id].0 == name(node)).context("nobody is there")
    }

    /// All are linked, none to that node; whoever was elsewhere is where it was.
    async fn is_without(&mut self, node: usize, before: &Links) -> anyhow::Result<()> {
        for (id, client, tunnels) in &mut self.clients {
            if before[id].0 == name(node) {
                *tunnels += 1;
                client.is_up(*tunnels).await?;
                client.says("Connection reset command was pushed by server").await?;
            }
        }
        let count = AGENTS + CLIENTS;
        let after = wait_for("everybody at the other nodes", LINK_LIMIT, async || {
            let links = self.links().await?;
            ensure!(links.len() == count && links.values().all(|link| link.0 != name(node)), "{links:?}");
            Ok(links)
        })
        .await?;
        for (id, link) in before.iter().filter(|(_, link)| link.0 != name(node)) {
            ensure!(after[id] == *link, "{id} was moved: {link:?}, {:?}", after[id]);
        }
        Ok(())
    }

    /// Each agent had its next link before it let the one before go: what it says of a link that is closed, it says only of its last.
    fn nobody_was_without_a_link(&self) -> anyhow::Result<()> {
        let mut moves = 0;
        for (id, machine) in &self.agents {
            let log = machine.log_text()?;
            ensure!(!log.contains("link closed"), "{id} was without a link:\n{log}");
            moves += log.matches("link open").count() - 1;
        }
        ensure!(moves >= 2, "hardly anybody moved: {moves}");
        Ok(())
    }

    /// Commands to every agent, one after another, until told to end.
    fn work(&self) -> anyhow::Result<Working> {
        let fleet = &self.centre.fleet;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for (id, _) in &self.agents {
            // Of the first node, which stays: over whose link they go is up to the nodes.
            let (operator, tenant) = (fleet.operator.clone(), fleet.tenant.clone());
            let (id, operator_id, stop) = (id.clone(), fleet.operator_id.clone(), stop.clone());
            tasks.spawn(async move { work(&operator, &tenant, &operator_id, &id, &stop).await });
        }
        Ok(Working { stop, tasks })
    }
}

struct Working {
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<usize>>,
}

impl Working {
    /// How many commands there were: none was lost.
    async fn end(mut self) -> anyhow::Result<usize> {
        self.stop.cancel();
        let mut commands = 0;
        while let Some(done) = self.tasks.join_next().await {
            commands += done??;
        }
        Ok(commands)
    }
}

async fn work(
    operator: &Api,
    tenant: &Api,
    operator_id: &str,
    device: &str,
    stop: &CancellationToken,
) -> anyhow::Result<usize> {
    let grant = json!({
        "reason": "a test", "scopes": ["metrics:read"], "operator_ids": [operator_id], "device_ids": [device],
        "duration_seconds": 900,
    });
    tenant.post("/grants", &grant).await?;
    let body = json!({ "kind": "metrics.collect", "arguments": {}, "reason": "a test" });
    let mut count = 0;
    while !stop.is_cancelled() {
        let command = text(&operator.command(device, &body).await?.success()?, "id")?;
        let path = format!("/commands/{command}");
        let done = timeout(LINK_LIMIT, finished(operator, &path)).await.context("a command was lost")??;
        ensure!(done["state"] == "succeeded", "{done}");
        count += 1;
        sleep(COMMAND_EVERY).await;
    }
    Ok(count)
}

async fn finished(operator: &Api, path: &str) -> anyhow::Result<Value> {
    loop {
        let shown = operator.get(path).await?;
        if !shown["finished_at"].is_null() {
            return Ok(shown);
        }
        sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// What is under way with an agent of the node that is drained: a terminal, a forward, and a command that takes its time.
struct SupportWork {
    device: String,
    terminal: Terminal,
    forwarding: Forwarding,
    connection: TcpStream,
    restart: String,
    echo: JoinHandle<()>,
}

impl SupportWork {
    async fn begin(scene: &Scene, node: usize) -> anyhow::Result<Self> {
        let fleet = &scene.centre.fleet;
        let (device, machine) = scene.agent_at(node).await?;
        fleet.support_grant(device, 900).await?;
        let mut terminal = fleet.shell(&fleet.operator, device).await?;
        terminal.answers("echo before=$((6 * 6))", "before=36").await?;
        ensure!(fleet.newest_session().await?["node"] == name(node), "{}", fleet.newest_session().await?);

        let listener = TcpListener::bind(port::free()?).await?;
        let route = format!("0:localhost:{}", listener.local_addr()?.port());
        let echo = tokio::spawn(echo(listener));
        let cli = fleet.cli(fleet.operator.token());
        let forwarding = Forwarding::start(&cli, device, &[&route], &[]).await?;
        let mut connection = TcpStream::connect(forwarding.local(0)?).await?;
        is_echoed(&mut connection).await?;

        machine.hold_restarts()?;
        fleet.grant(device, &["service:restart"]).await?;
        let restart = fleet.command(device, "service.restart", &json!({ "service": SERVICE })).await?;
        fleet.reaches(&restart, "running").await?;
        Ok(Self { device: device.clone(), terminal, forwarding, connection, restart, echo })
    }

    async fn goes_on(&mut self, scene: &Scene) -> anyhow::Result<()> {
        self.terminal.answers("echo after=$((6 * 7))", "after=42").await?;
        is_echoed(&mut self.connection).await?;
        is_echoed(&mut TcpStream::connect(self.forwarding.local(0)?).await?).await?;
        let (_, machine) = scene.agents.iter().find(|(id, _)| *id == self.device).context("it was there")?;
        machine.release_restarts()?;
        let done = scene.centre.fleet.finished(&self.restart).await?;
        ensure!(done["state"] == "succeeded" && machine.restarts() == 1, "{done}");
        Ok(())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.terminal.type_in("exit 3\r")?;
        ensure!(self.terminal.ends().await? == 3, "{}", self.terminal.seen());
        self.forwarding.signal(Signal::SIGINT)?;
        let (code, said) = self.forwarding.ends().await?;
        self.echo.abort();
        ensure!(code == Some(0), "{code:?}: {said}");
        Ok(())
    }
}

async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

async fn is_echoed(stream: &mut TcpStream) -> anyhow::Result<()> {
    let said = b"is somebody there?";
    let mut heard = [0; 18];
    let echoed = async {
        stream.write_all(said).await?;
        stream.read_exact(&mut heard).await
    };
    timeout(LINK_LIMIT, echoed).await.context("no echo")??;
    ensure!(heard == *said, "something else came back");
    Ok(())
}

/// Connections to a node that does not accept them, being stopped.
struct Backlog(JoinSet<anyhow::Result<()>>);

impl Backlog {
    async fn of(node: SocketAddr, config: ClientConfig) -> anyhow::Result<Self> {
        let connector = TlsConnector::from(Arc::new(config));
        let mut handshakes = JoinSet::new();
        for _ in 0..BACKLOG {
            let stream = timeout(LINK_LIMIT, TcpStream::connect(node)).await.context("no room in the queue")??;
            let connector = connector.clone();
            handshakes.spawn(async move {
                let name = ServerName::try_from(ENROLL_NAME)?;
                timeout(LINK_LIMIT, connector.connect(name, stream)).await.context("nobody answers")??;
                Ok(())
            });
        }
        Ok(Self(handshakes))
    }

    async fn all_served(mut self) -> anyhow::Result<()> {
        while let Some(served) = self.0.join_next().await {
            served?.context("a connection that waited was cut")?;
        }
        Ok(())
    }
}
