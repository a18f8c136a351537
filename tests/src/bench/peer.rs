//! The servers that Cloudlink is measured beside, set up alike: TLS 1.3, a client certificate of the fleet's authority
//! required, no port in the clear, nothing kept on disk.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpStream;

use super::usage::Process;
use crate::load::{Fleet, Protocol};
use crate::poll::wait_for;
use crate::port;
use crate::program::Program;

/// How long a server may take until it listens.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Mosquitto,
    Nats,
}

impl Peer {
    pub const ALL: [Self; 2] = [Self::Mosquitto, Self::Nats];

    /// Name of the program and of its Debian package.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mosquitto => "mosquitto",
            Self::Nats => "nats-server",
        }
    }

    #[must_use]
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Mosquitto => Protocol::Mqtt,
            Self::Nats => Protocol::Nats,
        }
    }

    /// Starts it on a free port of the loopback interface and waits until it listens.
    pub async fn start(self, fleet: &Fleet, now: OffsetDateTime) -> Result<Server> {
        let directory = tempfile::tempdir().context("no directory for the configuration")?;
        let address = port::free()?;
        let files = Files::write(directory.path(), fleet, now)?;
        let config = directory.path().join("server.conf");
        std::fs::write(&config, self.config(address, &files))?;
        let mut command = Command::new(self.program()?);
        command.arg("-c").arg(&config);
        let program = Program::start(self.name(), command, &directory.path().join("server.log"))?;
        let mut server = Server { program, address, _directory: directory };
        server.until_listening().await?;
        Ok(server)
    }

    /// On PATH, or where Debian puts daemons.
    fn program(self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let found = places.find_map(|place| Some(place.join(self.name())).filter(|program| program.is_file()));
        found.with_context(|| format!("{0} is not installed: apt-get install {0}", self.name()))
    }

    fn config(self, address: SocketAddr, files: &Files) -> String {
        let Files { ca, certificate, key } = files;
        let (ca, certificate, key) = (ca.display(), certificate.display(), key.display());
        let (host, port) = (address.ip(), address.port());
        match self {
            Self::Mosquitto => format!(
                "listener {port} {host}\n\
                 cafile {ca}\ncertfile {certificate}\nkeyfile {key}\n\
                 require_certificate true\nuse_identity_as_username true\ntls_version tlsv1.3\n\
                 persistence false\nmax_connections -1\nuser root\nlog_type error\nlog_type warning\n"
            ),
            Self::Nats => format!(
                "listen: \"{address}\"\n\
                 tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true, timeout: 60 }}\n\
                 authorization {{ timeout: 60 }}\nmax_connections: 65536\n"
            ),
        }
    }
}

/// A running server. It is stopped when dropped.
#[derive(Debug)]
pub struct Server {
    program: Program,
    address: SocketAddr,
    _directory: TempDir,
}

impl Server {
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn process(&self) -> Process {
        Process::new(self.program.pid())
    }

    async fn until_listening(&mut self) -> Result<()> {
        wait_for("a server that listens", START_WITHIN, async || {
            if let Err(ended) = self.program.ensure_running() {
                return Ok(Err(ended));
            }
            TcpStream::connect(self.address).await?;
            Ok(Ok(()))
        })
        .await?
    }
}

pub(super) struct Files {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Files {
    pub(super) fn write(directory: &Path, fleet: &Fleet, now: OffsetDateTime) -> Result<Self> {
        let files = Self {
            ca: directory.join("ca.crt"),
            certificate: directory.join("server.crt"),
            key: directory.join("server.key"),
        };
        let server = fleet.issue_server(now)?;
        std::fs::write(&files.ca, fleet.authority.certificate_pem())?;
        std::fs::write(&files.certificate, server.certificate_pem)?;
        let mut key = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&files.key)?;
        key.write_all(server.key.to_pem().as_bytes())?;
        Ok(files)
    }
}
