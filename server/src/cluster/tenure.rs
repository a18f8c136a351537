//! What a node makes of its lease: when it renews it, when it gives up what it has, when it serves again. No I/O and no clock, so that
//! what runs is what the simulation runs: [`super::Lease`] drives it, and `tasks/node.rs` does what it says.

use std::time::Duration;

use tokio::time::Instant;

/// How many times a lease is renewed while one lasts. One renewal's time before its end the node gives up what it has.
const RENEWALS: u32 = 5;
/// What part of a lease other nodes have for saying whether they reach the database.
const ASKS: u32 = 10;
/// After so many turns without a renewal a node counts as cut off from the database.
const CUT_OFF_TURNS: u32 = 2;

/// Whether this node may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has its place.
    Held,
    /// It has not reached the database for so long that others may have taken over.
    Fenced,
    /// Another life of this node has its name, for good.
    Lost,
}

/// What a node learns about its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The lease is renewed.
    Renewed,
    /// It is renewed, but others had taken this node to be gone, and have closed what it had.
    Missed,
    /// Another life of this node has the name.
    Refused,
    /// The database did not answer, and the lease lasts.
    Silence,
    /// The database did not answer, and others may soon take over.
    Deadline,
    /// Every other node says that it does not reach the database either: nobody can take over.
    AllCutOff,
    /// Some other node may reach it.
    NotAll,
}

/// What the node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Take devices in.
    Serve,
    /// End everything that it has, and take devices in.
    BeginAnew,
    /// Nothing, until the next turn.
    Wait,
    /// Ask the other nodes whether they reach the database.
    Ask,
    /// End everything that it has, and take nobody in.
    GiveUp,
    /// The same, for good.
    Stop,
}

/// When this standing meets this event: the next standing, and what is to be done.
pub(crate) type Rule = (Standing, Event, Standing, Act);

/// Everything that happens. What is not here changes nothing.
pub(crate) const RULES: [Rule; 12] = {
    use Act::{Ask, BeginAnew, GiveUp, Serve, Stop, Wait};
    use Event::{AllCutOff, Deadline, Missed, NotAll, Refused, Renewed, Silence};
    use Standing::{Fenced, Held, Lost};
    [
        (Held, Renewed, Held, Serve),
        (Held, Missed, Held, BeginAnew),
        (Held, Silence, Held, Wait),
        (Held, Deadline, Held, Ask),
        (Held, AllCutOff, Held, Wait),
        (Held, NotAll, Fenced, GiveUp),
        (Held, Refused, Lost, Stop),
        (Fenced, Renewed, Held, Serve),
        (Fenced, Missed, Held, BeginAnew),
        (Fenced, Silence, Fenced, Wait),
        (Fenced, Deadline, Fenced, Wait),
        (Fenced, Refused, Lost, Stop),
    ]
};

/// A renewal that was asked for at a time, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    Done { asked_at: Instant, was_gone: bool },
    Refused,
    Unanswered,
}

/// A node's hold on its place.
#[derive(Debug)]
pub(crate) struct Tenure {
    rules: &'static [Rule],
    lease: Duration,
    standing: Standing,
    /// When the last renewal that succeeded was asked for: the database has counted from then or later.
    renewed_at: Instant,
}

impl Tenure {
    /// Of a node that has taken its place, by asking for it at that time.
    pub(crate) fn new(lease: Duration, asked_at: Instant) -> Self {
        Self { rules: &RULES, lease, standing: Standing::Held, renewed_at: asked_at }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// How long to wait before the next attempt to renew, and then for its answer: to the next turn, or to the deadline.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        match self.before_deadline(now) {
            Some(left) => left.min(self.turn()),
            None => self.turn(),
        }
    }

    /// For the other nodes' answers.
    pub(crate) fn ask_within(&self) -> Duration {
        self.lease / ASKS
    }

    /// What to do after an attempt to renew.
    pub(crate) fn renewal(&mut self, renewal: Renewal, now: Instant) -> Act {
        let event = match renewal {
            Renewal::Done { asked_at, was_gone } => {
                self.renewed_at = asked_at;
                if was_gone { Event::Missed } else { Event::Renewed }
            }
            Renewal::Refused => Event::Refused,
            Renewal::Unanswered if self.before_deadline(now).is_some() => Event::Silence,
            Renewal::Unanswered => Event::Deadline,
        };
        self.meet(event)
    }

    /// What to do after [`Act::Ask`].
    pub(crate) fn asked(&mut self, are_all_cut_off: bool) -> Act {
        self.meet(if are_all_cut_off { Event::AllCutOff } else { Event::NotAll })
    }

    /// What to tell another node that asks.
    pub(crate) fn reaches_database(&self, now: Instant) -> bool {
        self.since_renewed(now) < self.turn() * CUT_OFF_TURNS
    }

    fn meet(&mut self, event: Event) -> Act {
        let rule = self.rules.iter().find(|(standing, on, ..)| (*standing, *on) == (self.standing, event));
        let Some((.., next, act)) = rule else { return Act::Wait };
        self.standing = *next;
        *act
    }

    /// How long it can be waited still before it has to be decided whether others could take over.
    fn before_deadline(&self, now: Instant) -> Option<Duration> {
        (self.lease - self.turn()).checked_sub(self.since_renewed(now)).filter(|left| !left.is_zero())
    }

    fn since_renewed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.renewed_at)
    }

    fn turn(&self) -> Duration {
        self.lease / RENEWALS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_standing_has_one_answer_to_each_event() {
        for (standing, event, ..) in RULES {
            let alike = RULES.iter().filter(|(of, on, ..)| (*of, *on) == (standing, event));
            assert_eq!(alike.count(), 1, "{standing:?} {event:?}");
        }
        assert!(RULES.iter().all(|(standing, ..)| *standing != Standing::Lost), "what is lost is lost for good");
        let gives_up = |(_, _, next, act): &Rule| match act {
            Act::GiveUp => *next == Standing::Fenced,
            Act::Stop => *next == Standing::Lost,
            Act::Serve | Act::BeginAnew | Act::Ask => *next == Standing::Held,
            Act::Wait => true,
        };
        assert!(RULES.iter().all(gives_up));
    }

    #[test]
    fn a_node_gives_up_before_its_lease_ends() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let mut now = start;
        let act = loop {
            now += tenure.pause(now);
            now += tenure.pause(now);
            let act = tenure.renewal(Renewal::Unanswered, now);
            if act != Act::Wait {
                break act;
            }
        };
        assert_eq!(act, Act::Ask);
        assert!(now + tenure.ask_within() < start + LEASE);
        assert_eq!((tenure.asked(false), tenure.standing()), (Act::GiveUp, Standing::Fenced));
        assert_eq!(tenure.renewal(Renewal::Unanswered, now + seconds(60)), Act::Wait, "once");
        let back = Renewal::Done { asked_at: now + seconds(90), was_gone: true };
        assert_eq!((tenure.renewal(back, now + seconds(91)), tenure.standing()), (Act::BeginAnew, Standing::Held));
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let late = Renewal::Done { asked_at: start + seconds(3), was_gone: false };
        assert_eq!(tenure.renewal(late, start + seconds(14)), Act::Serve);
        assert_eq!(tenure.pause(start + seconds(14)), seconds(1));
        assert!(!tenure.reaches_database(start + seconds(14)));
    }

    #[test]
    fn while_nobody_can_take_over_it_is_asked_again_and_again() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        for turn in 4..100 {
            assert_eq!(tenure.renewal(Renewal::Unanswered, start + seconds(3) * turn), Act::Ask);
            assert_eq!((tenure.asked(true), tenure.standing()), (Act::Wait, Standing::Held));
        }
    }

    #[test]
    fn whoever_has_lost_its_name_is_never_back() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        assert_eq!(tenure.renewal(Renewal::Refused, start), Act::Stop);
        tenure.renewal(Renewal::Done { asked_at: start, was_gone: false }, start);
        assert_eq!(tenure.standing(), Standing::Lost);
    }
}
