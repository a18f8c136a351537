//! The tunnel of a stock OpenVPN client, for a link that goes through it.
//!
//! The client is a program of its own. It either runs already, and only its [`interface`] is looked at, or the agent starts it
//! ([`client`]) with a [`profile`] that it writes.
//!
//! The link inside is a WebSocket without TLS. That is as good as the tunnel: client and server have proven themselves to one
//! another with TLS 1.3 and the same certificates as on a direct link, and the server takes the address inside of the tunnel
//! for the device that it gave it to. It is only that good as long as nothing of the link leaves the tunnel: its socket is
//! bound to the interface, so that the system sends nothing by another way, whatever its routes are.

pub mod client;
pub mod interface;
pub mod profile;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use self::profile::PathError;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("cannot list the network interfaces")]
    Interfaces(#[source] Errno),
    #[error("no tunnel yet: interface {interface} has no address")]
    NoAddress { interface: String },
    #[error("the tunnel on interface {interface} went away while it was dialled through")]
    Gone { interface: String },
    #[error("interface {interface} is not a tunnel: the link would be in the clear")]
    NotATunnel { interface: String },
    #[error("cannot tell the gateway from {address}/{prefix} on {interface}: set openvpn.gateway")]
    NoGateway { interface: String, address: Ipv4Addr, prefix: u32 },
    #[error("cannot bind to interface {interface}")]
    Bind { interface: String, source: io::Error },
    #[error("openvpn is neither in PATH nor in a directory of system programs: install it, or set openvpn.program")]
    NoProgram,
    #[error("an OpenVPN profile cannot name {}: it {reason}", path.display())]
    Profile { path: PathBuf, reason: PathError },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{what}{}", told(said))]
    Client { what: String, said: Vec<String>, is_refusal: bool },
    #[error("no tunnel yet: the OpenVPN client has none after {} s{}", within.as_secs(), told(said))]
    TimedOut { within: Duration, said: Vec<String> },
}

impl TunnelError {
    /// Whether the server refuses who this device is.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Client { is_refusal: true, .. })
    }
}

/// What the client said last, as part of a sentence.
fn told(said: &[String]) -> String {
    if said.is_empty() { String::new() } else { format!("; it said last: {}", said.join(" | ")) }
}
