//! Ends links whose devices have newer ones on other nodes: a moment after a hint, within seconds without. And those whose rows are closed:
//! nobody sees their devices as there, and nothing else would have them dial again.
//!
//! The moment is the device's own: it lets its older link go when it has been welcomed to the newer one, and is never without.

use std::collections::HashSet;
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use futures_util::FutureExt;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::bus::{Heard, Hint};
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::dispatch::LinkKey;
use crate::store::link::link_list_superseded;
use crate::store::{StoreError, single};

/// How often all links are compared.
pub(crate) const EVERY: Duration = Duration::from_secs(15);
/// For a welcome to reach its device. Hints that come meanwhile are looked at together.
const WELCOMED_WITHIN: Duration = Duration::from_secs(1);
/// Links in one statement.
const ROWS_MAX: usize = 1_000;
/// For the metrics of failed tasks.
const NAME: &str = "superseded";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // `None`: all of them.
        let mut devices = None;
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            heard = listener.hear() => {
                sleep(WELCOMED_WITHIN).await;
                let mut some = HashSet::new();
                let mut next = Some(heard);
                while let Some(heard) = next {
                    match heard {
                        Heard::Hint(Hint::DeviceLinked(device)) => {
                            some.insert(device);
                        }
                        // After a hint that was lost the timer is soon enough: an older link harms nobody.
                        Heard::Hint(_) | Heard::Everything => {}
                        Heard::Closed => return,
                    }
                    next = listener.hear().now_or_never();
                }
                devices = Some(some);
            }
            _ = tick.tick() => {}
        }
        if let Err(error) = end(&shared, devices).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for links that were superseded");
        }
    }
}

async fn end(shared: &Shared, devices: Option<HashSet<DeviceId>>) -> Result<(), StoreError> {
    let keys: Vec<LinkKey> = match devices {
        Some(devices) => devices.into_iter().filter_map(|device| shared.registry.key(device)).collect(),
        None => shared.registry.keys(),
    };
    for keys in keys.chunks(ROWS_MAX) {
        let store = &shared.store;
        let listed = async { single!(store, |connection| link_list_superseded(connection, &shared.node, keys)) };
        for key in store.within(listed).await? {
            shared.registry.supersede(key);
        }
    }
    Ok(())
}
