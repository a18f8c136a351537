//! When to dial again: exponential back-off with full jitter, so that a fleet that lost its server does not come back as one.

use std::time::Duration;

use aws_lc_rs::rand;

/// The first attempt after a loss comes within this.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// How long traffic must have been proven on a link before its loss counts as the first one.
pub const PROVEN_FOR: Duration = Duration::from_secs(60);

/// How often it went wrong in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait before the next attempt: anything up to twice what it was before. `jitter` is from 0 to 1.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let ceiling = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(jitter.clamp(0.0, 1.0))
    }

    /// Begins anew if traffic was proven for `PROVEN_FOR` on the link. A server that takes a link and drops it would be
    /// hammered otherwise.
    pub fn link_ended(&mut self, proven_for: Duration) {
        if proven_for >= PROVEN_FOR {
            self.failures = 0;
        }
    }
}

/// A random number from 0 to 1.
#[must_use]
pub fn jitter() -> f64 {
    let mut random = [0; 4];
    // Without randomness there is no TLS either; the middle is as good as any.
    if rand::fill(&mut random).is_err() {
        return 0.5;
    }
    f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX)
}

/// A duration that is at most a tenth longer or shorter.
#[must_use]
pub fn about(duration: Duration, jitter: f64) -> Duration {
    duration.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u64> = (0..12).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let mut tired = Backoff { failures: u32::MAX };
        assert_eq!((tired.next(1.0), tired.next(0.0)), (WAIT_MAX, Duration::ZERO));
    }

    #[test]
    fn only_a_minute_of_proven_traffic_makes_waits_short_again() {
        let mut backoff = Backoff { failures: 8 };
        backoff.link_ended(Duration::from_secs(59));
        assert_eq!(backoff.next(1.0), Duration::from_secs(256));
        backoff.link_ended(Duration::from_secs(60));
        assert_eq!(backoff.next(0.5), Duration::from_millis(500));
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let drawn: Vec<f64> = (0..1000).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|jitter| (0.0..=1.0).contains(jitter)));
        assert!(drawn.iter().any(|jitter| *jitter < 0.1) && drawn.iter().any(|jitter| *jitter > 0.9));
    }
}
