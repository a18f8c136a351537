use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

fn measured(value: f64, seconds: i64) -> Reading {
    Reading::Measured { value, at: at(seconds) }
}

/// Above 80, clear at 70, for a minute.
const HOT: Line = Line { comparison: Comparison::Above, value: 80.0, clear_value: 70.0, lasting: Duration::MINUTE };

fn states(line: &Line, readings: &[Reading]) -> Vec<State> {
    let mut standing = Standing::well(at(0));
    let mut states = Vec::new();
    for reading in readings {
        standing = standing.after(*reading, line);
        states.push(standing.state);
    }
    states
}

#[test]
fn every_pair_has_one_transition() {
    for state in [State::Ok, State::Pending, State::Firing] {
        for seen in [Seen::Across, Seen::AcrossLong, Seen::Between, Seen::Clear, Seen::Silent, Seen::Exempt] {
            let transitions = State::TRANSITIONS.iter().filter(|(from, when, _)| (*from, *when) == (state, seen));
            assert_eq!(transitions.count(), 1, "{state:?} {seen:?}");
        }
        assert_eq!(State::named(state.name()), Some(state));
    }
}

#[test]
fn it_fires_after_it_has_lasted_and_ends_at_the_clear_value() {
    use State::{Firing, Ok, Pending};
    let readings = [
        measured(80.0, 0),
        measured(81.0, 10),
        measured(81.0, 69),
        measured(81.0, 70),
        measured(75.0, 80),
        measured(70.0, 90),
        measured(75.0, 100),
    ];
    assert_eq!(states(&HOT, &readings), [Ok, Pending, Pending, Firing, Firing, Ok, Ok]);
    // What is not seen for a while, or dips, begins again.
    let readings =
        [measured(81.0, 0), Reading::Silent(at(30)), measured(81.0, 61), measured(75.0, 100), measured(81.0, 125)];
    assert_eq!(states(&HOT, &readings), [Pending, Ok, Pending, Ok, Pending]);
    // What fires, fires on without a word; and ends when the rule is not for it any more.
    let readings = [measured(81.0, 0), measured(81.0, 60), Reading::Silent(at(9999)), Reading::Exempt(at(10000))];
    assert_eq!(states(&HOT, &readings), [Pending, Firing, Firing, Ok]);
    // The same reading over and over lasts no time.
    assert_eq!(states(&HOT, &[measured(81.0, 0); 5]), [Pending; 5]);
    // The clock was set back: it lasts the longer.
    assert_eq!(
        states(&HOT, &[measured(81.0, 100), measured(81.0, 10), measured(81.0, 160)]),
        [Pending, Pending, Firing]
    );
}

#[test]
fn below_is_above_upside_down() {
    let line = Line { comparison: Comparison::Below, value: 10.0, clear_value: 20.0, lasting: Duration::ZERO };
    let readings = [measured(10.0, 0), measured(9.0, 1), measured(15.0, 2), measured(20.0, 3)];
    assert_eq!(states(&line, &readings), [State::Ok, State::Firing, State::Firing, State::Ok]);
}

#[test]
fn a_crossing_that_is_over_before_it_is_told_is_remembered_and_one_that_is_told_is_no_news() {
    let line = Line { lasting: Duration::ZERO, ..HOT };
    let passing = Standing::well(at(0)).after(measured(90.0, 1), &line).after(measured(0.0, 2), &line);
    assert_eq!((passing.state, passing.untold), (State::Ok, Some(Crossing { at: at(1), value: Some(90.0) })));
    assert!(!passing.is_over());
    let again = passing.after(measured(95.0, 3), &line);
    assert_eq!(again.untold, passing.untold, "it is told when it began");
    let told = Standing { told: true, untold: None, ..again };
    let back = told.after(measured(0.0, 4), &line).after(measured(90.0, 5), &line);
    assert_eq!((back.state, back.untold, back.told), (State::Firing, None, true));
}

fn reading() -> impl Strategy<Value = (Option<f64>, i64)> {
    (prop_oneof![3 => (60.0..90.0).prop_map(Some), 1 => Just(None)], 0..50_i64)
}

proptest! {
    #[test]
    fn it_fires_when_and_only_when_it_was_across_for_so_long(
        readings in prop::collection::vec(reading(), 0..60), lasting in 0..120_i64
    ) {
        let line = Line { lasting: Duration::seconds(lasting), ..HOT };
        let (mut standing, mut now) = (Standing::well(at(0)), 0);
        // Since when all readings were across, and whether it fires, as it is told in words.
        let (mut across, mut fires): (Option<i64>, bool) = (None, false);
        for (value, step) in readings {
            now += step;
            let reading = value.map_or(Reading::Silent(at(now)), |value| measured(value, now));
            standing = standing.after(reading, &line);
            prop_assert_eq!(standing, standing.after(reading, &Line { lasting: Duration::MAX, ..line }), "read again, it is the same");
            across = value.filter(|value| *value > line.value).map(|_| across.unwrap_or(now));
            let is_clear = value.is_some_and(|value| value <= line.clear_value);
            fires = if fires { !is_clear } else { across.is_some_and(|since| now - since >= lasting) };
            if !fires && standing.state == State::Pending {
                prop_assert_eq!(Some(standing.since), across.map(at));
            }
            prop_assert_eq!(standing.state == State::Firing, fires);
            prop_assert!(standing.since <= at(now));
            prop_assert_eq!(standing.is_over(), standing.state == State::Ok && standing.untold.is_none());
        }
    }
}
