//! Rollouts: the same command to many devices, a batch after the other. What is to be begun next, decided without I/O and without a
//! clock from what is stored of each target: whoever crashes in between decides the same again.
//!
//! The targets are frozen when the rollout is made. The first batch are the canaries; each later one begins when all of the one before
//! have ended. Too many that failed halt the rollout by itself until somebody says that it may go on.

use std::ops::Range;

use time::{Duration, OffsetDateTime};

use super::command;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
            let count = match target {
                Target::Waiting => &mut totals.waiting,
                Target::UnderWay { .. } => &mut totals.under_way,
                Target::Succeeded { .. } => &mut totals.succeeded,
                Target::Failed { .. } => &mut totals.failed,
                Target::Skipped { .. } => &mut totals.skipped,
            };
            *count += 1;
            totals
        })
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
#[error("a rollout that is {0:?} cannot do that")]
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
            State::Running | State::Paused | State::Halted | State::Finished | State::Cancelled | State::Expired => {}
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
        self.settle();
        if self.state != State::Running {
            return Step::default();
        }
        let batch = self.batch();
        let waiting: Vec<usize> = batch.filter(|place| self.targets[*place] == Target::Waiting).collect();
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
        recent.sort_unstable();
        let is_held_back = begin.len() < waiting.len();
        Step { begin, again_at: recent.first().filter(|_| is_held_back).map(|oldest| *oldest + RATE_WINDOW) }
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

#[cfg(test)]
mod tests;
