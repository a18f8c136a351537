//! Rollouts: the same command to many devices, a batch after the other. What is to be begun next, decided without I/O and without a
//! clock from what is stored of each target: whoever crashes in between decides the same again.
//!
//! The targets are frozen when the rollout is made. The first batch are the canaries; each later one begins when all of the one before
//! have ended. Too many that failed halt the rollout by itself until somebody says that it may go on.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::command;

/// Devices of one rollout, those that are out included.
pub const TARGETS_MAX: i64 = 50_000;
/// Plans of one person that were not applied; the oldest give way.
pub const PLANS_MAX: i64 = 32;
/// Rollouts of one tenant that are neither plans nor over: each is looked at again and again.
pub const BEGUN_MAX: i64 = 32;
/// How long a plan may be applied.
pub const PLAN_LASTS: Duration = Duration::HOUR;
/// The longest rollout.
pub const LASTS_MAX: std::time::Duration = std::time::Duration::from_secs(90 * 24 * 3600);
/// The label of a device that names its time zone.
pub const TIME_ZONE_LABEL: &str = "timezone";

/// How a rollout is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How many devices are tried first; none: 0. One of them that fails halts the rollout, and so does it when none succeeds.
    pub canaries: usize,
    /// How many there are in each later batch, at least one.
    pub batch: usize,
    /// How many are begun within any [`RATE_WINDOW`], at least one.
    pub rate: usize,
    /// How many must have failed for the rollout to halt, at least one.
    pub abort_after: usize,
}

/// The time in which no more than [`Plan::rate`] are begun.
pub const RATE_WINDOW: Duration = Duration::MINUTE;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RolloutState)]
pub enum State {
    /// Its targets are frozen, and nothing is begun.
    Planned,
    Running,
    /// By a person.
    Paused,
    /// By itself: too many have failed.
    Halted,
    /// Taken back; what is under way ends as it does.
    Cancelling,
    /// Its time is up; what is under way ends as it does.
    Expiring,
    /// Final: every target has ended.
    Finished,
    /// Final.
    Cancelled,
    /// Final.
    Expired,
}

/// What happens to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody applies the plan.
    Begin,
    Pause,
    Resume,
    Cancel,
    /// Its time is up.
    Expire,
    /// More have failed than may.
    Fail,
    /// No target is left that has not ended.
    End,
}

impl State {
    /// Every transition there is. What is not here is not possible then, and changes nothing.
    pub const TRANSITIONS: &[(Self, Event, Self)] = &[
        (Self::Planned, Event::Begin, Self::Running),
        (Self::Running, Event::Pause, Self::Paused),
        (Self::Running, Event::Cancel, Self::Cancelling),
        (Self::Running, Event::Expire, Self::Expiring),
        (Self::Running, Event::Fail, Self::Halted),
        (Self::Running, Event::End, Self::Finished),
        (Self::Paused, Event::Resume, Self::Running),
        (Self::Paused, Event::Cancel, Self::Cancelling),
        (Self::Paused, Event::Expire, Self::Expiring),
        (Self::Paused, Event::Fail, Self::Halted),
        (Self::Paused, Event::End, Self::Finished),
        (Self::Halted, Event::Resume, Self::Running),
        (Self::Halted, Event::Cancel, Self::Cancelling),
        (Self::Halted, Event::Expire, Self::Expiring),
        (Self::Halted, Event::End, Self::Finished),
        (Self::Cancelling, Event::End, Self::Cancelled),
        (Self::Expiring, Event::End, Self::Expired),
    ];

    #[must_use]
    pub fn after(self, event: Event) -> Option<Self> {
        Self::TRANSITIONS.iter().find(|(from, what, _)| (*from, *what) == (self, event)).map(|(_, _, to)| *to)
    }

    pub const ALL: [Self; 9] = [
        Self::Planned,
        Self::Running,
        Self::Paused,
        Self::Halted,
        Self::Cancelling,
        Self::Expiring,
        Self::Finished,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Cancelling => "cancelling",
            Self::Expiring => "expiring",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether what is not yet begun of its commands is called back.
    #[must_use]
    pub const fn holds_back(self) -> bool {
        matches!(self, Self::Halted | Self::Cancelling | Self::Expiring | Self::Cancelled | Self::Expired)
    }

    #[must_use]
    pub fn is_final(self) -> bool {
        Self::TRANSITIONS.iter().all(|(from, ..)| *from != self)
    }
}

/// What becomes of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Not begun.
    Waiting,
    /// Its command is made.
    UnderWay {
        since: OffsetDateTime,
    },
    Succeeded {
        since: OffsetDateTime,
    },
    Failed {
        since: OffsetDateTime,
    },
    /// Nothing was done: `since` is when its command was made, if there was one. It says nothing of the others.
    Skipped {
        since: Option<OffsetDateTime>,
    },
}

/// Where one device that is in stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ExecutionState)]
pub enum Standing {
    /// Not begun.
    Waiting,
    /// Its command is made, and has not ended.
    UnderWay,
    Succeeded,
    /// It failed, was refused by the device, or the device does not say what became of it.
    Failed,
    /// Nothing was done.
    Skipped,
}

impl Standing {
    /// Of a target with this command, or that is skipped without one.
    #[must_use]
    pub fn of(command: Option<command::State>, is_skipped: bool) -> Self {
        match command.map(Outcome::of) {
            None if is_skipped => Self::Skipped,
            None => Self::Waiting,
            Some(None) => Self::UnderWay,
            Some(Some(Outcome::Succeeded)) => Self::Succeeded,
            Some(Some(Outcome::Failed)) => Self::Failed,
            Some(Some(Outcome::Skipped)) => Self::Skipped,
        }
    }
}

/// How a command has ended, for its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    Failed,
    /// It was never begun.
    Skipped,
}

impl Outcome {
    /// `None` while the command may still change.
    #[must_use]
    pub fn of(command: command::State) -> Option<Self> {
        match command {
            command::State::Queued | command::State::Sent | command::State::Accepted | command::State::Running => None,
            command::State::Succeeded => Some(Self::Succeeded),
            // A device that will not do it, or does not say what became of it, is no success that others should follow.
            command::State::Failed | command::State::Refused | command::State::Unconfirmed => Some(Self::Failed),
            command::State::Expired | command::State::Cancelled => Some(Self::Skipped),
        }
    }
}

impl Target {
    /// As it stands, with the time at which its command was made.
    #[must_use]
    pub fn new(standing: Standing, begun_at: Option<OffsetDateTime>) -> Self {
        match (standing, begun_at) {
            (Standing::UnderWay, Some(since)) => Self::UnderWay { since },
            (Standing::Succeeded, Some(since)) => Self::Succeeded { since },
            (Standing::Failed, Some(since)) => Self::Failed { since },
            (Standing::Skipped, since) => Self::Skipped { since },
            (Standing::Waiting | Standing::UnderWay | Standing::Succeeded | Standing::Failed, _) => Self::Waiting,
        }
    }

    #[must_use]
    pub fn standing(self) -> Standing {
        match self {
            Self::Waiting => Standing::Waiting,
            Self::UnderWay { .. } => Standing::UnderWay,
            Self::Succeeded { .. } => Standing::Succeeded,
            Self::Failed { .. } => Standing::Failed,
            Self::Skipped { .. } => Standing::Skipped,
        }
    }

    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Failed { .. } | Self::Skipped { .. })
    }

    fn begun_at(self) -> Option<OffsetDateTime> {
        match self {
            Self::Waiting => None,
            Self::UnderWay { since } | Self::Succeeded { since } | Self::Failed { since } => Some(since),
            Self::Skipped { since } => since,
        }
    }
}

/// How many targets are where. They add up to all of them, always: nothing is counted beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = RolloutTotals)]
pub struct Totals {
    pub waiting: usize,
    pub under_way: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Totals {
    #[must_use]
    pub fn of(targets: &[Target]) -> Self {
        targets.iter().fold(Self::default(), |mut totals, target| {
            totals.add(target.standing(), 1);
            totals
        })
    }

    pub fn add(&mut self, standing: Standing, count: usize) {
        *match standing {
            Standing::Waiting => &mut self.waiting,
            Standing::UnderWay => &mut self.under_way,
            Standing::Succeeded => &mut self.succeeded,
            Standing::Failed => &mut self.failed,
            Standing::Skipped => &mut self.skipped,
        } += count;
    }

    #[must_use]
    pub fn all(&self) -> usize {
        self.waiting + self.under_way + self.succeeded + self.failed + self.skipped
    }
}

/// All that is stored of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    plan: Plan,
    state: State,
    targets: Vec<Target>,
    /// How many had failed when somebody last let it go on after it had halted: they halt it no more.
    forgiven: usize,
    /// Whether somebody has let it go on without a canary that succeeded.
    is_unproven_fine: bool,
}

/// What is stored of a rollout beside its plan and its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub state: State,
    pub forgiven: usize,
    pub is_unproven_fine: bool,
}

/// What a rollout is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The targets, by their place, whose commands are to be made.
    pub begin: Vec<usize>,
    /// When to ask again, if nothing happens before: more may be begun then.
    pub again_at: Option<OffsetDateTime>,
}

/// The rollout is in a state in which that cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rollout that is {} cannot do that", .0.name())]
pub struct NotNow(pub State);

impl Rollout {
    #[must_use]
    pub fn new(plan: Plan, targets: usize) -> Self {
        let plan = Plan {
            batch: plan.batch.max(1),
            rate: plan.rate.max(1),
            abort_after: plan.abort_after.max(1),
            canaries: plan.canaries.min(targets),
        };
        let targets = vec![Target::Waiting; targets];
        Self { plan, state: State::Running, targets, forgiven: 0, is_unproven_fine: false }
    }

    /// As it was stored.
    #[must_use]
    pub fn restore(plan: Plan, stored: Stored, targets: Vec<Target>) -> Self {
        let Stored { state, forgiven, is_unproven_fine } = stored;
        let rollout = Self::new(plan, targets.len());
        Self { state, targets, forgiven, is_unproven_fine, ..rollout }
    }

    /// What is to be stored of it beside its targets.
    #[must_use]
    pub fn stored(&self) -> Stored {
        Stored { state: self.state, forgiven: self.forgiven, is_unproven_fine: self.is_unproven_fine }
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals::of(&self.targets)
    }

    /// Somebody, or the time, wants something of it.
    pub fn handle(&mut self, event: Event) -> Result<(), NotNow> {
        let before = self.state;
        self.state = before.after(event).ok_or(NotNow(before))?;
        match self.state {
            // Whoever lets it go on has seen what has failed. A pause is no such word.
            State::Running if before == State::Halted => {
                self.forgiven = self.totals().failed;
                self.is_unproven_fine = true;
            }
            // Nothing more is begun.
            State::Cancelling | State::Expiring => {
                for target in self.targets.iter_mut().filter(|target| **target == Target::Waiting) {
                    *target = Target::Skipped { since: None };
                }
            }
            State::Planned
            | State::Running
            | State::Paused
            | State::Halted
            | State::Finished
            | State::Cancelled
            | State::Expired => {}
        }
        self.settle();
        Ok(())
    }

    /// A target's command has ended. The first end counts; what is not under way has none.
    pub fn record(&mut self, target: usize, outcome: Outcome) {
        let Some(Target::UnderWay { since }) = self.targets.get(target).copied() else { return };
        self.targets[target] = match outcome {
            Outcome::Succeeded => Target::Succeeded { since },
            Outcome::Failed => Target::Failed { since },
            Outcome::Skipped => Target::Skipped { since: Some(since) },
        };
        self.settle();
    }

    /// What is to be begun now. The caller makes the commands and stores what has become of the rollout in one transaction: if it does
    /// neither, nothing has happened.
    pub fn step(&mut self, now: OffsetDateTime) -> Step {
        self.step_within(now, |_| Some(now))
    }

    /// The same, where each target has a window: `opens` says when the one that is open has opened, or the next one does.
    pub fn step_within(&mut self, now: OffsetDateTime, opens: impl Fn(usize) -> Option<OffsetDateTime>) -> Step {
        self.settle();
        if self.state != State::Running {
            return Step::default();
        }
        let batch = self.batch();
        let waiting = batch.filter(|place| self.targets[*place] == Target::Waiting);
        let (waiting, closed): (Vec<usize>, Vec<usize>) =
            waiting.partition(|place| opens(*place).is_some_and(|at| at <= now));
        // Where the clock was set back, what was begun after `now` counts as well.
        let mut recent: Vec<_> = self
            .targets
            .iter()
            .filter_map(|target| target.begun_at())
            .filter(|at| *at > now.saturating_sub(RATE_WINDOW))
            .collect();
        let room = self.plan.rate.saturating_sub(recent.len());
        let begin: Vec<usize> = waiting.iter().copied().take(room).collect();
        for place in &begin {
            self.targets[*place] = Target::UnderWay { since: now };
            recent.push(now);
        }
        let is_held_back = begin.len() < waiting.len();
        let has_room = recent.iter().min().filter(|_| is_held_back).map(|oldest| *oldest + RATE_WINDOW);
        let again_at = closed.into_iter().filter_map(opens).chain(has_room).min();
        Step { begin, again_at }
    }

    /// What follows from what the targets have become.
    fn settle(&mut self) {
        let totals = self.totals();
        let event = if totals.waiting + totals.under_way == 0 {
            Event::End
        } else if self.has_failed() {
            Event::Fail
        } else {
            return;
        };
        if let Some(next) = self.state.after(event) {
            self.state = next;
        }
    }

    fn has_failed(&self) -> bool {
        let canaries = Totals::of(&self.targets[..self.plan.canaries]);
        let is_tried = canaries.waiting + canaries.under_way == 0;
        let limit = if is_tried { self.plan.abort_after } else { 1 };
        let is_unproven = self.plan.canaries > 0 && is_tried && canaries.succeeded == 0 && !self.is_unproven_fine;
        let failed = self.totals().failed.saturating_sub(self.forgiven);
        // A canary that failed counts for itself, also when it was the last of them.
        let failed_canary = canaries.failed > self.forgiven;
        failed >= limit || failed_canary || is_unproven
    }

    /// The first batch that is not over.
    fn batch(&self) -> Range<usize> {
        let mut batch = 0..if self.plan.canaries > 0 { self.plan.canaries } else { self.plan.batch };
        loop {
            batch.end = batch.end.min(self.targets.len());
            let is_over = self.targets[batch.clone()].iter().all(|target| target.is_over());
            if !is_over || batch.end == self.targets.len() {
                return batch;
            }
            batch = batch.end..batch.end + self.plan.batch;
        }
    }
}

/// When devices may be begun, by the clocks where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RolloutWindow)]
pub struct Window {
    /// On these days of the week: 1 is Monday, 7 is Sunday. Hours over midnight belong to the day on which they begin. Left out: all.
    #[serde(default = "every_day")]
    pub days: Vec<i32>,
    /// From this minute of the day, 0 to 1,439.
    pub from_minute: i32,
    /// Until this minute of the day, 1 to 1,440; not after `from_minute`: of the next day.
    pub to_minute: i32,
    /// For devices without the label `timezone`: a name in the time zone database. Left out: `UTC`.
    #[serde(default = "utc")]
    pub time_zone: String,
}

fn every_day() -> Vec<i32> {
    (1..=7).collect()
}

fn utc() -> String {
    "UTC".to_owned()
}

/// A rollout, as it was planned and as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = Rollout)]
pub struct Record {
    pub id: Uuid,
    pub tenant_id: Uuid,
    /// Every command is made under this grant.
    pub grant_id: Uuid,
    pub requested_by: Uuid,
    pub kind: String,
    #[schema(value_type = Object)]
    pub arguments: serde_json::Value,
    pub reason: String,
    /// As it was asked for.
    pub selector: String,
    pub canaries: i32,
    pub batch: i32,
    pub rate_per_minute: i32,
    pub abort_after: i32,
    pub start_within_seconds: i32,
    pub may_queue: bool,
    pub lasts_seconds: i32,
    pub unless_agent: Option<String>,
    /// For how many devices it may have changed when the plan is applied whether they can be reached, or are busy.
    pub drift_max: i32,
    pub window: Option<Window>,
    pub state: State,
    /// Of the plan: what is done and how, to which devices, and why to no others. In hex.
    pub hash: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub begun_at: Option<OffsetDateTime>,
    /// Nothing is begun after this.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ends_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

/// A rollout with what has become of its devices, counted at this moment.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = RolloutShown)]
pub struct Shown {
    #[serde(flatten)]
    pub rollout: Record,
    /// Of the devices that are in. They add up to all of them.
    pub totals: Totals,
    /// How many are out, by the reason.
    pub out: BTreeMap<String, usize>,
}

/// One device of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Execution {
    pub device_id: Uuid,
    pub device_name: String,
    /// Its place in the order in which devices are begun, from 0; those that are out come last.
    pub place: i32,
    /// Null: it is out.
    pub state: Option<Standing>,
    /// Why it is out, or was skipped without a command: `grant`, `grant_ends`, `device_revoked`, `window`, `time_zone`, `version`,
    /// `busy`, `not_able`, `not_linked`, `no_agent`, `polling`, `changed` or `rollout_over`.
    pub why: Option<String>,
    pub time_zone: Option<String>,
    pub command_id: Option<Uuid>,
    /// Of the command.
    pub command_state: Option<command::State>,
    /// Why the command ended as it did: a stable code.
    pub code: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub begun_at: Option<OffsetDateTime>,
}

#[cfg(test)]
mod tests;
