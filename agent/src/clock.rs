//! The one place that reads the wall clock, and what is believed of it.
//!
//! A device's clock may be off by years: no battery, no network time. The life of the server's certificate is judged all the
//! same, at a time that cannot be before what is known for sure: when this version was made, when the fleet's authority was
//! made, and what the server told last, which is kept on the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;
use time::macros::datetime;
use tokio::time::Instant;

use crate::disk;

/// No agent of this version ran before.
const RELEASED: OffsetDateTime = datetime!(2026-11-01 00:00 UTC);
/// How much newer the server's time must be to be written to the disk again: each write wears a flash disk.
const KEPT_AT_MOST_EVERY: Duration = Duration::from_secs(3600);
const FILE_NAME: &str = "server-time";
const FILE_BYTES_MAX: u64 = 64;

/// What the device's own clock says. Not to be believed.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall_clock() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Milliseconds since 1970; 0 for anything before.
#[must_use]
pub fn unix_ms(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// `None` for what no calendar holds.
#[must_use]
pub fn from_unix_ms(unix_ms: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()
}

/// The time as far as it is known for sure.
#[derive(Clone, Debug)]
pub struct KnownTime {
    path: PathBuf,
    /// It is not earlier than this.
    earliest: OffsetDateTime,
    kept: OffsetDateTime,
    /// What the server said, and when that was.
    told: Option<(OffsetDateTime, Instant)>,
}

impl KnownTime {
    /// Reads what the server told last. `authority_made` is when the fleet's authority was made. A file that cannot be read is
    /// as good as none.
    #[must_use]
    pub fn load(state_dir: &Path, authority_made: OffsetDateTime) -> Self {
        let path = state_dir.join(FILE_NAME);
        let kept = disk::read_if_there(&path, FILE_BYTES_MAX)
            .ok()
            .flatten()
            .and_then(|content| String::from_utf8(content).ok()?.trim().parse().ok())
            .and_then(from_unix_ms)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Self { path, earliest: kept.max(authority_made).max(RELEASED), kept, told: None }
    }

    /// Takes in what the server says. `server_certificate_ends` is the end of the certificate that it proved itself with: a
    /// server whose clock is beyond that is wrong, and believing it would lock the device out for good. Where that end is not known, the
    /// server's word holds until the agent ends, and is not kept.
    pub fn learn(&mut self, server_unix_ms: u64, server_certificate_ends: Option<OffsetDateTime>) {
        let plausible = |told: &OffsetDateTime| server_certificate_ends.is_none_or(|ends| *told <= ends);
        let Some(told) = from_unix_ms(server_unix_ms).filter(plausible) else {
            tracing::warn!(server_unix_ms, "the server's clock is beyond the end of its certificate: not believed");
            return;
        };
        self.told = Some((told, Instant::now()));
        if server_certificate_ends.is_some() {
            self.earliest = self.earliest.max(told);
            self.keep(told);
        }
    }

    /// Takes in what somebody other than the server has proven: that this time has been.
    pub fn prove(&mut self, at: OffsetDateTime) {
        self.earliest = self.earliest.max(at);
        self.keep(at);
    }

    /// Keeps the time of a long link on the disk, where it counts after the next start.
    pub fn tick(&mut self) {
        if let Some(now) = self.server_now() {
            self.earliest = self.earliest.max(now);
            self.keep(now);
        }
    }

    fn keep(&mut self, told: OffsetDateTime) {
        if told < self.kept + KEPT_AT_MOST_EVERY {
            return;
        }
        match disk::write_atomically(&self.path, unix_ms(told).to_string().as_bytes(), disk::MODE_PUBLIC) {
            Ok(()) => self.kept = told,
            Err(error) => tracing::warn!(%error, "cannot keep the server's time"),
        }
    }

    /// The server's time now; `None` while no server has told it.
    #[must_use]
    pub fn server_now(&self) -> Option<OffsetDateTime> {
        self.told.and_then(|(told, at)| told.checked_add(at.elapsed().try_into().ok()?))
    }

    /// It is not earlier than this.
    #[must_use]
    pub fn earliest(&self) -> OffsetDateTime {
        self.server_now().map_or(self.earliest, |now| now.max(self.earliest))
    }

    /// The server's time, or else the best guess.
    #[must_use]
    pub fn best(&self) -> OffsetDateTime {
        self.server_now().unwrap_or_else(|| self.earliest.max(wall_clock()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: OffsetDateTime = datetime!(2026-12-01 00:00 UTC);
    const ENDS: OffsetDateTime = datetime!(2027-06-01 00:00 UTC);

    #[test]
    fn the_servers_time_is_known_after_a_restart_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownTime::load(dir.path(), MADE);
        assert_eq!((known.earliest(), known.server_now()), (MADE, None));
        let told = datetime!(2027-02-03 04:05 UTC);
        known.learn(unix_ms(told), Some(ENDS));
        assert!(known.server_now().unwrap() >= told);
        known.learn(unix_ms(MADE), Some(ENDS));
        assert!(known.server_now().unwrap() < told, "the newest word of the server counts for the present");
        assert!(known.earliest() >= told, "but not against what was proven");
        assert_eq!(KnownTime::load(dir.path(), MADE).earliest(), told);
    }

    #[test]
    fn a_server_beyond_the_end_of_its_own_certificate_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownTime::load(dir.path(), MADE);
        known.learn(unix_ms(datetime!(2040-01-01 00:00 UTC)), Some(ENDS));
        known.learn(u64::MAX, Some(ENDS));
        assert_eq!((known.earliest(), known.server_now()), (MADE, None));
    }

    #[test]
    fn the_word_of_a_server_whose_certificate_was_not_seen_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownTime::load(dir.path(), MADE);
        let told = datetime!(2040-01-01 00:00 UTC);
        known.learn(unix_ms(told), None);
        assert!(known.server_now().unwrap() >= told && known.earliest() >= told);
        assert_eq!(KnownTime::load(dir.path(), MADE).earliest(), MADE);
    }

    #[test]
    fn a_spoilt_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["", "soon", "99999999999999999999999", &"1".repeat(1000)] {
            std::fs::write(dir.path().join(FILE_NAME), content).unwrap();
            assert_eq!(KnownTime::load(dir.path(), MADE).earliest(), MADE, "{content:?}");
        }
    }
}
