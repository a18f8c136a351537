use proptest::prelude::*;

use super::*;

const SETTINGS: Settings = Settings { attempts_per_hour: 60, better_after: Duration::from_secs(1800) };
const BLOCKED: Failure = Failure { is_answer: false, is_refusal: false, retry_after: None };
const BUSY: Failure = Failure { is_answer: true, is_refusal: false, retry_after: Some(Duration::from_secs(7)) };
const REFUSED: Failure = Failure { is_answer: true, is_refusal: true, retry_after: None };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fail(ladder: &mut Ladder, now: Instant, failure: Failure) -> (usize, Duration) {
    let rung = ladder.begin(now);
    (rung, ladder.failed(now, failure, 1.0).unwrap())
}

fn link(ladder: &mut Ladder, now: Instant) -> usize {
    let rung = ladder.begin(now);
    ladder.welcomed(now, 0.5);
    rung
}

#[test]
fn a_pass_is_quick_and_passes_back_off() {
    let mut ladder = Ladder::new(SETTINGS, 3, None);
    let now = Instant::now();
    let tried: Vec<_> =
        (0..9).map(|_| fail(&mut ladder, now, BLOCKED)).map(|(rung, wait)| (rung, wait.as_secs())).collect();
    assert_eq!(tried, [(0, 2), (1, 2), (2, 1), (0, 2), (1, 2), (2, 2), (0, 2), (1, 2), (2, 4)]);
}

#[test]
fn one_transport_alone_backs_off_as_ever() {
    let mut ladder = Ladder::new(SETTINGS, 1, None);
    let waits: Vec<u64> = (0..10).map(|_| fail(&mut ladder, Instant::now(), BLOCKED).1.as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
}

#[test]
fn what_worked_on_this_network_is_tried_first() {
    let mut ladder = Ladder::new(SETTINGS, 3, Some(2));
    let now = Instant::now();
    let tried: Vec<usize> = (0..4).map(|_| fail(&mut ladder, now, BLOCKED).0).collect();
    assert_eq!(tried, [2, 0, 1, 2]);
    ladder.moved(Some(1));
    assert_eq!(fail(&mut ladder, now, BLOCKED).0, 1);
    ladder.moved(Some(7));
    assert_eq!(fail(&mut ladder, now, BLOCKED).0, 0);
}

#[test]
fn a_server_that_answers_is_asked_again_on_the_same_rung_but_not_for_ever() {
    let mut ladder = Ladder::new(SETTINGS, 2, None);
    let now = Instant::now();
    let tried: Vec<_> = (0..5).map(|_| fail(&mut ladder, now, BUSY)).collect();
    assert_eq!(tried.iter().map(|(rung, _)| *rung).collect::<Vec<_>>(), [0, 0, 0, 0, 1]);
    assert!(tried.iter().all(|(_, wait)| *wait >= seconds(7)), "{tried:?}");
    let (_, wait) = fail(&mut ladder, now, REFUSED);
    assert!(wait >= seconds(13 * 60), "{wait:?}");
}

#[test]
fn a_better_rung_is_tried_beside_the_link_and_takes_its_place() {
    let mut ladder = Ladder::new(SETTINGS, 3, Some(2));
    let begun = Instant::now();
    assert_eq!(link(&mut ladder, begun), 2);
    assert_eq!(ladder.prove(begun + seconds(60), seconds(50)), None);
    assert_eq!(ladder.prove(begun + seconds(70), seconds(69)), Some(2));
    let due = ladder.poll_timeout().unwrap();
    assert!((seconds(1620)..=seconds(1980)).contains(&(due - begun)), "{:?}", due - begun);
    assert!(!ladder.is_better_due(due - seconds(1)) && ladder.is_better_due(due));
    assert_eq!(ladder.begin(due), 0);
    assert_eq!(ladder.poll_timeout(), None, "one at a time");
    assert_eq!(ladder.failed(due, BLOCKED, 1.0), None, "there is a link");
    let next = ladder.poll_timeout().unwrap();
    assert!(next <= due + STEP_WITHIN && ladder.is_in_use(2));
    assert_eq!(ladder.begin(next), 1);
    assert_eq!(ladder.failed(next, BLOCKED, 0.5), None);
    let later = ladder.poll_timeout().unwrap();
    assert!(later - next >= seconds(1620), "both were tried");
    assert_eq!(link(&mut ladder, later), 0);
    assert!(!ladder.is_in_use(2));
    assert_eq!(ladder.prove(later + seconds(60), seconds(60)), Some(0));
    assert_eq!(ladder.poll_timeout(), None, "nothing is better");
}

#[test]
fn a_link_that_is_lost_while_a_better_one_is_tried_leaves_that_attempt_alone() {
    let mut ladder = Ladder::new(SETTINGS, 2, Some(1));
    let begun = Instant::now();
    link(&mut ladder, begun);
    let due = begun + seconds(2000);
    assert_eq!(ladder.begin(due), 0);
    assert_eq!(ladder.lost(BLOCKED, seconds(1999), 1.0), None);
    let wait = ladder.failed(due, BLOCKED, 1.0).unwrap();
    assert!(wait <= seconds(2), "{wait:?}");
}

#[test]
fn only_a_minute_of_proven_traffic_makes_waits_short_again() {
    let mut ladder = Ladder::new(SETTINGS, 1, None);
    let now = Instant::now();
    let mut waits = Vec::new();
    for proven in [0, 5, 59, 59, 60, 0] {
        link(&mut ladder, now);
        waits.push(ladder.lost(BLOCKED, seconds(proven), 1.0).unwrap().as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 1, 2]);
}

#[test]
fn a_transport_whose_links_do_not_last_is_left_for_the_next_one() {
    let mut ladder = Ladder::new(SETTINGS, 2, None);
    let now = Instant::now();
    assert_eq!(link(&mut ladder, now), 0);
    ladder.lost(BLOCKED, seconds(5), 1.0);
    assert_eq!(link(&mut ladder, now), 1);
    ladder.lost(BLOCKED, seconds(61), 1.0);
    assert_eq!(link(&mut ladder, now), 1, "it has proven itself");
}

#[test]
fn at_the_cap_a_better_rung_waits_and_the_link_stays() {
    let mut ladder = Ladder::new(Settings { attempts_per_hour: 2, better_after: seconds(1) }, 2, None);
    let begun = Instant::now();
    assert_eq!(fail(&mut ladder, begun, BLOCKED).0, 0);
    let begun = begun + PAUSE_MIN;
    assert_eq!(link(&mut ladder, begun), 1);
    let due = begun + seconds(2);
    assert!(!ladder.is_better_due(due), "there were attempts enough for now");
    ladder.prove(begun + PROVEN_FOR, PROVEN_FOR);
    let at = ladder.poll_timeout().unwrap();
    assert_eq!(at, ladder.not_before(due));
    assert!(ladder.is_better_due(at));
    assert_eq!(ladder.begin(at), 0);
}

/// The cap is what it says, and yet a network that comes and goes must not silence a device for the rest of the hour.
#[test]
fn after_a_bad_minute_attempts_come_evenly_spread() {
    let mut ladder = Ladder::new(SETTINGS, 1, None);
    let begun = Instant::now();
    let mut tried = Vec::new();
    for _ in 0..200 {
        let now = ladder.not_before(tried.last().map_or(begun, |last| *last));
        tried.push(now);
        link(&mut ladder, now);
        ladder.lost(BLOCKED, seconds(60), 0.0);
    }
    let pauses: Vec<Duration> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[..30].iter().all(|pause| *pause == PAUSE_MIN), "half of them at will");
    assert!(pauses[30..].iter().all(|pause| *pause < seconds(121)), "{:?}", pauses[30..].iter().max());
    let in_an_hour = tried.iter().filter(|at| **at - begun < HOUR).count();
    assert_eq!(in_an_hour, SETTINGS.attempts_per_hour);

    // What was not used comes back.
    let later = tried[199] + HOUR;
    link(&mut ladder, later);
    assert_eq!(ladder.not_before(later), later + PAUSE_MIN);
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Fails(Failure, u64),
    Lasts(u64, Failure),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let failure = prop_oneof![
        5 => Just(BLOCKED), 2 => Just(BUSY), 1 => Just(REFUSED),
        1 => Just(Failure { is_answer: true, retry_after: Some(Duration::MAX), is_refusal: false }),
    ];
    prop_oneof![
        (failure.clone(), 0_u64..80).prop_map(|(failure, takes)| Outcome::Fails(failure, takes)),
        (prop_oneof![0_u64..10, 0_u64..200, 0_u64..5000], failure)
            .prop_map(|(lasts, failure)| Outcome::Lasts(lasts, failure)),
    ]
}

/// What the agent does with a ladder, with a network that does as it is told. Gives when which rung was tried.
fn run(rungs: usize, per_hour: usize, first: usize, outcomes: &[Outcome], jitter: f64) -> Vec<(Instant, usize)> {
    let settings = Settings { attempts_per_hour: per_hour, ..SETTINGS };
    let mut ladder = Ladder::new(settings, rungs, Some(first));
    let (mut now, mut tried) = (Instant::now(), Vec::new());
    for outcome in outcomes {
        now = ladder.not_before(now);
        tried.push((now, ladder.begin(now)));
        match *outcome {
            Outcome::Fails(failure, takes) => {
                now += seconds(takes);
                now += ladder.failed(now, failure, jitter).unwrap();
            }
            Outcome::Lasts(lasts, failure) => {
                ladder.welcomed(now, jitter);
                let (welcomed, ends) = (now, now + seconds(lasts));
                while let Some(at) = ladder.poll_timeout().map(|at| at.max(now)).filter(|at| *at < ends) {
                    now = at;
                    ladder.prove(now, now - welcomed);
                    if ladder.is_better_due(now) {
                        tried.push((now, ladder.begin(now)));
                        assert_eq!(ladder.failed(now, BLOCKED, jitter), None);
                    }
                }
                now = now.max(ends);
                now += ladder.lost(failure, seconds(lasts), jitter).unwrap();
            }
        }
    }
    tried
}

proptest! {
    #[test]
    fn attempts_are_never_a_tight_loop_and_never_more_than_the_cap(
        rungs in 1_usize..4,
        per_hour in 1_usize..70,
        first in 0_usize..4,
        outcomes in proptest::collection::vec(outcome(), 1..150),
        // Of all the dice, those that always fall the same are the worst.
        jitter in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0],
    ) {
        let tried = run(rungs, per_hour, first, &outcomes, jitter);
        for pair in tried.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 >= PAUSE_MIN, "{pair:?}");
        }
        for window in tried.windows(per_hour + 1) {
            prop_assert!(window[per_hour].0 - window[0].0 >= HOUR, "{window:?}");
        }
    }

    #[test]
    fn every_rung_is_tried_in_the_end(
        rungs in 1_usize..4,
        first in 0_usize..4,
        before in proptest::collection::vec(outcome(), 0..20),
        failures in proptest::collection::vec(prop_oneof![Just(BLOCKED), Just(BUSY), Just(REFUSED)], 24),
        jitter in 0.0..1.0,
    ) {
        let count = before.len();
        let outcomes: Vec<_> = before.into_iter().chain(failures.into_iter().map(|failure| Outcome::Fails(failure, 1))).collect();
        let tried = run(rungs, 60, first, &outcomes, jitter);
        let mut after: Vec<usize> = tried[tried.len() - (outcomes.len() - count)..].iter().map(|(_, rung)| *rung).collect();
        after.sort_unstable();
        after.dedup();
        prop_assert_eq!(after, (0..rungs).collect::<Vec<_>>());
    }
}
