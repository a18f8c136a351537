//! The Postgres that the server runs itself when no `database.url` is set: Debian's binaries, a cluster in the data
//! directory, a Unix socket and nothing else. Data is as safe as in any Postgres: fsync is on, pages have checksums.
//!
//! ```text
//! <data_dir>/postgres/        0700, of the user that Postgres runs as
//!   data/                     the cluster, made once
//!   run/                      the socket
//! ```
//!
//! [`Postgres::start`] returns once it answers. From then on a task starts it again whenever it dies, until
//! [`Postgres::stop`]. Whoever calls this holds the lock of the data directory, so a Postgres that is found running in it is
//! an orphan: the server before was killed.

mod account;
mod binaries;
mod cluster;
mod leftover;
mod log;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::account::AccountError;
pub use self::binaries::{BinariesError, VERSION_MIN};
pub(crate) use self::cluster::open_passage;
pub use self::cluster::{ClusterError, LOGIN, OWNER, PORT};
pub use self::leftover::LeftoverError;
pub use self::process::StartError;

use self::account::Account;
use self::binaries::Binaries;
use self::cluster::Cluster;
use self::process::Process;
use crate::config;
use crate::metrics::Metrics;

/// Between a death and the next start; doubled with each further death, up to [`RESTART_AFTER_MAX`].
const RESTART_AFTER: Duration = Duration::from_millis(200);
const RESTART_AFTER_MAX: Duration = Duration::from_secs(30);
/// After so long a life the next death counts as the first again.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// Why there is no Postgres.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A running Postgres. Dropped without [`Postgres::stop`], it is asked to stop and not waited for.
#[derive(Debug)]
pub struct Postgres {
    socket_dir: PathBuf,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

impl Postgres {
    /// Makes the cluster if there is none, starts it, and waits until it answers.
    pub async fn start(
        config: &config::Postgres,
        data_dir: &std::path::Path,
        metrics: Arc<Metrics>,
    ) -> Result<Self, PostgresError> {
        let account = Account::choose(&config.user)?;
        let cluster = Cluster::prepare(data_dir, account)?;
        let binaries = Binaries::find(config.binaries.as_deref(), cluster.version()?).await?;
        cluster.create_if_missing(&binaries).await?;
        let launch = Launch { config: config.clone(), binaries, cluster };
        let process = launch.run().await?;
        tracing::info!(pid = process.pid(), version = launch.binaries.version, "the embedded Postgres is up");

        let socket_dir = launch.cluster.socket_dir();
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(launch, process, stop.clone(), metrics));
        Ok(Self { socket_dir, stop, supervisor })
    }

    /// The directory of its socket, for clients.
    #[must_use]
    pub fn socket_dir(&self) -> &std::path::Path {
        &self.socket_dir
    }

    /// Stops it, and waits for its end. Its clients should be gone.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.supervisor.await {
            tracing::error!(?error, "the supervisor of the embedded Postgres failed");
        }
    }
}

/// All that it takes to start it.
#[derive(Debug)]
struct Launch {
    config: config::Postgres,
    binaries: Binaries,
    cluster: Cluster,
}

impl Launch {
    async fn run(&self) -> Result<Process, PostgresError> {
        leftover::clear(&self.cluster.data_dir(), self.config.stop_timeout_seconds.duration()).await?;
        let mut process = Process::spawn(&self.binaries, &self.cluster, &self.config)?;
        process.wait_until_ready(&self.cluster, self.config.start_timeout_seconds.duration()).await?;
        Ok(process)
    }
}

/// Keeps it running until it is to stop.
async fn supervise(launch: Launch, mut process: Process, stop: CancellationToken, metrics: Arc<Metrics>) {
    let stop_within = launch.config.stop_timeout_seconds.duration();
    let mut pause = RESTART_AFTER;
    loop {
        let begun = Instant::now();
        tokio::select! {
            () = stop.cancelled() => {
                process.stop(stop_within).await;
                tracing::info!("the embedded Postgres has stopped");
                return;
            }
            status = process.wait() => {
                tracing::error!(status, "the embedded Postgres died");
            }
        }
        if begun.elapsed() >= STEADY_AFTER {
            pause = RESTART_AFTER;
        }
        process = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(RESTART_AFTER_MAX);
            metrics.postgres_restarts.inc();
            tokio::select! {
                // Dropping a start that is under way stops its process.
                () = stop.cancelled() => return,
                started = launch.run() => match started {
                    Ok(process) => break process,
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot start the embedded Postgres again");
                    }
                }
            }
        };
        tracing::info!(pid = process.pid(), "the embedded Postgres is up again");
    }
}

#[cfg(test)]
mod tests;
