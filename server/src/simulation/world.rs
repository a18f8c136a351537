//! Nodes, a database, hints and devices, and the networks between them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::{CommandId, DeviceId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::check::History;
use super::device::Machine;
use super::executor::{Executor, Owner};
use super::fault::Fault;
use super::harm::{self, Theme};
use super::node::Node;
use super::tables::{Clock, Tables, millis};
use crate::bus::Hint;
use crate::model::command::Instruction;
use crate::store::dispatch::LinkKey;

pub(super) const NODES: usize = 3;
pub(super) const DEVICES: usize = 4;
/// As by default.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// For one statement, as by default.
pub(super) const PATIENCE_MS: u64 = 15_000;
/// A moment that nothing depends on: the database's clock when a world begins.
const BEGIN: Clock = 1_592_215_200_000;
/// The longest way of a message, when all is well.
pub(super) const SLOWNESS_MS: u64 = 20;
/// Below a turn of the lease, with both ways.
const WORK_MAX_MS: u64 = 2_900;
/// How long after an outage everybody may still be behind: a statement, and what waits for it.
const AFTER_OUTAGE_MS: u64 = 2 * PATIENCE_MS;
/// How often what stands still looks whether it may go on.
const LOOK_AGAIN_MS: u64 = 400;

/// One end of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Node(usize),
    Device(usize),
    Database,
    Hints,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Database {
    Up,
    /// Statements wait, and are done when it goes on.
    Frozen,
    Down,
}

pub(super) struct Network {
    pub(super) cut: BTreeSet<(End, End)>,
    /// Whose end broke without a word.
    pub(super) silent: BTreeSet<End>,
    pub(super) database: Database,
    /// The longest way of a message.
    pub(super) slowness_ms: u64,
    pub(super) hints_lost_percent: u64,
}

pub(super) struct World {
    pub(super) time: Rc<Executor>,
    pub(super) fault: Option<Fault>,
    pub(super) theme: Option<Theme>,
    pub(super) tables: RefCell<Tables>,
    /// The tables as the last statement left them that was waited for on the disk, if there was one since that was not.
    on_disk: RefCell<Option<Tables>>,
    /// Whether a statement was done since somebody looked.
    pub(super) has_changed: Cell<bool>,
    /// What the database's clock is ahead.
    pub(super) ahead_ms: Cell<Clock>,
    pub(super) network: RefCell<Network>,
    pub(super) nodes: RefCell<Vec<Option<Rc<Node>>>>,
    pub(super) machines: Vec<Machine>,
    pub(super) history: RefCell<History>,
    /// What the database takes for a statement: in some worlds nearly as long as a turn of a lease, which is nobody's trouble.
    pub(super) work_ms: u64,
    /// When everybody last had trouble with the database.
    pub(super) outage_ms: Cell<Option<u64>>,
    begun: Instant,
    told: Option<RefCell<String>>,
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>, is_told: bool) -> Rc<Self> {
        let (theme, seed) = harm::theme(seed);
        let network = Network {
            cut: BTreeSet::new(),
            silent: BTreeSet::new(),
            database: Database::Up,
            slowness_ms: SLOWNESS_MS,
            hints_lost_percent: 0,
        };
        let time = Rc::new(Executor::new(seed));
        let work_ms = if time.random.percent(20) { time.random.within(1_400, WORK_MAX_MS) } else { 0 };
        Rc::new(Self {
            time,
            work_ms,
            fault,
            theme,
            tables: RefCell::new(Tables { fault, ..Tables::default() }),
            on_disk: RefCell::default(),
            has_changed: Cell::new(false),
            ahead_ms: Cell::new(BEGIN),
            network: RefCell::new(network),
            nodes: RefCell::new(vec![None; NODES]),
            machines: (0..DEVICES).map(Machine::new).collect(),
            history: RefCell::default(),
            outage_ms: Cell::new(None),
            begun: Instant::now(),
            told: is_told.then(RefCell::default),
        })
    }

    /// The moment that somebody's monotonic clock shows.
    pub(super) fn instant(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        if let Some(told) = &self.told {
            let ms = self.time.now_ms();
            let _ = writeln!(told.borrow_mut(), "{:>5}.{:03}  {}", ms / 1000, ms % 1000, what());
        }
    }

    pub(super) fn told(&self) -> String {
        self.told.as_ref().map(|told| told.borrow().clone()).unwrap_or_default()
    }

    pub(super) fn node(&self, number: usize) -> Option<Rc<Node>> {
        self.nodes.borrow()[number].clone()
    }

    /// An identifier that only the seed decides.
    pub(super) fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.time.random.next(), self.time.random.next())
    }

    pub(super) async fn sleep(&self, ms: u64) {
        self.time.sleep(ms).await;
    }

    pub(super) fn is_cut(&self, one: End, other: End) -> bool {
        self.network.borrow().cut.contains(&(one.min(other), one.max(other)))
    }

    pub(super) fn cut(&self, one: End, other: End, is_cut: bool) {
        let ends = (one.min(other), one.max(other));
        let mut network = self.network.borrow_mut();
        if is_cut {
            network.cut.insert(ends);
        } else {
            network.cut.remove(&ends);
        }
    }

    /// What one message takes.
    pub(super) async fn travel(&self) {
        let slowness_ms = self.network.borrow().slowness_ms;
        self.sleep(self.time.random.within(1, slowness_ms + 1)).await;
    }

    /// Has a statement done. `None`: nobody knows whether it was, or will be.
    pub(super) async fn call<T: 'static>(
        self: &Rc<Self>,
        node: usize,
        durability: Durability,
        within_ms: u64,
        statement: impl FnOnce(&mut Tables) -> T + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let world = Rc::clone(self);
        // Its own task: what is under way reaches the database though the node is stopped, or dead.
        self.time.spawn(Owner::World, async move {
            let ends = (End::Node(node), End::Database);
            world.travel().await;
            if !world.cross(ends.0, ends.1).await {
                return std::future::pending().await;
            }
            while world.network.borrow().database == Database::Frozen {
                world.sleep(LOOK_AGAIN_MS).await;
            }
            if world.network.borrow().database == Database::Down {
                return;
            }
            world.sleep(world.work_ms).await;
            let answer = world.execute(durability, statement);
            world.travel().await;
            if !world.cross(ends.0, ends.1).await {
                return std::future::pending().await;
            }
            let _ = tell.send(answer);
        });
        self.time.timeout(within_ms, told).await?.ok()
    }

    /// Whether a message gets across: at once, or sent again and again until it does, or never.
    async fn cross(&self, one: End, other: End) -> bool {
        if self.is_cut(one, other) && self.time.random.percent(50) {
            return false;
        }
        while self.is_cut(one, other) {
            self.sleep(LOOK_AGAIN_MS).await;
        }
        true
    }

    fn execute<T>(&self, durability: Durability, statement: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self.tables.borrow_mut();
        let mut on_disk = self.on_disk.borrow_mut();
        match durability {
            Durability::Stored => *on_disk = None,
            Durability::Soon => {
                on_disk.get_or_insert_with(|| tables.clone());
            }
        }
        tables.now = self.database_ms();
        self.has_changed.set(true);
        statement(&mut tables)
    }

    pub(super) fn database_ms(&self) -> Clock {
        self.time.now_ms().cast_signed() + self.ahead_ms.get()
    }

    /// Somebody asks for a command, wherever the database may be: without it nobody is told that it was asked for.
    pub(super) fn create(&self, id: CommandId, device: DeviceId, start_within_ms: u64) {
        let run_within = millis(Instruction::CollectMetrics {}.kind().run_within);
        self.execute(Durability::Stored, |tables| tables.create(id, device, start_within_ms.cast_signed(), run_within));
    }

    /// Somebody closes what a node has, wherever the database may be.
    pub(super) fn close_wrongly(&self, number: usize) {
        let name = node_name(number);
        let tables = self.tables.borrow();
        let open = tables.links.iter().filter(|(_, link)| link.node == name && link.closed_at.is_none());
        let open: Vec<LinkKey> = open.map(|(device, link)| LinkKey { device_id: *device, epoch: link.epoch }).collect();
        drop(tables);
        self.history.borrow_mut().closed_wrongly(&open, self.time.now_ms());
        self.execute(Durability::Stored, |tables| tables.close_node(name, u64::MAX));
    }

    /// Whether everybody has trouble with the database.
    pub(super) fn has_outage(&self) -> bool {
        let (network, now_ms) = (self.network.borrow(), self.time.now_ms());
        let is_slow = network.slowness_ms > SLOWNESS_MS;
        if network.database != Database::Up || is_slow {
            self.outage_ms.set(Some(now_ms));
        }
        self.outage_ms.get().is_some_and(|outage_ms| now_ms < outage_ms + AFTER_OUTAGE_MS)
    }

    /// The database forgets what it had not been told to wait for.
    pub(super) fn crash_database(&self) {
        self.network.borrow_mut().database = Database::Down;
        if let Some(on_disk) = self.on_disk.borrow_mut().take() {
            *self.tables.borrow_mut() = on_disk;
        }
    }

    /// Tells all nodes but for those that do not hear it.
    pub(super) fn hint(self: &Rc<Self>, from: usize, hint: Hint) {
        for to in 0..NODES {
            let world = Rc::clone(self);
            self.time.spawn(Owner::World, async move {
                if to != from {
                    world.travel().await;
                    let is_lost = world.time.random.percent(world.network.borrow().hints_lost_percent);
                    if is_lost || [from, to].iter().any(|node| world.is_cut(End::Node(*node), End::Hints)) {
                        return;
                    }
                }
                if let Some(node) = world.node(to) {
                    node.hear(hint);
                }
            });
        }
    }

    /// One way of a connection: in order, late, or not at all. It closes when the other side does, unless that has died silently.
    pub(super) fn wire(
        self: &Rc<Self>,
        from: End,
        to: End,
    ) -> (mpsc::UnboundedSender<Bytes>, mpsc::UnboundedReceiver<Bytes>) {
        let (into, mut waiting) = mpsc::unbounded_channel::<Bytes>();
        let (out, arrived) = mpsc::unbounded_channel();
        let world = Rc::clone(self);
        self.time.spawn(Owner::World, async move {
            loop {
                let message = waiting.recv().await;
                if message.is_none() && world.network.borrow().silent.contains(&from) {
                    // The other side hears nothing any more. It closes its way when it has had enough.
                    out.closed().await;
                    return;
                }
                if message.is_some() && world.network.borrow().silent.contains(&from) {
                    // It had not left yet.
                    continue;
                }
                world.travel().await;
                while world.is_cut(from, to) {
                    world.sleep(LOOK_AGAIN_MS).await;
                }
                let Some(message) = message else { return };
                if out.send(message).is_err() {
                    return;
                }
            }
        });
        (into, arrived)
    }
}

/// Whether a statement waits for the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Durability {
    Stored,
    Soon,
}

pub(super) fn device_id(number: usize) -> DeviceId {
    DeviceId::from_uuid(Uuid::from_u128(number as u128 + 1))
}

const NAMES: [&str; NODES] = ["node-0", "node-1", "node-2"];

pub(super) fn node_name(number: usize) -> &'static str {
    NAMES[number]
}

pub(super) fn node_number(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).expect("one of them")
}
