//! What goes through a tunnel, what does not, and what somebody in between sees of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, SERVER_IPV4, SERVER_IPV6, Site};
use cloudlink_tests::openvpn::{Client, Pings, Tunnel};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic::{Capture, EchoRequests, Iperf, Way, is_silent, metric};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// For counters to be brought up to date.
const COUNT_LIMIT: Duration = Duration::from_secs(20);
const DROPPED: &str = "cloudlink_tunnel_dropped_total";
const MEGABYTE: u64 = 1_000_000;
/// Where agents find their link, unless configured otherwise.
const LINK_PORT: u16 = 80;
/// Of a listener on all addresses of the node.
const EVERYWHERE: (Ipv6Addr, u16) = (Ipv6Addr::UNSPECIFIED, 25_400);
/// After this long without an answer there will be none: the kernel repeats itself after a second.
const SILENCE: Duration = Duration::from_secs(2);

async fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(&[])).await
}

async fn dropped(fleet: &Fleet, reason: &str) -> anyhow::Result<f64> {
    let metrics = fleet.server.operations("/metrics").await?.1;
    metric(&metrics, DROPPED, &format!("reason=\"{reason}\""))
}

/// Waits until so many packets more than before were dropped for this reason.
async fn counts(fleet: &Fleet, reason: &str, before: f64, packets: f64) -> anyhow::Result<()> {
    wait_for(&format!("{packets} packets dropped as {reason}"), COUNT_LIMIT, async || {
        let metrics = fleet.server.operations("/metrics").await?.1;
        let all: Vec<_> = metrics.lines().filter(|line| line.starts_with(DROPPED)).collect();
        let now = metric(&metrics, DROPPED, &format!("reason=\"{reason}\""))?;
        ensure!(now - before >= packets, "{before} before, and now {all:#?}");
        Ok(())
    })
    .await
}

#[test]
fn a_hundred_megabytes_go_both_ways_and_are_counted() -> anyhow::Result<()> {
    netns::test("a_hundred_megabytes_go_both_ways_and_are_counted", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        fleet.open_port(&device.id, Iperf::PORT).await?;
        let iperf = Iperf::listen(&site, tunnel.ipv4, &fleet.path(""))?;
        for way in [Way::Up, Way::Down] {
            let arrived = iperf.send(100 * MEGABYTE, way).await?;
            // It looks when all are sent, and some are still on their way.
            ensure!(arrived >= 90 * MEGABYTE, "{way:?}: {arrived} bytes arrived");
        }
        let other = Iperf::listen(&site, tunnel.ipv6, &fleet.path(""))?;
        ensure!(other.send(20 * MEGABYTE, Way::Up).await? >= 10 * MEGABYTE, "over IPv6");
        ensure!(client.complaints()?.is_empty(), "{:?}", client.complaints()?);

        wait_for("the bytes to be shown", COUNT_LIMIT, async || {
            let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
            for direction in ["bytes_in", "bytes_out"] {
                let bytes = shown["tunnel"][direction].as_u64().unwrap_or_default();
                ensure!((95 * MEGABYTE..150 * MEGABYTE).contains(&bytes), "{shown}");
            }
            Ok(())
        })
        .await?;
        let metrics = fleet.server.operations("/metrics").await?.1;
        for direction in ["in", "out"] {
            let label = format!("direction=\"{direction}\"");
            let bytes = metric(&metrics, "cloudlink_tunnel_bytes_total", &label)?;
            ensure!((95e6..150e6).contains(&bytes), "{direction}: {bytes}");
            ensure!(metric(&metrics, "cloudlink_tunnel_packets_total", &label)? > 10_000.0, "{metrics}");
        }
        Ok(())
    })
}

#[test]
fn packets_up_to_the_mtu_pass_and_others_are_dropped_and_counted() -> anyhow::Result<()> {
    netns::test("packets_up_to_the_mtu_pass_and_others_are_dropped_and_counted", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let (_, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        let ping = async |packet: u16, headers: u16, to: IpAddr| {
            let pings = Pings { size: packet - headers, fragments: packet > 1_500, ..Pings::default() };
            pings.send(&site, &tunnel.interface, to).await
        };
        for (gateway, headers) in [(IpAddr::from(tunnel.gateway_ipv4), 28), (tunnel.gateway_ipv6.into(), 48)] {
            // From the smallest on, at each alignment of a cipher's blocks, to the largest.
            for packet in [headers, 60, 64, 65, 127, 576, 1_279, 1_280, 1_386, 1_499, 1_500] {
                let received = ping(packet, headers, gateway).await?;
                ensure!(received == 3, "{received} of 3 with {packet} bytes to {gateway}");
            }
            // Fragments have no ports that could be looked at.
            let before = dropped(&fleet, "fragment").await?;
            ensure!(ping(4_000, headers, gateway).await? == 0);
            counts(&fleet, "fragment", before, 9.0).await?;
        }
        // Nor do they pass the other way: the server's own host reaches a device with what it may be seen to send.
        let (fragments, before) = (f64::from(20_008_u16.div_ceil(1_480)), dropped(&fleet, "closed").await?);
        EchoRequests::from(tunnel.gateway_ipv4)?.send(tunnel.ipv4, &[7; 20_000]).await?;
        counts(&fleet, "closed", before, fragments).await?;

        // A client that was told to take larger packets into the tunnel.
        let before = dropped(&fleet, "malformed").await?;
        site.sh(&format!("ip link set {} mtu 1550", tunnel.interface))?;
        let large = Pings { size: 1_550 - 28, ..Pings::default() };
        ensure!(large.send(&site, &tunnel.interface, tunnel.gateway_ipv4).await? == 0);
        counts(&fleet, "malformed", before, 3.0).await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(client.complaints()?.is_empty(), "{:?}", client.complaints()?);
        Ok(())
    })
}

#[test]
fn a_tunnel_leads_to_its_gateway_and_nowhere_else() -> anyhow::Result<()> {
    netns::test("a_tunnel_leads_to_its_gateway_and_nowhere_else", async || {
        // A host that forwards, as hosts with containers do.
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1")?;
        }
        let fleet = fleet().await?;
        let (one, other) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let (_, mut spy) = fleet.client(&one, "spy").await?;
        let (_, mut victim) = fleet.client(&other, "victim").await?;
        let (spied, attacked) = (spy.is_up(1).await?, victim.is_up(1).await?);
        Pings::default().come_back(&spy, &spied).await?;
        Pings::default().come_back(&victim, &attacked).await?;

        // As another source than its own: dropped before it gets anywhere.
        let through = &spied.interface;
        let before = dropped(&fleet, "source").await?;
        one.sh(&format!("ip addr add 10.9.9.9/32 dev {through}; ip addr add {}/32 dev {through}", attacked.ipv4))?;
        for source in [Ipv4Addr::new(10, 9, 9, 9), attacked.ipv4] {
            let line = format!("ping -c 3 -i 0.2 -W 1 -I {source} {} || true", spied.gateway_ipv4);
            // Linux sends from an address through the interface that leads there.
            let said = one.sh(&format!("ip route add {}/32 dev {through} src {source}; {line}", spied.gateway_ipv4))?;
            ensure!(said.contains(" 0 received"), "{said}");
            one.sh(&format!("ip route del {}/32 dev {through}", spied.gateway_ipv4))?;
        }
        one.sh(&format!("ip addr del {}/32 dev {through}", attacked.ipv4))?;
        counts(&fleet, "source", before, 6.0).await?;

        // To other tunnels, other addresses of the host, and what is behind it.
        let before = dropped(&fleet, "destination").await?;
        // The tunnel itself stays outside.
        one.sh(&format!("ip route add {SERVER_IPV4}/32 via {}", one.router_ipv4))?;
        for network in ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"] {
            one.sh(&format!("ip route add {network} dev {through} metric 9999"))?;
        }
        for address in [
            IpAddr::from(attacked.ipv4),
            attacked.ipv6.into(),
            other.ipv4.into(),
            other.ipv6.into(),
            other.router_ipv4.into(),
            other.router_ipv6.into(),
            SERVER_IPV6.into(),
            SERVER_IPV4.into(),
        ] {
            ensure!(is_silent(&one, address, through)?, "{address} answers through {through}");
        }
        counts(&fleet, "destination", before, 10.0).await?;

        // To the node's other ports, whatever listens on all of its addresses. It is there for the node.
        let (tcp, udp) = (TcpListener::bind(EVERYWHERE).await?, UdpSocket::bind(EVERYWHERE).await?);
        let before = (dropped(&fleet, "port").await?, dropped(&fleet, "protocol").await?);
        for gateway in [IpAddr::from(spied.gateway_ipv4), spied.gateway_ipv6.into()] {
            ensure!(connects(SocketAddr::new(gateway, EVERYWHERE.1)).await, "nobody listens on {gateway}");
            let link = SocketAddr::new(gateway, LINK_PORT);
            ensure!(one.run(async || Ok(connects(link).await))?, "the link's port does not answer on {gateway}");
            let other = SocketAddr::new(gateway, EVERYWHERE.1);
            one.run(async || {
                let sender = UdpSocket::bind((if gateway.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await?;
                sender.send_to(b"out of a tunnel", other).await?;
                ensure!(!connects(other).await, "{other} answers a device");
                Ok(())
            })?;
        }
        ensure!(udp.try_recv(&mut [0; 64]).is_err(), "a datagram has come out of the tunnel");
        counts(&fleet, "port", before.0, 2.0).await?;
        counts(&fleet, "protocol", before.1, 2.0).await?;
        drop(tcp);

        // Back again: nobody answers through a tunnel but the tunnel's own device.
        let unknown = Ipv4Addr::from(u32::from(spied.gateway_ipv4) + 1_000);
        let before = dropped(&fleet, "no_tunnel").await?;
        let sender = EchoRequests::from(spied.gateway_ipv4)?;
        for _ in 0..3 {
            sender.send(unknown, b"to nobody").await?;
        }
        counts(&fleet, "no_tunnel", before, 3.0).await?;
        Pings::default().come_back(&victim, &attacked).await?;
        Pings::default().come_back(&spy, &spied).await
    })
}

/// Whether somebody answers. Who is not let through waits in vain.
async fn connects(to: SocketAddr) -> bool {
    tokio::time::timeout(SILENCE, TcpStream::connect(to)).await.is_ok_and(|connected| connected.is_ok())
}

#[test]
fn a_client_that_reads_nothing_slows_nobody_else() -> anyhow::Result<()> {
    netns::test("a_client_that_reads_nothing_slows_nobody_else", async || {
        let fleet = fleet().await?;
        let (one, other) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let (_, mut stuck) = fleet.client(&one, "stuck").await?;
        let (_, mut lively) = fleet.client(&other, "lively").await?;
        let (stuck_at, lively_at) = (stuck.is_up(1).await?, lively.is_up(1).await?);
        Pings::default().come_back(&stuck, &stuck_at).await?;

        // More than the kernel's buffers and its own hold together: the rest is dropped, and counted.
        one.unplug()?;
        let before = dropped(&fleet, "queue_full").await?;
        let sender = EchoRequests::from(stuck_at.gateway_ipv4)?;
        let flood = tokio::spawn(async move {
            loop {
                sender.flood(stuck_at.ipv4, 100, 1_400);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        counts(&fleet, "queue_full", before, 1_000.0).await?;
        let lasting = Pings { count: 30, ..Pings::default() };
        lasting.come_back(&lively, &lively_at).await?;
        flood.abort();

        // What was stuck comes, and then what is new.
        one.plug()?;
        wait_for("the tunnel to go on", COUNT_LIMIT, async || {
            let received = Pings::default().send(&one, &stuck_at.interface, stuck_at.gateway_ipv4).await?;
            ensure!(received == 3, "{received} of 3");
            Ok(())
        })
        .await?;
        ensure!(!stuck.log_text()?.contains("restarting"), "{}", stuck.log_text()?);
        Pings::default().come_back(&lively, &lively_at).await
    })
}

/// Of the device.
const TALK_PORT: u16 = 25_200;
const MARK: &str = "this-is-what-nobody-in-between-may-read";

#[test]
fn nobody_in_between_sees_what_is_inside_or_any_tls_but_the_newest() -> anyhow::Result<()> {
    netns::test("nobody_in_between_sees_what_is_inside_or_any_tls_but_the_newest", async || {
        let fleet = fleet().await?;
        let site = Arc::new(Site::join()?);
        let outer = Capture::start(&site.interface, &fleet.path("outer.pcap")).await?;
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        let inner = Capture::start_at(&site, &tunnel.interface, &fleet.path("inner.pcap")).await?;
        fleet.open_port(&device.id, TALK_PORT).await?;
        talk(&client, &tunnel).await?;
        client.program().stop()?;
        let (outer, inner) = (outer.stop()?, inner.stop()?);

        // It was there to be seen.
        ensure!(inner.shows(MARK.as_bytes()), "the text was not even in the tunnel");
        ensure!(inner.shows(&PATTERN), "the pattern was not even in the tunnel");
        let port = fleet.server.device.port();
        for (what, secret) in [
            ("the text", MARK.as_bytes()),
            ("the pattern of the pings", &PATTERN),
            ("the device's name", device.id.as_bytes()),
            ("the pushed options", b"PUSH_REPLY"),
            ("the gateway's address", &tunnel.gateway_ipv6.octets()),
        ] {
            ensure!(!outer.shows(secret), "{what} is seen on the wire");
        }
        ensure!(outer.streams.len() == 2, "{:?}", outer.streams.keys());
        for ((_, from, _, to), stream) in &outer.streams {
            let hello = if *to == port { CLIENT_HELLO } else { SERVER_HELLO };
            is_tls13(&records(stream)?, hello).with_context(|| format!("from port {from} to {to}"))?;
        }
        Ok(())
    })
}

/// What `ping` fills its packets with.
const PATTERN: [u8; 16] =
    [0xc1, 0x0d, 0x11, 0x9b, 0xc1, 0x0d, 0x11, 0x9b, 0xc1, 0x0d, 0x11, 0x9b, 0xc1, 0x0d, 0x11, 0x9b];

/// Says the mark in both directions over TCP, and sends the pattern in pings.
async fn talk(client: &Client, tunnel: &Tunnel) -> anyhow::Result<()> {
    let listener = client.site.run(async || Ok(std::net::TcpListener::bind((tunnel.ipv4, TALK_PORT))?))?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await
    });
    let mut stream = TcpStream::connect((tunnel.ipv4, TALK_PORT)).await?;
    stream.write_all(MARK.as_bytes()).await?;
    stream.shutdown().await?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await?;
    ensure!(heard == MARK, "{heard:?}");
    echo.await??;
    let gateway = tunnel.gateway_ipv4;
    let said =
        client.site.sh(&format!("ping -c 3 -i 0.2 -W 2 -p c10d119b -s 200 -I {} {gateway}", tunnel.interface))?;
    ensure!(said.contains(" 3 received"), "{said}");
    Ok(())
}

/// A TLS record, as it is on the wire.
#[derive(Debug)]
struct Record {
    kind: u8,
    version: u16,
    body: Vec<u8>,
}

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Everything of TLS that one side of a session has sent, taken out of its control packets.
fn records(stream: &[u8]) -> anyhow::Result<Vec<Record>> {
    let (mut rest, mut tls) = (stream, Vec::new());
    while let Some((len, after)) = rest.split_first_chunk() {
        let (packet, after) = after.split_at_checked(u16::from_be_bytes(*len).into()).context("a packet is cut off")?;
        if let Some(payload) = control_payload(packet)? {
            tls.extend_from_slice(payload);
        }
        rest = after;
    }
    let (mut rest, mut records) = (tls.as_slice(), Vec::new());
    while let Some((&[kind, major, minor, high, low], after)) = rest.split_first_chunk() {
        let (body, after) =
            after.split_at_checked(u16::from_be_bytes([high, low]).into()).context("a record is cut off")?;
        records.push(Record { kind, version: u16::from_be_bytes([major, minor]), body: body.to_vec() });
        rest = after;
    }
    ensure!(rest.is_empty(), "no TLS record: {rest:x?}");
    Ok(records)
}

/// The TLS bytes in a packet that is not wrapped, if it has any. TCP keeps their order.
fn control_payload(packet: &[u8]) -> anyhow::Result<Option<&[u8]>> {
    const CONTROL: u8 = 4;
    const KNOWN: [u8; 5] = [CONTROL, 5, 7, 8, 9];
    let opcode = packet.first().context("an empty packet")? >> 3;
    ensure!(KNOWN.contains(&opcode), "an unexpected packet: {packet:x?}");
    if opcode != CONTROL {
        return Ok(None);
    }
    let acknowledged = usize::from(*packet.get(9).context("a packet is cut off")?);
    let peer_session = if acknowledged > 0 { 8 } else { 0 };
    Ok(Some(packet.get(10 + acknowledged * 4 + peer_session + 4..).context("a packet is cut off")?))
}

/// Fails when anything but a handshake of TLS 1.3 shows: in clear there is only one hello, and both name that version.
fn is_tls13(records: &[Record], hello_type: u8) -> anyhow::Result<()> {
    const SUPPORTED_VERSIONS: u16 = 43;
    let (hello, rest) = records.split_first().context("there was no handshake")?;
    ensure!(hello.kind == HANDSHAKE && hello.body.first() == Some(&hello_type), "{hello:x?}");
    let message = hello.body.get(1..4).context("a hello is cut off")?;
    let message = usize::from(message[0]) << 16 | usize::from(message[1]) << 8 | usize::from(message[2]);
    ensure!(hello.body.len() == 4 + message, "more than a hello is in clear: {hello:x?}");
    let versions = extension(&hello.body, hello_type, SUPPORTED_VERSIONS).context("it names no version")?;
    ensure!(versions.windows(2).any(|version| version == [3, 4]), "{versions:x?}");
    ensure!(hello_type == CLIENT_HELLO || versions == [3, 4], "{versions:x?}");
    ensure!(records.iter().all(|record| [0x0301, 0x0303].contains(&record.version)));
    ensure!(rest.len() > 2, "nothing was said after the hello");
    let is_hidden = |record: &Record| [CHANGE_CIPHER_SPEC, APPLICATION_DATA].contains(&record.kind);
    ensure!(rest.iter().all(is_hidden), "in clear: {rest:x?}");
    Ok(())
}

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// An extension of a hello (RFC 8446, section 4.1.2).
fn extension(hello: &[u8], hello_type: u8, wanted: u16) -> Option<&[u8]> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes(hello.get(at..at + 2)?.try_into().ok()?)));
    // Type, length, version, random, session id.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(*hello.get(at)?);
    if hello_type == CLIENT_HELLO {
        at += 2 + word(at)?;
        at += 1 + usize::from(*hello.get(at)?);
    } else {
        at += 2 + 1;
    }
    at += 2;
    while let (Some(kind), Some(len)) = (word(at), word(at + 2)) {
        if kind == usize::from(wanted) {
            return hello.get(at + 4..at + 4 + len);
        }
        at += 4 + len;
    }
    None
}
