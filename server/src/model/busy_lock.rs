//! Busy locks: a device that says "not now".

use std::time::Duration;

use cloudlink_proto::link::message;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The scope that a grant must give, besides that of the command, for the command to be done in spite of a lock.
pub const OVERRIDE_SCOPE: &str = "busy:override";

/// A lock that a device holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BusyLock {
    /// As whoever set it on the device says.
    pub reason: String,
    /// When it was told first.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// A lock as the device tells it, in storable words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBusyLock {
    pub reason: String,
    /// What is left of it.
    pub left: Duration,
}

impl NewBusyLock {
    /// What is left after a wait.
    #[must_use]
    pub fn after(self, waited: Duration) -> Option<Self> {
        let left = self.left.checked_sub(waited).filter(|left| !left.is_zero())?;
        Some(Self { left, ..self })
    }
}

/// What a device tells: a lock, or that it holds none. The session has checked the bounds.
#[must_use]
pub fn told(lock: &message::BusyLock) -> Option<NewBusyLock> {
    let left = Duration::from_millis(lock.left_ms);
    let reason: String = lock.reason.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect();
    (!left.is_zero()).then_some(NewBusyLock { reason, left })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_which_nothing_is_left_is_none_and_no_reason_carries_control_characters() {
        let lock = |reason: &str, left_ms| message::BusyLock { reason: reason.to_owned(), left_ms };
        assert_eq!(told(&lock("", 0)), None);
        let told = told(&lock("a\0\u{1b}[2J", 1500)).unwrap();
        assert_eq!(told.clone().after(Duration::from_millis(500)).unwrap().left, Duration::from_secs(1));
        assert_eq!(told.clone().after(Duration::from_millis(1500)), None);
        assert_eq!((told.reason.as_str(), told.left), ("a\u{fffd}\u{fffd}[2J", Duration::from_millis(1500)));
    }
}
