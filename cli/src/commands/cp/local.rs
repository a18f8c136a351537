//! The end of a copy that is here.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::failure::Failure;

/// Standard input or output.
const STANDARD: &str = "-";
/// What comes from standard input is counted before it is sent, and for that kept in memory.
const STANDARD_INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Of a file that is made from standard input.
const MODE_DEFAULT: u32 = 0o644;
/// Who may read, write and run it: no more is copied, in either direction.
const MODE_MASK: u32 = 0o777;

/// A file to be sent: as long as it was when it was opened.
pub(super) struct Source {
    pub(super) size: u64,
    pub(super) mode: u32,
    left: u64,
    reader: Box<dyn AsyncRead + Unpin>,
}

impl Source {
    pub(super) async fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == STANDARD {
            return Self::standard_input().await;
        }
        let open = async {
            let file = File::open(path).await?;
            let metadata = file.metadata().await?;
            // Of a pipe, or a device, nobody knows how long it is.
            if !metadata.is_file() {
                return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
            }
            Ok((file, metadata))
        };
        let (file, metadata) = open.await.map_err(|error| unreadable(path, error))?;
        let (size, mode) = (metadata.len(), metadata.permissions().mode() & MODE_MASK);
        Ok(Self { size, mode, left: size, reader: Box::new(file) })
    }

    async fn standard_input() -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let read = tokio::io::stdin().take(STANDARD_INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).await;
        let size = read.context("standard input cannot be read")? as u64;
        if size > STANDARD_INPUT_BYTES_MAX {
            let mib = STANDARD_INPUT_BYTES_MAX >> 20;
            return Err(Failure::Usage(format!("standard input is longer than {mib} MiB\nCopy it from a file.")));
        }
        Ok(Self { size, mode: MODE_DEFAULT, left: size, reader: Box::new(io::Cursor::new(bytes)) })
    }

    /// The next bytes, `max` of them at most, and none beyond the size.
    pub(super) async fn next(&mut self, max: usize) -> Result<Option<Bytes>, Failure> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut bytes = BytesMut::with_capacity(max);
        let take = self.left.min(max as u64);
        let read = (&mut self.reader).take(take).read_buf(&mut bytes).await.context("the file cannot be read")?;
        if read == 0 {
            return Err(anyhow::anyhow!("the file became shorter while it was sent").into());
        }
        self.left -= read as u64;
        Ok(Some(bytes.freeze()))
    }
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let what = format!("{} cannot be read: {error}", path.display());
    if error.kind() == ErrorKind::NotFound { Failure::NotFound(what) } else { Failure::Usage(what) }
}

/// Where a file is to appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    StandardOutput,
    File(PathBuf),
}

/// Looks before anything is asked of the device.
pub(super) fn target(local: &Path, remote: &str) -> Result<Target, Failure> {
    if local.as_os_str() == STANDARD {
        return Ok(Target::StandardOutput);
    }
    let mut path = local.to_owned();
    if path.is_dir() {
        let name = Path::new(remote).file_name();
        path.push(name.ok_or_else(|| Failure::Usage("that path is not the one of a file".to_owned()))?);
    }
    let directory = directory(&path);
    if path.is_dir() || !directory.is_dir() {
        return Err(Failure::Usage(format!("{} cannot be the name of a file", path.display())));
    }
    Ok(Target::File(path))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        Some(_) | None => Path::new("."),
    }
}

/// A file that is being received: without its name until it is finished, and removed if it never is.
#[derive(Debug)]
pub(super) enum Sink {
    StandardOutput(tokio::io::Stdout),
    File { file: File, temporary: Temporary, path: PathBuf },
}

#[derive(Debug)]
pub(super) struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

impl Sink {
    pub(super) fn create(target: &Target, mode: u32) -> Result<Self, Failure> {
        let Target::File(path) = target else { return Ok(Self::StandardOutput(tokio::io::stdout())) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory(path).join(format!(".{name}.{}.part", std::process::id()));
        let file = fs::File::options().write(true).create_new(true).mode(mode & MODE_MASK).open(&temporary);
        let file = file.with_context(|| format!("{} cannot be written", temporary.display()))?;
        Ok(Self::File { file: file.into(), temporary: Temporary(Some(temporary)), path: path.clone() })
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::StandardOutput(stdout) => stdout.write_all(bytes).await.map_err(Failure::of_output),
            Self::File { file, path, .. } => {
                let written = file.write_all(bytes).await;
                Ok(written.with_context(|| format!("{} cannot be written", path.display()))?)
            }
        }
    }

    /// Gives it its name.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        match self {
            Self::StandardOutput(mut stdout) => stdout.flush().await.map_err(Failure::of_output),
            Self::File { mut file, mut temporary, path } => {
                let named = async {
                    file.flush().await?;
                    file.sync_all().await?;
                    if let Some(temporary) = &temporary.0 {
                        fs::rename(temporary, &path)?;
                    }
                    io::Result::Ok(())
                };
                named.await.with_context(|| format!("{} cannot be written", path.display()))?;
                temporary.0 = None;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        fs::write(&path, "old").unwrap();
        let target = target(directory.path(), "/etc/hosts").unwrap();
        assert_eq!(target, Target::File(path.clone()));

        let mut sink = Sink::create(&target, 0o4755).unwrap();
        sink.write(b"ne").await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        drop(sink);
        assert_eq!(names(directory.path()), ["hosts"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");

        let mut sink = Sink::create(&target, 0o4555).unwrap();
        sink.write(b"new").await.unwrap();
        sink.finish().await.unwrap();
        assert_eq!(names(directory.path()), ["hosts"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7222, 0, "no rights beyond those of a file");
    }

    #[tokio::test]
    async fn as_many_bytes_are_sent_as_were_announced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "0123456789").unwrap();
        let mut grows = Source::open(&path).await.unwrap();
        let mut shrinks = Source::open(&path).await.unwrap();
        assert_eq!(grows.next(4).await.unwrap().unwrap(), "0123");
        fs::write(&path, "0123456789abc").unwrap();
        let mut rest = Vec::new();
        while let Some(bytes) = grows.next(4).await.unwrap() {
            rest.extend(bytes);
        }
        assert_eq!(rest, b"456789");
        fs::write(&path, "01").unwrap();
        assert_eq!(shrinks.next(4).await.unwrap().unwrap(), "01");
        assert!(shrinks.next(4).await.is_err());
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Source::open(&directory.path().join("none")).await.err().unwrap().exit_code(), 4);
        assert_eq!(Source::open(directory.path()).await.err().unwrap().exit_code(), 2);
        assert_eq!(Source::open(Path::new("/dev/null")).await.err().unwrap().exit_code(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_is_told_before_the_device_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("hosts")).unwrap();
        assert_eq!(target(directory.path(), "/etc/hosts").unwrap_err().exit_code(), 2);
        assert_eq!(target(&directory.path().join("none/hosts"), "/etc/hosts").unwrap_err().exit_code(), 2);
    }
}
