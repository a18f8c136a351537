//! A device: a session of the agent's kind, and a ledger on its disk.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::{CommandStatus, Hello, command_status};
use cloudlink_proto::link::{Device, FromServer, Session, State};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::executor::Owner;
use super::fault::Fault;
use super::node::{accept, ms, ready};
use super::world::{End, NODES, World, device_id};

/// Before it dials again.
const BACKOFF_MAX_MS: u64 = 5_000;
const RUN_MAX_MS: u64 = 20_000;

/// What is on its disk about a command.
#[derive(Clone, Copy, Debug)]
struct Entry {
    state: command_status::State,
    is_receipted: bool,
}

pub(super) struct Machine {
    pub(super) number: usize,
    ledger: RefCell<BTreeMap<CommandId, Entry>>,
    /// Something of the ledger is to be said.
    news: Rc<Notify>,
    /// The epoch that it was welcomed with, while it is.
    pub(super) welcomed: Cell<Option<u64>>,
    /// It is to lose its power when it begins a command.
    is_doomed: Cell<bool>,
    died: Notify,
}

impl Machine {
    pub(super) fn new(number: usize) -> Self {
        let (welcomed, is_doomed) = (Cell::new(None), Cell::new(false));
        Self { number, ledger: RefCell::default(), news: Rc::default(), welcomed, is_doomed, died: Notify::new() }
    }

    /// Waits until it has lost its power while it was beginning a command.
    pub(super) async fn fails(&self) {
        self.is_doomed.set(true);
        self.died.notified().await;
    }

    fn write(&self, id: CommandId, state: command_status::State) {
        self.ledger.borrow_mut().insert(id, Entry { state, is_receipted: false });
        self.news.notify_one();
    }

    /// What is not receipted, and what was asked for anew.
    fn unsaid(&self) -> Vec<(CommandId, command_status::State)> {
        let ledger = self.ledger.borrow();
        ledger.iter().filter(|(_, entry)| !entry.is_receipted).map(|(id, entry)| (*id, entry.state)).collect()
    }
}

pub(super) fn start(world: &Rc<World>, number: usize) {
    world.network.borrow_mut().silent.remove(&End::Device(number));
    let machine = &world.machines[number];
    if world.has(Fault::TheLedgerIsForgotten) {
        machine.ledger.borrow_mut().clear();
    }
    // What was under way has not been finished, and is not begun again.
    for entry in machine.ledger.borrow_mut().values_mut() {
        if matches!(entry.state, command_status::State::Accepted | command_status::State::Running) {
            entry.state = command_status::State::Failed;
        }
    }
    world.time.spawn(Owner::Device(number), run(Rc::clone(world), number));
}

/// Loses its power.
pub(super) fn kill(world: &World, number: usize) {
    world.network.borrow_mut().silent.insert(End::Device(number));
    world.time.kill(Owner::Device(number));
    world.machines[number].welcomed.set(None);
    world.machines[number].is_doomed.set(false);
}

async fn run(world: Rc<World>, number: usize) {
    loop {
        link(&world, number).await;
        world.machines[number].welcomed.set(None);
        world.sleep(world.time.random.within(0, BACKOFF_MAX_MS)).await;
    }
}

/// Dials, and stays for as long as it goes.
async fn link(world: &Rc<World>, number: usize) {
    // A load balancer knows mostly, not always, who is ready.
    let ready: Vec<usize> = ready(world).into_iter().collect();
    let random = &world.time.random;
    let to =
        if ready.is_empty() || random.percent(10) { random.index(NODES) } else { ready[random.index(ready.len())] };
    let (here, there) = (End::Device(number), End::Node(to));
    world.travel().await;
    let Some(node) = world.node(to).filter(|node| node.is_open.get() && !world.is_cut(here, there)) else { return };
    let ((outbox, arriving), (leaving, mut inbox)) = (world.wire(here, there), world.wire(there, here));
    accept(world, &node, number, arriving, leaving);
    drop(node);

    let machine = &world.machines[number];
    let now = || world.instant(world.time.now_ms()).into_std();
    let hello = Hello { boot_id: "boot".to_owned(), ..Hello::default() };
    let mut session = Session::<Device>::device(now(), hello).expect("a hello within the limits");
    loop {
        while let Some(message) = session.poll_transmit() {
            let _ = outbox.send(message);
        }
        if session.state().is_ending() {
            return;
        }
        let until = Instant::from_std(session.poll_timeout().unwrap_or_else(now));
        let sleep = world.time.sleep(ms(until.saturating_duration_since(now().into())).max(1));
        tokio::select! {
            biased;
            message = inbox.recv() => match message {
                Some(message) => {
                    if let Ok(Some(message)) = session.handle_message(now(), &message) {
                        take(world, machine, message);
                    }
                }
                None => session.transport_lost(None),
            },
            () = machine.news.notified(), if session.state() == State::Live => {
                for (id, state) in machine.unsaid() {
                    let status = CommandStatus { id: id.to_wire(), state: state.into(), ..CommandStatus::default() };
                    let _ = session.send(now(), status);
                }
            }
            () = sleep => session.handle_timeout(now()),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others are about what is not simulated")]
fn take(world: &Rc<World>, machine: &Machine, message: FromServer) {
    match message {
        FromServer::Welcome(admission) => {
            machine.welcomed.set(Some(admission.epoch));
            machine.news.notify_one();
        }
        FromServer::Command { id, command, .. } => {
            let known = machine.ledger.borrow_mut().get_mut(&id).map(|entry| entry.is_receipted = false);
            if known.is_some() {
                machine.news.notify_one();
            } else if command.start_within_ms == 0 {
                machine.write(id, command_status::State::Expired);
            } else {
                machine.write(id, command_status::State::Accepted);
                world.time.spawn(Owner::Device(machine.number), execute(Rc::clone(world), machine.number, id));
            }
        }
        FromServer::CommandReceipt { id } => {
            if let Some(entry) = machine.ledger.borrow_mut().get_mut(&id) {
                entry.is_receipted = true;
            }
        }
        _ => {}
    }
}

async fn execute(world: Rc<World>, number: usize, id: CommandId) {
    world.tell(|| format!("device {} executes {id}", device_id(number)));
    let now_ms = world.time.now_ms();
    world.history.borrow_mut().executed(id, now_ms);
    if world.machines[number].is_doomed.get() {
        kill(&world, number);
        world.machines[number].died.notify_one();
        return;
    }
    world.sleep(world.time.random.within(1, RUN_MAX_MS)).await;
    world.machines[number].write(id, command_status::State::Succeeded);
}
