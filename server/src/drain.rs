//! A node is drained: it takes no new links, and its devices are told, each in its turn, to connect elsewhere. The link that one
//! has is served until it has another; whoever has none when time is up is told when to come back.
//!
//! ```text
//! asked ──> said on /readyz, and the load balancer's notice time ──> the doors are closed ──> slots ──> nobody is left
//!             (everything as before)                                   (links only)
//! ```
//!
//! Support sessions that go through this node go on, and so does the API.

mod farewell;
pub mod metrics;
pub(crate) mod slot;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

pub(crate) use farewell::send_away;

use crate::admission::Admission;
use crate::cluster::Lease;
use crate::lifecycle::Shutdown;
use crate::link::{Handle, Links, Order, Registry, Seat, Shared};
use slot::Slots;

/// Devices are told in rounds. Each is told how long to wait until its own slot, so that a round is no rush.
const TICK: Duration = Duration::from_millis(100);
/// How often is looked for links that came up while the doors were being closed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// New links a second that another node takes which does not say so, being of an older version.
const PER_SECOND_UNKNOWN: f64 = 100.0;
/// How long the clients of tunnels that are left when time is up are spread over.
const LEFT_WITHIN: Duration = Duration::from_secs(5);

/// Somebody wants the node drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) begun: Instant,
    /// When nobody is to be left.
    pub(crate) by: Instant,
}

/// Whether this node is drained. Kept as long as the process lives.
#[derive(Debug)]
pub(crate) struct Drain {
    wish: watch::Sender<Option<Wish>>,
    /// Who knows the other nodes.
    lease: OnceLock<Arc<Lease>>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { wish: watch::Sender::new(None), lease: OnceLock::new() }
    }
}

impl Drain {
    /// There may be other nodes. Once.
    pub(crate) fn join(&self, lease: Arc<Lease>) {
        let _ = self.lease.set(lease);
    }

    /// Whether there are nodes that take this one's devices.
    pub(crate) fn has_others(&self) -> bool {
        self.others_take() > 0.0
    }

    /// New links a second that those take who will have this node's devices: the others, or itself when it is back.
    fn taken_per_second(&self, own: &Admission) -> f64 {
        if self.has_others() { self.others_take() } else { own.rate() }
    }

    fn others_take(&self) -> f64 {
        let Some(lease) = self.lease.get() else { return 0.0 };
        let others = lease.others();
        let staying = others.iter().filter(|other| !other.is_draining);
        staying.map(|other| other.handshakes_per_second.map_or(PER_SECOND_UNKNOWN, f64::from)).sum()
    }

    /// Begins, or sets another time.
    pub(crate) fn begin(&self, within: Duration) {
        let now = Instant::now();
        self.wish.send_modify(|wish| {
            let begun = wish.map_or(now, |wish| wish.begun);
            *wish = Some(Wish { begun, by: now + within });
        });
    }

    /// Takes devices again. Those that were told go nevertheless.
    pub(crate) fn resume(&self) {
        self.wish.send_replace(None);
    }

    pub(crate) fn wish(&self) -> Option<Wish> {
        *self.wish.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Wish>> {
        self.wish.subscribe()
    }
}

/// Drains the node whenever that is wanted, until the soft stop, which sends away who is left. `notice`: how long a load balancer
/// may take to see that this node wants nobody new.
pub(crate) async fn run(links: Links, notice: Duration, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut wishes = shared.drain.subscribe();
    tokio::select! {
        () = shutdown.soft.cancelled() => {}
        () = async {
            while wishes.wait_for(Option::is_some).await.is_ok() {
                let mut resumed = shared.drain.subscribe();
                tokio::select! {
                    _ = resumed.wait_for(Option::is_none) => {}
                    () = drain(&shared, notice) => {}
                }
                shared.registry.open_doors();
                tracing::info!("the node takes devices again");
            }
        } => {}
    }
}

/// Waits until the node is drained, if there is anything to wait for, or until time is up.
pub(crate) async fn finished(shared: &Shared, notice: Duration) {
    let Some(Wish { begun, by }) = shared.drain.wish() else { return };
    let emptied = async {
        sleep_until(begun + notice).await;
        tokio::join!(shared.registry.emptied(), shared.tests.emptied());
    };
    tokio::select! {
        () = emptied => {}
        () = sleep_until(by) => {}
    }
}

/// Does not end by itself.
async fn drain(shared: &Shared, notice: Duration) {
    let Some(Wish { begun, by }) = shared.drain.wish() else { return };
    tracing::info!(devices = shared.registry.len(), within = ?(by - begun), "the node is to be drained");
    sleep_until(begun + notice).await;
    shared.registry.close_doors();

    let (mut turns, mut slots) = (Turns::default(), Slots::new(begun.elapsed()));
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_empty = false;
    while let Some(Wish { by, .. }) = shared.drain.wish() {
        let now = tick.tick().await;
        turns.look(&shared.registry, now);
        if now < by {
            let (now, by) = (now - begun, by - begun);
            let rate = shared.drain.taken_per_second(&shared.admission);
            for slot in slots.take(now, now + TICK, by, turns.waiting.len(), rate) {
                if let Some(handle) = turns.next(&shared.registry) {
                    tell(shared, &handle, slot.saturating_sub(now));
                }
            }
        } else if turns.looked_at == Some(now) && shared.drain.has_others() {
            // If all others are gone by now, a link here is better than none: until the node is stopped.
            let left = shared.registry.outermost();
            let left: Vec<_> = left.into_iter().filter(|handle| handle.ending().is_none()).collect();
            if !left.is_empty() {
                tracing::warn!(devices = left.len(), "time is up for devices that have no other link");
                send_away(shared, &left, LEFT_WITHIN);
            }
        }
        let was_empty = std::mem::replace(&mut is_empty, shared.registry.len() == 0 && shared.tests.len() == 0);
        if is_empty && !was_empty {
            tracing::info!(after = ?begun.elapsed(), "the node is drained: no device is left");
        }
    }
}

/// Tells a device to connect elsewhere. An agent waits for its slot by itself; clients of tunnels come again at once when they are
/// told to, so they are told when it is time.
fn tell(shared: &Shared, handle: &Handle, after: Duration) {
    shared.metrics.drain.told.inc();
    match &handle.seat {
        Seat::Direct => handle.order(Order::Reconnect(after)),
        // With the tunnel goes what is inside it.
        Seat::Tunnel(_) | Seat::Inside(_) => handle.end(farewell::come_back(after)),
    }
}

/// Who has not been told yet, and who has.
#[derive(Debug, Default)]
struct Turns {
    waiting: VecDeque<Arc<Handle>>,
    /// By device, the newest epoch that was told or waits for it. At most the devices that this node has had since the beginning,
    /// and after that nobody new is let in.
    seen: HashMap<DeviceId, u64>,
    looked_at: Option<Instant>,
}

impl Turns {
    /// Looks for devices that are new.
    fn look(&mut self, registry: &Registry, now: Instant) {
        if self.looked_at.is_some_and(|at| now < at + LOOK_EVERY) {
            return;
        }
        self.looked_at = Some(now);
        for handle in registry.outermost() {
            let seen = self.seen.entry(handle.key.device_id).or_insert(0);
            if *seen < handle.key.epoch {
                *seen = handle.key.epoch;
                self.waiting.push_back(handle);
            }
        }
    }

    /// The next one that is still there.
    fn next(&mut self, registry: &Registry) -> Option<Arc<Handle>> {
        while let Some(handle) = self.waiting.pop_front() {
            if registry.has(&handle) {
                return Some(handle);
            }
        }
        None
    }
}
