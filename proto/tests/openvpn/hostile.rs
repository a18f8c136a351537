//! The table of hostile and odd input (wire page §10), row for row.
//!
//! Rows 46 and 47, and what is left of 48, are in `data`'s own tests, where packet ids, formats and epochs can be chosen. Of rows
//! 62 and 63 here is what the session does: the queue of packets, and who is the newest, are its owner's.

use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::openvpn::{
    ClientConfig, ClientWrapping, CloseReason, Farewell, HEADROOM, KeyDirection, SealError, ServerConfig,
    ServerWrapping, Sniffed, State, StaticKey, TAILROOM, V2ServerKey, sniff,
};

use crate::raw::{Raw, SESSION, control, key_exchange, reset};
use crate::wire::*;

/// What has become of the server's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Closed without a word, for a reason with this label.
    Close(&'static str),
    /// The peer was told, and the session is ending for a reason with this label.
    Refuse(&'static str),
    /// The session goes on as if nothing had been.
    Open,
}

use Answer::{Close, Open, Refuse};

fn answer(end: &End) -> Answer {
    match (&end.closed, end.session.state()) {
        // A refusal that the peer has acknowledged is over.
        (Some(reason @ (CloseReason::Refused(_) | CloseReason::Tls(_))), _) => Refuse(reason.label()),
        (Some(reason), _) => Close(reason.label()),
        (None, State::Ending) => Refuse(end.session.close_reason().unwrap().label()),
        (None, _) => Open,
    }
}

/// One row, or a part of one.
struct Row {
    number: u8,
    what: &'static str,
    expected: Answer,
    play: fn() -> End,
}

const fn row(number: u8, what: &'static str, expected: Answer, play: fn() -> End) -> Row {
    Row { number, what, expected, play }
}

/// A server that heard nothing gets these bytes and must not say anything.
fn first(bytes: &[u8]) -> End {
    fed(PKI.server_config(), bytes)
}

fn fed(config: ServerConfig, bytes: &[u8]) -> End {
    let mut server = Raw::server(config);
    let out = server.feed(beginning(), bytes, usize::MAX);
    assert!(server.closed.is_none() || out.is_empty(), "said something to a stranger");
    server
}

fn with_wrapping(wrapping: ServerWrapping) -> ServerConfig {
    ServerConfig { wrapping, ..PKI.server_config() }
}

/// Resets are exchanged, then these packets come.
fn after_reset(packets: impl FnOnce(&Raw) -> Vec<u8>) -> End {
    let mut raw = Raw::reset();
    let packets = packets(&raw);
    raw.inject(&packets);
    raw.server
}

/// TLS is through, then this record comes.
fn key_message(record: &[u8]) -> End {
    let mut raw = Raw::tls();
    raw.write(record);
    raw.pump();
    raw.server
}

fn with_peer_info(info: &str) -> Raw {
    Raw::keys(OPTIONS, info)
}

/// The session is live, then this control message comes.
fn control_message(record: &[u8]) -> End {
    let mut raw = with_peer_info(PEER_2_6);
    assert_eq!(raw.server.session.state(), State::Live);
    raw.write(record);
    raw.pump();
    raw.server
}

/// A live pair without a wrapping.
fn live() -> Pair {
    live_with(PKI.client_config())
}

fn live_with(client: ClientConfig) -> Pair {
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.connect();
    pair
}

/// A live session gets a packet out of the tunnel.
fn inner(packet: &[u8]) -> End {
    let mut pair = live();
    let frame = pair.client.seal(pair.now, packet);
    pair.server.feed(pair.now, &frame, usize::MAX);
    assert!(pair.server.packets.is_empty(), "came through");
    pair.server
}

/// A live session gets an encrypted packet that was changed on its way.
fn changed(client: ClientConfig, change: impl FnOnce(&mut Vec<u8>)) -> End {
    let mut pair = live_with(client);
    let frame = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 1));
    let mut packet = frames(&frame).remove(0);
    change(&mut packet);
    pair.server.feed(pair.now, &framed(&packet), usize::MAX);
    pair.server
}

fn v2_client() -> ClientConfig {
    ClientConfig { peer_info: PEER_2_6.into(), ..PKI.client_config() }
}

fn v1_client() -> ClientConfig {
    ClientConfig { peer_info: b"IV_NCP=2\nIV_PROTO=140\n".to_vec(), ..PKI.client_config() }
}

/// A client that never pings and asks for its push so many times, with this much time between.
fn push_requests(count: usize, pause: Duration) -> Raw {
    let mut raw = with_peer_info("IV_PROTO=2\nIV_NCP=2");
    ask_for_push(&mut raw, count, pause);
    raw
}

fn ask_for_push(raw: &mut Raw, count: usize, pause: Duration) {
    for _ in 0..count {
        if raw.server.closed.is_some() {
            break;
        }
        raw.write(b"PUSH_REQUEST\0");
        raw.pump();
        raw.now += pause;
        raw.server.timeout(raw.now);
    }
}

fn pushes(raw: &Raw) -> usize {
    String::from_utf8_lossy(&raw.heard).matches("PUSH_REPLY").count()
}

/// The session id of a live pair's client, for packets in its name.
fn client_id(pair: &Pair) -> [u8; 8] {
    frames(&pair.client.sent)[0][1..9].try_into().unwrap()
}

/// A control packet in the name of a live pair's client, which must not use dynamic wrapping.
fn in_its_name(pair: &Pair, first: u8, id: u32) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(client_id(pair));
    packet.push(0);
    packet.extend(id.to_be_bytes());
    framed(&packet)
}

/// A live pair that has negotiated new keys once, with plain control packets.
fn plain_pair(renegotiate_every: Option<Duration>) -> Pair {
    let server = ServerConfig { has_dynamic_tls_crypt: false, ..PKI.server_config() };
    let mut pair = Pair::new(server, ClientConfig { renegotiate_every, ..PKI.client_config() });
    pair.connect();
    if renegotiate_every.is_some() {
        pair.pass(Duration::from_secs(11));
        assert_eq!(pair.server.rekeyed(), [1]);
    }
    pair
}

fn soft_reset(renegotiate_every: Option<Duration>, key: u8) -> End {
    let mut pair = plain_pair(renegotiate_every);
    pair.now += Duration::from_secs(5);
    let reset = in_its_name(&pair, 0x18 | key, 0);
    pair.server.feed(pair.now, &reset, usize::MAX);
    pair.server
}

fn static_key() -> StaticKey {
    StaticKey::from_bytes(std::array::from_fn(|index| u8::try_from(index).unwrap()))
}

/// The first packet of a client with such a wrapping.
fn first_packet(wrapping: ClientWrapping) -> Vec<u8> {
    Pair::new(PKI.server_config(), ClientConfig { wrapping, ..PKI.client_config() }).client.drain()
}

fn v2_server_key() -> V2ServerKey {
    V2ServerKey::from_bytes([3; 128])
}

fn v2_first_packet(metadata: &[u8]) -> Vec<u8> {
    let key = v2_server_key().issue(StaticKey::from_bytes([9; 256]), metadata).unwrap();
    first_packet(ClientWrapping::TlsCryptV2(key))
}

/// A server with client keys gets a first packet with this at its end.
fn v2_with_length(length: u16, bytes: usize) -> End {
    let mut packet = vec![0x50; bytes];
    packet.extend(length.to_be_bytes());
    fed(with_wrapping(ServerWrapping::TlsCryptV2(v2_server_key())), &framed(&packet))
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(1, "length 0", Close("framing"), || first(&[0, 0])),
    row(2, "length above the maximum", Close("framing"), || first(&[0xff, 0xff])),
    row(2, "length just above the maximum", Close("framing"), || first(&[0x0c, 0x01])),
    row(3, "a frame of one byte", Close("protocol"), || first(&framed(&[0x20]))),
    row(3, "a reset of one byte", Close("wrapping"), || first(&framed(&[0x38]))),
    row(3, "a reset without a message id", Close("protocol"), || first(&reset_cut(4))),
    row(4, "one byte, then silence", Close("deadline"), || {
        let mut server = first(&[0]);
        server.timeout(beginning() + Duration::from_secs(9));
        assert!(server.closed.is_none());
        server.timeout(beginning() + Duration::from_secs(10));
        server
    }),
    row(4, "a reset, then one byte per second", Close("deadline"), || {
        let mut raw = Raw::reset();
        let hello = control(0x20, &[0], raw.server_id, Some(1), &[0x16; 100]);
        for (second, byte) in (1..).zip(&hello[..60]) {
            assert!(raw.server.closed.is_none());
            raw.now = beginning() + Duration::from_secs(second);
            raw.inject(&[*byte]);
            raw.server.timeout(raw.now);
        }
        raw.server
    }),
    row(5, "end of stream inside a frame", Close("framing"), || {
        let mut server = first(&[0, 14, 0x38]);
        server.session.handle_end_of_stream(beginning());
        server.drain();
        server
    }),
    row(6, "opcode 0", Close("protocol"), || first(&framed(&[0x00; 14]))),
    row(6, "opcode 31", Close("protocol"), || first(&framed(&[0xf8; 14]))),
    row(6, "opcode 12", Close("protocol"), || first(&framed(&[0x60; 14]))),
    row(6, "key method 1", Close("protocol"), || first(&framed(&[0x08; 14]))),
    row(6, "a server's reset from a client", Close("protocol"), || first(&control(0x40, &[], [0; 8], Some(0), &[]))),
    row(6, "a server's reset later", Close("protocol"), || after_reset(|_| control(0x40, &[], [0; 8], Some(0), &[]))),
    row(7, "CONTROL first", Close("protocol"), || first(&control(0x20, &[], [0; 8], Some(0), b"x"))),
    row(7, "ACK first", Close("protocol"), || first(&control(0x28, &[0], [1; 8], None, &[]))),
    row(7, "SOFT_RESET first", Close("protocol"), || first(&control(0x18, &[], [0; 8], Some(0), &[]))),
    row(7, "DATA first", Close("protocol"), || first(&framed(&[0x48; 40]))),
    row(8, "a reset with key id 1", Close("protocol"), || first(&control(0x39, &[], [0; 8], Some(0), &[]))),
    row(8, "a reset with message id 1", Close("protocol"), || first(&control(0x38, &[], [0; 8], Some(1), &[]))),
    row(8, "a reset with acknowledgements", Close("protocol"), || first(&control(0x38, &[0], [1; 8], Some(0), &[]))),
    row(8, "a reset with a payload", Open, || first(&control(0x38, &[], [0; 8], Some(0), b"payload"))),
    row(9, "the same reset again", Open, || {
        let server = after_reset(|_| reset().repeat(3));
        // Its own reset, then nothing but acknowledgements.
        assert!(frames(&server.sent)[1..].iter().all(|frame| frame[0] == 0x28));
        assert!(frames(&server.sent).len() > 1);
        server
    }),
    row(10, "a reset of another session", Close("protocol"), || after_reset(|_| with_session([0xd2; 8], reset()))),
    row(11, "V2 where V3 is demanded", Close("protocol"), || {
        fed(with_wrapping(ServerWrapping::TlsCryptV2(v2_server_key())), &reset())
    }),
    row(11, "V3 where it is not configured", Close("protocol"), || first(&v2_first_packet(b""))),
    row(12, "a session id of zeros", Close("wrapping"), || first(&with_session([0; 8], reset()))),
    row(12, "the session id changes", Close("protocol"), || {
        after_reset(|raw| with_session([0xd2; 8], control(0x20, &[0], raw.server_id, Some(1), b"x")))
    }),
    row(13, "nine acknowledgements", Close("protocol"), || {
        after_reset(|raw| control(0x28, &[0; 9], raw.server_id, None, &[]))
    }),
    row(13, "more acknowledgements than bytes", Close("protocol"), || {
        after_reset(|_| framed(&[[0x28].as_slice(), &SESSION, &[8, 0, 0]].concat()))
    }),
    row(13, "acknowledgements for another session", Close("protocol"), || {
        after_reset(|_| control(0x28, &[0], [0xee; 8], None, &[]))
    }),
    row(14, "acknowledgements of ids never sent, and twice", Open, || {
        after_reset(|raw| control(0x28, &[7, 0xffff_ffff, 0, 0], raw.server_id, None, &[]).repeat(2))
    }),
    row(15, "a message id again", Open, || {
        let server = after_reset(|raw| control(0x20, &[0], raw.server_id, Some(1), &[0x16]).repeat(2));
        assert_eq!(server.session.counters().control_order, 1);
        server
    }),
    row(16, "a message id beyond the window", Open, || {
        let server = after_reset(|raw| control(0x20, &[0], raw.server_id, Some(9), b"x"));
        assert_eq!(frames(&server.sent).len(), 1, "acknowledged");
        server
    }),
    row(17, "thousands of ACKs", Close("flood"), || {
        after_reset(|raw| control(0x28, &[0], raw.server_id, None, &[]).repeat(3000))
    }),
    row(17, "thousands of empty CONTROLs", Close("flood"), || {
        after_reset(|raw| (1..3000).flat_map(|id| control(0x20, &[], raw.server_id, Some(id), &[])).collect())
    }),
    row(18, "a ClientHello in packets of 8 bytes", Open, || {
        let mut raw = Raw::reset();
        let hello = client_hello();
        for (id, piece) in (1..).zip(hello.chunks(hello.len().div_ceil(200))) {
            raw.inject(&control(0x20, &[], raw.server_id, Some(id), piece));
        }
        assert!(raw.server.sent.len() > 1000, "no ServerHello");
        raw.server
    }),
    row(18, "a handshake message over 64 KiB", Refuse("tls"), || {
        let mut raw = Raw::reset();
        for id in 1..120 {
            // A ClientHello of 16 MiB, one record of 1000 bytes after the other.
            let head = if id == 1 { [1, 0xff, 0xff, 0xff] } else { [0; 4] };
            let record = [&[0x16, 3, 1, 3, 0xe8], head.as_slice(), &[0; 996]].concat();
            raw.inject(&control(0x20, &[], raw.server_id, Some(id), &record));
        }
        raw.server
    }),
    row(19, "tls-auth: wrong key", Close("wrapping"), || fed(
        tls_auth(), &first_packet(tls_auth_client(StaticKey::from_bytes([1; 256]), KeyDirection::One)),
    )),
    row(19, "tls-auth: wrong direction", Close("wrapping"), || fed(
        tls_auth(), &first_packet(tls_auth_client(static_key(), KeyDirection::Zero)),
    )),
    row(19, "tls-auth: none at all", Close("wrapping"), || fed(tls_auth(), &reset())),
    row(19, "tls-crypt: wrong key", Close("wrapping"), || fed(
        tls_crypt(), &first_packet(ClientWrapping::TlsCrypt(StaticKey::from_bytes([1; 256]))),
    )),
    row(19, "tls-crypt: 48 bytes", Close("wrapping"), || fed(tls_crypt(), &framed(&[0x38; 48]))),
    row(20, "a wrapped packet again", Close("wrapping"), || fed(
        tls_crypt(), &first_packet(ClientWrapping::TlsCrypt(static_key())).repeat(2),
    )),
    row(20, "time goes back", Close("wrapping"), || {
        let mut server = Raw::server(tls_crypt());
        for seconds in [2_000_000_000, 1_000_000_000] {
            let config = ClientConfig { wrapping: ClientWrapping::TlsCrypt(static_key()), ..PKI.client_config() };
            let start = cloudlink_proto::openvpn::Start { seed: [2; 32], unix_seconds: seconds };
            let session = cloudlink_proto::openvpn::Session::client(beginning(), Arc::new(config), start);
            server.feed(beginning(), &End::new(session).drain(), usize::MAX);
        }
        server
    }),
    row(21, "WKc length 0", Close("wrapping"), || v2_with_length(0, 400)),
    row(21, "WKc length 289", Close("wrapping"), || v2_with_length(289, 400)),
    row(21, "WKc length 1025", Close("wrapping"), || v2_with_length(1025, 2000)),
    row(21, "WKc longer than the packet", Close("wrapping"), || v2_with_length(500, 400)),
    row(21, "WKc length covers the opcode", Close("wrapping"), || v2_with_length(402, 400)),
    row(21, "WKc with a wrong tag", Close("wrapping"), || v2_with_length(350, 400)),
    row(21, "WKc with metadata of an unknown type", Open, || {
        fed(with_wrapping(ServerWrapping::TlsCryptV2(v2_server_key())), &v2_first_packet(&[0xee, 1, 2]))
    }),
    row(22, "another WKc", Close("wrapping"), || {
        let mut server = fed(with_wrapping(ServerWrapping::TlsCryptV2(v2_server_key())), &v2_first_packet(b""));
        let other = v2_server_key().issue(StaticKey::from_bytes([8; 256]), b"").unwrap();
        server.feed(beginning(), &first_packet(ClientWrapping::TlsCryptV2(other)), usize::MAX);
        server
    }),
    row(22, "CONTROL_WKC_V1 unasked", Close("protocol"), || {
        after_reset(|raw| control(0x58, &[0], raw.server_id, Some(1), &[0; 400]))
    }),
    row(23, "a TLS ClientHello", Close("framing"), || {
        assert_eq!(sniff(b"\x16\x03\x01"), Sniffed::Tls);
        first(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    }),
    row(23, "HTTP", Close("framing"), || {
        assert_eq!(sniff(b"GET"), Sniffed::Junk);
        first(b"GET / HTTP/1.1\r\n\r\n")
    }),
    row(24, "TLS 1.2 at most", Refuse("tls"), || after_reset(|raw| {
        control(0x20, &[0], raw.server_id, Some(1), &tls12_client_hello())
    })),
    row(24, "no client certificate", Refuse("tls"), || {
        let mut raw = Raw::with(PKI.client_tls(None));
        raw.pump();
        raw.server
    }),
    row(24, "a certificate of another authority", Refuse("tls"), || {
        let stranger = Pki::create("Other CA");
        let mut raw = Raw::with(PKI.client_tls(Some(&stranger.device)));
        raw.pump();
        raw.server
    }),
    row(24, "an expired certificate", Refuse("tls"), || {
        let mut raw = Raw::with(PKI.client_tls(Some(&PKI.expired_device)));
        raw.pump();
        raw.server
    }),
    row(24, "a revoked certificate", Refuse("tls"), || {
        let mut pair = Pair::new(ServerConfig::new(PKI.server_tls_revoking()), PKI.client_config());
        pair.settle();
        assert!(pair.client.closed.is_some(), "not told");
        pair.server
    }),
    row(24, "a server's certificate", Refuse("tls"), || {
        let mut raw = Raw::with(PKI.client_tls(Some(&PKI.server)));
        raw.pump();
        raw.server
    }),
    row(25, "a TLS alert", Close("peer_tls"), || {
        after_reset(|raw| control(0x20, &[0], raw.server_id, Some(1), &[0x15, 3, 3, 0, 2, 2, 48]))
    }),
    row(26, "a flood of records", Close("flood"), || {
        let mut raw = with_peer_info(PEER_2_6);
        for _ in 0..300 {
            if raw.server.closed.is_none() {
                raw.write(b"x\0");
                raw.pump();
            }
        }
        raw.server
    }),
    row(27, "key method 1 inside TLS", Close("control_message"), || {
        let mut message = key_exchange(OPTIONS.as_bytes(), b"");
        message[4] = 1;
        key_message(&message)
    }),
    row(27, "a truncated key exchange", Close("control_message"), || key_message(&key_exchange(b"V4", b"")[..100])),
    row(27, "a string past the end", Close("control_message"), || {
        let mut message = key_exchange(b"V4", b"");
        message[117] = 0x01;
        key_message(&message)
    }),
    row(28, "a string without its NUL", Close("control_message"), || {
        let mut message = key_exchange(b"V4", b"IV_PROTO=2");
        *message.last_mut().unwrap() = b'x';
        key_message(&message)
    }),
    row(28, "a string with a NUL inside", Close("control_message"), || key_message(&key_exchange(b"V\x004", b""))),
    row(29, "options over 512 bytes", Close("control_message"), || key_message(&key_exchange(&[b'x'; 512], b""))),
    row(29, "peer info over 4096 bytes", Close("control_message"), || {
        key_message(&key_exchange(b"V4", &[b'x'; 4096]))
    }),
    row(30, "500 keys, some twice, no newline at the end", Open, || {
        let unknown: String = (0..500).map(|key| format!("X{key}=1\n")).collect();
        let raw = with_peer_info(&format!("IV_CIPHERS=AES-128-GCM\nIV_CIPHERS=nonsense\n{}IV_X=1", &unknown[..3000]));
        assert_eq!(raw.server.peer_info().unwrap().ciphers.as_deref(), Some(b"AES-128-GCM".as_slice()));
        raw.server
    }),
    row(31, "control characters in the peer info", Open, || {
        let raw = with_peer_info("IV_VER=\x1b[31m\r\x07\nIV_NCP=2\n");
        assert_eq!(raw.server.peer_info().unwrap().version, b"\x1b[31m\r\x07");
        raw.server
    }),
    row(32, "IV_PROTO in hex", Open, || {
        let raw = with_peer_info("IV_PROTO=0x3de\nIV_NCP=2\n");
        assert_eq!(raw.server.peer_info().unwrap().abilities.bits(), 0);
        raw.server
    }),
    row(33, "no ciphers", Refuse("refused"), || {
        let raw = with_peer_info("IV_CIPHERS=\nIV_PROTO=990");
        let heard = String::from_utf8_lossy(&raw.heard).into_owned();
        assert!(heard.contains("AUTH_FAILED,Data channel cipher negotiation failed (no shared cipher)\0"), "{heard}");
        raw.server
    }),
    row(33, "10 kB of ciphers", Close("control_message"), || {
        key_message(&key_exchange(b"V4", format!("IV_CIPHERS={}", "A:".repeat(5000)).as_bytes()))
    }),
    row(33, "4 kB of ciphers, none known", Refuse("refused"), || {
        with_peer_info(&format!("IV_CIPHERS={}", "A:".repeat(2000))).server
    }),
    row(33, "only CBC", Refuse("refused"), || with_peer_info("IV_CIPHERS=AES-256-CBC").server),
    row(34, "compression that cannot be turned off", Refuse("refused"), || {
        let raw = Raw::keys(&format!("{OPTIONS},comp-lzo"), "IV_NCP=2");
        assert!(String::from_utf8_lossy(&raw.heard).contains("AUTH_FAILED,Compression is not supported"));
        raw.server
    }),
    row(35, "bytes behind the key exchange", Close("control_message"), || {
        key_message(&[key_exchange(b"V4", b"").as_slice(), b"more"].concat())
    }),
    row(35, "a message before the server's keys", Close("protocol"), || {
        let mut raw = Raw::tls();
        raw.write(&key_exchange(OPTIONS.as_bytes(), PEER_2_6.as_bytes()));
        raw.write(b"PUSH_REQUEST\0");
        raw.pump();
        raw.server
    }),
    row(36, "never acknowledges the server's keys", Close("deadline"), || {
        let mut raw = Raw::tls();
        raw.write(&key_exchange(OPTIONS.as_bytes(), PEER_2_6.as_bytes()));
        raw.pump_once();
        raw.server.session.admit(raw.now, &admission()).unwrap();
        raw.server.timeout(beginning() + Duration::from_secs(60));
        raw.server
    }),
    row(36, "never asks for its push", Close("deadline"), || {
        let mut raw = with_peer_info("IV_PROTO=2\nIV_NCP=2");
        assert_eq!(raw.server.session.state(), State::AwaitAdmission);
        raw.server.timeout(beginning() + Duration::from_secs(60));
        raw.server
    }),
    row(37, "10,000 push requests", Close("flood"), || {
        let raw = push_requests(10_000, Duration::ZERO);
        assert_eq!(pushes(&raw), 1);
        raw.server
    }),
    row(37, "a push request every 5 s for an hour", Open, || {
        let raw = push_requests(720, Duration::from_secs(5));
        // The first one at once, then one each 30 s.
        assert_eq!(pushes(&raw), 120);
        raw.server
    }),
    row(37, "10,000 push requests that nobody decides about", Close("flood"), || {
        let mut raw = Raw::tls();
        raw.write(&key_exchange(OPTIONS.as_bytes(), b"IV_PROTO=2\nIV_NCP=2"));
        raw.pump();
        ask_for_push(&mut raw, 10_000, Duration::ZERO);
        assert_eq!(pushes(&raw), 0);
        raw.server
    }),
    row(38, "a message without NUL", Open, || control_message(b"EXIT")),
    row(38, "a message over 2048 bytes", Close("control_message"), || control_message(&[b'x'; 2049])),
    row(39, "an unknown message", Open, || {
        let server = control_message(b"HELLO\0\0\xff\xfe\0CR_RESPONSE,eA==\0");
        assert!(server.session.counters().control_messages >= 3);
        server
    }),
    row(40, "data before a key is active", Open, || {
        let server = after_reset(|_| framed(&[0x48; 60]));
        assert_eq!(server.session.counters().early_data, 1);
        server
    }),
    row(40, "much data before a key is active", Close("flood"), || after_reset(|_| framed(&[0x48; 60]).repeat(2000))),
    row(41, "data with an unknown key id", Open, || {
        let server = changed(v2_client(), |packet| packet[0] |= 5);
        assert_eq!(server.session.counters().unknown_key, 1);
        server
    }),
    row(42, "data on the old key after a soft reset", Open, || {
        let mut pair = plain_pair(None);
        pair.now += Duration::from_secs(5);
        let reset = in_its_name(&pair, 0x19, 0);
        pair.server.feed(pair.now, &reset, usize::MAX);
        let frame = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 1));
        pair.server.feed(pair.now, &frame, usize::MAX);
        assert_eq!(pair.server.packets.len(), 1);
        pair.server
    }),
    row(43, "data shorter than header and tag", Close("data"), || {
        for (client, bytes_min) in [(v1_client(), 21), (v2_client(), 24), (PKI.client_config(), 28)] {
            for bytes in 1..bytes_min {
                let server = changed(client.clone(), |packet| packet.truncate(bytes));
                assert_eq!(answer(&server), Close("data"), "{bytes} of {bytes_min} bytes");
            }
        }
        changed(v2_client(), |packet| packet.truncate(23))
    }),
    row(43, "data of three bytes", Close("data"), || changed(v2_client(), |packet| packet.truncate(3))),
    row(44, "a bad tag", Close("data"), || changed(v2_client(), |packet| packet[10] ^= 1)),
    row(45, "packet id 0", Close("data"), || changed(v2_client(), |packet| packet[4..8].fill(0))),
    row(45, "a packet again", Close("data"), || {
        let mut pair = live();
        let frame = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 1));
        pair.server.feed(pair.now, &frame.repeat(2), usize::MAX);
        assert_eq!(pair.server.packets.len(), 1);
        pair.server
    }),
    row(45, "a packet that is too old", Close("data"), || {
        let mut pair = live();
        let frames: Vec<_> = (0..66).map(|mark| pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, mark))).collect();
        pair.server.feed(pair.now, &frames[65], usize::MAX);
        assert_eq!(pair.server.packets.len(), 1, "a jump forward is fine");
        pair.server.feed(pair.now, &frames[0], usize::MAX);
        pair.server
    }),
    row(48, "epoch 0", Close("data"), || changed(PKI.client_config(), |packet| packet[4..6].fill(0))),
    row(48, "epoch 6 after 1", Close("data"), || changed(PKI.client_config(), |packet| packet[5] = 6)),
    row(48, "epoch 65535", Close("data"), || changed(PKI.client_config(), |packet| packet[4..6].fill(0xff))),
    row(48, "epoch 5 after 1, forged", Close("data"), || changed(PKI.client_config(), |packet| packet[5] = 5)),
    row(49, "soft reset: not the next key id", Close("renegotiation"), || soft_reset(None, 2)),
    row(49, "soft reset: the current key id", Close("renegotiation"), || soft_reset(Some(Duration::from_secs(10)), 1)),
    row(49, "soft reset: key id 0", Close("renegotiation"), || soft_reset(Some(Duration::from_secs(10)), 0)),
    row(49, "soft reset during a renegotiation", Close("renegotiation"), || {
        let mut pair = plain_pair(None);
        pair.now += Duration::from_secs(5);
        let resets = [in_its_name(&pair, 0x19, 0), in_its_name(&pair, 0x1a, 0)].concat();
        pair.server.feed(pair.now, &resets, usize::MAX);
        pair.server
    }),
    row(49, "soft reset before the first key", Close("renegotiation"), || {
        after_reset(|_| control(0x19, &[], [0; 8], Some(0), &[]))
    }),
    row(50, "a soft reset a second after the last one", Close("flood"), || {
        let mut pair = plain_pair(Some(Duration::from_secs(10)));
        let reset = in_its_name(&pair, 0x1a, 0);
        pair.server.feed(pair.now, &reset, usize::MAX);
        pair.server
    }),
    row(51, "renegotiation with another certificate", Close("certificate_changed"), || {
        let mut pair = live_with(ClientConfig { renegotiate_every: Some(Duration::from_secs(10)), ..PKI.client_config() });
        let mut config = PKI.client_config();
        config.tls = PKI.client_tls(Some(&PKI.other_device));
        pair.client.session.set_client_config(Arc::new(config));
        pair.now += Duration::from_secs(5);
        pair.client.session.renegotiate(pair.now);
        pair.settle();
        pair.server
    }),
    row(51, "renegotiation with a certificate revoked since", Refuse("tls"), || {
        let mut pair = live();
        pair.server.session.set_server_config(Arc::new(ServerConfig::new(PKI.server_tls_revoking())));
        pair.now += Duration::from_secs(5);
        pair.client.session.renegotiate(pair.now);
        pair.settle();
        pair.server
    }),
    row(52, "a renegotiation that stalls", Close("deadline"), || {
        let mut pair = plain_pair(None);
        pair.now += Duration::from_secs(5);
        let reset = in_its_name(&pair, 0x19, 0);
        pair.server.feed(pair.now, &reset, usize::MAX);
        pair.server.timeout(pair.now + Duration::from_secs(59));
        assert!(pair.server.closed.is_none());
        pair.server.timeout(pair.now + Duration::from_secs(60));
        pair.server
    }),
    row(53, "CONTROL on the retired key id", Close("protocol"), || {
        let mut pair = plain_pair(Some(Duration::from_secs(10)));
        let message = in_its_name(&pair, 0x20, 9);
        pair.server.feed(pair.now, &message, usize::MAX);
        pair.server
    }),
    row(54, "spoofed sources", Open, || {
        for source in [[10, 77, 0, 3], [10, 77, 0, 1], [0; 4], [255; 4], [224, 0, 0, 1]] {
            assert_eq!(inner(&packet(source.into(), SERVER_IP, 1)).session.counters().source, 1);
        }
        inner(&packet(SERVER_IP, SERVER_IP, 1))
    }),
    row(55, "a link-local source", Open, || {
        let mut packet = vec![0; 48];
        (packet[0], packet[5], packet[6], packet[8], packet[9]) = (0x60, 8, 58, 0xfe, 0x80);
        let server = inner(&packet);
        assert_eq!((server.session.counters().link_local, server.session.counters().source), (1, 0));
        server
    }),
    row(56, "neither IPv4 nor IPv6, or not whole", Open, || {
        for bytes in [&[0x55; 40][..], &[0x45; 19], &[0x60; 39], &[]] {
            assert_eq!(inner(bytes).session.counters().malformed, 1);
        }
        inner(&[0x45; 60])
    }),
    row(57, "a fragment", Open, || {
        let mut fragment = packet(CLIENT_IP, SERVER_IP, 1);
        fragment[6] = 0x20;
        let server = inner(&fragment);
        assert_eq!(server.session.counters().fragments, 1);
        server
    }),
    row(58, "a packet larger than the MTU, out", Open, || {
        let mut pair = live();
        let mut buffer = vec![0; HEADROOM + 1501 + TAILROOM];
        assert_eq!(pair.server.session.seal(pair.now, &mut buffer, 1501), Err(SealError::TooLarge));
        pair.exchange_packets(1);
        pair.server
    }),
    row(59, "almost a ping", Open, || {
        for bytes in [[0x2a; 16].as_slice(), &[ping().as_slice(), &[0]].concat(), &occ(7), &occ(255)] {
            let counters = *inner(bytes).session.counters();
            assert_eq!(counters.malformed + counters.occ, 1);
        }
        let server = inner(&ping());
        assert_eq!(server.session.counters().malformed, 0);
        server
    }),
    row(60, "OCC request and MTU tests", Open, || {
        for kind in 0..6 {
            assert_eq!(inner(&occ(kind)).session.counters().occ, 1);
        }
        inner(&occ(0))
    }),
    row(60, "OCC exit", Close("peer_exit"), || inner(&occ(6))),
    row(60, "EXIT", Close("peer_exit"), || control_message(b"EXIT\0")),
    row(61, "a compression byte in front", Open, || {
        for byte in [0xfa, 0xfb, 0x66, 0x69, 0x50] {
            let framed = [&[byte], packet(CLIENT_IP, SERVER_IP, 1).as_slice()].concat();
            assert_eq!(inner(&framed).session.counters().malformed, 1);
        }
        inner(&[0xfa; 65])
    }),
    row(62, "a peer that acknowledges nothing any more", Close("deadline"), || {
        // The push is not acknowledged: nothing of the client's arrives but data.
        let mut raw = with_peer_info("IV_PROTO=2\nIV_NCP=2");
        raw.write(b"PUSH_REQUEST\0");
        raw.pump_once();
        assert_eq!(raw.server.session.state(), State::Live);
        raw.server.timeout(beginning() + Duration::from_secs(60));
        raw.server
    }),
    row(62, "a peer that reads nothing but asks and asks", Close("flood"), || {
        let mut raw = with_peer_info(PEER_2_6);
        let before = raw.server.sent.len();
        for _ in 0..10_000 {
            let again = control(0x20, &[0], raw.server_id, Some(1), b"x");
            raw.server.feed(raw.now, &again, usize::MAX);
        }
        // What waits for it is bounded whatever it does.
        assert!(raw.server.sent.len() - before < 16 * 1024, "{} bytes", raw.server.sent.len() - before);
        raw.server
    }),
    row(63, "the same certificate twice: the owner ends the older session", Refuse("ended"), || {
        let (mut old, mut new) = (live(), live());
        old.server.session.end(old.now, &Farewell::Restart(String::new()));
        old.settle();
        assert!(matches!(old.client.closed, Some(CloseReason::Restart(_))), "{:?}", old.client.closed);
        new.exchange_packets(1);
        old.server
    }),
];

#[test]
fn every_row_gets_its_answer() {
    let mut wrong = Vec::new();
    for Row { number, what, expected, play } in ROWS {
        let end = play();
        let answer = answer(&end);
        if answer != *expected {
            wrong.push(format!("row {number}, {what}: {answer:?} instead of {expected:?}: {:?}", end.closed));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// CVE-2026-12932 and others: what a stranger leaves behind is nothing.
#[test]
fn strangers_leave_no_memory_behind() {
    const MARK: &str = "OPENVPN_TEST_ALONE";
    if std::env::var_os(MARK).is_none() {
        // Other tests beside this one would be measured, too.
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hostile::strangers_leave_no_memory_behind"])
            .env(MARK, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let resident_bytes = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let config = with_wrapping(ServerWrapping::TlsCryptV2(v2_server_key()));
    let mut packet = v2_first_packet(b"\0metadata");
    let wrong = packet.len() - 100;
    packet[wrong] ^= 1;
    let knock = |count| {
        for _ in 0..count {
            assert_eq!(answer(&fed(config.clone(), &packet)), Close("wrapping"));
        }
    };
    knock(1000);
    let before = resident_bytes();
    knock(100_000);
    // A leak of one packet each would be 40 MB.
    let after = resident_bytes();
    assert!(after < before + 1_000_000, "{before} bytes before, {after} after");
}

/// The rows of the document: number, and what is to be answered.
fn documented() -> Vec<(u8, String)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/OPENVPN.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n## 10. Hostile and odd input\n").unwrap();
    let (section, _) = section.split_once("\n## 11.").unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [number, _, answer] = cells.as_slice() else { panic!("not a row: {line}") };
        (number.trim_start_matches("| ").parse().unwrap(), (*answer).to_owned())
    };
    section.lines().filter(|line| line.starts_with("| ")).skip(1).map(row).collect()
}

#[test]
fn the_table_is_that_of_the_document() {
    let documented = documented();
    let numbers: Vec<u8> = documented.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=63).collect::<Vec<u8>>());
    let mut wrong = Vec::new();
    for (number, answer) in &documented {
        let here: Vec<&Row> = ROWS.iter().filter(|row| row.number == *number).collect();
        match ELSEWHERE.iter().find(|(elsewhere, _)| elsewhere == number) {
            Some((_, test)) => assert!(DATA_TESTS.contains(&format!("fn {test}(")), "row {number} has no test {test}"),
            None => assert!(!here.is_empty(), "row {number} has no test"),
        }
        for row in here {
            let word = match row.expected {
                Close(_) => "CLOSE",
                Refuse(_) => "REFUSE",
                Open => continue,
            };
            if !answer.contains(word) {
                wrong.push(format!("row {number}, {}: {word}, but documented as {answer}", row.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ROWS.iter().all(|row| numbers.contains(&row.number)), "a row that is not documented");
}

/// Rows that need keys which no test has from outside, and the tests that have them.
const ELSEWHERE: &[(u8, &str)] =
    &[(46, "packet_ids_never_wrap"), (47, "both_old_formats_are_taken_whatever_was_agreed")];
const DATA_TESTS: &str = include_str!("../../src/openvpn/data_tests.rs");

fn with_session(session: [u8; 8], mut frame: Vec<u8>) -> Vec<u8> {
    frame[3..11].copy_from_slice(&session);
    frame
}

fn reset_cut(bytes: usize) -> Vec<u8> {
    let packet = frames(&reset()).remove(0);
    framed(&packet[..packet.len() - bytes])
}

fn client_hello() -> Vec<u8> {
    let name = SERVER_NAME.try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(PKI.client_tls(Some(&PKI.device)), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    hello
}

/// One cipher suite, one group, one signature scheme, and no word of TLS 1.3.
fn tls12_client_hello() -> Vec<u8> {
    let extensions = [[0, 10, 0, 4, 0, 2, 0, 0x1d], [0, 13, 0, 4, 0, 2, 4, 3]].concat();
    let length = [0, u8::try_from(extensions.len()).unwrap()];
    let body = [&[3, 3], [7; 32].as_slice(), &[0, 0, 2, 0xc0, 0x2b, 1, 0], &length, &extensions].concat();
    let bytes = u8::try_from(body.len()).unwrap();
    [&[0x16, 3, 1, 0, bytes + 4, 1, 0, 0, bytes], body.as_slice()].concat()
}

fn tls_auth() -> ServerConfig {
    with_wrapping(ServerWrapping::TlsAuth {
        key: static_key(),
        direction: KeyDirection::Zero,
        digest: cloudlink_proto::openvpn::AuthDigest::Sha1,
    })
}

fn tls_auth_client(key: StaticKey, direction: KeyDirection) -> ClientWrapping {
    ClientWrapping::TlsAuth { key, direction, digest: cloudlink_proto::openvpn::AuthDigest::Sha1 }
}

fn tls_crypt() -> ServerConfig {
    with_wrapping(ServerWrapping::TlsCrypt(static_key()))
}

fn ping() -> Vec<u8> {
    vec![0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48]
}

fn occ(kind: u8) -> Vec<u8> {
    let magic = [0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c];
    [magic.as_slice(), &[kind]].concat()
}
