//! Writes what links say all the time, in batches: that their devices are there, and what those measure.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared, Unproven};
use crate::store::StoreError;
use crate::store::link::link_prove;
use crate::store::report::report_upsert;

/// How long a report or a sign of life waits at most.
const EVERY: Duration = Duration::from_secs(2);
/// Rows in one statement.
const ROWS_MAX: usize = 1000;
/// For the metrics of failed tasks.
const NAME: &str = "presence";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_last = tokio::select! {
            () = shutdown.soft.cancelled() => true,
            _ = tick.tick() => false,
        };
        for stored in [store_reports(&shared).await, store_proofs(&shared).await] {
            if let Err(error) = stored {
                shared.metrics.task_failures.with_label_values(&[NAME]).inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot store what devices report");
            }
        }
        if is_last {
            return;
        }
    }
}

/// Stores the reports that wait, and keeps those that could not be stored.
async fn store_reports(shared: &Shared) -> Result<(), StoreError> {
    while let Some(taken) = shared.reports.take(ROWS_MAX) {
        let rows = taken.rows(Instant::now());
        let stored = async { report_upsert(&mut *shared.store.connection().await?, &rows).await };
        if let Err(error) = shared.store.within(stored).await {
            if error.is_retryable() {
                shared.reports.put_back(taken);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Writes when each device was last heard of, if it was heard of since that was last written.
async fn store_proofs(shared: &Shared) -> Result<(), StoreError> {
    for links in shared.registry.unproven(Instant::now()).chunks(ROWS_MAX) {
        let rows: Vec<_> = links.iter().map(Unproven::row).collect();
        let store = &shared.store;
        store.within(async { link_prove(&mut *store.connection().await?, &rows).await }).await?;
        links.iter().for_each(Unproven::written);
    }
    Ok(())
}
