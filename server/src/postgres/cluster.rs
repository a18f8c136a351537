//! The files of the cluster.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::account::{Account, AccountError};
use super::binaries::Binaries;
use crate::privilege;

/// The superuser of the cluster, who owns the schema.
pub const OWNER: &str = "postgres";
/// The login of the server, which may do what `cloudlink_app` may.
pub const LOGIN: &str = "cloudlink_server";
/// Names the socket; no TCP port is opened.
pub const PORT: u16 = 5432;
/// The most bytes of a socket's path (`sun_path` of unix(7), without its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why the cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error("cannot {verb} {}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is {length} bytes long, and a socket's path may have {SOCKET_PATH_BYTES_MAX}: use a shorter data_dir", path.display())]
    SocketPath { path: PathBuf, length: usize },
    #[error("{} is not a cluster of Postgres: its PG_VERSION cannot be read as a number", path.display())]
    Version { path: PathBuf },
    #[error("initdb failed: {said}")]
    Init { said: String },
    #[error("cannot run initdb")]
    Run(#[source] std::io::Error),
}

/// A cluster, which may not exist yet.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    pub(super) account: Account,
}

impl Cluster {
    /// Makes the directories around it.
    pub(super) fn prepare(data_dir: &Path, account: Account) -> Result<Self, ClusterError> {
        let data_dir = data_dir.canonicalize().map_err(|source| file("find", data_dir, source))?;
        account.check_entry(&data_dir)?;
        let cluster = Self { dir: data_dir.join("postgres"), account };
        let socket = cluster.socket_dir().join(format!(".s.PGSQL.{PORT}"));
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            return Err(ClusterError::SocketPath { path: socket, length });
        }
        cluster.own_dir(&cluster.dir)?;
        cluster.own_dir(&cluster.socket_dir())?;
        Ok(cluster)
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The version of the data, if there is any.
    pub(super) fn version(&self) -> Result<Option<u32>, ClusterError> {
        let path = self.data_dir().join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| ClusterError::Version { path: self.data_dir() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", &path, error)),
        }
    }

    /// Makes the cluster, and writes who may connect.
    pub(super) async fn create_if_missing(&self, binaries: &Binaries) -> Result<(), ClusterError> {
        if self.version()?.is_none() {
            tracing::info!(directory = %self.data_dir().display(), version = binaries.version, "making a cluster of Postgres");
            self.create(binaries).await?;
        }
        self.write_access()
    }

    /// Made beside its place and moved there when it is whole: whoever is killed here starts over.
    async fn create(&self, binaries: &Binaries) -> Result<(), ClusterError> {
        let unfinished = self.dir.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(|source| file("remove", &unfinished, source))?;
        }
        let mut command = Command::new(binaries.dir.join("initdb"));
        command
            .arg("--pgdata")
            .arg(&unfinished)
            .args(["--username", OWNER, "--auth", "peer", "--encoding", "UTF8", "--locale", "C.UTF-8"])
            .args(["--data-checksums", "--no-instructions"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        self.account.become_in(&mut command);
        let child = privilege::without(&mut command).map_err(ClusterError::Run)?;
        let output = child.wait_with_output().await.map_err(ClusterError::Run)?;
        if !output.status.success() {
            return Err(ClusterError::Init { said: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
        }
        let data_dir = self.data_dir();
        fs::rename(&unfinished, &data_dir).map_err(|source| file("move", &unfinished, source))?;
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|source| file("write", &self.dir, source))
    }

    /// Who may connect: this process and Postgres' own user, over the socket, proven by the kernel.
    fn write_access(&self) -> Result<(), ClusterError> {
        let mut map = String::new();
        for user in [&self.account.own_name, &self.account.name] {
            for role in [OWNER, LOGIN] {
                map.push_str(&format!("cloudlink \"{user}\" {role}\n"));
            }
        }
        self.write("pg_hba.conf", "local all all peer map=cloudlink\n")?;
        self.write("pg_ident.conf", &map)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.data_dir().join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o600)))
            .and_then(|()| self.account.give(&path))
            .map_err(|source| file("write", &path, source))
    }

    fn own_dir(&self, path: &Path) -> Result<(), ClusterError> {
        let made = DirBuilder::new().mode(0o700).create(path);
        made.or_else(|error| if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
            .and_then(|()| self.account.give(path))
            .map_err(|source| file("make", path, source))
    }
}

/// Lets the other user pass through a directory of root's, without seeing what is in it. The files in it are protected by
/// their own modes.
pub(crate) fn open_passage(path: &Path) -> std::io::Result<()> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    if nix::unistd::geteuid().is_root() && metadata.uid() == 0 && mode & 0o001 == 0 {
        fs::set_permissions(path, Permissions::from_mode(mode | 0o001))?;
    }
    Ok(())
}

fn file(verb: &'static str, path: &Path, source: std::io::Error) -> ClusterError {
    ClusterError::File { verb, path: path.to_owned(), source }
}
