//! One packet at a time, by hand and by chance; what is let through is compared with a plain reading of the rules, and with
//! what a parser of others reads.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

const LINK_PORT: u16 = 80;
const OTHER_PORT: u16 = 22;

fn slice() -> Slice {
    Slice::new("10.21.0.0/16".parse().unwrap(), 24, "fd21::/48".parse().unwrap(), 3).unwrap()
}

fn wall() -> Wall {
    Wall::new(slice(), LINK_PORT)
}

/// A packet from the first device to the node, to be changed.
#[derive(Clone, Debug)]
struct Packet(Vec<u8>);

impl Packet {
    fn ipv4(protocol: u8, rest: &[u8]) -> Self {
        let [high, low] = u16::try_from(20 + rest.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        bytes.extend(slice().addresses(2).unwrap().ipv4.octets());
        bytes.extend(slice().gateway().ipv4.octets());
        bytes.extend(rest);
        Self(bytes)
    }

    fn ipv6(protocol: u8, rest: &[u8]) -> Self {
        let [high, low] = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x60, 0, 0, 0, high, low, protocol, 64];
        bytes.extend(slice().addresses(2).unwrap().ipv6.octets());
        bytes.extend(slice().gateway().ipv6.octets());
        bytes.extend(rest);
        Self(bytes)
    }

    /// The same in both families.
    fn tcp(segment: &[u8]) -> [Self; 2] {
        [Self::ipv4(TCP, segment), Self::ipv6(TCP, segment)]
    }

    fn echo(kind: usize) -> [Self; 2] {
        let message = |kind| [kind, 0, 0, 0, 0, 1, 0, 1, 7, 7];
        [Self::ipv4(ICMP, &message(ECHO[kind])), Self::ipv6(ICMPV6, &message(ECHO_V6[kind]))]
    }

    fn is_ipv6(&self) -> bool {
        self.0[0] >> 4 == 6
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn to(self, destination: &str) -> Self {
        match destination.parse().unwrap() {
            std::net::IpAddr::V4(ip) => self.with(16, &ip.octets()),
            std::net::IpAddr::V6(ip) => self.with(24, &ip.octets()),
        }
    }

    /// Makes the packet as long as it says.
    fn with_length(mut self) -> Self {
        let length = if self.is_ipv6() { self.0.len().saturating_sub(40) } else { self.0.len() };
        let at = if self.is_ipv6() { 4 } else { 2 };
        self.0[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        self
    }
}

fn segment(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = [source, destination].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"what it says");
    segment
}

fn judge(packet: &Packet) -> Result<Passage, TunnelDrop> {
    let judged = wall().judge(&packet.0);
    // The short way says nothing that the long one does not.
    assert_eq!(wall().look_at(&packet.0), judged, "{packet:02x?}");
    assert_eq!(wall().is_plainly_link(&packet.0), judged == Ok(Passage::Link), "{packet:02x?}");
    judged
}

fn expect(packets: impl IntoIterator<Item = Packet>, expected: Result<Passage, TunnelDrop>) {
    for packet in packets {
        assert_eq!(judge(&packet), expected, "{packet:02x?}");
    }
}

#[test]
fn the_link_passes_whatever_its_segments_say() {
    for flags in 0..=255 {
        expect(Packet::tcp(&segment(40_000, LINK_PORT, flags)), Ok(Passage::Link));
    }
    // With all the options that a header has room for.
    let mut long = segment(1, LINK_PORT, ACK);
    long[12] = 0xf0;
    long.resize(60, 1);
    expect(Packet::tcp(&long), Ok(Passage::Link));
}

#[test]
fn pings_and_their_answers_pass_and_no_other_message() {
    for kind in [0, 1] {
        expect(Packet::echo(kind), Ok(Passage::Echo));
    }
    for (protocol, kinds) in [(ICMP, ECHO), (ICMPV6, ECHO_V6)] {
        for kind in (0..=255).filter(|kind| !kinds.contains(kind)) {
            let message = [kind, 0, 0, 0, 0, 0, 0, 0];
            let packet = if protocol == ICMP { Packet::ipv4(ICMP, &message) } else { Packet::ipv6(ICMPV6, &message) };
            expect([packet], Err(TunnelDrop::Protocol));
        }
    }
    expect(
        Packet::echo(0).map(|packet| if packet.is_ipv6() { packet.with(41, &[1]) } else { packet.with(21, &[1]) }),
        Err(TunnelDrop::Protocol),
    );
    // Each family has its own.
    expect(
        [Packet::ipv4(ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]), Packet::ipv6(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0])],
        Err(TunnelDrop::Protocol),
    );
    expect([Packet::ipv4(ICMP, &[8, 0, 0, 0, 0, 0, 0]), Packet::ipv6(ICMPV6, &[128])], Err(TunnelDrop::Malformed));
}

#[test]
fn beside_the_link_port_nothing_can_be_begun() {
    for port in [1, 22, LINK_PORT - 1, LINK_PORT + 1, 443, 9090, u16::MAX] {
        for flags in 0..=255_u8 {
            let is_answer = !matches!(flags & 0x16, 0x00 | 0x02 | 0x06);
            let expected = if is_answer { Ok(Passage::Answer(OTHER_PORT)) } else { Err(TunnelDrop::Port) };
            expect(Packet::tcp(&segment(OTHER_PORT, port, flags)), expected);
        }
    }
}

#[test]
fn only_the_nodes_own_address_is_reached() {
    let [ipv4, ipv6] = Packet::tcp(&segment(40_000, LINK_PORT, SYN));
    for (destination, reason) in [
        ("10.21.3.2", TunnelDrop::Destination),
        ("10.21.3.3", TunnelDrop::Destination),
        ("10.21.2.1", TunnelDrop::Destination),
        ("8.8.8.8", TunnelDrop::Destination),
        ("127.0.0.1", TunnelDrop::Destination),
        ("0.0.0.0", TunnelDrop::Destination),
        ("169.254.169.254", TunnelDrop::Destination),
        ("10.21.3.255", TunnelDrop::Broadcast),
        ("10.21.3.0", TunnelDrop::Broadcast),
        ("255.255.255.255", TunnelDrop::Broadcast),
        ("224.0.0.1", TunnelDrop::Multicast),
        ("239.255.255.250", TunnelDrop::Multicast),
        ("fd21:0:0:3::2", TunnelDrop::Destination),
        ("fd21:0:0:2::1", TunnelDrop::Destination),
        ("2001:4860:4860::8888", TunnelDrop::Destination),
        ("::1", TunnelDrop::Destination),
        ("::", TunnelDrop::Destination),
        ("fe80::1", TunnelDrop::Destination),
        ("::ffff:10.21.3.1", TunnelDrop::Destination),
        ("ff02::1", TunnelDrop::Multicast),
        ("ff05::1:3", TunnelDrop::Multicast),
    ] {
        let packet = if destination.contains(':') { ipv6.clone() } else { ipv4.clone() };
        expect([packet.to(destination)], Err(reason));
    }
}

#[test]
fn other_protocols_do_not_pass() {
    for protocol in (0..=255).filter(|protocol| ![TCP, ICMP].contains(protocol)) {
        expect([Packet::ipv4(protocol, &segment(40_000, LINK_PORT, SYN))], Err(TunnelDrop::Protocol));
    }
    for protocol in (0..=255).filter(|protocol| ![TCP, ICMPV6].contains(protocol)) {
        let reason = match protocol {
            0 | 43 | 60 | 135 | 139 | 140 => TunnelDrop::Options,
            44 => TunnelDrop::Fragment,
            _ => TunnelDrop::Protocol,
        };
        expect([Packet::ipv6(protocol, &segment(40_000, LINK_PORT, SYN))], Err(reason));
    }
}

#[test]
fn options_headers_and_fragments_hide_nothing() {
    // A source route through the node, and a header that is only padding.
    for option in [[131, 7, 4, 8, 8, 8, 8, 0], [137, 7, 4, 8, 8, 8, 8, 0], [1; 8]] {
        let mut packet = Packet::ipv4(TCP, &[option.as_slice(), &segment(1, LINK_PORT, SYN)].concat());
        packet.0[0] = 0x47;
        expect([packet], Err(TunnelDrop::Options));
    }
    // TCP behind a routing header, hop-by-hop options, destination options.
    for next in [0, 43, 60] {
        let rest = [&[TCP, 0, 0, 0, 0, 0, 0, 0], segment(1, LINK_PORT, SYN).as_slice()].concat();
        expect([Packet::ipv6(next, &rest)], Err(TunnelDrop::Options));
    }
    for bits in [[0x20, 0], [0, 1], [0x1f, 0xff], [0x60, 0]] {
        let [ipv4, _] = Packet::tcp(&segment(1, LINK_PORT, SYN));
        expect([ipv4.with(6, &bits)], Err(TunnelDrop::Fragment));
    }
}

#[test]
fn packets_are_as_long_as_they_say_and_name_their_ports() {
    for whole in Packet::tcp(&segment(1, LINK_PORT, SYN)).into_iter().chain(Packet::echo(0)) {
        for length in 0..whole.0.len() {
            // The end is missing, with and without a word about it.
            let cut = Packet(whole.0[..length].to_vec());
            expect([cut.clone()], Err(TunnelDrop::Malformed));
            let head = if whole.is_ipv6() { 40 } else { 20 };
            if (head..head + 8).contains(&length) {
                expect([cut.with_length()], Err(TunnelDrop::Malformed));
            }
        }
        let mut long = whole.clone();
        long.0.push(0);
        expect([long], Err(TunnelDrop::Malformed));
        let hops_at = if whole.is_ipv6() { 7 } else { 8 };
        expect([whole.clone().with(hops_at, &[0])], Err(TunnelDrop::Malformed));
        for version in [0x05, 0x15, 0x35, 0x55, 0x75, 0xf5] {
            expect([whole.clone().with(0, &[version])], Err(TunnelDrop::Malformed));
        }
    }
    expect([Packet(Vec::new())], Err(TunnelDrop::Malformed));
    for words in [0, 1, 4, 9, 15] {
        let mut lying = segment(1, LINK_PORT, ACK);
        lying[12] = words << 4;
        expect(Packet::tcp(&lying), Err(TunnelDrop::Malformed));
    }
    for (source, destination) in [(0, LINK_PORT), (0, 22), (22, 0), (0, 0)] {
        expect(Packet::tcp(&segment(source, destination, ACK)), Err(TunnelDrop::Malformed));
    }
}

#[test]
fn into_a_tunnel_goes_what_a_device_may_get() {
    let outward = |packets: [Packet; 2]| packets.map(|packet| wall().judge_outward(&packet.0));
    let both = |passage| [passage; 2];
    assert_eq!(outward(Packet::tcp(&segment(LINK_PORT, 40_000, SYN | ACK))), both(Some(Passage::Link)));
    assert_eq!(outward(Packet::tcp(&segment(LINK_PORT, 40_000, RST))), both(Some(Passage::Link)));
    // The link port dials nobody.
    assert_eq!(outward(Packet::tcp(&segment(LINK_PORT, 40_000, SYN))), both(None));
    assert_eq!(outward(Packet::tcp(&segment(40_000, OTHER_PORT, SYN))), both(Some(Passage::Answer(OTHER_PORT))));
    for kind in [0, 1] {
        assert_eq!(outward(Packet::echo(kind)), both(Some(Passage::Echo)));
    }
    let udp = segment(LINK_PORT, 40_000, 0);
    assert_eq!(outward([Packet::ipv4(17, &udp), Packet::ipv6(17, &udp)]), both(None));
    // Errors, neighbours, routers.
    assert_eq!(
        outward([Packet::ipv4(ICMP, &[3, 3, 0, 0, 0, 0, 0, 0]), Packet::ipv6(ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0])]),
        both(None)
    );
    let [ping, _] = Packet::echo(0);
    assert_eq!(wall().judge_outward(&ping.clone().with(6, &[0x20, 0]).0), None);
    for length in 0..28 {
        assert_eq!(wall().judge_outward(&ping.0[..length]), None, "{length}");
    }
}

/// The rules once more, read byte by byte.
fn plainly(packet: &[u8]) -> Option<Passage> {
    let byte = |at: usize| packet.get(at).copied();
    let two = |at: usize| Some(u16::from(byte(at)?) * 256 + u16::from(byte(at + 1)?));
    let gateway = slice().gateway();
    let (transport_at, protocol) = match byte(0)? {
        0x45 => {
            let bits = two(6)?;
            let is_first_and_last = bits % 0x2000 == 0 && bits / 0x2000 % 2 == 0;
            let is_ours = packet.get(16..20)? == gateway.ipv4.octets();
            if usize::from(two(2)?) != packet.len() || !is_first_and_last || !is_ours || byte(8)? == 0 {
                return None;
            }
            (20, byte(9)?)
        }
        0x60..=0x6f => {
            let is_ours = packet.get(24..40)? == gateway.ipv6.octets();
            if usize::from(two(4)?) + 40 != packet.len() || !is_ours || byte(7)? == 0 {
                return None;
            }
            (40, byte(6)?)
        }
        _ => return None,
    };
    let rest = packet.len() - transport_at;
    let is_ipv6 = transport_at == 40;
    match (protocol, is_ipv6) {
        (6, _) => {
            let (source, destination, flags) = (two(transport_at)?, two(transport_at + 2)?, byte(transport_at + 13)?);
            let head = usize::from(byte(transport_at + 12)? / 16) * 4;
            let [is_syn, is_rst, is_ack] = [2, 4, 16].map(|bit| flags / bit % 2 == 1);
            if rest < 20 || head < 20 || head > rest || source == 0 || destination == 0 {
                None
            } else if destination == LINK_PORT {
                Some(Passage::Link)
            } else if is_ack || is_rst && !is_syn {
                Some(Passage::Answer(source))
            } else {
                None
            }
        }
        (1, false) | (58, true) => {
            let kinds = if is_ipv6 { [128, 129] } else { [8, 0] };
            (rest >= 8 && kinds.contains(&byte(transport_at)?) && byte(transport_at + 1)? == 0).then_some(Passage::Echo)
        }
        _ => None,
    }
}

/// What a parser says that has nothing in common with this one.
fn by_another_parser(packet: &[u8]) -> Option<Passage> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let gateway = slice().gateway();
    let is_ours = match sliced.net? {
        NetSlice::Ipv4(ipv4) => {
            let head = ipv4.header();
            usize::from(head.total_len()) == packet.len()
                && head.options().is_empty()
                && !head.is_fragmenting_payload()
                && head.ttl() > 0
                && ipv4.extensions().is_empty()
                && head.destination_addr() == gateway.ipv4
        }
        NetSlice::Ipv6(ipv6) => {
            let head = ipv6.header();
            usize::from(head.payload_length()) + 40 == packet.len()
                && ipv6.extensions().is_empty()
                && head.hop_limit() > 0
                && head.destination_addr() == gateway.ipv6
        }
        NetSlice::Arp(_) => false,
    };
    match sliced.transport.filter(|_| is_ours)? {
        TransportSlice::Tcp(tcp) => {
            if tcp.source_port() == 0 || tcp.destination_port() == 0 {
                None
            } else if tcp.destination_port() == LINK_PORT {
                Some(Passage::Link)
            } else {
                let begins_nothing = tcp.ack() || tcp.rst() && !tcp.syn();
                begins_nothing.then(|| Passage::Answer(tcp.source_port()))
            }
        }
        TransportSlice::Icmpv4(icmp) if packet[0] >> 4 == 4 => {
            ([8, 0].contains(&icmp.type_u8()) && icmp.code_u8() == 0).then_some(Passage::Echo)
        }
        TransportSlice::Icmpv6(icmp) if packet[0] >> 4 == 6 => {
            ([128, 129].contains(&icmp.type_u8()) && icmp.code_u8() == 0).then_some(Passage::Echo)
        }
        TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Udp(_) | TransportSlice::Igmp(_) => {
            None
        }
    }
}

/// Packets that are nearly good, with some bytes that are not.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let port = || prop_oneof![4 => Just(LINK_PORT), 2 => Just(OTHER_PORT), 1 => Just(0_u16), 1 => any::<u16>()];
    let tcp =
        (port(), port(), any::<u8>()).prop_map(|(source, destination, flags)| segment(source, destination, flags));
    let echo = prop_oneof![Just(8_u8), Just(0), Just(128), Just(129), any::<u8>()]
        .prop_map(|kind| vec![kind, 0, 0, 0, 0, 1, 0, 1, 9]);
    let rest = prop_oneof![4 => tcp, 2 => echo, 1 => prop::collection::vec(any::<u8>(), 0..100)];
    let protocol = prop_oneof![5 => Just(TCP), 2 => Just(ICMP), 2 => Just(ICMPV6), 1 => Just(0_u8), 1 => Just(44), 1 => Just(51), 1 => any::<u8>()];
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (any::<bool>(), protocol, rest, prop::collection::vec(change, 0..3), 0_usize..90, any::<bool>()).prop_map(
        |(is_ipv6, protocol, rest, changes, cut, is_honest)| {
            let Packet(mut bytes) = if is_ipv6 { Packet::ipv6(protocol, &rest) } else { Packet::ipv4(protocol, &rest) };
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            // One in two is as long as it was.
            if cut < 45 {
                bytes.truncate(bytes.len().saturating_sub(cut).max(40));
                if is_honest {
                    return Packet(bytes).with_length().0;
                }
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_passes_is_what_the_rules_say(packet in packet()) {
        let judged = wall().judge(&packet);
        prop_assert_eq!(judged.ok(), plainly(&packet), "{:?}", judged);
        prop_assert_eq!(wall().look_at(&packet), judged);
        prop_assert_eq!(wall().is_plainly_link(&packet), judged == Ok(Passage::Link));
    }

    #[test]
    fn what_passes_is_what_another_parser_reads(packet in packet()) {
        prop_assert_eq!(wall().judge(&packet).ok(), by_another_parser(&packet));
    }

    #[test]
    fn every_reason_is_one_of_what_devices_may_not(packet in packet()) {
        if let Err(reason) = wall().judge(&packet) {
            prop_assert!(TunnelDrop::ATTEMPTS.contains(&reason), "{:?}", reason);
        }
    }

    #[test]
    fn arbitrary_packets_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), first in 0_u8..4) {
        if let Some(byte) = bytes.first_mut() {
            *byte = [0x45, 0x60, 0x4f, *byte][usize::from(first)];
        }
        prop_assert_eq!(wall().judge(&bytes).ok(), plainly(&bytes));
        _ = wall().judge_outward(&bytes);
    }
}
