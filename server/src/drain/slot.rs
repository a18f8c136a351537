//! When each device is to go while a node is drained. Pure: times are parameters, counted from the beginning.

use std::time::Duration;

/// How much of the time the slots lie in. The rest is for devices whose first attempts come to nothing.
const SLOTS_SHARE: f64 = 0.7;
/// The longest between two slots when others can take more: a slower pace spares nobody.
const GAP_MAX: Duration = Duration::from_millis(100);
/// The slowest that other nodes are believed to be.
const PER_SECOND_MIN: f64 = 1.0;

/// Hands out slots, one after another: no faster than others take devices, and no faster than is needed to be done in time.
/// When both cannot be had, time is what is not kept.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    next: Duration,
}

impl Slots {
    /// From the moment on at which nobody new is taken.
    pub(crate) const fn new(begun: Duration) -> Self {
        Self { next: begun }
    }

    /// The slots before `until`, for as many of the devices that have none yet as there are slots. `per_second`: what others
    /// take. `by`: when all are to be gone. What was missed is not made up for: others have no more room for it than before.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        until: Duration,
        by: Duration,
        waiting: usize,
        per_second: f64,
    ) -> Vec<Duration> {
        self.next = self.next.max(now);
        let gap = gap(by.saturating_sub(self.next), waiting, per_second);
        let mut slots = Vec::new();
        while slots.len() < waiting && self.next < until {
            slots.push(self.next);
            self.next += gap;
        }
        slots
    }
}

fn gap(left: Duration, waiting: usize, per_second: f64) -> Duration {
    let waiting = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
    let in_time = (left.mul_f64(SLOTS_SHARE) / waiting).min(GAP_MAX);
    in_time.max(taken_every(per_second))
}

/// The least time between two devices that come to those who take so many.
pub(crate) fn taken_every(per_second: f64) -> Duration {
    // Not a number, below that, too.
    let per_second = if per_second > PER_SECOND_MIN { per_second } else { PER_SECOND_MIN };
    Duration::from_secs_f64(1.0 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);
    const MANY: f64 = 1e6;

    /// The slots of so many devices, handed out tick by tick.
    fn all(count: usize, by: Duration, per_second: f64) -> Vec<Duration> {
        let (mut slots, mut now, mut given) = (Slots::new(Duration::ZERO), Duration::ZERO, Vec::new());
        while given.len() < count {
            given.extend(slots.take(now, now + TICK, by, count - given.len(), per_second));
            now += TICK;
        }
        given
    }

    #[test]
    fn the_time_that_there_is_gets_used() {
        let given = all(10_000, Duration::from_secs(300), MANY);
        let last = *given.last().unwrap();
        assert!((Duration::from_secs(200)..Duration::from_secs(300)).contains(&last), "{last:?}");
        let first_half = given.iter().filter(|slot| **slot < last / 2).count();
        assert!((4_000..=7_500).contains(&first_half), "spread, at first a little faster: {first_half}");
    }

    #[test]
    fn nobody_is_sent_faster_than_others_take() {
        let given = all(1_000, Duration::from_secs(10), 20.0);
        for pair in given.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_millis(50), "{pair:?}");
        }
        assert!(*given.last().unwrap() > Duration::from_secs(49), "although it is too late then");
    }

    #[test]
    fn a_few_devices_are_not_kept_waiting() {
        let given = all(4, Duration::from_secs(300), MANY);
        assert_eq!(given, [0, 100, 200, 300].map(Duration::from_millis));
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let mut slots = Slots::new(Duration::ZERO);
        let (by, hour) = (Duration::from_secs(7200), Duration::from_secs(3600));
        slots.take(Duration::ZERO, TICK, by, 100, 10.0);
        let after = slots.take(hour, hour + TICK * 5, by, 100, 10.0);
        assert_eq!(after.len(), 5);
        assert!(after.iter().all(|slot| *slot >= hour));
    }

    #[test]
    fn others_that_take_more_than_before_are_sent_more() {
        let mut slots = Slots::new(Duration::ZERO);
        let (by, second) = (Duration::from_secs(5), Duration::from_secs(1));
        assert_eq!(slots.take(Duration::ZERO, second, by, 10_000, 10.0).len(), 10);
        assert_eq!(slots.take(second, second * 2, by, 9_990, 100.0).len(), 100);
    }

    #[test]
    fn senseless_figures_harm_nobody() {
        for per_second in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            let mut slots = Slots::new(Duration::ZERO);
            assert_eq!(slots.take(Duration::ZERO, Duration::from_secs(10), Duration::ZERO, 100, per_second).len(), 10);
        }
        let mut slots = Slots::new(Duration::ZERO);
        let at_once = slots.take(Duration::ZERO, TICK, Duration::ZERO, 100, f64::INFINITY);
        assert_eq!(at_once.len(), 100, "late, and nothing in the way");
        assert!(slots.take(Duration::ZERO, TICK, TICK, 0, MANY).is_empty());
    }
}
