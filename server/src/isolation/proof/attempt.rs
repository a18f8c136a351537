//! What the probes try: one list, made of the addresses alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::mark::Mark;
use super::packet::Datagram;
use crate::tunnel::slice::Addresses;

/// Addresses of the node of which each is tried.
pub(super) const NODE_ADDRESSES_MAX: usize = 16;
/// Listening ports that are tried on each of the node's addresses. On the gateway's address all are.
const PORTS_PER_ADDRESS_MAX: usize = 8;

/// Where nobody expects an answer (RFC 863).
const DISCARD: u16 = 9;
const PROTOCOL_IPIP: u8 = 4;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_GRE: u8 = 47;
const PROTOCOL_ESP: u8 = 50;
const PROTOCOL_SCTP: u8 = 132;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
/// One option of padding, so that the header is eight bytes long.
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
/// Space for one address in a record of the route (RFC 791), padded.
const RECORD_ROUTE: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
const TIMESTAMP_REQUEST: u8 = 13;
const ADDRESS_MASK_REQUEST: u8 = 17;
const REDIRECT: u8 = 5;
const MULTICAST_QUERY_V6: u8 = 130;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT_V6: u8 = 137;
/// Link-local addresses, and one on the Internet's side of nothing: nobody has them here.
const LINK_LOCAL_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 7);
const LINK_LOCAL_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xc10d, 7);

/// What belongs together in a round's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// The other device, by its address in the tunnels' range.
    Device,
    /// From an address that is not the sender's.
    Spoofed,
    /// The node by its other addresses.
    NodeAddress,
    /// The range of another node's devices.
    OtherNode,
    Internet,
    Multicast,
    Broadcast,
    LinkLocal,
    Fragment,
    /// IPv4 options, source routes among them.
    Options,
    /// IPv6 extension headers.
    Extension,
    /// Packets in packets.
    Encapsulation,
    /// What ICMP is for, but for an echo: redirects, routers, neighbours.
    Control,
    /// Every port of the node.
    Ports,
    /// From outside to devices, and to what is for devices alone.
    FromOutside,
    /// A device's port while it is not open.
    Closed,
    /// Must be possible.
    LinkPort,
    /// Must be possible.
    Echo,
    /// Must be possible: a device's port while it is open.
    Opening,
    /// Must be possible: the node itself reaches the stand-in, which would not see a leak otherwise.
    StandIn,
}

impl Kind {
    #[cfg(test)]
    pub(super) const ALL: [Self; 20] = [
        Self::Device,
        Self::Spoofed,
        Self::NodeAddress,
        Self::OtherNode,
        Self::Internet,
        Self::Multicast,
        Self::Broadcast,
        Self::LinkLocal,
        Self::Fragment,
        Self::Options,
        Self::Extension,
        Self::Encapsulation,
        Self::Control,
        Self::Ports,
        Self::FromOutside,
        Self::Closed,
        Self::LinkPort,
        Self::Echo,
        Self::Opening,
        Self::StandIn,
    ];

    /// As results name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Spoofed => "spoofed_source",
            Self::NodeAddress => "node_address",
            Self::OtherNode => "other_node",
            Self::Internet => "internet",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::LinkLocal => "link_local",
            Self::Fragment => "fragment",
            Self::Options => "ip_options",
            Self::Extension => "extension_header",
            Self::Encapsulation => "encapsulation",
            Self::Control => "icmp_control",
            Self::Ports => "ports",
            Self::FromOutside => "from_outside",
            Self::Closed => "port_closed",
            Self::LinkPort => "link_port",
            Self::Echo => "echo",
            Self::Opening => "port_open",
            Self::StandIn => "stand_in",
        }
    }

    /// Whether it must be possible.
    pub(super) const fn must_work(self) -> bool {
        matches!(self, Self::LinkPort | Self::Echo | Self::Opening | Self::StandIn)
    }
}

/// Which way an attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the tunnel of the probe of this number: past both walls.
    Tunnel(usize),
    /// Straight into the kernel, as if out of the tunnel of the probe of this number: past its wall alone.
    Kernel(usize),
    /// From the stand-in of the Internet.
    Outside,
    /// From the node itself: what it sends by a socket.
    Node,
}

/// What an attempt is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trick {
    Udp(u16),
    Syn(u16),
    Echo,
    /// A datagram to the port, in two fragments.
    UdpFragments(u16),
    /// The beginning of a connection, cut in the middle of its header.
    SynFragments(u16),
    /// A datagram to the port, with IPv4 options.
    UdpOptions(u16, Options),
    EchoOptions(Options),
    /// A datagram to the port, behind an IPv6 extension header.
    UdpExtension(u16, u8),
    SynExtension(u16, u8),
    /// A datagram to the port, in a packet of this protocol.
    Encapsulated(u16, u8),
    Icmp(u8),
    /// Each port that the round asks for.
    ScanTcp,
    ScanUdp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Options {
    RecordRoute,
    RouterAlert,
    /// Loose (131) or strict (137), over this address.
    SourceRoute(u8, Ipv4Addr),
}

impl Options {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::RecordRoute => RECORD_ROUTE.to_vec(),
            Self::RouterAlert => ROUTER_ALERT.to_vec(),
            Self::SourceRoute(kind, via) => [&[kind, 7, 4], &via.octets()[..], &[0]].concat(),
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) kind: Kind,
    pub(super) way: Way,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) trick: Trick,
}

impl Attempt {
    /// Its packets. None of a scan, which makes one for each port.
    pub(super) fn packets(&self, mark: &Mark, number: u16) -> Vec<Vec<u8>> {
        let payload = mark.payload(number);
        let from = SocketAddr::new(self.source, mark.port(number));
        let to = |port| SocketAddr::new(self.destination, port);
        let udp = |port| Datagram::udp(from, to(port), &payload);
        let syn = |port| Datagram::syn(from, to(port), mark.sequence);
        let echo = || Datagram::echo_request(self.source, self.destination, number, &payload);
        match self.trick {
            Trick::Udp(port) => vec![udp(port).packet()],
            Trick::Syn(port) => vec![syn(port).packet()],
            Trick::Echo => vec![echo().packet()],
            Trick::UdpFragments(port) => udp(port).fragments(24, number).into(),
            Trick::SynFragments(port) => syn(port).fragments(8, number).into(),
            Trick::UdpOptions(port, options) => vec![udp(port).with_options(&options.bytes())],
            Trick::EchoOptions(options) => vec![echo().with_options(&options.bytes())],
            Trick::UdpExtension(port, header) => vec![udp(port).with_extension(header, &PADDING)],
            Trick::SynExtension(port, header) => vec![syn(port).with_extension(header, &PADDING)],
            Trick::Encapsulated(port, protocol) => {
                let inner = udp(port).packet();
                let bytes = match protocol {
                    // A GRE header without anything optional, over what it carries.
                    PROTOCOL_GRE => [&[0, 0, if self.source.is_ipv4() { 8 } else { 0x86 }, 0], &inner[..]].concat(),
                    _ => inner,
                };
                vec![Datagram::other(self.source, self.destination, protocol, &bytes).packet()]
            }
            Trick::Icmp(kind) => vec![self.icmp(kind, mark, number)],
            Trick::ScanTcp | Trick::ScanUdp => Vec::new(),
        }
    }

    /// One port of a scan.
    pub(super) fn scan(&self, mark: &Mark, number: u16, port: u16) -> Vec<u8> {
        let (from, to) = (SocketAddr::new(self.source, mark.port(number)), SocketAddr::new(self.destination, port));
        if self.trick == Trick::ScanTcp {
            Datagram::syn(from, to, mark.sequence).packet()
        } else {
            Datagram::udp(from, to, &mark.payload(number)).packet()
        }
    }

    fn icmp(&self, kind: u8, mark: &Mark, number: u16) -> Vec<u8> {
        let target = match self.destination {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(target) => target.octets().to_vec(),
        };
        let payload = match kind {
            // What comes back of it: the time at which it was sent.
            TIMESTAMP_REQUEST => [&mark.sequence.to_be_bytes()[..], &[0; 8]].concat(),
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => target,
            REDIRECT_V6 => [target.clone(), target].concat(),
            // A redirect quotes the packet that it is about.
            REDIRECT => self.packets_about(mark, number),
            _ => mark.payload(number),
        };
        let rest = match (kind, self.source) {
            (REDIRECT, IpAddr::V4(source)) => source.octets(),
            _ => {
                let [high, low] = number.to_be_bytes();
                [high, low, high, low]
            }
        };
        let mut packet = Datagram::icmp_raw(self.source, self.destination, kind, rest, &payload).packet();
        // What neighbours and routers say is only believed when it has come over no hop at all.
        if self.source.is_ipv6() {
            packet[7] = u8::MAX;
        }
        packet
    }

    fn packets_about(&self, mark: &Mark, number: u16) -> Vec<u8> {
        let (from, to) = (SocketAddr::new(self.destination, 1), SocketAddr::new(self.source, 1));
        Datagram::udp(from, to, &mark.payload(number)).packet()
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        let way = match self.way {
            Way::Tunnel(_) => "through its tunnel",
            Way::Kernel(_) => "past the driver's wall",
            Way::Outside => "from outside",
            Way::Node => "from the node itself",
        };
        format!("{:?} from {} to {} {way}", self.trick, self.source, self.destination)
    }
}

/// Who is where.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) devices: [Addresses; 2],
    pub(super) gateway: Addresses,
    pub(super) link_port: u16,
    /// An address of the slice that no device has.
    pub(super) vacant: Option<Addresses>,
    pub(super) broadcast: Ipv4Addr,
    /// The node's addresses other than the gateway's.
    pub(super) node: Vec<IpAddr>,
    /// In the slice of another node, and on the Internet: what is sent there, the stand-in gets.
    pub(super) other_node: Option<Addresses>,
    pub(super) internet: Addresses,
    /// Where the listener listens, that nobody may reach.
    pub(super) listener: Ports,
    /// TCP ports of the node that something listens on.
    pub(super) listening: Vec<u16>,
}

/// A port in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) ipv4: u16,
    pub(super) ipv6: u16,
}

/// The attempts of a round, but for what time decides: the opening.
pub(super) fn list(map: &Map) -> Vec<Attempt> {
    let mut list = List { map, attempts: Vec::new() };
    for family in [Family::V4, Family::V6] {
        list.devices(family);
        list.spoofed(family);
        list.node(family);
        list.away(family);
        list.groups(family);
        list.tricks(family);
        list.control(family);
        list.outside(family);
        list.ports(family);
    }
    // Last: when it is answered, all that was sent before has been judged.
    for family in [Family::V4, Family::V6] {
        list.possible(family);
    }
    list.attempts
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(self, addresses: Addresses) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(addresses.ipv4),
            Self::V6 => IpAddr::V6(addresses.ipv6),
        }
    }
}

struct List<'a> {
    map: &'a Map,
    attempts: Vec<Attempt>,
}

impl List<'_> {
    fn add(&mut self, kind: Kind, way: Way, source: IpAddr, destination: IpAddr, trick: Trick) {
        self.attempts.push(Attempt { kind, way, source, destination, trick });
    }

    /// The first device tries it, past both walls and past the kernel's alone.
    fn both(&mut self, kind: Kind, source: IpAddr, destination: IpAddr, trick: Trick) {
        self.add(kind, Way::Tunnel(0), source, destination, trick);
        self.add(kind, Way::Kernel(0), source, destination, trick);
    }

    fn device(&self, family: Family, number: usize) -> IpAddr {
        family.of(self.map.devices[number])
    }

    fn listener(&self, family: Family) -> u16 {
        match family {
            Family::V4 => self.map.listener.ipv4,
            Family::V6 => self.map.listener.ipv6,
        }
    }

    fn devices(&mut self, family: Family) {
        for (from, to) in [(0, 1), (1, 0)] {
            let (source, destination) = (self.device(family, from), self.device(family, to));
            for trick in [Trick::Udp(5060), Trick::Syn(22), Trick::Syn(self.map.link_port), Trick::Echo] {
                self.add(Kind::Device, Way::Tunnel(from), source, destination, trick);
                self.add(Kind::Device, Way::Kernel(from), source, destination, trick);
            }
        }
    }

    fn spoofed(&mut self, family: Family) {
        let (gateway, link_port) = (family.of(self.map.gateway), self.map.link_port);
        let listener = self.listener(family);
        // Only a tunnel has a sender: straight into the kernel, the other device's address is the other device.
        for trick in [Trick::Syn(link_port), Trick::Echo, Trick::Udp(listener)] {
            self.add(Kind::Spoofed, Way::Tunnel(0), self.device(family, 1), gateway, trick);
        }
        let loopback = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let others = [Some(self.map.internet), self.map.other_node, self.map.vacant].into_iter().flatten();
        let others: Vec<_> = others.map(|addresses| family.of(addresses)).chain([gateway, loopback]).collect();
        for source in others {
            for trick in [Trick::Syn(link_port), Trick::Udp(listener)] {
                // A vacant address is the kernel's to let in: the plane knows that it is nobody's.
                let is_vacant = self.map.vacant.is_some_and(|vacant| family.of(vacant) == source);
                self.add(Kind::Spoofed, Way::Tunnel(0), source, gateway, trick);
                if !is_vacant {
                    self.add(Kind::Spoofed, Way::Kernel(0), source, gateway, trick);
                }
            }
        }
    }

    fn node(&mut self, family: Family) {
        let (source, listener) = (self.device(family, 0), self.listener(family));
        let ports: Vec<u16> = self.map.listening.iter().copied().take(PORTS_PER_ADDRESS_MAX).collect();
        let addresses: Vec<_> = self
            .map
            .node
            .iter()
            .copied()
            .filter(|ip| ip.is_ipv4() == source.is_ipv4())
            .take(NODE_ADDRESSES_MAX)
            .collect();
        for address in addresses {
            self.both(Kind::NodeAddress, source, address, Trick::Udp(listener));
            self.both(Kind::NodeAddress, source, address, Trick::Echo);
            for port in &ports {
                self.both(Kind::NodeAddress, source, address, Trick::Syn(*port));
            }
        }
    }

    fn away(&mut self, family: Family) {
        let source = self.device(family, 0);
        if let Some(other) = self.map.other_node {
            for trick in [Trick::Udp(5060), Trick::Syn(self.map.link_port), Trick::Echo] {
                self.both(Kind::OtherNode, source, family.of(other), trick);
            }
        }
        let internet = family.of(self.map.internet);
        for trick in [Trick::Udp(53), Trick::Udp(123), Trick::Syn(443), Trick::Syn(22), Trick::Echo] {
            self.both(Kind::Internet, source, internet, trick);
        }
    }

    fn groups(&mut self, family: Family) {
        let (source, listener) = (self.device(family, 0), self.listener(family));
        let groups: &[&str] = match family {
            Family::V4 => &["224.0.0.1", "224.0.0.2", "224.0.0.251", "239.255.255.250"],
            Family::V6 => &["ff01::1", "ff02::1", "ff02::2", "ff02::fb", "ff05::2"],
        };
        for group in groups.iter().filter_map(|group| group.parse().ok()) {
            self.both(Kind::Multicast, source, group, Trick::Udp(listener));
            self.both(Kind::Multicast, source, group, Trick::Echo);
        }
        if family == Family::V4 {
            for address in [self.map.broadcast, Ipv4Addr::BROADCAST] {
                self.both(Kind::Broadcast, source, address.into(), Trick::Udp(listener));
                self.both(Kind::Broadcast, source, address.into(), Trick::Echo);
            }
        }
        let gateway = family.of(self.map.gateway);
        let link_local = match family {
            Family::V4 => IpAddr::V4(LINK_LOCAL_V4),
            Family::V6 => IpAddr::V6(LINK_LOCAL_V6),
        };
        for (source, destination) in [(source, link_local), (link_local, gateway)] {
            for trick in [Trick::Udp(listener), Trick::Syn(self.map.link_port), Trick::Echo] {
                self.both(Kind::LinkLocal, source, destination, trick);
            }
        }
    }

    fn tricks(&mut self, family: Family) {
        let (source, gateway) = (self.device(family, 0), family.of(self.map.gateway));
        let (listener, link_port) = (self.listener(family), self.map.link_port);
        self.both(Kind::Fragment, source, gateway, Trick::UdpFragments(listener));
        self.both(Kind::Fragment, source, gateway, Trick::SynFragments(link_port));
        self.both(Kind::Fragment, source, self.device(family, 1), Trick::UdpFragments(5060));
        self.both(Kind::Fragment, source, family.of(self.map.internet), Trick::UdpFragments(53));
        match family {
            Family::V4 => {
                let routes = [self.map.devices[1].ipv4, self.map.internet.ipv4]
                    .into_iter()
                    .flat_map(|via| [Options::SourceRoute(131, via), Options::SourceRoute(137, via)]);
                for options in routes.chain([Options::RecordRoute, Options::RouterAlert]) {
                    self.both(Kind::Options, source, gateway, Trick::UdpOptions(listener, options));
                    self.both(Kind::Options, source, gateway, Trick::EchoOptions(options));
                }
            }
            Family::V6 => {
                for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
                    self.both(Kind::Extension, source, gateway, Trick::UdpExtension(listener, header));
                    self.both(Kind::Extension, source, gateway, Trick::SynExtension(link_port, header));
                }
            }
        }
        for protocol in [PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_GRE, PROTOCOL_ESP, PROTOCOL_SCTP] {
            self.both(Kind::Encapsulation, source, gateway, Trick::Encapsulated(listener, protocol));
        }
    }

    fn control(&mut self, family: Family) {
        let (source, gateway) = (self.device(family, 0), family.of(self.map.gateway));
        let kinds: &[u8] = match family {
            Family::V4 => &[TIMESTAMP_REQUEST, ADDRESS_MASK_REQUEST, REDIRECT],
            Family::V6 => &[
                MULTICAST_QUERY_V6,
                ROUTER_ADVERTISEMENT,
                NEIGHBOUR_SOLICITATION,
                NEIGHBOUR_ADVERTISEMENT,
                REDIRECT_V6,
            ],
        };
        for kind in kinds {
            self.both(Kind::Control, source, gateway, Trick::Icmp(*kind));
        }
    }

    fn outside(&mut self, family: Family) {
        let (internet, gateway) = (family.of(self.map.internet), family.of(self.map.gateway));
        for destination in [self.device(family, 0), self.device(family, 1)] {
            for trick in [Trick::Udp(5060), Trick::Syn(22), Trick::Echo] {
                self.add(Kind::FromOutside, Way::Outside, internet, destination, trick);
            }
            // As if it were the node itself, to which devices listen.
            self.add(Kind::FromOutside, Way::Outside, gateway, destination, Trick::Udp(5060));
        }
        for trick in [Trick::Syn(self.map.link_port), Trick::Echo] {
            self.add(Kind::FromOutside, Way::Outside, internet, gateway, trick);
            self.add(Kind::FromOutside, Way::Outside, self.device(family, 0), gateway, trick);
        }
    }

    fn ports(&mut self, family: Family) {
        let (source, gateway) = (self.device(family, 0), family.of(self.map.gateway));
        for trick in [Trick::ScanTcp, Trick::ScanUdp] {
            self.both(Kind::Ports, source, gateway, trick);
        }
    }

    fn possible(&mut self, family: Family) {
        let gateway = family.of(self.map.gateway);
        for there in [Some(self.map.internet), self.map.other_node].into_iter().flatten() {
            self.add(Kind::StandIn, Way::Node, gateway, family.of(there), Trick::Udp(DISCARD));
        }
        for number in [0, 1] {
            let source = self.device(family, number);
            for (kind, trick) in [(Kind::LinkPort, Trick::Syn(self.map.link_port)), (Kind::Echo, Trick::Echo)] {
                self.add(kind, Way::Tunnel(number), source, gateway, trick);
                self.add(kind, Way::Kernel(number), source, gateway, trick);
            }
        }
    }
}

/// The attempt that an answer without a mark is taken for: who asks for a neighbour past the driver's wall. Whoever asks through the
/// tunnel gets the same answer, but that it has got past both walls is more than such an answer can tell.
pub(super) fn neighbour_asked_past_the_wall(attempts: &[Attempt]) -> Option<u16> {
    let asks = |attempt: &Attempt| {
        attempt.trick == Trick::Icmp(NEIGHBOUR_SOLICITATION) && matches!(attempt.way, Way::Kernel(_))
    };
    attempts.iter().position(asks).and_then(|number| number.try_into().ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    pub(in super::super) fn map() -> Map {
        let at = |ipv4: &str, ipv6: &str| Addresses { ipv4: ipv4.parse().unwrap(), ipv6: ipv6.parse().unwrap() };
        Map {
            devices: [at("100.64.0.2", "fd00::2"), at("100.64.0.3", "fd00::3")],
            gateway: at("100.64.0.1", "fd00::1"),
            link_port: 80,
            vacant: Some(at("100.64.255.254", "fd00::fffe")),
            broadcast: Ipv4Addr::new(100, 64, 255, 255),
            node: vec!["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            other_node: Some(at("100.127.0.3", "fd00:0:0:3f::3")),
            internet: at("192.0.2.66", "2001:db8:c10d::66"),
            listener: Ports { ipv4: 40_000, ipv6: 40_001 },
            listening: vec![22, 443],
        }
    }

    #[test]
    fn an_answer_without_a_mark_is_taken_for_the_lesser_of_two() {
        let attempts = list(&map());
        let number = neighbour_asked_past_the_wall(&attempts).unwrap();
        let attempt = &attempts[usize::from(number)];
        assert_eq!((attempt.trick, attempt.way), (Trick::Icmp(NEIGHBOUR_SOLICITATION), Way::Kernel(0)));
        assert_eq!(neighbour_asked_past_the_wall(&attempts[..usize::from(number)]), None, "there is one");
    }

    #[test]
    fn each_kind_is_tried_in_both_families_and_past_the_kernels_wall_alone() {
        let attempts = list(&map());
        let tried = |kind, is_v4, way: fn(Way) -> bool| {
            attempts.iter().any(|attempt| attempt.kind == kind && attempt.source.is_ipv4() == is_v4 && way(attempt.way))
        };
        for kind in Kind::ALL {
            if matches!(kind, Kind::Closed | Kind::Opening) {
                // Decided by time.
                continue;
            }
            let has_v4 = kind != Kind::Extension;
            let has_v6 = !matches!(kind, Kind::Broadcast | Kind::Options);
            for is_v4 in [(true, has_v4), (false, has_v6)].into_iter().filter(|(_, has)| *has).map(|(is_v4, _)| is_v4) {
                if kind == Kind::FromOutside {
                    assert!(tried(kind, is_v4, |way| way == Way::Outside));
                } else if kind == Kind::StandIn {
                    assert!(tried(kind, is_v4, |way| way == Way::Node));
                } else {
                    assert!(tried(kind, is_v4, |way| matches!(way, Way::Tunnel(_))), "{kind:?} {is_v4}");
                    assert!(tried(kind, is_v4, |way| matches!(way, Way::Kernel(_))), "{kind:?} {is_v4}");
                }
            }
        }
    }

    #[test]
    fn a_packet_goes_where_its_attempt_says_and_carries_its_mark() {
        let mark = Mark::new([7; 12], 0x0102_0304, 1);
        let attempts = list(&map());
        assert!(attempts.len() < 10_000, "source ports would run out");
        for (number, attempt) in (0..).zip(&attempts) {
            let is_scan = matches!(attempt.trick, Trick::ScanTcp | Trick::ScanUdp);
            let packets =
                if is_scan { vec![attempt.scan(&mark, number, 8080)] } else { attempt.packets(&mark, number) };
            assert!(!packets.is_empty());
            for packet in packets {
                let (source, destination): (IpAddr, IpAddr) = if attempt.source.is_ipv4() {
                    let at = |at: usize| IpAddr::from(*packet[at..].first_chunk::<4>().unwrap());
                    (at(12), at(16))
                } else {
                    let at = |at: usize| IpAddr::from(*packet[at..].first_chunk::<16>().unwrap());
                    (at(8), at(24))
                };
                assert_eq!((source, destination), (attempt.source, attempt.destination));
            }
        }
    }

    #[test]
    fn what_must_work_comes_last_and_is_little() {
        let attempts = list(&map());
        let first = attempts.iter().position(|attempt| attempt.kind.must_work()).unwrap();
        assert!(attempts[first..].iter().all(|attempt| attempt.kind.must_work()));
        // Within any rate of pings that can be configured, one tunnel and one way after the other.
        let echoes: BTreeSet<_> = attempts
            .iter()
            .filter(|attempt| attempt.kind == Kind::Echo)
            .map(|attempt| (attempt.source, format!("{:?}", attempt.way)))
            .collect();
        assert_eq!(echoes.len(), 8);
    }
}
