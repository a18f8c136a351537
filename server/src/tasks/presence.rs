//! Writes what links say all the time, in batches: that their devices are there, and what those measure.

use std::collections::HashMap;
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::StoreError;
use crate::store::link::{ProvenLink, link_prove};
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
    let mut written = HashMap::new();
    loop {
        let is_last = tokio::select! {
            () = shutdown.soft.cancelled() => true,
            _ = tick.tick() => false,
        };
        for stored in [store_reports(&shared).await, store_proofs(&shared, &mut written).await] {
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
        if let Err(error) = stored.await {
            if error.is_retryable() {
                shared.reports.put_back(taken);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Writes when each device was last heard of, if it was heard of since that was last written.
async fn store_proofs(shared: &Shared, written: &mut HashMap<DeviceId, (u64, Instant)>) -> Result<(), StoreError> {
    let mut live = HashMap::new();
    let mut due = Vec::new();
    for handle in shared.registry.all() {
        let (key, heard_at) = (handle.key, shared.registry.heard_at(&handle));
        if written.get(&key.device_id) != Some(&(key.epoch, heard_at)) {
            let heard_ms_ago = u64::try_from(heard_at.elapsed().as_millis()).unwrap_or(0);
            due.push(ProvenLink { device_id: key.device_id, epoch: key.epoch, heard_ms_ago });
        }
        live.insert(key.device_id, (key.epoch, heard_at));
    }
    for links in due.chunks(ROWS_MAX) {
        link_prove(&mut *shared.store.connection().await?, links).await?;
    }
    *written = live;
    Ok(())
}
