//! What the node says to devices that passes though nothing of them is open: pings.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

const PING: u8 = 8;
const PING_V6: u8 = 128;

/// Where the node pings from.
pub(super) struct Pinger {
    socket: UdpSocket,
    kind: u8,
}

impl Pinger {
    pub(super) fn bind(address: SocketAddr) -> Self {
        // Nobody may, unless it is said.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        let (protocol, kind) = if address.is_ipv4() { (Protocol::ICMPV4, PING) } else { (Protocol::ICMPV6, PING_V6) };
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(protocol)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&address.into()).unwrap();
        Self { socket: UdpSocket::from_std(socket.into()).unwrap(), kind }
    }

    /// The kernel writes the id and the checksum.
    pub(super) async fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
        let message = [&[self.kind, 0, 0, 0, 0, 0, 0, 0], payload].concat();
        self.socket.send_to(&message, to).await
    }
}
