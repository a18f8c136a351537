//! What the device has promised and done: the reason why no command runs twice.
//!
//! An append-only file of checksummed lines (see `record`). The intent to run a command is on the disk before the command
//! is begun, and what is found there after a crash is never begun again. The file ends in one of three ways:
//!
//! * whole: normal;
//! * torn: the last line was being written when the power went. Nothing was done on its account yet, so it is cut off;
//! * damaged: anything else. Ids may be missing, so every new command is refused until somebody has looked at it.
//!
//! Ids are kept for [`ID_KEPT`] by the **server's** time: a device whose clock jumps ahead must not forget. The file stays small
//! by compaction, which writes a new file and renames it.

mod entry;
mod record;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use self::entry::Entries;
pub use self::entry::{Entry, EntryIntent, Progress};
pub use self::record::{Damage, FinalState, Report, WrittenKind};
use self::record::{Ending, Record};
use crate::command::Kind;
use crate::disk;

/// How long an id is kept at least. Several times the longest that a server may hold a command back (7 days).
pub const ID_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The most ids that are kept. When all of them are younger than [`ID_KEPT`], new commands are refused with `ledger_full`.
pub const ENTRIES_MAX: usize = 100_000;
/// The most final reports that wait for their receipt. Beyond, new commands are refused with `ledger_full`. All of them are told
/// at the beginning of a link, and a server stores only so many at a time.
pub const UNRECEIPTED_MAX: usize = 32;
/// The largest ledger that is read. Beyond, it counts as damaged.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Files smaller than this are not worth compacting.
const COMPACT_BYTES_MIN: u64 = 256 * 1024;

const FILE_NAME: &str = "ledger";

/// The ledger of one device.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_after_compaction: u64,
    entries: Entries,
    damage: Option<Damage>,
    /// The file could not be brought back to its last good end: nothing may be appended any more.
    stuck: bool,
}

/// What is to be put on the disk before a command may run.
#[derive(Clone, Debug)]
pub struct Intent {
    pub id: CommandId,
    pub kind: Kind,
    /// The boot in which it is accepted.
    pub boot_id: String,
    pub server_unix_ms: u64,
}

/// Why a command may not run.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the disk under the ledger did not take the intent")]
    Disk(#[source] io::Error),
    #[error(
        "the ledger holds {ENTRIES_MAX} ids that may not be forgotten yet, or {UNRECEIPTED_MAX} reports without receipt"
    )]
    Crowded,
    #[error("the ledger is damaged")]
    Damaged,
    #[error("the command is known")]
    Known,
}

/// What a look at a ledger found.
#[derive(Debug)]
pub struct Inspection {
    pub entries: usize,
    pub unreceipted: usize,
    pub bytes: u64,
    pub damage: Option<Damage>,
}

/// Whether a line must be on the disk before its writer goes on.
#[derive(Clone, Copy, Debug)]
enum Durability {
    Synced,
    Buffered,
}

impl Ledger {
    /// Opens the ledger of a state directory, or begins one. A torn end is cut off; damage is remembered, not repaired.
    ///
    /// # Errors
    /// When the file cannot be opened, read or cut.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(FILE_NAME);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(disk::MODE_SECRET)
            .open(&path)?;
        disk::sync_parent(&path)?;
        let mut ledger = Self {
            path,
            file,
            bytes: 0,
            bytes_after_compaction: 0,
            entries: Entries::default(),
            damage: None,
            stuck: false,
        };
        ledger.replay()?;
        Ok(ledger)
    }

    /// Looks at the ledger of a state directory without locking or changing it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn inspect(state_dir: &Path) -> io::Result<Inspection> {
        let content = disk::read_if_there(&state_dir.join(FILE_NAME), FILE_BYTES_MAX)?.unwrap_or_default();
        let reading = record::read(&content);
        let mut entries = Entries::default();
        reading.records.into_iter().for_each(|record| entries.apply(record));
        let damage = if let Ending::Damaged(damage) = reading.ending { Some(damage) } else { None };
        let unreceipted = entries.unreceipted().len();
        Ok(Inspection { entries: entries.len(), unreceipted, bytes: content.len() as u64, damage })
    }

    fn replay(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > FILE_BYTES_MAX {
            self.damage = Some(Damage { offset: FILE_BYTES_MAX });
            return Ok(());
        }
        let content = disk::read_bounded(&self.file, FILE_BYTES_MAX)?;
        let reading = record::read(&content);
        reading.records.into_iter().for_each(|record| self.entries.apply(record));
        self.bytes = content.len() as u64;
        match reading.ending {
            Ending::Whole => {}
            Ending::Torn { whole_bytes } => {
                tracing::warn!(torn_bytes = self.bytes - whole_bytes, "cutting off the torn end of the ledger");
                self.bytes = whole_bytes;
                self.cut()?;
            }
            Ending::Damaged(damage) => self.damage = Some(damage),
        }
        self.bytes_after_compaction = self.bytes;
        Ok(())
    }

    /// Where the ledger is damaged, if it is.
    #[must_use]
    pub fn damage(&self) -> Option<Damage> {
        self.damage
    }

    /// What is known of a command.
    #[must_use]
    pub fn entry(&self, id: CommandId) -> Option<&Entry> {
        self.entries.entry(id)
    }

    /// Commands that were accepted and have no final report, in the order in which they came.
    #[must_use]
    pub fn unfinished(&self) -> Vec<CommandId> {
        self.entries.unfinished()
    }

    /// Commands whose final report was not receipted, in the order in which they came.
    #[must_use]
    pub fn unreceipted(&self) -> Vec<CommandId> {
        self.entries.unreceipted()
    }

    /// Promises to run a command: after this returned `Ok`, and only then, it may be begun. Room for its final report is
    /// reserved as well, so that what was begun can be told after a crash even when the disk has filled up meanwhile.
    ///
    /// # Errors
    /// Then nothing may be begun.
    pub fn accept(&mut self, intent: Intent) -> Result<(), AcceptError> {
        if self.damage.is_some() {
            return Err(AcceptError::Damaged);
        }
        if self.entry(intent.id).is_some() {
            return Err(AcceptError::Known);
        }
        self.make_room(intent.server_unix_ms)?;
        let Intent { id, kind, boot_id, server_unix_ms } = intent;
        let record = Record::Accepted { id, kind: WrittenKind::Known(kind), boot_id, at_unix_ms: server_unix_ms };
        self.reserve().and_then(|()| self.append(&record, Durability::Synced)).map_err(AcceptError::Disk)?;
        self.entries.apply(record);
        Ok(())
    }

    /// Remembers that a command will not be run, so that a late duplicate is not run either. Where the disk refuses, memory
    /// must do: nothing was begun.
    ///
    /// # Errors
    /// When the disk did not take it.
    pub fn refuse(&mut self, id: CommandId, server_unix_ms: u64, report: Report) -> io::Result<()> {
        if self.entry(id).is_some() || self.make_room(server_unix_ms).is_err() {
            return Ok(());
        }
        self.record(Record::Refused { id, at_unix_ms: server_unix_ms, report }, Durability::Buffered)
    }

    /// The same where the disk is known to be full: what room there is belongs to the reports of what is under way.
    pub fn refuse_in_memory(&mut self, id: CommandId, server_unix_ms: u64, report: Report) {
        if self.entry(id).is_none() && !self.is_crowded() {
            self.entries.apply(Record::Refused { id, at_unix_ms: server_unix_ms, report });
        }
    }

    /// Remembers that a command was begun.
    ///
    /// # Errors
    /// When the disk did not take it; the promise to run it stands all the same.
    pub fn begin(&mut self, id: CommandId) -> io::Result<()> {
        self.record(Record::Running { id }, Durability::Synced)
    }

    /// Remembers what became of a command.
    ///
    /// # Errors
    /// When the disk did not take it: the report is known until the agent stops.
    pub fn finish(&mut self, id: CommandId, report: Report) -> io::Result<()> {
        self.record(Record::Final { id, report }, Durability::Synced)
    }

    /// The server has stored the report: it is forgotten, the id is kept. A lost receipt is given again, so it need not be on
    /// the disk at once.
    ///
    /// # Errors
    /// When the disk did not take it.
    pub fn receipt(&mut self, id: CommandId) -> io::Result<()> {
        match self.entry(id) {
            Some(Entry { progress: Progress::Reported(_), .. }) => {
                self.record(Record::Receipted { id }, Durability::Buffered)
            }
            _ => Ok(()),
        }
    }

    /// Writes the ledger anew when half of it is of no more use.
    ///
    /// # Errors
    /// Then the old file is still in use.
    pub fn compact_when_due(&mut self, server_unix_ms: u64) -> io::Result<()> {
        let due = self.bytes > COMPACT_BYTES_MIN && self.bytes > 2 * self.bytes_after_compaction;
        if due && self.damage.is_none() { self.compact(server_unix_ms) } else { Ok(()) }
    }

    fn compact(&mut self, server_unix_ms: u64) -> io::Result<()> {
        let kept_ms = u64::try_from(ID_KEPT.as_millis()).unwrap_or(u64::MAX);
        let mut entries = self.entries.clone();
        entries.forget_receipted_before(server_unix_ms.saturating_sub(kept_ms));
        let content: Vec<u8> = entries.records().iter().flat_map(Record::to_line).collect();
        disk::write_atomically(&self.path, &content, disk::MODE_SECRET)?;
        // From here on the old file is not the ledger any more: what is appended to it would be lost.
        self.stuck = true;
        self.file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        self.stuck = false;
        self.bytes = content.len() as u64;
        self.bytes_after_compaction = self.bytes;
        self.entries = entries;
        if let Err(error) = self.reserve() {
            tracing::warn!(%error, "no room is reserved for the reports of what is under way");
        }
        Ok(())
    }

    /// Forgets what may be forgotten when there are too many ids.
    fn make_room(&mut self, server_unix_ms: u64) -> Result<(), AcceptError> {
        if self.entries.len() >= ENTRIES_MAX && self.damage.is_none() {
            self.compact(server_unix_ms).map_err(AcceptError::Disk)?;
        }
        if self.is_crowded() { Err(AcceptError::Crowded) } else { Ok(()) }
    }

    fn is_crowded(&self) -> bool {
        self.entries.len() >= ENTRIES_MAX || self.unreceipted().len() >= UNRECEIPTED_MAX
    }

    /// Reserves room for the reports of all that is unfinished, and of one more.
    fn reserve(&self) -> io::Result<()> {
        let reports = self.unfinished().len() as u64 + 1;
        let (Ok(from), Ok(length)) = (i64::try_from(self.bytes), i64::try_from(reports * record::BYTES_MAX)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length) {
            // Some file systems cannot reserve: then a report may be lost, but never the intent.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What is known must not depend on what the disk takes: the record is applied in any case.
    fn record(&mut self, record: Record, durability: Durability) -> io::Result<()> {
        let written = if self.damage.is_some() { Ok(()) } else { self.append(&record, durability) };
        self.entries.apply(record);
        written
    }

    fn append(&mut self, record: &Record, durability: Durability) -> io::Result<()> {
        if self.stuck {
            return Err(io::Error::other("an earlier failure left the end of the ledger unknown"));
        }
        let line = record.to_line();
        let written = self.file.write_all_at(&line, self.bytes).and_then(|()| match durability {
            Durability::Synced => self.file.sync_data(),
            Durability::Buffered => Ok(()),
        });
        if let Err(error) = written {
            // Half a line must not stand before the next one.
            self.stuck = self.cut().is_err();
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.sync_all()
    }
}
