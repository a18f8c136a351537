//! Terminals: the real command line in a real pseudo-terminal, and a real shell on the device.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::support::PROMPT;
use cloudlink_tests::terminal::Terminal;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const LIMIT: Duration = Duration::from_secs(40);
/// Sessions on one device at once.
const AT_ONCE: usize = 10;

/// The process of the shell.
async fn shell_pid(terminal: &mut Terminal) -> anyhow::Result<u32> {
    terminal.answers("echo \"p\"id=$$=", "pid=").await?;
    wait_for("a process id", LIMIT, async || {
        let seen = terminal.seen();
        let pid = seen.rsplit("pid=").next().and_then(|rest| rest.split_once('=')).context("not whole yet")?.0;
        Ok(pid.parse()?)
    })
    .await
}

async fn is_gone(pid: u32) -> anyhow::Result<()> {
    wait_for("the shell to be gone", LIMIT, async || {
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is there");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let cli = fleet.cli(fleet.operator.token());
    let refused = cli.run(&["shell", "gw-1", "--reason", "look"]).await?;
    ensure!(refused.code == Some(5), "without a grant: {refused:#?}");
    ensure!(cli.run(&["shell", "gw-1"]).await?.code == Some(2), "nobody can be asked for a reason");
    fleet.support_grant(&device.id, 900).await?;

    // Who sits at a terminal is asked for what is lacking.
    let mut terminal = Terminal::start(&cli, &["shell", "gw-1"], 100, 30)?;
    terminal.shows("Reason, for the record: ").await?;
    ensure!(!terminal.is_raw()?, "a line is typed as everywhere");
    terminal.type_in("look at it\r")?;
    terminal.shows(PROMPT).await?;
    ensure!(terminal.is_raw()?);
    let session = fleet.newest_session().await?;
    ensure!(
        session["state"] == "live" && session["kind"] == "terminal" && session["reason"] == "look at it",
        "{session}"
    );

    terminal.answers("stty size", "30 100").await?;
    terminal.resize(120, 40)?;
    wait_for("the new size", LIMIT, async || {
        terminal.type_in("stty size\r")?;
        terminal.shows_within("40 120", Duration::from_millis(500)).await
    })
    .await?;
    terminal.answers("x='Grüße 東京 🛰'; echo \"${#x}: $x\"", "10: Grüße 東京 🛰").await?;
    terminal.answers("echo \"$TERM\"; echo beg$((0 + 1))n; sleep 600", "beg1n").await?;
    terminal.type_in("\u{3}")?;
    terminal.answers("echo code=$?", "code=130").await?;
    ensure!(terminal.seen().contains("xterm\r"), "{}", terminal.seen());
    terminal.answers("[ -t 0 ] && echo ter$((0))minal", "ter0minal").await?;

    terminal.type_in("exit 7\r")?;
    ensure!(terminal.ends().await? == 7, "{}", terminal.seen());
    ensure!(!terminal.is_raw()?, "the terminal is not as it was");
    let ended = fleet.session_ended(&session, "exited").await?;
    ensure!(ended["result"]["exit_status"] == 7 && ended["cut_off_ms"].is_null(), "{ended}");
    ensure!(
        ended["bytes_to_device"].as_u64() > Some(100) && ended["bytes_from_device"].as_u64() > Some(100),
        "{ended}"
    );
    let shown = cli.run(&["support", "show", &text(&ended, "id")?]).await?.stdout;
    for part in ["ended: exited", "look at it", "gw-1", "exit status: 7"] {
        ensure!(shown.contains(part), "{part:?} is not in {shown}");
    }
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_leaves_nothing_behind() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;

    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let pid = shell_pid(&mut terminal).await?;
    let session = fleet.newest_session().await?;
    terminal.type_in("echo ~.~~\r~?")?;
    terminal.shows("~~ types a ~").await?;
    terminal.type_in("~.")?;
    ensure!(terminal.ends().await? == 0 && !terminal.is_raw()?, "{}", terminal.seen());
    fleet.session_ended(&session, "closed").await?;
    is_gone(pid).await?;

    // However the command line ends, the terminal is put right.
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
        let pid = shell_pid(&mut terminal).await?;
        let session = fleet.newest_session().await?;
        terminal.signal(signal)?;
        ensure!(terminal.ends().await? == code && !terminal.is_raw()?, "{}", terminal.seen());
        fleet.session_ended(&session, "closed").await?;
        is_gone(pid).await?;
    }

    // One that had no time to do anything about it is missed by the server all the same.
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let pid = shell_pid(&mut terminal).await?;
    let session = fleet.newest_session().await?;
    terminal.signal(Signal::SIGKILL)?;
    terminal.ends().await?;
    fleet.session_ended(&session, "closed").await?;
    is_gone(pid).await?;

    // The customer ends it.
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    let closed = fleet.cli(fleet.tenant.token()).run(&["support", "close", &text(&session, "id")?]).await?;
    ensure!(closed.code == Some(0), "{closed:#?}");
    ensure!(terminal.ends().await? == 9 && !terminal.is_raw()?, "{}", terminal.seen());
    ensure!(terminal.seen().contains("the server closed the session: closed"), "{}", terminal.seen());
    fleet.session_ended(&session, "closed").await?;
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_it_is_a_pipe() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let cli = fleet.cli(fleet.operator.token());
    let piped = async |script: &'static str| {
        let mut command = cli.command(&["shell", "gw-1", "--reason", "a test"])?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("piped")?;
        stdin.write_all(script.as_bytes()).await?;
        drop(stdin);
        anyhow::Ok(tokio::time::timeout(LIMIT, child.wait_with_output()).await.context("it goes on")??)
    };
    let output = piped("echo $((6 * 7))x\nexit 3\n").await?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(shown.contains("42x") && !shown.contains("[cloudlink]"), "{shown}");
    // The end of what is piped in is the end of the shell.
    let output = piped("(exit 5)\n").await?;
    ensure!(output.status.code() == Some(5), "{output:?}");
    let output = piped("kill -KILL $$\n").await?;
    ensure!(output.status.code() == Some(137), "{output:?}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn others_join_and_the_customer_watches() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (second, second_id) = fleet.other_operator("second").await?;
    let (third, _) = fleet.other_operator("third").await?;
    let (neighbour, _) = fleet.other_tenant("neighbour").await?;
    let body = json!({
        "reason": "support", "scopes": ["shell:open"], "device_ids": [device.id], "duration_seconds": 900,
        "operator_ids": [fleet.operator_id, second_id],
    });
    fleet.tenant.post("/grants", &body).await?;
    let mut first = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    let id = text(&session, "id")?;

    let mut joined = Terminal::start(&fleet.cli(second.token()), &["shell", "gw-1", "--join", &id], 90, 28)?;
    first.shows("second has joined, and can type.").await?;
    joined.answers("echo jo$((1))ned", "jo1ned").await?;
    first.shows("jo1ned").await?;
    // It fits into the windows of both.
    wait_for("the smaller window", LIMIT, async || {
        first.type_in("stty size\r")?;
        first.shows_within("28 90", Duration::from_millis(500)).await
    })
    .await?;

    let mut watching = Terminal::start(&fleet.cli(fleet.tenant.token()), &["shell", "--watch", &id], 100, 30)?;
    first.shows("customer user watches.").await?;
    first.answers("echo wa$((1))tched", "wa1tched").await?;
    watching.shows("wa1tched").await?;
    watching.type_in("echo from the watcher\r")?;
    first.answers("echo af$((1))ter", "af1ter").await?;
    ensure!(!first.seen().contains("from the watcher"), "{}", first.seen());
    watching.shows("af1ter").await?;
    watching.type_in("\u{3}")?;
    ensure!(watching.ends().await? == 0 && !watching.is_raw()?, "{}", watching.seen());
    first.shows("customer user has left.").await?;

    // Who may not.
    let says = async |token: &str, option: &str, code: i32| {
        let said = fleet.cli(token).run(&["shell", option, &id]).await?;
        ensure!(said.code == Some(code), "not {code} of {option}: {said:#?}");
        anyhow::Ok(())
    };
    says(fleet.tenant.token(), "--join", 3).await?;
    says(third.token(), "--join", 5).await?;
    says(neighbour.token(), "--watch", 4).await?;

    first.type_in("exit 4\r")?;
    ensure!(first.ends().await? == 4, "{}", first.seen());
    ensure!(joined.ends().await? == 4 && !joined.is_raw()?, "{}", joined.seen());
    let ended = fleet.session_ended(&session, "exited").await?;
    ensure!(ended["guests"].as_array().map(Vec::len) == Some(2), "{ended}");
    let shown = fleet.cli(fleet.admin.token()).run(&["support", "show", &id]).await?.stdout;
    ensure!(shown.contains("second") && shown.contains("customer user"), "{shown}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_are_ten() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let mut terminals = Vec::new();
    for _ in 0..AT_ONCE {
        terminals.push(fleet.shell(&fleet.operator, "gw-1").await?);
    }
    let mut shells = BTreeSet::new();
    for terminal in &mut terminals {
        shells.insert(shell_pid(terminal).await?);
    }
    ensure!(shells.len() == AT_ONCE, "{shells:?}");
    let live: Value = fleet.cli(fleet.tenant.token()).json(&["support", "list", "--device", "gw-1", "--live"]).await?;
    ensure!(live.as_array().map(Vec::len) == Some(AT_ONCE), "{live}");
    for mut terminal in terminals {
        terminal.type_in("exit\r")?;
        ensure!(terminal.ends().await? == 0, "{}", terminal.seen());
    }
    device.machine.stop()
}
