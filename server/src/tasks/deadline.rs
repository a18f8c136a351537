//! Ends commands whose time is up: at the end of a grant, at an expiry, when a device never said what became of one.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared, applied_to_metrics};
use crate::store::deadline::{SWEEP_MAX, deadline_sweep_in_txn};
use crate::store::{StoreError, Visibility};

/// A grant's end is seen within this time, and acted on within a second.
const EVERY: Duration = Duration::from_millis(500);
/// How long a device that was told to shut down may take to come back with the same boot, which shows that it did not.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(45);
/// For the metrics of failed tasks.
const NAME: &str = "deadline";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        while let Some(ended) = sweep(&shared).await {
            if ended < SWEEP_MAX {
                break;
            }
        }
    }
}

async fn sweep(shared: &Shared) -> Option<i64> {
    let swept = async {
        let mut transaction = shared.store.begin(Visibility::All).await?;
        let ended = deadline_sweep_in_txn(&mut transaction, SHUTDOWN_GRACE).await?;
        transaction.commit().await?;
        Ok::<_, StoreError>(ended)
    };
    match swept.await {
        Ok(ended) => {
            for (command_id, applied) in &ended {
                applied_to_metrics(shared, *applied);
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
