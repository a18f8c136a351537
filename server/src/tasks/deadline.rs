//! Ends commands whose time is up: at the end of a grant, at an expiry, when a device never said what became of one.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared, account};
use crate::store::deadline::{SWEEP_MAX, Watch, deadline_sweep_in_txn};
use crate::store::{StoreError, Visibility};

/// A grant's end is seen within this time, and acted on within a second.
const EVERY: Duration = Duration::from_millis(500);
/// How long a device that was told to shut down may take to come back with the same boot, which shows that it did not.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(45);
/// A pause between two looks in which devices may have knocked in vain.
const GAP_MAX: Duration = Duration::from_secs(5);
/// For the metrics of failed tasks.
const NAME: &str = "deadline";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watching = Watching::begin(Instant::now());
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        loop {
            let watched_for = watching.go_on(Instant::now());
            match sweep(&shared, watched_for).await {
                Some(ended) if ended >= SWEEP_MAX => {}
                Some(_) => break,
                None => {
                    watching = Watching::begin(Instant::now());
                    break;
                }
            }
        }
    }
}

/// Since when devices can come back without a gap: this node runs, and the database answers it.
#[derive(Debug)]
struct Watching {
    since: Instant,
    last: Instant,
}

impl Watching {
    fn begin(now: Instant) -> Self {
        Self { since: now, last: now }
    }

    /// How long it has been so. Begins anew if this process, or what it waited for, stood still.
    fn go_on(&mut self, now: Instant) -> Duration {
        if now.duration_since(self.last) > GAP_MAX {
            *self = Self::begin(now);
        }
        self.last = now;
        now.duration_since(self.since)
    }
}

async fn sweep(shared: &Shared, watched_for: Duration) -> Option<i64> {
    let swept = async {
        let mut transaction = shared.store.begin(Visibility::All).await?;
        let watch = Watch { grace: SHUTDOWN_GRACE, watched_for };
        let ended = deadline_sweep_in_txn(&mut transaction, watch).await?;
        transaction.commit().await?;
        Ok::<_, StoreError>(ended)
    };
    match shared.store.within(swept).await {
        Ok(ended) => {
            for (command_id, applied) in &ended {
                account(shared, *command_id, *applied);
                shared.bus.send(Hint::CommandChanged(*command_id));
            }
            i64::try_from(ended.len()).ok()
        }
        Err(error) => {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot end commands whose time is up");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_watched_begins_anew_after_a_gap() {
        let start = Instant::now();
        let mut watching = Watching::begin(start);
        for second in 1..=20 {
            assert_eq!(watching.go_on(start + Duration::from_secs(second)), Duration::from_secs(second));
        }
        let later = start + Duration::from_secs(20) + GAP_MAX;
        assert_eq!(watching.go_on(later + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(watching.go_on(later + Duration::from_secs(2)), Duration::from_secs(1));
    }
}
