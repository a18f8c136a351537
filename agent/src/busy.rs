//! The busy lock: "not now", said on the device itself. It is on the disk, so that a reboot does not end it, and what would disturb the
//! device is refused as long as it is in force.
//!
//! It ends by the device's wall clock, the only one that goes on while the device is off. When that clock is set back, a lock holds for
//! no longer than it was meant to from then on; when it is set ahead, it ends early.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::link::{BUSY_LEFT_MS_MAX, STRING_BYTES_MAX, message};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::{chain, clock, disk};

const FILE_NAME: &str = "busy.json";
/// A reason and two numbers.
const FILE_BYTES_MAX: u64 = 4096;
/// How often is looked whether a lock has ended that somebody waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The lock of this device.
#[derive(Debug)]
pub struct Busy {
    path: PathBuf,
    /// For how long it may be set at most.
    max: Duration,
    /// Held by whoever changes it, for as long as the disk takes.
    writing: Mutex<()>,
    /// Held by nobody who waits for anything.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Clone, Debug)]
enum State {
    Free,
    Held(Held),
    /// There is one, and nobody knows until when: in force until it is cleared or set anew.
    Unreadable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    reason: String,
    set_unix_ms: u64,
    until_unix_ms: u64,
}

/// A lock that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    pub reason: String,
    pub left: Duration,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, left } = self;
        write!(f, "the device asks not to be disturbed for another {} s: {reason}", left.as_secs())
    }
}

/// Why a lock was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BusyError {
    #[error("the reason has 1 to {STRING_BYTES_MAX} bytes, none of them a control character")]
    Reason,
    #[error("a lock is for 1 to {0} seconds (busy.max_seconds)")]
    Length(u64),
    #[error("the disk does not take it: what the disk has by now is in force, and may not outlive a power cut")]
    Disk(#[source] io::Error),
}

impl Busy {
    /// Takes up the lock that is on the disk. One that cannot be read is in force.
    #[must_use]
    pub fn load(state_dir: &Path, max: Duration) -> Self {
        let path = state_dir.join(FILE_NAME);
        let state = read(&path).unwrap_or_else(|error| {
            tracing::error!(
                error = chain(&error),
                "the busy lock cannot be read: it is in force until it is set anew or cleared"
            );
            State::Unreadable
        });
        Self {
            path,
            max: max.min(Duration::from_millis(BUSY_LEFT_MS_MAX)),
            writing: Mutex::default(),
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// The lock, if it is in force.
    #[must_use]
    pub fn in_force(&self) -> Option<InForce> {
        match &*self.state() {
            State::Free => None,
            State::Held(held) => {
                let left = held.left(clock::unix_ms(clock::wall_clock()));
                (!left.is_zero()).then(|| InForce { reason: held.reason.clone(), left })
            }
            State::Unreadable => {
                Some(InForce { reason: "the device's busy lock cannot be read".to_owned(), left: self.max })
            }
        }
    }

    /// Waits until no lock is in force.
    ///
    /// # Errors
    /// The one that still is, then.
    pub async fn ended(&self, by: Instant) -> Result<(), InForce> {
        while let Some(lock) = self.in_force() {
            let now = Instant::now();
            if now >= by {
                return Err(lock);
            }
            sleep_until(by.min(now + LOOK_EVERY)).await;
        }
        Ok(())
    }

    /// Sets or renews the lock. It is on the disk afterwards. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Then all is as it was; but after [`BusyError::Disk`] the lock is what the disk has, and that may be either.
    pub fn set(&self, reason: &str, length: Duration) -> Result<(), BusyError> {
        if reason.is_empty() || reason.len() > STRING_BYTES_MAX || reason.chars().any(char::is_control) {
            return Err(BusyError::Reason);
        }
        if length < Duration::from_secs(1) || length > self.max {
            return Err(BusyError::Length(self.max.as_secs()));
        }
        let now = clock::unix_ms(clock::wall_clock());
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let held = Held { reason: reason.to_owned(), set_unix_ms: now, until_unix_ms: now.saturating_add(length_ms) };
        let text = serde_json::to_vec(&held).map_err(|error| BusyError::Disk(error.into()))?;
        self.change(State::Held(held), || disk::write_atomically(&self.path, &text, disk::MODE_SECRET))
    }

    /// Ends the lock, if there is one. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// Then the lock is what the disk has, which may be none.
    pub fn clear(&self) -> Result<(), BusyError> {
        self.change(State::Free, || match disk::remove_if_there(&self.path)? {
            true => disk::sync_parent(&self.path),
            false => Ok(()),
        })
    }

    /// To this state, if the disk takes it.
    fn change(&self, next: State, write: impl FnOnce() -> io::Result<()>) -> Result<(), BusyError> {
        // It guards nothing but the file.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write();
        // One that failed may have come as far as the file, and no further.
        let found = if written.is_ok() { Ok(next) } else { read(&self.path) };
        if let Ok(found) = found {
            *self.state() = found;
        }
        self.changed.notify_one();
        written.map_err(BusyError::Disk)
    }

    /// Waits for a change; one that came before counts.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// As the server is told.
    #[must_use]
    pub fn told(&self) -> message::BusyLock {
        self.in_force().map_or_else(message::BusyLock::default, |lock| message::BusyLock {
            reason: lock.reason,
            left_ms: u64::try_from(lock.left.as_millis()).unwrap_or(u64::MAX).max(1),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is changed in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn left(&self, now_unix_ms: u64) -> Duration {
        let whole = self.until_unix_ms.saturating_sub(self.set_unix_ms);
        Duration::from_millis(self.until_unix_ms.saturating_sub(now_unix_ms).min(whole).min(BUSY_LEFT_MS_MAX))
    }
}

fn read(path: &Path) -> io::Result<State> {
    let Some(text) = disk::read_if_there(path, FILE_BYTES_MAX)? else { return Ok(State::Free) };
    let held: Held = serde_json::from_slice(&text)?;
    if held.reason.is_empty() || held.reason.len() > STRING_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its reason is none"));
    }
    Ok(State::Held(held))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_lock_survives_a_start_and_ends_when_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let busy = Busy::load(dir.path(), DAY);
        assert_eq!(busy.in_force(), None);
        assert_eq!(busy.told(), message::BusyLock::default());
        busy.set("writing results", Duration::from_secs(3600)).unwrap();

        let busy = Busy::load(dir.path(), DAY);
        let lock = busy.in_force().unwrap();
        assert_eq!(lock.reason, "writing results");
        assert!((3500..=3600).contains(&lock.left.as_secs()), "{lock:?}");
        assert!(busy.told().left_ms > 3_500_000);
        busy.clear().unwrap();
        busy.clear().unwrap();
        assert_eq!(busy.in_force(), None);
        assert_eq!(Busy::load(dir.path(), DAY).in_force(), None);
    }

    #[test]
    fn a_lock_has_a_reason_and_a_bounded_length() {
        let dir = tempfile::tempdir().unwrap();
        let busy = Busy::load(dir.path(), DAY);
        for reason in ["", "a\nb", &"x".repeat(257)] {
            assert!(matches!(busy.set(reason, DAY), Err(BusyError::Reason)), "{reason:?}");
        }
        for length in [Duration::ZERO, DAY + Duration::from_secs(1), Duration::MAX] {
            assert!(matches!(busy.set("r", length), Err(BusyError::Length(86_400))), "{length:?}");
        }
        assert_eq!(busy.in_force(), None);
    }

    #[test]
    fn a_lock_that_cannot_be_read_is_in_force_until_it_is_set_or_cleared() {
        let dir = tempfile::tempdir().unwrap();
        for spoilt in ["", "{}", "[1", r#"{"reason": "", "set_unix_ms": 0, "until_unix_ms": 9}"#] {
            std::fs::write(dir.path().join(FILE_NAME), spoilt).unwrap();
            let busy = Busy::load(dir.path(), DAY);
            assert_eq!(busy.in_force().unwrap().left, DAY, "{spoilt:?}");
            busy.clear().unwrap();
            assert_eq!(busy.in_force(), None);
        }
    }

    /// On this thread, what holds for everybody else holds for root too.
    struct AsSomebody;

    impl AsSomebody {
        fn now(owner_of: &Path) -> Self {
            let somebody = nix::unistd::Uid::from_raw(65_534);
            if nix::unistd::geteuid().is_root() {
                std::os::unix::fs::chown(owner_of, Some(somebody.as_raw()), None).unwrap();
                nix::unistd::setfsuid(somebody);
            }
            Self
        }
    }

    impl Drop for AsSomebody {
        fn drop(&mut self) {
            nix::unistd::setfsuid(nix::unistd::geteuid());
        }
    }

    #[test]
    fn what_the_disk_has_is_in_force_also_when_it_may_not_last() {
        let dir = tempfile::tempdir().unwrap();
        let _somebody = AsSomebody::now(dir.path());
        let busy = Busy::load(dir.path(), DAY);
        busy.set("before", DAY).unwrap();
        let allow = |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();

        // Nothing can be written.
        allow(0o500);
        assert!(matches!(busy.set("after", DAY), Err(BusyError::Disk(_))));
        assert!(matches!(busy.clear(), Err(BusyError::Disk(_))));
        assert_eq!(busy.in_force().unwrap().reason, "before");

        // Files can be replaced, and the directory cannot be synced.
        allow(0o300);
        assert!(matches!(busy.set("after", DAY), Err(BusyError::Disk(_))));
        assert_eq!(busy.in_force().unwrap().reason, "after");
        assert!(matches!(busy.clear(), Err(BusyError::Disk(_))));
        assert_eq!(busy.in_force(), None);
        allow(0o700);
        assert_eq!(Busy::load(dir.path(), DAY).in_force(), None);
    }

    #[test]
    fn who_changes_a_lock_holds_up_nobody_who_looks_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let busy = Busy::load(dir.path(), DAY);
        let slow = busy.change(State::Free, || {
            assert_eq!(busy.in_force(), None);
            assert_eq!(busy.told(), message::BusyLock::default());
            Ok(())
        });
        slow.unwrap();
    }

    #[test]
    fn no_clock_makes_a_lock_longer_than_it_was_meant_to_be() {
        let held = Held { reason: "r".to_owned(), set_unix_ms: 1_000_000, until_unix_ms: 1_060_000 };
        for (now, seconds) in [(1_000_000, 60), (1_030_000, 30), (1_060_000, 0), (u64::MAX, 0), (0, 60)] {
            assert_eq!(held.left(now), Duration::from_secs(seconds), "{now}");
        }
        let backwards = Held { set_unix_ms: 5, until_unix_ms: 1, ..held };
        assert_eq!(backwards.left(0), Duration::ZERO);
    }
}
