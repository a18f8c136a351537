//! The ladder of transports, on networks that let only some of them through.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::machine::{Machine, SERVICE};
use cloudlink_tests::netns::{self, SERVER_IPV4, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const NAME: &str = "gateway";
/// Until the ladder has found what works: an OpenVPN client is given up after three attempts.
const CLIMB_LIMIT: Duration = Duration::from_secs(120);
/// Between a link that is live and what it brought with it.
const TOLD_LIMIT: Duration = Duration::from_secs(20);
/// A transport is remembered when traffic was proven for a minute.
const PROVEN_LIMIT: Duration = Duration::from_secs(150);
/// How often a flapping link is cut.
const FLAP_EVERY: Duration = Duration::from_secs(5);
/// Until a command has ended whose device dials with a long pause.
const END_LIMIT: Duration = Duration::from_secs(400);
/// How close together an agent begins attempts at the very most.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Resets the connection at the first packet of TLS, which is a ClientHello. With a TCP header of 32 bytes, as Linux sends it.
const NO_TLS: &str = "@th,256,24 0x160301";
/// The same of OpenVPN: the packet that begins a session is behind two bytes of length.
const NO_OPENVPN: &str = "@th,272,8 0x38";

/// What looks into packets on the way out of a site.
struct Filter<'s>(&'s Site);

impl<'s> Filter<'s> {
    fn put(site: &'s Site, pattern: &str) -> anyhow::Result<Self> {
        site.sh(&format!(
            "nft 'add table inet filter; add chain inet filter out {{ type filter hook output priority 0; }}; \
             add rule inet filter out ip daddr {SERVER_IPV4} tcp dport 443 {pattern} reject with tcp reset'"
        ))?;
        Ok(Self(site))
    }

    fn take_away(self) -> anyhow::Result<()> {
        self.0.sh("nft delete table inet filter").map(drop)
    }
}

async fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&[])).await
}

/// A device at a site, not enrolled, whose agent is told this under `[server]` and after it.
fn machine(fleet: &Fleet, site: &Arc<Site>, name: &str, server: &str, sections: &str) -> anyhow::Result<Machine> {
    let machine = fleet.new_machine(name)?.at(site);
    let text = std::fs::read_to_string(machine.config_file())?;
    let text = text.replace("[server]\n", &format!("{sections}\n[server]\n{server}\n"));
    std::fs::write(machine.config_file(), text)?;
    Ok(machine)
}

async fn enroll(fleet: &Fleet, machine: &Machine, name: &str) -> anyhow::Result<String> {
    machine.enroll(&fleet.enrollment_token(name).await?)?;
    let devices = fleet.tenant.get("/devices").await?;
    let found = devices["items"].as_array().into_iter().flatten().find(|device| device["name"] == name);
    Ok(found.and_then(|device| device["id"].as_str()).context("it is not enrolled")?.to_owned())
}

/// Waits until the device's agent has its link by this transport.
async fn is_linked(fleet: &Fleet, device: &str, transport: &str, machine: &Machine) -> anyhow::Result<Value> {
    wait_for(&format!("a link by {transport}"), CLIMB_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        let link = &shown["link"];
        let is_live = link["state"] == "live" && link["has_agent"] == true && link["transport"] == transport;
        ensure!(is_live, "{shown}\n{}", machine.log_text()?);
        Ok(shown)
    })
    .await
}

/// Waits for what the device tells, once linked, of attempts by this transport that came so far.
async fn told(fleet: &Fleet, device: &str, transport: &str, stage: &str) -> anyhow::Result<Value> {
    wait_for(&format!("{transport} to have failed at {stage}"), TOLD_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        let mut failures = shown["transport_failures"].as_array().into_iter().flatten();
        let found = failures.find(|failure| failure["transport"] == transport && failure["stage"] == stage);
        let found = found.with_context(|| shown.to_string())?;
        ensure!(found["count"].as_u64() >= Some(1), "{shown}");
        Ok(found.clone())
    })
    .await
}

async fn has_polled(fleet: &Fleet, device: &str) -> anyhow::Result<()> {
    wait_for("a poll", CLIMB_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
        ensure!(shown["transport"] == "polling", "{shown}");
        Ok(())
    })
    .await
}

async fn tunnel_is_gone(site: &Site) -> anyhow::Result<()> {
    wait_for("the tunnel to go", CLIMB_LIMIT, async || {
        ensure!(!site.sh("ip -br link")?.contains("cloudlink"), "the client is left");
        Ok(())
    })
    .await
}

async fn is_restarted(fleet: &Fleet, device: &str, machine: &Machine) -> anyhow::Result<()> {
    let before = machine.restarts();
    let command = fleet.command(device, "service.restart", &json!({ "service": SERVICE })).await?;
    let done = fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded" && machine.restarts() == before + 1, "{done}");
    Ok(())
}

#[test]
fn where_only_a_websocket_passes_it_is_found_behind_openvpn() -> anyhow::Result<()> {
    netns::test("where_only_a_websocket_passes_it_is_found_behind_openvpn", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let server = "transports = [\"openvpn\", \"websocket\"]";
        let mut machine = machine(&fleet, &site, NAME, server, "[openvpn]\nstart = true\n")?;
        let device = enroll(&fleet, &machine, NAME).await?;
        let _filter = Filter::put(&site, NO_OPENVPN)?;
        machine.power_on()?;
        is_linked(&fleet, &device, "websocket", &machine).await?;
        told(&fleet, &device, "openvpn", "tunnel").await?;
        fleet.grant(&device, &["service:restart"]).await?;
        is_restarted(&fleet, &device, &machine).await?;
        // A client that went on trying would take the link over as soon as it got through.
        ensure!(!site.sh("ip -br link")?.contains("cloudlink"), "the client is left");
        machine.stop()
    })
}

#[test]
fn where_only_openvpn_passes_it_is_used_remembered_and_left_for_something_better() -> anyhow::Result<()> {
    netns::test("where_only_openvpn_passes_it_is_used_remembered_and_left_for_something_better", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let server = "transports = [\"websocket\", \"openvpn\"]\nbetter_after_seconds = 30";
        let mut machine = machine(&fleet, &site, NAME, server, "[openvpn]\nstart = true\n")?;
        let device = enroll(&fleet, &machine, NAME).await?;
        let filter = Filter::put(&site, NO_TLS)?;
        machine.power_on()?;
        is_linked(&fleet, &device, "openvpn", &machine).await?;
        let failure = told(&fleet, &device, "websocket", "tls").await?;
        ensure!(failure["code"] == "connection_reset", "{failure}");
        let report = fleet.cli(fleet.operator.token()).run(&["transport-report", "--by", "site"]).await?.stdout;
        ensure!(report.contains("websocket") && report.contains("connection_reset"), "{report}");
        let said = fleet.cli(fleet.tenant.token()).run(&["device", "show", &device]).await?.stdout;
        ensure!(said.contains("websocket: connection_reset at tls"), "{said}");
        fleet.grant(&device, &["service:restart"]).await?;
        is_restarted(&fleet, &device, &machine).await?;

        // The next start on this network begins with it. Meanwhile the better one was tried, and the link stayed.
        let memory = machine.state_dir().join("networks.json");
        wait_for("the network to be remembered", PROVEN_LIMIT, async || {
            let text = std::fs::read_to_string(&memory)?;
            ensure!(text.contains("\"transport\":\"openvpn\""), "{text}");
            Ok(())
        })
        .await?;
        wait_for("the better one to be tried again", CLIMB_LIMIT, async || {
            let log = machine.log_text()?;
            ensure!(log.matches("no link transport=\"websocket\"").count() > 1, "{log}");
            Ok(())
        })
        .await?;
        is_linked(&fleet, &device, "openvpn", &machine).await?;
        machine.kill_agent()?;
        tunnel_is_gone(&site).await?;
        let before = machine.log_text()?.len();
        machine.power_on()?;
        wait_for("a link after the start", CLIMB_LIMIT, async || {
            let log = machine.log_text()?;
            let log = log.get(before..).unwrap_or(&log);
            let (until, _) = log.split_once("link.epoch=").with_context(|| log.to_owned())?;
            let is_first = !until.contains("no link transport=\"websocket\"");
            ensure!(until.contains("this worked last on this network") && is_first, "{log}");
            Ok(())
        })
        .await?;

        // What was in the way is gone.
        filter.take_away()?;
        is_linked(&fleet, &device, "websocket", &machine).await?;
        is_restarted(&fleet, &device, &machine).await?;
        tunnel_is_gone(&site).await?;
        let link = is_linked(&fleet, &device, "websocket", &machine).await?;
        ensure!(link["tunnel"] == Value::Null, "{link}");
        machine.stop()
    })
}

#[test]
fn where_nothing_but_a_proxy_with_a_password_passes_every_transport_goes_through_it() -> anyhow::Result<()> {
    netns::test("where_nothing_but_a_proxy_with_a_password_passes_every_transport_goes_through_it", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let proxy = SocketAddr::from((site.router_ipv4, 3128));
        let _proxy = traffic::proxy_with(proxy, &fleet.path(""), "BasicAuth gateway open-sesame\n").await?;
        site.sh(&format!("ip route add prohibit {SERVER_IPV4}/32"))?;
        let password = fleet.path("password");
        std::fs::write(&password, "open-sesame\n")?;
        let proxy = format!("[proxy]\nurl = \"http://gateway@{proxy}\"\npassword_file = {password:?}\n");
        for transport in ["websocket", "openvpn", "polling"] {
            let server = format!("transport = \"{transport}\"");
            let start = if transport == "openvpn" { "[openvpn]\nstart = true\n" } else { "" };
            let mut machine = machine(&fleet, &site, transport, &server, &format!("{proxy}{start}"))?;
            let device = enroll(&fleet, &machine, transport).await?;
            machine.power_on()?;
            if transport == "polling" {
                has_polled(&fleet, &device).await?;
            } else {
                is_linked(&fleet, &device, transport, &machine).await?;
                fleet.grant(&device, &["service:restart"]).await?;
                is_restarted(&fleet, &device, &machine).await?;
            }
            machine.stop()?;
            ensure!(!machine.log_text()?.contains("open-sesame"), "the password is in the log");
        }
        Ok(())
    })
}

/// Takes connections on to the server, and cuts all of them now and then.
struct Flapping {
    address: SocketAddr,
    accepted: Arc<Mutex<Vec<Instant>>>,
    /// Nothing is cut any more.
    is_calm: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Flapping {
    async fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepted = Arc::<Mutex<Vec<Instant>>>::default();
        let is_calm = Arc::<AtomicBool>::default();
        let (times, calm) = (Arc::clone(&accepted), Arc::clone(&is_calm));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut cut = tokio::time::interval(FLAP_EVERY);
            loop {
                tokio::select! {
                    taken = listener.accept() => {
                        let Ok((mut device, _)) = taken else { continue };
                        times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                        connections.spawn(async move {
                            if let Ok(mut server) = TcpStream::connect(server).await {
                                let _ = tokio::io::copy_bidirectional(&mut device, &mut server).await;
                            }
                        });
                    }
                    _ = cut.tick(), if !calm.load(Ordering::Relaxed) => connections.abort_all(),
                }
            }
        });
        Ok(Self { address, accepted, is_calm, task })
    }
}

impl Drop for Flapping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `FLAP_SECONDS` makes more of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_flaps_is_dialled_with_reason_and_runs_commands_once() -> anyhow::Result<()> {
    let seconds = std::env::var("FLAP_SECONDS").ok().map_or(Ok(60), |text| text.parse())?;
    let fleet = Fleet::start().await?;
    let mut machine = fleet.new_machine(NAME)?;
    let device = enroll(&fleet, &machine, NAME).await?;
    let flapping = Flapping::to(fleet.server.device).await?;
    let text = std::fs::read_to_string(machine.config_file())?;
    let address = |at: SocketAddr| format!("address = \"{at}\"");
    std::fs::write(machine.config_file(), text.replace(&address(fleet.server.device), &address(flapping.address)))?;
    fleet.grant(&device, &["service:restart"]).await?;
    machine.power_on()?;

    let begun = Instant::now();
    let mut commands = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Without a link it is refused at once.
        let body = json!({ "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test" });
        let answer = fleet.operator.command(&device, &body).await?;
        if let Ok(made) = answer.success() {
            commands.push(made["id"].as_str().context("no id")?.to_owned());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ensure!(!commands.is_empty(), "{}", machine.log_text()?);
    flapping.is_calm.store(true, Ordering::Relaxed);
    let accepted = flapping.accepted.lock().unwrap().clone();
    let flaps = usize::try_from(seconds / FLAP_EVERY.as_secs())?;
    ensure!((2..=2 * flaps + 5).contains(&accepted.len()), "{} attempts in {flaps} flaps", accepted.len());
    let too_close = accepted.windows(3).find(|three| three[2] - three[0] < PAUSE_MIN);
    ensure!(too_close.is_none(), "{too_close:?}");

    let (mut succeeded, mut unconfirmed) = (0, 0);
    for command in &commands {
        let done = wait_for("the end of a command", END_LIMIT, async || {
            let shown = fleet.operator.get(&format!("/commands/{command}")).await?;
            ensure!(!shown["finished_at"].is_null(), "{shown}");
            Ok(shown)
        })
        .await?;
        succeeded += usize::from(done["state"] == "succeeded");
        // It was sent into a cut, and its device was not back in time.
        unconfirmed += usize::from(done["state"] == "unconfirmed");
        ensure!(["succeeded", "expired", "unconfirmed"].contains(&done["state"].as_str().unwrap_or("")), "{done}");
    }
    let restarts = machine.restarts();
    ensure!(succeeded > 0 && (succeeded..=succeeded + unconfirmed).contains(&restarts), "{restarts} of {succeeded}");
    machine.stop()
}
