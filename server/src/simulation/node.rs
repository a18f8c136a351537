//! A node: its tasks as `tasks/` and `link/` have them, around the tenure, the registry and the sessions of the server itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, TenantId};
use cloudlink_proto::link::message::{Command, CommandReceipt, command_status};
use cloudlink_proto::link::{Admission, FromDevice, Server, Session, Timing};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::executor::Owner;
use super::fault::Fault;
use super::tables::{Claimed, Opened, Tables};
use super::world::{Durability, End, LEASE, NODES, PATIENCE_MS, World, device_id, node_name, node_number};
use crate::bus::Hint;
use crate::cluster::lease::JOIN_AGAIN_AFTER;
use crate::cluster::tenure::{self, Act, Renewal, Standing, Tenure};
use crate::link::dispatch::STORE_RETRY;
use crate::link::{Ending, Handle, Order, Registry, Seat, Unproven};
use crate::model::command::{Instruction, State};
use crate::store::dispatch::{ClaimedCommand, LinkKey};
use crate::store::link::{ClosedLink, Ended, ProvenLink};
use crate::store::node::{Joined, NewNode, Peer};
use crate::store::transition::Outcome;
use crate::tasks::presence::{self, COMPARE_EVERY, ORPHAN_GRACE, Orphans};
use crate::tasks::superseded;

/// As by default.
const RECONCILE_EVERY_MS: u64 = 5_000;
/// Less often than the task: it only has to come to it.
const SWEEP_EVERY_MS: u64 = 5_000;
/// More than there are devices.
const LINKS_MAX: usize = 100;
const ORDERS_MAX: usize = 64;
/// What closing the links of another node takes, as if they were many.
pub(super) const CLOSING_MAX_MS: u64 = 4_000;
/// Of the lease.
const TURN: Duration = Duration::from_secs(3);

pub(super) struct Node {
    pub(super) number: usize,
    pub(super) row: NewNode,
    pub(super) tenure: RefCell<Tenure>,
    pub(super) registry: Registry,
    others: RefCell<Vec<Peer>>,
    /// Links of an earlier life are closed.
    pub(super) is_open: Cell<bool>,
    superseding: mpsc::UnboundedSender<DeviceId>,
    due: mpsc::UnboundedSender<DeviceId>,
    renewed: Notify,
    asleep_ms: Cell<u64>,
}

impl Node {
    /// What its monotonic clock shows, which stands still while its machine sleeps.
    pub(super) fn now(&self, world: &World) -> Instant {
        world.instant(world.time.now_ms() - self.asleep_ms.get())
    }

    pub(super) fn has_slept(&self, ms: u64) {
        self.asleep_ms.set(self.asleep_ms.get() + ms);
    }

    fn pause(&self, world: &World) -> Duration {
        let (tenure, now) = (self.tenure.borrow(), self.now(world));
        if world.has(Fault::PausesAddUp) { tenure.attempt_within(now) } else { tenure.pause(now) }
    }

    pub(super) fn standing(&self) -> Standing {
        self.tenure.borrow().standing()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others are about what is not simulated")]
    pub(super) fn hear(&self, hint: Hint) {
        // Whoever does not listen any more has died.
        let _ = match hint {
            Hint::DeviceLinked(device) => self.superseding.send(device),
            Hint::CommandsDue(device) => self.due.send(device),
            _ => Ok(()),
        };
    }

    /// Those that no end was put to.
    pub(super) fn live(&self) -> Vec<Arc<Handle>> {
        self.registry.all().into_iter().filter(|handle| handle.ending().is_none()).collect()
    }
}

/// Starts the process.
pub(super) fn start(world: &Rc<World>, number: usize) {
    world.network.borrow_mut().silent.remove(&End::Node(number));
    world.tell(|| format!("{} starts", node_name(number)));
    let row = NewNode {
        name: node_name(number).to_owned(),
        instance: Uuid::from_u128(number as u128),
        life: world.uuid(),
        version: "",
        address: None,
        lease: LEASE,
    };
    let begun_ms = world.time.now_ms();
    world.history.borrow_mut().started(number, begun_ms);
    world.time.spawn(Owner::Node(number), run(Rc::clone(world), number, row));
}

/// Ends the process, from one moment to the next.
pub(super) fn kill(world: &World, number: usize, is_silent: bool) {
    if is_silent {
        world.network.borrow_mut().silent.insert(End::Node(number));
    }
    world.time.kill(Owner::Node(number));
    world.nodes.borrow_mut()[number] = None;
    world.history.borrow_mut().died(number, world.time.now_ms());
}

async fn run(world: Rc<World>, number: usize, row: NewNode) {
    let (asked_at, others) = loop {
        let asked_at = world.instant(world.time.now_ms());
        let joining = row.clone();
        let join = move |tables: &mut Tables| (tables.join(&joining), tables.others(&joining.name));
        if let Some((Joined::Yes, others)) = world.call(number, Durability::Stored, PATIENCE_MS, join).await {
            break (asked_at, others);
        }
        world.sleep(ms(JOIN_AGAIN_AFTER)).await;
    };
    let ((superseding, superseded), (due, dues)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let lease = if world.has(Fault::ALeaseIsThoughtLonger) { LEASE * 2 } else { LEASE };
    let node = Rc::new(Node {
        number,
        row,
        tenure: RefCell::new(Tenure::with_rules(lease, asked_at, Fault::rules(world.fault))),
        registry: Registry::new(LINKS_MAX, ORDERS_MAX),
        others: RefCell::new(others),
        is_open: Cell::new(false),
        superseding,
        due,
        renewed: Notify::new(),
        asleep_ms: Cell::new(0),
    });
    world.nodes.borrow_mut()[number] = Some(Rc::clone(&node));
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| world.time.spawn(Owner::Node(number), task);
    let (w, n) = (&world, &node);
    spawn(Box::pin(keep(Rc::clone(w), Rc::clone(n))));
    spawn(Box::pin(settle_always(Rc::clone(w), Rc::clone(n))));
    spawn(Box::pin(prove(Rc::clone(w), Rc::clone(n))));
    spawn(Box::pin(supersede(Rc::clone(w), Rc::clone(n), superseded)));
    spawn(Box::pin(dispatch(Rc::clone(w), Rc::clone(n), dues)));
    spawn(Box::pin(sweep(Rc::clone(w), Rc::clone(n))));
    loop {
        let name = node.row.name.clone();
        let close = move |tables: &mut Tables| tables.close_node(&name, u64::MAX);
        match world.call(number, Durability::Stored, PATIENCE_MS, close).await {
            Some(0) => break,
            Some(_) => {}
            None => world.sleep(ms(JOIN_AGAIN_AFTER)).await,
        }
    }
    node.is_open.set(true);
}

/// `tasks::node`.
async fn keep(world: Rc<World>, node: Rc<Node>) {
    loop {
        let pause = node.pause(&world);
        world.sleep(ms(pause)).await;
        let act = renew(&world, &node).await;
        if act != Act::Serve && act != Act::Wait {
            world.tell(|| format!("{}: {act:?}", node.row.name));
        }
        match act {
            Act::Serve => node.registry.readmit(),
            Act::BeginAnew => {
                node.registry.fence();
                continue;
            }
            Act::Wait | Act::Ask => continue,
            Act::GiveUp => {
                if !world.has(Fault::LinksOutliveTheFence) {
                    node.registry.fence();
                }
                continue;
            }
            Act::Stop => {
                // The process ends, and whatever watches over it starts it again.
                node.registry.fence();
                let (world, number) = (Rc::clone(&world), node.number);
                world.clone().time.spawn(Owner::World, async move {
                    world.history.borrow_mut().troubled(number, world.time.now_ms());
                    kill(&world, number, false);
                    world.sleep(ms(JOIN_AGAIN_AFTER)).await;
                    start(&world, number);
                });
                return std::future::pending().await;
            }
        }
        if world.has(Fault::SettlingHoldsUpRenewing) {
            let _ = world.time.timeout(PATIENCE_MS, settle(&world, &node)).await;
        } else {
            node.renewed.notify_one();
        }
    }
}

/// Beside the renewals.
async fn settle_always(world: Rc<World>, node: Rc<Node>) {
    loop {
        node.renewed.notified().await;
        if !world.has(Fault::NobodyIsTakenToBeGone) {
            let _ = world.time.timeout(PATIENCE_MS, settle(&world, &node)).await;
        }
    }
}

/// `cluster::Lease::renew`.
async fn renew(world: &Rc<World>, node: &Rc<Node>) -> Act {
    let (asked_at, row) = (node.now(world), node.row.clone());
    let is_patient = world.has(Fault::WhoeverIsLateTakesItsTime);
    let within = if is_patient { TURN } else { node.tenure.borrow().attempt_within(asked_at) };
    let missed_at = node.tenure.borrow().missed_at();
    let renew = move |tables: &mut Tables| tables.renew(&row, missed_at);
    let renewed = world.call(node.number, Durability::Stored, ms(within), renew).await;
    let counted_from = if world.has(Fault::ALeaseCountsFromItsAnswer) { node.now(world) } else { asked_at };
    let renewal = match &renewed {
        Some(Some(renewed)) => {
            Renewal::Done { asked_at: counted_from, gone_at: renewed.gone_at, others: &renewed.others }
        }
        Some(None) => Renewal::Refused,
        None => Renewal::Unanswered,
    };
    let mut act = node.tenure.borrow_mut().renewal(renewal, node.now(world));
    if let Some(Some(renewed)) = renewed {
        *node.others.borrow_mut() = renewed.others;
    }
    if act == Act::Ask {
        let asked_at = node.now(world);
        let are_all_cut_off = are_all_cut_off(world, node).await;
        act = node.tenure.borrow_mut().asked(are_all_cut_off, asked_at);
    }
    act
}

/// `cluster::Relay::are_all_cut_off`.
async fn are_all_cut_off(world: &Rc<World>, node: &Rc<Node>) -> bool {
    let from = End::Node(node.number);
    if world.is_cut(from, End::Hints) {
        return false;
    }
    let known: Vec<usize> = node.others.borrow().iter().map(|other| node_number(&other.name)).collect();
    let mut asked: [_; NODES] =
        std::array::from_fn(|other| (other != node.number).then(|| ask(world, node.number, other)));
    let within = node.tenure.borrow().ask_within();
    world.sleep(ms(within)).await;
    let answers = asked.each_mut().map(|answer| answer.as_mut().and_then(|answer| answer.try_recv().ok()));
    tenure::are_all_cut_off(known.into_iter().map(|other| answers[other]), answers.contains(&Some(true)))
}

/// Whether another node reaches the database, as it says.
fn ask(world: &Rc<World>, from: usize, to: usize) -> oneshot::Receiver<bool> {
    let (tell, told) = oneshot::channel();
    let world = Rc::clone(world);
    world.clone().time.spawn(Owner::World, async move {
        let is_cut = |world: &World| [from, to].iter().any(|node| world.is_cut(End::Node(*node), End::Hints));
        world.travel().await;
        let other = world.node(to).filter(|_| !is_cut(&world) && !world.time.is_stopped(Owner::Node(to)));
        let Some(other) = other else { return std::future::pending().await };
        let reaches = other.tenure.borrow().reaches_database(other.now(&world));
        world.travel().await;
        if is_cut(&world) {
            return std::future::pending().await;
        }
        let _ = tell.send(reaches && !world.has(Fault::EverybodySaysToBeCutOff));
    });
    told
}

/// Closes what nodes had that are gone.
async fn settle(world: &Rc<World>, node: &Rc<Node>) {
    let (number, row) = (node.number, node.row.clone());
    let suspects = node.tenure.borrow().suspects(node.now(world));
    let mut expired = None;
    if !suspects.is_empty() || world.has(Fault::LeasesEndByTheClock) {
        let expire = move |tables: &mut Tables| tables.expire(&row, &suspects);
        expired = world.call(number, Durability::Stored, PATIENCE_MS, expire).await;
    }
    for gone in expired.iter().flatten() {
        world.tell(|| format!("{}: {gone} is gone", node.row.name));
    }
    let unsettled = world.call(number, Durability::Stored, PATIENCE_MS, |tables| tables.unsettled()).await;
    // As if they were so many that closing them takes its time.
    world.sleep(world.time.random.within(0, CLOSING_MAX_MS)).await;
    for name in unsettled.into_iter().flatten() {
        world.call(number, Durability::Stored, PATIENCE_MS, move |tables| tables.close_gone(&name, u64::MAX)).await;
    }
}

/// `tasks::presence`.
async fn prove(world: Rc<World>, node: Rc<Node>) {
    let (mut orphans, mut compared_ms) = (Orphans::default(), world.time.now_ms());
    loop {
        world.sleep(ms(presence::EVERY)).await;
        let mut unproven = node.registry.unproven(node.now(&world));
        unproven.sort_unstable_by_key(|unproven| unproven.row().device_id);
        let rows: Vec<ProvenLink> = unproven.iter().map(Unproven::row).collect();
        if !rows.is_empty() {
            let proved =
                world.call(node.number, Durability::Soon, PATIENCE_MS, move |tables| tables.prove(&rows)).await;
            if proved.is_some() {
                unproven.iter().for_each(Unproven::written);
            }
        }
        if world.time.now_ms() >= compared_ms + ms(COMPARE_EVERY) && !world.has(Fault::OrphansStay) {
            compared_ms = world.time.now_ms();
            let name = node.row.name.clone();
            let listed = move |tables: &mut Tables| tables.silent(&name, ORPHAN_GRACE);
            let Some(found) = world.call(node.number, Durability::Stored, PATIENCE_MS, listed).await else { continue };
            let closed = orphans.look(found, &node.registry);
            if !closed.is_empty() {
                world.call(node.number, Durability::Stored, PATIENCE_MS, move |tables| tables.close(&closed)).await;
            }
        }
    }
}

/// `tasks::superseded`.
async fn supersede(world: Rc<World>, node: Rc<Node>, mut hints: mpsc::UnboundedReceiver<DeviceId>) {
    let mut next_ms = 0_u64;
    loop {
        let heard = world.time.timeout(next_ms.saturating_sub(world.time.now_ms()), hints.recv()).await.flatten();
        if heard.is_none() {
            next_ms = world.time.now_ms() + ms(superseded::EVERY);
        }
        if world.has(Fault::OlderLinksStay) {
            continue;
        }
        let mut keys = match heard {
            Some(device) => node.registry.key(device).into_iter().collect(),
            None => node.registry.keys(),
        };
        keys.sort_unstable_by_key(|key| key.device_id);
        if keys.is_empty() {
            continue;
        }
        let name = node.row.name.clone();
        let listed = move |tables: &mut Tables| tables.superseded(&name, &keys);
        for key in world.call(node.number, Durability::Stored, PATIENCE_MS, listed).await.into_iter().flatten() {
            node.registry.supersede(key);
        }
    }
}

/// `link::dispatch`.
async fn dispatch(world: Rc<World>, node: Rc<Node>, mut hints: mpsc::UnboundedReceiver<DeviceId>) {
    let mut next_ms = world.time.now_ms() + RECONCILE_EVERY_MS;
    loop {
        let heard = world.time.timeout(next_ms.saturating_sub(world.time.now_ms()), hints.recv()).await.flatten();
        if heard.is_none() {
            next_ms = world.time.now_ms() + RECONCILE_EVERY_MS;
        }
        let keys: Option<Vec<LinkKey>> = match heard {
            Some(device) => Some(node.registry.find(device).map(|handle| handle.key).into_iter().collect()),
            None => {
                let name = node.row.name.clone();
                let listed = move |tables: &mut Tables| tables.dispatchable(&name);
                let due = world.call(node.number, Durability::Stored, PATIENCE_MS, listed).await;
                due.map(|due| due.into_iter().map(|(device_id, epoch)| LinkKey { device_id, epoch }).collect())
            }
        };
        let Some(keys) = keys else {
            world.sleep(ms(STORE_RETRY)).await;
            continue;
        };
        if keys.is_empty() {
            continue;
        }
        let asked_at = node.now(&world);
        let claiming = Rc::clone(&world);
        let claim = move |tables: &mut Tables| {
            let claimed = tables.claim(&keys);
            claimed.iter().for_each(|claimed| claiming.history.borrow_mut().counted(claimed.link));
            claimed
        };
        let forgets = world.has(Fault::SendingsAreForgotten);
        let durability = if forgets { Durability::Soon } else { Durability::Stored };
        let claimed = world.call(node.number, durability, PATIENCE_MS, claim).await;
        for claimed in claimed.into_iter().flatten() {
            // A link that is gone by now gets nothing: the device's next one does.
            if let Some(handle) = node.registry.find_exactly(claimed.link) {
                handle.order(Order::Command(Box::new(order(&claimed, asked_at))));
            }
        }
    }
}

fn order(claimed: &Claimed, asked_at: Instant) -> ClaimedCommand {
    ClaimedCommand {
        link: claimed.link,
        command_id: claimed.command_id,
        grant_id: GrantId::from_uuid(Uuid::nil()),
        instruction: Instruction::CollectMetrics {},
        start_by: asked_at + Duration::from_millis(claimed.start_within_ms),
        requested_by: String::new(),
        reason: String::new(),
        grant_statement: None,
        trace: None,
        is_resent: claimed.is_resent,
        override_busy: false,
    }
}

/// `tasks::deadline`.
async fn sweep(world: Rc<World>, node: Rc<Node>) {
    loop {
        world.sleep(SWEEP_EVERY_MS).await;
        world.call(node.number, Durability::Stored, PATIENCE_MS, |tables| tables.sweep()).await;
    }
}

/// A device has connected.
pub(super) fn accept(
    world: &Rc<World>,
    node: &Rc<Node>,
    device: usize,
    inbox: mpsc::UnboundedReceiver<Bytes>,
    outbox: mpsc::UnboundedSender<Bytes>,
) {
    let session = Session::server(node.now(world).into_std(), &Timing::default());
    let link = Link { world: Rc::clone(world), node: Rc::clone(node), device, session, inbox, outbox };
    world.time.spawn(Owner::Node(node.number), link.run());
}

/// `link::opening` and `link::conn`.
struct Link {
    world: Rc<World>,
    node: Rc<Node>,
    device: usize,
    session: Session<Server>,
    inbox: mpsc::UnboundedReceiver<Bytes>,
    outbox: mpsc::UnboundedSender<Bytes>,
}

type Reported = (CommandId, State, Outcome);
type Doing = std::pin::Pin<Box<dyn Future<Output = Reported>>>;

impl Link {
    async fn run(mut self) {
        let registry = &self.node.registry;
        if registry.is_fenced() || !registry.has_room() || !self.hello().await {
            return;
        }
        let Some(handle) = self.open().await else { return };
        self.drive(&handle).await;
        self.finish(&handle).await;
    }

    async fn hello(&mut self) -> bool {
        loop {
            self.transmit();
            if self.session.state().is_ending() {
                return false;
            }
            let wait = self.until_timeout();
            match self.world.time.timeout(wait, self.inbox.recv()).await {
                Some(Some(message)) => {
                    let now = self.node.now(&self.world).into_std();
                    if let Ok(Some(FromDevice::Hello(_))) = self.session.handle_message(now, &message) {
                        return true;
                    }
                }
                Some(None) => return false,
                None => self.session.handle_timeout(self.node.now(&self.world).into_std()),
            }
        }
    }

    async fn open(&mut self) -> Option<Arc<Handle>> {
        let (device, name) = (device_id(self.device), self.node.row.name.clone());
        let world = Rc::clone(&self.world);
        let open = move |tables: &mut Tables| {
            let opened = tables.open(&name, device);
            world.tell(|| format!("{name}: device {device} has link {}", opened.epoch));
            world.history.borrow_mut().opened(device, opened.epoch, node_number(&name), world.time.now_ms());
            opened
        };
        let asking = self.node.registry.asking();
        let opened = self.world.call(self.node.number, Durability::Stored, PATIENCE_MS, open).await;
        let Opened { epoch, has_open_commands, live_before } = opened?;
        let key = LinkKey { device_id: device, epoch };
        let handle = self.node.registry.enter(key, asking, Box::default(), Seat::Direct, self.node.now(&self.world));
        if live_before.is_some_and(|before| before != self.node.row.name) {
            self.world.hint(self.node.number, Hint::DeviceLinked(device));
        }
        let admission = Admission {
            device_id: device,
            tenant_id: TenantId::from_uuid(Uuid::nil()),
            epoch,
            clock_unix_ms: 0,
            metrics_interval: Duration::ZERO,
        };
        // A session that has timed out meanwhile ends like any other.
        let _ = self.session.welcome(self.node.now(&self.world).into_std(), &admission);
        if has_open_commands {
            self.node.hear(Hint::CommandsDue(device));
        }
        Some(handle)
    }

    async fn drive(&mut self, handle: &Arc<Handle>) {
        let mut reports: Vec<(CommandId, State)> = Vec::new();
        let mut doing: Option<Doing> = None;
        loop {
            self.transmit();
            if self.session.state().is_ending() || handle.ending() == Some(Ending::Cut) {
                return;
            }
            if doing.is_none() && !reports.is_empty() {
                doing = Some(self.report(handle.key, reports.remove(0)));
            }
            let wait = self.until_timeout();
            let sleep = self.world.time.sleep(wait);
            tokio::select! {
                biased;
                () = handle.woken() => self.follow_orders(handle),
                (id, state, outcome) = async { doing.as_mut().expect("guarded").await }, if doing.is_some() => {
                    doing = None;
                    match outcome {
                        Outcome::Moved(_) | Outcome::Repeated | Outcome::Late | Outcome::Unknown => {
                            if state.is_final() {
                                let receipt = CommandReceipt { id: id.to_wire() };
                                let _ = self.session.send(self.node.now(&self.world).into_std(), receipt);
                            }
                        }
                        Outcome::Unproven | Outcome::Foreign | Outcome::Stale | Outcome::Illegal => {}
                    }
                }
                message = self.inbox.recv() => match message {
                    Some(message) => reports.extend(self.take(handle, &message)),
                    None => self.session.transport_lost(None),
                },
                () = sleep => self.session.handle_timeout(self.node.now(&self.world).into_std()),
            }
        }
    }

    fn take(&mut self, handle: &Handle, message: &[u8]) -> Option<(CommandId, State)> {
        let taken = self.session.handle_message(self.node.now(&self.world).into_std(), message);
        handle.heard(self.session.last_proven().into());
        match taken {
            Ok(Some(FromDevice::CommandStatus { id, state, .. })) => Some((id, state_of(state)?)),
            _ => None,
        }
    }

    /// Tried until it is known, or the link ends.
    fn report(&self, key: LinkKey, (id, state): (CommandId, State)) -> Doing {
        let (world, number) = (Rc::clone(&self.world), self.node.number);
        let durability = if state.is_final() { Durability::Stored } else { Durability::Soon };
        Box::pin(async move {
            loop {
                let applying = Rc::clone(&world);
                let apply = move |tables: &mut Tables| {
                    let outcome = tables.apply(id, state, Some(key));
                    if matches!(outcome, Outcome::Moved(_)) {
                        applying.history.borrow_mut().counted(key);
                    }
                    outcome
                };
                if let Some(outcome) = world.call(number, durability, PATIENCE_MS, apply).await {
                    return (id, state, outcome);
                }
                world.sleep(ms(STORE_RETRY)).await;
            }
        })
    }

    fn follow_orders(&mut self, handle: &Handle) {
        let now = self.node.now(&self.world);
        for order in handle.take_orders() {
            let Order::Command(command) = order else { continue };
            let message = Command {
                id: command.command_id.to_wire(),
                start_within_ms: ms(command.start_by.saturating_duration_since(now)),
                sent_after_ms: self.session.sent_after_ms(now.into_std()),
                grant_id: command.grant_id.to_wire(),
                kind: Some(command.instruction.to_wire()),
                ..Command::default()
            };
            let _ = self.session.send(now.into_std(), message);
        }
        match handle.ending() {
            Some(Ending::Polite { code, message, retry_after }) => {
                self.session.goodbye(now.into_std(), code, message, retry_after);
            }
            Some(Ending::Lost) => self.session.transport_lost(None),
            Some(Ending::Cut) | None => {}
        }
    }

    async fn finish(&mut self, handle: &Arc<Handle>) {
        self.node.registry.leave(handle);
        if handle.ending() == Some(Ending::REPLACED) {
            return;
        }
        let LinkKey { device_id, epoch } = handle.key;
        let closed = ClosedLink { device_id, ended: Ended::Link(epoch), reason: "lost", is_loss: false };
        let close = move |tables: &mut Tables| tables.close(&[closed]);
        while self.world.call(self.node.number, Durability::Stored, PATIENCE_MS, close).await.is_none() {
            self.world.sleep(ms(STORE_RETRY)).await;
        }
    }

    fn transmit(&mut self) {
        while let Some(message) = self.session.poll_transmit() {
            // What cannot be sent is found by its silence.
            let _ = self.outbox.send(message);
        }
    }

    fn until_timeout(&self) -> u64 {
        let now = self.node.now(&self.world);
        let at = self.session.poll_timeout().map_or(now, Instant::from_std);
        ms(at.saturating_duration_since(now)).max(1)
    }
}

fn state_of(state: command_status::State) -> Option<State> {
    Some(match state {
        command_status::State::Unspecified => return None,
        command_status::State::Accepted => State::Accepted,
        command_status::State::Running => State::Running,
        command_status::State::Succeeded => State::Succeeded,
        command_status::State::Failed => State::Failed,
        command_status::State::Refused => State::Refused,
        command_status::State::Expired => State::Expired,
        command_status::State::Cancelled => State::Cancelled,
    })
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a short time")
}

/// Those that a load balancer would choose from.
pub(super) fn ready(world: &World) -> BTreeSet<usize> {
    let is_ready = |number: &usize| {
        let node = world.node(*number);
        node.is_some_and(|node| node.is_open.get() && node.standing() == Standing::Held)
    };
    (0..NODES).filter(is_ready).collect()
}
