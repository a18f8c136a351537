//! When devices were sampled last, over whatever links and polls: who dials anew for each report fills no tables either.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use tokio::time::Instant;

/// Devices that are remembered. What one more reports is no sample until others can be forgotten.
const DEVICES_MAX: usize = 100_000;
/// How often those that are due are looked for while the memory is full: a look goes over all of it.
const FORGET_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(in crate::link) struct Pace(Mutex<Sampled>);

#[derive(Debug, Default)]
struct Sampled {
    at: HashMap<DeviceId, Instant>,
    forgot_at: Option<Instant>,
}

impl Pace {
    /// Whether what a device reports now is a sample: its last one is long enough ago.
    pub(in crate::link) fn is_due(&self, device: DeviceId, spacing: Duration, now: Instant) -> bool {
        // Consistent after each statement.
        let mut sampled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_too_soon = |at: &Instant| now.duration_since(*at) < spacing;
        match sampled.at.get(&device) {
            Some(at) if is_too_soon(at) => return false,
            Some(_) => {}
            None if sampled.at.len() < DEVICES_MAX => {}
            None => {
                if sampled.forgot_at.is_none_or(|at| now.duration_since(at) >= FORGET_EVERY) {
                    sampled.forgot_at = Some(now);
                    sampled.at.retain(|_, at| is_too_soon(at));
                }
                if sampled.at.len() >= DEVICES_MAX {
                    return false;
                }
            }
        }
        sampled.at.insert(device, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SPACING: Duration = Duration::from_secs(30);

    fn device(n: usize) -> DeviceId {
        DeviceId::from_uuid(Uuid::from_u128(n as u128))
    }

    #[test]
    fn each_device_is_sampled_once_in_a_while() {
        let (pace, now) = (Pace::default(), Instant::now());
        let is_due = |n, after| pace.is_due(device(n), SPACING, now + Duration::from_secs(after));
        assert!(is_due(1, 0) && is_due(2, 1), "each by itself");
        assert!(!is_due(1, 29) && is_due(1, 30), "what came too soon puts nothing off");
        assert!(!is_due(2, 30) && is_due(2, 31));
    }

    #[test]
    fn no_more_devices_are_remembered_than_may_be() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert!((0..DEVICES_MAX).all(|n| pace.is_due(device(n), SPACING, now)));
        assert!(!pace.is_due(device(DEVICES_MAX), SPACING, now));
        let later = now + SPACING;
        assert!(pace.is_due(device(0), SPACING, later) && pace.is_due(device(DEVICES_MAX), SPACING, later));
        assert_eq!(pace.0.lock().unwrap().at.len(), 2);
    }
}
