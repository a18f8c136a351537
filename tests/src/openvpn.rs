//! Stock OpenVPN clients, as a gateway in the field runs one.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cloudlink_certs::pem::certificate_to_pem;

use crate::dial::Credentials;
use crate::enroll::Enrolled;
use crate::fleet::Fleet;
use crate::netns::{Site, done};
use crate::poll::wait_for;
use crate::program::Program;
use crate::server::SERVER_NAME;

/// From the start, or from the loss of a connection, until a client has a tunnel.
pub const TUNNEL_LIMIT: Duration = Duration::from_secs(30);
/// What a client says when its tunnel is up.
pub const UP: &str = "Initialization Sequence Completed";

/// A client's configuration.
#[derive(Clone, Debug)]
pub struct Profile {
    text: String,
}

impl Profile {
    /// Of a client that dials `remote`, and trusts `ca_pem`.
    #[must_use]
    pub fn new(remote: SocketAddr, ca_pem: &str) -> Self {
        let text = format!(
            "client
dev tun
proto tcp-client
remote {} {}
nobind
connect-retry 1 4
remote-cert-tls server
<ca>
{ca_pem}</ca>
",
            remote.ip(),
            remote.port(),
        );
        Self { text }
    }

    /// A profile that somebody else wrote.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self { text: text.to_owned() }
    }

    /// With a certificate to show.
    #[must_use]
    pub fn with_credentials(self, credentials: &Credentials) -> Self {
        let certificate = certificate_to_pem(&credentials.certificate);
        self.with_file("cert", &certificate).with_file("key", &credentials.key.to_pem())
    }

    /// With something that is a file on other devices.
    #[must_use]
    pub fn with_file(mut self, option: &str, content: &str) -> Self {
        let _ = writeln!(self.text, "<{option}>\n{}\n</{option}>", content.trim_end());
        self
    }

    /// With an option more.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        let _ = writeln!(self.text, "{line}");
        self
    }
}

/// A running client. Dropped, it is stopped.
#[derive(Debug)]
pub struct Client {
    /// Where it runs.
    pub site: Arc<Site>,
    profile: PathBuf,
    log: PathBuf,
    program: Program,
}

/// What a client has been given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub interface: String,
    pub ipv4: Ipv4Addr,
    pub netmask: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub gateway_ipv4: Ipv4Addr,
    pub gateway_ipv6: Ipv6Addr,
    /// The options that the server pushed.
    pub pushed: Vec<String>,
}

impl Client {
    /// Starts a client at a site. Its files are written to `directory`, under `name`.
    pub fn start(site: &Arc<Site>, directory: &Path, name: &str, profile: &Profile) -> anyhow::Result<Self> {
        let (file, log) = (directory.join(format!("{name}.ovpn")), directory.join(format!("{name}.openvpn.log")));
        std::fs::write(&file, &profile.text)?;
        let program = run(site, &file, &log)?;
        Ok(Self { site: Arc::clone(site), profile: file, log, program })
    }

    /// Waits for its tunnel, the `count`th since it was started.
    pub async fn is_up(&mut self, count: usize) -> anyhow::Result<Tunnel> {
        wait_for(&format!("tunnel {count}"), TUNNEL_LIMIT, async || {
            if let Err(ended) = self.program.ensure_running() {
                return Ok(Err(ended));
            }
            let log = self.log_text()?;
            anyhow::ensure!(log.matches(UP).count() >= count, "{log}");
            Ok(Tunnel::read(&log))
        })
        .await?
    }

    /// Waits until it says something.
    pub async fn says(&self, part: &str) -> anyhow::Result<()> {
        self.says_times(part, 1).await
    }

    pub async fn says_times(&self, part: &str, count: usize) -> anyhow::Result<()> {
        wait_for(&format!("{part:?}"), TUNNEL_LIMIT, async || {
            let log = self.log_text()?;
            anyhow::ensure!(log.matches(part).count() >= count, "{log}");
            Ok(())
        })
        .await
    }

    /// What it has said since it was started first.
    pub fn log_text(&self) -> anyhow::Result<String> {
        self.program.log_text()
    }

    /// Lines that a healthy session never has.
    pub fn complaints(&self) -> anyhow::Result<Vec<String>> {
        const BAD: [&str; 7] =
            ["ERROR", "Error", "WARNING: 'link-mtu'", "dropped", "Bad ", "out of sync", "inconsistent"];
        let log = self.log_text()?;
        Ok(log.lines().filter(|line| BAD.iter().any(|bad| line.contains(bad))).map(str::to_owned).collect())
    }

    /// Its process, to be looked at or signalled.
    pub const fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Whether it still runs, connected or not.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.program.exit_status()?.is_none())
    }

    /// As a power cut would: the server is not told.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.program.kill()
    }

    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.program.stop()?;
        self.program = run(&self.site, &self.profile, &self.log)?;
        Ok(())
    }
}

fn run(site: &Site, profile: &Path, log: &Path) -> anyhow::Result<Program> {
    let mut command = site.bound("openvpn");
    command.arg("--config").arg(profile).args(["--verb", "3"]);
    Program::start("openvpn", command, log)
}

impl Tunnel {
    /// Reads the newest one out of a client's log.
    fn read(log: &str) -> anyhow::Result<Self> {
        let last = |before: &str, after: &str| {
            let found = log.lines().rev().find_map(|line| line.split_once(before)?.1.split_once(after));
            found.map(|(found, _)| found.to_owned()).with_context(|| format!("no {before:?} in the log:\n{log}"))
        };
        let interface = last("TUN/TAP device ", " opened")?;
        let pushed: Vec<_> = last("'PUSH_REPLY,", "'")?.split(',').map(str::to_owned).collect();
        let word = |option: &str, number| {
            let words = pushed.iter().find_map(|line| line.strip_prefix(option)?.strip_prefix(' '));
            let word = words.and_then(|words| words.split(' ').nth(number));
            word.with_context(|| format!("no {option:?} in {pushed:?}"))
        };
        let (ipv4, netmask): (Ipv4Addr, Ipv4Addr) = (word("ifconfig", 0)?.parse()?, word("ifconfig", 1)?.parse()?);
        let ipv6 = word("ifconfig-ipv6", 0)?;
        Ok(Self {
            interface,
            ipv4,
            netmask,
            ipv6: ipv6.split_once('/').map_or(ipv6, |(address, _)| address).parse()?,
            // The first address of the network.
            gateway_ipv4: ((u32::from(ipv4) & u32::from(netmask)) + 1).into(),
            gateway_ipv6: word("ifconfig-ipv6", 1)?.parse()?,
            pushed,
        })
    }
}

impl Tunnel {
    /// Waits until the kernel uses the tunnel's addresses. On a busy machine it takes a moment until it is through with an IPv6
    /// address, and packets have another source meanwhile: the server drops them.
    async fn is_addressed(&self, site: &Site) -> anyhow::Result<()> {
        wait_for("an address that is not tentative", TUNNEL_LIMIT, async || {
            let mut ip = site.command("ip");
            ip.args(["-6", "-oneline", "address", "show", "dev", &self.interface, "tentative"]);
            let tentative = done(ip)?;
            anyhow::ensure!(tentative.is_empty(), "{tentative}");
            Ok(())
        })
        .await
    }
}

/// Pings that are sent, and must come back.
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    pub count: u32,
    pub interval: Duration,
    /// Of the payload: 28 bytes less than the IPv4 packet, 48 less than the IPv6 one.
    pub size: u16,
    /// Whether they may be sent in fragments.
    pub fragments: bool,
}

impl Default for Pings {
    fn default() -> Self {
        Self { count: 3, interval: Duration::from_millis(100), size: 56, fragments: false }
    }
}

impl Pings {
    /// Pings an address through an interface of a site, and counts the answers.
    pub async fn send(&self, site: &Site, interface: &str, to: impl Into<IpAddr>) -> anyhow::Result<u32> {
        let mut command = site.command("ping");
        command
            .args(["-q", "-W", "2", "-I", interface, "-c", &self.count.to_string(), "-s", &self.size.to_string()])
            .args(["-i", &self.interval.as_secs_f32().to_string(), "-M", if self.fragments { "dont" } else { "do" }])
            .arg(to.into().to_string());
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        let text = String::from_utf8(output.stdout)?;
        let received = text.split_once(" received").and_then(|(before, _)| before.rsplit(' ').next());
        let received = received.and_then(|number| number.parse().ok());
        received.with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Pings the server at the other end of a tunnel, in both families at once. None may be lost.
    pub async fn come_back(&self, client: &Client, tunnel: &Tunnel) -> anyhow::Result<()> {
        tunnel.is_addressed(&client.site).await?;
        let check = async |gateway: IpAddr| {
            let received = self.send(&client.site, &tunnel.interface, gateway).await?;
            anyhow::ensure!(received == self.count, "{received} of {self:?} came back from {gateway}");
            Ok(())
        };
        let both = tokio::try_join!(check(tunnel.gateway_ipv4.into()), check(tunnel.gateway_ipv6.into()));
        both.with_context(|| client.log_text().unwrap_or_default())?;
        Ok(())
    }
}

impl Fleet {
    /// The profile of a device that is enrolled, for a server without a wrapping key.
    pub fn profile(&self, device: &Enrolled) -> anyhow::Result<Profile> {
        Ok(self.profile_of_nobody()?.with_credentials(&device.credentials))
    }

    /// A profile without a certificate.
    pub fn profile_of_nobody(&self) -> anyhow::Result<Profile> {
        Ok(Profile::new(self.server.device, &std::fs::read_to_string(self.server.ca_file())?))
    }

    /// The profile that the command line gives out for a device, with everything in it.
    pub async fn issued_profile(&self, device: &Enrolled) -> anyhow::Result<Profile> {
        let (key, file) = (self.path(&format!("{}.key", device.id)), self.path(&format!("{}.issued.ovpn", device.id)));
        std::fs::write(&key, device.credentials.key.to_pem().as_bytes())?;
        let (key, output) = (key.to_str().context("not UTF-8")?, file.to_str().context("not UTF-8")?);
        let arguments = ["device", "openvpn-profile", &device.id, "--key-file", key, "--output", output];
        let said = self.cli(self.tenant.token()).run(&arguments).await?;
        anyhow::ensure!(said.code == Some(0), "{said:?}");
        let text = std::fs::read_to_string(&file)?;
        let (by_name, address) = (format!("\nremote {SERVER_NAME} "), self.server.device.ip());
        anyhow::ensure!(text.contains(&by_name), "{text}");
        // As a name server would tell the client.
        Ok(Profile::from_text(&text.replace(&by_name, &format!("\nremote {address} "))))
    }

    /// Enrolls a device, and starts a stock client for it.
    pub async fn client(&self, site: &Arc<Site>, name: &str) -> anyhow::Result<(Enrolled, Client)> {
        self.client_with(site, name, |profile| profile).await
    }

    /// The same, with more in its profile.
    pub async fn client_with(
        &self,
        site: &Arc<Site>,
        name: &str,
        change: impl FnOnce(Profile) -> Profile,
    ) -> anyhow::Result<(Enrolled, Client)> {
        let device = self.enrolled(name).await?;
        let client = self.start_client(site, name, &change(self.profile(&device)?))?;
        Ok((device, client))
    }

    /// Starts a client whose files are with those of the fleet.
    pub fn start_client(&self, site: &Arc<Site>, name: &str, profile: &Profile) -> anyhow::Result<Client> {
        Client::start(site, &self.path(""), name, profile)
    }
}

/// Lets `openvpn --genkey` write a key to a file, with what is to be in it besides, and gives back the file's text.
pub fn generate_key(arguments: &[&str], file: &Path, metadata: &str) -> anyhow::Result<String> {
    let mut command = std::process::Command::new("openvpn");
    command.args(arguments).arg(file);
    if !metadata.is_empty() {
        command.arg(metadata);
    }
    done(command)?;
    Ok(std::fs::read_to_string(file)?)
}
