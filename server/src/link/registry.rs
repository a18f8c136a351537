//! The live links of this node, by device. The newest epoch of a device holds its place; whoever held it before is told so.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId};
use cloudlink_proto::link::message::goodbye::Code;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::dispatch::{ClaimedCommand, LinkKey};
use crate::store::link::ProvenLink;

/// What the rest of the node tells a link to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send it: it is marked as sent.
    Command(Box<ClaimedCommand>),
    /// Tell the device not to begin it.
    Callback(CommandId, &'static str),
}

/// How a link is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a goodbye.
    Polite { code: Code, message: &'static str, retry_after: Duration },
    /// At once: the node stops hard.
    Cut,
}

impl Ending {
    pub(crate) const REPLACED: Self = Self::polite(Code::Replaced, "a newer link of this device is live");
    pub(crate) const REVOKED: Self = Self::polite(Code::Revoked, "the device or its certificate was revoked");
    pub(crate) const CERTIFICATE_EXPIRED: Self = Self::polite(Code::CertificateExpired, "the certificate has expired");
    pub(crate) const SLOW: Self = Self::polite(Code::Overloaded, "the device does not read what it is sent");

    const fn polite(code: Code, message: &'static str) -> Self {
        Self::Polite { code, message, retry_after: Duration::ZERO }
    }
}

/// A live link, as the rest of the node sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) key: LinkKey,
    pub(crate) certificate_serial: Box<[u8]>,
    orders_max: usize,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
    /// Milliseconds from the registry's start.
    heard_ms: AtomicU64,
    /// As much of it as is in the database.
    proven_ms: AtomicU64,
}

/// Without an allocation while it is empty.
#[derive(Debug, Default)]
struct Mailbox {
    orders: VecDeque<Order>,
    ending: Option<Ending>,
}

impl Handle {
    /// Leaves an order. A link that does not fetch its orders is ended: what it was to send is sent over the next one.
    pub(crate) fn order(&self, order: Order) {
        let mut mailbox = self.mailbox();
        if mailbox.orders.len() < self.orders_max {
            mailbox.orders.push_back(order);
        } else {
            mailbox.ending.get_or_insert(Ending::SLOW);
        }
        drop(mailbox);
        self.wake.notify_one();
    }

    /// Ends the link. The first reason stays, but `Cut` goes over all.
    pub(crate) fn end(&self, ending: Ending) {
        let mut mailbox = self.mailbox();
        if mailbox.ending.is_none() || ending == Ending::Cut {
            mailbox.ending = Some(ending);
        }
        drop(mailbox);
        self.wake.notify_one();
    }

    /// Waits until there may be something in the mailbox.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until the link is told to end.
    pub(super) async fn ended(&self) -> Ending {
        // This takes wake-ups that are not for it, and may be dropped at any time.
        let _rewake = Rewake(self);
        loop {
            if let Some(ending) = self.ending() {
                return ending;
            }
            self.wake.notified().await;
        }
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.mailbox().ending
    }

    pub(super) fn take_orders(&self) -> VecDeque<Order> {
        std::mem::take(&mut self.mailbox().orders)
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        // Consistent after each statement.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sign of life that is to be written.
#[derive(Debug)]
pub(crate) struct Unproven {
    handle: Arc<Handle>,
    heard_ms: u64,
    heard_ms_ago: u64,
}

impl Unproven {
    pub(crate) fn row(&self) -> ProvenLink {
        let LinkKey { device_id, epoch } = self.handle.key;
        ProvenLink { device_id, epoch, heard_ms_ago: self.heard_ms_ago }
    }

    /// It is in the database.
    pub(crate) fn written(&self) {
        self.handle.proven_ms.store(self.heard_ms, Ordering::Relaxed);
    }
}

/// Leaves a wake-up for whoever waits next, if there is something in the mailbox.
struct Rewake<'a>(&'a Handle);

impl Drop for Rewake<'_> {
    fn drop(&mut self) {
        let mailbox = self.0.mailbox();
        let has_mail = mailbox.ending.is_some() || !mailbox.orders.is_empty();
        drop(mailbox);
        if has_mail {
            self.0.wake.notify_one();
        }
    }
}

/// The links of this node. At most `links_max` devices.
#[derive(Debug)]
pub(crate) struct Registry {
    started: Instant,
    links_max: usize,
    orders_max: usize,
    links: Mutex<HashMap<DeviceId, Arc<Handle>>>,
}

impl Registry {
    pub(crate) fn new(links_max: usize, orders_max: usize) -> Self {
        Self { started: Instant::now(), links_max, orders_max, links: Mutex::new(HashMap::new()) }
    }

    /// Whether one more device may link.
    pub(crate) fn has_room(&self) -> bool {
        self.links().len() < self.links_max
    }

    /// Enters a link that the database has given its epoch, and ends the one before. An epoch that is not the newest any
    /// more is entered nowhere and finds its own end in its mailbox.
    pub(super) fn enter(&self, key: LinkKey, certificate_serial: Box<[u8]>, now: Instant) -> Arc<Handle> {
        let handle = Arc::new(Handle {
            key,
            certificate_serial,
            orders_max: self.orders_max,
            mailbox: Mutex::default(),
            wake: Notify::new(),
            heard_ms: AtomicU64::new(self.since_start_ms(now)),
            proven_ms: AtomicU64::new(self.since_start_ms(now)),
        });
        let mut links = self.links();
        match links.get(&key.device_id) {
            Some(newer) if newer.key.epoch > key.epoch => handle.end(Ending::REPLACED),
            older => {
                if let Some(older) = older {
                    older.end(Ending::REPLACED);
                }
                links.insert(key.device_id, Arc::clone(&handle));
            }
        }
        drop(links);
        handle
    }

    /// Forgets a link that has ended, unless a newer one is in its place.
    pub(super) fn leave(&self, handle: &Arc<Handle>) {
        let mut links = self.links();
        if links.get(&handle.key.device_id).is_some_and(|entered| Arc::ptr_eq(entered, handle)) {
            links.remove(&handle.key.device_id);
        }
    }

    pub(crate) fn find(&self, device: DeviceId) -> Option<Arc<Handle>> {
        self.links().get(&device).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Handle>> {
        self.links().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.links().len()
    }

    pub(super) fn heard(&self, handle: &Handle, now: Instant) {
        handle.heard_ms.store(self.since_start_ms(now), Ordering::Relaxed);
    }

    /// The links that were heard of since that was last written.
    pub(crate) fn unproven(&self, now: Instant) -> Vec<Unproven> {
        let now_ms = self.since_start_ms(now);
        self.all()
            .into_iter()
            .filter_map(|handle| {
                let heard_ms = handle.heard_ms.load(Ordering::Relaxed);
                let heard_ms_ago = now_ms.saturating_sub(heard_ms);
                (heard_ms != handle.proven_ms.load(Ordering::Relaxed)).then_some(Unproven {
                    handle,
                    heard_ms,
                    heard_ms_ago,
                })
            })
            .collect()
    }

    fn since_start_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<DeviceId, Arc<Handle>>> {
        // Consistent after each statement.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(device: u128, epoch: u64) -> LinkKey {
        LinkKey { device_id: DeviceId::from_uuid(Uuid::from_u128(device)), epoch }
    }

    fn enter(registry: &Registry, key: LinkKey) -> Arc<Handle> {
        registry.enter(key, Box::default(), Instant::now())
    }

    #[test]
    fn a_newer_link_ends_the_older_one_and_takes_its_place() {
        let registry = Registry::new(10, 8);
        let (older, newer) = (enter(&registry, key(1, 1)), enter(&registry, key(1, 2)));
        assert_eq!((older.ending(), newer.ending()), (Some(Ending::REPLACED), None));
        registry.leave(&older);
        assert!(Arc::ptr_eq(&registry.find(key(1, 2).device_id).unwrap(), &newer));
    }

    #[test]
    fn a_link_that_comes_late_finds_itself_replaced() {
        let registry = Registry::new(10, 8);
        let (newer, older) = (enter(&registry, key(1, 2)), enter(&registry, key(1, 1)));
        assert_eq!((newer.ending(), older.ending()), (None, Some(Ending::REPLACED)));
        registry.leave(&older);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn a_link_that_does_not_fetch_its_orders_is_ended() {
        let registry = Registry::new(10, 8);
        let handle = enter(&registry, key(1, 1));
        for n in 0..8 {
            handle.order(Order::Callback(CommandId::from_uuid(Uuid::from_u128(n)), ""));
        }
        assert_eq!(handle.ending(), None);
        handle.order(Order::Callback(CommandId::from_uuid(Uuid::nil()), ""));
        assert_eq!(handle.ending(), Some(Ending::SLOW));
        assert_eq!(handle.take_orders().len(), 8);
    }

    #[tokio::test]
    async fn whoever_waits_for_the_end_leaves_the_wake_up_for_the_next() {
        let registry = Registry::new(10, 8);
        let handle = enter(&registry, key(1, 1));
        handle.end(Ending::REVOKED);
        assert_eq!(handle.ended().await, Ending::REVOKED);
        tokio::time::timeout(Duration::from_secs(5), handle.woken()).await.expect("woken again");
    }

    #[tokio::test]
    async fn whoever_waits_for_the_end_keeps_no_order_from_being_seen() {
        let registry = Registry::new(10, 8);
        let handle = enter(&registry, key(1, 1));
        let writing = tokio::time::timeout(Duration::from_millis(20), handle.ended());
        let ordering = async { handle.order(Order::Callback(CommandId::from_uuid(Uuid::nil()), "")) };
        let (ended, ()) = tokio::join!(writing, ordering);
        assert!(ended.is_err());
        tokio::time::timeout(Duration::from_secs(5), handle.woken()).await.expect("woken by the order");
    }
}
