//! Cuts the links and tunnels of revoked devices and certificates: at once on a hint, within a second without.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::{Heard, Hint};
use crate::lifecycle::Shutdown;
use crate::link::{Ending, Links, Shared};
use crate::store::certificate::{revocation_list, revocation_list_live};
use crate::store::{StoreError, single};

const EVERY: Duration = Duration::from_millis(700);
/// How far each look reaches back behind the last one that succeeded: a revocation gets its time when it is made, and is seen when it is
/// committed.
const OVERLAP: Duration = Duration::from_secs(60);
/// For the metrics of failed tasks.
const NAME: &str = "revocation";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen_at = None;
    // Tunnels live on through the soft stop until their turn to be sent away.
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
        if let Err(error) = shared.store.within(cut(&shared, &mut seen_at)).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for revocations");
        }
    }
}

/// Ends the links of what was revoked since the last look that succeeded. The first one looks at all live links.
pub(crate) async fn cut(shared: &Shared, seen_at: &mut Option<OffsetDateTime>) -> Result<(), StoreError> {
    let revocations = match *seen_at {
        Some(at) => single!(shared.store, |connection| revocation_list(connection, at - OVERLAP))?,
        // Until the first look succeeds, links may have come up, and their devices been revoked, at any time.
        None => single!(shared.store, |connection| revocation_list_live(connection, &shared.node))?,
    };
    for device in revocations.devices {
        shared.registry.end(device, None, Ending::REVOKED);
        shared.tests.revoke(device, None);
    }
    for (device, serial) in revocations.certificates {
        shared.registry.end(device, Some(&serial), Ending::REVOKED);
        shared.tests.revoke(device, Some(&serial));
    }
    *seen_at = Some(revocations.at);
    Ok(())
}
