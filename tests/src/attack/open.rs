use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cloudlink_certs::TrustDomain;
use cloudlink_proto::ids::TenantId;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::now;
use crate::load::Fleet;
use crate::load::fleet::new_authority;
use crate::netns::{SERVER_IPV4, Site};
use crate::openvpn::{Client, Profile, UP};
use crate::poll::wait_for;
use crate::program::{Program, bound};

use super::host::{here, open_host};
use super::world::World;

const PORT: u16 = 443;
const INTERFACE: &str = "atopen0";
const START_LIMIT: Duration = Duration::from_secs(20);

/// A stock OpenVPN server on a host that forwards everything: what such servers are like when nobody has closed them.
#[derive(Debug)]
pub struct OpenServer {
    fleet: Fleet,
    directory: PathBuf,
    /// Of its own, in the place of the port that agents use.
    _program: Program,
}

/// A client whose packets the server takes from other addresses than its own, for it is told that networks are behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forger {
    /// All networks but those of the tunnels.
    Outside,
    /// The gateway.
    Gateway,
    /// The other device, which must have gone before.
    Gone,
}

impl Forger {
    /// The kind of cases that take it.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Gateway => "gateway",
            Self::Gone => "gone",
        }
    }

    const fn device(self) -> usize {
        match self {
            Self::Outside => 2,
            Self::Gateway => 3,
            Self::Gone => 4,
        }
    }
}

const ATTACKER: usize = 0;
const VICTIM: usize = 1;
const DEVICES: usize = 5;

impl OpenServer {
    pub const INTERFACE: &str = INTERFACE;

    /// Starts one where the caller is.
    pub async fn start(world: &World) -> anyhow::Result<Self> {
        let directory = world.directory().join("open-server");
        std::fs::create_dir_all(directory.join("clients"))?;
        let now = now();
        let domain: TrustDomain = "attack.test".parse()?;
        let fleet = Fleet::issue(new_authority(now)?, &domain, TenantId::from_uuid(Uuid::now_v7()), DEVICES, now)?;
        let config = directory.join("server.conf");
        std::fs::write(&config, configuration(&directory, &fleet, now)?)?;
        let mut command = bound("openvpn");
        command.arg("--config").arg(&config);
        let mut program = Program::start("openvpn", command, &directory.join("server.log"))?;
        wait_for("an OpenVPN server that listens", START_LIMIT, async || {
            if let Err(ended) = program.ensure_running() {
                return Ok(Err(ended));
            }
            anyhow::ensure!(program.log_text()?.contains(UP), "{}", program.log_text()?);
            Ok(Ok(()))
        })
        .await??;
        let server = Self { fleet, directory, _program: program };
        // A link-local address belongs to who has it.
        server.networks(VICTIM, &["169.254.0.3/32", "fe80::3/128"])?;
        here(&format!(
            "ip addr del 100.64.0.1/16 dev {INTERFACE}; ip addr add 100.64.0.1/16 broadcast + dev {INTERFACE}
             ip addr add 169.254.0.1/24 dev {INTERFACE}; ip addr replace fe80::1/64 dev {INTERFACE} nodad
             ip link set {INTERFACE} txqueuelen 100000"
        ))?;
        open_host(INTERFACE)?;
        Ok(server)
    }

    pub fn attacker(&self, site: &Arc<Site>) -> anyhow::Result<Client> {
        self.client(site, "attacker", ATTACKER)
    }

    pub fn victim(&self, site: &Arc<Site>) -> anyhow::Result<Client> {
        self.client(site, "victim", VICTIM)
    }

    /// A client that the server takes for networks.
    pub fn forger(&self, site: &Arc<Site>, forger: Forger, networks: &[&str]) -> anyhow::Result<Client> {
        self.networks(forger.device(), networks)?;
        self.client(site, forger.kind(), forger.device())
    }

    fn client(&self, site: &Arc<Site>, name: &str, device: usize) -> anyhow::Result<Client> {
        let credentials = self.fleet.devices.get(device).context("no such device")?.credentials();
        let remote = SocketAddr::from((SERVER_IPV4, PORT));
        let profile = Profile::new(remote, &self.fleet.authority.certificate_pem()).with_credentials(&credentials);
        // The client itself would keep what is for the server's own address from the tunnel.
        let profile = profile.with("allow-recursive-routing");
        Client::start(site, &self.directory, name, &profile)
    }

    fn networks(&self, device: usize, networks: &[&str]) -> anyhow::Result<()> {
        let device = self.fleet.devices.get(device).context("no such device")?;
        let mut lines = String::new();
        for network in networks {
            let (address, bits) = network.split_once('/').context("not a network")?;
            if address.contains(':') {
                lines += &format!("iroute-ipv6 {network}\n");
            } else {
                let mask = u32::MAX.checked_shl(32 - bits.parse::<u32>()?).unwrap_or(0);
                lines += &format!("iroute {address} {}\n", Ipv4Addr::from(mask));
            }
        }
        std::fs::write(self.directory.join("clients").join(device.id.to_string()), lines)?;
        Ok(())
    }
}

/// As its manual has it for clients that are to reach each other.
fn configuration(directory: &Path, fleet: &Fleet, now: OffsetDateTime) -> anyhow::Result<String> {
    let (ca, certificate, key) = (directory.join("ca.crt"), directory.join("server.crt"), directory.join("server.key"));
    let server = fleet.issue_server(now)?;
    std::fs::write(&ca, fleet.authority.certificate_pem())?;
    std::fs::write(&certificate, server.certificate_pem)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key)?;
    file.write_all(server.key.to_pem().as_bytes())?;
    Ok(format!(
        "local {SERVER_IPV4}
port {PORT}
proto tcp-server
dev {INTERFACE}
dev-type tun
topology subnet
server 100.64.0.0 255.255.0.0
server-ipv6 fd00:64::/64
client-to-client
client-config-dir {}
keepalive 10 60
tcp-queue-limit 100000
dh none
disable-dco
verb 1
ca {}
cert {}
key {}
",
        directory.join("clients").display(),
        ca.display(),
        certificate.display(),
        key.display(),
    ))
}
