//! Forgets tests of links that are older than they are to be kept.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::link::Links;
use crate::store::link_test::link_test_trim;
use crate::store::single;

const EVERY: Duration = Duration::from_secs(3600);
/// For the metrics of failed tasks.
const NAME: &str = "link_tests";

/// Until the soft stop.
pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        let keep_days = shared.link_test.keep_days;
        let trimmed = async { single!(shared.store, |connection| link_test_trim(connection, keep_days)) };
        if let Err(error) = shared.store.within(trimmed).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot forget old tests of links");
        }
    }
}
