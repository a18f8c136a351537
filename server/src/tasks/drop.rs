//! Writes down what devices try and may not, and puts those into quarantine that try too much.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::audit::Actor;
use crate::model::device::is_probe;
use crate::store::drop::{NewDrop, drop_add};
use crate::store::quarantine::{NewQuarantine, quarantine_begin_in_txn};
use crate::store::{StoreError, Visibility, single};
use crate::tunnel::Tunnels;
use crate::tunnel::plane::Drops;

/// How far what is written lags behind.
const EVERY: Duration = Duration::from_secs(2);
/// In which `isolation.quarantine_after_packets` are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Rows in one statement.
const ROWS_MAX: usize = 1000;
/// Devices whose figures wait for a database that is away. Beyond, those of others are lost.
const WAITING_MAX: usize = 65_536;
/// How long the tunnels may take to go at the hard stop, and the last figures to be written.
const LAST_WITHIN: Duration = Duration::from_secs(2);
/// For the metrics of failed tasks.
const NAME: &str = "drop";

/// Until the last tunnel is gone, and what it did is written.
pub(super) async fn run(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = u64::from(tunnels.quarantine_after_packets);
    let mut book = Book { shared: Arc::clone(&shared), tunnels, limit, waiting: HashMap::new(), tries: HashMap::new() };
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
            () = &mut stopped => break,
            _ = tick.tick() => book.write(Instant::now()).await,
        }
    }
    let last = async {
        shared.registry.emptied().await;
        book.write(Instant::now()).await;
    };
    if timeout(LAST_WITHIN, last).await.is_err() {
        tracing::warn!("what devices tried at the very end may not be written down");
    }
}

struct Book {
    shared: Arc<Shared>,
    tunnels: Arc<Tunnels>,
    /// 0: nobody is put into quarantine.
    limit: u64,
    /// What is not written yet.
    waiting: HashMap<DeviceId, Drops>,
    /// Only of devices that tried something within the window.
    tries: HashMap<DeviceId, Tries>,
}

impl Book {
    async fn write(&mut self, now: Instant) {
        let drops = self.tunnels.plane.drops();
        let drops: Vec<_> = drops.into_iter().filter(|(device, _)| !is_probe(*device)).collect();
        self.judge(&drops, now).await;
        for (device, drops) in drops {
            if self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&device) {
                self.waiting.entry(device).or_default().add(&drops);
            }
        }
        if let Err(error) = self.store().await {
            self.note(&error, "cannot store what devices try");
        }
    }

    /// Stores what waits. What could not be stored waits on: it may be written twice if the database's answer was lost.
    async fn store(&mut self) -> Result<(), StoreError> {
        while !self.waiting.is_empty() {
            let (mut rows, mut devices) = (Vec::new(), Vec::new());
            for (device, drops) in &self.waiting {
                if rows.len() >= ROWS_MAX {
                    break;
                }
                devices.push(*device);
                rows.extend(drops.iter().map(|(reason, packets)| NewDrop {
                    device: *device,
                    reason: reason.label(),
                    packets,
                }));
            }
            let (store, actor) = (&self.shared.store, self.actor());
            store.within(async { single!(store, |connection| drop_add(connection, actor.to_json(), &rows)) }).await?;
            for device in devices {
                self.waiting.remove(&device);
            }
        }
        Ok(())
    }

    /// Puts devices into quarantine that tried too much.
    async fn judge(&mut self, drops: &[(DeviceId, Drops)], now: Instant) {
        if self.limit == 0 {
            return;
        }
        for (device, drops) in drops {
            // What it tries in quarantine is not held against it when it is released.
            if !self.tunnels.plane.is_quarantined(*device) {
                self.tries.entry(*device).or_default().add(now, drops);
            }
        }
        self.tries.retain(|_, tries| tries.forget(now));
        let guilty: Vec<_> =
            self.tries.iter().filter(|(_, tries)| tries.sum.sum() >= self.limit).map(|(device, _)| *device).collect();
        for device in guilty {
            let Some(tries) = self.tries.get(&device) else { continue };
            let reason = tries.describe();
            match self.quarantine(device, &reason).await {
                // It begins anew: whoever releases it has a reason.
                Ok(()) => drop(self.tries.remove(&device)),
                Err(error) => self.note(&error, "cannot put a device into quarantine that tries too much"),
            }
        }
    }

    async fn quarantine(&self, device: DeviceId, reason: &str) -> Result<(), StoreError> {
        let (store, actor) = (&self.shared.store, self.actor());
        let begin = async {
            let mut transaction = store.begin(Visibility::All).await?;
            let new = NewQuarantine { by: None, actor: &actor, reason };
            let begun = quarantine_begin_in_txn(&mut transaction, device, new).await?;
            transaction.commit().await?;
            Ok::<_, StoreError>(begun)
        };
        if let Some(ended) = store.within(begin).await? {
            tracing::warn!(%device, reason, "a device is in quarantine: it tries too much that it may not");
            self.shared.bus.send(Hint::DeviceChanged(device));
            ended.into_iter().for_each(|device| self.shared.bus.send(Hint::OpeningsDue(device)));
        }
        Ok(())
    }

    fn actor(&self) -> Actor {
        Actor::Server { name: self.shared.node.clone() }
    }

    fn note(&self, error: &StoreError, message: &'static str) {
        self.shared.metrics.task_failures.with_label_values(&[NAME]).inc();
        tracing::warn!(error = error as &dyn std::error::Error, "{message}");
    }
}

/// What a device tried within the window: at most one entry each time that it is looked at.
#[derive(Debug, Default)]
struct Tries {
    each: VecDeque<(Instant, Drops)>,
    sum: Drops,
}

impl Tries {
    fn add(&mut self, now: Instant, drops: &Drops) {
        self.each.push_back((now, *drops));
        self.sum.add(drops);
    }

    /// Forgets what is too old. Says whether anything is left.
    fn forget(&mut self, now: Instant) -> bool {
        while self.each.front().is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.each.pop_front();
        }
        self.sum = self.each.iter().fold(Drops::default(), |mut sum, (_, drops)| {
            sum.add(drops);
            sum
        });
        !self.each.is_empty()
    }

    /// For whoever asks why: what it tried most comes first.
    fn describe(&self) -> String {
        let mut reasons: Vec<_> = self.sum.iter().collect();
        reasons.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
        let reasons: Vec<_> = reasons.iter().map(|(reason, packets)| format!("{} {packets}", reason.label())).collect();
        let seconds = WINDOW.as_secs();
        format!("{} packets within {seconds} s that it may not send: {}", self.sum.sum(), reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::TunnelDrop;

    #[test]
    fn tries_are_those_of_the_last_minute() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        let drops = |port, source| Drops::of(&[(TunnelDrop::Port, port), (TunnelDrop::Source, source)]);
        tries.add(start, &drops(1, 2));
        tries.add(start + WINDOW / 2, &drops(30, 0));
        assert!(tries.forget(start + WINDOW - Duration::from_millis(1)));
        assert_eq!(tries.sum, drops(31, 2));
        assert_eq!(tries.describe(), "33 packets within 60 s that it may not send: port 31, source 2");
        assert!(tries.forget(start + WINDOW));
        assert_eq!(tries.sum, drops(30, 0));
        assert!(!tries.forget(start + 2 * WINDOW));
        assert_eq!(tries.sum, Drops::default());
    }
}
