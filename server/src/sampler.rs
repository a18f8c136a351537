//! Logs of what strangers can cause: one now and then, with how many there were besides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// At most one a second is logged; the metrics count all.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Lets one event through now and then, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    last: Mutex<Option<Instant>>,
    unlogged: AtomicU64,
}

impl Sampler {
    /// How many were kept back since the last one, if this one is to be logged.
    pub(crate) fn sample(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now.duration_since(last) < LOG_EVERY) {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(now);
        Some(self.unlogged.swap(0, Ordering::Relaxed))
    }
}
