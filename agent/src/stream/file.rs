//! Files: written as a whole under their name, or not at all; read as they are. Only below the configured directories.

mod get;
mod place;
mod put;

use std::io;
use std::path::PathBuf;

pub(super) use self::get::get;
pub(super) use self::put::put;
use super::end::End;
use crate::config;

/// How many chunks wait between the connection and the disk.
const CHUNKS_WAITING_MAX: usize = 4;

/// What the system says, in the words of the protocol.
const CODES: [(io::ErrorKind, &str); 4] = [
    (io::ErrorKind::NotFound, "not_found"),
    (io::ErrorKind::NotADirectory, "not_found"),
    (io::ErrorKind::PermissionDenied, "permission_denied"),
    (io::ErrorKind::ReadOnlyFilesystem, "read_only"),
];

/// Which files there are for a stream.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) settings: config::File,
    /// What is never written or read, below whatever directory it is: the device's key, and what it is told to believe.
    pub(super) withheld: Vec<PathBuf>,
}

/// Why a file is not written or read.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it is not below a directory that the device's configuration allows")]
    NotAllowed,
    #[error("it is a directory")]
    IsDirectory,
    #[error("it is neither a file nor a directory")]
    NotAFile,
    #[error("it is larger than the {0} bytes that the device's configuration allows")]
    TooLarge(u64),
    #[error("there is no room for it on the device")]
    NoSpace,
    #[error("it has {found} bytes, and {expected} were announced")]
    Size { expected: u64, found: u64 },
    #[error("it did not come as it was sent: its digest is another one")]
    Digest,
    #[error("the stream was cut")]
    Cut,
    #[error("the device cannot {what}")]
    Io { what: &'static str, source: io::Error },
}

impl Fault {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| {
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                Self::NoSpace
            } else if source.kind() == io::ErrorKind::IsADirectory {
                Self::IsDirectory
            } else {
                Self::Io { what, source }
            }
        }
    }

    fn errno(what: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |errno| Self::io(what)(errno.into())
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::IsDirectory => "is_directory",
            Self::NotAFile => "not_a_file",
            Self::TooLarge(_) => "too_large",
            Self::NoSpace => "no_space",
            Self::Size { .. } => "size_mismatch",
            Self::Digest => "digest_mismatch",
            Self::Cut => "io_error",
            Self::Io { source, .. } => {
                CODES.iter().find(|(kind, _)| source.kind() == *kind).map_or("io_error", |(_, code)| code)
            }
        }
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::failed(fault.code(), crate::chain(&fault))
    }
}

/// Does what waits for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let broke = |_| Fault::Io { what: "go on", source: io::Error::other("a task broke off") };
    tokio::task::spawn_blocking(work).await.map_err(broke)?
}
