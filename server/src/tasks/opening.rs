//! Keeps open what is to be open, and nothing else: of the devices whose tunnels are on this node, the ports that the database
//! names, in the kernel and in the driver, each until its time. And writes down what is over.
//!
//! The kernel closes each port by itself: this task makes it later never, and sooner when something ended before its time. With
//! the database away, nothing is opened and nothing extended.

mod connection;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, OpeningId, TunnelId};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::bus::{Heard, Hint};
use crate::isolation::IsolationError;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::opening::{DueOpening, opening_list_due, opening_opened, opening_sweep};
use crate::store::{StoreError, single};
use crate::tunnel::Tunnels;
use crate::tunnel::plane::Owner;
use crate::tunnel::slice::Addresses;

/// What another node has ended is closed here within this time; what this one has, at once.
const EVERY: Duration = Duration::from_millis(500);
/// How long the database may take to say what is due: tunnels that end meanwhile wait for as long.
const LIST_WITHIN: Duration = Duration::from_secs(2);
/// The database's answers take more or less long, so the same end seems to be a little sooner or later each time. What differs by
/// more is another end: a sooner one counts in any case, a later one need not be told to the kernel for less.
const SOONER_MIN: Duration = Duration::from_millis(50);
const LATER_MIN: Duration = Duration::from_secs(1);
/// For the metrics of failed tasks.
const SWEEP: &str = "opening_sweep";
const KEEP: &str = "opening";

/// Ends, in the database, what is over; on nodes without tunnels, too.
pub(super) async fn sweep(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        let swept = async { single!(shared.store, |connection| opening_sweep(connection)) };
        match shared.store.within(swept).await {
            Ok(devices) => devices.into_iter().for_each(|device| shared.bus.send(Hint::OpeningsDue(device))),
            Err(error) => {
                shared.metrics.task_failures.with_label_values(&[SWEEP]).inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot end openings whose time is up");
            }
        }
    }
}

/// Until the last tunnel is gone: they live on through the soft stop.
pub(super) async fn keep(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keeper = Keeper { shared: Arc::clone(&shared), tunnels: Arc::clone(&tunnels), held: HashMap::new() };
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
                Heard::Hint(Hint::OpeningsDue(_) | Hint::DeviceChanged(_)) | Heard::Everything => {}
                Heard::Hint(
                    Hint::CommandsDue(_) | Hint::CommandChanged(_) | Hint::DeviceLinked(_) | Hint::SupportDue(_)
                    | Hint::PersonChanged(_) | Hint::ConfigurationDue(_) | Hint::NoticesDue,
                ) => continue,
                Heard::Closed => return,
            },
            () = tunnels.left() => {
                keeper.drop_gone().await;
                continue;
            }
            _ = tick.tick() => {}
        }
        keeper.drop_gone().await;
        keeper.look().await;
    }
}

/// What this node keeps open.
struct Keeper {
    shared: Arc<Shared>,
    tunnels: Arc<Tunnels>,
    held: HashMap<DeviceId, Held>,
}

/// The open ports of one device. At most as many as the database lets it have.
#[derive(Clone, Debug)]
struct Held {
    place: Place,
    ports: BTreeMap<u16, Instant>,
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    tunnel: TunnelId,
    host: u32,
    addresses: Addresses,
}

/// What is to be open of one device.
#[derive(Debug)]
struct Wanted {
    place: Place,
    ports: BTreeMap<u16, DueOpening>,
}

impl Keeper {
    /// Closes what belongs to tunnels that are gone, before somebody else gets their addresses. It takes no database for that.
    async fn drop_gone(&mut self) {
        let is_gone = |(device, held): &(&DeviceId, &Held)| !self.is_there(**device, held.place);
        let gone: Vec<_> = self.held.iter().filter(is_gone).map(|(device, _)| *device).collect();
        for device in gone {
            self.close(device, |_| true).await;
        }
        self.count();
    }

    /// Compares what is open with what the database says, and makes it so.
    async fn look(&mut self) {
        let shared = Arc::clone(&self.shared);
        let listed = async { single!(shared.store, |connection| opening_list_due(connection, &shared.node)) };
        let due = timeout(LIST_WITHIN, listed).await;
        let due = due.unwrap_or(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)));
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                return self.fail(&error, "cannot tell which ports are to be open: what is open, ends on time");
            }
        };
        let wanted = self.wanted(due);
        // First what is to be closed.
        let held: Vec<_> = self.held.keys().copied().collect();
        for device in held {
            let wanted = wanted.get(&device);
            self.close(device, |port| wanted.is_none_or(|wanted| !wanted.ports.contains_key(&port))).await;
        }
        let mut opened = Vec::new();
        for (device, wanted) in wanted {
            opened.extend(self.open(device, wanted).await);
        }
        self.count();
        if !opened.is_empty() {
            let noted = async { single!(shared.store, |connection| opening_opened(connection, &opened)) };
            if let Err(error) = shared.store.within(noted).await {
                self.fail(&error, "cannot note which ports are open");
            }
        }
    }

    /// What is due, of the devices that are here with the very tunnel that the database knows.
    fn wanted(&self, due: Vec<DueOpening>) -> HashMap<DeviceId, Wanted> {
        let slice = self.tunnels.plane.slice();
        let mut wanted: HashMap<DeviceId, Wanted> = HashMap::new();
        for due in due {
            let host = slice.host_of(due.ipv4.into());
            let Some((host, addresses)) = host.and_then(|host| Some((host, slice.addresses(host)?))) else { continue };
            let place = Place { tunnel: due.tunnel, host, addresses };
            if self.is_there(due.device, place) {
                let wanted = wanted.entry(due.device).or_insert_with(|| Wanted { place, ports: BTreeMap::new() });
                wanted.ports.insert(due.port, due);
            }
        }
        wanted
    }

    /// Whether packets to this place go to this tunnel of this device, and to nobody else.
    fn is_there(&self, device: DeviceId, place: Place) -> bool {
        let owner = Owner { tunnel: place.tunnel, device };
        self.tunnels.plane.owner(place.addresses.ipv4.into()) == Some(owner)
    }

    /// Closes ports of a device: in the driver at once, then in the kernel. What the kernel cannot be told now is tried again,
    /// and ends by itself.
    async fn close(&mut self, device: DeviceId, is_over: impl Fn(u16) -> bool) {
        let Some(held) = self.held.get(&device).cloned() else { return };
        let (over, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.ports.into_iter().partition(|(port, _)| is_over(*port));
        if over.is_empty() {
            return;
        }
        self.tell_driver(held.place, &kept);
        for port in over.into_keys() {
            abort(held.place.addresses, port, self.tunnels.isolation.link_port());
            match self.tunnels.isolation.close(held.place.addresses, port).await {
                Ok(()) => {
                    tracing::info!(%device, port, "a port is closed");
                    if let Some(held) = self.held.get_mut(&device) {
                        held.ports.remove(&port);
                    }
                }
                Err(error) => {
                    self.fail(&error, "a port could not be closed: the kernel does so on time");
                    if let Some(held) = self.held.get_mut(&device) {
                        // Not opened again in the driver, whatever else is.
                        held.ports.insert(port, Instant::now());
                    }
                }
            }
        }
        if self.held.get(&device).is_some_and(|held| held.ports.is_empty()) {
            self.held.remove(&device);
        }
    }

    /// Opens the ports of a device that are not, or not for as long: in the kernel, then in the driver. Gives the openings that are
    /// open for the first time.
    async fn open(&mut self, device: DeviceId, wanted: Wanted) -> Vec<OpeningId> {
        let Wanted { place, ports } = wanted;
        // Of another tunnel, and not closed yet: its address may be another one.
        if self.held.get(&device).is_some_and(|held| held.place != place) {
            return Vec::new();
        }
        let mut opened = Vec::new();
        let mut has_changed = false;
        for (port, due) in ports {
            let before = self.held.get(&device).and_then(|held| held.ports.get(&port)).copied();
            if before.is_none_or(|before| is_another(before, due.until)) {
                match self.tunnels.isolation.open(place.addresses, port, due.until).await {
                    Ok(()) => {
                        let left = due.until.saturating_duration_since(Instant::now());
                        tracing::info!(%device, port, seconds = left.as_secs(), "a port is open");
                        let held = self.held.entry(device).or_insert_with(|| Held { place, ports: BTreeMap::new() });
                        held.ports.insert(port, due.until);
                        has_changed = true;
                    }
                    Err(error) => {
                        if let Some(held) = self.held.get_mut(&device) {
                            // It is not in the kernel any more, whatever was there before.
                            has_changed |= held.ports.remove(&port).is_some();
                        }
                        // With nothing left of its time, there is nothing to open.
                        if !matches!(error, IsolationError::Over) {
                            self.fail(&error, "a port could not be opened");
                        }
                        continue;
                    }
                }
            }
            opened.extend(due.news);
        }
        if has_changed && let Some(held) = self.held.get(&device) {
            self.tell_driver(place, &held.ports);
            if held.ports.is_empty() {
                self.held.remove(&device);
            }
        }
        opened
    }

    fn tell_driver(&self, place: Place, ports: &BTreeMap<u16, Instant>) {
        let ports: Vec<_> = ports.iter().map(|(port, until)| (*port, *until)).collect();
        // A tunnel that is gone needs no telling.
        let _ = self.tunnels.plane.set_openings(place.host, place.tunnel, &ports);
    }

    fn count(&self) {
        let ports: usize = self.held.values().map(|held| held.ports.len()).sum();
        self.shared.metrics.openings_live.set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    fn fail(&self, error: &(dyn std::error::Error + 'static), message: &'static str) {
        self.shared.metrics.task_failures.with_label_values(&[KEEP]).inc();
        tracing::warn!(error, "{message}");
    }
}

/// Lets whoever on this node uses the port know at once. Nothing depends on it, so nobody waits for it.
fn abort(device: Addresses, port: u16, link_port: u16) {
    spawn_blocking(move || {
        for address in [IpAddr::from(device.ipv4), device.ipv6.into()] {
            match connection::abort(address, port, link_port) {
                Ok(0) => {}
                Ok(connections) => {
                    tracing::info!(%address, port, connections, "connections to a closed port were aborted");
                }
                Err(error) => tracing::debug!(%error, "connections to a closed port are left to their time-outs"),
            }
        }
    });
}

/// Whether the kernel has to be told of this end.
fn is_another(before: Instant, now: Instant) -> bool {
    now + SOONER_MIN < before || now > before + LATER_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sooner_end_always_counts_and_the_same_one_is_not_told_again() {
        let end = Instant::now() + Duration::from_secs(60);
        let ms = Duration::from_millis;
        for same in [end, end + ms(900), end - ms(20)] {
            assert!(!is_another(end, same));
        }
        for other in [end - ms(100), end - ms(59_000), end + ms(1_500)] {
            assert!(is_another(end, other));
        }
    }
}
