//! By hand, and by chance: whatever comes in whatever order, the totals add up, nothing is begun twice, too soon or too often.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const START: OffsetDateTime = time::macros::datetime!(2026-11-24 12:00 UTC);

const PLAN: Plan = Plan { canaries: 1, batch: 2, rate: 100, abort_after: 2 };

/// Lets it go on, and ends all that was begun like this. Says what was begun.
fn round(rollout: &mut Rollout, outcome: Outcome) -> Vec<usize> {
    let begun = rollout.step(START).begin;
    for target in &begun {
        rollout.record(*target, outcome);
    }
    begun
}

#[test]
fn every_state_is_reached_and_the_final_ones_are_left_by_nothing() {
    let reached: Vec<_> = State::TRANSITIONS.iter().map(|(_, _, to)| *to).collect();
    for (from, event, to) in State::TRANSITIONS {
        assert!(*from == State::Planned || reached.contains(from), "{from:?}");
        assert_eq!(from.after(*event), Some(*to), "{from:?} and {event:?} are in the table twice");
        assert_ne!(from, to);
    }
    let finals = [State::Finished, State::Cancelled, State::Expired];
    assert!(reached.iter().filter(|state| state.is_final()).all(|state| finals.contains(state)));
}

#[test]
fn the_canaries_come_first_and_each_batch_after_the_one_before() {
    let mut rollout = Rollout::new(PLAN, 6);
    assert_eq!(rollout.step(START).begin, [0]);
    assert_eq!(rollout.step(START), Step::default(), "nothing has changed");
    rollout.record(0, Outcome::Succeeded);
    assert_eq!(rollout.step(START).begin, [1, 2]);
    rollout.record(2, Outcome::Failed);
    assert!(rollout.step(START).begin.is_empty(), "one of the batch is under way");
    rollout.record(1, Outcome::Skipped);
    assert_eq!(round(&mut rollout, Outcome::Succeeded), [3, 4]);
    assert_eq!(round(&mut rollout, Outcome::Succeeded), [5]);
    let expected = Totals { waiting: 0, under_way: 0, succeeded: 4, failed: 1, skipped: 1 };
    assert_eq!((rollout.state(), rollout.totals()), (State::Finished, expected));
}

#[rstest]
#[case("a canary that failed", 2, &[Outcome::Succeeded, Outcome::Failed], State::Halted)]
#[case("no canary that was there", 2, &[Outcome::Skipped, Outcome::Skipped], State::Halted)]
#[case("one canary that was there", 2, &[Outcome::Skipped, Outcome::Succeeded], State::Running)]
#[case("as many as may fail", 0, &[Outcome::Failed, Outcome::Succeeded], State::Running)]
#[case("one more", 0, &[Outcome::Failed, Outcome::Failed], State::Halted)]
#[case("who is not there has not failed", 0, &[Outcome::Skipped, Outcome::Skipped], State::Running)]
fn too_many_that_failed_halt_it(
    #[case] what: &str,
    #[case] canaries: usize,
    #[case] outcomes: &[Outcome],
    #[case] expected: State,
) {
    let mut rollout = Rollout::new(Plan { canaries, ..PLAN }, 9);
    assert_eq!(rollout.step(START).begin, [0, 1]);
    for (target, outcome) in outcomes.iter().enumerate() {
        rollout.record(target, *outcome);
    }
    assert_eq!(rollout.state(), expected, "{what}");
    assert_eq!(rollout.step(START).begin.is_empty(), expected == State::Halted, "{what}");
}

#[test]
fn whoever_lets_it_go_on_has_seen_what_failed_and_no_more() {
    let mut rollout = Rollout::new(Plan { canaries: 0, ..PLAN }, 9);
    round(&mut rollout, Outcome::Failed);
    assert_eq!(rollout.handle(Event::Pause), Err(NotNow(State::Halted)));
    rollout.handle(Event::Resume).unwrap();
    assert_eq!(rollout.step(START).begin, [2, 3]);
    rollout.record(2, Outcome::Failed);
    // A pause forgives nothing.
    rollout.handle(Event::Pause).unwrap();
    rollout.handle(Event::Resume).unwrap();
    assert_eq!(rollout.state(), State::Running);
    rollout.record(3, Outcome::Failed);
    assert_eq!((rollout.state(), rollout.totals().failed), (State::Halted, 4));
    assert_eq!(rollout.handle(Event::Pause), Err(NotNow(State::Halted)));
}

#[rstest]
#[case(Event::Cancel, State::Cancelling, State::Cancelled)]
#[case(Event::Expire, State::Expiring, State::Expired)]
fn what_is_under_way_ends_as_it_does_and_nothing_else_begins(
    #[case] event: Event,
    #[case] during: State,
    #[case] after: State,
) {
    let mut rollout = Rollout::new(PLAN, 4);
    round(&mut rollout, Outcome::Succeeded);
    assert_eq!(rollout.step(START).begin, [1, 2]);
    rollout.handle(event).unwrap();
    assert_eq!((rollout.state(), rollout.totals().skipped), (during, 1));
    assert!(rollout.step(START).begin.is_empty());
    rollout.record(1, Outcome::Succeeded);
    rollout.record(2, Outcome::Failed);
    let expected = Totals { waiting: 0, under_way: 0, succeeded: 2, failed: 1, skipped: 1 };
    assert_eq!((rollout.state(), rollout.totals()), (after, expected));
    assert_eq!(rollout.handle(Event::Resume), Err(NotNow(after)));
}

#[test]
fn no_more_are_begun_than_the_rate_allows_also_by_a_clock_that_was_set_back() {
    let mut rollout = Rollout::new(Plan { canaries: 0, batch: 9, rate: 2, abort_after: 9 }, 5);
    let step = rollout.step(START);
    assert_eq!(step, Step { begin: vec![0, 1], again_at: Some(START + RATE_WINDOW) });
    rollout.record(0, Outcome::Succeeded);
    for earlier in [Duration::ZERO, Duration::HOUR] {
        assert!(rollout.step(START - earlier).begin.is_empty());
    }
    assert_eq!(rollout.step(START + RATE_WINDOW).begin, [2, 3]);
    assert_eq!(rollout.step(START + 2 * RATE_WINDOW), Step { begin: vec![4], again_at: None });
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Wait(i64),
    Step,
    /// The node is gone after it has decided, and before it has stored anything.
    LostStep,
    /// Of any target, begun or not, once or again.
    Result(usize, Outcome),
    Handle(Event),
}

fn plan() -> impl Strategy<Value = Plan> {
    (0..4usize, 0..5usize, 0..6usize, 0..4usize).prop_map(|(canaries, batch, rate, abort_after)| Plan {
        canaries,
        batch,
        rate,
        abort_after,
    })
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![4 => Just(Outcome::Succeeded), 1 => Just(Outcome::Failed), 1 => Just(Outcome::Skipped)];
    let event = prop_oneof![
        4 => Just(Event::Pause),
        6 => Just(Event::Resume),
        1 => Just(Event::Cancel),
        1 => Just(Event::Expire),
    ];
    prop_oneof![
        2 => (0..90i64).prop_map(Act::Wait),
        6 => Just(Act::Step),
        1 => Just(Act::LostStep),
        9 => (0..16usize, outcome).prop_map(|(target, outcome)| Act::Result(target, outcome)),
        2 => event.prop_map(Act::Handle),
    ]
}

/// What is to hold, reckoned beside the rollout from what it was told and what it did.
struct Watch {
    plan: Plan,
    now: OffsetDateTime,
    begun: BTreeSet<usize>,
    begun_at: Vec<OffsetDateTime>,
    /// Failures since somebody last let it go on.
    failed: usize,
    was_let_on: bool,
}

impl Watch {
    fn batch_of(&self, target: usize) -> usize {
        target.checked_sub(self.plan.canaries).map_or(0, |later| later / self.plan.batch.max(1) + 1)
    }

    fn act(&mut self, rollout: &mut Rollout, act: Act) {
        let (before, state) = (rollout.clone(), rollout.state());
        match act {
            Act::Wait(seconds) => self.now += Duration::seconds(seconds),
            Act::Step => {
                let step = rollout.step(self.now);
                self.look_at(rollout, &step);
            }
            Act::LostStep => {
                drop(rollout.clone().step(self.now));
                *rollout = Rollout::restore(self.plan, before.stored(), before.targets().to_vec());
                assert_eq!(*rollout, before, "not all of it is stored");
            }
            Act::Result(target, outcome) => {
                let is_under_way = matches!(before.targets().get(target), Some(Target::UnderWay { .. }));
                rollout.record(target, outcome);
                self.failed += usize::from(is_under_way && outcome == Outcome::Failed);
                assert!(is_under_way || *rollout == before, "{target} has no command, and got an end");
            }
            Act::Handle(event) => {
                let is_possible = state.after(event).is_some();
                assert_eq!(rollout.handle(event).is_ok(), is_possible);
                if is_possible && (state, event) == (State::Halted, Event::Resume) {
                    (self.failed, self.was_let_on) = (0, true);
                }
            }
        }
        let totals = rollout.totals();
        assert_eq!(totals.all(), before.targets().len(), "the totals do not add up");
        let begun = rollout.targets().iter().filter(|target| target.begun_at().is_some()).count();
        assert_eq!(begun, self.begun.len(), "not what it said that it begins");
        for (was, is) in before.targets().iter().zip(rollout.targets()) {
            assert!(!was.is_over() || was == is, "what had ended has changed: {was:?}, {is:?}");
        }
        if rollout.state().is_final() {
            assert_eq!(totals.waiting + totals.under_way, 0);
        }
        assert!(!state.is_final() || *rollout == before, "what was final has changed");
    }

    fn look_at(&mut self, rollout: &Rollout, step: &Step) {
        let Some(first) = step.begin.first() else { return };
        assert_eq!(rollout.state(), State::Running);
        assert!(self.failed < self.plan.abort_after.max(1), "{} have failed", self.failed);
        let batch = self.batch_of(*first);
        for target in &step.begin {
            assert!(self.begun.insert(*target), "{target} is begun twice");
            assert_eq!(self.batch_of(*target), batch);
            self.begun_at.push(self.now);
        }
        for (place, target) in rollout.targets().iter().enumerate() {
            assert!(self.batch_of(place) >= batch || target.is_over(), "{place} of an earlier batch is not over");
        }
        let is_proven = rollout.targets()[..self.plan.canaries.min(rollout.targets().len())]
            .iter()
            .any(|target| matches!(target, Target::Succeeded { .. }));
        assert!(batch == 0 || self.plan.canaries == 0 || is_proven || self.was_let_on, "no canary has succeeded");
        let within = self.begun_at.iter().filter(|at| **at > self.now - RATE_WINDOW).count();
        assert!(within <= self.plan.rate.max(1), "{within} within a minute");
    }
}

proptest! {
    #[test]
    fn whatever_comes_in_whatever_order(plan in plan(), targets in 0..16usize, acts in prop::collection::vec(act(), 0..120)) {
        let mut rollout = Rollout::new(plan, targets);
        let mut watch =
            Watch { plan, now: START, begun: BTreeSet::new(), begun_at: Vec::new(), failed: 0, was_let_on: false };
        for act in acts {
            watch.act(&mut rollout, act);
        }
        // Whatever it has come to, it ends when it is let on and everything succeeds.
        for _ in 0..4 * (targets + 1) {
            if matches!(rollout.state(), State::Paused | State::Halted) {
                watch.act(&mut rollout, Act::Handle(Event::Resume));
            }
            watch.act(&mut rollout, Act::Step);
            for target in 0..targets {
                watch.act(&mut rollout, Act::Result(target, Outcome::Succeeded));
            }
            watch.act(&mut rollout, Act::Wait(RATE_WINDOW.whole_seconds()));
        }
        prop_assert!(rollout.state().is_final(), "{:?}", rollout);
    }

    #[test]
    fn all_are_reached_as_fast_as_the_rate_allows(plan in plan(), targets in 1..40usize) {
        let (mut rollout, mut now) = (Rollout::new(plan, targets), START);
        while rollout.state() == State::Running {
            let step = rollout.step(now);
            for target in &step.begin {
                rollout.record(*target, Outcome::Succeeded);
            }
            now = step.again_at.unwrap_or(now);
            prop_assert!(!step.begin.is_empty() || step.again_at.is_some(), "it waits for nothing: {rollout:?}");
        }
        prop_assert_eq!((rollout.state(), rollout.totals().succeeded), (State::Finished, targets));
        let minutes = i32::try_from((targets - 1) / plan.rate.max(1)).unwrap();
        prop_assert_eq!(now - START, RATE_WINDOW * minutes);
    }
}
