use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cloudlink_proto::ids::TenantId;
use tempfile::TempDir;
use uuid::Uuid;

use super::until_listening;
use crate::clock;
use crate::fleet::directory;
use crate::load::fleet::{Fleet as Keys, new_authority};
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
    is_guarded: bool,
}

/// Of a server that wants to know who comes.
const USER: &str = "cloudlink";
const PASSWORD: &str = "of-tests-only";

impl Nats {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    pub async fn start_at(ip: IpAddr) -> anyhow::Result<Self> {
        let directory = directory()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
        let at = |free: SocketAddr| SocketAddr::new(ip, free.port());
        let (address, monitor) = (at(port::free()?), at(port::free()?));
        Self::begin(address, monitor, directory, false).await
    }

    /// One that is reached over TLS only, under a certificate of an authority of its own, and by who knows a password.
    pub async fn start_guarded() -> anyhow::Result<Self> {
        let directory = directory()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
        let (address, monitor) = (port::free()?, port::free()?);
        let now = clock::now();
        let authority = new_authority(now)?;
        let ca = authority.certificate_pem();
        let keys = Keys::issue(authority, &"cloudlink.test".parse()?, TenantId::from_uuid(Uuid::nil()), 0, now)?;
        let credential = keys.issue_server(now)?;
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("ca.pem"), ca)?;
        std::fs::write(at("server.pem"), &credential.certificate_pem)?;
        std::fs::write(at("server.key"), credential.key.to_pem().as_bytes())?;
        std::fs::write(at("url"), format!("tls://{USER}:{PASSWORD}@localhost:{}\n", address.port()))?;
        let config = format!(
            r#"tls {{ cert_file: "{}", key_file: "{}" }}
authorization {{ user: "{USER}", password: "{PASSWORD}" }}
"#,
            at("server.pem").display(),
            at("server.key").display(),
        );
        std::fs::write(at("nats.conf"), config)?;
        Self::begin(address, monitor, directory, true).await
    }

    async fn begin(
        address: SocketAddr,
        monitor: SocketAddr,
        directory: TempDir,
        is_guarded: bool,
    ) -> anyhow::Result<Self> {
        let program = Self::run(address, monitor, directory.path())?;
        let mut nats = Self { program, address, monitor, directory, is_guarded };
        until_listening(&mut nats.program, address).await?;
        Ok(nats)
    }

    /// What a node's configuration says of it.
    #[must_use]
    pub fn settings(&self) -> Vec<String> {
        if !self.is_guarded {
            return vec![format!("cluster.nats=nats://{}", self.address)];
        }
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        vec![format!("cluster.nats_file={}", at("url")), format!("cluster.nats_ca={}", at("ca.pem"))]
    }

    fn run(address: SocketAddr, monitor: SocketAddr, directory: &Path) -> anyhow::Result<Program> {
        let mut command = bound("nats-server");
        command.arg("-a").arg(address.ip().to_string()).arg("-p").arg(address.port().to_string());
        command.arg("-m").arg(monitor.port().to_string());
        let config = directory.join("nats.conf");
        if config.exists() {
            command.arg("-c").arg(config);
        }
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
