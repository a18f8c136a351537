//! Support openings: a port of a device that the node reaches, until the kernel closes it, whatever state the server is in.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::clock;
use cloudlink_tests::enroll::Enrolled;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, Site, done};
use cloudlink_tests::openvpn::{Client, Tunnel};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic::metric;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);
/// For a connection that is to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For one that must not be made: as long as two more SYNs take.
const NOTHING_LIMIT: Duration = Duration::from_secs(4);
/// Between two bytes of a stream, in each direction.
const TICK: Duration = Duration::from_millis(20);
/// A stream in which nothing came for so long was cut: the kernels send again what was lost much sooner.
const SILENCE: Duration = Duration::from_secs(3);
/// How much before its time the kernel may close: whole seconds, what the call is allowed, and a busy machine.
const EARLY_MAX: time::Duration = time::Duration::seconds(3);
const REVOKED_LIMIT: time::Duration = time::Duration::seconds(1);
const PORT: u16 = 2222;
const OTHER_PORT: u16 = 2223;

/// A device in a tunnel with TCP servers on two ports, over both families, that answer whatever comes and say something all the time.
struct Gateway {
    site: Arc<Site>,
    device: Enrolled,
    client: Client,
    tunnel: Tunnel,
    /// What it heard last, on any port.
    heard: Heard,
    servers: Vec<JoinHandle<()>>,
}

impl Gateway {
    async fn start(fleet: &Fleet, name: &str) -> anyhow::Result<Self> {
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, name).await?;
        let tunnel = client.is_up(1).await?;
        fleet.wait_for_link(&device.id, "live").await?;
        let (heard, mut servers) = (Heard::default(), Vec::new());
        for port in [PORT, OTHER_PORT] {
            // Of the whole site, so that they outlive the tunnel's interface.
            let listener = site.run(async || Ok(std::net::TcpListener::bind((IpAddr::from([0_u16; 8]), port))?))?;
            listener.set_nonblocking(true)?;
            servers.push(tokio::spawn(serve(TcpListener::from_std(listener)?, heard.clone())));
        }
        Ok(Self { site, device, client, tunnel, heard, servers })
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.tunnel.ipv4, port).into()
    }

    fn at_ipv6(&self, port: u16) -> SocketAddr {
        (self.tunnel.ipv6, port).into()
    }

    async fn is_up_again(&mut self, fleet: &Fleet, count: usize) -> anyhow::Result<()> {
        self.tunnel = self.client.is_up(count).await?;
        fleet.wait_for_link(&self.device.id, "live").await?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(listener: TcpListener, heard: Heard) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(tick(stream, heard.clone()));
    }
}

/// When something came last.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Option<OffsetDateTime>>>);

impl Heard {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
    }

    fn last(&self) -> Option<OffsetDateTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says something all the time, and notes when it heard something. Until the stream breaks.
async fn tick(stream: TcpStream, heard: Heard) {
    let (mut reader, mut writer) = stream.into_split();
    let listen = async {
        let mut bytes = [0; 4096];
        while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {
            heard.note();
        }
    };
    let talk = async {
        while writer.write_all(b".").await.is_ok() {
            sleep(TICK).await;
        }
    };
    tokio::join!(listen, talk);
}

/// A connection from the node to a port of a device, over which both say something all the time.
struct Stream {
    heard: Heard,
    /// Ends when the connection breaks.
    task: JoinHandle<()>,
}

impl Stream {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await.context("no connection")??;
        let heard = Heard::default();
        let task = tokio::spawn(tick(stream, heard.clone()));
        let stream = Self { heard, task };
        let first = wait_for("the first byte", LIMIT, async || stream.last().context("nothing yet")).await?;
        // It goes on.
        wait_for("more", LIMIT, async || ensure_after(stream.last(), first + 5 * TICK)).await?;
        Ok(stream)
    }

    fn last(&self) -> Option<OffsetDateTime> {
        self.heard.last()
    }

    fn is_silent(&self) -> bool {
        self.last().is_none_or(|last| clock::now() - last > SILENCE)
    }

    /// Waits until whoever uses it is told that it is over.
    async fn breaks(&self) -> anyhow::Result<()> {
        wait_for("the connection to break", LIMIT, async || {
            ensure!(self.task.is_finished(), "it hangs");
            Ok(())
        })
        .await
    }

    /// Waits until nothing comes any more, and says when the last byte came, here or at the device.
    async fn cut(&self, gateway: &Gateway, limit: Duration) -> anyhow::Result<OffsetDateTime> {
        wait_for("the end of the stream", limit, async || {
            ensure!(self.is_silent(), "it goes on");
            let (here, there) = (self.last().context("it never began")?, gateway.heard.last().context("nor there")?);
            ensure!(clock::now() - there > SILENCE, "it goes on there");
            Ok(here.max(there))
        })
        .await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn ensure_after(last: Option<OffsetDateTime>, first: OffsetDateTime) -> anyhow::Result<()> {
    ensure!(last.is_some_and(|last| last > first), "nothing since {first}");
    Ok(())
}

/// Whether a TCP connection cannot be made: nobody answers, or the server breaks it off, for the port was closed a moment ago.
async fn is_closed(address: SocketAddr) -> bool {
    match timeout(NOTHING_LIMIT, TcpStream::connect(address)).await {
        Err(_) => true,
        Ok(connected) => connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted),
    }
}

/// Whether a datagram gets no answer, from a server that would give one.
async fn is_closed_for_udp(gateway: &Gateway) -> anyhow::Result<bool> {
    let answering = gateway.site.run(async || Ok(std::net::UdpSocket::bind((gateway.tunnel.ipv4, PORT))?))?;
    answering.set_nonblocking(true)?;
    let answering = UdpSocket::from_std(answering)?;
    let asking = UdpSocket::bind((gateway.tunnel.gateway_ipv4, 0)).await?;
    // The kernel may say at once that it is not allowed.
    let _ = asking.send_to(b"?", gateway.at(PORT)).await;
    let mut bytes = [0; 16];
    Ok(timeout(Duration::from_secs(1), answering.recv_from(&mut bytes)).await.is_err())
}

async fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&[])).await
}

async fn grant(fleet: &Fleet, device: &Enrolled, seconds: u64) -> anyhow::Result<Value> {
    let body = json!({
        "reason": "support", "scopes": ["tcp:open"], "device_ids": [device.id], "duration_seconds": seconds,
    });
    fleet.tenant.post("/grants", &body).await
}

/// Asks for a port, and waits until it is open, as it mostly is with the answer.
async fn open(fleet: &Fleet, device: &Enrolled, port: u16, seconds: u64) -> anyhow::Result<Value> {
    let body = json!({ "port": port, "reason": "a test", "seconds": seconds });
    let asked = fleet.operator.post(&format!("/devices/{}/openings", device.id), &body).await?;
    wait_for("an open port", LIMIT, async || {
        let opening = show(fleet, &asked).await?;
        ensure!(opening["state"] == "open" && opening["opened_at"].is_string(), "{opening}");
        Ok(opening)
    })
    .await
}

async fn show(fleet: &Fleet, opening: &Value) -> anyhow::Result<Value> {
    fleet.tenant.get(&format!("/openings/{}", text(opening, "id")?)).await
}

async fn ended(fleet: &Fleet, opening: &Value, reason: &str) -> anyhow::Result<()> {
    wait_for("the end of the opening", LIMIT, async || {
        let shown = show(fleet, opening).await?;
        ensure!(shown["state"] == "ended" && shown["end_reason"] == reason, "{shown}");
        Ok(())
    })
    .await
}

fn time_of(value: &Value, member: &str) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::parse(&text(value, member)?, &Rfc3339)?)
}

/// What the kernel has open, with the whole seconds that are left.
fn kernel() -> anyhow::Result<String> {
    let mut both = String::new();
    for set in ["cl_openings4", "cl_openings6"] {
        let mut nft = Command::new("nft");
        nft.args(["list", "set", "inet", "cloudlink", set]);
        both += &done(nft)?;
    }
    Ok(both)
}

fn kernel_has(address: SocketAddr) -> anyhow::Result<bool> {
    Ok(kernel()?.contains(&format!("{} . {}", address.ip(), address.port())))
}

/// Waits until the kernel does not have it any more, and says when that was seen.
async fn kernel_closes(address: SocketAddr) -> anyhow::Result<OffsetDateTime> {
    wait_for("the kernel to close", LIMIT, async || {
        let now = clock::now();
        ensure!(!kernel_has(address)?, "{}", kernel()?);
        Ok(now)
    })
    .await
}

/// Looks for a while whether something stays as it is.
async fn stays(mut look: impl AsyncFnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let until = Instant::now() + SILENCE;
    while Instant::now() < until {
        look().await?;
        sleep(TICK).await;
    }
    Ok(())
}

/// Says in a line of the test's output what was measured.
#[expect(clippy::print_stderr, reason = "figures are for people")]
fn report(what: &str, span: time::Duration) {
    eprintln!("figure: {what}: {} ms", span.whole_milliseconds());
}

/// Checks that the last sign of life was before the end, and not too long before.
fn check_end(what: &str, last: OffsetDateTime, end: OffsetDateTime) -> anyhow::Result<()> {
    report(&format!("{what}, before the end"), end - last);
    ensure!(last <= end, "{what}: {last} is after {end}");
    ensure!(end - last <= EARLY_MAX, "{what}: {last} is long before {end}");
    Ok(())
}

#[test]
fn a_port_is_reached_while_it_is_open_and_nothing_else_is() -> anyhow::Result<()> {
    netns::test("a_port_is_reached_while_it_is_open_and_nothing_else_is", async || {
        let fleet = fleet().await?;
        let gateway = Gateway::start(&fleet, "gateway").await?;
        let other = Gateway::start(&fleet, "other").await?;
        ensure!(is_closed(gateway.at(PORT)).await && is_closed(gateway.at_ipv6(PORT)).await);
        let granted = grant(&fleet, &gateway.device, 60).await?;
        ensure!(is_closed(gateway.at(PORT)).await, "a grant alone opens nothing");
        let opening = open(&fleet, &gateway.device, PORT, 600).await?;
        ensure!(opening["expires_at"] == granted["ends_at"], "{opening}");
        ensure!(opening["endpoint"]["ipv4"] == gateway.tunnel.ipv4.to_string(), "{opening}");
        for address in [gateway.at(PORT), gateway.at_ipv6(PORT)] {
            drop(Stream::open(address).await.with_context(|| format!("{address}: {}", kernel().unwrap_or_default()))?);
        }
        let metrics = fleet.server.operations("/metrics").await?.1;
        ensure!(metric(&metrics, "cloudlink_openings_live", "")?.total_cmp(&1.0).is_eq(), "{metrics}");

        // The other port, the other device, the other protocol; all at once, for each takes its time.
        let closed = tokio::join!(
            is_closed(gateway.at(OTHER_PORT)),
            is_closed(gateway.at_ipv6(OTHER_PORT)),
            is_closed(other.at(PORT)),
            is_closed(other.at_ipv6(PORT)),
        );
        ensure!(closed == (true, true, true, true), "{closed:?}");
        ensure!(is_closed_for_udp(&gateway).await?);
        // And the way back: the device reaches nothing with it that it did not before.
        let gateway_address = SocketAddr::from((gateway.tunnel.gateway_ipv4, fleet.server.people.port()));
        let reached = gateway.site.run(async || Ok(!is_closed(gateway_address).await))?;
        ensure!(!reached, "the device reaches {gateway_address}");

        let stream = Stream::open(gateway.at(PORT)).await?;
        fleet.operator.post(&format!("/openings/{}/close", text(&opening, "id")?), &json!({})).await?;
        let closed = clock::now();
        let last = stream.cut(&gateway, LIMIT).await?;
        report("closed by hand, to the last byte", last - closed);
        stream.breaks().await?;
        ensure!(last - closed < REVOKED_LIMIT);
        ensure!(is_closed(gateway.at(PORT)).await && !kernel_has(gateway.at(PORT))?);
        Ok(())
    })
}

#[test]
fn the_kernel_cuts_what_is_established_when_the_time_is_up() -> anyhow::Result<()> {
    netns::test("the_kernel_cuts_what_is_established_when_the_time_is_up", async || {
        let fleet = fleet().await?;
        let gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        for (address, family) in [(gateway.at(PORT), "IPv4"), (gateway.at_ipv6(PORT), "IPv6")] {
            let opening = open(&fleet, &gateway.device, PORT, 5).await?;
            let stream = Stream::open(address).await?;
            let last = stream.cut(&gateway, LIMIT).await?;
            check_end(&format!("last byte over {family}"), last, time_of(&opening, "expires_at")?)?;
            ended(&fleet, &opening, "expired").await?;
            stream.breaks().await?;
            // Nothing of it comes through later, however often the kernels try.
            stays(async || {
                ensure!(stream.last() <= Some(last) && gateway.heard.last() <= Some(last), "it went on");
                Ok(())
            })
            .await?;
            ensure!(is_closed(address).await);
        }

        // Several at once: the port is open as long as one of them is.
        let short = open(&fleet, &gateway.device, PORT, 4).await?;
        let longest = open(&fleet, &gateway.device, PORT, 300).await?;
        let long = open(&fleet, &gateway.device, PORT, 9).await?;
        let stream = Stream::open(gateway.at(PORT)).await?;
        // The kernel is told of the sooner end, too.
        fleet.operator.post(&format!("/openings/{}/close", text(&longest, "id")?), &json!({})).await?;
        ended(&fleet, &short, "expired").await?;
        ensure!(!stream.is_silent());
        check_end("last byte of several openings", stream.cut(&gateway, LIMIT).await?, time_of(&long, "expires_at")?)
    })
}

#[test]
fn the_kernel_closes_on_time_while_the_server_stands_still() -> anyhow::Result<()> {
    netns::test("the_kernel_closes_on_time_while_the_server_stands_still", async || {
        let mut fleet = fleet().await?;
        let mut gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        let opening = open(&fleet, &gateway.device, PORT, 6).await?;
        let stream = Stream::open(gateway.at(PORT)).await?;
        fleet.server.program().signal(Signal::SIGSTOP)?;
        let closed = wait_for_kernel(&gateway).await;
        fleet.server.program().signal(Signal::SIGCONT)?;
        let end = time_of(&opening, "expires_at")?;
        check_end("stopped: the kernel's elements are gone", closed?, end)?;
        // It was as if nothing had come in between: what stood still is not let through, and nothing is opened anew.
        let silent = stream.last().context("it never began")?;
        ensure!(silent < end, "{silent} is after {end}");
        ended(&fleet, &opening, "expired").await?;
        stays(async || {
            ensure!(!kernel_has(gateway.at(PORT))?, "{}", kernel()?);
            Ok(())
        })
        .await?;
        ensure!(stream.last() == Some(silent), "it went on");
        gateway.is_up_again(&fleet, 1).await?;
        ensure!(is_closed(gateway.at(PORT)).await);
        Ok(())
    })
}

/// Of both families: the later of the two.
async fn wait_for_kernel(gateway: &Gateway) -> anyhow::Result<OffsetDateTime> {
    ensure!(kernel_has(gateway.at(PORT))? && kernel_has(gateway.at_ipv6(PORT))?, "{}", kernel()?);
    let (ipv4, ipv6) = (kernel_closes(gateway.at(PORT)).await?, kernel_closes(gateway.at_ipv6(PORT)).await?);
    Ok(ipv4.max(ipv6))
}

/// The database's processes, which stand still as long as this is there.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn new(fleet: &Fleet) -> anyhow::Result<Self> {
        let directory = fleet.server.data_dir().join("postgres/data").canonicalize()?;
        let works_there = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
        let processes = std::fs::read_dir("/proc")?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(works_there);
        let frozen = Self(pids.map(Pid::from_raw).collect());
        ensure!(frozen.0.len() > 3, "no database in {}", directory.display());
        frozen.signal(Signal::SIGSTOP);
        Ok(frozen)
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // One may have ended by itself.
            let _ = kill(*pid, signal);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

#[test]
fn without_the_database_nothing_stays_open_for_longer() -> anyhow::Result<()> {
    netns::test("without_the_database_nothing_stays_open_for_longer", async || {
        let fleet = fleet().await?;
        let gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        let opening = open(&fleet, &gateway.device, PORT, 8).await?;
        let stream = Stream::open(gateway.at(PORT)).await?;
        let frozen = Frozen::new(&fleet)?;
        let last = stream.cut(&gateway, LIMIT).await?;
        check_end("without the database: last byte", last, time_of(&opening, "expires_at")?)?;
        ensure!(is_closed(gateway.at(PORT)).await && !kernel_has(gateway.at(PORT))?);
        drop(frozen);
        ended(&fleet, &opening, "expired").await?;
        ensure!(is_closed(gateway.at(PORT)).await);
        ensure!(stream.last() <= Some(last) && gateway.heard.last() <= Some(last), "it went on");
        Ok(())
    })
}

#[test]
fn whoever_takes_the_permission_away_cuts_within_a_second() -> anyhow::Result<()> {
    netns::test("whoever_takes_the_permission_away_cuts_within_a_second", async || {
        let fleet = fleet().await?;
        let gateway = Gateway::start(&fleet, "gateway").await?;
        let cut = async |stream: &Stream, opening: &Value, began: OffsetDateTime, what: &str, reason: &str| {
            let took = stream.cut(&gateway, LIMIT).await? - began;
            report(&format!("{what}, from the call to the last byte"), took);
            ensure!(took < REVOKED_LIMIT, "{what}: {took}");
            ended(&fleet, opening, reason).await?;
            ensure!(!kernel_has(gateway.at(PORT))?, "{}", kernel()?);
            ensure!(is_closed(gateway.at(PORT)).await, "{what}");
            anyhow::Ok(())
        };

        let granted = text(&grant(&fleet, &gateway.device, 600).await?, "id")?;
        let (opening, stream) = opened(&fleet, &gateway).await?;
        let began = clock::now();
        fleet.tenant.post(&format!("/grants/{granted}/revoke"), &json!({})).await?;
        cut(&stream, &opening, began, "grant revoked", "grant_revoked").await?;

        grant(&fleet, &gateway.device, 600).await?;
        let (opening, stream) = opened(&fleet, &gateway).await?;
        let began = clock::now();
        let operator = format!("/people/{}", fleet.operator_id);
        let set = async |active: bool| {
            let body = json!({ "active": active });
            fleet.admin.call(reqwest::Method::PATCH, &operator, &[], Some(&body)).await?.success()
        };
        set(false).await?;
        cut(&stream, &opening, began, "operator shut out", "operator_shut_out").await?;
        set(true).await?;

        let (opening, stream) = opened(&fleet, &gateway).await?;
        let began = clock::now();
        fleet.tenant.post(&format!("/devices/{}/revoke", gateway.device.id), &json!({})).await?;
        cut(&stream, &opening, began, "device revoked", "device_revoked").await
    })
}

async fn opened(fleet: &Fleet, gateway: &Gateway) -> anyhow::Result<(Value, Stream)> {
    let opening = open(fleet, &gateway.device, PORT, 300).await?;
    Ok((opening, Stream::open(gateway.at(PORT)).await?))
}

#[test]
fn a_device_that_comes_back_has_the_time_that_is_left() -> anyhow::Result<()> {
    netns::test("a_device_that_comes_back_has_the_time_that_is_left", async || {
        let fleet = fleet().await?;
        let mut gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        let opening = open(&fleet, &gateway.device, PORT, 25).await?;
        let before = gateway.at(PORT);
        drop(Stream::open(before).await?);
        gateway.client.program().stop()?;
        // Without its tunnel nothing is open, whoever may get the address.
        kernel_closes(before).await?;
        let shown = show(&fleet, &opening).await?;
        ensure!(shown["state"] == "open" && shown["expires_at"] == opening["expires_at"], "{shown}");
        gateway.client.start_again()?;
        gateway.is_up_again(&fleet, 2).await?;
        let stream =
            wait_for("the port to be open again", LIMIT, async || Stream::open(gateway.at(PORT)).await).await?;
        check_end(
            "after a reconnect: last byte",
            stream.cut(&gateway, 2 * LIMIT).await?,
            time_of(&opening, "expires_at")?,
        )?;
        ended(&fleet, &opening, "expired").await
    })
}

#[test]
fn what_a_killed_server_had_open_ends_on_time_and_is_there_again_after_the_restart() -> anyhow::Result<()> {
    let name = "what_a_killed_server_had_open_ends_on_time_and_is_there_again_after_the_restart";
    netns::test(name, async || {
        let mut fleet = fleet().await?;
        let mut gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        let short = open(&fleet, &gateway.device, PORT, 6).await?;
        let long = open(&fleet, &gateway.device, OTHER_PORT, 60).await?;
        fleet.server.kill()?;
        ensure!(kernel_has(gateway.at(OTHER_PORT))?, "the kernel goes on with what it has");
        check_end(
            "killed: the kernel's elements are gone",
            wait_for_kernel(&gateway).await?,
            time_of(&short, "expires_at")?,
        )?;
        fleet.server.start_again().await?;
        gateway.is_up_again(&fleet, 2).await?;
        let address = gateway.at(OTHER_PORT);
        let stream = wait_for("the port to be open again", LIMIT, async || Stream::open(address).await).await?;
        ensure!(is_closed(gateway.at(PORT)).await, "its time was up");
        let shown = show(&fleet, &long).await?;
        ensure!(shown["expires_at"] == long["expires_at"] && shown["state"] == "open", "{shown}");
        check_end("after a restart: last byte", stream.cut(&gateway, 4 * LIMIT).await?, time_of(&long, "expires_at")?)
    })
}

#[test]
fn an_address_that_goes_to_another_device_is_closed() -> anyhow::Result<()> {
    netns::test("an_address_that_goes_to_another_device_is_closed", async || {
        // Five devices a node.
        let fleet = Fleet::start_with(&Settings::with_tunnels(&["tunnel.slice_prefix=29"])).await?;
        let mut gateway = Gateway::start(&fleet, "gateway").await?;
        grant(&fleet, &gateway.device, 600).await?;
        let opening = open(&fleet, &gateway.device, PORT, 300).await?;
        drop(Stream::open(gateway.at(PORT)).await?);
        gateway.client.program().stop()?;
        fleet.wait_for_link(&gateway.device.id, "closed").await?;
        let socket = fleet.server.data_dir().join("postgres/run");
        let options = PgConnectOptions::new_without_pgpass().socket(socket).port(5432);
        let options = options.username("postgres").database("cloudlink");
        let mut database = PgConnection::connect_with(&options).await?;
        // Its address is the only one that can be taken over.
        for query in [
            "update tunnel_addresses set used_at = used_at - interval '1 day'",
            "update links set proven_at = proven_at - interval '1 day'",
        ] {
            sqlx::query(query).execute(&mut database).await?;
        }
        for host in 3..=6 {
            let taken = fleet.enrolled(&format!("gateway {host}")).await?;
            let query = "insert into tunnel_addresses (slice, host, device_id) select slice, $1, $2 from tunnel_slices";
            let query = sqlx::query(query).bind(host).bind(Uuid::parse_str(&taken.id)?);
            query.execute(&mut database).await?;
        }

        let next = Gateway::start(&fleet, "next").await?;
        ensure!(next.tunnel.ipv4 == gateway.tunnel.ipv4, "{:?}", next.tunnel);
        ensure!(is_closed(next.at(PORT)).await && !kernel_has(next.at(PORT))?, "{}", kernel()?);
        let shown = show(&fleet, &opening).await?;
        ensure!(shown["state"] == "open" && shown["endpoint"].is_null(), "{shown}");
        Ok(())
    })
}

#[test]
fn the_command_line_opens_lists_and_closes() -> anyhow::Result<()> {
    netns::test("the_command_line_opens_lists_and_closes", async || {
        let fleet = fleet().await?;
        let gateway = Gateway::start(&fleet, "gateway").await?;
        let cli = fleet.cli(fleet.operator.token());
        let arguments = ["opening", "open", "gateway", "--port", "2222", "--for", "10m", "--reason", "a test"];
        let refused = cli.run(&arguments).await?;
        ensure!(refused.code == Some(5), "{refused:?}");
        grant(&fleet, &gateway.device, 600).await?;
        let opened = cli.run(&arguments).await?;
        ensure!(opened.code == Some(0) && opened.stdout.contains(&gateway.tunnel.ipv4.to_string()), "{opened:?}");
        drop(Stream::open(gateway.at(PORT)).await?);
        let listed = cli.run(&["openings", "--open", "--json"]).await?;
        let listed: Value = serde_json::from_str(&listed.stdout)?;
        let id = text(&listed[0], "id")?;
        ensure!(listed[0]["port"] == PORT && listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
        let closed = cli.run(&["opening", "close", &id]).await?;
        ensure!(closed.code == Some(0) && closed.stdout.contains("closed"), "{closed:?}");
        // The node hears of it, and does it: within a second.
        wait_for("a closed port", LIMIT, async || {
            ensure!(is_closed(gateway.at(PORT)).await);
            Ok(())
        })
        .await?;
        let shown = cli.run(&["opening", "show", &id]).await?;
        ensure!(shown.code == Some(0) && shown.stdout.contains("ended: closed"), "{shown:?}");
        Ok(())
    })
}
