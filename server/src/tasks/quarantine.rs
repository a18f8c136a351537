//! Keeps to the quarantines that the database names: at once on a hint, within a second without.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::bus::{Heard, Hint};
use crate::isolation::IsolationError;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::quarantine::quarantine_list;
use crate::store::{StoreError, single};
use crate::tunnel::Tunnels;

const EVERY: Duration = Duration::from_millis(500);
/// For the metrics of failed tasks.
const NAME: &str = "quarantine";

/// Why a look came to nothing. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("cannot look who is in quarantine")]
    Store(#[from] StoreError),
    #[error("the kernel cannot be told who is in quarantine: the driver keeps to it alone")]
    Kernel(#[from] IsolationError),
}

pub(super) async fn run(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Tunnels live on through the soft stop.
    let stopped = async {
        shutdown.soft.cancelled().await;
        tokio::select! {
            () = shutdown.hard.cancelled() => {}
            () = shared.registry.emptied() => {}
        }
    };
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            heard = listener.hear() => match heard {
                Heard::Hint(Hint::DeviceChanged(_)) | Heard::Everything => {}
                Heard::Hint(
                    Hint::CommandsDue(_) | Hint::CommandChanged(_) | Hint::DeviceLinked(_) | Hint::OpeningsDue(_)
                    | Hint::SupportDue(_) | Hint::PersonChanged(_) | Hint::ConfigurationDue(_) | Hint::NoticesDue,
                ) => continue,
                Heard::Closed => return,
            },
            _ = tick.tick() => {}
        }
        if let Err(error) = look(&shared, &tunnels).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "quarantines may be late");
        }
    }
}

async fn look(shared: &Shared, tunnels: &Tunnels) -> Result<(), LookError> {
    let look = tunnels.plane.look_at_quarantine();
    let listed = async { single!(shared.store, |connection| quarantine_list(connection)) };
    let devices = shared.store.within(listed).await?;
    shared.metrics.devices_quarantined.set(i64::try_from(devices.len()).unwrap_or(i64::MAX));
    Ok(tunnels.quarantine(look, &devices).await?)
}
