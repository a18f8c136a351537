//! What must hold after every step, and what must hold when everything has been well for a while. It keeps its own account of what
//! happened: neither the tables nor the nodes are asked what they are to be judged by.

use std::collections::{BTreeMap, BTreeSet};

use cloudlink_proto::ids::{CommandId, DeviceId};

use super::executor::{Owner, Step};
use super::node::{CLOSING_MAX_MS, ms};
use super::tables::{Clock, LinkRow, Tables};
use super::world::{LEASE, NODES, World, device_id, node_name};
use crate::cluster::tenure::Standing;
use crate::model::command::State;
use crate::store::dispatch::LinkKey;

/// How long a node may keep a link whose device has a newer one elsewhere, while it reaches the database: the time between two looks,
/// and the statement.
const SUPERSEDED_MAX_MS: u64 = 15_000 + 1_000;
/// The same, if the newer link is one of its own that it does not know of: it must be silent for 30 s, and be found twice.
const ORPHANED_MAX_MS: u64 = 30_000 + 2 * 17_000 + 1_000;
/// How long a node that was stopped may take to find out that it was: a brief pause, and a brief attempt to renew.
const WAKE_MAX_MS: u64 = 1_000;
/// How long a dead node may count as live, and its links: it is seen to be silent a turn later, for a lease, until the next turn.
const DEAD_MAX_MS: u64 = 15_000 + 2 * 3_000 + 2_000;
/// What all of these take longer in a slow database, at most: so many statements.
const STATEMENTS: u64 = 6;
/// What a state says of which the device begins nothing.
const NEVER_BEGUN: [State; 3] = [State::Refused, State::Expired, State::Cancelled];

#[derive(Debug, Default)]
pub(super) struct History {
    newest: BTreeMap<DeviceId, u64>,
    /// Which node opened it, and when.
    newest_by: BTreeMap<DeviceId, (usize, u64)>,
    executed: BTreeMap<CommandId, u32>,
    /// When each command was asked for, and how long it may wait, by no clock that jumps.
    asked: BTreeMap<CommandId, (u64, u64)>,
    finals: BTreeMap<CommandId, State>,
    gone: BTreeSet<usize>,
    /// When each node was last cut off alone, stopped, or not there.
    troubled_ms: [u64; NODES],
    /// Since when each node is dead.
    dead_ms: [Option<u64>; NODES],
    /// When each node last was stopped.
    woken_ms: [Option<u64>; NODES],
    /// When each node had renewed its lease that has slept since.
    slept_since: [Option<Clock>; NODES],
    /// When the database's clock last jumped.
    jumped_ms: Option<u64>,
    /// What somebody closed that should not have, and when.
    closed_wrongly: BTreeMap<DeviceId, (u64, u64)>,
    wrong: Option<String>,
}

impl History {
    pub(super) fn wrong(&self) -> Option<String> {
        self.wrong.clone()
    }

    fn blame(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    pub(super) fn troubled(&mut self, node: usize, now_ms: u64) {
        self.troubled_ms[node] = now_ms;
    }

    pub(super) fn died(&mut self, node: usize, now_ms: u64) {
        self.dead_ms[node].get_or_insert(now_ms);
    }

    pub(super) fn started(&mut self, node: usize, now_ms: u64) {
        self.dead_ms[node] = None;
        self.troubled(node, now_ms);
    }

    pub(super) fn woken(&mut self, node: usize, now_ms: u64) {
        self.woken_ms[node] = Some(now_ms);
        self.troubled(node, now_ms);
    }

    /// Its monotonic clock stood still: whether it was taken to be gone, it cannot know before it has renewed its lease.
    pub(super) fn slept(&mut self, world: &World, node: usize) {
        self.woken(node, world.time.now_ms());
        self.slept_since[node] = world.tables.borrow().nodes.get(node_name(node)).map(|row| row.renewed_at);
    }

    pub(super) fn jumped(&mut self, now_ms: u64) {
        self.jumped_ms = Some(now_ms);
    }

    pub(super) fn closed_wrongly(&mut self, links: &[LinkKey], now_ms: u64) {
        self.closed_wrongly.extend(links.iter().map(|key| (key.device_id, (key.epoch, now_ms))));
    }

    /// It runs, and has had the time to find out that it did not.
    fn is_awake(&self, node: usize, now_ms: u64) -> bool {
        self.slept_since[node].is_none() && self.woken_ms[node].is_none_or(|woken_ms| now_ms > woken_ms + WAKE_MAX_MS)
    }

    pub(super) fn asked(&mut self, id: CommandId, now_ms: u64, start_within_ms: u64) {
        self.asked.insert(id, (now_ms, start_within_ms));
    }

    pub(super) fn opened(&mut self, device: DeviceId, epoch: u64, node: usize, now_ms: u64) {
        self.newest_by.insert(device, (node, now_ms));
        if self.newest.insert(device, epoch).is_some_and(|before| before >= epoch) {
            self.blame(format!("epoch {epoch} of device {device} is given again"));
        }
    }

    /// A report or a claim has changed something.
    pub(super) fn counted(&mut self, key: LinkKey) {
        if self.newest.get(&key.device_id) != Some(&key.epoch) {
            self.blame(format!("what an older link claims or reports counts: {key:?}"));
        }
    }

    pub(super) fn executed(&mut self, id: CommandId, now_ms: u64) {
        let times = self.executed.entry(id).or_default();
        *times += 1;
        if *times > 1 {
            self.blame(format!("{id} is executed again"));
        }
        let (asked_ms, start_within_ms) = self.asked[&id];
        if self.jumped_ms.is_none_or(|jumped_ms| jumped_ms < asked_ms) && now_ms > asked_ms + start_within_ms {
            self.blame(format!("{id} is begun too late"));
        }
    }
}

/// After every step of nodes, and the more expensive rest after every statement: something is done all the time.
pub(super) fn step(world: &World, step: Step) {
    let has_changed = world.has_changed.replace(false);
    if !has_changed && !matches!(step, Step::Ran(Owner::Node(_))) {
        return;
    }
    let mut history = world.history.borrow_mut();
    nodes(world, &mut history);
    let has_outage = world.has_outage();
    if has_changed {
        commands(&world.tables.borrow(), &mut history);
        the_dead(world, &mut history, has_outage);
        links(world, &mut history, has_outage);
    }
}

fn commands(tables: &Tables, history: &mut History) {
    for (id, row) in &tables.commands {
        if row.state == State::Sent && row.sent_epoch > history.newest.get(&row.device).copied() {
            history.blame(format!("{id} was sent over a link that there is not"));
        }
        if row.state.is_final() && *history.finals.entry(*id).or_insert(row.state) != row.state {
            history.blame(format!("{id} has ended twice"));
        }
        if NEVER_BEGUN.contains(&row.state) && history.executed.contains_key(id) {
            history.blame(format!("{id} is {:?}, and was begun", row.state));
        }
    }
}

/// Who counts as gone, and who serves.
fn nodes(world: &World, history: &mut History) {
    let tables = world.tables.borrow();
    let now_ms = world.time.now_ms();
    let nodes = world.nodes.borrow();
    for number in 0..NODES {
        let row = tables.nodes.get(node_name(number));
        let is_gone = row.is_some_and(|row| row.gone_at.is_some());
        let is_running = !world.time.is_stopped(Owner::Node(number));
        if nodes[number].is_none() {
            history.troubled(number, now_ms);
        }
        let was_well = now_ms > history.troubled_ms[number] + 2 * ms(LEASE);
        if !is_gone {
            history.gone.remove(&number);
            history.slept_since[number] =
                history.slept_since[number].filter(|at| row.is_some_and(|row| row.renewed_at == *at));
        } else if history.gone.insert(number) && was_well {
            history.blame(format!("{} is taken to be gone, and is well", node_name(number)));
        }
        let Some(node) = nodes[number].as_ref().filter(|_| is_running) else { continue };
        let is_it = row.is_some_and(|row| row.life == node.row.life);
        if is_gone && is_it && history.is_awake(number, now_ms) && !node.live().is_empty() {
            history.blame(format!("{} is taken to be gone, and serves", node_name(number)));
        }
    }
}

/// What the database says of nodes that are not there, while another one is well.
fn the_dead(world: &World, history: &mut History, has_outage: bool) {
    let (tables, now_ms) = (world.tables.borrow(), world.time.now_ms());
    for number in 0..NODES {
        let Some(dead_ms) = history.dead_ms[number] else { continue };
        let is_over = |max_ms, statements| now_ms > dead_ms + max_ms + statements * world.work_ms;
        // One that has been well ever since, and for as long as it takes to be sure.
        let is_another_well = history.troubled_ms.iter().any(|troubled_ms| *troubled_ms + 2 * ms(LEASE) < dead_ms);
        let name = node_name(number);
        if !is_another_well || has_outage {
            continue;
        }
        if is_over(DEAD_MAX_MS, STATEMENTS) && tables.nodes.get(name).is_some_and(|row| row.gone_at.is_none()) {
            history.blame(format!("{name} is dead, and nobody says so"));
        }
        let has_links = || tables.links.values().any(|link| link.node == name && link.closed_at.is_none());
        if is_over(DEAD_MAX_MS + CLOSING_MAX_MS, STATEMENTS) && has_links() {
            history.blame(format!("{name} is dead, and has links"));
        }
    }
}

/// Who holds what, beside what is newest.
fn links(world: &World, history: &mut History, has_outage: bool) {
    let (tables, nodes, now_ms) = (world.tables.borrow(), world.nodes.borrow(), world.time.now_ms());
    for number in 0..NODES {
        let Some(node) = nodes[number].as_ref().filter(|_| !world.time.is_stopped(Owner::Node(number))) else {
            continue;
        };
        for handle in node.live() {
            let LinkKey { device_id, epoch } = handle.key;
            let is_it = |row: &&LinkRow| row.epoch == epoch && row.closed_at.is_some();
            let is_closed = tables.links.get(&device_id).filter(is_it).is_some();
            let closed_ms = history.closed_wrongly.get(&device_id).filter(|(of, _)| *of == epoch).map(|(_, at)| *at);
            if is_closed && closed_ms.is_none() && history.is_awake(number, now_ms) {
                history.blame(format!("{} serves link {epoch} of {device_id}, which others closed", node_name(number)));
            }
            let (by, opened_ms) = history.newest_by[&device_id];
            let is_newest = epoch == history.newest[&device_id];
            let Some(wrong_ms) = closed_ms.or((!is_newest).then_some(opened_ms)).filter(|_| !has_outage) else {
                continue;
            };
            let since_ms = wrong_ms.max(history.troubled_ms[number]).max(world.outage_ms.get().unwrap_or(0));
            let max_ms = if by == number && !is_newest { ORPHANED_MAX_MS } else { SUPERSEDED_MAX_MS };
            if now_ms > since_ms + max_ms + STATEMENTS * world.work_ms {
                history.blame(format!("{} keeps link {epoch} of {device_id}, which counts no more", node_name(number)));
            }
        }
    }
}

/// When everything has been well for as long as it takes.
pub(super) fn end(world: &World) -> Option<String> {
    let history = world.history.borrow();
    if let Some(wrong) = history.wrong() {
        return Some(wrong);
    }
    let tables = world.tables.borrow();
    for number in 0..NODES {
        let name = node_name(number);
        if world.node(number).is_none_or(|node| node.standing() != Standing::Held) {
            return Some(format!("{name} does not serve again"));
        }
        if tables.nodes[name].gone_at.is_some() {
            return Some(format!("{name} counts as gone"));
        }
    }
    for machine in &world.machines {
        let device = device_id(machine.number);
        let Some(link) = tables.links.get(&device) else { return Some(format!("{device} has never linked")) };
        let is_served = (0..NODES).filter_map(|number| world.node(number)).any(|node| {
            let key = LinkKey { device_id: device, epoch: link.epoch };
            node.row.name == link.node
                && node.registry.find_exactly(key).is_some_and(|handle| handle.ending().is_none())
        });
        let is_live = link.closed_at.is_none();
        if machine.welcomed.get() != Some(link.epoch) || !is_live || !is_served {
            let welcomed = machine.welcomed.get();
            return Some(format!(
                "presence of {device} is wrong: {link:?}, served {is_served}, the device has {welcomed:?}"
            ));
        }
    }
    let now: Clock = world.database_ms();
    let open = tables.commands.iter().find(|(_, row)| {
        let is_over = row.deadline_at.is_none_or(|deadline| deadline + 10_000 < now);
        !row.state.is_final() && is_over
    });
    open.map(|(id, row)| format!("{id} is not final: {row:?}"))
}
