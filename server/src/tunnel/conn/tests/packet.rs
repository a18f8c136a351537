//! IP packets as a device makes them.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// A UDP datagram.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [source.port(), destination.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    with_checksum(&mut datagram, 6, source.ip(), destination.ip(), UDP);
    ip(source.ip(), destination.ip(), UDP, &datagram)
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

/// What is in a UDP datagram.
pub(super) fn udp_payload(packet: &[u8]) -> Option<&[u8]> {
    transport(packet)?.get(8..)
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
