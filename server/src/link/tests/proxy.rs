//! Devices behind a load balancer: where they are is what it says, and nobody else's word is taken for it.

use std::net::Ipv4Addr;

use cloudlink_proto::proxy_header::LOCAL;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::fleet::Fleet;
use super::peer::{Credentials, DialError, Peer, shake, upgrade};
use super::{PATIENCE, Port, SERVER_NAME, Settings};
use crate::config::Seconds;

const UNTRUSTED: &str = r#"cloudlink_device_handshake_failures_total{reason="proxy_untrusted"}"#;
const UNUSABLE: &str = r#"cloudlink_device_handshake_failures_total{reason="proxy_header"}"#;
const OVERLOADS: &str = r#"cloudlink_device_handshake_failures_total{reason="overload"}"#;
const TIMEOUTS: &str = r#"cloudlink_device_handshake_failures_total{reason="timeout"}"#;
const STRANGERS: &str = "cloudlink_device_connections_unauthenticated";

const BALANCER: [u8; 4] = [127, 0, 0, 2];

async fn start(database: PgConnectOptions, change: impl FnOnce(&mut Settings)) -> Port {
    Port::start_with(database, |settings| {
        settings.device.proxy_from = vec!["127.0.0.2/32".parse().unwrap()];
        change(settings);
    })
    .await
}

/// A connection that begins with these bytes.
async fn dial(port: &Port, source: [u8; 4], first: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(source), 0).into()).unwrap();
    let mut stream = socket.connect(port.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

async fn link(stream: TcpStream, credentials: &Credentials) -> Result<Peer, DialError> {
    let stream = shake(stream, credentials, SERVER_NAME).await.map_err(DialError::Tls)?;
    Peer::say_hello(upgrade(stream).await?, "boot-1").await
}

/// All that comes until the other side closes.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end");
    bytes
}

fn for_client(last: u8) -> Vec<u8> {
    format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 40000 443\r\n").into_bytes()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_link_is_from_where_the_balancer_says(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database, |_| {}).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let row = format!("select host(remote_address) from links where device_id = '{}'", device.id);
    let v2_ipv6 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x27\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07"[..],
        &[0; 16],
        b"\x9c\x40\x01\xbb\xea\0\0",
    ]
    .concat();
    let v1_mapped = b"PROXY TCP6 ::ffff:192.0.2.8 ::ffff:198.51.100.1 40000 443\r\n";
    for (header, expected) in
        [(&for_client(7)[..], "192.0.2.7"), (&v2_ipv6, "2001:db8::7"), (v1_mapped, "192.0.2.8"), (&LOCAL, "127.0.0.2")]
    {
        let _link = link(dial(&port, BALANCER, header).await, &device.credentials).await.unwrap();
        assert_eq!(port.ask(&row).await.as_deref(), Some(expected));
    }
    let _link = link(dial(&port, [127, 0, 0, 3], b"").await, &device.credentials).await.unwrap();
    assert_eq!(port.ask(&row).await.as_deref(), Some("127.0.0.3"), "who is no balancer needs no header");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_header_of_anybody_else_is_refused_and_counted(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database, |_| {}).await;
    let device = Fleet::new(&port).await.device(&port).await;
    for (count, header) in (1..).zip([&for_client(7)[..], &LOCAL, b"PROXY nonsense\r\n"]) {
        assert_eq!(rest(dial(&port, [127, 0, 0, 3], header).await).await, b"");
        port.until_metric(UNTRUSTED, count).await;
    }
    // With a valid certificate behind it, too.
    let refused = link(dial(&port, [127, 0, 0, 3], &for_client(7)).await, &device.credentials).await;
    assert!(refused.is_err());
    port.until_metric(UNTRUSTED, 4).await;
    assert_eq!((port.links.live(), port.metric(UNUSABLE)), (0, 0));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_balancer_without_a_header_is_refused_and_counted(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database, |_| {}).await;
    let device = Fleet::new(&port).await.device(&port).await;
    assert!(link(dial(&port, BALANCER, b"").await, &device.credentials).await.is_err());
    port.until_metric(UNUSABLE, 1).await;
    for (count, first) in (2..).zip([
        &b"\x00\x0e\x38\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\0",
    ]) {
        assert_eq!(rest(dial(&port, BALANCER, first).await).await, b"");
        port.until_metric(UNUSABLE, count).await;
    }
    // One header, no two.
    let twice = [for_client(7), for_client(8)].concat();
    assert_eq!(rest(dial(&port, BALANCER, &twice).await).await, b"");
    port.until_metric(UNTRUSTED, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_limits_of_an_address_are_those_of_the_device(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database, |settings| {
        settings.device.unauthenticated_max = 6;
        settings.device.unauthenticated_per_address_max = 2;
    })
    .await;
    // Connections for whom the balancer is yet to say.
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(dial(&port, BALANCER, b"").await);
    }
    port.until_metric(STRANGERS, 5).await;
    for stream in &mut waiting[..2] {
        stream.write_all(&for_client(7)).await.unwrap();
    }
    // The third of one address is refused, as soon as it is known to be that.
    let third = waiting.remove(2);
    let mut third = third;
    third.write_all(&for_client(7)).await.unwrap();
    assert_eq!(rest(third).await, b"");
    port.until_metric(OVERLOADS, 1).await;
    port.until_metric(STRANGERS, 4).await;
    for stream in &mut waiting[2..] {
        stream.write_all(&for_client(8)).await.unwrap();
    }
    let _fifth = dial(&port, BALANCER, &for_client(9)).await;
    port.until_metric(STRANGERS, 5).await;
    assert_eq!(port.metric(OVERLOADS), 1, "others are not concerned");
    // All together have the one limit.
    let _sixth = dial(&port, BALANCER, b"").await;
    port.until_metric(STRANGERS, 6).await;
    assert_eq!(rest(dial(&port, BALANCER, b"").await).await, b"");
    port.until_metric(OVERLOADS, 2).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_does_not_finish_its_header_is_cut(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database, |settings| settings.device.handshake_timeout_seconds = Seconds(1)).await;
    let header = for_client(7);
    for (count, first) in (1..).zip([&b""[..], &header[..header.len() - 1], &LOCAL[..13]]) {
        assert_eq!(rest(dial(&port, BALANCER, first).await).await, b"");
        port.until_metric(TIMEOUTS, count).await;
    }
    // The time for the header is part of that for the handshake.
    assert_eq!(rest(dial(&port, BALANCER, &header).await).await, b"");
    port.until_metric(TIMEOUTS, 4).await;
    port.until_metric(STRANGERS, 0).await;
}
