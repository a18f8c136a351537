//! The wall between a device and the node: what one packet may be. It reads headers and nothing else, knows no tunnel and keeps
//! nothing, so that it can be understood, and tried, by itself.
//!
//! ```text
//! out of a tunnel: to the node's own address
//!     TCP to the link port                     ─► Link      always passes
//!     ping, and the answer to one              ─► Echo      passes, unless the device is in quarantine
//!     TCP from a port, that begins nothing     ─► Answer    passes while that port is open for support
//! into a tunnel: from the node's own address
//!     TCP from the link port, that begins nothing ─► Link   always passes
//!     ping, and the answer to one              ─► Echo      passes, unless the device is in quarantine
//!     TCP to a port                            ─► Answer    passes while that port is open for support
//! everything else                              ─► dropped, with a reason
//! ```
//!
//! That a packet comes from the tunnel's own address is checked before, by proto's session. The kernel's rules say the same
//! again, and do not rely on this; nor does this on them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::metrics::TunnelDrop;
use crate::tunnel::slice::Slice;

const TCP: u8 = 6;
const TCP_HEAD_BYTES: usize = 20;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_HEAD_BYTES: usize = 8;
const ECHO: [u8; 2] = [8, 0];
const ECHO_V6: [u8; 2] = [128, 129];

/// More fragments, or an offset.
const FRAGMENT_MASK: u16 = 0x3fff;
const FRAGMENT: u8 = 44;
/// IPv6 extension headers: hop-by-hop options, routing, destination options, mobility, host identity, shim6.
const EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];

/// What a packet is, as far as it may be something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// Of the link inside.
    Link,
    /// A ping, or the answer to one.
    Echo,
    /// Between the node and this port of the device.
    Answer(u16),
}

/// What the node is to its devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wall {
    ipv4: [u8; 4],
    ipv6: [u8; 16],
    link_port: [u8; 2],
    slice: Slice,
}

impl Wall {
    pub(super) fn new(slice: Slice, link_port: u16) -> Self {
        let gateway = slice.gateway();
        Self { ipv4: gateway.ipv4.octets(), ipv6: gateway.ipv6.octets(), link_port: link_port.to_be_bytes(), slice }
    }

    /// Says what a packet out of a tunnel is, or why it is none that may be.
    pub(super) fn judge(&self, packet: &[u8]) -> Result<Passage, TunnelDrop> {
        // Nearly all packets, known by a few comparisons.
        if self.is_plainly_link(packet) { Ok(Passage::Link) } else { self.look_at(packet) }
    }

    fn is_plainly_link(&self, packet: &[u8]) -> bool {
        if let Some(head) = packet.first_chunk::<{ 20 + TCP_HEAD_BYTES }>()
            && head[0] == 0x45
        {
            return usize::from(number([head[2], head[3]])) == packet.len()
                && number([head[6], head[7]]) & FRAGMENT_MASK == 0
                && head[8] != 0
                && head[9] == TCP
                && head[16..20] == self.ipv4
                && is_whole_tcp(&head[20..], packet.len() - 20)
                && head[22..24] == self.link_port;
        }
        if let Some(head) = packet.first_chunk::<{ 40 + TCP_HEAD_BYTES }>()
            && head[0] >> 4 == 6
        {
            return usize::from(number([head[4], head[5]])) == packet.len() - 40
                && head[6] == TCP
                && head[7] != 0
                && head[24..40] == self.ipv6
                && is_whole_tcp(&head[40..], packet.len() - 40)
                && head[42..44] == self.link_port;
        }
        false
    }

    fn look_at(&self, packet: &[u8]) -> Result<Passage, TunnelDrop> {
        match Network::read(packet)? {
            Network::Ipv4 { destination, protocol, rest, .. } => {
                self.check_ipv4(destination)?;
                match protocol {
                    TCP => self.look_at_tcp(rest),
                    ICMP => look_at_echo(rest, ECHO),
                    _ => Err(TunnelDrop::Protocol),
                }
            }
            Network::Ipv6 { destination, protocol, rest, .. } => {
                self.check_ipv6(destination)?;
                match protocol {
                    TCP => self.look_at_tcp(rest),
                    ICMPV6 => look_at_echo(rest, ECHO_V6),
                    _ => Err(TunnelDrop::Protocol),
                }
            }
        }
    }

    fn check_ipv4(&self, destination: [u8; 4]) -> Result<(), TunnelDrop> {
        if destination == self.ipv4 {
            return Ok(());
        }
        let (destination, network) = (Ipv4Addr::from(destination), self.slice.ipv4());
        // Of the network's own address some take it that everybody is meant, too.
        if destination.is_broadcast() || destination == network.broadcast() || destination == network.network() {
            Err(TunnelDrop::Broadcast)
        } else if destination.is_multicast() {
            Err(TunnelDrop::Multicast)
        } else {
            Err(TunnelDrop::Destination)
        }
    }

    fn check_ipv6(&self, destination: [u8; 16]) -> Result<(), TunnelDrop> {
        if destination == self.ipv6 {
            Ok(())
        } else if Ipv6Addr::from(destination).is_multicast() {
            Err(TunnelDrop::Multicast)
        } else {
            Err(TunnelDrop::Destination)
        }
    }

    fn look_at_tcp(&self, segment: &[u8]) -> Result<Passage, TunnelDrop> {
        let tcp = Tcp::read(segment).filter(|_| is_whole_tcp(segment, segment.len())).ok_or(TunnelDrop::Malformed)?;
        if tcp.destination == self.link_port {
            Ok(Passage::Link)
        } else if tcp.begins_nothing() {
            Ok(Passage::Answer(number(tcp.source)))
        } else {
            Err(TunnelDrop::Port)
        }
    }

    /// Says what a packet of the kernel is that goes into a tunnel. It comes from the node's own address; only its headers are
    /// given if it is to be cut.
    pub(super) fn judge_outward(&self, headers: &[u8]) -> Option<Passage> {
        let head = headers.first_chunk::<20>()?;
        let (protocol, rest) = match head[0] {
            0x45 if number([head[6], head[7]]) & FRAGMENT_MASK == 0 => (head[9], headers.get(20..)?),
            first if first >> 4 == 6 => (head[6], headers.get(40..)?),
            _ => return None,
        };
        match (protocol, head[0] >> 4) {
            (TCP, _) => {
                let tcp = Tcp::read(rest)?;
                if tcp.source == self.link_port {
                    tcp.begins_nothing().then_some(Passage::Link)
                } else {
                    Some(Passage::Answer(number(tcp.destination)))
                }
            }
            (ICMP, 4) => look_at_echo(rest, ECHO).ok(),
            (ICMPV6, 6) => look_at_echo(rest, ECHO_V6).ok(),
            _ => None,
        }
    }
}

/// An IP packet, taken apart.
enum Network<'a> {
    Ipv4 { destination: [u8; 4], protocol: u8, rest: &'a [u8] },
    Ipv6 { destination: [u8; 16], protocol: u8, rest: &'a [u8] },
}

impl<'a> Network<'a> {
    fn read(packet: &'a [u8]) -> Result<Self, TunnelDrop> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::read_ipv4(packet),
            Some(6) => Self::read_ipv6(packet),
            Some(_) | None => Err(TunnelDrop::Malformed),
        }
    }

    fn read_ipv4(packet: &'a [u8]) -> Result<Self, TunnelDrop> {
        let (head, rest) = packet.split_first_chunk::<20>().ok_or(TunnelDrop::Malformed)?;
        let head_bytes = usize::from(head[0] & 0x0f) * 4;
        let total_bytes = usize::from(number([head[2], head[3]]));
        // Nobody sends what has no hop left.
        if head_bytes < head.len() || head_bytes > total_bytes || total_bytes != packet.len() || head[8] == 0 {
            return Err(TunnelDrop::Malformed);
        }
        if number([head[6], head[7]]) & FRAGMENT_MASK != 0 {
            return Err(TunnelDrop::Fragment);
        }
        if head_bytes > head.len() {
            return Err(TunnelDrop::Options);
        }
        Ok(Self::Ipv4 { destination: [head[16], head[17], head[18], head[19]], protocol: head[9], rest })
    }

    fn read_ipv6(packet: &'a [u8]) -> Result<Self, TunnelDrop> {
        let (head, rest) = packet.split_first_chunk::<40>().ok_or(TunnelDrop::Malformed)?;
        if usize::from(number([head[4], head[5]])) != rest.len() || head[7] == 0 {
            return Err(TunnelDrop::Malformed);
        }
        let protocol = head[6];
        if protocol == FRAGMENT {
            return Err(TunnelDrop::Fragment);
        }
        // Whatever is behind them.
        if EXTENSIONS.contains(&protocol) {
            return Err(TunnelDrop::Options);
        }
        let destination = *head.last_chunk().expect("a header has 40 bytes");
        Ok(Self::Ipv6 { destination, protocol, rest })
    }
}

/// What of a TCP segment matters.
struct Tcp {
    source: [u8; 2],
    destination: [u8; 2],
    flags: u8,
}

impl Tcp {
    fn read(segment: &[u8]) -> Option<Self> {
        let head = segment.first_chunk::<TCP_HEAD_BYTES>()?;
        Some(Self { source: [head[0], head[1]], destination: [head[2], head[3]], flags: head[13] })
    }

    /// Whether it can only be a part of a connection that the other end began.
    fn begins_nothing(&self) -> bool {
        match self.flags & (SYN | ACK | RST) {
            0 => false,
            flags => flags & SYN == 0 || flags & ACK != 0,
        }
    }
}

/// Whether a header fits into a segment of so many bytes, and names its ports.
fn is_whole_tcp(head: &[u8], segment_bytes: usize) -> bool {
    let Some(head) = head.first_chunk::<TCP_HEAD_BYTES>() else { return false };
    let head_bytes = usize::from(head[12] >> 4) * 4;
    (TCP_HEAD_BYTES..=segment_bytes).contains(&head_bytes) && head[..2] != [0, 0] && head[2..4] != [0, 0]
}

/// `kinds`: of a ping, and of the answer to one.
fn look_at_echo(message: &[u8], kinds: [u8; 2]) -> Result<Passage, TunnelDrop> {
    let head = message.first_chunk::<ICMP_HEAD_BYTES>().ok_or(TunnelDrop::Malformed)?;
    if kinds.contains(&head[0]) && head[1] == 0 { Ok(Passage::Echo) } else { Err(TunnelDrop::Protocol) }
}

const fn number(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests;
