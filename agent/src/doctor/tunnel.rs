//! What a link through a tunnel needs beyond the rest.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::{Finding, admission};
use crate::config::{Config, Started};
use crate::dial::{self, DialError, Wire};
use crate::tunnel::{TunnelError, client, interface};
use crate::{chain, disk};

const DEVICE: &str = "/dev/net/tun";
/// How long the program may take to tell its version.
const VERSION_WITHIN: Duration = Duration::from_secs(10);
/// How many of the last lines of the client are shown.
const LINES_SHOWN_MAX: usize = 5;

/// Looks at the client, its tunnel, and what answers inside of it.
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &config.openvpn.started {
        Some(started) => {
            findings.push(program(started).await);
            findings.push(device());
            findings.extend(wrapping_key(started));
            findings.extend(proxy(started).await);
        }
        None => findings.push(Finding::good(
            "client",
            "started by somebody else, who also renews its certificate: this agent does not",
        )),
    }
    findings.extend(inside(config).await);
    findings
}

async fn program(started: &Started) -> Finding {
    let about = "openvpn";
    let program = match client::program(started) {
        Ok(program) => program,
        Err(error) => return Finding::bad(about, chain(&error), "apt install openvpn, or the like"),
    };
    if !client::is_executable(&program) {
        let found = format!("openvpn.program: {} cannot be executed", program.display());
        return Finding::bad(about, found, "install it, or correct the path");
    }
    match version(&program).await {
        Some(version) => Finding::good(about, format!("{}: {version}", program.display())),
        None => Finding::bad(
            about,
            format!("{} does not tell its version", program.display()),
            "is it OpenVPN? Run it with --version",
        ),
    }
}

/// The first line of what it says of itself.
async fn version(program: &Path) -> Option<String> {
    let running = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(VERSION_WITHIN, running).await.ok()?.ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().next().filter(|line| line.starts_with("OpenVPN "))?;
    Some(crate::problem::shown(line.split(" [").next().unwrap_or(line)))
}

fn device() -> Finding {
    let about = "tun device";
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Finding::good(about, DEVICE),
        Err(error) => Finding::bad(
            about,
            format!("{DEVICE}: {error}"),
            "run `modprobe tun`; in a container, give it the device and the capability NET_ADMIN",
        ),
    }
}

fn wrapping_key(started: &Started) -> Option<Finding> {
    let wrapping = started.wrapping.as_ref()?;
    let found = format!("{} with {}", wrapping.kind.name(), wrapping.key.display());
    Some(match std::fs::File::open(&wrapping.key) {
        Ok(_) => Finding::good("wrapping", found),
        Err(error) => {
            Finding::bad("wrapping", format!("{found}: {error}"), "put the key there that the server gave out")
        }
    })
}

async fn proxy(started: &Started) -> Option<Finding> {
    let proxy = started.http_proxy.as_ref()?;
    let found = format!("{}:{}", proxy.host, proxy.port);
    let connected = timeout(VERSION_WITHIN, tokio::net::TcpStream::connect((proxy.host.as_str(), proxy.port))).await;
    let problem = match connected {
        Ok(Ok(_)) => return Some(Finding::good("proxy", format!("{found} connects"))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    Some(Finding::bad(
        "proxy",
        format!("{found}: {problem}"),
        "check openvpn.http_proxy, and whether the device may dial it",
    ))
}

/// The interface, the gateway, and the link behind it.
async fn inside(config: &Config) -> Vec<Finding> {
    let tunnel = match interface::find(&config.openvpn) {
        Ok(tunnel) => tunnel,
        Err(error) => return vec![no_tunnel(config, &error)],
    };
    let mut findings = vec![Finding::good("tunnel", format!("{} has {}", tunnel.name, tunnel.address))];
    let stream = match dial::connect_inside(&tunnel).await {
        Ok(stream) => stream,
        Err(error) => {
            findings.push(Finding::bad("gateway", chain(&error), gateway_advice(&error)));
            return findings;
        }
    };
    findings.push(Finding::good("gateway", format!("{} connects", tunnel.gateway)));
    let opened = dial::websocket(&tunnel.gateway.to_string(), Wire::Plain(stream)).await;
    findings.push(Finding { about: "link", ..admission(opened) });
    findings
}

fn no_tunnel(config: &Config, error: &TunnelError) -> Finding {
    let about = "tunnel";
    let Some(_) = &config.openvpn.started else {
        let advice =
            "start the OpenVPN client and look at its log, or set openvpn.interface to the name of its interface";
        return Finding::bad(about, chain(error), advice);
    };
    match last_words(&config.state_dir) {
        Some(said) => Finding::bad(
            about,
            format!("{}. The client said last:\n{said}", chain(error)),
            "the client goes on trying; its words tell what is in the way, and all of them are in the agent's log at level debug",
        ),
        None => {
            Finding::warning(about, chain(error), "the client is started by `cloudlink-agent run`: is that running?")
        }
    }
}

/// What the client of a running agent, or of the last one, said last.
fn last_words(state_dir: &Path) -> Option<String> {
    let content = disk::read_if_there(&state_dir.join(client::LOG_FILE_NAME), client::LOG_BYTES_MAX).ok()??;
    let text = String::from_utf8_lossy(&content);
    let lines: Vec<&str> = text.lines().collect();
    let shown: Vec<String> = lines[lines.len().saturating_sub(LINES_SHOWN_MAX)..]
        .iter()
        .map(|line| format!("      {:<12} | {}", "", crate::problem::shown(line)))
        .collect();
    (!shown.is_empty()).then(|| shown.join("\n"))
}

fn gateway_advice(error: &DialError) -> &'static str {
    if matches!(error, DialError::Tunnel(TunnelError::Bind { .. })) {
        return "binding to an interface takes Linux 5.7, or the capability NET_RAW: the link must not leave the tunnel";
    }
    "check openvpn.gateway and openvpn.link_port; the server must offer its link on the tunnel's first address"
}
