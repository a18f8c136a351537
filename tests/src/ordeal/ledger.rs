//! What a simulated device does with commands: what the agent does, with a memory in place of a disk and machines.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, GrantId};
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::{Command, CommandStatus, command};
use tokio::time::Instant;
use uuid::Uuid;

use crate::history::What;

/// The longest that a service takes to come back.
const RESTART_MAX: Duration = Duration::from_secs(3);
/// Of so many services one does not come back.
const FAILS_OF: u128 = 16;

/// The commands of a device. Outlives its links.
#[derive(Debug, Default)]
pub struct Ledger {
    known: HashMap<CommandId, Known>,
    waiting: VecDeque<Waiting>,
    /// At most one of a kind.
    running: Vec<Running>,
}

#[derive(Debug)]
struct Known {
    state: State,
    code: &'static str,
    is_receipted: bool,
}

#[derive(Debug)]
struct Waiting {
    id: CommandId,
    grant: GrantId,
    kind: Kind,
    start_by: Instant,
}

#[derive(Debug)]
struct Running {
    id: CommandId,
    kind: Kind,
    ends_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Metrics,
    Restart,
}

/// What is to be told, and what is to be written down before that.
#[derive(Debug)]
pub struct Step {
    pub status: CommandStatus,
    pub what: Option<What>,
}

impl Ledger {
    /// Takes a command. What is known of it already is told again.
    pub fn take(&mut self, now: Instant, id: CommandId, grant: GrantId, command: &Command) -> Step {
        if self.known.contains_key(&id) {
            return Step { status: self.status(id), what: None };
        }
        let kind = match command.kind {
            Some(command::Kind::CollectMetrics(_)) => Kind::Metrics,
            Some(command::Kind::RestartService(_)) => Kind::Restart,
            Some(
                command::Kind::Reboot(_)
                | command::Kind::Shutdown(_)
                | command::Kind::OsUpdate(_)
                | command::Kind::AgentUpdate(_)
                | command::Kind::ContainerUpdate(_)
                | command::Kind::LinkTest(_),
            )
            | None => {
                return self.end(id, State::Refused, "not_allowed");
            }
        };
        let start_by = now + Duration::from_millis(command.start_within_ms);
        if start_by <= now {
            return self.end(id, State::Expired, "expired");
        }
        self.known.insert(id, Known { state: State::Accepted, code: "", is_receipted: false });
        self.waiting.push_back(Waiting { id, grant, kind, start_by });
        Step { status: self.status(id), what: None }
    }

    /// Does not begin a command that was not begun.
    pub fn cancel(&mut self, id: CommandId) -> Step {
        if self.waiting.iter().any(|waiting| waiting.id == id) || !self.known.contains_key(&id) {
            self.waiting.retain(|waiting| waiting.id != id);
            return self.end(id, State::Cancelled, "cancelled");
        }
        Step { status: self.status(id), what: None }
    }

    /// The server has stored the end.
    pub fn receipt(&mut self, id: CommandId) {
        if let Some(known) = self.known.get_mut(&id) {
            known.is_receipted = true;
        }
    }

    /// The next thing to be done now, if there is one.
    pub fn step(&mut self, now: Instant, epoch: u64) -> Option<Step> {
        if let Some(place) = self.running.iter().position(|running| running.ends_at <= now) {
            let Running { id, kind, .. } = self.running.swap_remove(place);
            let fails = kind == Kind::Restart && chance(id).is_multiple_of(FAILS_OF);
            let (state, code) = if fails { (State::Failed, "exit_status") } else { (State::Succeeded, "") };
            return Some(self.end(id, state, code));
        }
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.start_by <= now) {
            let late = self.waiting.remove(place)?;
            return Some(self.end(late.id, State::Expired, "expired"));
        }
        let may_begin = |waiting: &Waiting| self.running.iter().all(|running| running.kind != waiting.kind);
        let place = self.waiting.iter().position(may_begin)?;
        let Waiting { id, grant, kind, .. } = self.waiting.remove(place)?;
        let takes = match kind {
            Kind::Metrics => Duration::ZERO,
            Kind::Restart => RESTART_MAX.mul_f64(f64::from(u8::try_from(chance(id) >> 4 & 0xff).unwrap_or(0)) / 255.0),
        };
        self.running.push(Running { id, kind, ends_at: now + takes });
        self.set(id, State::Running, "");
        let what = What::Begun { command: id.as_uuid(), grant: grant.as_uuid(), epoch };
        Some(Step { status: self.status(id), what: Some(what) })
    }

    /// When [`Self::step`] has something to do again.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let ends = self.running.iter().map(|running| running.ends_at);
        ends.chain(self.waiting.iter().map(|waiting| waiting.start_by)).min()
    }

    /// What is to be told on each new link.
    #[must_use]
    pub fn outstanding(&self) -> Vec<CommandStatus> {
        self.known.iter().filter(|(_, known)| !known.is_receipted).map(|(id, _)| self.status(*id)).collect()
    }

    fn end(&mut self, id: CommandId, state: State, code: &'static str) -> Step {
        self.set(id, state, code);
        let what = What::Ended { command: id.as_uuid(), state: name(state).to_owned() };
        Step { status: self.status(id), what: Some(what) }
    }

    fn set(&mut self, id: CommandId, state: State, code: &'static str) {
        self.known.insert(id, Known { state, code, is_receipted: false });
    }

    fn status(&self, id: CommandId) -> CommandStatus {
        let (state, code) = self.known.get(&id).map_or((State::Unspecified, ""), |known| (known.state, known.code));
        CommandStatus { id: id.to_wire(), state: state.into(), code: code.to_owned(), ..CommandStatus::default() }
    }
}

/// A number that is as good as drawn, and the same each time.
fn chance(id: CommandId) -> u128 {
    let id: Uuid = id.as_uuid();
    id.as_u128() & 0xffff
}

/// As the API names it.
const fn name(state: State) -> &'static str {
    match state {
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Refused => "refused",
        State::Expired => "expired",
        State::Cancelled => "cancelled",
        State::Accepted | State::Running | State::Unspecified => "open",
    }
}
