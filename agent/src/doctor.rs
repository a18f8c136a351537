//! Looks at everything that a link needs, in the order in which it is needed, and says what to do about what is wrong.

mod stream;
mod tunnel;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use cloudlink_certs::{KeyId, TrustAnchor};
use nix::sys::statvfs::statvfs;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;

use crate::access::{self, Need};
use crate::agent::load_anchor;
use crate::clock::{KnownTime, wall_clock};
use crate::config::{Argv, Config, Proxy, Server, Transport};
use crate::dial::{self, DialError, Traffic, Wire};
use crate::executor::{self, Bus};
use crate::identity::{Identity, Slot};
use crate::ladder::memory::Memory;
use crate::ladder::network::Network;
use crate::ledger::Ledger;
use crate::tls::{self, Bounds};
use crate::tunnel::client::is_executable;
use crate::{chain, machine};

/// Less than this under the state directory is too little for the ledger to grow.
const FREE_BYTES_MIN: u64 = 1024 * 1024;

/// How long the container engine may take to answer.
const ENGINE_WITHIN: Duration = Duration::from_secs(10);

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub about: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do; empty when all is well.
    pub advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// It works, or will when something else does.
    Warning,
    Bad,
}

impl Finding {
    fn good(about: &'static str, found: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Good, found: found.into(), advice: String::new() }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Bad, found: found.into(), advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD ",
        };
        write!(f, "{verdict}  {:<12} {}", self.about, self.found)?;
        if !self.advice.is_empty() {
            write!(f, "\n      {:<12} -> {}", "", self.advice)?;
        }
        Ok(())
    }
}

/// Looks at everything. Changes nothing, and may be run beside a running agent.
pub async fn examine(config: &Config, bus: &Bus) -> Vec<Finding> {
    let mut findings = vec![boot_id(config)];
    findings.extend(state(&config.state_dir));
    let identity = identity(config, &mut findings);
    findings.push(access(config, identity.as_ref()));
    findings.push(transports(config));
    findings.push(executors(config, bus).await);
    findings.extend(argvs(config));
    findings.extend(containers(config).await);
    findings.extend(stream::examine(config));
    match load_anchor(config) {
        Ok(anchor) => {
            findings.push(Finding::good("ca file", format!("{} root(s)", anchor.roots().len())));
            let known_time = KnownTime::load(&config.state_dir, tls::authority_made(&anchor));
            findings.push(clock(config, &known_time, identity.as_ref()));
            if dials_by_itself(config) {
                findings.extend(network(config, &anchor, &known_time, identity.as_ref()).await);
            }
        }
        Err(error) => findings.push(Finding::bad(
            "ca file",
            format!("{error:#}"),
            "put the fleet's root certificate (PEM) there; the server writes it with `cloudlinkd pki init`",
        )),
    }
    if config.server.uses(Transport::OpenVpn) {
        findings.extend(tunnel::examine(config).await);
    }
    findings
}

/// Which way the link is made, and which one worked last on this network.
fn transports(config: &Config) -> Finding {
    let names: Vec<&str> = config.server.transports.iter().map(|transport| transport.name()).collect();
    if names.len() == 1 {
        return Finding::good("transports", format!("{} alone", names.join(", ")));
    }
    let network = Network::look(Path::new("/"));
    let found = match Memory::load(&config.state_dir).of(&network) {
        Some(transport) => format!("{}; here ({network}) {} worked last", names.join(", "), transport.name()),
        None => format!("{}; here ({network}) none has worked for long yet", names.join(", ")),
    };
    Finding::good("transports", found)
}

/// Whether the server can be looked at without a tunnel: it takes TLS on the port that tunnels come to. Behind a proxy, or beside
/// a client of somebody else, this device may not get there.
fn dials_by_itself(config: &Config) -> bool {
    let starts_client = || config.openvpn.started.as_ref().is_some_and(|started| started.http_proxy.is_none());
    config.server.is_dialled_directly() || starts_client()
}

fn boot_id(config: &Config) -> Finding {
    match machine::boot_id(&config.boot_id_path) {
        Ok(boot_id) => Finding::good("boot id", boot_id),
        Err(error) => Finding::bad(
            "boot id",
            format!("{}: {error}", config.boot_id_path.display()),
            "without it no reboot can be proven: set boot_id_path to a file that changes with each boot",
        ),
    }
}

fn state(state_dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match statvfs(state_dir) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            let found = format!("{} KiB free under {}", free / 1024, state_dir.display());
            findings.push(if free < FREE_BYTES_MIN {
                Finding::bad("disk", found, "make room: with a full disk every command is refused as ledger_full")
            } else {
                Finding::good("disk", found)
            });
        }
        Err(error) => {
            let advice = "it is made by `cloudlink-agent enroll`; check state_dir and who may write there";
            findings.push(Finding::warning("disk", format!("{}: {error}", state_dir.display()), advice));
        }
    }
    findings.push(match Ledger::inspect(state_dir) {
        Ok(found) => match found.damage {
            None => Finding::good(
                "ledger",
                format!("{} command(s), {} without receipt, {} bytes", found.entries, found.unreceipted, found.bytes),
            ),
            Some(damage) => Finding::bad(
                "ledger",
                format!("damaged at byte {} of {}", damage.offset, found.bytes),
                "every command is refused as ledger_corrupt. Check the disk. Moving the file away lets commands in again, at \
                 the risk that one of the past runs a second time",
            ),
        },
        Err(error) => Finding::bad("ledger", format!("cannot be read: {error}"), "run doctor as the agent's user"),
    });
    findings
}

fn identity(config: &Config, findings: &mut Vec<Finding>) -> Option<Identity> {
    match Identity::load(&config.state_dir) {
        Ok(identity) if identity.is_enrolled() => Some(identity),
        Ok(_) if !config.server.is_dialled_directly() && config.openvpn.started.is_none() => {
            findings.push(Finding::good("certificate", "none: the OpenVPN client proves who the device is"));
            None
        }
        Ok(_) => {
            findings.push(Finding::bad(
                "certificate",
                "none: the device is not enrolled",
                "get a token (`cloudlink enroll-token create`) and run `cloudlink-agent enroll --token-file FILE`",
            ));
            None
        }
        Err(error) => {
            findings.push(Finding::bad(
                "certificate",
                chain(&error),
                "run doctor as the agent's user; if the file is spoilt, remove it and enroll anew",
            ));
            None
        }
    }
}

fn clock(config: &Config, known_time: &KnownTime, identity: Option<&Identity>) -> Finding {
    let now = wall_clock();
    let earliest = known_time.earliest();
    let advice = if config.server.uses(Transport::OpenVpn) {
        "set the clock or enable time synchronisation; OpenVPN judges certificates by it, and has no tunnel until then"
    } else {
        "set the clock or enable time synchronisation; the agent judges certificates by the server's last time until then"
    };
    if now < earliest {
        return Finding::warning(
            "clock",
            format!("{} is before {}, which has been", shown(now), shown(earliest)),
            advice,
        );
    }
    if identity.and_then(Identity::ends_at).is_some_and(|ends| now > ends) {
        let found = format!("{} is after the end of the device's own certificate", shown(now));
        return Finding::warning("clock", found, format!("if the time is right, enroll anew; otherwise {advice}"));
    }
    Finding::good("clock", shown(now))
}

async fn network(
    config: &Config,
    anchor: &TrustAnchor,
    known_time: &KnownTime,
    identity: Option<&Identity>,
) -> Vec<Finding> {
    let server = &config.server;
    let mut findings = Vec::new();
    let connected = match server.proxy() {
        Some(proxy) => through(proxy, server, &mut findings).await,
        None => directly(server, &mut findings).await,
    };
    let Some(stream) = connected else { return findings };
    let credential = identity.and_then(|identity| identity.slot(Slot::Next).or(identity.slot(Slot::Current)));
    let name = if credential.is_some() { &server.server_name } else { &server.enroll_name };
    let bounds = Bounds { earliest: known_time.earliest(), own_end: identity.and_then(Identity::ends_at) };
    let secured = match tls::Client::new(anchor, credential, bounds) {
        Ok(client) => dial::handshake(stream, name, &client, Traffic::Sparse).await,
        Err(error) => Err(DialError::Setup(error)),
    };
    match secured {
        Ok(stream) => {
            let ends = stream.get_ref().1.peer_certificates().and_then(|chain| tls::validity(chain.first()?));
            let ends = ends.map_or_else(String::new, |(_, ends)| format!(", its certificate ends {}", shown(ends)));
            findings.push(Finding::good("tls", format!("TLS 1.3 with {}{ends}", name.to_str())));
            if credential.is_some() {
                let authority = dial::authority(&server.server_name, server.port);
                findings.push(admission(dial::websocket(&authority, Wire::Tls(Box::new(stream))).await));
            }
        }
        Err(error) => {
            let advice = "check server.server_name and ca_file; something on the way may also break TLS open, which the \
                          agent never accepts";
            findings.push(Finding::bad("tls", chain(&error), advice));
        }
    }
    if let Some(identity) = identity {
        findings.push(certificate(identity, known_time));
    }
    findings
}

/// A connection to the server, or what is in its way.
async fn directly(server: &Server, findings: &mut Vec<Finding>) -> Option<TcpStream> {
    if server.proxies.is_some() {
        findings.push(Finding::good("proxy", "not for this server: proxy.no_proxy, or NO_PROXY, has it"));
    }
    let addresses = match dial::resolve(server).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let advice = "check server.host and the device's name servers, or set server.address; where names resolve only \
                          at a proxy, set proxy.url";
            findings.push(Finding::bad("name", chain(&error), advice));
            return None;
        }
    };
    let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    findings.push(Finding::good("name", format!("{} is at {}", server.host, listed.join(", "))));
    match dial::connect(&addresses).await {
        Ok(stream) => {
            findings.push(Finding::good("tcp", "connects"));
            Some(stream)
        }
        Err(error) => {
            let advice = format!("a firewall must let TCP out to port {} of {}", server.port, server.host);
            findings.push(Finding::bad("tcp", chain(&error), advice));
            None
        }
    }
}

/// The same through a proxy, which resolves the name.
async fn through(proxy: &Proxy, server: &Server, findings: &mut Vec<Finding>) -> Option<TcpStream> {
    match dial::connect_through(proxy, server).await {
        Ok(stream) => {
            let user = proxy.login.as_ref().map_or_else(String::new, |login| format!(" for user {:?}", login.user));
            findings.push(Finding::good("proxy", format!("{proxy} connects to {}{user}", server.host)));
            Some(stream)
        }
        Err(error) => {
            let advice = "check proxy.url with whoever runs the proxy; what is to be dialled without it goes into proxy.no_proxy";
            findings.push(Finding::bad("proxy", chain(&error), advice));
            None
        }
    }
}

/// Whether the server lets this device in. Without a `Hello` no link begins, so a running agent keeps its own.
fn admission(opened: Result<dial::Socket, DialError>) -> Finding {
    let about = "admission";
    match opened {
        Ok(_) => Finding::good(about, "the server lets this device in"),
        Err(error) if error.is_refusal() => Finding::bad(
            about,
            chain(&error),
            "the server does not want this certificate. Ask whoever runs it: the device may be revoked, or its key used \
             elsewhere. To begin anew, take away current.pem and next.pem, and enroll with a new token",
        ),
        Err(error) => Finding::warning(
            about,
            chain(&error),
            "the server cannot let anybody in just now, or is none. Try again later",
        ),
    }
}

fn certificate(identity: &Identity, known_time: &KnownTime) -> Finding {
    let Some(credential) = identity.slot(Slot::Current).or(identity.slot(Slot::Next)) else {
        return Finding::bad("certificate", "none", "enroll the device");
    };
    let certificate = &credential.certificate;
    let found = format!("{} until {}", certificate.identity, shown(certificate.not_after));
    if known_time.best() > certificate.not_after {
        return Finding::bad("certificate", format!("{found}: expired"), "enroll anew with a new token");
    }
    Finding::good("certificate", found)
}

/// Whether grants must be signed here, and with which keys.
fn access(config: &Config, identity: Option<&Identity>) -> Finding {
    let about = "grants";
    match access::need(&config.access, &config.state_dir, identity.and_then(Identity::device)) {
        Need::None => Finding::good(about, "need no signature of the tenant: the server's word is enough"),
        Need::Signed { keys, .. } => {
            let keys: Vec<String> = keys.iter().map(|key| KeyId::of(key).to_string()).collect();
            Finding::good(about, format!("must be signed by the tenant, with {}", keys.join(" or ")))
        }
        Need::Unclear(why) => Finding::bad(
            about,
            why,
            "until this is put right, every command and stream is refused as grant_invalid (docs/SIGNED-GRANTS.md)",
        ),
    }
}

async fn executors(config: &Config, bus: &Bus) -> Finding {
    let by_bus = [
        ("restart_argv", config.service.restart_argv.is_none() && !config.service.allow.is_empty()),
        ("reboot_argv", config.power.reboot_argv.is_none()),
        ("shutdown_argv", config.power.shutdown_argv.is_none()),
    ];
    let needed: Vec<&str> = by_bus.iter().filter(|(_, needed)| *needed).map(|(name, _)| *name).collect();
    if needed.is_empty() {
        return Finding::good("d-bus", "not needed");
    }
    match bus.connect().await {
        Ok(_) => Finding::good("d-bus", "the system bus answers"),
        Err(error) => Finding::bad(
            "d-bus",
            format!("the system bus does not answer: {error}"),
            format!("systemd is needed, or a program for each of: {}", needed.join(", ")),
        ),
    }
}

/// Whether the engine answers, and has what may be updated. Nothing where nothing may.
async fn containers(config: &Config) -> Option<Finding> {
    let containers = config.update.container.as_ref()?;
    let about = "containers";
    Some(match executor::container_states(containers, ENGINE_WITHIN).await {
        Ok(states) => {
            let has = |name: &&String| states.iter().any(|state| state.name == **name);
            let missing: Vec<&str> = containers.allow.iter().filter(|name| !has(name)).map(String::as_str).collect();
            let states: Vec<String> = states.iter().map(|state| format!("{} {}", state.name, state.state)).collect();
            if missing.is_empty() {
                Finding::good(about, states.join(", "))
            } else {
                let advice = "an update needs a container that is there: make it, or correct update.container.allow";
                Finding::warning(about, format!("there is no {}", missing.join(", ")), advice)
            }
        }
        Err(why) => Finding::bad(
            about,
            format!("{}: {why}", containers.socket.display()),
            "start the engine, correct update.container.socket, or let the agent's user use it",
        ),
    })
}

fn argvs(config: &Config) -> Vec<Finding> {
    let programs: [(&str, Option<&Argv>); 3] = [
        ("service.restart_argv", config.service.restart_argv.as_ref()),
        ("power.reboot_argv", config.power.reboot_argv.as_ref()),
        ("power.shutdown_argv", config.power.shutdown_argv.as_ref()),
    ];
    let missing = programs.into_iter().filter_map(|(key, argv)| {
        let program = &argv?.program;
        (!is_executable(program)).then(|| {
            let found = format!("{key}: {} cannot be executed", program.display());
            Finding::bad("program", found, "install it, or correct the path")
        })
    });
    missing.collect()
}

fn shown(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}
