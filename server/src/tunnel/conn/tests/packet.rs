//! IP packets as a device makes them.

use std::net::{IpAddr, SocketAddr};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// A ping.
pub(super) fn echo_request(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    echo(if source.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 }, source, destination, payload)
}

/// The answer to a ping: what a device may say to a node at any time, though nobody has asked.
pub(super) fn echo_reply(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    echo(if source.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 }, source, destination, payload)
}

fn echo(kind: u8, source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 7, 0, 1];
    message.extend(payload);
    if source.is_ipv4() {
        let checksum = sum(&message, 0);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        ip(source, destination, ICMP, &message)
    } else {
        with_checksum(&mut message, 2, source, destination, ICMPV6);
        ip(source, destination, ICMPV6, &message)
    }
}

/// What is in a whole ping.
pub(super) fn ping_payload(packet: &[u8]) -> Option<&[u8]> {
    let (message, kind) = if packet.first()? >> 4 == 4 {
        let message = packet.get(20..).filter(|message| packet[9] == ICMP && sum(message, 0) == 0)?;
        (message, ECHO_REQUEST)
    } else {
        (transport(packet).filter(|_| packet[6] == ICMPV6)?, ECHO_REQUEST_V6)
    };
    message.get(8..).filter(|_| message[0] == kind)
}

/// What is in the answer to a ping, if that is what this message is.
pub(super) fn echo_reply_payload(is_ipv4: bool, message: &[u8]) -> Option<&[u8]> {
    let kind = if is_ipv4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
    (message.first() == Some(&kind)).then(|| message.get(8..))?
}

/// A TCP segment.
pub(super) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    numbers: [u32; 2],
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = [source.port(), destination.port()].map(u16::to_be_bytes).concat();
    segment.extend(numbers.map(u32::to_be_bytes).concat());
    // Twenty bytes of header, the largest window.
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    with_checksum(&mut segment, 16, source.ip(), destination.ip(), TCP);
    ip(source.ip(), destination.ip(), TCP, &segment)
}

/// The transport header and what is behind it, if all checksums are right.
pub(super) fn transport(packet: &[u8]) -> Option<&[u8]> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, _, _) = match packet.first()? >> 4 {
        4 => {
            if sum(&packet[..20], 0) != 0 {
                return None;
            }
            let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
            (address(12), address(16), packet[9], &packet[20..])
        }
        _ => {
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
            (address(8), address(24), packet[6], &packet[40..])
        }
    };
    (sum(transport, pseudo(source, destination, protocol, transport.len())) == 0).then_some(transport)
}

/// A UDP datagram.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [source.port(), destination.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    with_checksum(&mut datagram, 6, source.ip(), destination.ip(), UDP);
    ip(source.ip(), destination.ip(), UDP, &datagram)
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u16::try_from(transport.len()).unwrap();
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + length).to_be_bytes();
            let mut head = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            head.extend([source.octets(), destination.octets()].concat());
            let checksum = sum(&head, 0);
            head[10..12].copy_from_slice(&checksum.to_be_bytes());
            head
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = length.to_be_bytes();
            let mut head = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            head.extend([source.octets(), destination.octets()].concat());
            head
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("addresses of two families"),
    };
    packet.extend(transport);
    packet
}

fn with_checksum(transport: &mut [u8], at: usize, source: IpAddr, destination: IpAddr, protocol: u8) {
    let checksum = sum(transport, pseudo(source, destination, protocol, transport.len()));
    transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let addresses = [octets(source), octets(destination)].concat();
    u32::from(!sum(&addresses, 0)) + u32::from(protocol) + u32::try_from(length).unwrap()
}

/// The checksum of RFC 1071, as slowly and plainly as it can be written.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}
