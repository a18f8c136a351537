//! The node, as probes try it: its addresses, the ports that something listens on, and a port that only they know.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::attempt::Ports;
use super::lookout::Lookout;
use crate::tunnel::slice::Addresses;

/// Ports that something listens on, of which each is tried in every round. Whatever is beyond comes with its turn.
const LISTENING_MAX: usize = 512;
/// What the listener reads of a datagram.
const READ_BYTES: usize = 2_048;
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// The node's addresses but for those of the gateway, and those that mean nothing without an interface.
pub(super) fn addresses(gateway: Addresses) -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        ipv4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let is_ours = |ip: &IpAddr| *ip == IpAddr::V4(gateway.ipv4) || *ip == IpAddr::V6(gateway.ipv6);
    let is_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mut addresses: Vec<_> = all.filter(|ip| !is_ours(ip) && !is_local(ip)).collect();
    // The loopback addresses last: of many, others tell more.
    addresses.sort_by_key(|ip| (ip.is_loopback(), *ip));
    addresses.dedup();
    addresses
}

/// Ports of this network namespace that something listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) tcp: BTreeSet<u16>,
    pub(super) udp: BTreeSet<u16>,
}

impl Listening {
    pub(super) fn read() -> io::Result<Self> {
        let read = |tables: [&str; 2], state| -> io::Result<BTreeSet<u16>> {
            let mut ports = BTreeSet::new();
            for table in tables {
                // A kernel without IPv6 has no such table.
                match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
                    Ok(text) => ports.extend(text.lines().skip(1).filter_map(|line| port(line, state))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(ports.into_iter().take(LISTENING_MAX).collect())
        };
        Ok(Self { tcp: read(["tcp", "tcp6"], TCP_LISTEN)?, udp: read(["udp", "udp6"], UDP_UNCONNECTED)? })
    }
}

/// The local port of a line of the kernel's table, if the socket is in this state.
fn port(line: &str, state: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, _) = (fields.next()?, fields.next()?);
    let (_, port) = local.rsplit_once(':')?;
    (fields.next()? == state).then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

/// A port of the node that nobody has a reason to reach: it hears what comes out of tunnels to whichever address of the node, and
/// nothing else.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) ports: Ports,
    _stop: tokio_util::sync::DropGuard,
}

impl Listener {
    /// Listens until it is dropped. To be called in a runtime.
    pub(super) fn open(interface: &str, lookout: &Arc<Lookout>) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let open = |any: IpAddr| -> io::Result<u16> {
            let socket = bind(interface, any)?;
            let port = socket.local_addr()?.port();
            tokio::spawn(hear(socket, Arc::clone(lookout), stop.clone()));
            Ok(port)
        };
        let ports = Ports { ipv4: open(Ipv4Addr::UNSPECIFIED.into())?, ipv6: open(Ipv6Addr::UNSPECIFIED.into())? };
        Ok(Self { ports, _stop: stop.drop_guard() })
    }
}

fn bind(interface: &str, any: IpAddr) -> io::Result<UdpSocket> {
    let address = SocketAddr::new(any, 0);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    if any.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

async fn hear(socket: UdpSocket, lookout: Arc<Lookout>, stop: CancellationToken) {
    let mut buffer = [0; READ_BYTES];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            read = socket.recv(&mut buffer) => {
                // An error is of one datagram.
                if let Ok(bytes) = read {
                    lookout.see_payload(&buffer[..bytes]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_counts() {
        let listening =
            "   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let connected =
            "   1: 0100007F:01BB 0100007F:C000 01 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let ipv6 = "   0: 00000000000000000000000000000000:20FB 00000000000000000000000000000000:0000 0A 0 0";
        assert_eq!(port(listening, TCP_LISTEN), Some(443));
        assert_eq!(port(connected, TCP_LISTEN), None);
        assert_eq!(port(ipv6, TCP_LISTEN), Some(8443));
        assert_eq!(port("", TCP_LISTEN), None);
    }

    #[tokio::test]
    async fn a_socket_of_this_process_is_found() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let listening = Listening::read().unwrap();
        assert!(listening.tcp.contains(&tcp.local_addr().unwrap().port()));
        assert!(listening.udp.contains(&udp.local_addr().unwrap().port()));
    }
}
