use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::until_listening;
use crate::fleet::directory;
use crate::port;
use crate::program::{Program, bound};

/// A NATS server, by default on the loopback interface.
#[derive(Debug)]
pub struct Nats {
    program: Program,
    pub address: SocketAddr,
    /// Where it says over HTTP what has passed.
    pub monitor: SocketAddr,
    directory: TempDir,
}

impl Nats {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    pub async fn start_at(ip: IpAddr) -> anyhow::Result<Self> {
        let directory = directory()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
        let at = |free: SocketAddr| SocketAddr::new(ip, free.port());
        let (address, monitor) = (at(port::free()?), at(port::free()?));
        let program = Self::run(address, monitor, directory.path())?;
        let mut nats = Self { program, address, monitor, directory };
        until_listening(&mut nats.program, address).await?;
        Ok(nats)
    }

    fn run(address: SocketAddr, monitor: SocketAddr, directory: &Path) -> anyhow::Result<Program> {
        let mut command = bound("nats-server");
        command.arg("-a").arg(address.ip().to_string()).arg("-p").arg(address.port().to_string());
        command.arg("-m").arg(monitor.port().to_string());
        Program::start("nats-server", command, &directory.join("nats.log"))
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.program = Self::run(self.address, self.monitor, self.directory.path())?;
        until_listening(&mut self.program, self.address).await
    }
}
