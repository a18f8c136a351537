//! The ports of the node. All are taken at the start, before the database is touched, so that a port that is not to be had is
//! told at once; each begins to listen when there is somebody to answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;

/// Connections that the kernel completes before we accept them: a fleet that comes back at once needs many.
const BACKLOG: u32 = 4_096;

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}){hint}")]
pub struct PortError {
    address: SocketAddr,
    key: &'static str,
    hint: &'static str,
    #[source]
    source: io::Error,
}

/// A port that is taken, but does not listen yet.
#[derive(Debug)]
pub struct Port {
    socket: TcpSocket,
    address: SocketAddr,
    key: &'static str,
}

impl Port {
    fn take(key: &'static str, address: SocketAddr) -> Result<Self, PortError> {
        let socket = bind(address).map_err(|source| PortError { address, key, hint: hint(&source), source })?;
        Ok(Self { socket, address, key })
    }

    /// From here on connections are taken in.
    pub fn listen(self) -> Result<TcpListener, PortError> {
        let Self { socket, address, key } = self;
        let listener =
            socket.listen(BACKLOG).map_err(|source| PortError { address, key, hint: hint(&source), source })?;
        tracing::info!(port = key, address = ?listener.local_addr().unwrap_or(address), "listening");
        Ok(listener)
    }
}

/// The ports.
#[derive(Debug)]
pub struct Ports {
    pub device: Port,
    pub people: Port,
    pub operations: Port,
    /// Of one of several nodes, for the others.
    pub internal: Option<Port>,
}

impl Ports {
    pub fn take(config: &Config) -> Result<Self, PortError> {
        Ok(Self {
            device: Port::take("device.listen", config.device.listen)?,
            people: Port::take("people.listen", config.people.listen)?,
            operations: Port::take("operations.listen", config.operations.listen)?,
            internal: match &config.cluster.nats {
                Some(_) => Some(Port::take("cluster.listen", config.cluster.listen)?),
                None => None,
            },
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let bound = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .and_then(|socket| {
        // A node that is started again must not wait for the connections of the one before to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    });
    match bound {
        // Any address, on a host without IPv6.
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && is_without_ipv6(&error) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::Error::EAFNOSUPPORT as i32) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        ": another program has this port, perhaps another cloudlinkd"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        ": ports below 1024 need root or CAP_NET_BIND_SERVICE"
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        ": this host has no such address"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_key() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Port::take("people.listen", address).and_then(Port::listen).unwrap_err().to_string();
        assert!(error.contains("people.listen") && error.contains("another program"), "{error}");
    }
}
