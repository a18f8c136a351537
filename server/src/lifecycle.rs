//! How the node stops. Softly first: nothing new is accepted, devices are told to come back later, what is under way may
//! end. Then hard: whatever is left is cut. Each stage has a time limit; a second signal ends the soft stage at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells the parts of the node to stop. Cheap to clone; every clone is the same stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Accept nothing new, and end what can be ended politely.
    pub soft: CancellationToken,
    /// Drop everything now. Never cancelled before `soft`.
    pub hard: CancellationToken,
    /// Every task that must be over before the process ends.
    pub tasks: TaskTracker,
    /// A part that the node cannot do without has ended.
    pub failed: CancellationToken,
    /// See [`Self::hard_at`].
    pub(crate) hard_at: Arc<OnceLock<Instant>>,
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// When the hard stop comes, at the latest. `None` before the soft one.
    #[must_use]
    pub fn hard_at(&self) -> Option<Instant> {
        self.hard_at.get().copied()
    }

    /// Runs a part that the node cannot do without. If it ends or panics before the soft stop, [`Self::failed`] tells: a node
    /// that half works is worse than one that is started again.
    pub fn spawn_vital(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let vital = Vital { name, soft: self.soft.clone(), failed: self.failed.clone() };
        self.tasks.spawn(async move {
            let _vital = vital;
            part.await;
        });
    }

    /// Stops: softly for at most `soft`, then hard for at most `hard`. `sooner` ends the soft stage early.
    /// Returns whether every task came to its end.
    pub async fn run(&self, soft: Duration, hard: Duration, sooner: impl Future<Output = ()>) -> bool {
        // Before anybody hears of the stop. It stops once only.
        let _ = self.hard_at.set(Instant::now() + soft);
        self.soft.cancel();
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep(soft) => tracing::warn!(limit = ?soft, tasks = self.tasks.len(), "soft stop took too long"),
            () = sooner => tracing::warn!(tasks = self.tasks.len(), "asked again to stop"),
        }
        self.hard.cancel();
        tokio::time::timeout(hard, self.tasks.wait()).await.is_ok()
    }
}

/// Dropped when its part ends, by a panic as well.
struct Vital {
    name: &'static str,
    soft: CancellationToken,
    failed: CancellationToken,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.soft.is_cancelled() {
            tracing::error!(part = self.name, "a part that the node cannot do without has ended");
            self.failed.cancel();
        }
    }
}

/// SIGTERM and SIGINT. SIGHUP is ignored: configuration is read at start only, and a node is restarted to change it.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    _hang_up: Signal,
}

impl StopSignals {
    /// From here on the signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(20);
    /// Far below `LONG`, far above `SHORT`: what fails is a stop that waits for the wrong thing.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn stop(shutdown: &Shutdown, soft: Duration, hard: Duration, sooner: impl Future<Output = ()>) -> bool {
        tokio::time::timeout(PATIENCE, shutdown.run(soft, hard, sooner)).await.expect("the stop has an end")
    }

    #[tokio::test]
    async fn soft_stop_ends_as_soon_as_the_last_task_does() {
        let shutdown = Shutdown::new();
        let seen = shutdown.clone();
        shutdown.tasks.spawn(async move {
            seen.soft.cancelled().await;
            assert!(!seen.hard.is_cancelled());
        });
        assert!(stop(&shutdown, LONG, LONG, std::future::pending()).await);
    }

    #[tokio::test]
    async fn a_task_that_ignores_the_soft_stop_is_cut_when_its_time_is_up() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard.clone();
        shutdown.tasks.spawn(async move { hard.cancelled().await });
        assert!(stop(&shutdown, SHORT, LONG, std::future::pending()).await);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_the_soft_stop_short() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard.clone();
        shutdown.tasks.spawn(async move { hard.cancelled().await });
        assert!(stop(&shutdown, LONG, LONG, tokio::time::sleep(SHORT)).await);
    }

    #[tokio::test]
    async fn a_vital_part_that_panics_is_told() {
        let shutdown = Shutdown::new();
        shutdown.spawn_vital("part", async { panic!("as a fault of ours would") });
        tokio::time::timeout(PATIENCE, shutdown.failed.cancelled()).await.expect("the failure is told");
    }

    #[tokio::test]
    async fn a_vital_part_that_ends_in_the_stop_has_not_failed() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft.clone();
        shutdown.spawn_vital("part", async move { soft.cancelled().await });
        assert!(stop(&shutdown, LONG, LONG, std::future::pending()).await);
        assert!(!shutdown.failed.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_ignores_everything_does_not_hold_the_process() {
        let shutdown = Shutdown::new();
        shutdown.tasks.spawn(std::future::pending::<()>());
        assert!(!stop(&shutdown, SHORT, SHORT, std::future::pending()).await);
    }
}
