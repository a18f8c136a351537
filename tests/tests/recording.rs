//! What is recorded of support sessions: real terminals and forwards, the server killed in the middle, and a player that is not ours.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::support::{Forwarding, Frozen};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(40);
/// The last second, and what was under way.
const LOST_MAX: Duration = Duration::from_millis(1500);

/// An asciicast, read strictly: its header, and its events as (seconds, code, text).
struct Cast {
    header: Value,
    events: Vec<(f64, String, String)>,
}

impl Cast {
    fn read(text: &str) -> anyhow::Result<Self> {
        ensure!(text.ends_with('\n'), "the last line is not whole");
        let mut lines = text.lines();
        let header: Value = serde_json::from_str(lines.next().context("it is empty")?)?;
        ensure!(header["version"] == 2 && header["width"].is_u64() && header["height"].is_u64(), "{header}");
        let events = lines.map(serde_json::from_str).collect::<Result<Vec<(f64, String, String)>, _>>()?;
        ensure!(events.iter().all(|(_, code, _)| ["o", "r", "m"].contains(&code.as_str())), "an unknown event");
        ensure!(events.is_sorted_by_key(|(at, ..)| *at), "times go back");
        Ok(Self { header, events })
    }

    fn of(&self, wanted: &str) -> String {
        self.events.iter().filter(|(_, code, _)| code == wanted).map(|(.., text)| text.as_str()).collect()
    }
}

async fn recording(fleet: &Fleet, session: &Value, state: &str) -> anyhow::Result<Value> {
    let path = format!("/support-sessions/{}/recording", text(session, "id")?);
    wait_for("the end of a recording", LIMIT, async || {
        let shown = fleet.tenant.get(&path).await?;
        ensure!(shown["state"] == state, "{shown}");
        Ok(shown)
    })
    .await
}

/// By the command line, which compares the digest.
async fn export(fleet: &Fleet, somebody: &Api, session: &Value, file: &Path) -> anyhow::Result<String> {
    let file_name = file.to_str().context("a path")?;
    let session = text(session, "id")?;
    let said = fleet.cli(somebody.token()).json(&["recording", "export", &session, "-o", file_name]).await?;
    ensure!(said["verified"] == true, "{said}");
    Ok(std::fs::read_to_string(file)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_recorded_and_played_again() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let (stranger, _) = fleet.other_operator("support-2").await?;
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    terminal.answers("x='Grüße 東京 🛰'; echo \"${#x}: $x\"", "10: Grüße 東京 🛰").await?;
    terminal.answers("read -rsp \"secret$((0)): \" secret && echo \"${#secret} characters\"", "secret0: ").await?;
    terminal.answers("hunter2", "7 characters").await?;
    terminal.resize(120, 40)?;
    wait_for("the new size", LIMIT, async || {
        terminal.type_in("stty size\r")?;
        terminal.shows_within("40 120", Duration::from_millis(500)).await
    })
    .await?;
    terminal.type_in("exit 7\r")?;
    terminal.ends().await?;
    let known = recording(&fleet, &session, "finished").await?;

    let id = text(&session, "id")?;
    let (operator, customer) = (fleet.cli(fleet.operator.token()), fleet.cli(fleet.tenant.token()));
    for cli in [&operator, &customer] {
        let listed = cli.json(&["recording", "list", "--device", "gw-1", "--kind", "terminal"]).await?;
        ensure!(listed[0]["session_id"] == id.as_str() && listed[0]["digest"] == known["digest"], "{listed}");
    }
    let unseen = fleet.cli(stranger.token());
    ensure!(unseen.json(&["recording", "list"]).await? == serde_json::json!([]), "another operator sees it");
    ensure!(unseen.run(&["recording", "play", &id, "--at-once"]).await?.code == Some(4));

    let file = fleet.path("night.cast");
    let text = export(&fleet, &fleet.tenant, &session, &file).await?;
    let cast = Cast::read(&text)?;
    ensure!(cast.header["width"] == 100 && cast.header["height"] == 30, "{}", cast.header);
    let shown = cast.of("o");
    ensure!(shown.contains("10: Grüße 東京 🛰") && shown.contains("7 characters"), "{shown}");
    ensure!(!text.contains("hunter2"), "what was typed and not shown is recorded");
    ensure!(cast.of("r").contains("120x40"), "{}", cast.of("r"));
    ensure!(cast.of("m").contains("closed: exited"), "{}", cast.of("m"));

    // Into a pipe: what the terminal wrote, and nothing else.
    let played = operator.run(&["recording", "play", &id, "--at-once"]).await?;
    ensure!(played.code == Some(0) && played.stdout == shown, "{played:#?}");
    // A player that is not ours.
    // It wants a terminal, which must not change what it writes.
    let line = format!("stty -opost && asciinema cat {}", file.display());
    let foreign = Command::new("script").args(["-qec", &line, "/dev/null"]).env("LC_ALL", "C.UTF-8").output();
    let foreign = foreign.context("asciinema: run tests/scripts/prepare.sh peers")?;
    ensure!(foreign.status.success() && foreign.stdout == shown.as_bytes(), "{foreign:?}");

    let audited = fleet.tenant.get("/audit?limit=200").await?.to_string();
    ensure!(audited.matches("recording.read").count() == 2, "each reading is in the audit log: {audited}");
    ensure!(audited.contains(known["digest"].as_str().context("a digest")?), "the digest is not in the audit log");
    device.machine.stop()
}

/// `abc` to the target, and `four` back.
async fn converse(mut near: TcpStream, target: &TcpListener) -> anyhow::Result<()> {
    let (mut far, _) = target.accept().await?;
    near.write_all(b"abc").await?;
    near.shutdown().await?;
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await?;
    far.write_all(b"four").await?;
    drop(far);
    let mut said = Vec::new();
    near.read_to_end(&mut said).await?;
    ensure!((heard.as_slice(), said.as_slice()) == (b"abc".as_slice(), b"four".as_slice()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_is_recorded_by_its_figures() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    // Of those that the device may forward to.
    let address = port::free()?;
    let (target, port) = (TcpListener::bind(address).await?, address.port());
    let forwarding =
        Forwarding::start(&fleet.cli(fleet.operator.token()), "gw-1", &[&format!("0:127.0.0.1:{port}")], &[]).await?;
    let near = TcpStream::connect(forwarding.local(0)?).await?;
    timeout(LIMIT, converse(near, &target)).await.context("the two ends do not come together")??;
    forwarding.event("connection_closed").await?;
    let session = forwarding.session(0)?;
    forwarding.signal(nix::sys::signal::Signal::SIGINT)?;
    forwarding.ends().await?;
    recording(&fleet, &session, "finished").await?;

    let text = export(&fleet, &fleet.tenant, &session, &fleet.path("forward.jsonl")).await?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(lines[0]["format"] == "cloudlink.events" && lines[0]["target"]["port"] == port, "{}", lines[0]);
    let closed = lines.iter().find(|line| line["event"] == "connection_closed").context("no connection in it")?;
    ensure!(closed["bytes_to_device"] == 3 && closed["bytes_from_device"] == 4, "{closed}");
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    ensure!(closed["sha256_to_device"] == abc, "{closed}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_loses_the_last_second_and_no_more() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    terminal.answers("echo ear$((0))ly", "ear0ly").await?;
    let said = Instant::now();
    // As somebody goes on to work.
    for number in 0.. {
        terminal.answers(&format!("echo la{number}$((0))ter"), &format!("la{number}0ter")).await?;
        if said.elapsed() > LOST_MAX {
            break;
        }
    }
    fleet.server.kill()?;
    fleet.server.start_again().await?;

    fleet.session_ended(&session, "node_lost").await?;
    let known = recording(&fleet, &session, "cut_short").await?;
    ensure!(known["digest"].is_string(), "{known}");
    let text = export(&fleet, &fleet.tenant, &session, &fleet.path("crash.cast")).await?;
    ensure!(Cast::read(&text)?.of("o").contains("ear0ly"), "{text}");
    let shown = fleet
        .cli(fleet.tenant.token())
        .run(&["recording", "show", &session["id"].to_string().replace('"', "")])
        .await?;
    ensure!(shown.stdout.contains("cut short"), "{shown:#?}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_does_not_happen() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    terminal.answers("while :; do echo ti$((0))ck; sleep 0.02; done", "ti0ck").await?;
    let frozen = Frozen::new(&fleet)?;
    let since = Instant::now();
    ensure!(terminal.ends().await? == 9, "{}", terminal.seen());
    let took = since.elapsed();
    ensure!(took < Duration::from_secs(8), "the lag is 5 s, and it took {took:?}");
    ensure!(terminal.seen().contains("recording failed"), "{}", terminal.seen());
    drop(frozen);
    fleet.session_ended(&session, "recording_failed").await?;
    // What had happened is written when the database is back.
    recording(&fleet, &session, "finished").await?;
    let text = export(&fleet, &fleet.tenant, &session, &fleet.path("failed.cast")).await?;
    let count = |text: &str| text.matches("ti0ck").count();
    let (written, shown) = (count(&Cast::read(&text)?.of("o")), count(&terminal.seen()));
    ensure!(written >= shown && shown > 0, "{shown} were shown, and {written} of them are recorded");
    device.machine.stop()
}
