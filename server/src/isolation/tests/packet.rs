//! Packets as devices might send them, straight into the interface, with no driver in between: what the kernel alone makes of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TcpSlice, TransportSlice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::isolation::compare::Listing;

const MODULE: &str = "isolation::tests::packet";
const LINK_PORT: u16 = 80;
/// A port of the device that is open for support.
const OPEN: u16 = 22;
/// After this long nothing comes any more.
const SILENCE: Duration = Duration::from_millis(300);
const TTL: u8 = 64;

impl Scene {
    /// What was dropped so far, by reason.
    async fn dropped(&self) -> BTreeMap<&'static str, u64> {
        let objects = self.isolation.kernel.as_ref().unwrap().list(TABLE).await.unwrap().unwrap();
        let dropped = Listing::read(&objects).dropped.into_iter();
        dropped.filter(|(_, packets)| *packets > 0).map(|(reason, packets)| (reason.label(), packets)).collect()
    }

    async fn send(&self, packet: &[u8]) {
        self.interface.as_ref().unwrap().send(packet).await.unwrap();
    }

    /// The next packet to devices that passes the filter.
    async fn receive<T>(&self, filter: impl Fn(&SlicedPacket<'_>) -> Option<T>) -> Option<T> {
        let mut buffer = [0; 2048];
        let found = async {
            loop {
                let length = self.interface.as_ref().unwrap().recv(&mut buffer).await.unwrap();
                if let Some(found) = SlicedPacket::from_ip(&buffer[..length]).ok().and_then(|packet| filter(&packet)) {
                    return found;
                }
            }
        };
        timeout(SILENCE, found).await.ok()
    }

    /// Sends it; it must be dropped for this reason, and for no other.
    async fn refuses(&self, what: &str, packet: &[u8], reason: &str) {
        let before = self.dropped().await;
        self.send(packet).await;
        let mut after = self.dropped().await;
        let count = after.get(reason).copied().unwrap_or(0) - before.get(reason).copied().unwrap_or(0);
        assert_eq!(count, 1, "{what}: {before:?} before, {after:?} after");
        after.remove(reason);
        after.remove("out");
        assert!(after.iter().all(|(other, count)| before.get(other) == Some(count)), "{what}: {before:?} {after:?}");
    }

    async fn takes(&self, what: &str, packet: &[u8]) {
        let (mut before, ()) = (self.dropped().await, self.send(packet).await);
        let mut after = self.dropped().await;
        // The kernel says and repeats things to devices by itself.
        before.remove("out");
        after.remove("out");
        assert_eq!(after, before, "{what}");
    }
}

fn device(number: u32) -> Addresses {
    slice().addresses(number).unwrap()
}

/// An IP packet with anything inside.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let number = IpNumber(protocol);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), TTL).write(&mut packet, number, payload).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), TTL).write(&mut packet, number, payload).unwrap();
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("no packet has two families"),
    }
    packet
}

fn udp(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload = [7; 8];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), TTL).udp(9, port);
            builder.write(&mut packet, &payload).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), TTL).udp(9, port);
            builder.write(&mut packet, &payload).unwrap();
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("no packet has two families"),
    }
    packet
}

/// A TCP segment of a device, the flags as bits of its fourteenth byte.
fn tcp(from: SocketAddr, to: SocketAddr, numbers: [u32; 2], flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let [sequence, acknowledges] = numbers;
    macro_rules! write {
        ($builder:expr) => {{
            let mut builder = $builder.tcp(from.port(), to.port(), sequence, 64_000);
            if flags & SYN != 0 {
                builder = builder.syn();
            }
            if flags & ACK != 0 {
                builder = builder.ack(acknowledges);
            }
            builder.write(&mut packet, payload).unwrap();
        }};
    }
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write!(PacketBuilder::ipv4(from.octets(), to.octets(), TTL)),
        (IpAddr::V6(from), IpAddr::V6(to)) => write!(PacketBuilder::ipv6(from.octets(), to.octets(), TTL)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("no packet has two families"),
    }
    packet
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn ping(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), TTL).icmpv4_echo_request(7, 1);
            builder.write(&mut packet, &[1; 16]).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), TTL).icmpv6_echo_request(7, 1);
            builder.write(&mut packet, &[1; 16]).unwrap();
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("no packet has two families"),
    }
    packet
}

fn is_echo_reply(packet: &SlicedPacket<'_>) -> Option<()> {
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => (icmp.type_u8() == 0).then_some(()),
        Some(TransportSlice::Icmpv6(icmp)) => (icmp.type_u8() == 129).then_some(()),
        Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_) | TransportSlice::Igmp(_)) | None => None,
    }
}

fn segment<T>(packet: &SlicedPacket<'_>, read: impl Fn(&TcpSlice<'_>) -> Option<T>) -> Option<T> {
    let Some(TransportSlice::Tcp(segment)) = &packet.transport else { return None };
    read(segment)
}

/// An IPv4 header that says something else, with its checksum put right.
fn altered(mut packet: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    packet[10..12].fill(0);
    let words = usize::from(packet[0] & 0xf) * 2;
    let sum: u32 = packet.chunks(2).take(words).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[test]
fn a_device_may_use_the_links_port_and_ping_and_nothing_else() {
    isolated_in(MODULE, "a_device_may_use_the_links_port_and_ping_and_nothing_else", async {
        let scene = Scene::with_interface().await;
        let gateway = slice().gateway();
        for (own, node) in [(device(2).ipv4.into(), gateway.ipv4.into()), (device(2).ipv6.into(), gateway.ipv6.into())]
        {
            let (own, node): (IpAddr, IpAddr) = (own, node);
            scene.takes("a ping", &ping(own, node)).await;
            assert_eq!(scene.receive(is_echo_reply).await, Some(()), "{own}");
            let syn = |port| tcp((own, 9).into(), (node, port).into(), [1, 0], SYN, &[]);
            scene.takes("the link's port", &syn(LINK_PORT)).await;
            // Nobody listens here, and the kernel may say so.
            let reset = scene.receive(|packet| segment(packet, |tcp| tcp.rst().then(|| tcp.source_port()))).await;
            assert_eq!(reset, Some(LINK_PORT), "{own}");
            for port in [1, 22, 79, 81, 443, 9090, 65_535] {
                scene.refuses("another port", &syn(port), "port").await;
                let ack = tcp((own, LINK_PORT).into(), (node, port).into(), [1, 1], ACK, &[]);
                scene.refuses("from the link's port, not to it", &ack, "port").await;
                scene.refuses("UDP", &udp(own, node, port), "port").await;
            }
            scene.refuses("UDP to the link's port", &udp(own, node, LINK_PORT), "port").await;
            for protocol in [2, 4, 41, 47, 50, 89, 132, 253] {
                scene.refuses("another protocol", &ip(own, node, protocol, &[0; 40]), "protocol").await;
            }
        }
        let (own, node) = (IpAddr::from(device(2).ipv4), gateway.ipv4.into());
        for kind in [3, 5, 9, 10, 11, 13, 17] {
            scene.refuses("another ICMP message", &ip(own, node, 1, &[kind, 0, 0, 0, 0, 0, 0, 0]), "protocol").await;
        }
        let (own, node) = (IpAddr::from(device(2).ipv6), gateway.ipv6.into());
        for kind in [1, 2, 3, 130, 133, 134, 135, 136, 137] {
            let what = "another ICMPv6 message, such as a neighbour's or a router's";
            scene.refuses(what, &ip(own, node, 58, &[kind, 0, 0, 0, 0, 0, 0, 0]), "protocol").await;
        }
        assert_eq!(scene.receive(|packet| packet.net.as_ref().map(drop)).await, None, "nothing is answered");
    });
}

#[test]
fn addresses_that_a_device_has_not_and_may_not_reach_are_refused() {
    isolated_in(MODULE, "addresses_that_a_device_has_not_and_may_not_reach_are_refused", async {
        let scene = Scene::with_interface().await;
        // As an administrator might, for something else.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        setting::harden(INTERFACE).unwrap();
        let gateway = slice().gateway();
        let (own, node) = (device(2), gateway);
        for (from, reason) in [
            ("10.9.3.1", "source"),
            ("10.9.3.0", "source"),
            ("10.9.3.255", "source"),
            ("10.9.4.2", "source"),
            ("192.0.2.7", "source"),
            ("127.0.0.1", "source"),
            ("0.0.0.0", "source"),
            ("224.0.0.1", "source"),
            ("169.254.7.7", "link_local"),
            ("fd12:3456:789a:3::1", "source"),
            ("fd12:3456:789a:3::", "source"),
            ("fd12:3456:789a:4::2", "source"),
            ("2001:db8::7", "source"),
            // ::1 and what stands for IPv4 the kernel refuses before it comes to any rule.
            ("::", "source"),
            ("fe80::7", "link_local"),
        ] {
            let from: IpAddr = from.parse().unwrap();
            let to = if from.is_ipv4() { IpAddr::from(node.ipv4) } else { node.ipv6.into() };
            scene.refuses(&format!("from {from}"), &ping(from, to), reason).await;
            let syn = tcp((from, 9).into(), (to, LINK_PORT).into(), [1, 0], SYN, &[]);
            scene.refuses(&format!("from {from} to the link"), &syn, reason).await;
        }
        for (to, reason) in [
            ("10.9.3.3", "destination"),
            ("10.9.3.2", "destination"),
            ("10.9.3.0", "destination"),
            ("10.9.4.1", "destination"),
            ("192.0.2.7", "destination"),
            ("127.0.0.1", "destination"),
            ("10.9.3.255", "broadcast"),
            ("255.255.255.255", "broadcast"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("169.254.169.254", "link_local"),
            ("fd12:3456:789a:3::3", "destination"),
            ("2001:db8::7", "destination"),
            ("ff02::1", "multicast"),
            ("ff02::2", "multicast"),
            ("ff02::1:ff00:1", "multicast"),
            ("ff05::2", "multicast"),
            ("fe80::1", "link_local"),
        ] {
            let to: IpAddr = to.parse().unwrap();
            let from = if to.is_ipv4() { IpAddr::from(own.ipv4) } else { own.ipv6.into() };
            scene.refuses(&format!("to {to}"), &ping(from, to), reason).await;
            scene.refuses(&format!("to {to} by UDP"), &udp(from, to, 53), reason).await;
            let syn = tcp((from, 9).into(), (to, LINK_PORT).into(), [1, 0], SYN, &[]);
            scene.refuses(&format!("to port {LINK_PORT} of {to}"), &syn, reason).await;
        }
    });
}

#[test]
fn fragments_options_and_extension_headers_are_refused() {
    isolated_in(MODULE, "fragments_options_and_extension_headers_are_refused", async {
        let scene = Scene::with_interface().await;
        let (own, node) = (device(2), slice().gateway());
        let link = tcp((own.ipv4, 9).into(), (node.ipv4, LINK_PORT).into(), [1, 0], SYN, &[]);
        for (what, bits) in [("the first", 0x2000_u16), ("one in the middle", 0x2001), ("the last", 0x00b9)] {
            let fragment = altered(link.clone(), |header| header[6..8].copy_from_slice(&bits.to_be_bytes()));
            scene.refuses(what, &fragment, "fragment").await;
        }
        let whole = altered(link.clone(), |header| header[6..8].copy_from_slice(&[0x40, 0]));
        scene.takes("not to be fragmented, which most are not", &whole).await;
        // Loose and strict source route, record route, no operation, router alert.
        for option in [
            [0x83, 7, 4, 10, 9, 3, 3, 0],
            [0x89, 7, 4, 192, 0, 2, 7, 0],
            [7, 7, 4, 0, 0, 0, 0, 0],
            [1; 8],
            [0x94, 4, 0, 0, 0, 0, 0, 0],
        ] {
            let mut long = link[..20].to_vec();
            long.extend(option);
            long.extend(&link[20..]);
            let length = u16::try_from(long.len()).unwrap();
            let long = altered(long, |header| {
                header[0] = 0x47;
                header[2..4].copy_from_slice(&length.to_be_bytes());
            });
            scene.refuses(&format!("option {:#x}", option[0]), &long, "options").await;
        }
        let link = tcp((own.ipv6, 9).into(), (node.ipv6, LINK_PORT).into(), [1, 0], SYN, &[]);
        for header in [0_u8, 43, 44, 51, 60, 135, 139, 140] {
            let mut long = link[..40].to_vec();
            // Eight bytes, with the TCP segment behind.
            long.extend([6, 0, 1, 4, 0, 0, 0, 0]);
            long.extend(&link[40..]);
            long[6] = header;
            let length = u16::try_from(long.len() - 40).unwrap();
            long[4..6].copy_from_slice(&length.to_be_bytes());
            let reason = if header == 44 { "fragment" } else { "options" };
            scene.refuses(&format!("extension header {header}"), &long, reason).await;
        }
    });
}

#[test]
fn a_device_in_quarantine_keeps_its_link_alone() {
    isolated_in(MODULE, "a_device_in_quarantine_keeps_its_link_alone", async {
        let scene = Scene::with_interface().await;
        let (own, node) = (device(2), slice().gateway());
        scene.isolation.open(own, OPEN, in_seconds(60.0)).await.unwrap();
        scene.isolation.set_quarantine(own, true).await.unwrap();
        for (own, other, node) in [
            (IpAddr::from(own.ipv4), IpAddr::from(device(3).ipv4), IpAddr::from(node.ipv4)),
            (own.ipv6.into(), device(3).ipv6.into(), node.ipv6.into()),
        ] {
            scene.refuses("a ping", &ping(own, node), "quarantine").await;
            let open = tcp((own, OPEN).into(), (node, 999).into(), [1, 1], ACK, &[]);
            scene.refuses("from an open port", &open, "quarantine").await;
            scene.takes("the link", &tcp((own, 9).into(), (node, LINK_PORT).into(), [1, 0], SYN, &[])).await;
            scene.takes("another's ping", &ping(other, node)).await;
            let before = scene.dropped().await.get("quarantine").copied();
            let refused = timeout(SILENCE, TcpStream::connect((own, OPEN))).await;
            assert!(!matches!(refused, Ok(Ok(_))), "{refused:?}");
            assert!(scene.dropped().await.get("quarantine").copied() > before, "towards it, too");
        }
    });
}

#[test]
fn pings_are_answered_so_many_times_a_second() {
    isolated_in(MODULE, "pings_are_answered_so_many_times_a_second", async {
        let scene = Scene::with_interface().await;
        let (own, node) = (IpAddr::from(device(2).ipv4), slice().gateway().ipv4.into());
        let begun = Instant::now();
        for _ in 0..200 {
            scene.send(&ping(own, node)).await;
        }
        let refused = scene.dropped().await["echo_rate"];
        let least = 200 - 40 - 20 * (begun.elapsed().as_secs() + 1);
        assert!((least..=160).contains(&refused), "{refused} in {:?}", begun.elapsed());
        scene.takes("another's", &ping(device(3).ipv4.into(), node)).await;
    });
}

#[test]
fn the_node_reaches_nothing_of_devices_but_what_is_open() {
    isolated_in(MODULE, "the_node_reaches_nothing_of_devices_but_what_is_open", async {
        let scene = Scene::with_interface().await;
        let own = device(2);
        for own in [IpAddr::from(own.ipv4), own.ipv6.into()] {
            let before = scene.dropped().await.get("out").copied().unwrap_or(0);
            let any: IpAddr = if own.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).await.unwrap();
            let _ = socket.send_to(b"hello", (own, 53)).await;
            let connected = timeout(SILENCE, TcpStream::connect((own, OPEN))).await;
            assert!(!matches!(connected, Ok(Ok(_))), "{connected:?}");
            let after = scene.dropped().await["out"];
            assert!(after >= before + 2, "{before} {after}");
        }
        let is_for_devices = |packet: &SlicedPacket<'_>| match &packet.net {
            Some(NetSlice::Ipv4(ip)) => Some(IpAddr::from(ip.header().destination_addr())),
            Some(NetSlice::Ipv6(ip)) => Some(ip.header().destination_addr().into()),
            Some(NetSlice::Arp(_)) | None => None,
        };
        assert_eq!(scene.receive(is_for_devices).await, None);
    });
}

#[test]
fn an_opening_that_ends_cuts_the_connection_that_is_established() {
    isolated_in(MODULE, "an_opening_that_ends_cuts_the_connection_that_is_established", async {
        let scene = Scene::with_interface().await;
        // What one has not got, the kernel sends again: that would pass as soon as something is open on the same device.
        for (number, is_closed_early) in [(2, true), (3, true), (4, false), (5, false)] {
            let addresses = device(number);
            let own = if number % 2 == 0 { IpAddr::from(addresses.ipv4) } else { addresses.ipv6.into() };
            let lasts = if is_closed_early { 60.0 } else { 3.9 };
            let deadline = in_seconds(lasts);
            scene.isolation.open(addresses, OPEN, deadline).await.unwrap();
            let (mut node, mut remote) = establish(&scene, own).await;
            node.write_all(b"hello").await.unwrap();
            let heard = scene.receive(|packet| segment(packet, payload)).await;
            assert_eq!(heard.as_deref(), Some(&b"hello"[..]));
            remote.acknowledges += 5;
            scene.takes("an answer", &remote.says(b"you too")).await;
            let mut answer = [0; 7];
            timeout(PATIENCE, node.read_exact(&mut answer)).await.unwrap().unwrap();

            if is_closed_early {
                scene.isolation.close(addresses, OPEN).await.unwrap();
            } else {
                tokio::time::sleep_until(deadline).await;
            }
            let before = scene.dropped().await;
            node.write_all(b"still there?").await.unwrap();
            let silence = scene.receive(|packet| segment(packet, payload)).await;
            assert_eq!(silence, None, "nothing goes there any more");
            assert!(scene.dropped().await["out"] > before.get("out").copied().unwrap_or(0));
            scene.refuses("what still comes", &remote.says(b"yes"), "port").await;
            let nothing = timeout(SILENCE, node.read(&mut answer)).await;
            assert!(nothing.is_err(), "{nothing:?}");
            drop(node);
        }
    });
}

#[test]
fn a_device_cannot_begin_a_connection_from_a_port_that_is_open() {
    isolated_in(MODULE, "a_device_cannot_begin_a_connection_from_a_port_that_is_open", async {
        let scene = Scene::with_interface().await;
        let (own, node) = (device(2), slice().gateway());
        scene.isolation.open(own, OPEN, in_seconds(60.0)).await.unwrap();
        for (own, node) in [(IpAddr::from(own.ipv4), IpAddr::from(node.ipv4)), (own.ipv6.into(), node.ipv6.into())] {
            let to = SocketAddr::from((node, 9090));
            let syn = tcp((own, OPEN).into(), to, [1, 0], SYN, &[]);
            scene.refuses("a first packet", &syn, "port").await;
            for flags in [ACK, SYN | ACK, 0] {
                let stray = tcp((own, OPEN).into(), to, [1, 1], flags, &[]);
                scene.refuses("of a connection that nobody began", &stray, "input").await;
            }
        }
    });
}

#[test]
fn nothing_is_forwarded_and_addresses_of_tunnels_come_from_nowhere_else() {
    isolated_in(MODULE, "nothing_is_forwarded_and_addresses_of_tunnels_come_from_nowhere_else", async {
        for scope in [config::Scope::Host, config::Scope::Interface] {
            let scene = Scene::with_interface_of(scope).await;
            let outside = |name: &str, address: [u8; 4]| {
                DeviceBuilder::new().name(name).ipv4(Ipv4Addr::from(address), 24, None).build_async().unwrap()
            };
            let (one, other) = (outside("kn1", [192, 0, 2, 1]), outside("kn2", [198, 51, 100, 1]));
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            setting::harden(INTERFACE).unwrap();
            let (from, to) = (IpAddr::from([192, 0, 2, 7]), IpAddr::from([198, 51, 100, 7]));
            let before = scene.dropped().await;
            one.send(&ping(from, device(2).ipv4.into())).await.unwrap();
            one.send(&ping(from, slice().gateway().ipv4.into())).await.unwrap();
            one.send(&ping(device(2).ipv4.into(), [192, 0, 2, 1].into())).await.unwrap();
            let after = scene.dropped().await;
            assert_eq!(after["outside"] - before.get("outside").unwrap_or(&0), 3, "{after:?}");

            one.send(&ping(from, to)).await.unwrap();
            let mut buffer = [0; 2048];
            let forwarded = async {
                loop {
                    let length = other.recv(&mut buffer).await.unwrap();
                    let packet = SlicedPacket::from_ip(&buffer[..length]);
                    if packet.is_ok_and(|packet| matches!(packet.transport, Some(TransportSlice::Icmpv4(_)))) {
                        return;
                    }
                }
            };
            let is_forwarded = timeout(SILENCE, forwarded).await.is_ok();
            assert_eq!(is_forwarded, scope == config::Scope::Interface, "what others forward");
            assert_eq!(scene.dropped().await.contains_key("forward"), scope == config::Scope::Host);
        }
    });
}

/// The device's end of a connection.
struct Remote {
    own: SocketAddr,
    node: SocketAddr,
    sequence: u32,
    acknowledges: u32,
}

impl Remote {
    fn says(&mut self, payload: &[u8]) -> Vec<u8> {
        let said = tcp(self.own, self.node, [self.sequence, self.acknowledges], ACK, payload);
        self.sequence += u32::try_from(payload.len()).unwrap();
        said
    }
}

/// Connects the node to the device's port, whose part is played here.
async fn establish(scene: &Scene, own: IpAddr) -> (TcpStream, Remote) {
    let connecting = tokio::spawn(TcpStream::connect((own, OPEN)));
    let syn = scene.receive(|packet| {
        segment(packet, |tcp| (tcp.syn() && !tcp.ack()).then(|| (tcp.source_port(), tcp.sequence_number())))
    });
    let (port, sequence) = syn.await.expect("the first packet passes");
    let gateway = slice().gateway();
    let node: IpAddr = if own.is_ipv4() { gateway.ipv4.into() } else { gateway.ipv6.into() };
    let mut remote =
        Remote { own: (own, OPEN).into(), node: (node, port).into(), sequence: 1000, acknowledges: sequence + 1 };
    scene.takes("the second packet", &tcp(remote.own, remote.node, [1000, sequence + 1], SYN | ACK, &[])).await;
    remote.sequence += 1;
    let node = timeout(PATIENCE, connecting).await.unwrap().unwrap().unwrap();
    (node, remote)
}

fn payload(tcp: &TcpSlice<'_>) -> Option<Vec<u8>> {
    (!tcp.payload().is_empty()).then(|| tcp.payload().to_vec())
}
