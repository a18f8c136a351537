//! The operating system's user that Postgres runs as. It refuses to run as root, so root hands it to another user.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use tokio::process::Command;

/// Why there is no such user, or why it cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("cannot look up user {name:?}")]
    Lookup {
        name: String,
        #[source]
        source: nix::Error,
    },
    #[error(
        "there is no user {name:?} to run Postgres as. Debian's package makes it: apt-get install postgresql. \
         Or set postgres.user"
    )]
    Unknown { name: String },
    #[error("Postgres refuses to run as root: set postgres.user to another user")]
    Root,
    #[error("user id {uid} has no name, and Postgres needs one: add a line for it to /etc/passwd")]
    Nameless { uid: u32 },
    #[error("user {name:?} cannot enter {}: chmod o+x {}", path.display(), path.display())]
    Locked { name: String, path: PathBuf },
    #[error("cannot look at {}", path.display())]
    Inspect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A user, and whether we have to become it.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// The name of the user that this process runs as.
    pub(super) own_name: String,
    other: bool,
}

impl Account {
    /// The user that we are; when we are root, the one named.
    pub(super) fn choose(name: &str) -> Result<Self, AccountError> {
        let own = own_user()?;
        if !own.uid.is_root() {
            return Ok(Self {
                name: own.name.clone(),
                uid: own.uid,
                gid: own.gid,
                groups: Vec::new(),
                own_name: own.name,
                other: false,
            });
        }
        let user = User::from_name(name).map_err(|source| AccountError::Lookup { name: name.to_owned(), source })?;
        let user = user.ok_or_else(|| AccountError::Unknown { name: name.to_owned() })?;
        if user.uid.is_root() {
            return Err(AccountError::Root);
        }
        let c_name = std::ffi::CString::new(name).map_err(|_| AccountError::Unknown { name: name.to_owned() })?;
        let groups =
            getgrouplist(&c_name, user.gid).map_err(|source| AccountError::Lookup { name: name.to_owned(), source })?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, groups, own_name: own.name, other: true })
    }

    /// Makes a command run as this user: its user, its group, and no group more.
    pub(super) fn become_in(&self, command: &mut Command) {
        if self.other {
            // Setting the user from root also gives up root's supplementary groups.
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
    }

    /// Makes a file or directory this user's.
    pub(super) fn give(&self, path: &Path) -> std::io::Result<()> {
        if self.other { chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw())) } else { Ok(()) }
    }

    /// Checks that this user can reach a directory that it does not own.
    pub(super) fn check_entry(&self, path: &Path) -> Result<(), AccountError> {
        if !self.other {
            return Ok(());
        }
        for path in path.ancestors() {
            let metadata = path.metadata().map_err(|source| AccountError::Inspect { path: path.to_owned(), source })?;
            let mode = metadata.mode();
            let may_enter = if metadata.uid() == self.uid.as_raw() {
                mode & 0o100 != 0
            } else if self.groups.iter().any(|group| group.as_raw() == metadata.gid()) {
                mode & 0o010 != 0
            } else {
                mode & 0o001 != 0
            };
            if !may_enter {
                return Err(AccountError::Locked { name: self.name.clone(), path: path.to_owned() });
            }
        }
        Ok(())
    }
}

fn own_user() -> Result<User, AccountError> {
    let uid = geteuid();
    let user = User::from_uid(uid).map_err(|source| AccountError::Lookup { name: format!("with id {uid}"), source })?;
    user.ok_or(AccountError::Nameless { uid: uid.as_raw() })
}
