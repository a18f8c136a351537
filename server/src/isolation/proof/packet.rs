//! Packets as a device would make them that wants to get out: whole ones, and all the tricks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6Header, TcpHeader, UdpHeader,
};

const TTL: u8 = 64;
const WINDOW: u16 = 64_240;
/// Of fragments' payload, which is cut at multiples of eight bytes.
const FRAGMENT_UNIT_BYTES: usize = 8;
const IPV6_FRAGMENT: u8 = 44;

/// What is behind an IP header, and what kind of thing it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) bytes: Vec<u8>,
}

impl Datagram {
    pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        let (from, to) = (source.port(), destination.port());
        let header = match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                UdpHeader::with_ipv4_checksum(from, to, &ipv4_header(source, destination), payload)
            }
            (source, destination) => {
                UdpHeader::with_ipv6_checksum(from, to, &ipv6_header(source, destination), payload)
            }
        };
        let header = header.expect("a probe is far smaller than the largest datagram");
        Self::new(source.ip(), destination.ip(), IpNumber::UDP, &[&header.to_bytes(), payload].concat())
    }

    /// The first segment of a connection.
    pub(super) fn syn(source: SocketAddr, destination: SocketAddr, sequence: u32) -> Self {
        let mut header = TcpHeader::new(source.port(), destination.port(), sequence, WINDOW);
        header.syn = true;
        Self::tcp(source.ip(), destination.ip(), header)
    }

    /// Takes back a connection that was begun.
    pub(super) fn reset(source: SocketAddr, destination: SocketAddr, sequence: u32) -> Self {
        let mut header = TcpHeader::new(source.port(), destination.port(), sequence, 0);
        header.rst = true;
        Self::tcp(source.ip(), destination.ip(), header)
    }

    fn tcp(source: IpAddr, destination: IpAddr, mut header: TcpHeader) -> Self {
        let checksum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.calc_checksum_ipv4(&ipv4_header(source, destination), &[])
            }
            (source, destination) => header.calc_checksum_ipv6(&ipv6_header(source, destination), &[]),
        };
        header.checksum = checksum.expect("a segment without payload is far smaller than the largest one");
        Self::new(source, destination, IpNumber::TCP, &header.to_bytes())
    }

    pub(super) fn echo_request(source: IpAddr, destination: IpAddr, id: u16, payload: &[u8]) -> Self {
        let echo = IcmpEchoHeader { id, seq: 1 };
        Self::icmp(source, destination, Icmpv4Type::EchoRequest(echo), Icmpv6Type::EchoRequest(echo), payload)
    }

    /// ICMP that the parser's library has no words for: type, code, the four bytes behind the checksum.
    pub(super) fn icmp_raw(source: IpAddr, destination: IpAddr, kind: u8, rest: [u8; 4], payload: &[u8]) -> Self {
        let (type_u8, code_u8, bytes5to8) = (kind, 0, rest);
        let ipv4 = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
        let ipv6 = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
        Self::icmp(source, destination, ipv4, ipv6, payload)
    }

    fn icmp(source: IpAddr, destination: IpAddr, ipv4: Icmpv4Type, ipv6: Icmpv6Type, payload: &[u8]) -> Self {
        match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let header = Icmpv4Header::with_checksum(ipv4, payload).to_bytes();
                Self::new(source, destination, IpNumber::ICMP, &[&header, payload].concat())
            }
            (from, to) => {
                let header = Icmpv6Header::with_checksum(ipv6, octets(from), octets(to), payload);
                let header = header.expect("a probe is far smaller than the largest message").to_bytes();
                Self::new(source, destination, IpNumber::IPV6_ICMP, &[&header, payload].concat())
            }
        }
    }

    /// Any other protocol.
    pub(super) fn other(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> Self {
        Self::new(source, destination, IpNumber(protocol), bytes)
    }

    fn new(source: IpAddr, destination: IpAddr, protocol: IpNumber, bytes: &[u8]) -> Self {
        Self { source, destination, protocol: protocol.0, bytes: bytes.to_vec() }
    }

    /// As it goes on its way.
    pub(super) fn packet(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => self.ipv4_packet(&self.bytes, &[], 0, false),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => self.ipv6_packet(self.protocol, &self.bytes),
        }
    }

    /// With IPv4 options, whole words of four bytes.
    pub(super) fn with_options(&self, options: &[u8]) -> Vec<u8> {
        self.ipv4_packet(&self.bytes, options, 0, false)
    }

    /// With a header between the IPv6 header and what it carries: its number, and its bytes from the third one on.
    pub(super) fn with_extension(&self, number: u8, body: &[u8]) -> Vec<u8> {
        let units =
            u8::try_from((2 + body.len()) / FRAGMENT_UNIT_BYTES - 1).expect("the extensions of probes are short");
        self.ipv6_packet(number, &[&[self.protocol, units], body, &self.bytes].concat())
    }

    /// In two fragments, cut behind so many bytes, a multiple of eight.
    pub(super) fn fragments(&self, at: usize, id: u16) -> [Vec<u8>; 2] {
        let (first, second) = self.bytes.split_at(at);
        let offset = u16::try_from(at / FRAGMENT_UNIT_BYTES).expect("a probe is short");
        if self.source.is_ipv4() {
            let mut fragments = [self.ipv4_packet(first, &[], 0, true), self.ipv4_packet(second, &[], offset, false)];
            for fragment in &mut fragments {
                fragment[4..6].copy_from_slice(&id.to_be_bytes());
                checksum_anew(fragment);
            }
            return fragments;
        }
        let fragment = |offset: u16, has_more: bool, part: &[u8]| {
            let place = (offset << 3 | u16::from(has_more)).to_be_bytes();
            let head = [&[self.protocol, 0], &place[..], &[0, 0], &id.to_be_bytes()].concat();
            self.ipv6_packet(IPV6_FRAGMENT, &[&head, part].concat())
        };
        [fragment(0, true, first), fragment(offset, false, second)]
    }

    fn ipv4_packet(&self, bytes: &[u8], options: &[u8], offset: u16, has_more: bool) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else { return Vec::new() };
        let mut header = Ipv4Header {
            protocol: IpNumber(self.protocol),
            options: Ipv4Options::try_from(options).expect("the options of probes are a few whole words"),
            fragment_offset: IpFragOffset::try_new(offset).expect("a probe is short"),
            more_fragments: has_more,
            dont_fragment: offset == 0 && !has_more,
            ..ipv4_header(source, destination)
        };
        header.set_payload_len(bytes.len()).expect("a probe is short");
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes(), bytes].concat()
    }

    fn ipv6_packet(&self, next: u8, bytes: &[u8]) -> Vec<u8> {
        let mut header = ipv6_header(self.source, self.destination);
        header.next_header = IpNumber(next);
        header.payload_length = u16::try_from(bytes.len()).expect("a probe is short");
        [&header.to_bytes(), bytes].concat()
    }
}

/// The protocol's header is part of its checksum, so that is made anew as well.
fn checksum_anew(packet: &mut [u8]) {
    if let Ok((mut header, _)) = Ipv4Header::from_slice(packet) {
        header.header_checksum = header.calc_header_checksum();
        packet[10..12].copy_from_slice(&header.header_checksum.to_be_bytes());
    }
}

fn ipv4_header(source: Ipv4Addr, destination: Ipv4Addr) -> Ipv4Header {
    Ipv4Header {
        source: source.octets(),
        destination: destination.octets(),
        time_to_live: TTL,
        ..Ipv4Header::default()
    }
}

fn ipv6_header(source: IpAddr, destination: IpAddr) -> Ipv6Header {
    Ipv6Header { source: octets(source), destination: octets(destination), hop_limit: TTL, ..Ipv6Header::default() }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const ADDRESSES: [(&str, &str); 2] = [("100.64.0.2", "100.64.0.1"), ("fd00::2", "fd00::1")];

    fn pair((from, to): (&str, &str)) -> (IpAddr, IpAddr) {
        (from.parse().unwrap(), to.parse().unwrap())
    }

    #[test]
    fn whole_packets_are_read_again_by_another_parser() {
        for (from, to) in ADDRESSES.map(pair) {
            let (source, destination) = (SocketAddr::new(from, 7), SocketAddr::new(to, 53));
            let udp = Datagram::udp(source, destination, b"mark").packet();
            let sliced = SlicedPacket::from_ip(&udp).unwrap();
            let Some(TransportSlice::Udp(slice)) = sliced.transport else { panic!("{sliced:?}") };
            assert_eq!((slice.source_port(), slice.destination_port(), slice.payload()), (7, 53, b"mark".as_slice()));
            let syn = Datagram::syn(source, destination, 99).packet();
            let sliced = SlicedPacket::from_ip(&syn).unwrap();
            let Some(TransportSlice::Tcp(slice)) = sliced.transport else { panic!("{sliced:?}") };
            assert!(slice.syn() && !slice.ack() && slice.sequence_number() == 99);
            let echo = Datagram::echo_request(from, to, 3, b"mark").packet();
            let sliced = SlicedPacket::from_ip(&echo).unwrap();
            assert!(matches!(sliced.transport, Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_))));
        }
    }

    #[test]
    fn tricks_are_what_they_claim_to_be() {
        for (from, to) in ADDRESSES.map(pair) {
            let udp = Datagram::udp(SocketAddr::new(from, 7), SocketAddr::new(to, 53), &[7; 24]);
            let whole: Vec<u8> = udp
                .fragments(16, 77)
                .iter()
                .flat_map(|fragment| match SlicedPacket::from_ip(fragment).unwrap().net.unwrap() {
                    NetSlice::Ipv4(slice) => {
                        assert!(slice.is_payload_fragmented());
                        slice.payload().payload.to_vec()
                    }
                    NetSlice::Ipv6(slice) => {
                        assert!(slice.is_payload_fragmented());
                        slice.payload().payload.to_vec()
                    }
                    NetSlice::Arp(_) => panic!("nobody asked for that"),
                })
                .collect();
            assert_eq!(whole, udp.bytes);
        }
        let (from, to) = pair(ADDRESSES[0]);
        let udp = Datagram::udp(SocketAddr::new(from, 7), SocketAddr::new(to, 53), b"mark");
        let routed = udp.with_options(&[131, 7, 4, 192, 0, 2, 66, 0]);
        assert_eq!(Ipv4Header::from_slice(&routed).unwrap().0.options.len(), 8);
        let (from, to) = pair(ADDRESSES[1]);
        let udp = Datagram::udp(SocketAddr::new(from, 7), SocketAddr::new(to, 53), b"mark");
        let extended = udp.with_extension(60, &[1, 4, 0, 0, 0, 0]);
        let sliced = SlicedPacket::from_ip(&extended).unwrap();
        assert!(matches!(sliced.transport, Some(TransportSlice::Udp(_))), "{sliced:?}");
    }
}
