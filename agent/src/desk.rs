//! Where commands come in, wait, are begun and end: each at most once, whatever happens.
//!
//! Everything here happens in the order: on the disk, told to the server, done. One command of a kind runs at a time; a reboot or
//! shutdown runs alone, and nothing new is taken once one was.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::{Command, CommandStatus, command_status};
use cloudlink_proto::trace_parent::TraceParent;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Value;
use tracing::field::display;

use crate::access::{Denied, Leave};
use crate::busy::{Busy, InForce};
use crate::chain;
use crate::command::{Instruction, Kind};
use crate::dial::{DialError, Route};
use crate::executor::{self, Executor, Failure};
use crate::ledger::{AcceptError, Entry, EntryIntent, FinalState, Intent, Ledger, Progress, Report, WrittenKind};

/// The most commands that wait to be begun. One more is refused as `busy`.
pub const WAITING_MAX: usize = 16;

/// The commands of this device.
#[derive(Debug)]
pub struct Desk {
    ledger: Ledger,
    executor: Arc<Executor>,
    boot_id: String,
    busy: Arc<Busy>,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    tasks: JoinSet<(CommandId, Report)>,
    stopping: bool,
}

/// A command that was accepted and not begun.
#[derive(Debug)]
struct Waiting {
    id: CommandId,
    instruction: Instruction,
    start_by: Instant,
    override_busy: bool,
    trace: Option<TraceParent>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    id: CommandId,
    kind: Kind,
    trace: Option<TraceParent>,
}

/// A command that is to be told as running, and then to be given to [`Desk::execute`].
#[derive(Debug)]
#[must_use = "it is on the disk as running"]
pub struct Begun {
    id: CommandId,
    instruction: Instruction,
    override_busy: bool,
}

impl Begun {
    /// Whether the link may not outlive it: the server must hear that it runs before it does.
    #[must_use]
    pub fn is_power(&self) -> bool {
        self.instruction.kind().is_power()
    }

    /// Whether it needs a way to the server.
    #[must_use]
    pub fn needs_route(&self) -> bool {
        self.instruction.kind() == Kind::TestLink
    }
}

impl Desk {
    /// Takes up the ledger, and settles what an earlier agent left unfinished: none of it is begun again, and what goes on over a
    /// restart by its nature goes on.
    #[must_use]
    pub fn new(ledger: Ledger, executor: Executor, boot_id: String, busy: Arc<Busy>) -> Self {
        let mut desk = Self {
            ledger,
            executor: Arc::new(executor),
            boot_id,
            busy,
            waiting: VecDeque::new(),
            running: Vec::new(),
            tasks: JoinSet::new(),
            stopping: false,
        };
        match desk.ledger.damage() {
            Some(damage) => tracing::error!(
                ledger.damage_offset = damage.offset,
                "the ledger is damaged: every command will be refused"
            ),
            None => desk.ledger.unfinished().into_iter().for_each(|id| desk.settle(id)),
        }
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_update()) {
            if !desk.waiting.iter().any(|waiting| waiting.instruction.kind() == kind) {
                desk.executor.tidy(kind);
            }
        }
        desk
    }

    fn settle(&mut self, id: CommandId) {
        let Some(Entry { intent: Some(intent), progress, .. }) = self.ledger.entry(id) else {
            return;
        };
        let goes_on = match intent.kind {
            WrittenKind::Known(kind) if *progress == Progress::Running => self.executor.unfinished(id, kind),
            WrittenKind::Known(_) | WrittenKind::Unknown(_) => None,
        };
        if let Some(instruction) = goes_on {
            tracing::info!(command.id = %id, "going on with a command of an earlier run");
            let start_by = Instant::now() + START_WITHIN_MAX;
            // It was begun before whatever keeps the device busy now, and knows by itself what it may disturb.
            let override_busy = true;
            return self.waiting.push_back(Waiting { id, instruction, start_by, override_busy, trace: None });
        }
        let report = settled(intent, progress, &self.boot_id);
        tracing::info!(command.id = %id, state = ?report.state, code = report.code, "settled a command of an earlier run");
        self.finish(id, report);
    }

    /// All that the server may not know yet, to be told on each new link: what is under way, and what was not receipted.
    #[must_use]
    pub fn outstanding(&self) -> Vec<CommandStatus> {
        let ids = self.ledger.unreceipted().into_iter().chain(self.ledger.unfinished());
        ids.filter_map(|id| self.known(id)).collect()
    }

    /// What carries commands out.
    #[must_use]
    pub fn executor(&self) -> Arc<Executor> {
        Arc::clone(&self.executor)
    }

    /// Takes a command, if its grant gives leave. The answer is to be told.
    pub fn handle_command(
        &mut self,
        now: Instant,
        id: CommandId,
        command: &Command,
        leave: Result<Leave, Denied>,
        server_unix_ms: u64,
    ) -> CommandStatus {
        if let Some(status) = self.known(id) {
            tracing::info!(command.id = %id, "a command came again: told what is known of it");
            return status;
        }
        match self.take(now, id, command, leave, server_unix_ms) {
            Ok(()) => {
                let trace_id = shown(trace_of(command));
                tracing::info!(command.id = %id, trace.id = trace_id, requested_by = ?command.requested_by, reason = ?command.reason, "accepted a command");
                status(id, &Progress::Accepted)
            }
            Err(refusal) => self.refuse(id, refusal, trace_of(command), server_unix_ms),
        }
    }

    fn take(
        &mut self,
        now: Instant,
        id: CommandId,
        command: &Command,
        leave: Result<Leave, Denied>,
        server_unix_ms: u64,
    ) -> Result<(), Refusal> {
        if self.ledger.damage().is_some() {
            return Err(Refusal::LedgerCorrupt);
        }
        let kind = command.kind.as_ref().ok_or(Refusal::UnknownKind)?;
        let leave = leave.map_err(Refusal::Denied)?;
        let instruction = Instruction::from_wire(kind).ok_or(Refusal::NotAllowed)?;
        if let Some(failure) = self.executor.refusal(&instruction) {
            return Err(Refusal::Configuration(failure));
        }
        if instruction.kind().disturbs()
            && !command.override_busy
            && let Some(lock) = self.busy.in_force()
        {
            return Err(Refusal::Locked(lock));
        }
        // What no clock can express is never late.
        let start_by =
            now.checked_add(Duration::from_millis(command.start_within_ms)).unwrap_or(now + START_WITHIN_MAX);
        let start_by = leave.not_after(start_by);
        if start_by <= now {
            return Err(Refusal::Expired);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Refusal::Busy("too many commands wait on the device"));
        }
        if self.stopping {
            return Err(Refusal::Busy("the agent is stopping"));
        }
        if self.power_is_coming() {
            return Err(Refusal::Busy("the device is about to reboot or shut down"));
        }
        let intent = Intent { id, kind: instruction.kind(), boot_id: self.boot_id.clone(), server_unix_ms };
        self.ledger.accept(intent).map_err(Refusal::Ledger)?;
        let override_busy = command.override_busy;
        self.waiting.push_back(Waiting { id, instruction, start_by, override_busy, trace: trace_of(command) });
        Ok(())
    }

    fn refuse(
        &mut self,
        id: CommandId,
        refusal: Refusal,
        trace: Option<TraceParent>,
        server_unix_ms: u64,
    ) -> CommandStatus {
        let report = refusal.report();
        tracing::warn!(command.id = %id, trace.id = shown(trace), code = report.code, reason = report.message, "refused a command");
        let progress = Progress::Reported(report.clone());
        match refusal.memory() {
            Memory::Disk => {
                if let Err(error) = self.ledger.refuse(id, server_unix_ms, report) {
                    tracing::warn!(error = chain(&error), "the ledger did not take a refusal");
                }
            }
            Memory::Volatile => self.ledger.refuse_in_memory(id, server_unix_ms, report),
        }
        status(id, &progress)
    }

    /// Does not begin a command that has not been begun. The answer is to be told.
    pub fn handle_cancel(&mut self, id: CommandId, server_unix_ms: u64) -> CommandStatus {
        if let Some(position) = self.waiting.iter().position(|waiting| waiting.id == id) {
            self.waiting.remove(position);
            return self.finish(id, Report::without_data(FinalState::Cancelled, "cancelled", "called back in time"));
        }
        // What has not come yet may still come: then it is known as cancelled.
        self.known(id).unwrap_or_else(|| self.refuse(id, Refusal::Cancelled, None, server_unix_ms))
    }

    /// The server has stored the final status.
    pub fn handle_receipt(&mut self, id: CommandId, server_unix_ms: u64) {
        let written = self.ledger.receipt(id).and_then(|()| self.ledger.compact_when_due(server_unix_ms));
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "the ledger did not take a receipt");
        }
    }

    /// Ends what waited for too long. The answers are to be told.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<CommandStatus> {
        let (late, waiting) = self.waiting.drain(..).partition::<VecDeque<_>, _>(|waiting| waiting.start_by <= now);
        self.waiting = waiting;
        late.into_iter()
            .map(|late| self.finish(late.id, Report::without_data(FinalState::Expired, "expired", "not begun in time")))
            .collect()
    }

    /// Ends what waits and would disturb a device that has become busy. The answers are to be told.
    pub fn handle_busy(&mut self) -> Vec<CommandStatus> {
        let Some(lock) = self.busy.in_force() else { return Vec::new() };
        let disturbs = |waiting: &Waiting| waiting.instruction.kind().disturbs() && !waiting.override_busy;
        let (refused, waiting) = self.waiting.drain(..).partition::<VecDeque<_>, _>(disturbs);
        self.waiting = waiting;
        refused.into_iter().map(|waiting| self.finish(waiting.id, Refusal::Locked(lock.clone()).report())).collect()
    }

    /// When [`Self::handle_timeout`] is next to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.start_by).min()
    }

    /// The next command that may be begun now. It is to be told as running and given to [`Self::execute`]; or only to be told, if it cannot
    /// be begun after all.
    pub fn begin_next(&mut self, now: Instant) -> Option<(Option<Begun>, CommandStatus)> {
        let position = (0..self.waiting.len()).find(|position| self.may_begin(*position))?;
        if self.waiting[position].start_by <= now {
            return None;
        }
        let Waiting { id, instruction, override_busy, trace, .. } = self.waiting.remove(position)?;
        if let Err(error) = self.ledger.begin(id) {
            tracing::warn!(error = chain(&error), command.id = %id, "the ledger did not take that a command was begun");
            if instruction.kind().is_update() {
                // Whether there is something to go on with, the next agent knows by that alone.
                let what = "it could not be written down that the update was begun, so it was not";
                return Some((None, self.finish(id, Report::without_data(FinalState::Failed, "disk", what))));
            }
            // Of others the intent is on the disk, which is what counts.
        }
        self.running.push(Running { id, kind: instruction.kind(), trace });
        tracing::info!(command.id = %id, trace.id = shown(trace), kind = instruction.kind().name(), "beginning a command");
        Some((Some(Begun { id, instruction, override_busy }), status(id, &Progress::Running)))
    }

    /// Whether anything waits to be begun.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn may_begin(&self, position: usize) -> bool {
        let kind = self.waiting[position].instruction.kind();
        let excludes = |other: Kind| other.is_power() || other == kind || other.is_update() && kind.is_update();
        if self.running.iter().any(|running| excludes(running.kind)) {
            return false;
        }
        // A reboot waits until it is the first and alone; nothing comes after it.
        !kind.is_power() || (position == 0 && self.running.is_empty())
    }

    fn power_is_coming(&self) -> bool {
        self.running.iter().any(|running| running.kind.is_power())
            || self.waiting.iter().any(|waiting| waiting.instruction.kind().is_power())
    }

    /// Does it. What becomes of it comes out of [`Self::done`].
    pub fn execute(&mut self, begun: Begun, route: Option<Result<Route, DialError>>) {
        let executor = Arc::clone(&self.executor);
        let Begun { id, instruction, override_busy } = begun;
        self.tasks.spawn(async move {
            // A panic would take the id with it: what it does to the device is over, and is told.
            let work = tokio::spawn(async move { executor.execute(id, &instruction, override_busy, route).await });
            let report = work.await.unwrap_or_else(|_| {
                Report::without_data(FinalState::Failed, "internal", "the agent failed while it was at it")
            });
            (id, report)
        });
    }

    /// The next command that ends; pending while none runs. May be dropped and called again.
    pub async fn done(&mut self) -> (CommandId, Report) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(done)) => return done,
                // Only when the runtime ends.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Takes how far a command is. The answer is to be told; nothing comes after the end.
    #[must_use]
    pub fn handle_step(&self, id: CommandId, percent: u32) -> Option<CommandStatus> {
        let is_running = self.running.iter().any(|running| running.id == id);
        is_running.then(|| CommandStatus { percent: Some(percent), ..status(id, &Progress::Running) })
    }

    /// Takes what became of a command. The answer is to be told.
    pub fn handle_done(&mut self, id: CommandId, report: Report) -> CommandStatus {
        let position = self.running.iter().position(|running| running.id == id);
        let trace = position.and_then(|position| self.running.remove(position).trace);
        tracing::info!(command.id = %id, trace.id = shown(trace), state = ?report.state, code = report.code, reason = ?report.message, "a command ended");
        self.finish(id, report)
    }

    /// Takes nothing from now on: what would be promised in the last seconds would only be told as interrupted.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether something runs that is worth waiting for before the agent stops: a reboot is not, and an update goes on later.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.running.iter().any(|running| !running.kind.is_power() && !running.kind.is_update())
    }

    fn finish(&mut self, id: CommandId, report: Report) -> CommandStatus {
        let report = report.bounded();
        let progress = Progress::Reported(report.clone());
        if let Err(error) = self.ledger.finish(id, report) {
            tracing::error!(error = chain(&error), command.id = %id, "the ledger did not take what became of a command");
        }
        status(id, &progress)
    }

    fn known(&self, id: CommandId) -> Option<CommandStatus> {
        self.ledger.entry(id).map(|entry| status(id, &entry.progress))
    }
}

/// Whose doing a command is. What cannot be read is nobody's.
fn trace_of(command: &Command) -> Option<TraceParent> {
    command.trace_parent.parse().ok()
}

/// For the log, by which a command is found in the server's traces.
fn shown(trace: Option<TraceParent>) -> Option<impl Value> {
    trace.map(|place| display(place.shown_trace_id()))
}

/// A bound for what cannot be added to a clock.
const START_WITHIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a command is not taken.
#[derive(Debug)]
enum Refusal {
    UnknownKind,
    NotAllowed,
    Configuration(Failure),
    Denied(Denied),
    Expired,
    Cancelled,
    Busy(&'static str),
    /// The device asks not to be disturbed.
    Locked(InForce),
    LedgerCorrupt,
    Ledger(AcceptError),
}

#[derive(Clone, Copy, Debug)]
enum Memory {
    Disk,
    /// The disk is to blame.
    Volatile,
}

impl Refusal {
    /// Where it is remembered that the same command is not to be taken later either.
    fn memory(&self) -> Memory {
        match self {
            Self::UnknownKind
            | Self::NotAllowed
            | Self::Configuration(_)
            | Self::Denied(_)
            | Self::Expired
            | Self::Cancelled
            | Self::Busy(_)
            | Self::Locked(_) => Memory::Disk,
            Self::LedgerCorrupt | Self::Ledger(_) => Memory::Volatile,
        }
    }

    fn report(&self) -> Report {
        let refused = |code, message: &str| Report::without_data(FinalState::Refused, code, message);
        match self {
            Self::UnknownKind => refused("unknown_kind", "this agent does not know that kind of command"),
            Self::NotAllowed => {
                refused("not_allowed", "what is asked for cannot be on the allow-list of the device's configuration")
            }
            Self::Configuration(failure) => refused(failure.code, &failure.message),
            Self::Denied(denied) => refused(denied.code(), &denied.to_string()),
            Self::Expired => Report::without_data(FinalState::Expired, "expired", "it came too late to be begun"),
            Self::Cancelled => Report::without_data(FinalState::Cancelled, "cancelled", "called back before it came"),
            Self::Busy(message) => refused("busy", message),
            Self::Locked(lock) => refused("device_busy", &lock.to_string()),
            Self::LedgerCorrupt | Self::Ledger(AcceptError::Damaged) => {
                refused("ledger_corrupt", "the device's ledger is damaged; run `cloudlink-agent doctor` on the device")
            }
            Self::Ledger(error) => refused("ledger_full", &chain(error)),
        }
    }
}

/// What became of a command that an earlier agent left unfinished.
fn settled(intent: &EntryIntent, progress: &Progress, boot_id: &str) -> Report {
    let boots = json!({ "boot_id_before": intent.boot_id, "boot_id_after": boot_id });
    let other_boot = intent.boot_id != boot_id;
    let kind = match &intent.kind {
        WrittenKind::Known(kind) => *kind,
        WrittenKind::Unknown(name) => {
            let message = format!(
                "a later version of the agent took on {name:?}, and this one does not know what that is; whether it was done is not known"
            );
            return Report::without_data(FinalState::Failed, "interrupted", &message);
        }
    };
    match kind {
        Kind::Reboot | Kind::Shutdown if other_boot => {
            Report { data: Some(boots), ..Report::without_data(FinalState::Succeeded, "", "") }
        }
        Kind::Reboot => Report {
            data: Some(boots),
            ..Report::without_data(
                FinalState::Failed,
                executor::not_done_code(kind),
                "the agent was started again, and the device was not",
            )
        },
        Kind::Shutdown
        | Kind::RestartService
        | Kind::CollectMetrics
        | Kind::UpdateOs
        | Kind::UpdateAgent
        | Kind::UpdateContainer
        | Kind::TestLink => {
            let message = match progress {
                Progress::Accepted => "the agent stopped before it was begun",
                Progress::Running | Progress::Reported(_) | Progress::Receipted { .. } => {
                    "the agent stopped while it was under way; whether it was done is not known"
                }
            };
            Report::without_data(FinalState::Failed, "interrupted", message)
        }
    }
}

fn status(id: CommandId, progress: &Progress) -> CommandStatus {
    let (state, code, message, data) = match progress {
        Progress::Accepted => (command_status::State::Accepted, "", "", None),
        Progress::Running => (command_status::State::Running, "", "", None),
        Progress::Reported(report) => {
            (report.state.to_wire(), report.code.as_str(), report.message.as_str(), report.data.as_ref())
        }
        Progress::Receipted { state, code } => (state.to_wire(), code.as_str(), "reported before", None),
    };
    CommandStatus {
        id: id.to_wire(),
        state: state.into(),
        code: code.to_owned(),
        message: message.to_owned(),
        percent: None,
        data_json: data.map(|data| data.to_string().into_bytes().into()).unwrap_or_default(),
    }
}
