//! Rates: token buckets by key, with a bound on the number of keys. Unlike the crates for this it can look without taking,
//! so that failures count and successes do not, and it holds its bound whatever keys a peer makes up.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often, at most, a full map is searched for buckets that can go.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// How many at once.
    pub(crate) burst: u32,
    /// How many on and on.
    pub(crate) per_second: f64,
}

/// Ask again after this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded(pub(crate) Duration);

#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    keys_max: usize,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    buckets: HashMap<K, Bucket>,
    /// For keys that have no place in the map.
    overflow: Option<Bucket>,
    swept_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(self, rate: Rate, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        Self { left: (self.left + gained).min(f64::from(rate.burst)), at: now }
    }

    fn check(self, rate: Rate) -> Result<(), Exceeded> {
        if self.left >= 1.0 {
            return Ok(());
        }
        Err(Exceeded(Duration::from_secs_f64((1.0 - self.left) / rate.per_second)))
    }
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    pub(crate) fn new(rate: Rate, keys_max: usize) -> Self {
        let state = State { buckets: HashMap::new(), overflow: None, swept_at: None };
        Self { rate, keys_max, state: Mutex::new(state) }
    }

    /// Whether [`Self::take`] would succeed.
    pub(crate) fn look(&self, key: K, now: Instant) -> Result<(), Exceeded> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = state.buckets.len() >= self.keys_max;
        let bucket = state.buckets.get(&key).copied().or(if is_full { state.overflow } else { None });
        bucket.map_or(Ok(()), |bucket| bucket.refilled(self.rate, now).check(self.rate))
    }

    /// Takes one.
    pub(crate) fn take(&self, key: K, now: Instant) -> Result<(), Exceeded> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = state.bucket_mut(key, self.rate, self.keys_max, now);
        *bucket = bucket.refilled(self.rate, now);
        bucket.check(self.rate)?;
        bucket.left -= 1.0;
        Ok(())
    }
}

impl<K: Copy + Eq + Hash> State<K> {
    fn bucket_mut(&mut self, key: K, rate: Rate, keys_max: usize, now: Instant) -> &mut Bucket {
        let full = Bucket { left: f64::from(rate.burst), at: now };
        if !self.buckets.contains_key(&key) && self.buckets.len() >= keys_max {
            self.sweep(rate, now);
            if self.buckets.len() >= keys_max {
                return self.overflow.get_or_insert(full);
            }
        }
        self.buckets.entry(key).or_insert(full)
    }

    /// A bucket that is full again says no more than one that is not there.
    fn sweep(&mut self, rate: Rate, now: Instant) {
        if self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < SWEEP_EVERY) {
            return;
        }
        self.swept_at = Some(now);
        self.buckets.retain(|_, bucket| bucket.refilled(rate, now).left < f64::from(rate.burst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 2, per_second: 0.5 };

    #[test]
    fn refuses_beyond_the_burst_and_says_when_to_ask_again() {
        let (buckets, start) = (Buckets::new(RATE, 10), Instant::now());
        assert_eq!(buckets.take('a', start), Ok(()));
        assert_eq!(buckets.take('a', start), Ok(()));
        assert_eq!(buckets.take('a', start), Err(Exceeded(Duration::from_secs(2))));
        assert_eq!(buckets.take('b', start), Ok(()), "others are not concerned");
        assert_eq!(buckets.take('a', start + Duration::from_secs(2)), Ok(()));
    }

    #[test]
    fn looking_takes_nothing() {
        let (buckets, start) = (Buckets::new(RATE, 10), Instant::now());
        for _ in 0..10 {
            assert_eq!(buckets.look('a', start), Ok(()));
        }
        buckets.take('a', start).unwrap();
        buckets.take('a', start).unwrap();
        assert!(buckets.look('a', start).is_err());
    }

    #[test]
    fn made_up_keys_share_one_bucket_once_the_map_is_full() {
        let (buckets, start) = (Buckets::new(RATE, 3), Instant::now());
        for key in 0..3 {
            buckets.take(key, start).unwrap();
        }
        buckets.take(100, start).unwrap();
        buckets.take(101, start).unwrap();
        assert!(buckets.take(102, start).is_err());
        assert!(buckets.look(103, start).is_err());
        assert_eq!(buckets.take(0, start), Ok(()), "whoever was there before keeps its own");
        assert_eq!(buckets.state.lock().unwrap().buckets.len(), 3);
    }

    #[test]
    fn forgets_keys_that_were_quiet() {
        let (buckets, start) = (Buckets::new(RATE, 3), Instant::now());
        for key in 0..3 {
            buckets.take(key, start).unwrap();
        }
        buckets.take(100, start + Duration::from_secs(60)).unwrap();
        assert_eq!(buckets.state.lock().unwrap().buckets.len(), 1);
    }
}
