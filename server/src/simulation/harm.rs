//! What befalls nodes, networks, the database, its clock, and devices.

use std::rc::Rc;

use super::executor::Owner;
use super::node::{Node, ms};
use super::world::{DEVICES, Database, End, LEASE, NODES, SLOWNESS_MS, World};
use super::{device, node};

/// Until then harm is done.
pub(super) const HARM_UNTIL_MS: u64 = 150_000;
const HARMS_MAX: u64 = 10;
const LASTS_MAX_MS: u64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

#[derive(Clone, Copy, Debug)]
enum Harm {
    Kill {
        node: usize,
        is_silent: bool,
    },
    /// SIGSTOP, then SIGCONT.
    Stop {
        node: usize,
    },
    /// The whole machine, with its clock.
    Sleep {
        node: usize,
    },
    Leave {
        node: usize,
    },
    Cut {
        one: End,
        other: End,
    },
    Database(Database),
    Clock {
        by_ms: i64,
    },
    Slow {
        slowness_ms: u64,
    },
    LoseHints,
    Power {
        device: usize,
    },
    /// As an older version does that takes a node to be gone when it is back already.
    Close {
        node: usize,
    },
}

/// Some of the harms, by their number in [`Harm::any`].
pub(super) type Theme = &'static [u64];
/// Nodes and the database do not hear of one another in time.
pub(super) const LATE: Theme = &[1, 2, 4, 11];
/// Nodes and the database stand still.
pub(super) const ASLEEP: Theme = &[1, 8, 9];
/// Nodes and devices are gone.
const DEAD: Theme = &[0, 13];
/// The database mostly stands still, or is not there, and devices come and go.
const ABSENT: Theme = &[7, 8, 9, 9, 9, 13];

/// All that can happen or what goes ill together, and then each of them in as many ways.
pub(super) fn theme(seed: u64) -> (Option<Theme>, u64) {
    let themes = [None, Some(LATE), Some(ABSENT), Some(ASLEEP), Some(DEAD)];
    (themes[usize::try_from(seed % 5).expect("it is small")], seed / 5)
}

impl Harm {
    fn any(world: &World) -> Self {
        let random = &world.time.random;
        let (node, device) = (random.index(NODES), random.index(DEVICES));
        let kind = match world.theme {
            Some(theme) => theme[random.index(theme.len())],
            None => random.within(0, 15),
        };
        match kind {
            0 => Self::Kill { node, is_silent: random.percent(50) },
            1 => Self::Stop { node },
            2 => Self::Sleep { node },
            3 => Self::Leave { node },
            4 | 5 => Self::Cut { one: End::Node(node), other: End::Database },
            6 => Self::Cut { one: End::Node(node), other: End::Hints },
            7 => Self::Cut { one: End::Node(node), other: End::Device(device) },
            8 => Self::Database(Database::Down),
            9 => Self::Database(Database::Frozen),
            10 => {
                let max_ms = if random.percent(30) { HOUR_MS } else { 2 * i64::try_from(ms(LEASE)).expect("short") };
                let by_ms = random.within(0, 2 * max_ms.unsigned_abs()).cast_signed() - max_ms;
                Self::Clock { by_ms }
            }
            11 => Self::Slow { slowness_ms: random.within(100, 2_500) },
            12 => Self::LoseHints,
            13 => Self::Power { device },
            _ => Self::Close { node },
        }
    }
}

/// Decides what is to happen, and has it happen.
pub(super) fn plan(world: &Rc<World>) {
    let random = &world.time.random;
    for _ in 0..random.within(1, HARMS_MAX + 1) {
        let harm = Harm::any(world);
        let at_ms = random.within(5_000, HARM_UNTIL_MS - LASTS_MAX_MS);
        // Many of them about as long as a lease.
        let lasts_ms = if random.percent(50) { random.within(500, LASTS_MAX_MS) } else { random.within(9_000, 18_000) };
        let world = Rc::clone(world);
        world.clone().time.spawn(Owner::World, async move {
            world.sleep(at_ms).await;
            world.tell(|| format!("{harm:?} for {lasts_ms} ms"));
            harm.befall(&world, lasts_ms).await;
            world.tell(|| format!("{harm:?} is over"));
        });
    }
}

impl Harm {
    async fn befall(self, world: &Rc<World>, lasts_ms: u64) {
        match self {
            Self::Kill { node: number, is_silent } => {
                node::kill(world, number, is_silent);
                world.sleep(lasts_ms).await;
                node::kill(world, number, is_silent);
                node::start(world, number);
            }
            Self::Stop { node } => {
                stop(world, node, lasts_ms).await;
            }
            Self::Sleep { node } => {
                // To its own clock nothing has happened.
                if let Some(node) = stop(world, node, lasts_ms).await {
                    node.has_slept(lasts_ms);
                    world.history.borrow_mut().slept(world, node.number);
                }
            }
            Self::Leave { node: number } => {
                if let Some(node) = world.node(number) {
                    let row = node.row.clone();
                    let leave = move |tables: &mut super::tables::Tables| tables.leave(&row);
                    node.registry.fence();
                    world.history.borrow_mut().troubled(number, world.time.now_ms());
                    world.call(number, super::world::Durability::Stored, 2_000, leave).await;
                }
                node::kill(world, number, false);
                world.sleep(lasts_ms).await;
                node::kill(world, number, false);
                node::start(world, number);
            }
            Self::Cut { one, other } => {
                world.cut(one, other, true);
                if other == End::Database {
                    trouble(world, [one], lasts_ms).await;
                } else {
                    world.sleep(lasts_ms).await;
                }
                world.cut(one, other, false);
            }
            Self::Database(state) => {
                match state {
                    Database::Down => world.crash_database(),
                    Database::Up | Database::Frozen => world.network.borrow_mut().database = state,
                }
                world.sleep(lasts_ms).await;
                world.network.borrow_mut().database = Database::Up;
            }
            Self::Clock { by_ms } => {
                world.history.borrow_mut().jumped(world.time.now_ms());
                world.ahead_ms.set(world.ahead_ms.get() + by_ms);
            }
            Self::Slow { slowness_ms } => {
                world.network.borrow_mut().slowness_ms = slowness_ms;
                trouble(world, std::array::from_fn::<_, NODES, _>(End::Node), lasts_ms).await;
                world.network.borrow_mut().slowness_ms = SLOWNESS_MS;
            }
            Self::LoseHints => {
                world.network.borrow_mut().hints_lost_percent = 70;
                world.sleep(lasts_ms).await;
                world.network.borrow_mut().hints_lost_percent = 0;
            }
            Self::Close { node } => world.close_wrongly(node),
            Self::Power { device: number } => {
                if world.time.random.percent(50) {
                    world.time.timeout(lasts_ms, world.machines[number].fails()).await;
                }
                device::kill(world, number);
                world.sleep(lasts_ms).await;
                device::kill(world, number);
                device::start(world, number);
            }
        }
    }
}

/// Gives the node if it was stopped for all of that time: not by another harm already, and not killed meanwhile.
async fn stop(world: &Rc<World>, number: usize, lasts_ms: u64) -> Option<Rc<Node>> {
    let node = world.node(number).filter(|_| !world.time.is_stopped(Owner::Node(number)))?;
    world.time.stop(Owner::Node(number));
    trouble(world, [End::Node(number)], lasts_ms).await;
    if !world.node(number).is_some_and(|now| Rc::ptr_eq(&now, &node)) {
        return None;
    }
    world.time.go_on(Owner::Node(number));
    world.history.borrow_mut().woken(number, world.time.now_ms());
    Some(node)
}

/// Meanwhile and for a moment afterwards, what becomes of these nodes is their own trouble.
async fn trouble(world: &Rc<World>, ends: impl IntoIterator<Item = End> + Clone, lasts_ms: u64) {
    let until_ms = world.time.now_ms() + lasts_ms;
    loop {
        for end in ends.clone() {
            if let End::Node(number) = end {
                world.history.borrow_mut().troubled(number, world.time.now_ms());
            }
        }
        let left_ms = until_ms.saturating_sub(world.time.now_ms());
        if left_ms == 0 {
            return;
        }
        world.sleep(left_ms.min(1_000)).await;
    }
}

/// From now on nothing is harmed, and everything is there.
pub(super) fn heal(world: &Rc<World>) {
    world.tell(|| "everything is well from here on".to_owned());
    let mut network = world.network.borrow_mut();
    network.cut.clear();
    (network.database, network.slowness_ms, network.hints_lost_percent) = (Database::Up, SLOWNESS_MS, 0);
    drop(network);
    for number in 0..NODES {
        world.time.go_on(Owner::Node(number));
    }
}
