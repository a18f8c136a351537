//! What a live tunnel lets through, and what is known about who tried more.

use super::*;
use crate::tunnel::plane::Drops;
use packet::{echo_request, udp};

const LINK_PORT: u16 = 80;
const OPEN_PORT: u16 = 22;
const LONG: Duration = Duration::from_secs(3600);

impl Peer {
    fn pings(&self, node: &Node, payload: &[u8]) -> Vec<u8> {
        echo_request(self.addresses.ipv4.into(), node.gateway.ipv4.into(), payload)
    }
}

fn attempts(drops: &Drops) -> Vec<(TunnelDrop, u64)> {
    drops.iter().collect()
}

/// Begins a connection to a port of the device, and says whether the device hears of it.
async fn is_dialled(node: &Node, peer: &mut Peer, to: SocketAddr) -> bool {
    let from = if to.is_ipv4() { node.at(0) } else { node.at_ipv6(0) };
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind(from).unwrap();
    let dropped = node.dropped(TunnelDrop::Closed);
    let dial = tokio::spawn(socket.connect(to));
    let is_heard = loop {
        tokio::select! {
            packet = peer.receive() => {
                let segment = packet.unwrap();
                let segment = transport(&segment).expect("checksums are right");
                if segment[2..4] == to.port().to_be_bytes() {
                    break segment[13] & SYN != 0;
                }
            }
            () = node.until_dropped(TunnelDrop::Closed, dropped + 1) => break false,
        }
    };
    dial.abort();
    is_heard
}

#[test]
fn a_device_reaches_the_link_port_and_pings_and_what_else_it_tries_is_known() {
    isolated("wall::a_device_reaches_the_link_port_and_pings_and_what_else_it_tries_is_known", async {
        let node = Node::start(|_| {});
        let (link, other) =
            (TcpListener::bind(node.at(LINK_PORT)).await.unwrap(), TcpListener::bind(node.at(9)).await.unwrap());
        let datagrams = UdpSocket::bind(node.at(LINK_PORT)).await.unwrap();
        let mut peer = node.tunnel(2).await;
        let (ipv4, ipv6) = (peer.at(4000), peer.at_ipv6(4000));
        for port in 1..1000 {
            if port != LINK_PORT {
                peer.send(&[
                    tcp(ipv4, node.at(port), [1, 0], SYN, &[]),
                    tcp(ipv6, node.at_ipv6(port), [1, 0], SYN, &[]),
                ])
                .await;
            }
        }
        peer.send(&[
            udp(ipv4, node.at(LINK_PORT), b"datagram"),
            udp(ipv4, "224.0.0.251:5353".parse().unwrap(), b"who is there"),
        ])
        .await;
        let mut routed = tcp(ipv4, node.at(LINK_PORT), [1, 0], SYN, &[]);
        routed.splice(20..20, [131, 7, 4, 8, 8, 8, 8, 0]);
        (routed[0], routed[3]) = (0x47, 48);
        peer.send(&[routed, udp(node.at(LINK_PORT), node.at(LINK_PORT), b"forged"), vec![0x45, 0, 0, 1]]).await;
        // Behind all that.
        peer.send(&[peer.pings(&node, b"here"), tcp(ipv4, node.at(LINK_PORT), [1, 0], SYN, &[])]).await;
        let mut answers = [peer.receive().await.unwrap(), peer.receive().await.unwrap()];
        // The kernel may turn them round.
        answers.sort_by_key(|packet| packet[9]);
        assert_eq!(answers[0][20..22], [0, 0], "an answer to a ping");
        assert_eq!(&answers[0][28..], b"here");
        assert_eq!(transport(&answers[1]).unwrap()[13], SYN | ACK);
        assert!(timeout(Duration::from_millis(50), link.accept()).await.is_err(), "it is only half open");
        assert!(timeout(Duration::from_millis(50), other.accept()).await.is_err());
        assert!(datagrams.try_recv(&mut [0; 16]).is_err());

        let device = peer.handle.key.device_id;
        let expected = [
            (TunnelDrop::Source, 1),
            (TunnelDrop::Multicast, 1),
            (TunnelDrop::Malformed, 1),
            (TunnelDrop::Options, 1),
            (TunnelDrop::Protocol, 1),
            (TunnelDrop::Port, 2 * 998),
        ];
        let drops = node.plane.drops();
        assert_eq!(
            drops.iter().map(|(device, drops)| (*device, attempts(drops))).collect::<Vec<_>>(),
            [(device, expected.to_vec())]
        );
        for (reason, packets) in expected {
            assert_eq!(node.dropped(reason), packets, "{reason:?}");
        }
        assert_eq!(node.plane.drops(), [], "each is given out once");

        // What its last words were is not lost with the tunnel, and adds to what a next one does.
        peer.send(&[udp(ipv4, node.at(LINK_PORT), b"bye")]).await;
        node.until_dropped(TunnelDrop::Protocol, 2).await;
        peer.stop().await;
        let mut again = node.tunnel(2).await;
        again.send(&[udp(ipv4, node.at(LINK_PORT), b"again")]).await;
        node.until_dropped(TunnelDrop::Protocol, 3).await;
        let drops = node.plane.drops();
        assert_eq!(
            drops.iter().map(|(device, drops)| (*device, attempts(drops))).collect::<Vec<_>>(),
            [(device, vec![(TunnelDrop::Protocol, 2)])]
        );
    });
}

#[test]
fn a_port_of_a_device_is_reached_while_it_is_open_and_not_before_or_after() {
    isolated("wall::a_port_of_a_device_is_reached_while_it_is_open_and_not_before_or_after", async {
        let node = Node::start(|_| {});
        let (mut peer, mut other) = (node.tunnel(2).await, node.tunnel(3).await);
        for to in [peer.at(OPEN_PORT), peer.at_ipv6(OPEN_PORT)] {
            assert!(!is_dialled(&node, &mut peer, to).await);
        }
        let open = Instant::now() + Duration::from_secs(2);
        assert!(node.plane.set_openings(peer.host, peer.tunnel, &[(OPEN_PORT, open)]));
        assert!(!node.plane.set_openings(peer.host, other.tunnel, &[(OPEN_PORT, open)]), "it is another's place");
        for to in [peer.at(OPEN_PORT), peer.at_ipv6(OPEN_PORT)] {
            assert!(is_dialled(&node, &mut peer, to).await);
        }
        let beside = peer.at(OPEN_PORT + 1);
        assert!(!is_dialled(&node, &mut peer, beside).await);
        let to = other.at(OPEN_PORT);
        assert!(!is_dialled(&node, &mut other, to).await);

        // A connection is made, and ends with its time: in both directions, and without an accusation.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(node.at(4001)).unwrap();
        let dial = tokio::spawn(socket.connect(peer.at(OPEN_PORT)));
        let (from, to) = (peer.at(OPEN_PORT), node.at(4001));
        let next = async |peer: &mut Peer| loop {
            let packet = peer.receive().await.unwrap();
            let segment = transport(&packet).unwrap();
            if segment[..2] == to.port().to_be_bytes() {
                break segment.to_vec();
            }
        };
        let segment = next(&mut peer).await;
        let start = u32::from_be_bytes(segment[4..8].try_into().unwrap()).wrapping_add(1);
        peer.send(&[tcp(from, to, [100, start], SYN | ACK, &[])]).await;
        let mut stream = timeout(PATIENCE, dial).await.unwrap().unwrap().unwrap();
        peer.send(&[tcp(from, to, [101, start], ACK, b"welcome")]).await;
        let mut welcome = [0; 7];
        timeout(PATIENCE, stream.read_exact(&mut welcome)).await.unwrap().unwrap();
        sleep(open.saturating_duration_since(Instant::now())).await;
        let closed = node.dropped(TunnelDrop::Closed);
        peer.send(&[tcp(from, to, [108, start], ACK, b"still here")]).await;
        node.until_dropped(TunnelDrop::Closed, closed + 1).await;
        stream.write_all(b"still here").await.unwrap();
        node.until_dropped(TunnelDrop::Closed, closed + 2).await;
        assert!(stream.try_read(&mut [0; 16]).is_err());
        assert_eq!(node.plane.drops(), []);
        // To begin one itself is something else.
        peer.send(&[tcp(from, to, [1, 0], SYN, &[])]).await;
        node.until_dropped(TunnelDrop::Port, 1).await;
    });
}

#[test]
fn in_quarantine_a_device_has_its_link_and_nothing_else() {
    isolated("wall::in_quarantine_a_device_has_its_link_and_nothing_else", async {
        let node = Node::start(|_| {});
        let _link = TcpListener::bind(node.at(LINK_PORT)).await.unwrap();
        let (ear, socket) = (Ear::new(true), node.pinger());
        let mut peer = node.tunnel(2).await;
        let mut other = node.tunnel(3).await;
        let open = [(OPEN_PORT, Instant::now() + LONG)];
        assert!(node.plane.set_openings(peer.host, peer.tunnel, &open));
        let device = peer.handle.key.device_id;
        let changed = node.plane.set_quarantine(node.plane.look_at_quarantine(), &[device]);
        assert_eq!(changed.iter().map(|(owner, on)| (owner.device, *on)).collect::<Vec<_>>(), [(device, true)]);
        assert!(node.plane.set_quarantine(node.plane.look_at_quarantine(), &[device]).is_empty());

        let to = peer.at(OPEN_PORT);
        assert!(!is_dialled(&node, &mut peer, to).await);
        let closed = node.dropped(TunnelDrop::Closed);
        socket.send_to(b"are you there?", peer.at(PORT)).await.unwrap();
        node.until_dropped(TunnelDrop::Closed, closed + 1).await;
        peer.send(&[peer.pings(&node, b"ping"), peer.says(&node, b"pong")]).await;
        node.until_dropped(TunnelDrop::Quarantine, 2).await;
        peer.send(&[tcp(peer.at(4000), node.at(LINK_PORT), [1, 0], SYN, &[])]).await;
        assert_eq!(transport(&peer.receive().await.unwrap()).unwrap()[13], SYN | ACK);
        // Others are not.
        other.send(&[other.says(&node, b"pong")]).await;
        assert_eq!(ear.next().await.0, b"pong");

        // It does not get out of it by coming again, and what it is known for when it comes up is in force from the first packet.
        peer.stop().await;
        let mut again = node.tunnel(2).await;
        again.send(&[again.pings(&node, b"ping")]).await;
        node.until_dropped(TunnelDrop::Quarantine, 3).await;
        assert_eq!(node.plane.set_quarantine(node.plane.look_at_quarantine(), &[]).len(), 1);
        again.send(&[again.says(&node, b"released")]).await;
        assert_eq!(ear.next().await.0, b"released");
        again.stop().await;
        let mut born = node.tunnel_as(2, LONG, true).await;
        born.send(&[born.pings(&node, b"ping")]).await;
        node.until_dropped(TunnelDrop::Quarantine, 4).await;
    });
}

#[test]
fn what_is_injected_meets_the_kernel_alone() {
    isolated("wall::what_is_injected_meets_the_kernel_alone", async {
        let node = Node::start(|_| {});
        let datagrams = UdpSocket::bind(node.at(LINK_PORT)).await.unwrap();
        let from = SocketAddr::new(node.addresses(2).ipv4.into(), PORT);
        assert!(node.plane.inject(&udp(from, node.at(LINK_PORT), b"past the wall")));
        let mut bytes = [0; 64];
        let (length, _) = timeout(PATIENCE, datagrams.recv_from(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(&bytes[..length], b"past the wall");
    });
}

#[test]
fn what_is_kept_of_a_tunnel_for_the_wall_is_small() {
    assert!(crate::tunnel::plane::line_bytes() <= 192, "{} bytes", crate::tunnel::plane::line_bytes());
}
