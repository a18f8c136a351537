//! Bad input on the device port: each gets a clear answer, nothing panics, nobody else notices.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{DeviceMessage, Hello, device_message};
use cloudlink_proto::link::{LINK_PATH, MESSAGE_BYTES_MAX};
use futures_util::{SinkExt, StreamExt};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

use super::fleet::Fleet;
use super::peer::{Peer, dial_socket, dial_tls, request};
use super::{PATIENCE, Port, SERVER_NAME};
use crate::config::Seconds;

/// What the server says to this message of a live link, after which the link of somebody else still works.
async fn goodbye_after(port: &Port, message: Message) -> Code {
    let fleet = Fleet::new(port).await;
    let (device, other) = (fleet.device(port).await, fleet.device(port).await);
    let mut bystander = Peer::dial(port, &other.credentials, "boot-1").await.unwrap();
    let mut link = Peer::dial(port, &device.credentials, "boot-1").await.unwrap();
    link.send_raw(message).await;
    let code = link.ended().await;
    bystander.hears_nothing_for(Duration::from_millis(50)).await;
    code
}

/// Reads to the end of the connection.
async fn answer_to(port: &Port, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    answer
}

const TLS_FAILURES: &str = r#"cloudlink_device_handshake_failures_total{reason="tls"}"#;
const HTTP_FAILURES: &str = r#"cloudlink_device_handshake_failures_total{reason="http"}"#;
const TIMEOUTS: &str = r#"cloudlink_device_handshake_failures_total{reason="timeout"}"#;
const OVERLOADS: &str = r#"cloudlink_device_handshake_failures_total{reason="overload"}"#;

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn plain_http_is_told_that_this_is_tls(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let answer = String::from_utf8(answer_to(&port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("this port speaks TLS 1.3"), "{answer}");
    port.until_metric(TLS_FAILURES, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn other_first_bytes_are_closed_and_counted(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    assert_eq!(answer_to(&port, b"\x00\x0e\x20\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00").await, b"");
    port.until_metric(TLS_FAILURES, 1).await;
    // It begins like TLS, and is none: an alert.
    let answer = answer_to(&port, b"\x16\x03\x01\x00\x04\xff\xff\xff\xff").await;
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    port.until_metric(TLS_FAILURES, 2).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn tls_1_2_is_refused_with_an_alert(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    // A ClientHello of TLS 1.2: no supported_versions, one suite, one group, one signature algorithm.
    let body = [
        &b"\x03\x03"[..],
        &[7; 32],
        b"\x00",
        b"\x00\x02\xc0\x2b",
        b"\x01\x00",
        b"\x00\x16",
        b"\x00\x0a\x00\x04\x00\x02\x00\x17",
        b"\x00\x0d\x00\x04\x00\x02\x04\x03",
        b"\x00\x0b\x00\x02\x01\x00",
    ]
    .concat();
    let length = u8::try_from(body.len()).unwrap();
    let hello = [&[0x16, 3, 1, 0, length + 4, 1, 0, 0, length], &body[..]].concat();
    // Alert, fatal, protocol_version (RFC 8446, section 6.2).
    assert_eq!(answer_to(&port, &hello).await[5..], [2, 70]);
    port.until_metric(TLS_FAILURES, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_says_nothing_or_stops_halfway_is_closed_in_time(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.device.handshake_timeout_seconds = Seconds(1);
        settings.device.request_timeout_seconds = Seconds(1);
        settings.link.hello_timeout_seconds = Seconds(1);
    })
    .await;
    let device = Fleet::new(&port).await.device(&port).await;
    let begun = Instant::now();
    // No byte; half a ClientHello; half a request; no hello.
    let (silent, half, mut requesting) =
        tokio::join!(answer_to(&port, b""), answer_to(&port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"), async {
            dial_tls(&port, &device.credentials, SERVER_NAME).await.unwrap()
        },);
    assert_eq!((silent, half), (vec![], vec![]));
    requesting.write_all(b"GET /v1/link HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let _ = timeout(PATIENCE, requesting.read_to_end(&mut Vec::new())).await.expect("an end");
    let mut socket = dial_socket(&port, &device.credentials).await.unwrap();
    let closed = async {
        loop {
            if let Some(Ok(Message::Close(frame))) = socket.next().await {
                return u16::from(frame.unwrap().code);
            }
        }
    };
    assert_eq!(timeout(PATIENCE, closed).await.unwrap(), 4005);
    assert!(begun.elapsed() < Duration::from_secs(10));
    port.until_metric(TIMEOUTS, 4).await;
    port.until_metric("cloudlink_device_connections_unauthenticated", 0).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn one_address_gets_no_more_unauthenticated_connections_than_it_may(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start_with(database, |settings| settings.device.unauthenticated_per_address_max = 2).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let held = [TcpStream::connect(port.address).await.unwrap(), TcpStream::connect(port.address).await.unwrap()];
    port.until_metric("cloudlink_device_connections_unauthenticated", 2).await;
    assert_eq!(answer_to(&port, b"").await, b"");
    port.until_metric(OVERLOADS, 1).await;
    drop(held);
    port.until_metric("cloudlink_device_connections_unauthenticated", 0).await;
    // A link is no stranger: any number of them may come from one address.
    let mut links = Vec::new();
    for _ in 0..4 {
        links.push(Peer::dial(&port, &device.credentials, "boot-1").await.unwrap());
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_request_that_is_no_link_is_answered_with_a_problem(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let version = "sec-websocket-version: 13\r\n";
    let key = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let cases = [
        ("GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 404, "not_found"),
        ("GET /v1/link/../link HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 404, "not_found"),
        ("POST /v1/enroll HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".to_owned(), 404, "not_found"),
        (format!("POST {LINK_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"), 405, "method_not_allowed"),
        (format!("GET {LINK_PATH} HTTP/1.1\r\nhost: x\r\n\r\n"), 426, "upgrade_required"),
        (format!("GET {LINK_PATH} HTTP/1.1\r\nhost: x\r\n{upgrade}{key}\r\n"), 426, "upgrade_required"),
        (format!("GET {LINK_PATH} HTTP/1.1\r\nhost: x\r\n{upgrade}{version}\r\n"), 400, "bad_request"),
        (format!("GET {LINK_PATH} HTTP/1.1\r\nhost: x\r\n{upgrade}{version}{key}\r\n"), 400, "bad_request"),
    ];
    for (text, status, kind) in &cases {
        let (answered, headers, body) =
            request(&port, &device.credentials, SERVER_NAME, text.as_bytes()).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((answered, &problem["status"]), (*status, &serde_json::json!(status)), "{text}");
        assert_eq!(problem["type"], format!("urn:cloudlink:problem:{kind}"), "{text}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["connection"], "close");
    }
    port.until_metric(HTTP_FAILURES, u64::try_from(cases.len()).unwrap()).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_request_that_is_malformed_or_too_long_is_refused(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let many = "x: y\r\n".repeat(100);
    let cases = [
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("\u{0}\u{1}\u{2}\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000)), 414),
        (format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", "a".repeat(70_000)), 431),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
    ];
    for (text, status) in &cases {
        // The server may close before it has read all, which takes back its answer.
        if let Ok((answered, ..)) = request(&port, &device.credentials, SERVER_NAME, text.as_bytes()).await {
            assert!(answered == *status || answered == 0 || answered == 431, "{answered} instead of {status}");
        }
    }
    port.until_metric(HTTP_FAILURES, u64::try_from(cases.len()).unwrap()).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_text_message_ends_the_link_with_a_protocol_error(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    assert_eq!(goodbye_after(&port, Message::text("hello")).await, Code::ProtocolError);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_text_message_that_is_no_utf_8_ends_the_link_with_a_protocol_error(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    let frame = Frame::from_payload(header, Bytes::from_static(b"\xff\xfe"));
    assert_eq!(goodbye_after(&port, Message::Frame(frame)).await, Code::ProtocolError);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_oversize_message_ends_the_link_with_a_protocol_error(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let code = goodbye_after(&port, Message::binary(vec![0; MESSAGE_BYTES_MAX + 1])).await;
    assert_eq!(code, Code::ProtocolError);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn fragments_that_add_up_to_too_much_end_the_link_with_a_protocol_error(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    for opcode in [Data::Binary, Data::Continue, Data::Continue] {
        let header = FrameHeader { opcode: OpCode::Data(opcode), is_final: false, ..FrameHeader::default() };
        link.send_raw(Message::Frame(Frame::from_payload(header, vec![0; MESSAGE_BYTES_MAX / 2].into()))).await;
    }
    assert_eq!(link.ended().await, Code::ProtocolError);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn malformed_protobuf_ends_the_link_with_a_protocol_error(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    assert_eq!(goodbye_after(&port, Message::binary(vec![0xff; 9])).await, Code::ProtocolError);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_second_hello_ends_the_link_with_a_protocol_error(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let hello = Hello { versions: vec![1], boot_id: "boot-1".to_owned(), ..Hello::default() };
    let message = DeviceMessage { kind: Some(device_message::Kind::Hello(hello)) };
    assert_eq!(goodbye_after(&port, Message::binary(encode(&message))).await, Code::ProtocolError);
}

fn encode(message: &DeviceMessage) -> Vec<u8> {
    prost::Message::encode_to_vec(message)
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_unknown_kind_is_counted_and_the_link_goes_on(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    // Field 99, a message of two bytes.
    link.send_raw(Message::binary(vec![0x9a, 0x06, 0x02, 0x08, 0x01])).await;
    link.send_raw(Message::binary(vec![])).await;
    link.hears_nothing_for(Duration::from_millis(100)).await;
    link.socket.close(None).await.unwrap();
    port.until_metric("cloudlink_link_messages_unknown_total", 2).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_version_in_common_is_said_with_the_versions_there_are(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut socket = dial_socket(&port, &device.credentials).await.unwrap();
    let hello = Hello { versions: vec![99], boot_id: "boot-1".to_owned(), ..Hello::default() };
    let message = DeviceMessage { kind: Some(device_message::Kind::Hello(hello)) };
    socket.send(Message::binary(encode(&message))).await.unwrap();
    let closed = async {
        loop {
            if let Some(Ok(Message::Close(frame))) = socket.next().await {
                return frame.unwrap();
            }
        }
    };
    let frame = timeout(PATIENCE, closed).await.unwrap();
    assert_eq!(u16::from(frame.code), 4006);
    assert!(frame.reason.contains("[1]"), "{}", frame.reason);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_does_not_read_is_cut_and_holds_up_nobody(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Arc::new(Port::start_with(database, |settings| settings.link.send_queue_max = 8).await);
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let mut link = Peer::dial(&port, &other.credentials, "boot-1").await.unwrap();
    let deaf = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let handle = port.links.0.registry.find(device.device_id()).unwrap();
    // More than the sockets hold, so that the writer stands still, and then more than may wait.
    let reason = "x".repeat(200);
    let reason: &'static str = reason.leak();
    while handle.ending().is_none() {
        for _ in 0..8 {
            handle.order(super::super::Order::Callback(
                cloudlink_proto::ids::CommandId::from_uuid(uuid::Uuid::nil()),
                reason,
            ));
        }
        tokio::task::yield_now().await;
    }
    link.hears_nothing_for(Duration::from_millis(50)).await;
    port.until(&format!("select close_reason from links where device_id = '{}'", device.id), "lost").await;
    drop(deaf);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_crowd_of_strangers_leaves_nothing_behind(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let mut crowd = Vec::new();
    for n in 0..64_u8 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.address.port())).await.unwrap();
        stream.write_all(&[n; 64]).await.unwrap();
        crowd.push(stream);
    }
    drop(crowd);
    port.until_metric("cloudlink_device_connections_unauthenticated", 0).await;
}
