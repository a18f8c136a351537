//! When to ask for the next certificate.

use time::{Duration, OffsetDateTime};

/// The part of a certificate's life after which it is renewed at the earliest: what remains is for a device that is off, or
/// a server that is down.
pub const RENEW_AFTER: f64 = 0.7;
/// The part of a life over which a fleet that was enrolled in one hour spreads its renewals.
pub const RENEW_SPREAD: f64 = 0.1;

/// When to renew a certificate with this life. `jitter` is drawn once for each certificate, from 0 to 1 (what lies outside
/// is taken as the nearest end, and what is not a number as 0).
#[must_use]
pub fn renew_at(not_before: OffsetDateTime, not_after: OffsetDateTime, jitter: f64) -> OffsetDateTime {
    let life = (not_after - not_before).max(Duration::ZERO);
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    not_before + life * (RENEW_AFTER + RENEW_SPREAD * jitter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use time::macros::datetime;

    use super::*;

    const BIRTH: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    #[rstest]
    #[case::earliest(0.0, 70)]
    #[case::middle(0.5, 75)]
    #[case::latest(1.0, 80)]
    #[case::below(-3.0, 70)]
    #[case::above(7.0, 80)]
    #[case::not_a_number(f64::NAN, 70)]
    fn renews_between_70_and_80_percent_of_life(#[case] jitter: f64, #[case] day: i64) {
        let at = renew_at(BIRTH, BIRTH + Duration::days(100), jitter);
        assert!((at - (BIRTH + Duration::days(day))).abs() < Duration::SECOND, "{at}");
    }

    #[test]
    fn a_life_that_ends_before_it_begins_is_due_at_once() {
        assert_eq!(renew_at(BIRTH, BIRTH - Duration::DAY, 0.5), BIRTH);
    }

    proptest! {
        #[test]
        fn renews_within_the_life_and_never_panics(seconds in 0i64..2_000_000_000, jitter: f64) {
            let end = BIRTH + Duration::seconds(seconds);
            let at = renew_at(BIRTH, end, jitter);
            prop_assert!(BIRTH <= at && at <= end);
        }
    }
}
