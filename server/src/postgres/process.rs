//! The postmaster as a child process.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::Binaries;
use super::cluster::{Cluster, OWNER, PORT};
use super::log::{self, Said};
use crate::store::setup;
use crate::{config, privilege};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long it may take to go after SIGQUIT, before it is killed.
const QUIT_WITHIN: Duration = Duration::from_secs(5);

/// Why it did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot run postgres")]
    Run(#[source] std::io::Error),
    #[error("postgres ended with {status}: {said}")]
    Ended { status: String, said: String },
    #[error("postgres did not answer within {within:?}: {said}")]
    Silent { within: Duration, said: String },
}

/// A postmaster. Dropped without [`Process::stop`], it is asked to stop and not waited for.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    said: Said,
}

impl Process {
    pub(super) fn spawn(binaries: &Binaries, cluster: &Cluster, config: &config::Postgres) -> Result<Self, StartError> {
        let mut command = Command::new(binaries.dir.join("postgres"));
        command.arg("-D").arg(cluster.data_dir());
        for (name, value) in settings(cluster, config) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(cluster.data_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C on our terminal is for us: Postgres must outlive what still uses it.
            .process_group(0);
        cluster.account.become_in(&mut command);
        let mut child = privilege::without(&mut command).map_err(StartError::Run)?;
        let said = Said::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(log::forward(stderr, said.clone()));
        }
        Ok(Self { child, said })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it takes connections.
    pub(super) async fn wait_until_ready(&mut self, cluster: &Cluster, within: Duration) -> Result<(), StartError> {
        let until = Instant::now() + within;
        let options = setup::socket_options(&cluster.socket_dir(), PORT, OWNER, "postgres");
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(StartError::Ended { status: status.to_string(), said: self.said.text() });
            }
            match timeout(within, setup::answers(&options)).await {
                Ok(true) => return Ok(()),
                _ if Instant::now() >= until => return Err(StartError::Silent { within, said: self.said.text() }),
                Ok(false) | Err(_) => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits for its end, and says how it ended.
    pub(super) async fn wait(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Stops it: politely (rolling back what runs), then hard, then by force. After the last two it recovers when started.
    pub(super) async fn stop(&mut self, within: Duration) {
        for (signal, within) in [(Signal::SIGINT, within), (Signal::SIGQUIT, QUIT_WITHIN)] {
            self.signal(signal);
            if timeout(within, self.child.wait()).await.is_ok() {
                return;
            }
            tracing::error!(?signal, ?within, "the embedded Postgres does not stop");
        }
        if let Err(error) = self.child.kill().await {
            tracing::error!(?error, "cannot kill the embedded Postgres");
        }
    }

    fn signal(&self, signal: Signal) {
        // `id` is there as long as the child was not waited for, so that this cannot meet another process.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// What is fixed for our cluster, over its files.
fn settings(cluster: &Cluster, config: &config::Postgres) -> Vec<(&'static str, String)> {
    let fixed = [
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("password_encryption", "scram-sha-256"),
        // Never lose what was committed.
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        // Standard error, in the form that `log` reads, without the texts of statements: they may hold secrets.
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_line_prefix", ""),
        ("log_min_error_statement", "panic"),
        ("log_statement", "none"),
        ("log_checkpoints", "off"),
        ("log_error_verbosity", "terse"),
        ("lc_messages", "C"),
        // It makes code while it runs, which a hardened service forbids, for queries slower than any of ours.
        ("jit", "off"),
        ("timezone", "UTC"),
    ];
    let mut settings: Vec<_> = fixed.map(|(name, value)| (name, value.to_owned())).into();
    settings.push(("port", PORT.to_string()));
    // A list, in which quotes keep a comma from parting a path.
    let socket_dir = cluster.socket_dir().display().to_string().replace('"', "\"\"");
    settings.push(("unix_socket_directories", format!("\"{socket_dir}\"")));
    settings.push(("max_connections", config.connections_max.to_string()));
    settings
}
