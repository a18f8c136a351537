//! The servers that are measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::bench::peer::Files;
use crate::bench::usage::Process;
use crate::bench::{connect, seed};
use crate::fleet::Fleet as People;
use crate::load::{Fleet, Target};
use crate::netns::SERVER_IPV4;
use crate::openvpn::{Profile, UP};
use crate::poll::wait_for;
use crate::program::{Program, bound};
use crate::server::Settings;

/// Nobody else is in the network that this runs in.
const CLOUDLINK_PORT: u16 = 26_000;
const STOCK_PORT: u16 = 26_001;
/// How long OpenVPN may take until it listens.
const START_WITHIN: Duration = Duration::from_secs(20);

/// A running server. It is stopped when dropped.
#[derive(Debug)]
pub struct Server {
    pub(super) name: &'static str,
    pub(super) process: Process,
    port: u16,
    ca_pem: String,
    fleet: Arc<Fleet>,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Cloudlink { people: Box<People> },
    Stock { _program: Program, _directory: TempDir },
}

impl Server {
    /// Starts `cloudlinkd` with its own Postgres, and makes a fleet of devices that it knows.
    pub async fn cloudlink(devices: usize, now: OffsetDateTime) -> Result<(Self, Arc<Fleet>)> {
        // Stock clients that come to the port at the same address are more than a customer has.
        let set = [
            "tunnel.enabled=true",
            "tunnel.interface=clb0",
            "log.filter=info",
            // More pings than a device makes are a measurement.
            "isolation.echo_requests_per_second=1000",
        ];
        let settings = Settings {
            device: Some((Ipv4Addr::UNSPECIFIED, CLOUDLINK_PORT).into()),
            set: set.map(str::to_owned).into(),
            ..Settings::default()
        };
        let mut people = Box::new(People::start_with(&settings).await.context("cannot start cloudlinkd")?);
        let database = seed::own_database(&people.server).await?;
        let fleet = Arc::new(seed::devices(&people, database, devices, now).await?);
        let server = Self {
            name: "cloudlinkd",
            process: Process::new(people.server.program().pid()),
            port: CLOUDLINK_PORT,
            ca_pem: fleet.authority.certificate_pem(),
            fleet: fleet.clone(),
            running: Running::Cloudlink { people },
        };
        Ok((server, fleet))
    }

    /// Starts OpenVPN for the devices of a fleet.
    pub async fn stock(fleet: &Arc<Fleet>, now: OffsetDateTime) -> Result<Self> {
        let directory = tempfile::tempdir().context("no directory for the configuration")?;
        let files = Files::write(directory.path(), fleet, now)?;
        let config = directory.path().join("server.conf");
        std::fs::write(&config, stock_config(&files))?;
        let mut command = bound("openvpn");
        command.arg("--config").arg(&config);
        let mut program = Program::start("openvpn", command, &directory.path().join("server.log"))?;
        wait_for("an OpenVPN server that listens", START_WITHIN, async || {
            if let Err(ended) = program.ensure_running() {
                return Ok(Err(ended));
            }
            ensure!(program.log_text()?.contains(UP));
            Ok(Ok(()))
        })
        .await??;
        Ok(Self {
            name: "openvpn",
            process: Process::new(program.pid()),
            port: STOCK_PORT,
            ca_pem: fleet.authority.certificate_pem(),
            fleet: fleet.clone(),
            running: Running::Stock { _program: program, _directory: directory },
        })
    }

    /// Where simulated devices dial it: on the loopback interface, where each customer can have an address.
    pub fn target(&self) -> Result<Target> {
        connect::target(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), &self.fleet)
    }

    /// Lets this host reach a port of a device in its tunnel. Stock servers let it reach all.
    pub(super) async fn open_port(&self, device: usize, port: u16) -> Result<()> {
        let device = self.fleet.devices.get(device).context("the fleet has no such device")?;
        if let Running::Cloudlink { people } = &self.running {
            people.open_port(&device.id.to_string(), port).await?;
        }
        Ok(())
    }

    /// The configuration of a stock client with the certificate of this device.
    pub fn profile(&self, device: usize) -> Result<Profile> {
        let device = self.fleet.devices.get(device).context("the fleet has no such device")?;
        let remote = SocketAddr::from((SERVER_IPV4, self.port));
        Ok(Profile::new(remote, &self.ca_pem).with_credentials(&device.credentials()))
    }
}

/// As its manual has it, and no safer than Cloudlink: TLS 1.3, AES-256-GCM, addresses of both kinds. It logs errors only.
fn stock_config(files: &Files) -> String {
    let Files { ca, certificate, key } = files;
    format!(
        "port {STOCK_PORT}
proto tcp-server
dev clbstock
dev-type tun
topology subnet
server 10.78.0.0 255.255.192.0
server-ipv6 fd00:78::/64
max-clients 16000
keepalive 10 60
dh none
tls-version-min 1.3
remote-cert-tls client
data-ciphers AES-256-GCM
disable-dco
verb 1
ca {}
cert {}
key {}
",
        ca.display(),
        certificate.display(),
        key.display()
    )
}
