//! What gets somewhere while the kernel's rules are taken away, and while the server is gone.
//!
//! Three streams go on all the time: a device that attacks through its tunnel; the same packets behind the server's back, where the
//! kernel's rules alone are in their way; and an operator's connection to an open port of the other device. What is printed of
//! each drift: how long it lasted, how much passed meanwhile, and how long the connection stood still.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::attack::{self, Product, Sight, Stream, What, here, rules};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::directory;
use cloudlink_tests::netns;
use cloudlink_tests::openvpn::UP;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::traffic::metric;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// From a drift until everything is as declared: a busy machine takes longer than the second that it is found in.
const REPAIR_LIMIT: Duration = Duration::from_secs(10);
/// How long everything is watched after it was repaired.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// For what the streams have sent to be seen.
const SEEN_LIMIT: Duration = Duration::from_secs(10);
/// For tunnels to be cut.
const CUT_LIMIT: Duration = Duration::from_secs(20);

/// Packets a second through the tunnel, and behind the server: as exact as milliseconds.
const DEVICE_RATE: u32 = 200;
const INSIDE_RATE: u32 = 1_000;
/// What is in the marks of the two streams.
const DEVICE: u32 = 1;
const INSIDE: u32 = 2;
const DEVICE_CASES: &str = "(device/tunnel-address|internet|other-node/gateway|node/outer-address|gateway/tcp/ssh|\
                            gateway/udp/dns|source/other-device/to-gateway|fragment/gateway/halves|multicast/all-.*)/.*";
const INSIDE_CASES: &str = "(gateway/udp/dns|internet/udp|device/tunnel-address/udp|node/outer-address/udp)/.*";

/// The port of the other device that is open.
const OPEN_PORT: u16 = 22;

/// What somebody does to the host, with more rights than sense.
const DRIFTS: [(&str, &str); 10] = [
    ("ip_forward on", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
    ("IPv6 forwarding on", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"),
    ("rp_filter off", "echo 0 > /proc/sys/net/ipv4/conf/cloudlink0/rp_filter"),
    ("source routes on", "echo 1 > /proc/sys/net/ipv4/conf/cloudlink0/accept_source_route"),
    ("forward policy accept", "nft 'chain inet cloudlink cl_forward { policy accept; }'"),
    (
        "accepted in front",
        "for chain in cl_enter cl_input cl_forward cl_output_early cl_output; do
             nft insert rule inet cloudlink $chain accept
         done",
    ),
    ("openings emptied", "nft flush set inet cloudlink cl_openings4"),
    (
        "rules and sets deleted",
        "nft 'flush table inet cloudlink; delete set inet cloudlink cl_openings4; delete set inet cloudlink cl_openings6'",
    ),
    ("rules flushed", "nft flush table inet cloudlink"),
    ("table deleted", "nft delete table inet cloudlink"),
];

#[test]
fn nothing_gets_out_while_the_rules_are_taken_away_and_put_back() -> anyhow::Result<()> {
    let name = "nothing_gets_out_while_the_rules_are_taken_away_and_put_back";
    if let Some(what) = attack::lacking() {
        writeln!(std::io::stderr(), "skipped: {name}: {what}")?;
        return Ok(());
    }
    netns::test(name, async || {
        let directory = directory()?;
        let mut it = Product::start(directory.path(), &[]).await?;
        it.fleet.open_port(&it.victim_id, OPEN_PORT).await?;
        let declared = declared(&it)?;
        let mut report = Report::default();
        let talk = Talk::begin(&it).await?;
        let before = dropped(&it).await?;
        let streams = Streams::begin(&it)?;

        for (name, line) in DRIFTS {
            let figures = drift(&mut it, &declared, &talk, async |_| here(line).map(drop)).await;
            report.add(name, figures.with_context(|| name)?);
        }
        let figures = drift(&mut it, &declared, &talk, while_it_stands_still).await?;
        // Else the figures would be of something that cannot show anything.
        ensure!(figures.inside > 0, "nothing was seen without rules: {figures:?}");
        report.add("deleted while stopped", figures);
        talk.end();
        let figures = while_it_cannot_be_repaired(&mut it, &declared).await?;
        report.add("held by somebody else", figures);
        drop(streams);
        report.dropped = dropped(&it).await? - before;
        report.found = counted(&it, "cloudlink_isolation_drifts_total").await?;
        report.add("killed, and started again", while_it_is_gone(&mut it).await?);
        report.show()
    })
}

/// How many packets of devices the server has dropped.
async fn dropped(it: &Product) -> anyhow::Result<f64> {
    counted(it, "cloudlink_tunnel_dropped_total").await
}

async fn counted(it: &Product, name: &str) -> anyhow::Result<f64> {
    metric(&it.fleet.server.operations("/metrics").await?.1, name, "")
}

/// What came of one drift.
#[derive(Debug, Default)]
struct Figures {
    repaired_after: Duration,
    /// Packets of the device that were seen anywhere but in its tunnel.
    device: usize,
    /// Packets that were seen behind the kernel's rules.
    inside: usize,
    /// From the first of those to the last.
    exposed: Duration,
    /// The longest time without an answer through the opening.
    paused: Duration,
}

/// Everything that has to be as declared, in words.
fn declared(it: &Product) -> anyhow::Result<String> {
    let settings = "for file in ipv4/conf/cloudlink0/forwarding ipv4/conf/cloudlink0/rp_filter \
                    ipv4/conf/cloudlink0/accept_source_route ipv6/conf/cloudlink0/forwarding; do cat $file; done";
    let openings = here(&format!("cd /proc/sys/net; {settings}; nft list set inet cloudlink cl_openings4"))?;
    let is_open = openings.contains(&format!("{} . {OPEN_PORT} ", it.other.ipv4));
    let settings: Vec<_> = openings.lines().take(4).collect();
    Ok(format!("{}\n{settings:?}\nopen: {is_open}", rules()?))
}

/// Lets something happen to the host, and waits until it is as declared again.
async fn drift(
    it: &mut Product,
    declared_before: &str,
    talk: &Talk,
    happen: impl AsyncFnOnce(&mut Product) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    sights(it, now_ns()).await?;
    let began = Instant::now();
    happen(it).await?;
    wait_for("the host to be as declared", REPAIR_LIMIT, async || {
        let found = declared(it)?;
        ensure!(found == declared_before, "{found}");
        Ok(())
    })
    .await?;
    let repaired_after = began.elapsed();
    let seen = sights(it, now_ns() + AFTERWARDS.as_nanos()).await?;
    let paused = talk.longest_pause(began).await?;
    Ok(Figures { repaired_after, paused, ..Figures::of(&seen) })
}

/// The rules go while the server is stopped, which it can do nothing about: the kernel's wall is open as long as that lasts.
async fn while_it_stands_still(it: &mut Product) -> anyhow::Result<()> {
    it.fleet.server.program().signal(Signal::SIGSTOP)?;
    here("nft delete table inet cloudlink")?;
    wait_until(now_ns() + Duration::from_millis(300).as_nanos()).await;
    it.fleet.server.program().signal(Signal::SIGCONT)
}

/// Everything that was seen until then. The stream behind the server is seen all the time, where the kernel has not judged it.
async fn sights(it: &mut Product, until_ns: u128) -> anyhow::Result<Vec<Sight>> {
    let mut seen = attack::Seen::default();
    wait_for("the stream to go on", SEEN_LIMIT, async || {
        it.watchers.look(&mut seen)?;
        let last = seen.sights.iter().filter(|sight| sight.place == Product::UNJUDGED).map(|sight| sight.at_ns).max();
        ensure!(
            last.is_some_and(|last| u128::from(last) >= until_ns),
            "the last was {last:?}, of {}",
            seen.sights.len()
        );
        Ok(())
    })
    .await?;
    Ok(seen.sights)
}

impl Figures {
    fn of(sights: &[Sight]) -> Self {
        let of_stream =
            |stream: u32| sights.iter().filter(move |sight| matches!(sight.what, What::Case(_, it) if it == stream));
        let inside: Vec<_> = of_stream(INSIDE).filter(|sight| sight.place != Product::UNJUDGED).collect();
        let (first, last) =
            (inside.iter().map(|sight| sight.at_ns).min(), inside.iter().map(|sight| sight.at_ns).max());
        let exposed = last.zip(first).map_or(0, |(last, first)| last - first);
        Self {
            device: of_stream(DEVICE).count(),
            inside: inside.len(),
            exposed: Duration::from_nanos(exposed),
            ..Self::default()
        }
    }
}

fn now_ns() -> u128 {
    u128::try_from(clock::now().unix_timestamp_nanos()).expect("it is later than 1970")
}

async fn wait_until(then_ns: u128) {
    let left = Duration::from_nanos(u64::try_from(then_ns.saturating_sub(now_ns())).unwrap_or(u64::MAX));
    tokio::time::sleep(left).await;
}

/// The two streams of attempts. Dropped, they end.
struct Streams {
    _device: Stream,
    _inside: Stream,
}

impl Streams {
    fn begin(it: &Product) -> anyhow::Result<Self> {
        Ok(Self {
            _device: it.device().stream(&it.own.interface, DEVICE_RATE, DEVICE, DEVICE_CASES)?,
            _inside: it.inside().stream(Product::QUEUE, INSIDE_RATE, INSIDE, INSIDE_CASES)?,
        })
    }
}

/// An operator's connection to the open port, on which something is said and answered all the time.
struct Talk {
    answers: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Talk {
    async fn begin(it: &Product) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect((it.other.ipv4, OPEN_PORT)).await?;
        let answers = Arc::new(Mutex::new(vec![Instant::now()]));
        let heard = Arc::clone(&answers);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1_024];
            loop {
                stream.write_all(b"?").await?;
                ensure!(stream.read(&mut buffer).await? > 0, "the connection was closed");
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Self { answers, task })
    }

    /// The longest time without an answer since then, when it goes on again.
    async fn longest_pause(&self, since: Instant) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        wait_for("the connection to go on", REPAIR_LIMIT, async || {
            ensure!(!self.task.is_finished(), "it has ended");
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(answers.last().is_some_and(|last| *last > asked), "no answer");
            let late: Vec<_> = answers.iter().rev().take_while(|answer| **answer > since).copied().collect();
            Ok(late.windows(2).map(|pair| pair[0] - pair[1]).max().unwrap_or_default())
        })
        .await
    }

    fn end(self) {
        self.task.abort();
    }
}

/// Somebody takes the table for his own: the kernel lets nobody else change it. No tunnel may live then, and none begin.
async fn while_it_cannot_be_repaired(it: &mut Product, declared_before: &str) -> anyhow::Result<Figures> {
    sights(it, now_ns()).await?;
    let before = [it.attacker.log_text()?.len(), it.victim.log_text()?.len()];
    let robber = Robber::take()?;
    wait_for("a node that is not ready", CUT_LIMIT, async || {
        let (status, body) = it.fleet.server.operations("/readyz").await?;
        ensure!(status == 503, "{status}: {body}");
        Ok(())
    })
    .await?;
    // Each is cut, comes again twice at least, and gets nowhere.
    for (client, before) in [&it.attacker, &it.victim].into_iter().zip(before) {
        wait_for("a client that is refused", CUT_LIMIT, async || {
            let log = client.log_text()?;
            let new = &log[before..];
            let tries = new.matches("Attempting to establish TCP connection").count();
            ensure!(tries >= 2, "{tries} tries: {new}");
            ensure!(!new.contains(UP), "it has a tunnel: {new}");
            Ok(())
        })
        .await?;
    }
    robber.give_back()?;
    let began = Instant::now();
    it.fleet.server.ready().await?;
    let repaired_after = began.elapsed();
    let (attacker, victim) = (it.attacker.is_up(2).await?, it.victim.is_up(2).await?);
    ensure!(attacker.ipv4 == it.own.ipv4 && victim.ipv4 == it.other.ipv4, "{attacker:?} {victim:?}");
    // What was open comes back with the tunnel.
    wait_for("the host to be as declared", REPAIR_LIMIT, async || {
        let found = declared(it)?;
        ensure!(found == declared_before, "{found}");
        Ok(())
    })
    .await?;
    let seen = sights(it, now_ns() + AFTERWARDS.as_nanos()).await?;
    Ok(Figures { repaired_after, ..Figures::of(&seen) })
}

/// Who has taken the table: as long as its netlink socket is open.
struct Robber {
    nft: Child,
}

impl Robber {
    fn take() -> anyhow::Result<Self> {
        let mut nft = Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let line = b"delete table inet cloudlink; add table inet cloudlink { flags owner; }\n";
        nft.stdin.as_mut().context("it is piped")?.write_all(line)?;
        Ok(Self { nft })
    }

    fn give_back(mut self) -> anyhow::Result<()> {
        drop(self.nft.stdin.take());
        ensure!(self.nft.wait()?.success(), "nft has failed");
        Ok(())
    }
}

/// The server is killed: its interface goes with it, and the rules stay. Whoever makes such an interface meanwhile meets them.
async fn while_it_is_gone(it: &mut Product) -> anyhow::Result<Figures> {
    let before = rules()?;
    it.fleet.server.kill()?;
    ensure!(rules()? == before, "the rules are not what they were");
    ensure!(here("ip link show cloudlink0").is_err(), "the interface is still there");
    let (gateway, gateway_ipv6) = (it.own.gateway_ipv4, it.own.gateway_ipv6);
    here(&format!(
        "ip tuntap add cloudlink0 mode tun multi_queue
         ip addr add {gateway}/16 dev cloudlink0
         ip addr add {gateway_ipv6}/64 dev cloudlink0 nodad
         ip link set cloudlink0 up
         echo 1 > /proc/sys/net/ipv4/conf/cloudlink0/forwarding"
    ))?;
    it.watch_node().await?;
    let stream = it.inside().stream("queue:cloudlink0", INSIDE_RATE, INSIDE, INSIDE_CASES)?;
    sights(it, now_ns()).await?;
    let seen = sights(it, now_ns() + Duration::from_millis(500).as_nanos()).await?;
    let figures = Figures::of(&seen);
    ensure!(figures.inside == 0, "{figures:?}");
    // It could be seen.
    here("nft delete table inet cloudlink")?;
    let seen = sights(it, now_ns() + AFTERWARDS.as_nanos()).await?;
    ensure!(Figures::of(&seen).inside > 0, "nothing is seen without rules");
    drop(stream);
    here("ip link del cloudlink0")?;

    let began = Instant::now();
    it.fleet.server.start_again().await?;
    ensure!(rules()? == before, "the rules are not what they were");
    Ok(Figures { repaired_after: began.elapsed(), ..figures })
}

#[derive(Default)]
struct Report {
    lines: Vec<(String, Figures)>,
    /// Packets of the device that the server dropped meanwhile.
    dropped: f64,
    /// Drifts that it found.
    found: f64,
}

impl Report {
    fn add(&mut self, name: &str, figures: Figures) {
        self.lines.push((name.to_owned(), figures));
    }

    /// Prints it, also while tests are silent. Of a device nothing may have passed.
    fn show(&self) -> anyhow::Result<()> {
        let mut out = std::io::stderr().lock();
        writeln!(
            out,
            "\n{:28}{:>14}{:>18}{:>20}{:>14}{:>16}",
            "drift", "repaired (ms)", "of device passed", "rules alone passed", "exposed (ms)", "opening paused"
        )?;
        for (name, figures) in &self.lines {
            let Figures { repaired_after, device, inside, exposed, paused } = figures;
            let ms = |duration: &Duration| format!("{:.0}", duration.as_secs_f64() * 1e3);
            writeln!(
                out,
                "{name:28}{:>14}{device:>18}{inside:>20}{:>14}{:>16}",
                ms(repaired_after),
                ms(exposed),
                ms(paused)
            )?;
        }
        let Self { dropped, found, .. } = self;
        writeln!(out, "{dropped} packets of the device were dropped meanwhile; {found} drifts were found\n")?;
        // The stream went on all the time, and nothing went unnoticed.
        ensure!(*dropped > f64::from(DEVICE_RATE), "{dropped} packets were dropped");
        ensure!(*found >= 11.0, "{found} drifts were found");
        let leaks: Vec<_> = self.lines.iter().filter(|(_, figures)| figures.device > 0).collect();
        ensure!(leaks.is_empty(), "a device got somewhere: {leaks:?}");
        Ok(())
    }
}
