//! The ladder of transports: which is tried next, and when. No socket, clock or randomness: those are parameters.
//!
//! Rungs are numbers here, in the order of the configuration, best first; what a transport is, the ladder does not know. For one
//! without a connection that lasts, an exchange that works is a link that is welcomed, and the first one that does not is its loss.
//!
//! | there is | and then | what follows |
//! |---|---|---|
//! | no link | an attempt fails | the next rung of the pass, soon; after the last one a new pass, after the back-off |
//! | no link | the server itself answers with a refusal, or that it has too much to do | the same rung again, after the back-off; three times, then the next one |
//! | no link | an attempt is welcomed | the link of this rung |
//! | a link | 60 s of traffic are proven | this rung is the first of each pass from now on, and the back-off begins anew |
//! | a link of a lower rung | the slow timer | an attempt with each better rung, one after the other; the link stays until one is welcomed |
//! | a link | such an attempt fails | the link, and the slow timer once more |
//! | a link | it is lost with 60 s proven | a new pass with this rung first, after the back-off |
//! | a link | it is lost sooner | as if the attempt had failed |
//!
//! Whatever happens, attempts begin no closer together than [`PAUSE_MIN`], and not more often in an hour than is configured: one half of
//! those may come at any time, the other half evenly spread over the hour, so that a bad minute is not paid for with an hour of silence.

pub mod memory;
pub mod network;
pub mod report;

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::{Backoff, PROVEN_FOR, about};
use crate::problem::RETRY_AFTER_MAX;

/// Between the beginnings of two attempts, at least.
pub const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The next rung of a pass is tried within this.
const STEP_WITHIN: Duration = Duration::from_secs(2);
/// How often in a row the server's own answer is taken for a sign that the transport works.
const ANSWERS_MAX: u32 = 3;
/// How often a device dials that the server does not want: it may be let in again, and must not cost much until then.
const REFUSED_RETRY: Duration = Duration::from_secs(15 * 60);
const HOUR: Duration = Duration::from_secs(3600);
/// How soon it is looked again whether traffic is proven.
const PROVEN_LOOK: Duration = Duration::from_secs(5);

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub attempts_per_hour: usize,
    /// How long a lower rung is good enough before the better ones are tried again, about.
    pub better_after: Duration,
}

/// What came of an attempt, or of a link, that is of importance for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The server itself has said so: the transport works.
    pub is_answer: bool,
    /// The server does not want this device.
    pub is_refusal: bool,
    /// Not before this, says the server.
    pub retry_after: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub struct Ladder {
    settings: Settings,
    rungs: usize,
    /// The first rung of each pass; the others follow, best first.
    first: usize,
    /// Which of the pass has its turn.
    turn: usize,
    /// Answers of the server in a row on this rung.
    answers: u32,
    backoff: Backoff,
    trying: Option<usize>,
    up: Option<Up>,
    /// When the last attempt began.
    begun: Option<Instant>,
    /// When as many attempts as there were would have begun, had they been spread evenly.
    spread_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Up {
    rung: usize,
    /// When to look whether traffic is proven; `None` once it is.
    look_at: Option<Instant>,
    /// The better rung that is tried next, and when.
    better: Option<(usize, Instant)>,
}

impl Ladder {
    /// `first` is what worked last time, if that is known.
    #[must_use]
    pub fn new(settings: Settings, rungs: usize, first: Option<usize>) -> Self {
        Self {
            settings,
            rungs: rungs.max(1),
            first: first.filter(|first| *first < rungs).unwrap_or(0),
            turn: 0,
            answers: 0,
            backoff: Backoff::default(),
            trying: None,
            up: None,
            begun: None,
            spread_until: None,
        }
    }

    /// On another network another rung may be the one that works.
    pub fn moved(&mut self, first: Option<usize>) {
        self.first = first.filter(|first| *first < self.rungs).unwrap_or(0);
        self.turn = 0;
        self.answers = 0;
    }

    /// The rung of an attempt that begins now.
    #[must_use]
    pub fn next(&self, now: Instant) -> usize {
        match self.up {
            Some(Up { better: Some((rung, at)), .. }) if at <= now => rung,
            Some(Up { rung, .. }) => rung,
            None => self.rung_of(self.turn),
        }
    }

    /// The rung of the attempt that is under way.
    #[must_use]
    pub fn trying(&self) -> Option<usize> {
        self.trying
    }

    /// Whether this rung has, or will have next, the link.
    #[must_use]
    pub fn is_in_use(&self, rung: usize) -> bool {
        match (self.trying, self.up) {
            (None, None) => self.rung_of(self.turn) == rung,
            (trying, up) => trying == Some(rung) || up.is_some_and(|up| up.rung == rung),
        }
    }

    /// Before this no attempt may begin, whoever asks for one.
    #[must_use]
    pub fn not_before(&self, now: Instant) -> Instant {
        let after_last = self.begun.map_or(now, |last| last + PAUSE_MIN);
        let ahead = self.every() * u32::try_from(self.at_will() - 1).unwrap_or(u32::MAX);
        let within_hour = self.spread_until.and_then(|until| until.checked_sub(ahead)).unwrap_or(now);
        now.max(after_last).max(within_hour)
    }

    /// How many attempts may come at any time.
    fn at_will(&self) -> usize {
        self.settings.attempts_per_hour / 2 + 1
    }

    /// How far apart the others are. With the last of those at will, an hour has room for as many as are configured.
    fn every(&self) -> Duration {
        let others = self.settings.attempts_per_hour.max(1) + 1 - self.at_will();
        // Rounded up: an hour has no room for one more.
        HOUR / u32::try_from(others).unwrap_or(u32::MAX) + Duration::from_nanos(1)
    }

    /// Takes in that an attempt begins. Gives its rung.
    pub fn begin(&mut self, now: Instant) -> usize {
        let rung = self.next(now);
        self.trying = Some(rung);
        self.begun = Some(now);
        self.spread_until = Some(self.spread_until.map_or(now, |until| until.max(now)) + self.every());
        rung
    }

    /// Takes in that the attempt has come to nothing. How long to wait before the next one; `None` if it was for something better
    /// than the present link.
    pub fn failed(&mut self, now: Instant, failure: Failure, jitter: f64) -> Option<Duration> {
        let tried = self.trying.take();
        if let Some(up) = self.up.as_mut().filter(|up| up.better.is_some_and(|(rung, _)| Some(rung) == tried)) {
            let next = tried.map(|rung| rung + 1).filter(|rung| *rung < up.rung);
            up.better = Some(match next {
                Some(rung) => (rung, now + STEP_WITHIN.mul_f64(jitter)),
                None => (0, now + about(self.settings.better_after, jitter)),
            });
            return None;
        }
        if self.up.is_some() {
            return Some(self.later(failure, jitter, false));
        }
        self.turn = tried.map_or(self.turn, |rung| self.turn_of(rung));
        Some(self.wait(failure, jitter))
    }

    /// Takes in that the attempt was broken off, whatever the transport is worth.
    pub fn interrupted(&mut self) {
        self.trying = None;
    }

    /// Takes in that the attempt has made a link.
    pub fn welcomed(&mut self, now: Instant, jitter: f64) {
        let rung = self.trying.take().or(self.up.map(|up| up.rung)).unwrap_or(self.first);
        self.turn = self.turn_of(rung);
        // A link that took the place of another of its rung does not put the better ones off.
        let better = match self.up {
            Some(up) if up.rung == rung => up.better,
            _ => (rung > 0).then(|| (0, now + about(self.settings.better_after, jitter))),
        };
        self.up = Some(Up { rung, look_at: Some(now + PROVEN_FOR), better });
    }

    /// Takes in that the link is lost. How long to wait before the next attempt; `None` if one is under way.
    pub fn lost(&mut self, failure: Failure, proven_for: Duration, jitter: f64) -> Option<Duration> {
        let up = self.up.take()?;
        let is_proven = proven_for >= PROVEN_FOR;
        if is_proven {
            self.settle(up.rung);
        }
        if self.trying.is_some() {
            return None;
        }
        self.turn = self.turn_of(up.rung);
        Some(if is_proven { self.later(failure, jitter, false) } else { self.wait(failure, jitter) })
    }

    /// When to call [`Self::prove`], or to begin an attempt beside the link.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let up = self.up?;
        let better_at = up.better.map(|(_, at)| self.not_before(at)).filter(|_| self.trying.is_none());
        [up.look_at, better_at].into_iter().flatten().min()
    }

    /// Whether it is time to try a better rung. Not when there were attempts enough for now: an attempt that comes later, whatever is
    /// better by then, would make the present link anew for nothing.
    #[must_use]
    pub fn is_better_due(&self, now: Instant) -> bool {
        self.trying.is_none() && self.up.and_then(|up| up.better).is_some_and(|(_, at)| self.not_before(at) <= now)
    }

    /// Not now: what goes over the link must not be disturbed.
    pub fn put_better_off(&mut self, until: Instant) {
        if let Some((_, at)) = self.up.as_mut().and_then(|up| up.better.as_mut()) {
            *at = until.max(*at);
        }
    }

    /// Takes in for how long traffic is proven on the link. The rung, when that is worth being remembered.
    pub fn prove(&mut self, now: Instant, proven_for: Duration) -> Option<usize> {
        let up = self.up.as_mut()?;
        up.look_at?;
        if proven_for < PROVEN_FOR {
            up.look_at = Some(now + (PROVEN_FOR - proven_for).max(PROVEN_LOOK));
            return None;
        }
        up.look_at = None;
        let rung = up.rung;
        self.settle(rung);
        Some(rung)
    }

    fn settle(&mut self, rung: usize) {
        self.backoff.link_ended(PROVEN_FOR);
        self.first = rung;
        self.turn = 0;
        self.answers = 0;
    }

    /// Goes on to the next rung, unless the server has answered on this one.
    fn wait(&mut self, failure: Failure, jitter: f64) -> Duration {
        let stays = (failure.is_answer || failure.is_refusal) && self.answers < ANSWERS_MAX;
        if stays {
            self.answers += 1;
        } else {
            self.answers = 0;
            self.turn = (self.turn + 1) % self.rungs;
        }
        self.later(failure, jitter, !stays && self.turn > 0)
    }

    fn later(&mut self, failure: Failure, jitter: f64, within_pass: bool) -> Duration {
        let wait = if within_pass { STEP_WITHIN.mul_f64(jitter) } else { self.backoff.next(jitter) };
        let asked = failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        if failure.is_refusal {
            return about(REFUSED_RETRY, jitter).max(asked);
        }
        // Never before the time that was asked for, and not with everybody else that was asked for it.
        asked.mul_f64(1.0 + jitter / 10.0) + wait
    }

    fn rung_of(&self, turn: usize) -> usize {
        match turn {
            0 => self.first,
            turn if turn <= self.first => turn - 1,
            turn => turn,
        }
    }

    fn turn_of(&self, rung: usize) -> usize {
        match rung {
            rung if rung == self.first => 0,
            rung if rung < self.first => rung + 1,
            rung => rung,
        }
    }
}

#[cfg(test)]
mod tests;
