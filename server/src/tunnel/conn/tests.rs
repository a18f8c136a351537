//! Live tunnels over real connections, through a real interface, each test in a network of its own.

pub(crate) mod isolated;
mod packet;
mod peer;
mod socket;
mod wall;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TunnelId};
use cloudlink_proto::openvpn::CloseReason;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Driver, Ended, Ending, Tunnel, run};
use crate::config::{self, Seconds};
use crate::metrics::TunnelDrop;
use crate::tunnel::plane::{Plane, PlaneError};
use isolated::isolated;
use packet::{ACK, SYN, echo_reply, echo_reply_payload, ping_payload, tcp, transport};
use peer::{Node, PATIENCE, Peer, slice};
use socket::Pinger;

/// A port of both that says nothing.
const PORT: u16 = 7;

impl Node {
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.gateway.ipv4.into(), port)
    }

    fn at_ipv6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.gateway.ipv6.into(), port)
    }

    fn pinger(&self) -> Pinger {
        Pinger::bind(self.at(PORT))
    }
}

/// Where the node hears what devices say: answers to pings, which pass though no port of the node is open.
struct Ear {
    socket: UdpSocket,
    is_ipv4: bool,
}

impl Ear {
    fn new(is_ipv4: bool) -> Self {
        let (family, protocol) = if is_ipv4 {
            (AddressFamily::Inet, SockProtocol::Icmp)
        } else {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        };
        let made = socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        // It is a socket with datagrams, to which every call of this type applies.
        Self { socket: UdpSocket::from_std(made.into()).unwrap(), is_ipv4 }
    }

    /// What is heard next, and from whom.
    async fn next(&self) -> (Vec<u8>, IpAddr) {
        let mut bytes = vec![0; 65_536];
        let heard = async {
            loop {
                let (length, from) = self.socket.recv_from(&mut bytes).await.unwrap();
                if let Some(payload) = self.payload(&bytes[..length]) {
                    return (payload.to_vec(), from.ip());
                }
            }
        };
        timeout(PATIENCE, heard).await.expect("an answer to a ping comes")
    }

    /// Whether nothing has come that waits to be heard.
    fn has_nothing(&self) -> bool {
        let mut bytes = [0; 2048];
        while let Ok(length) = self.socket.try_recv(&mut bytes) {
            if self.payload(&bytes[..length]).is_some() {
                return false;
            }
        }
        true
    }

    /// The system gives IPv4 packets with their headers, and IPv6 ones without.
    fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let message = if self.is_ipv4 { bytes.get(usize::from(bytes.first()? & 0x0f) * 4..)? } else { bytes };
        echo_reply_payload(self.is_ipv4, message)
    }
}

impl Peer {
    /// What it says to a node.
    fn says(&self, node: &Node, payload: &[u8]) -> Vec<u8> {
        echo_reply(self.addresses.ipv4.into(), node.gateway.ipv4.into(), payload)
    }
}

#[test]
fn packets_go_both_ways() {
    isolated("packets_go_both_ways", async {
        let node = Node::start(|_| {});
        let mut peer = node.tunnel(9).await;
        for (ours, theirs) in [(node.at(PORT), peer.at(PORT)), (node.at_ipv6(PORT), peer.at_ipv6(PORT))] {
            let (ear, socket) = (Ear::new(ours.is_ipv4()), Pinger::bind(ours));
            peer.send(&[echo_reply(theirs.ip(), ours.ip(), b"up")]).await;
            assert_eq!(ear.next().await, (b"up".to_vec(), theirs.ip()));
            socket.send_to(b"down", theirs).await.unwrap();
            assert_eq!(ping_payload(&peer.receive().await.unwrap()), Some(&b"down"[..]));
        }
        let (_, counts) = node.plane.traffic()[0];
        assert_eq!((counts.packets_in, counts.packets_out, counts.dropped), (2, 2, 0));
        assert_eq!((counts.bytes_in, counts.bytes_out), (20 + 40 + 16 + 4, 20 + 40 + 16 + 8));
        let text = node.metrics.render().unwrap();
        assert!(text.contains("cloudlink_tunnel_packets_total{direction=\"in\"} 2\n"), "{text}");
        assert!(text.contains("cloudlink_tunnel_bytes_total{direction=\"out\"} 84\n"), "{text}");
    });
}

#[test]
fn only_packets_from_the_tunnels_address_to_the_node_pass() {
    isolated("only_packets_from_the_tunnels_address_to_the_node_pass", async {
        let node = Node::start(|_| {});
        let ear = Ear::new(true);
        let (mut peer, mut other) = (node.tunnel(2).await, node.tunnel(3).await);
        let ip = |address: &str| address.parse::<IpAddr>().unwrap();
        let (node_ipv4, node_ipv6): (IpAddr, IpAddr) = (node.gateway.ipv4.into(), node.gateway.ipv6.into());
        let (others_ipv4, others_ipv6): (IpAddr, IpAddr) = (other.addresses.ipv4.into(), other.addresses.ipv6.into());
        // Of the other tunnel, of the node, of nobody.
        for source in [others_ipv4, node_ipv4, ip("10.21.3.77"), ip("8.8.8.8"), ip("127.0.0.1")] {
            peer.send(&[echo_reply(source, node_ipv4, b"forged")]).await;
        }
        for source in [others_ipv6, ip("fe80::2")] {
            peer.send(&[echo_reply(source, node_ipv6, b"forged")]).await;
        }
        // To the other tunnel, out into the world, to everybody.
        let (ipv4, ipv6): (IpAddr, IpAddr) = (peer.addresses.ipv4.into(), peer.addresses.ipv6.into());
        for stray in ["10.21.3.3", "8.8.8.8", "10.21.3.255", "255.255.255.255", "224.0.0.1", "127.0.0.1"] {
            peer.send(&[echo_reply(ipv4, ip(stray), b"stray")]).await;
        }
        for stray in ["fd21:0:0:3::3", "ff02::1", "::1"] {
            peer.send(&[echo_reply(ipv6, ip(stray), b"stray")]).await;
        }
        // What comes behind all that comes first.
        peer.send(&[echo_reply(ipv4, node_ipv4, b"good")]).await;
        assert_eq!(ear.next().await.0, b"good");
        assert_eq!(node.dropped(TunnelDrop::Source), 6);
        assert_eq!(node.dropped(TunnelDrop::LinkLocal), 1);
        assert_eq!(node.dropped(TunnelDrop::Destination), 5);
        assert_eq!((node.dropped(TunnelDrop::Broadcast), node.dropped(TunnelDrop::Multicast)), (2, 2));
        assert!(other.has_nothing());
        let traffic = node.plane.traffic();
        let (_, counts) = traffic.iter().find(|(owner, _)| owner.device == peer.handle.key.device_id).unwrap();
        assert_eq!(counts.dropped, 16);
    });
}

#[test]
fn an_address_belongs_to_its_newest_tunnel_and_then_to_nobody() {
    isolated("an_address_belongs_to_its_newest_tunnel_and_then_to_nobody", async {
        let node = Node::start(|_| {});
        let socket = node.pinger();
        let addresses = node.addresses(5);
        let to = SocketAddr::new(addresses.ipv4.into(), PORT);
        let is_owned = || {
            let ips: [IpAddr; 2] = [addresses.ipv4.into(), addresses.ipv6.into()];
            ips.map(|ip| node.plane.owner(ip).is_some())
        };
        assert_eq!(is_owned(), [false, false]);
        socket.send_to(b"nobody", to).await.unwrap();
        node.until_dropped(TunnelDrop::NoTunnel, 1).await;
        let older = node.tunnel(5).await;
        let mut newer = node.tunnel(5).await;
        older.stop().await;
        assert_eq!(is_owned(), [true, true]);
        socket.send_to(b"newer", to).await.unwrap();
        assert_eq!(ping_payload(&newer.receive().await.unwrap()), Some(&b"newer"[..]));
        newer.stop().await;
        assert_eq!(is_owned(), [false, false]);
        socket.send_to(b"nobody", to).await.unwrap();
        node.until_dropped(TunnelDrop::NoTunnel, 2).await;
    });
}

#[test]
fn a_device_hears_nobody_but_the_node() {
    isolated("a_device_hears_nobody_but_the_node", async {
        let node = Node::start(|_| {});
        let mut peer = node.tunnel(2).await;
        // As a packet has them that the system forwards, from a network behind it.
        for (number, (foreign, to)) in (1..).zip([("10.99.0.1", peer.at(PORT)), ("fd99::1", peer.at_ipv6(PORT))]) {
            // At once: even there an IPv6 address is not used before the kernel has thought about it.
            let added = Command::new("ip").args(["address", "add", foreign, "dev", "lo", "nodad"]).status().unwrap();
            assert!(added.success());
            let socket = UdpSocket::bind((foreign.parse::<IpAddr>().unwrap(), PORT)).await.unwrap();
            socket.send_to(b"foreign", to).await.unwrap();
            node.until_dropped(TunnelDrop::Forwarded, number).await;
        }
        node.pinger().send_to(b"own", peer.at(PORT)).await.unwrap();
        assert_eq!(ping_payload(&peer.receive().await.unwrap()), Some(&b"own"[..]));
    });
}

#[test]
fn whose_address_went_to_another_device_speaks_for_nobody() {
    isolated("whose_address_went_to_another_device_speaks_for_nobody", async {
        let node = Node::start(|_| {});
        let ear = Ear::new(true);
        let mut peer = node.tunnel(5).await;
        peer.send(&[peer.says(&node, b"own")]).await;
        assert_eq!(ear.next().await.0, b"own");
        let (tunnel, device) = (Uuid::from_u128(1), Uuid::from_u128(6));
        let taken = node.plane.attach(5, TunnelId::from_uuid(tunnel), DeviceId::from_uuid(device), false);
        peer.send(&[peer.says(&node, b"another's")]).await;
        node.until_dropped(TunnelDrop::Source, 1).await;
        drop(taken);
        peer.send(&[peer.says(&node, b"nobody's")]).await;
        node.until_dropped(TunnelDrop::Source, 2).await;
        assert!(ear.has_nothing());
    });
}

#[test]
fn a_node_whose_interface_was_removed_begins_anew() {
    isolated("a_node_whose_interface_was_removed_begins_anew", async {
        let node = Node::start(|_| {});
        let _peer = node.tunnel(2).await;
        let name = config::Tunnel::default().interface;
        for state in ["down", "up"] {
            assert!(Command::new("ip").args(["link", "set", name.as_str(), state]).status().unwrap().success());
        }
        assert!(timeout(Duration::from_millis(200), node.shutdown.failed.cancelled()).await.is_err(), "it came back");
        assert!(Command::new("ip").args(["link", "delete", name.as_str()]).status().unwrap().success());
        timeout(PATIENCE, node.shutdown.failed.cancelled()).await.expect("a part it cannot do without has ended");
    });
}

#[test]
fn a_client_that_does_not_read_loses_packets_and_harms_nobody() {
    isolated("a_client_that_does_not_read_loses_packets_and_harms_nobody", async {
        let node = Node::start(|tunnel| tunnel.queue_bytes_max = 65_536);
        let (ear, socket) = (Ear::new(true), node.pinger());
        let (mut deaf, mut other) = (node.tunnel(2).await, node.tunnel(3).await);
        // More than all the room on the way to it.
        let flood = async {
            while node.dropped(TunnelDrop::QueueFull) < 500 {
                for _ in 0..64 {
                    socket.send_to(&[7; 1400], deaf.at(PORT)).await.unwrap();
                }
                yield_now().await;
            }
        };
        timeout(PATIENCE, flood).await.expect("the room is full at some time");
        // Others have their way, and so has what it sends itself.
        let begun = Instant::now();
        for _ in 0..50 {
            other.send(&[other.says(&node, b"other")]).await;
            assert_eq!(ear.next().await.1, other.addresses.ipv4);
            socket.send_to(b"answer", other.at(PORT)).await.unwrap();
            assert_eq!(ping_payload(&other.receive().await.unwrap()), Some(&b"answer"[..]));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        deaf.send(&[deaf.says(&node, b"deaf")]).await;
        assert_eq!(ear.next().await, (b"deaf".to_vec(), deaf.addresses.ipv4.into()));
        // What it had not lost is whole when it reads on, and so is what comes behind.
        let mut received = 0;
        loop {
            socket.send_to(b"last", deaf.at(PORT)).await.unwrap();
            let packet = deaf.receive().await.unwrap();
            let payload = ping_payload(&packet).expect("a whole packet");
            if payload == b"last" {
                break;
            }
            assert_eq!(payload, [7; 1400]);
            received += 1;
        }
        assert!(received > 40, "{received}");
        let dropped: u64 = node.plane.traffic().iter().map(|(_, counts)| counts.dropped).sum();
        assert_eq!(dropped, node.dropped(TunnelDrop::QueueFull));
    });
}

#[test]
fn a_client_that_reads_nothing_for_long_is_given_up_although_it_speaks() {
    isolated("a_client_that_reads_nothing_for_long_is_given_up_although_it_speaks", async {
        let node = Node::start(|tunnel| (tunnel.queue_bytes_max, tunnel.dead_after_seconds) = (65_536, Seconds(2)));
        let socket = node.pinger();
        let (mut deaf, mut slow) = (node.tunnel(2).await, node.tunnel(3).await);
        let begun = Instant::now();
        while !deaf.run.is_finished() {
            assert!(begun.elapsed() < PATIENCE, "it is never given up");
            for peer in [&mut deaf, &mut slow] {
                for _ in 0..32 {
                    socket.send_to(&[7; 1400], peer.at(PORT)).await.unwrap();
                }
                peer.send(&[peer.says(&node, b"here")]).await;
            }
            slow.read().await;
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(deaf.ended().await.reason, "slow");
        assert!(!slow.run.is_finished());
    });
}

#[test]
fn the_mtu_is_the_edge_in_both_directions() {
    isolated("the_mtu_is_the_edge_in_both_directions", async {
        let mut node = Node::start(|tunnel| tunnel.mtu = 1500);
        let (ear, socket) = (Ear::new(true), node.pinger());
        let mut peer = node.tunnel(2).await;
        let largest = vec![5; 1500 - 28];
        peer.send(&[peer.says(&node, &largest)]).await;
        assert_eq!(ear.next().await.0, largest);
        socket.send_to(&largest, peer.at(PORT)).await.unwrap();
        assert_eq!(peer.receive().await.unwrap().len(), 1500);
        // One byte more makes two fragments, which pass in neither direction: nobody could see their ports.
        socket.send_to(&[5; 1500 - 27], peer.at(PORT)).await.unwrap();
        node.until_dropped(TunnelDrop::Closed, 2).await;
        let mut fragment = peer.says(&node, b"fragment");
        fragment[6] = 0x20;
        peer.send(&[fragment]).await;
        node.until_dropped(TunnelDrop::Fragment, 1).await;
        // A client that takes less gets no more than it takes.
        node.server.mtu = 1300;
        let mut small = node.tunnel(3).await;
        socket.send_to(&[5; 1301 - 28], small.at(PORT)).await.unwrap();
        node.until_dropped(TunnelDrop::TooLarge, 1).await;
        socket.send_to(&[5; 1300 - 28], small.at(PORT)).await.unwrap();
        assert_eq!(small.receive().await.unwrap().len(), 1300);
    });
}

#[test]
fn a_tcp_stream_comes_through_whole_in_large_pieces() {
    isolated("a_tcp_stream_comes_through_whole_in_large_pieces", async {
        let node = Node::start(|_| {});
        let mut peer = node.tunnel(2).await;
        // The link's: no other port of the node is open to devices.
        let port = u16::try_from(config::Tunnel::default().link_port).unwrap();
        for (ours, theirs) in [(node.at(port), peer.at(4000)), (node.at_ipv6(port), peer.at_ipv6(4000))] {
            stream_both_ways(&mut peer, ours, theirs).await;
        }
    });
}

/// Does by hand what a TCP stack does, as the kernel has none at the other end.
async fn stream_both_ways(peer: &mut Peer, ours: SocketAddr, theirs: SocketAddr) {
    let number = |segment: &[u8], at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
    let listener = TcpListener::bind(ours).await.unwrap();
    let mut at = u32::MAX - 1000;
    peer.send(&[tcp(theirs, ours, [at, 0], SYN, &[])]).await;
    at = at.wrapping_add(1);
    let start = loop {
        // Of the stream before there may be something left.
        let segment = next_segment(peer, ours).await;
        if segment[13] & SYN != 0 {
            break number(&segment, 4).wrapping_add(1);
        }
    };
    peer.send(&[tcp(theirs, ours, [at, start], ACK, &[])]).await;
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();

    // Up: segments that lie side by side, and are one for the kernel.
    let sent: Vec<u8> = (0..20_000_u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
    let mut segments = Vec::new();
    for piece in sent.chunks(1000) {
        segments.push(tcp(theirs, ours, [at, start], ACK, piece));
        at = at.wrapping_add(u32::try_from(piece.len()).unwrap());
    }
    peer.send(&segments).await;
    let mut received = vec![0; sent.len()];
    timeout(PATIENCE, stream.read_exact(&mut received)).await.expect("everything arrives").unwrap();
    assert_eq!(received, sent);

    // Down: large packets of the kernel, cut into such as fit.
    stream.write_all(&sent).await.unwrap();
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let segment = next_segment(peer, ours).await;
        let payload = &segment[usize::from(segment[12] >> 4) * 4..];
        let offset = usize::try_from(number(&segment, 4).wrapping_sub(start)).unwrap();
        if payload.is_empty() || offset < received.len() {
            // An acknowledgement, or a repetition: the answers here are not as fast as a kernel's.
            continue;
        }
        assert_eq!(offset, received.len(), "in order");
        received.extend_from_slice(payload);
        let acknowledged = start.wrapping_add(u32::try_from(received.len()).unwrap());
        peer.send(&[tcp(theirs, ours, [at, acknowledged], ACK, &[])]).await;
    }
    assert_eq!(received, sent);
}

/// The next TCP segment of this family.
async fn next_segment(peer: &mut Peer, from: SocketAddr) -> Vec<u8> {
    loop {
        let packet = peer.receive().await.unwrap();
        assert!(packet.len() <= 1500);
        if (packet[0] >> 4 == 4) == from.is_ipv4() {
            return transport(&packet).expect("checksums are right").to_vec();
        }
    }
}

#[test]
fn endings_are_obeyed() {
    isolated("endings_are_obeyed", async {
        let node = Node::start(|_| {});
        // Silently, and at once: a client that is told never comes again.
        for ending in [Ending::REVOKED, Ending::REPLACED, Ending::Cut] {
            let mut peer = node.tunnel(2).await;
            peer.handle.end(ending);
            assert_eq!(peer.receive().await, None);
            assert_eq!(peer.closed, Some(CloseReason::PeerClosed));
            assert!(!peer.ended().await.is_loss);
        }
        // At its place in the spread, with a word.
        let mut peer = node.tunnel(2).await;
        let begun = Instant::now();
        let Ending::Polite { code, message, .. } = Ending::SHUTTING_DOWN else { panic!("it has a word") };
        peer.handle.end(Ending::Polite { code, message, retry_after: Duration::from_millis(700) });
        assert_eq!(peer.receive().await, None);
        assert!(begun.elapsed() >= Duration::from_millis(700));
        assert!(matches!(peer.closed, Some(CloseReason::Restart(_))), "{:?}", peer.closed);
        assert_eq!(peer.ended().await.reason, "shutting_down");
        // At once, though it had a later place: others take over what the node has.
        let (mut peer, ear) = (node.tunnel(2).await, Ear::new(true));
        let later = Ending::Polite { code, message, retry_after: PATIENCE * 10 };
        peer.handle.end(later);
        peer.send(&[peer.says(&node, b"it obeys first")]).await;
        ear.next().await;
        peer.handle.end(Ending::SHUTTING_DOWN);
        assert_eq!(peer.receive().await, None);
        assert_eq!(peer.ended().await.reason, "shutting_down");
        // A client that goes by itself.
        let ended = node.tunnel(2).await.stop().await;
        assert_eq!((ended.reason, ended.is_loss), ("lost", true));
    });
}

#[test]
fn a_tunnel_ends_with_its_certificate_though_it_never_stops_talking() {
    isolated("a_tunnel_ends_with_its_certificate_though_it_never_stops_talking", async {
        let node = Node::start(|_| {});
        let mut peer = node.tunnel_for(2, Duration::from_millis(500)).await;
        let begun = Instant::now();
        let packets = vec![peer.says(&node, &[1; 1000]); 100];
        while !peer.run.is_finished() {
            assert!(begun.elapsed() < PATIENCE);
            peer.send(&packets).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(400));
        assert_eq!(peer.ended().await.reason, "certificate_expired");
    });
}

#[test]
fn an_interface_is_closed_to_everything_else_or_not_made() {
    isolated("an_interface_is_closed_to_everything_else_or_not_made", async {
        let node = Node::start(|_| {});
        for setting in ["ipv4/conf/cloudlink0/rp_filter", "ipv6/conf/cloudlink0/addr_gen_mode"] {
            assert_eq!(std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap().trim(), "1", "{setting}");
        }
        for setting in ["ipv4/conf/cloudlink0/forwarding", "ipv6/conf/cloudlink0/accept_ra"] {
            assert_eq!(std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap().trim(), "0", "{setting}");
        }
        let open = |tunnel: &config::Tunnel| Plane::open(tunnel, slice(), &node.metrics);
        let taken = open(&config::Tunnel::default());
        assert!(matches!(taken, Err(PlaneError::NameTaken(_))), "{taken:?}");
        let other = config::Tunnel { interface: "cld1".parse().unwrap(), ..config::Tunnel::default() };
        let taken = open(&other);
        assert!(matches!(taken, Err(PlaneError::AddressesTaken { .. })), "{taken:?}");
    });
}

#[test]
fn the_task_of_an_idle_tunnel_is_small() {
    fn size<F: Future<Output = Ended>>(_: impl FnOnce(Tunnel, CancellationToken) -> F) -> usize {
        size_of::<F>()
    }
    assert!(size(run) <= 800, "{} bytes", size(run));
    assert!(size_of::<Driver>() <= 600, "{} bytes", size_of::<Driver>());
}
