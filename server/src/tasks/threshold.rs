//! Looks at what devices measured last by the rules of their tenants, some devices of one rule a step, and has told what is to be told.
//! Whichever node comes first holds the rule meanwhile; what it has not committed when it dies has not happened, and the next one comes
//! to the same.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::notice::Event;
use crate::store::threshold::{Outcome, Stepped, threshold_step_in_txn};
use crate::store::{StoreError, Visibility};

/// How soon a rule that is due is looked at, where the nodes come to it.
const EVERY: Duration = Duration::from_secs(2);
/// How long one step may take.
const STEP_WITHIN: Duration = Duration::from_secs(30);
/// How many reports of a device may be lost before nothing is known of it.
const REPORTS_LOST_MAX: u32 = 3;
/// What is known is known for so long at least.
const FRESH_MIN: Duration = Duration::from_secs(600);
/// For the metrics of failed tasks.
const NAME: &str = "threshold";

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
        if let Err(error) = look(&shared, &shutdown).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at thresholds");
        }
    }
}

/// Takes steps until no rule is due.
async fn look(shared: &Shared, shutdown: &Shutdown) -> Result<(), StoreError> {
    let fresh = FRESH_MIN.max(shared.metrics_interval() * REPORTS_LOST_MAX);
    let metrics = &shared.metrics.thresholds;
    while !shutdown.soft.is_cancelled() {
        let begun = Instant::now();
        let Some(stepped) = shared.store.within_time(STEP_WITHIN, step(shared, fresh)).await? else { break };
        metrics.step_seconds.observe(begun.elapsed().as_secs_f64());
        metrics.late_seconds.set(stepped.late.as_seconds_f64().max(0.0));
        match stepped.outcome {
            Ok(outcome) => tell(shared, outcome),
            Err(error) => {
                let threshold = stepped.threshold;
                shared.metrics.task_failures.with_label_values(&[NAME]).inc();
                tracing::warn!(%threshold, error = &error as &dyn std::error::Error, "cannot look at a threshold: later again");
            }
        }
    }
    Ok(())
}

fn tell(shared: &Shared, outcome: Outcome) {
    for (event, count) in [(Event::ThresholdCrossed, outcome.crossed), (Event::ThresholdCleared, outcome.cleared)] {
        shared.metrics.thresholds.events.with_label_values(&[event.name()]).inc_by(count as u64);
    }
    if outcome.has_notices {
        shared.bus.send(Hint::NoticesDue);
    }
}

async fn step(shared: &Shared, fresh: Duration) -> Result<Option<Stepped>, StoreError> {
    let mut transaction = shared.store.begin(Visibility::All).await?;
    let stepped = threshold_step_in_txn(&mut transaction, fresh).await?;
    shared.store.commit(transaction).await?;
    Ok(stepped)
}
