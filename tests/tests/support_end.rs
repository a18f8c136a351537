//! The end of support sessions: whoever takes the permission away, and whatever else fails, every stream is cut within a second, and
//! whoever sat there is told why. The delay is measured by the server: `cut_off_ms`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::netns::{self, Site, done};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use cloudlink_tests::support::{Forwarding, Frozen, cut_off_ms};
use cloudlink_tests::terminal::Terminal;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(40);
/// What is promised.
const CUT_OFF_MS_MAX: u64 = 1_000;
/// What a busy machine may add to a time that this test measures from outside: programs have to be run to be seen to end.
const SEEN_MAX: time::Duration = time::Duration::seconds(5);
/// The clocks of two programs of one machine.
const GRACE: time::Duration = time::Duration::milliseconds(50);
/// Between two bytes of a stream.
const TICK: Duration = Duration::from_millis(20);

/// A TCP server that says something all the time.
async fn ticks(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            while stream.write_all(b".").await.is_ok() {
                sleep(TICK).await;
            }
        });
    }
}

/// A connection, and when something came on it last.
struct Stream {
    last: Arc<Mutex<Option<OffsetDateTime>>>,
    /// Ends with the connection.
    task: JoinHandle<()>,
}

impl Stream {
    async fn open(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let mut connection = TcpStream::connect(address).await?;
        let last = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&last);
        let task = tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while connection.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
            }
        });
        let stream = Self { last, task };
        wait_for("the first byte", LIMIT, async || stream.last()).await?;
        Ok(stream)
    }

    fn last(&self) -> anyhow::Result<OffsetDateTime> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).context("nothing came")
    }

    /// Waits until it is over, and says when the last byte came.
    async fn ends(&self) -> anyhow::Result<OffsetDateTime> {
        wait_for("the end of the connection", LIMIT, async || {
            ensure!(self.task.is_finished(), "it goes on");
            self.last()
        })
        .await
    }
}

/// A terminal in which something is shown all the time, and a forwarded connection on which something is said all the time.
struct Busy {
    terminal: Terminal,
    shell: Value,
    pid: u32,
    forwarding: Forwarding,
    stream: Stream,
}

impl Busy {
    async fn start(fleet: &Fleet, operator: &Api, device: &str) -> anyhow::Result<Self> {
        let mut terminal = fleet.shell(operator, device).await?;
        let shell = fleet.newest_session().await?;
        terminal.answers("echo \"p\"id=$$=", "pid=").await?;
        let pid = wait_for("a process id", LIMIT, async || {
            let seen = terminal.seen();
            let pid = seen.rsplit("pid=").next().and_then(|rest| rest.split_once('=')).context("not whole yet")?.0;
            Ok(pid.parse()?)
        })
        .await?;
        terminal.answers("while :; do echo ti$((1))ck; sleep 0.02; done", "ti1ck").await?;
        let address = port::free()?;
        tokio::spawn(ticks(TcpListener::bind(address).await?));
        let route = format!("0:localhost:{}", address.port());
        let forwarding = Forwarding::start(&fleet.cli(operator.token()), device, &[&route], &[]).await?;
        let stream = Stream::open(forwarding.local(0)?).await?;
        Ok(Self { terminal, shell, pid, forwarding, stream })
    }

    /// Waits until all of it has been cut for this reason, and checks that it was in time. `began` is when it had to be over.
    async fn ends(mut self, fleet: &Fleet, reason: &str, began: OffsetDateTime) -> anyhow::Result<()> {
        let last = self.stream.ends().await?;
        ensure!(last - began < SEEN_MAX, "{reason}: the last byte came {} late", last - began);
        ensure!(self.terminal.ends().await? == 9, "{reason}: {}", self.terminal.seen());
        ensure!(!self.terminal.is_raw()?, "{reason}: the terminal is not as it was");
        let seen = self.terminal.seen();
        let words = format!("the server closed the session: {}", reason.replace('_', " "));
        let told = seen.rsplit_once(&words).with_context(|| format!("{reason} is not told: {seen}"))?.1;
        ensure!(!told.contains("ti1ck"), "{reason}: something came after the end: {told}");

        let session = self.forwarding.session(0)?;
        let event = self.forwarding.event("ended").await?;
        ensure!(event["reason"] == reason, "{event}");
        let (code, said) = self.forwarding.ends().await?;
        ensure!(code == Some(9) && said.contains(&reason.replace('_', " ")), "{code:?}: {said}");

        for session in [&self.shell, &session] {
            let ended = fleet.session_ended(session, reason).await?;
            let cut_off_ms = cut_off_ms(&ended)?;
            report(reason, &ended["kind"], cut_off_ms);
            ensure!(cut_off_ms <= CUT_OFF_MS_MAX, "{reason}: {ended}");
            let shown = fleet.cli(fleet.tenant.token()).run(&["support", "show", &text(&ended, "id")?]).await?;
            let words = format!("{cut_off_ms} ms from when it had to be over");
            ensure!(shown.stdout.contains(&words), "{shown:#?}");
        }
        wait_for("the shell to be gone", LIMIT, async || {
            ensure!(!Path::new(&format!("/proc/{}", self.pid)).exists(), "{} is there", self.pid);
            Ok(())
        })
        .await
    }
}

/// Says in a line of the test's output what was measured.
#[expect(clippy::print_stderr, reason = "figures are for people")]
fn report(reason: &str, kind: &Value, cut_off_ms: u64) {
    eprintln!("figure: {reason}, {kind}: {cut_off_ms} ms");
}

fn time_of(value: &Value, member: &str) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::parse(&text(value, member)?, &Rfc3339)?)
}

fn stop(devices: impl IntoIterator<Item = Device>) -> anyhow::Result<()> {
    devices.into_iter().try_for_each(|mut device| device.machine.stop())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_access_away_cuts_what_is_live() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let (device, other) = (fleet.device("gw-1").await?, fleet.device("gw-2").await?);
    let (second, second_id) = fleet.other_operator("second").await?;
    let nothing = json!({});

    let grant = fleet.support_grant(&device.id, 900).await?;
    let busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    // What is under another grant, on another device, goes on.
    fleet.support_grant(&other.id, 900).await?;
    let untouched = Busy::start(&fleet, &fleet.operator, "gw-2").await?;
    let began = clock::now();
    fleet.tenant.post(&format!("/grants/{}/revoke", text(&grant, "id")?), &nothing).await?;
    busy.ends(&fleet, "grant_revoked", began).await?;

    fleet.support_grant(&device.id, 900).await?;
    let busy = Busy::start(&fleet, &second, "gw-1").await?;
    let body = json!({ "active": false });
    let began = clock::now();
    fleet.admin.call(Method::PATCH, &format!("/people/{second_id}"), &[], Some(&body)).await?.success()?;
    busy.ends_for_one_who_is_nobody(&fleet, began).await?;

    let busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    let began = clock::now();
    let body = json!({ "reason": "it scans" });
    fleet.tenant.post(&format!("/devices/{}/quarantine", device.id), &body).await?;
    busy.ends(&fleet, "quarantined", began).await?;
    let refused = fleet.cli(fleet.operator.token()).run(&["shell", "gw-1", "--reason", "r"]).await?;
    ensure!(refused.code == Some(8), "{refused:#?}");

    ensure!(clock::now() - untouched.stream.last()? < SEEN_MAX, "that of another device was cut as well");
    let began = clock::now();
    fleet.tenant.post(&format!("/devices/{}/revoke", other.id), &nothing).await?;
    untouched.ends(&fleet, "device_revoked", began).await?;
    stop([device, other])
}

impl Busy {
    /// As [`Self::ends`], of an operator whose token says nothing any more.
    async fn ends_for_one_who_is_nobody(mut self, fleet: &Fleet, began: OffsetDateTime) -> anyhow::Result<()> {
        let last = self.stream.ends().await?;
        ensure!(last - began < SEEN_MAX, "the last byte came {} late", last - began);
        ensure!(self.terminal.ends().await? == 9 && !self.terminal.is_raw()?, "{}", self.terminal.seen());
        ensure!(self.terminal.seen().contains("operator shut out"), "{}", self.terminal.seen());
        let session = self.forwarding.session(0)?;
        let (code, said) = self.forwarding.ends().await?;
        ensure!(code == Some(9), "{code:?}: {said}");
        for session in [&self.shell, &session] {
            let ended = fleet.session_ended(session, "operator_shut_out").await?;
            let cut_off_ms = cut_off_ms(&ended)?;
            report("operator_shut_out", &ended["kind"], cut_off_ms);
            ensure!(cut_off_ms <= CUT_OFF_MS_MAX, "{ended}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_announced_twice_to_both_sides_and_comes_on_time() -> anyhow::Result<()> {
    let set = vec!["support.warn_before_seconds=7,3".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let device = fleet.device("gw-1").await?;
    let grant = fleet.support_grant(&device.id, 18).await?;
    let ends_at = time_of(&grant, "ends_at")?;
    let busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    let id = text(&busy.shell, "id")?;
    let mut watching = Terminal::start(&fleet.cli(fleet.tenant.token()), &["shell", "--watch", &id], 100, 30)?;
    watching.shows("ti1ck").await?;
    ensure!(ends_at - clock::now() > time::Duration::seconds(7), "this machine is too slow for it");
    for left in [7, 3] {
        for terminal in [&busy.terminal, &watching] {
            terminal.shows_within(&format!("[cloudlink] Access ends in {left} seconds."), LIMIT).await?;
        }
        // Of its terminal, and of its forward.
        wait_for("the device's log to tell of it", LIMIT, async || {
            let log = device.machine.log_text()?;
            let told = log
                .lines()
                .filter(|line| line.contains("access ends soon") && line.contains(&format!("seconds_left={left}")));
            ensure!(told.count() == 2, "{log}");
            Ok(())
        })
        .await?;
    }
    wait_for("the forward to tell of both", LIMIT, async || {
        let told = busy.forwarding.of("warning");
        let told: Vec<_> = told.iter().map(|warning| &warning["seconds_left"]).collect();
        ensure!(told == [7, 3], "{told:?}");
        Ok(())
    })
    .await?;
    busy.ends(&fleet, "grant_ended", ends_at).await?;
    ensure!(watching.ends().await? == 9 && !watching.is_raw()?, "{}", watching.seen());
    ensure!(watching.seen().contains("access has ended"), "{}", watching.seen());
    stop([device])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_so_to_both_sides_first() -> anyhow::Result<()> {
    let set = vec!["shutdown.soft_seconds=3".to_owned()];
    let mut fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let mut busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    fleet.server.program().signal(Signal::SIGTERM)?;
    busy.terminal.shows_within("[cloudlink] This server is stopping: the session ends in 3 seconds.", LIMIT).await?;
    let warning = busy.forwarding.event("warning").await?;
    ensure!(warning["seconds_left"] == 3 && warning["reason"] == "node_lost", "{warning}");
    ensure!(busy.terminal.ends().await? == 9, "{}", busy.terminal.seen());
    ensure!(busy.terminal.seen().contains("the server closed the session: node lost"), "{}", busy.terminal.seen());
    let log = device.machine.log_text()?;
    let told = log.lines().filter(|line| line.contains("the session ends soon") && line.contains("seconds_left=3"));
    ensure!(told.count() == 2, "{log}");
    fleet.server.stop()?;
    fleet.server.start_again().await?;
    fleet.session_ended(&busy.shell, "node_lost").await?;
    stop([device])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_extended_goes_on_to_its_new_end() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = fleet.device("gw-1").await?;
    let grant = fleet.support_grant(&device.id, 16).await?;
    let busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    let first_end = time_of(&grant, "ends_at")?;
    let tenant = fleet.cli(fleet.tenant.token());
    let id = text(&grant, "id")?;
    let extended = tenant.json(&["grant", "extend", &id, "--by", "6s"]).await?;
    wait_for("the first end to pass", LIMIT, async || {
        ensure!(clock::now() > first_end + time::Duration::seconds(2), "{first_end}");
        Ok(())
    })
    .await?;
    wait_for("bytes after the first end", LIMIT, async || {
        ensure!(busy.stream.last()? > first_end + time::Duration::seconds(2), "nothing after {first_end}");
        Ok(())
    })
    .await?;
    busy.ends(&fleet, "grant_ended", time_of(&extended, "ends_at")?).await?;
    stop([device])
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_the_end_comes_on_time() -> anyhow::Result<()> {
    // What cannot be recorded for a while may go on here, so that it is the end that is tested.
    let set = vec!["support.recording_lag_seconds=60".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let device = fleet.device("gw-1").await?;
    let grant = fleet.support_grant(&device.id, 18).await?;
    let mut busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    let ends_at = time_of(&grant, "ends_at")?;
    ensure!(ends_at - clock::now() > time::Duration::seconds(3), "this machine is too slow for it");
    let frozen = Frozen::new(&fleet)?;
    let frozen_at = clock::now();
    let last = busy.stream.ends().await?;
    let late = clock::now() - ends_at;
    // Nobody can say whether it may go on: it waits, and ends by its own clock.
    ensure!(last < ends_at && last - frozen_at < SEEN_MAX, "the last byte came at {last}, frozen was at {frozen_at}");
    ensure!((-GRACE..SEEN_MAX).contains(&late), "it ended {late} late");
    ensure!(busy.terminal.ends().await? == 9, "{}", busy.terminal.seen());
    ensure!(busy.terminal.seen().contains("grant ended"), "{}", busy.terminal.seen());
    drop(frozen);
    let ended = fleet.session_ended(&busy.shell, "grant_ended").await?;
    let cut_off_ms = cut_off_ms(&ended)?;
    report("grant_ended without the database", &ended["kind"], cut_off_ms);
    ensure!(cut_off_ms <= CUT_OFF_MS_MAX, "{ended}");
    stop([device])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_does_not_go_on() -> anyhow::Result<()> {
    let set = vec!["support.recording_lag_seconds=2".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let mut busy = Busy::start(&fleet, &fleet.operator, "gw-1").await?;
    let frozen = Frozen::new(&fleet)?;
    ensure!(busy.terminal.ends().await? == 9, "{}", busy.terminal.seen());
    ensure!(busy.terminal.seen().contains("recording failed"), "{}", busy.terminal.seen());
    drop(frozen);
    fleet.session_ended(&busy.shell, "recording_failed").await?;
    stop([device])
}

#[test]
fn a_server_that_hangs_keeps_no_port_open() -> anyhow::Result<()> {
    netns::test("a_server_that_hangs_keeps_no_port_open", async || {
        // What was not recorded meanwhile would end it as well.
        let settings = Settings::with_tunnels(&["support.recording_lag_seconds=60"]);
        let mut fleet = Fleet::start_with(&settings).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gw-1").await?;
        let tunnel = client.is_up(1).await?;
        fleet.wait_for_link(&device.id, "live").await?;
        let grant = fleet.support_grant(&device.id, 15).await?;
        let port = port::free()?.port();
        let listener = site.run(async || Ok(std::net::TcpListener::bind((tunnel.ipv4, port))?))?;
        listener.set_nonblocking(true)?;
        tokio::spawn(ticks(TcpListener::from_std(listener)?));
        let route = format!("0:localhost:{port}");
        let cli = fleet.cli(fleet.operator.token());
        let forwarding = Forwarding::start(&cli, "gw-1", &[&route], &["--direct"]).await?;
        let stream = Stream::open(forwarding.local(0)?).await?;
        let open = || -> anyhow::Result<bool> {
            let mut nft = std::process::Command::new("nft");
            nft.args(["list", "set", "inet", "cloudlink", "cl_openings4"]);
            Ok(done(nft)?.contains(&format!("{} . {port}", tunnel.ipv4)))
        };
        ensure!(open()?, "it is reached, and not open");
        let ends_at = time_of(&grant, "ends_at")?;
        fleet.server.program().signal(Signal::SIGSTOP)?;
        let closed = wait_for("the kernel to close", Duration::from_secs(60), async || {
            let now = clock::now();
            ensure!(!open()?, "it is open");
            Ok(now)
        })
        .await;
        fleet.server.program().signal(Signal::SIGCONT)?;
        let late = closed? - ends_at;
        ensure!(late < time::Duration::seconds(1), "the kernel closed {late} late");
        let last = stream.ends().await?;
        ensure!(last < ends_at, "{last} is after {ends_at}");
        let session = forwarding.session(0)?;
        let (code, said) = forwarding.ends().await?;
        ensure!(code == Some(9) && said.contains("grant ended"), "{code:?}: {said}");
        fleet.session_ended(&session, "grant_ended").await?;
        Ok(())
    })
}
