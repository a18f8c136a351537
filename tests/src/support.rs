//! What tests of support sessions have in common.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::api::{Api, text};
use crate::cli::Cli;
use crate::fleet::Fleet;
use crate::poll::wait_for;
use crate::terminal::Terminal;

/// All that a support session may need.
pub const SCOPES: [&str; 4] = ["shell:open", "tcp:open", "file:read", "file:write"];
/// What the shell of a [`Machine`](crate::machine::Machine) shows when it waits.
pub const PROMPT: &str = "device> ";
/// From the end of a session until the API tells it. The promise of a second is about bytes, and measured by the server.
pub const END_LIMIT: Duration = Duration::from_secs(30);

impl Fleet {
    /// A grant of all scopes of support to every operator.
    pub async fn support_grant(&self, device: &str, seconds: u64) -> anyhow::Result<Value> {
        let body = json!({
            "reason": "support", "scopes": SCOPES, "device_ids": [device], "duration_seconds": seconds,
        });
        self.tenant.post("/grants", &body).await
    }

    /// Opens a terminal on a device, and waits for its prompt.
    pub async fn shell(&self, operator: &Api, device: &str) -> anyhow::Result<Terminal> {
        let cli = self.cli(operator.token());
        let terminal = Terminal::start(&cli, &["shell", device, "--reason", "a test"], 100, 30)?;
        terminal.shows(PROMPT).await?;
        Ok(terminal)
    }

    /// The newest session, as the device's owner sees it.
    pub async fn newest_session(&self) -> anyhow::Result<Value> {
        let sessions = self.tenant.get("/support-sessions?limit=1").await?;
        Ok(sessions["items"].get(0).with_context(|| format!("no session in {sessions}"))?.clone())
    }

    /// Waits until a session has ended and is accounted for, and checks why. Its figures follow its end: they are written once
    /// everything of it is closed. Of a node that was killed, none come.
    pub async fn session_ended(&self, session: &Value, reason: &str) -> anyhow::Result<Value> {
        let path = format!("/support-sessions/{}", text(session, "id")?);
        let ended = wait_for("the end of the session, and its figures", END_LIMIT, async || {
            let shown = self.tenant.get(&path).await?;
            ensure!(shown["state"] == "ended", "{shown}");
            ensure!(shown["end_reason"] == "node_lost" || shown["result"] != json!({}), "no figures: {shown}");
            Ok(shown)
        })
        .await?;
        ensure!(ended["end_reason"] == reason, "not {reason}: {ended}");
        Ok(ended)
    }
}

/// Of a session that has ended: the time from when it had to be over to its last byte.
pub fn cut_off_ms(ended: &Value) -> anyhow::Result<u64> {
    ended["cut_off_ms"].as_u64().with_context(|| format!("it was not cut: {ended}"))
}

/// The processes of a database, which stand still as long as this is there.
#[derive(Debug)]
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// Of the server's own.
    pub fn new(fleet: &Fleet) -> anyhow::Result<Self> {
        Self::of(&fleet.server.data_dir().join("postgres/data"))
    }

    /// Of the cluster in this directory.
    pub fn of(directory: &Path) -> anyhow::Result<Self> {
        let directory = directory.canonicalize()?;
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

/// `cloudlink forward`, running.
#[derive(Debug)]
pub struct Forwarding {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
    /// What it says to people.
    stderr: JoinHandle<String>,
}

impl Forwarding {
    /// Starts it, and waits until it listens to all that is wanted.
    pub async fn start(cli: &Cli, device: &str, routes: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(cli, device, routes, &[&["--reason", "a test"], options].concat()).await
    }

    /// The same, for another reason.
    pub async fn start_for(cli: &Cli, device: &str, routes: &[&str], reason: &str) -> anyhow::Result<Self> {
        Self::start_with(cli, device, routes, &["--reason", reason]).await
    }

    async fn start_with(cli: &Cli, device: &str, routes: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        let arguments = [&["forward", device], routes, &["--json"], options].concat();
        let mut child = cli.command(&arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("piped")?).lines();
        let mut stderr = child.stderr.take().context("piped")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        tokio::spawn(async move {
            while let Ok(Some(line)) = stdout.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text).await;
            text
        });
        let forwarding = Self { child, events, stderr };
        wait_for("a port that is listened to", END_LIMIT, async || {
            let events = forwarding.of("listening");
            ensure!(events.len() == routes.len(), "{events:?}");
            Ok(())
        })
        .await?;
        Ok(forwarding)
    }

    /// Its events of one kind.
    #[must_use]
    pub fn of(&self, kind: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    /// Waits for the first event of a kind.
    pub async fn event(&self, kind: &str) -> anyhow::Result<Value> {
        wait_for(kind, END_LIMIT, async || {
            self.of(kind).into_iter().next().with_context(|| format!("no {kind}: {:?}", self.events))
        })
        .await
    }

    /// Where the `n`th route begins.
    pub fn local(&self, n: usize) -> anyhow::Result<SocketAddr> {
        let events = self.of("listening");
        Ok(text(events.get(n).context("no such route")?, "local")?.parse()?)
    }

    /// The session of the `n`th route, as far as it is named.
    pub fn session(&self, n: usize) -> anyhow::Result<Value> {
        let events = self.of("listening");
        Ok(json!({ "id": events.get(n).context("no such route")?["session_id"] }))
    }

    pub fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(self.child.id().context("it has ended")?.cast_signed()))
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Waits for its end: its exit code, and what it said to people.
    pub async fn ends(mut self) -> anyhow::Result<(Option<i32>, String)> {
        let status = tokio::time::timeout(END_LIMIT, self.child.wait()).await.context("it goes on")??;
        Ok((status.code(), self.stderr.await?))
    }
}
