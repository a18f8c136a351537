//! When something is tried again that could not be delivered.

use std::time::Duration;

/// After the first attempt.
const FIRST: Duration = Duration::from_secs(5);
/// At most, before the next attempt.
const LONGEST: Duration = Duration::from_secs(3600);

/// After attempt number `attempts`: doubled with each, somewhere between half of it and all, so that what failed together does not
/// come back together. `chance` is evenly distributed over its whole range.
#[must_use]
pub(super) fn delay(attempts: i32, chance: u16) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(16);
    let full = (FIRST * 2_u32.pow(doublings)).min(LONGEST);
    full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u16::MAX))
}

/// What the receiver asks for, within reason: not sooner than by ourselves.
#[must_use]
pub(super) fn at_least(delay: Duration, asked: Option<Duration>) -> Duration {
    delay.max(asked.unwrap_or_default().min(LONGEST))
}

/// A number that nobody can tell beforehand.
pub(super) fn chance() -> u16 {
    let mut bytes = [0; 2];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source has no way to fail once it is seeded");
    u16::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_are_never_all_the_same() {
        assert_eq!(delay(1, 0), FIRST / 2);
        assert_eq!(delay(1, u16::MAX), FIRST);
        assert_eq!(delay(2, u16::MAX), FIRST * 2);
        assert_eq!(delay(5, u16::MAX), FIRST * 16);
        for attempts in [11, 12, 100, i32::MAX] {
            assert_eq!((delay(attempts, 0), delay(attempts, u16::MAX)), (LONGEST / 2, LONGEST));
        }
        assert_eq!(delay(0, u16::MAX), FIRST);
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_but_not_for_ever() {
        assert_eq!(at_least(FIRST, None), FIRST);
        assert_eq!(at_least(FIRST, Some(Duration::from_secs(1))), FIRST);
        assert_eq!(at_least(FIRST, Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert_eq!(at_least(FIRST, Some(Duration::from_secs(1_000_000))), LONGEST);
    }
}
