//! What a node makes of its lease: when it renews it, when it gives up what it has, when it serves again, and whom it takes to be gone.
//! No I/O and no clock, so that what runs is what the simulation runs: [`super::Lease`] drives it, and `tasks/node.rs` does what it says.
//!
//! Nothing here rests on a clock but this node's own monotonic one. A node counts its lease from when it asked for it, and has given up
//! what it has before that time is over. Whoever takes it to be gone has looked at its row again and again for as long as the lease lasts,
//! from after that renewal on, without having been cut off from the database meanwhile. A node that was, and may have told others so, who
//! relied on it, begins to look anew.

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::store::node::{Peer, Suspect};

/// How many times a lease is renewed while one lasts. One renewal's time before its end the node gives up what it has.
const RENEWALS: u32 = 5;
/// What part of a lease other nodes have for saying whether they reach the database.
const ASKS: u32 = 10;
/// What part of a lease the database has for an answer to a node that stood still until others may have taken over.
const BRIEFLY: u32 = 50;

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
    /// It is renewed, but others have taken this node to be gone, and close what it had.
    Missed,
    /// Another life of this node has the name.
    Refused,
    /// The database did not answer, and the lease lasts.
    Silence,
    /// The database did not answer, and others may soon take over.
    Deadline,
    /// The same, but it was noticed too late: they may have.
    Overdue,
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
    /// End everything that it has, for others close it. Devices are taken in again when the others know that.
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

/// What a tenure goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Everything that happens. What is not here changes nothing.
    pub(crate) table: &'static [Rule],
    /// After so many turns without a renewal a node counts as cut off from the database.
    pub(crate) cut_off_turns: u32,
}

pub(crate) const RULES: Rules = Rules { table: &TABLE, cut_off_turns: 2 };

const TABLE: [Rule; 14] = {
    use Act::{Ask, BeginAnew, GiveUp, Serve, Stop, Wait};
    use Event::{AllCutOff, Deadline, Missed, NotAll, Overdue, Refused, Renewed, Silence};
    use Standing::{Fenced, Held, Lost};
    [
        (Held, Renewed, Held, Serve),
        (Held, Missed, Fenced, BeginAnew),
        (Held, Silence, Held, Wait),
        (Held, Deadline, Held, Ask),
        (Held, Overdue, Fenced, GiveUp),
        (Held, AllCutOff, Held, Wait),
        (Held, NotAll, Fenced, GiveUp),
        (Held, Refused, Lost, Stop),
        (Fenced, Renewed, Held, Serve),
        (Fenced, Missed, Fenced, Wait),
        (Fenced, Silence, Fenced, Wait),
        (Fenced, Deadline, Fenced, Wait),
        (Fenced, Overdue, Fenced, Wait),
        (Fenced, Refused, Lost, Stop),
    ]
};

/// Whether nobody can take over, by what others say of whether they reach the database. Each that is known must say that it does not: one
/// that says nothing may well reach it. And nobody may say that it does, not even one that this node does not know.
pub(crate) fn are_all_cut_off(known: impl IntoIterator<Item = Option<bool>>, does_any_reach: bool) -> bool {
    !does_any_reach && known.into_iter().all(|reaches| reaches == Some(false))
}

/// A renewal that was asked for at a time, and what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Renewal<'a> {
    Done { asked_at: Instant, gone_at: Option<OffsetDateTime>, others: &'a [Peer] },
    Refused,
    Unanswered,
}

/// A node's hold on its place.
#[derive(Debug)]
pub(crate) struct Tenure {
    rules: Rules,
    lease: Duration,
    standing: Standing,
    /// When the last renewal that succeeded was asked for: others have counted from then or later.
    renewed_at: Instant,
    /// Nobody has taken over for a lease from then on: from when the last renewal was asked for, or the last question to the others that
    /// they all answered with no.
    assured_at: Instant,
    /// When others have taken this node to be gone, as they say: to be acknowledged by the next renewal.
    missed_at: Option<OffsetDateTime>,
    /// That renewal need not wait.
    hurries: bool,
    /// The other nodes, as many as the database has.
    watched: BTreeMap<String, Watched>,
}

/// Another node's row.
#[derive(Debug)]
struct Watched {
    renewed_at: OffsetDateTime,
    lease: Duration,
    /// Since when it has not changed, as far as this node has seen.
    since: Instant,
}

impl Tenure {
    /// Of a node that has taken its place, by asking for it at that time.
    pub(crate) fn new(lease: Duration, asked_at: Instant) -> Self {
        Self::with_rules(lease, asked_at, RULES)
    }

    /// By other rules, to see what they are worth.
    pub(crate) fn with_rules(lease: Duration, asked_at: Instant, rules: Rules) -> Self {
        Self {
            rules,
            lease,
            standing: Standing::Held,
            renewed_at: asked_at,
            assured_at: asked_at,
            missed_at: None,
            hurries: false,
            watched: BTreeMap::new(),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// How long to wait before the next attempt to renew: a turn after the last one that succeeded was begun, however long that took. If it
    /// counted from the answer, a slow database alone would make this node look as if it were cut off.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        if self.hurries {
            return Duration::ZERO;
        }
        let left = self.turn().saturating_sub(self.since_renewed(now));
        if left.is_zero() { self.attempt_within(now) } else { left }
    }

    /// What the next renewal is to acknowledge.
    pub(crate) fn missed_at(&self) -> Option<OffsetDateTime> {
        self.missed_at
    }

    /// How long to wait for the answer: to the next turn, or to the deadline. Only briefly if others may take over before the next turn.
    pub(crate) fn attempt_within(&self, now: Instant) -> Duration {
        match self.before_deadline(now) {
            Some(left) => left.min(self.turn()),
            None if self.standing == Standing::Held && self.is_too_late_to_ask(now + self.turn()) => {
                self.lease / BRIEFLY
            }
            None => self.turn(),
        }
    }

    /// For the other nodes' answers.
    pub(crate) fn ask_within(&self) -> Duration {
        self.lease / ASKS
    }

    /// What to do after an attempt to renew.
    pub(crate) fn renewal(&mut self, renewal: Renewal<'_>, now: Instant) -> Act {
        self.hurries = false;
        let event = match renewal {
            // An answer that comes later than that is worth nothing: nobody knows what others have done since.
            Renewal::Done { asked_at, gone_at, others } if now < asked_at + self.until_deadline() => {
                if !self.reaches_database(now) {
                    self.watched.clear();
                }
                (self.renewed_at, self.assured_at) = (asked_at, asked_at);
                self.watch(others, now);
                self.hurries = gone_at.is_some() && gone_at != self.missed_at;
                self.missed_at = gone_at;
                if gone_at.is_some() { Event::Missed } else { Event::Renewed }
            }
            Renewal::Refused => Event::Refused,
            Renewal::Done { .. } | Renewal::Unanswered => self.silence(now),
        };
        self.meet(event)
    }

    fn silence(&self, now: Instant) -> Event {
        if self.before_deadline(now).is_some() {
            Event::Silence
        } else if self.is_too_late_to_ask(now) {
            Event::Overdue
        } else {
            Event::Deadline
        }
    }

    /// What to do after [`Act::Ask`], which was done at that time.
    pub(crate) fn asked(&mut self, are_all_cut_off: bool, asked_at: Instant) -> Act {
        if are_all_cut_off {
            self.assured_at = asked_at;
        }
        self.meet(if are_all_cut_off { Event::AllCutOff } else { Event::NotAll })
    }

    /// What to tell another node that asks.
    pub(crate) fn reaches_database(&self, now: Instant) -> bool {
        self.since_renewed(now) < self.turn() * self.rules.cut_off_turns
    }

    /// The nodes that have not been seen to renew their leases for as long as those last. Nobody, once this node may have told
    /// others that it is cut off.
    pub(crate) fn suspects(&self, now: Instant) -> Vec<Suspect> {
        let is_silent = |row: &Watched| now.saturating_duration_since(row.since) >= row.lease;
        let silent = self.watched.iter().filter(|(_, row)| self.reaches_database(now) && is_silent(row));
        silent.map(|(name, row)| Suspect { name: name.clone(), renewed_at: row.renewed_at }).collect()
    }

    fn watch(&mut self, others: &[Peer], now: Instant) {
        let mut before = std::mem::take(&mut self.watched);
        for Peer { name, renewed_at, lease, .. } in others {
            let same = before.remove(name).filter(|row| (row.renewed_at, row.lease) == (*renewed_at, *lease));
            let since = same.map_or(now, |row| row.since);
            self.watched.insert(name.clone(), Watched { renewed_at: *renewed_at, lease: *lease, since });
        }
    }

    fn meet(&mut self, event: Event) -> Act {
        let rule = self.rules.table.iter().find(|(standing, on, ..)| (*standing, *on) == (self.standing, event));
        let Some((.., next, act)) = rule else { return Act::Wait };
        self.standing = *next;
        *act
    }

    /// How long it can be waited still before it has to be decided whether others could take over.
    fn before_deadline(&self, now: Instant) -> Option<Duration> {
        self.until_deadline().checked_sub(self.since_renewed(now)).filter(|left| !left.is_zero())
    }

    fn until_deadline(&self) -> Duration {
        self.lease - self.turn()
    }

    /// Whether others may take over before they could have answered.
    fn is_too_late_to_ask(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.assured_at) + self.ask_within() >= self.lease
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
        for (standing, event, ..) in TABLE {
            let alike = TABLE.iter().filter(|(of, on, ..)| (*of, *on) == (standing, event));
            assert_eq!(alike.count(), 1, "{standing:?} {event:?}");
        }
        assert!(TABLE.iter().all(|(standing, ..)| *standing != Standing::Lost), "what is lost is lost for good");
        let gives_up = |(_, _, next, act): &Rule| match act {
            Act::GiveUp | Act::BeginAnew => *next == Standing::Fenced,
            Act::Stop => *next == Standing::Lost,
            Act::Serve | Act::Ask => *next == Standing::Held,
            Act::Wait => true,
        };
        assert!(TABLE.iter().all(gives_up));
    }

    #[test]
    fn a_node_gives_up_before_its_lease_ends() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let mut now = start;
        let act = loop {
            now += tenure.pause(now);
            now += tenure.attempt_within(now);
            let act = tenure.renewal(Renewal::Unanswered, now);
            if act != Act::Wait {
                break act;
            }
        };
        assert_eq!(act, Act::Ask);
        assert!(now + tenure.ask_within() < start + LEASE);
        assert_eq!((tenure.asked(false, now), tenure.standing()), (Act::GiveUp, Standing::Fenced));
        assert_eq!(tenure.renewal(Renewal::Unanswered, now + seconds(60)), Act::Wait, "once");
        let back = Renewal::Done { asked_at: now + seconds(90), gone_at: None, others: &[] };
        assert_eq!((tenure.renewal(back, now + seconds(91)), tenure.standing()), (Act::Serve, Standing::Held));
    }

    #[test]
    fn a_node_that_was_missed_serves_when_the_others_know_that_it_knows() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let told = |gone_at| Renewal::Done { asked_at: start, gone_at, others: &[] };
        let missed_at = Some(OffsetDateTime::UNIX_EPOCH);
        assert_eq!((tenure.renewal(told(missed_at), start), tenure.standing()), (Act::BeginAnew, Standing::Fenced));
        assert_eq!((tenure.missed_at(), tenure.pause(start)), (missed_at, Duration::ZERO));
        assert_eq!(tenure.renewal(Renewal::Unanswered, start), Act::Wait);
        assert_eq!((tenure.missed_at(), tenure.pause(start)), (missed_at, seconds(3)), "no haste twice");
        assert_eq!((tenure.renewal(told(missed_at), start), tenure.pause(start)), (Act::Wait, seconds(3)));
        assert_eq!((tenure.renewal(told(None), start), tenure.missed_at()), (Act::Serve, None));
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let late = Renewal::Done { asked_at: start + seconds(3), gone_at: None, others: &[] };
        assert_eq!(tenure.renewal(late, start + seconds(14)), Act::Serve);
        assert_eq!(tenure.pause(start + seconds(14)), seconds(1));
        assert!(!tenure.reaches_database(start + seconds(14)));
    }

    #[test]
    fn an_answer_that_is_read_after_the_deadline_is_none() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let late = Renewal::Done { asked_at: start + seconds(3), gone_at: None, others: &[] };
        assert_eq!(tenure.renewal(late, start + seconds(60)), Act::GiveUp);
        assert_eq!((tenure.renewal(late, start + seconds(63)), tenure.standing()), (Act::Wait, Standing::Fenced));
    }

    #[test]
    fn how_long_renewals_take_does_not_add_to_how_often_they_are_asked_for() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let (takes, mut now, mut suspected_at) = (Duration::from_millis(2_800), start, None);
        while suspected_at.is_none() && now < start + LEASE * 10 {
            let asked_at = now + tenure.pause(now);
            now = asked_at + takes;
            assert!(tenure.reaches_database(now));
            tenure.renewal(Renewal::Done { asked_at, gone_at: None, others: &other(1) }, now);
            suspected_at = tenure.suspects(now).first().map(|_| now);
        }
        let found_after = suspected_at.expect("who is silent is found") - start;
        assert!(found_after <= LEASE + seconds(3) * 2 + takes, "{found_after:?}");
    }

    #[test]
    fn while_nobody_can_take_over_it_is_asked_again_and_again() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        for turn in 4..100 {
            let now = start + seconds(3) * turn;
            assert_eq!(tenure.renewal(Renewal::Unanswered, now), Act::Ask);
            assert_eq!((tenure.asked(true, now), tenure.standing()), (Act::Wait, Standing::Held));
        }
    }

    #[test]
    fn whoever_was_held_up_for_a_lease_asks_nobody() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        assert_eq!(tenure.renewal(Renewal::Unanswered, start + seconds(13)), Act::Ask);
        tenure.asked(true, start + seconds(13));
        assert_eq!(tenure.renewal(Renewal::Unanswered, start + seconds(26)), Act::Ask);
        tenure.asked(true, start + seconds(26));
        assert_eq!(tenure.renewal(Renewal::Unanswered, start + Duration::from_millis(39_500)), Act::GiveUp);
    }

    #[test]
    fn whoever_was_held_up_for_a_lease_waits_only_briefly_for_the_database() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        assert_eq!(tenure.attempt_within(start + seconds(10)), seconds(2));
        let woken = start + Duration::from_millis(14_900);
        let (pause, within) = (tenure.pause(woken), tenure.attempt_within(woken));
        assert!(pause + within < seconds(1), "{pause:?} {within:?}");
        assert_eq!(tenure.renewal(Renewal::Unanswered, woken + within), Act::GiveUp);
        assert_eq!(tenure.attempt_within(woken + within), seconds(3), "nothing is lost any more by patience");
    }

    #[test]
    fn whoever_has_lost_its_name_is_never_back() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        assert_eq!(tenure.renewal(Renewal::Refused, start), Act::Stop);
        tenure.renewal(Renewal::Done { asked_at: start, gone_at: None, others: &[] }, start);
        assert_eq!(tenure.standing(), Standing::Lost);
    }

    #[test]
    fn who_says_nothing_may_reach_the_database_and_who_is_not_known_may_say_so() {
        assert!(are_all_cut_off([], false) && are_all_cut_off([Some(false); 2], false));
        assert!(!are_all_cut_off([Some(false), None], false));
        assert!(!are_all_cut_off([Some(false), Some(true)], false));
        assert!(!are_all_cut_off([Some(false); 2], true));
    }

    fn other(renewed_at: i64) -> [Peer; 1] {
        let renewed_at = OffsetDateTime::from_unix_timestamp(renewed_at).unwrap();
        [Peer {
            name: "two".to_owned(),
            address: None,
            is_draining: false,
            handshakes_per_second: None,
            renewed_at,
            lease: LEASE,
        }]
    }

    #[test]
    fn who_is_seen_to_stay_the_same_for_a_lease_is_suspected() {
        let start = Instant::now();
        let mut tenure = Tenure::new(LEASE, start);
        let mut see = |second: u64, renewed_at: i64| {
            let now = start + seconds(second);
            tenure.renewal(Renewal::Done { asked_at: now, gone_at: None, others: &other(renewed_at) }, now);
            tenure.suspects(now).len()
        };
        assert_eq!([3, 6, 9, 12, 15].map(|second| see(second, 100)), [0; 5]);
        assert_eq!(see(17, 50), 0, "another time, though an earlier one: it has renewed");
        assert_eq!([20, 23, 26, 29].map(|second| see(second, 50)), [0; 4]);
        assert_eq!(see(32, 50), 1);
        assert_eq!(see(38, 50), 0, "it was cut off, and may have said so");
        assert_eq!([41, 44, 47, 50].map(|second| see(second, 50)), [0; 4]);
        assert_eq!(see(53, 50), 1);
    }
}
