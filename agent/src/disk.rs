//! Files that are either the old or the new one after a crash, and a state directory that one agent owns.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Only the agent's user may read it.
pub const MODE_SECRET: u32 = 0o600;
/// Everybody may read it.
pub const MODE_PUBLIC: u32 = 0o644;

/// A directory that no other agent uses as long as this lives: two agents on one ledger could run a command twice.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("cannot create {}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("another agent is running on {}", path.display())]
    InUse { path: PathBuf },
    #[error("everybody may write to {}: run `chmod 700` on it", path.display())]
    Open { path: PathBuf },
}

impl StateDir {
    /// Creates the directory, for its owner alone, if it is missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be made, or another agent has it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateDirError::Create { path: path.to_owned(), source })?;
        // Whoever can replace the ledger or the key can let a command run twice, or be this device.
        let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode());
        if mode.map_err(|source| StateDirError::Create { path: path.to_owned(), source })? & 0o002 != 0 {
            return Err(StateDirError::Open { path: path.to_owned() });
        }
        let lock_path = path.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(MODE_SECRET)
            .open(&lock_path)
            .map_err(|source| StateDirError::Lock { path: lock_path.clone(), source })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StateDirError::InUse { path: path.to_owned() }),
            Err((_, errno)) => Err(StateDirError::Lock { path: lock_path, source: errno.into() }),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Replaces a file: afterwards, and after a crash at any point, it holds all of the old or all of the new content.
///
/// # Errors
/// Then the old content is there; or the new one, if all that failed was to make that last.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let written = (|| {
        // A left-over of a crash could have another mode.
        remove_if_there(&temporary)?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // The file system may be full: leave nothing behind.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_parent(path)
}

/// Makes renames and removals in the directory of this file last.
///
/// # Errors
/// Then they may be undone by a crash.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Whether there was one.
///
/// # Errors
/// When there is one and it cannot be removed.
pub fn remove_if_there(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a file that must not be larger than `bytes_max`; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is larger.
pub fn read_if_there(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    read_bounded(file, bytes_max).map(Some)
}

/// Reads all there is, which must not be more than `bytes_max`.
///
/// # Errors
/// When it cannot be read, or is more.
pub fn read_bounded(source: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    source.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
    }
    Ok(content)
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(dir.path().join("key.new"), "left over by a crash").unwrap();
        write_atomically(&path, b"one", MODE_SECRET).unwrap();
        write_atomically(&path, b"two", MODE_SECRET).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_directory_serves_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(StateDir::open(&path), Err(StateDirError::InUse { .. })));
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_everybody_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        for open in [0o777, 0o1777, 0o702] {
            mode(open);
            assert!(matches!(StateDir::open(dir.path()), Err(StateDirError::Open { .. })), "{open:o}");
        }
        mode(0o755);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_if_there(&path, 3).unwrap(), None);
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read_if_there(&path, 3).unwrap().unwrap(), b"abc");
        std::fs::write(&path, "abcd").unwrap();
        assert_eq!(read_if_there(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
