//! The live links and tunnels of this node, by device. The newest epoch of a device holds its place; whoever held it before is
//! told so.
//!
//! A device has one place, and in it a tunnel, a link, or a link inside its tunnel. A new tunnel and a link from outside end
//! everything that was there; a link inside the tunnel ends only an older one, and ends with its tunnel.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, TunnelId};
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{Configuration, StreamRequest};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::admission::Identified;
use crate::store::dispatch::{ClaimedCommand, LinkKey};
use crate::store::link::ProvenLink;

/// How often a node that stops looks whether its last link is gone.
const EMPTIED_CHECK: Duration = Duration::from_millis(50);

/// What the rest of the node tells a link to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send it: it is marked as sent.
    Command(Box<ClaimedCommand>),
    /// Tell the device not to begin it.
    Callback(CommandId, &'static str),
    /// Ask for a stream of a support session.
    Stream(Box<StreamOrder>),
    /// Ask it to connect elsewhere, after so long.
    Reconnect(Duration),
    /// Give it what it is to have.
    Configuration(Box<Configuration>),
}

/// A stream that a device is asked for.
#[derive(Debug)]
pub(crate) struct StreamOrder {
    /// But for its times.
    pub(crate) request: StreamRequest,
    /// It is not to come later.
    pub(crate) open_by: Instant,
    /// When the grant ends.
    pub(crate) ends_at: Instant,
}

impl StreamOrder {
    /// The request as it goes over a link, or to the node that has the link: with its times from now on.
    pub(crate) fn into_request(self, now: Instant) -> StreamRequest {
        let ms_until = |at: Instant| u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
        let Self { request, open_by, ends_at } = self;
        StreamRequest { open_within_ms: ms_until(open_by), ends_after_ms: ms_until(ends_at), ..request }
    }

    /// As another node has asked for it. `None`: its times are none.
    pub(crate) fn of_request(request: StreamRequest, now: Instant) -> Option<Self> {
        let open_by = now.checked_add(Duration::from_millis(request.open_within_ms))?;
        let ends_at = now.checked_add(Duration::from_millis(request.ends_after_ms))?;
        Some(Self { request, open_by, ends_at })
    }
}

/// How a link is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a goodbye.
    Polite { code: Code, message: &'static str, retry_after: Duration },
    /// At once: the node stops hard.
    Cut,
    /// The tunnel that carried it is gone. Never told to a tunnel.
    Lost,
}

impl Ending {
    pub(crate) const REPLACED: Self = Self::polite(Code::Replaced, "a newer link of this device is live");
    pub(crate) const REVOKED: Self = Self::polite(Code::Revoked, "the device or its certificate was revoked");
    pub(crate) const CERTIFICATE_EXPIRED: Self = Self::polite(Code::CertificateExpired, "the certificate has expired");
    pub(crate) const SHUTTING_DOWN: Self = Self::polite(Code::ShuttingDown, "this node stops");
    pub(crate) const SLOW: Self = Self::polite(Code::Overloaded, "the device does not read what it is sent");

    const fn polite(code: Code, message: &'static str) -> Self {
        Self::Polite { code, message, retry_after: Duration::ZERO }
    }

    fn is_shutting_down(self) -> bool {
        matches!(self, Self::Polite { code: Code::ShuttingDown, .. })
    }
}

/// How a device is there.
#[derive(Debug)]
pub(crate) enum Seat {
    /// A link over a connection of its own.
    Direct,
    /// A tunnel.
    Tunnel(Box<TunnelSeat>),
    /// A link inside a tunnel.
    Inside(Box<InsideSeat>),
}

/// Who is at the other end of a tunnel: what a link inside it has instead of a certificate.
#[derive(Debug)]
pub(crate) struct TunnelSeat {
    pub(crate) tunnel_id: TunnelId,
    /// Where the client dials from.
    pub(crate) remote: IpAddr,
    pub(crate) identity: Identified,
}

/// The tunnel that carries a link.
#[derive(Debug)]
pub(crate) struct InsideSeat {
    pub(crate) tunnel_id: TunnelId,
    /// Everything that the device said over the link is stored, and its end, too.
    pub(crate) finished: CancellationToken,
}

/// A live link or tunnel, as the rest of the node sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) key: LinkKey,
    pub(crate) certificate_serial: Box<[u8]>,
    pub(crate) seat: Seat,
    orders_max: usize,
    mailbox: Mutex<Mailbox>,
    wake: Notify,
    /// The registry's start.
    started: Instant,
    /// Milliseconds from there.
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
    /// The tunnel that this is, or is inside of.
    pub(crate) fn tunnel_id(&self) -> Option<TunnelId> {
        match &self.seat {
            Seat::Direct => None,
            Seat::Tunnel(seat) => Some(seat.tunnel_id),
            Seat::Inside(seat) => Some(seat.tunnel_id),
        }
    }

    /// The device has given a sign of life.
    pub(crate) fn heard(&self, now: Instant) {
        self.heard_ms.store(since_ms(self.started, now), Ordering::Relaxed);
    }

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

    /// Ends the link. The first reason stays, but `Cut` goes over all, and any over the request to come back later: a tunnel
    /// waits for its turn before it says that.
    pub(crate) fn end(&self, ending: Ending) {
        let mut mailbox = self.mailbox();
        if mailbox.ending.is_none_or(|first| first.is_shutting_down()) || ending == Ending::Cut {
            mailbox.ending = Some(ending);
        }
        drop(mailbox);
        self.wake.notify_one();
    }

    /// Waits until there may be something in the mailbox.
    pub(crate) async fn woken(&self) {
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

    /// How it was told to end, if it was.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.mailbox().ending
    }

    pub(crate) fn take_orders(&self) -> VecDeque<Order> {
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
        ProvenLink { device_id, epoch, tunnel_id: self.handle.tunnel_id(), heard_ms_ago: self.heard_ms_ago }
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

/// The links and tunnels of this node. At most `links_max` devices.
#[derive(Debug)]
pub(crate) struct Registry {
    started: Instant,
    links_max: usize,
    orders_max: usize,
    places: Mutex<HashMap<DeviceId, Place>>,
    /// Whether this node has lost its own place among nodes. Changed and looked at with the places locked.
    is_fenced: AtomicBool,
    /// How often that has changed. The same holds for it.
    fences: AtomicU64,
    /// Whether it stops. In the same way.
    is_stopping: AtomicBool,
    /// Whether it wants nobody new.
    are_doors_closed: AtomicBool,
}

/// Since when somebody waits for an epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    fences: u64,
}

/// Where a device is. If it has both, the link is inside the tunnel.
#[derive(Debug, Default)]
struct Place {
    tunnel: Option<Arc<Handle>>,
    link: Option<Arc<Handle>>,
}

impl Place {
    fn handles(&self) -> impl Iterator<Item = &Arc<Handle>> {
        self.tunnel.iter().chain(&self.link)
    }

    fn epoch(&self) -> u64 {
        self.handles().map(|handle| handle.key.epoch).max().unwrap_or(0)
    }

    fn end(&self, ending: Ending) {
        self.handles().for_each(|handle| handle.end(ending));
    }

    /// What carries the rest.
    fn outermost(&self) -> Option<&Arc<Handle>> {
        self.handles().next()
    }

    fn is_empty(&self) -> bool {
        self.tunnel.is_none() && self.link.is_none()
    }

    /// Whether there is a tunnel of this id.
    fn has_tunnel(&self, id: TunnelId) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.tunnel_id() == Some(id))
    }
}

impl Registry {
    pub(crate) fn new(links_max: usize, orders_max: usize) -> Self {
        Self {
            started: Instant::now(),
            links_max,
            orders_max,
            places: Mutex::new(HashMap::new()),
            is_fenced: AtomicBool::new(false),
            fences: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            are_doors_closed: AtomicBool::new(false),
        }
    }

    /// From now on no new device is let in, but for those that are on their way.
    pub(crate) fn close_doors(&self) {
        self.are_doors_closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn open_doors(&self) {
        self.are_doors_closed.store(false, Ordering::Relaxed);
    }

    pub(crate) fn are_doors_closed(&self) -> bool {
        self.are_doors_closed.load(Ordering::Relaxed)
    }

    /// Closes the doors for good, and ends what is entered nevertheless. Gives back what is there, as [`Self::outermost`].
    pub(crate) fn stop(&self) -> Vec<Arc<Handle>> {
        self.close_doors();
        let places = self.places();
        self.is_stopping.store(true, Ordering::Relaxed);
        places.values().filter_map(Place::outermost).cloned().collect()
    }

    /// Whether one more device may link.
    pub(crate) fn has_room(&self) -> bool {
        self.places().len() < self.links_max
    }

    /// Whether others may have taken over what was here. Then nothing is entered.
    pub(crate) fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed)
    }

    /// Ends everything, and whatever is entered from now on: other nodes may take it over.
    pub(crate) fn fence(&self) {
        let places = self.places();
        self.is_fenced.store(true, Ordering::Relaxed);
        self.fences.fetch_add(1, Ordering::Relaxed);
        places.values().for_each(|place| place.end(Ending::SHUTTING_DOWN));
    }

    /// The node has its place again.
    pub(crate) fn readmit(&self) {
        let _places = self.places();
        if self.is_fenced.swap(false, Ordering::Relaxed) {
            self.fences.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// To be taken before the database is asked for an epoch.
    pub(crate) fn asking(&self) -> Asking {
        let _places = self.places();
        Asking { fences: self.fences.load(Ordering::Relaxed) }
    }

    /// Ends what a device has here, if there is nothing newer by now.
    pub(crate) fn supersede(&self, key: LinkKey) {
        let places = self.places();
        if let Some(place) = places.get(&key.device_id).filter(|place| place.epoch() <= key.epoch) {
            place.end(Ending::REPLACED);
        }
    }

    /// Ends the link that is here instead of a newer one, and leaves the tunnel that carries it.
    pub(crate) fn supersede_link(&self, newer: LinkKey) {
        if let Some(older) = self.find(newer.device_id).filter(|link| link.key.epoch < newer.epoch) {
            older.end(Ending::REPLACED);
        }
    }

    /// What is here, each with its newest epoch.
    pub(crate) fn keys(&self) -> Vec<LinkKey> {
        let key = |(device, place): (&DeviceId, &Place)| LinkKey { device_id: *device, epoch: place.epoch() };
        self.places().iter().map(key).collect()
    }

    /// The newest epoch of the device here.
    pub(crate) fn key(&self, device: DeviceId) -> Option<LinkKey> {
        Some(LinkKey { device_id: device, epoch: self.places().get(&device)?.epoch() })
    }

    /// Enters a link or tunnel that the database has given its epoch, and ends what it replaces. One that is not the newest
    /// any more, or whose tunnel is not there, is entered nowhere and finds its own end in its mailbox. So does one that was asked for
    /// before the node lost its place, though it may have it again: others have closed its row.
    pub(crate) fn enter(
        &self,
        key: LinkKey,
        asking: Asking,
        certificate_serial: Box<[u8]>,
        seat: Seat,
        now: Instant,
    ) -> Arc<Handle> {
        let handle = Arc::new(Handle {
            key,
            certificate_serial,
            seat,
            orders_max: self.orders_max,
            mailbox: Mutex::default(),
            wake: Notify::new(),
            started: self.started,
            heard_ms: AtomicU64::new(since_ms(self.started, now)),
            proven_ms: AtomicU64::new(since_ms(self.started, now)),
        });
        let mut places = self.places();
        let is_newest = places.get(&key.device_id).is_none_or(|place| place.epoch() <= key.epoch);
        let is_carried = match &handle.seat {
            Seat::Direct | Seat::Tunnel(_) => true,
            Seat::Inside(seat) => places.get(&key.device_id).is_some_and(|place| place.has_tunnel(seat.tunnel_id)),
        };
        if !is_newest || !is_carried {
            drop(places);
            handle.end(Ending::REPLACED);
            return handle;
        }
        let place = places.entry(key.device_id).or_default();
        match &handle.seat {
            Seat::Direct => {
                place.end(Ending::REPLACED);
                *place = Place { tunnel: None, link: Some(Arc::clone(&handle)) };
            }
            Seat::Tunnel(_) => {
                place.end(Ending::REPLACED);
                *place = Place { tunnel: Some(Arc::clone(&handle)), link: None };
            }
            Seat::Inside(_) => {
                if let Some(older) = place.link.replace(Arc::clone(&handle)) {
                    older.end(Ending::REPLACED);
                }
            }
        }
        let is_fenced = self.is_fenced.load(Ordering::Relaxed) || self.fences.load(Ordering::Relaxed) != asking.fences;
        if is_fenced || self.is_stopping.load(Ordering::Relaxed) {
            handle.end(Ending::SHUTTING_DOWN);
        }
        drop(places);
        handle
    }

    /// Forgets a link or tunnel that has ended, unless a newer one is in its place. A link inside the tunnel ends with it, and
    /// is given back.
    pub(crate) fn leave(&self, handle: &Arc<Handle>) -> Option<Arc<Handle>> {
        let is_it =
            |entered: &Option<Arc<Handle>>| entered.as_ref().is_some_and(|entered| Arc::ptr_eq(entered, handle));
        let mut places = self.places();
        let place = places.get_mut(&handle.key.device_id)?;
        let mut carried = None;
        if is_it(&place.tunnel) {
            place.tunnel = None;
            carried = place.link.take();
        } else if is_it(&place.link) {
            place.link = None;
        }
        if place.is_empty() {
            places.remove(&handle.key.device_id);
        }
        drop(places);
        if let Some(link) = &carried {
            link.end(Ending::Lost);
        }
        carried
    }

    /// The link on which an agent of the device answers.
    pub(crate) fn find(&self, device: DeviceId) -> Option<Arc<Handle>> {
        self.places().get(&device)?.link.clone()
    }

    /// The link of this epoch, if it is still the one on which an agent answers.
    pub(crate) fn find_exactly(&self, key: LinkKey) -> Option<Arc<Handle>> {
        self.find(key.device_id).filter(|handle| handle.key == key)
    }

    /// The tunnel of the device.
    pub(crate) fn find_tunnel(&self, device: DeviceId) -> Option<Arc<Handle>> {
        self.places().get(&device)?.tunnel.clone()
    }

    /// Ends what a device has here, all of it or what came up with one certificate.
    pub(crate) fn end(&self, device: DeviceId, certificate_serial: Option<&[u8]>, ending: Ending) {
        let places = self.places();
        let handles = places.get(&device).into_iter().flat_map(Place::handles);
        handles
            .filter(|handle| certificate_serial.is_none_or(|serial| *handle.certificate_serial == *serial))
            .for_each(|handle| handle.end(ending));
    }

    pub(crate) fn all(&self) -> Vec<Arc<Handle>> {
        self.places().values().flat_map(Place::handles).cloned().collect()
    }

    /// One a device: its tunnel, or the link over a connection of its own.
    pub(crate) fn outermost(&self) -> Vec<Arc<Handle>> {
        self.places().values().filter_map(Place::outermost).cloned().collect()
    }

    /// Whether this link or tunnel is still there.
    pub(crate) fn has(&self, handle: &Arc<Handle>) -> bool {
        let places = self.places();
        let mut there = places.get(&handle.key.device_id).into_iter().flat_map(Place::handles);
        there.any(|entered| Arc::ptr_eq(entered, handle))
    }

    /// Devices that are here.
    pub(crate) fn len(&self) -> usize {
        self.places().len()
    }

    /// Waits until no device is here any more. For the stop, when none comes.
    pub(crate) async fn emptied(&self) {
        while self.len() > 0 {
            sleep(EMPTIED_CHECK).await;
        }
    }

    /// The links and tunnels that were heard of since that was last written, one a device: what comes over a link inside a
    /// tunnel comes over the tunnel.
    pub(crate) fn unproven(&self, now: Instant) -> Vec<Unproven> {
        let now_ms = since_ms(self.started, now);
        let places = self.places();
        places
            .values()
            .filter_map(Place::outermost)
            .filter_map(|handle| {
                let heard_ms = handle.heard_ms.load(Ordering::Relaxed);
                let heard_ms_ago = now_ms.saturating_sub(heard_ms);
                (heard_ms != handle.proven_ms.load(Ordering::Relaxed)).then(|| Unproven {
                    handle: Arc::clone(handle),
                    heard_ms,
                    heard_ms_ago,
                })
            })
            .collect()
    }

    fn places(&self) -> MutexGuard<'_, HashMap<DeviceId, Place>> {
        // Consistent after each statement.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn since_ms(started: Instant, now: Instant) -> u64 {
    u64::try_from(now.duration_since(started).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use uuid::Uuid;

    use super::*;

    pub(crate) fn key(device: u128, epoch: u64) -> LinkKey {
        LinkKey { device_id: DeviceId::from_uuid(Uuid::from_u128(device)), epoch }
    }

    fn enter(registry: &Registry, key: LinkKey) -> Arc<Handle> {
        registry.enter(key, registry.asking(), Box::default(), Seat::Direct, Instant::now())
    }

    pub(crate) fn tunnel_id(id: u128) -> TunnelId {
        TunnelId::from_uuid(Uuid::from_u128(id))
    }

    pub(crate) fn enter_tunnel(registry: &Registry, key: LinkKey, id: u128) -> Arc<Handle> {
        let identity = Identified {
            device_id: key.device_id,
            tenant_id: cloudlink_proto::ids::TenantId::from_uuid(Uuid::nil()),
            serial: Box::default(),
            expires_at: Instant::now(),
        };
        let seat =
            Seat::Tunnel(Box::new(TunnelSeat { tunnel_id: tunnel_id(id), remote: [192, 0, 2, 1].into(), identity }));
        registry.enter(key, registry.asking(), Box::default(), seat, Instant::now())
    }

    pub(crate) fn enter_inside(registry: &Registry, key: LinkKey, id: u128) -> Arc<Handle> {
        let seat = InsideSeat { tunnel_id: tunnel_id(id), finished: CancellationToken::new() };
        registry.enter(key, registry.asking(), Box::default(), Seat::Inside(Box::new(seat)), Instant::now())
    }

    #[test]
    fn what_was_asked_for_before_the_node_lost_its_place_ends_when_it_has_it_again() {
        let registry = Registry::new(10, 8);
        let before = registry.asking();
        registry.fence();
        let meanwhile = registry.asking();
        registry.readmit();
        for (device, asking) in [(1, before), (2, meanwhile)] {
            let handle = registry.enter(key(device, 1), asking, Box::default(), Seat::Direct, Instant::now());
            assert_eq!(handle.ending(), Some(Ending::SHUTTING_DOWN));
        }
        registry.readmit();
        assert_eq!(enter(&registry, key(3, 1)).ending(), None);
    }

    #[test]
    fn a_link_inside_a_tunnel_is_beside_it_and_is_lost_with_it() {
        let registry = Registry::new(10, 8);
        let tunnel = enter_tunnel(&registry, key(1, 1), 7);
        assert!(registry.find(key(1, 1).device_id).is_none(), "no agent answers");
        let link = enter_inside(&registry, key(1, 2), 7);
        assert_eq!((tunnel.ending(), link.ending()), (None, None));
        let newer = enter_inside(&registry, key(1, 3), 7);
        assert_eq!((tunnel.ending(), link.ending()), (None, Some(Ending::REPLACED)));
        assert!(registry.leave(&link).is_none());
        assert!(Arc::ptr_eq(&registry.leave(&tunnel).unwrap(), &newer));
        assert_eq!(newer.ending(), Some(Ending::Lost));
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn a_link_that_leaves_its_tunnel_leaves_the_tunnel_there() {
        let registry = Registry::new(10, 8);
        let tunnel = enter_tunnel(&registry, key(1, 1), 7);
        let link = enter_inside(&registry, key(1, 2), 7);
        registry.leave(&link);
        assert_eq!((tunnel.ending(), registry.len()), (None, 1));
        assert!(Arc::ptr_eq(&registry.find_tunnel(key(1, 1).device_id).unwrap(), &tunnel));
    }

    #[test]
    fn a_link_inside_another_tunnel_than_the_one_in_place_finds_itself_replaced() {
        let registry = Registry::new(10, 8);
        let tunnel = enter_tunnel(&registry, key(1, 1), 7);
        assert_eq!(enter_inside(&registry, key(1, 2), 8).ending(), Some(Ending::REPLACED));
        assert_eq!(enter_inside(&registry, key(2, 1), 7).ending(), Some(Ending::REPLACED));
        assert_eq!((tunnel.ending(), registry.len()), (None, 1));
    }

    #[test]
    fn what_counts_no_more_is_ended_unless_there_is_something_newer() {
        let registry = Registry::new(10, 8);
        let (tunnel, link) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        registry.supersede_link(key(1, 2));
        registry.supersede(key(1, 1));
        assert_eq!((tunnel.ending(), link.ending()), (None, None));
        registry.supersede_link(key(1, 3));
        assert_eq!((tunnel.ending(), link.ending()), (None, Some(Ending::REPLACED)));
        registry.supersede(key(1, 2));
        assert_eq!(tunnel.ending(), Some(Ending::REPLACED));
    }

    #[test]
    fn a_new_tunnel_and_a_link_from_outside_end_everything_older() {
        let registry = Registry::new(10, 8);
        let (tunnel, link) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        let direct = enter(&registry, key(1, 3));
        assert_eq!((tunnel.ending(), link.ending()), (Some(Ending::REPLACED), Some(Ending::REPLACED)));
        let (newer, late) = (enter_tunnel(&registry, key(1, 5), 8), enter_tunnel(&registry, key(1, 4), 9));
        assert_eq!(direct.ending(), Some(Ending::REPLACED));
        assert_eq!((newer.ending(), late.ending()), (None, Some(Ending::REPLACED)));
        assert!(registry.leave(&tunnel).is_none());
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn revoking_a_certificate_ends_what_came_up_with_it_and_revoking_a_device_everything() {
        let registry = Registry::new(10, 8);
        let (tunnel, link) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        registry.end(key(1, 1).device_id, Some(&[1]), Ending::REVOKED);
        assert_eq!((tunnel.ending(), link.ending()), (None, None));
        registry.end(key(1, 1).device_id, None, Ending::REVOKED);
        assert_eq!((tunnel.ending(), link.ending()), (Some(Ending::REVOKED), Some(Ending::REVOKED)));
    }

    #[test]
    fn a_device_with_both_gives_one_sign_of_life() {
        let registry = Registry::new(10, 8);
        let (tunnel, link) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        let later = Instant::now() + Duration::from_secs(5);
        tunnel.heard(later);
        link.heard(later);
        let unproven = registry.unproven(later);
        assert_eq!(unproven.len(), 1);
        assert_eq!(unproven[0].row().tunnel_id, Some(tunnel_id(7)));
        unproven[0].written();
        assert!(registry.unproven(later).is_empty());
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
    fn what_comes_up_while_the_node_stops_is_told_so() {
        let registry = Registry::new(10, 8);
        let (tunnel, inside) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        let direct = enter(&registry, key(2, 1));
        registry.close_doors();
        let late = enter(&registry, key(3, 1));
        assert_eq!(late.ending(), None, "it was on its way, and is served");
        let there = registry.stop();
        assert_eq!(there.len(), 3);
        assert!(there.iter().any(|handle| Arc::ptr_eq(handle, &tunnel)) && registry.has(&inside));
        assert_eq!(enter(&registry, key(4, 1)).ending(), Some(Ending::SHUTTING_DOWN));
        registry.leave(&direct);
        assert!(!registry.has(&direct));
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
