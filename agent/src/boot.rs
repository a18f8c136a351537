//! How the boot before this one ended, as far as the agent can tell.
//!
//! The agent leaves a mark of the boot that it runs in: that it runs, that it was stopped, or that it was stopped because the system goes
//! down. Whoever finds the mark of another boot knows how far that one came.

use std::io;
use std::path::{Path, PathBuf};

use cloudlink_proto::link::message::BootHint;
use serde::{Deserialize, Serialize};

use crate::disk;

/// In the state directory.
const FILE: &str = "boot";
const FILE_BYTES_MAX: u64 = 4096;
/// What a watchdog's `bootstatus` says when it has reset the device: `WDIOF_CARDRESET`.
const CARD_RESET: u32 = 0x20;
/// Where Linux shows watchdogs.
pub const WATCHDOGS: &str = "/sys/class/watchdog";
/// Watchdogs that are looked at.
const WATCHDOGS_MAX: usize = 16;

/// The mark of the boot that the agent runs in.
#[derive(Debug)]
pub struct Boot {
    path: PathBuf,
    mark: Mark,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    boot_id: String,
    left: Left,
    /// What was found when this boot was first met.
    hint: Hint,
}

/// How the agent left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Left {
    /// It did not: it was running.
    Running,
    /// It was stopped, and the system went on.
    Stopped,
    /// It was stopped because the system was going down.
    WithTheSystem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hint {
    Unknown,
    Local,
    PowerLoss,
    Watchdog,
}

impl Boot {
    /// Reads the mark, judges the boot before by it, and marks that the agent runs. What cannot be read or written is logged: nothing
    /// but a word on a boot is lost.
    #[must_use]
    pub fn begin(state_dir: &Path, boot_id: &str, watchdogs: &Path) -> Self {
        let path = state_dir.join(FILE);
        let before = read(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read how the boot before ended");
            None
        });
        let hint = judge(before.as_ref(), boot_id, || is_reset_by_watchdog(watchdogs));
        let boot = Self { path, mark: Mark { boot_id: boot_id.to_owned(), left: Left::Running, hint } };
        boot.write();
        boot
    }

    /// What the server is told.
    #[must_use]
    pub const fn hint(&self) -> BootHint {
        match self.mark.hint {
            Hint::Unknown => BootHint::Unspecified,
            Hint::Local => BootHint::Local,
            Hint::PowerLoss => BootHint::PowerLoss,
            Hint::Watchdog => BootHint::Watchdog,
        }
    }

    /// The agent stops; `is_system_stopping`: because all does.
    pub fn end(&mut self, is_system_stopping: bool) {
        self.mark.left = if is_system_stopping { Left::WithTheSystem } else { Left::Stopped };
        self.write();
    }

    fn write(&self) {
        let written = serde_json::to_vec(&self.mark)
            .map_err(io::Error::other)
            .and_then(|mark| disk::write_atomically(&self.path, &mark, disk::MODE_SECRET));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot mark this boot: nobody will know how it ended");
            // A mark that does not hold any more would tell something wrong.
            let _ = disk::remove_if_there(&self.path);
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Mark>> {
    let Some(mark) = disk::read_if_there(path, FILE_BYTES_MAX)? else { return Ok(None) };
    serde_json::from_slice(&mark).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A shutdown in order goes before a watchdog: some boards reboot by means of theirs, and it says so whoever asked for it.
fn judge(before: Option<&Mark>, boot_id: &str, is_reset_by_watchdog: impl FnOnce() -> bool) -> Hint {
    match before {
        Some(mark) if mark.boot_id == boot_id => mark.hint,
        Some(Mark { left: Left::WithTheSystem, .. }) => Hint::Local,
        _ if is_reset_by_watchdog() => Hint::Watchdog,
        Some(Mark { left: Left::Running, .. }) => Hint::PowerLoss,
        // What came after the agent was stopped, or before it first ran, it did not see.
        Some(Mark { left: Left::Stopped, .. }) | None => Hint::Unknown,
    }
}

/// Whether a watchdog says that it has caused this boot.
fn is_reset_by_watchdog(watchdogs: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(watchdogs) else { return false };
    entries.flatten().take(WATCHDOGS_MAX).any(|watchdog| {
        let status = disk::read_if_there(&watchdog.path().join("bootstatus"), 64).ok().flatten().unwrap_or_default();
        let status = String::from_utf8(status).ok().and_then(|status| status.trim().parse::<u32>().ok());
        status.is_some_and(|status| status & CARD_RESET != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory, and what the watchdogs say.
    struct Device {
        state: tempfile::TempDir,
        watchdogs: tempfile::TempDir,
    }

    impl Device {
        fn new(bootstatus: &[&str]) -> Self {
            let device = Self { state: tempfile::tempdir().unwrap(), watchdogs: tempfile::tempdir().unwrap() };
            for (n, status) in bootstatus.iter().enumerate() {
                let watchdog = device.watchdogs.path().join(format!("watchdog{n}"));
                std::fs::create_dir(&watchdog).unwrap();
                std::fs::write(watchdog.join("bootstatus"), status).unwrap();
            }
            device
        }

        fn boot(&self, boot_id: &str) -> Boot {
            Boot::begin(self.state.path(), boot_id, self.watchdogs.path())
        }
    }

    #[test]
    fn a_boot_is_judged_by_what_the_one_before_left() {
        let device = Device::new(&["0\n"]);
        assert_eq!(device.boot("a").hint(), BootHint::Unspecified, "it was not there before");
        assert_eq!(device.boot("b").hint(), BootHint::PowerLoss);
        device.boot("b").end(true);
        assert_eq!(device.boot("c").hint(), BootHint::Local);
        device.boot("c").end(false);
        assert_eq!(device.boot("d").hint(), BootHint::Unspecified, "it did not see the end");
    }

    #[test]
    fn it_stays_the_same_for_as_long_as_the_boot_lasts() {
        let device = Device::new(&[]);
        device.boot("a").end(true);
        for is_system_stopping in [false, true, false] {
            let mut boot = device.boot("b");
            assert_eq!(boot.hint(), BootHint::Local);
            boot.end(is_system_stopping);
        }
        let _killed = device.boot("b");
        assert_eq!(device.boot("b").hint(), BootHint::Local);
    }

    #[test]
    fn a_watchdog_is_believed_unless_the_system_was_shut_down() {
        // The first has been overheated.
        let device = Device::new(&["1\n", "33\n"]);
        assert_eq!(device.boot("a").hint(), BootHint::Watchdog);
        assert_eq!(device.boot("b").hint(), BootHint::Watchdog);
        device.boot("b").end(true);
        assert_eq!(device.boot("c").hint(), BootHint::Local, "the board reboots by its watchdog");
        for says in [&["1"][..], &["nothing"], &[""], &[]] {
            let device = Device::new(says);
            let _ = device.boot("a");
            assert_eq!(device.boot("b").hint(), BootHint::PowerLoss, "{says:?}");
        }
    }

    #[test]
    fn a_damaged_mark_says_nothing_and_is_replaced() {
        let device = Device::new(&[]);
        std::fs::write(device.state.path().join(FILE), b"\xff{").unwrap();
        assert_eq!(device.boot("a").hint(), BootHint::Unspecified);
        assert_eq!(device.boot("b").hint(), BootHint::PowerLoss);
    }
}
