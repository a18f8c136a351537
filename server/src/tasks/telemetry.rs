//! Keeps what devices measured over time: writes samples in batches, adds them up, and lets go of those that are old.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::Telemetry;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::sample::{
    ADD_UP_WITHIN_SECONDS, AddedUp, Keep, sample_add_up_in_txn, sample_clock, sample_insert, sample_keep,
};
use crate::store::{StoreError, Visibility, single};

/// How long a sample waits at most while the database keeps up.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// Samples in one statement. More would save little, and each would take longer.
const ROWS_MAX: usize = 500;
const ADD_UP_EVERY: Duration = Duration::from_secs(30);
/// Partitions are made days ahead.
const KEEP_EVERY: Duration = Duration::from_secs(3600);
/// After a failure, which may have been that somebody was reading what is to go.
const KEEP_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// For the metrics of failed tasks.
const NAME: &str = "telemetry";

/// Writes samples, until the soft stop and once more.
pub(super) async fn store(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(STORE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_last = tokio::select! {
            () = shutdown.soft.cancelled() => true,
            _ = tick.tick() => false,
        };
        note(&shared, store_samples(&shared).await, "cannot store samples");
        if is_last {
            return;
        }
    }
}

/// Adds up and lets go, until the soft stop.
pub(super) async fn keep(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(ADD_UP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keep_at = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        if Instant::now() >= keep_at {
            let kept = keep_partitions(&shared, &shared.telemetry).await;
            keep_at = Instant::now() + if kept.is_ok() { KEEP_EVERY } else { KEEP_AGAIN_AFTER };
            note(&shared, kept, "cannot make and drop partitions of samples");
        }
        let added_up = shutdown.soft.run_until_cancelled(Box::pin(add_up_all(&shared))).await;
        note(&shared, added_up.unwrap_or(Ok(())), "cannot add up samples");
    }
}

fn note(shared: &Shared, done: Result<(), StoreError>, message: &'static str) {
    if let Err(error) = done {
        shared.metrics.task_failures.with_label_values(&[NAME]).inc();
        tracing::warn!(error = &error as &dyn std::error::Error, "{message}");
    }
}

/// Stores what waits now, and keeps what could not be stored.
async fn store_samples(shared: &Shared) -> Result<(), StoreError> {
    let metrics = &shared.metrics.telemetry;
    let mut left = shared.samples.len();
    metrics.waiting.set(i64::try_from(left).unwrap_or(i64::MAX));
    if left == 0 {
        return Ok(());
    }
    let store = &shared.store;
    let clock = store.within(async { single!(store, |connection| sample_clock(connection)) }).await?;
    while left > 0 {
        let (taken, too_old) = shared.samples.take(left.min(ROWS_MAX), clock);
        metrics.dropped("too_old", too_old);
        let rows = taken.rows();
        if rows.is_empty() {
            break;
        }
        left = left.saturating_sub(rows.len());
        let begun = Instant::now();
        let stored = store.within(async { single!(store, |connection| sample_insert(connection, &rows)) }).await;
        match stored {
            Ok(()) => {
                metrics.insert_seconds.observe(begun.elapsed().as_secs_f64());
                metrics.stored.inc_by(rows.len() as u64);
            }
            Err(error) if error.is_retryable() => {
                metrics.dropped("queue_full", shared.samples.put_back(taken));
                return Err(error);
            }
            Err(error) => {
                metrics.dropped("refused", rows.len() as u64);
                return Err(error);
            }
        }
    }
    Ok(())
}

async fn keep_partitions(shared: &Shared, config: &Telemetry) -> Result<(), StoreError> {
    let keep =
        Keep { raw: config.raw_keep_days, five_minutes: config.five_minutes_keep_days, hour: config.hour_keep_days };
    let store = &shared.store;
    // Whoever reads what is to go keeps nothing from being made.
    store.within(async { single!(store, |connection| sample_keep(connection, Keep::EVERYTHING)) }).await?;
    let dropped = store.within(async { single!(store, |connection| sample_keep(connection, keep)) }).await?;
    if let Some(dropped @ 1..) = dropped {
        tracing::info!(dropped, "dropped old partitions of samples");
    }
    Ok(())
}

/// Some devices of five minutes or an hour at a time, each in a transaction, until there is nothing more to be done.
async fn add_up_all(shared: &Shared) -> Result<(), StoreError> {
    while let Some(AddedUp { until, is_behind }) = add_up(shared).await? {
        shared.metrics.telemetry.added_up_until.set(until.unix_timestamp());
        if !is_behind {
            break;
        }
    }
    Ok(())
}

async fn add_up(shared: &Shared) -> Result<Option<AddedUp>, StoreError> {
    let store = &shared.store;
    let work = async {
        let mut transaction = store.begin(Visibility::All).await?;
        let added_up = sample_add_up_in_txn(&mut transaction).await?;
        store.commit(transaction).await?;
        Ok(added_up)
    };
    let limit = Duration::from_secs(ADD_UP_WITHIN_SECONDS.into()) * 2;
    store.within_time(limit, work).await
}
