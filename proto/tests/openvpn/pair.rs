//! Our server and our client against each other, in virtual time.

use std::time::Duration;

use cloudlink_proto::openvpn::{
    Cipher, ClientConfig, CloseReason, Farewell, Format, Refusal, SealError, ServerConfig, State, Waited,
};
use rstest::rstest;

use crate::wire::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn every_wrapping_cipher_derivation_and_format_works() {
    for (name, server_wrapping, client_wrapping) in wrappings() {
        for cipher in Cipher::ALL {
            for (has_ekm, has_epoch) in [(true, true), (true, false), (false, true), (false, false)] {
                let server = ServerConfig {
                    wrapping: server_wrapping.clone(),
                    ciphers: vec![cipher],
                    has_tls_key_export: has_ekm,
                    has_epoch,
                    ..PKI.server_config()
                };
                let client = ClientConfig { wrapping: client_wrapping.clone(), ..PKI.client_config() };
                let mut pair = Pair::new(server, client);
                pair.connect();
                for agreed in [pair.server.session.agreed().unwrap(), pair.client.session.agreed().unwrap()] {
                    assert_eq!((agreed.cipher, agreed.is_tls_ekm), (cipher, has_ekm), "{name}");
                    assert_eq!(matches!(agreed.format, Format::Epoch { .. }), has_epoch, "{name}");
                    assert!(agreed.is_dynamic_tls_crypt);
                }
                pair.exchange_packets(1);
            }
        }
    }
}

#[rstest]
#[case::whole(usize::MAX)]
#[case::bytes(1)]
#[case::odd(7)]
#[case::small(100)]
fn any_cut_of_the_stream_works(#[case] cut: usize) {
    let mut pair = Pair::standard();
    pair.cut = cut;
    pair.connect();
    for mark in 0..20 {
        pair.exchange_packets(mark);
    }
}

#[rstest]
fn renegotiation_loses_no_packet(
    #[values(None, Some(seconds(10)))] by_client: Option<Duration>,
    #[values(None, Some(seconds(10)))] by_server: Option<Duration>,
    #[values(true, false)] has_dynamic_tls_crypt: bool,
    #[values(true, false)] has_ekm: bool,
    #[values(0, 3, 4)] wrapping: usize,
) {
    let (_, server_wrapping, client_wrapping) = wrappings().swap_remove(wrapping);
    let server = ServerConfig {
        wrapping: server_wrapping,
        renegotiate_every: by_server,
        has_dynamic_tls_crypt,
        has_tls_key_export: has_ekm,
        ..PKI.server_config()
    };
    let client = ClientConfig { wrapping: client_wrapping, renegotiate_every: by_client, ..PKI.client_config() };
    let mut pair = Pair::new(server, client);
    pair.connect();
    for tick in 0..120_u8 {
        pair.exchange_packets(tick);
        pair.pass(seconds(1));
    }
    let rekeyed = pair.server.rekeyed();
    assert_eq!(rekeyed, pair.client.rekeyed());
    if by_client.or(by_server).is_some() {
        assert_eq!(rekeyed[..9], [1, 2, 3, 4, 5, 6, 7, 1, 2]);
    } else {
        assert!(rekeyed.is_empty());
    }
    assert_eq!((pair.server.closed, pair.client.closed), (None, None));
}

#[test]
fn packets_in_flight_during_a_renegotiation_arrive() {
    let mut pair =
        Pair::new(PKI.server_config(), ClientConfig { renegotiate_every: Some(seconds(10)), ..PKI.client_config() });
    pair.connect();
    pair.now += seconds(10);
    // One flight of bytes at a time, with packets before and behind it each way.
    let mut to_server = pair.client.timeout(pair.now);
    let mut to_client = Vec::new();
    for sent in 0..8 {
        for (from, into, source, destination) in [
            (&mut pair.client, &mut to_server, CLIENT_IP, SERVER_IP),
            (&mut pair.server, &mut to_client, SERVER_IP, CLIENT_IP),
        ] {
            let mut all = from.seal(pair.now, &packet(source, destination, sent));
            all.extend(std::mem::take(into));
            all.extend(from.seal(pair.now, &packet(source, destination, sent)));
            *into = all;
        }
        let answer = pair.server.feed(pair.now, &std::mem::take(&mut to_server), 500);
        let question = pair.client.feed(pair.now, &std::mem::take(&mut to_client), 500);
        (to_server, to_client) = (question, answer);
        pair.now += seconds(1);
    }
    assert_eq!(pair.server.rekeyed(), [1]);
    assert_eq!(pair.client.rekeyed(), [1]);
    assert_eq!((pair.server.packets.len(), pair.client.packets.len()), (16, 16));
}

#[test]
fn resets_of_both_sides_at_once_are_one_renegotiation() {
    let mut pair = Pair::new(
        ServerConfig { renegotiate_every: Some(seconds(10)), ..PKI.server_config() },
        ClientConfig { renegotiate_every: Some(seconds(10)), ..PKI.client_config() },
    );
    pair.connect();
    pair.pass(seconds(9));
    pair.now += seconds(2);
    let to_server = pair.client.timeout(pair.now);
    let to_client = pair.server.timeout(pair.now);
    assert!(!to_server.is_empty() && !to_client.is_empty());
    pair.to_server.extend(to_server);
    pair.to_client.extend(to_client);
    pair.settle();
    assert_eq!((pair.server.rekeyed(), pair.client.rekeyed()), (vec![1], vec![1]));
    pair.exchange_packets(1);
}

#[test]
fn one_renegotiation_may_follow_the_other_in_the_same_segment() {
    let mut pair = Pair::standard();
    pair.connect();
    pair.server.session.renegotiate(pair.now);
    // The client is through, but what it said last has not arrived.
    while pair.client.rekeyed().is_empty() {
        let bytes = std::mem::take(&mut pair.to_server);
        pair.to_client.extend(pair.server.feed(pair.now, &bytes, usize::MAX));
        pair.to_client.extend(pair.server.drain());
        let bytes = std::mem::take(&mut pair.to_client);
        pair.to_server.extend(pair.client.feed(pair.now, &bytes, usize::MAX));
    }
    assert!(pair.server.rekeyed().is_empty());
    // By the time it is allowed to, the client starts the next one; the server's timers come late.
    pair.now += cloudlink_proto::openvpn::SWITCH_AFTER;
    pair.to_server.extend(pair.client.timeout(pair.now));
    pair.client.session.renegotiate(pair.now);
    pair.settle();
    assert_eq!((pair.server.rekeyed(), pair.client.rekeyed()), (vec![1, 2], vec![1, 2]));
    pair.exchange_packets(1);
}

#[test]
fn a_renegotiation_that_stalls_ends_the_session_after_a_minute() {
    let mut pair =
        Pair::new(ServerConfig { renegotiate_every: Some(seconds(10)), ..PKI.server_config() }, PKI.client_config());
    pair.connect();
    let soft_reset_at = pair.now + seconds(10);
    pair.now = soft_reset_at;
    pair.server.timeout(pair.now);
    // The client never sees it, and goes on with the old key.
    for _ in 0..59 {
        pair.now += seconds(1);
        let frame = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 1));
        pair.server.feed(pair.now, &frame, 1000);
        pair.server.timeout(pair.now);
        assert_eq!(pair.server.packets.pop().map(|packet| packet.len()), Some(64));
    }
    pair.now += seconds(1);
    pair.server.timeout(pair.now);
    assert_eq!(pair.server.closed, Some(CloseReason::Deadline(Waited::Renegotiation)));
}

#[test]
fn an_old_key_is_received_with_until_it_dies() {
    let mut pair =
        Pair::new(PKI.server_config(), ClientConfig { renegotiate_every: Some(seconds(4000)), ..PKI.client_config() });
    pair.connect();
    pair.pass(seconds(3999));
    let early = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 1));
    let late = pair.client.seal(pair.now, &packet(CLIENT_IP, SERVER_IP, 2));
    pair.pass(seconds(2));
    assert_eq!(pair.server.rekeyed(), [1]);
    pair.server.feed(pair.now, &early, 1000);
    assert_eq!(pair.server.packets.len(), 1);
    pair.pass(seconds(3601));
    pair.server.feed(pair.now, &late, 1000);
    assert_eq!(pair.server.packets.len(), 1);
    assert_eq!(pair.server.session.counters().unknown_key, 1);
    assert_eq!(pair.server.closed, None);
}

#[test]
fn pings_keep_an_idle_session_up_and_their_absence_ends_it() {
    let mut pair = Pair::standard();
    pair.connect();
    pair.pass(seconds(3600));
    assert_eq!((&pair.server.closed, &pair.client.closed), (&None, &None));
    assert!(pair.server.packets.is_empty() && pair.client.packets.is_empty(), "pings are for the sessions only");

    pair.server.timeout(pair.now + seconds(119));
    assert_eq!(pair.server.closed, None);
    pair.server.timeout(pair.now + seconds(121));
    assert_eq!(pair.server.closed, Some(CloseReason::Deadline(Waited::SignOfLife)));
    pair.client.timeout(pair.now + seconds(61));
    assert_eq!(pair.client.closed, Some(CloseReason::Deadline(Waited::SignOfLife)));
}

#[test]
fn a_client_hears_why_it_is_refused_by_the_owner() {
    let mut pair = Pair::standard();
    pair.decision = Decision::Refuse("device\nis blocked".to_owned());
    pair.settle();
    let Some(CloseReason::AuthFailed(reason)) = &pair.client.closed else { panic!("{:?}", pair.client.closed) };
    assert_eq!(reason.as_str(), "deviceis blocked");
    pair.pass(seconds(6));
    assert_eq!(pair.server.closed, Some(CloseReason::Refused(Refusal::Denied("device\nis blocked".to_owned()))));
}

#[rstest]
#[case::no_cipher("", "IV_CIPHERS=AES-256-CBC\nIV_PROTO=990\n", "no shared cipher")]
#[case::compression(",comp-lzo", "IV_NCP=2\nIV_PROTO=2\n", "Compression is not supported")]
#[case::ethernet(",dev-type tap", PEER_2_6, "Only dev tun")]
fn a_client_hears_why_it_cannot_be_served(#[case] option: &str, #[case] info: &str, #[case] expected: &str) {
    let options = format!("{OPTIONS}{option}").into_bytes();
    let client = ClientConfig { options, peer_info: info.into(), ..PKI.client_config() };
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.settle();
    let Some(CloseReason::AuthFailed(reason)) = &pair.client.closed else { panic!("{:?}", pair.client.closed) };
    assert!(reason.as_str().contains(expected), "{reason}");
    assert!(pair.server.peer_info().is_none(), "the owner is not asked");
    pair.pass(seconds(6));
    assert!(matches!(pair.server.closed, Some(CloseReason::Refused(_))), "{:?}", pair.server.closed);
}

#[test]
fn a_client_with_compression_is_told_to_leave_the_framing_away() {
    let options = format!("{OPTIONS},comp-lzo").into_bytes();
    let client = ClientConfig { options, peer_info: PEER_2_6.into(), ..PKI.client_config() };
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.connect();
    assert!(pair.client.pushed().unwrap().options.contains(&"compress stub-v2".to_owned()));
    pair.exchange_packets(1);
}

#[test]
fn nothing_is_pushed_before_the_owner_has_decided() {
    let client = ClientConfig { push_request_every: Some(seconds(1)), ..PKI.client_config() };
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.decision = Decision::Wait;
    pair.pass(seconds(30));
    assert!(pair.client.pushed().is_none());
    assert_eq!(pair.server.session.state(), State::AwaitAdmission);
    let mut buffer = vec![0; 200];
    assert_eq!(pair.server.session.seal(pair.now, &mut buffer, 20), Err(SealError::NotLive));
    pair.decision = Decision::Admit(admission());
    pair.settle();
    assert!(pair.client.pushed().is_some());
    pair.exchange_packets(1);
}

#[test]
fn an_owner_that_never_decides_costs_the_handshake() {
    let mut pair = Pair::standard();
    pair.decision = Decision::Wait;
    pair.pass(seconds(61));
    assert_eq!(pair.server.closed, Some(CloseReason::Deadline(Waited::Handshake)));
    assert_eq!(pair.client.closed, Some(CloseReason::Deadline(Waited::Handshake)));
}

#[test]
fn a_push_of_many_routes_is_continued() {
    let mut pair = Pair::standard();
    let options: Vec<String> = (0..200).map(|net| format!("route 10.{net}.0.0 255.255.0.0")).collect();
    pair.decision = Decision::Admit(cloudlink_proto::openvpn::Admission { options: options.clone(), ..admission() });
    pair.connect();
    let pushed = pair.client.pushed().unwrap();
    assert!(options.iter().all(|option| pushed.options.contains(option)));
    // One message starts one packet.
    assert!(frames(&pair.server.sent).iter().all(|frame| frame.len() <= 1222));
    pair.exchange_packets(1);
}

#[rstest]
#[case(Farewell::Restart("[N]moved".to_owned()), "the server asks to reconnect: \"[N]moved\"")]
#[case(Farewell::Halt(String::new()), "the server asks to stop: no reason given")]
#[case(Farewell::AuthFailed("gone".to_owned()), "the server refused: \"gone\"")]
#[case(
    Farewell::AuthFailedTemporarily { backoff_seconds: 7, text: "busy".to_owned() },
    "the server refused: \"TEMP[backoff 7]:busy\""
)]
fn a_client_hears_how_a_server_ends(#[case] farewell: Farewell, #[case] expected: &str) {
    let mut pair = Pair::standard();
    pair.connect();
    pair.server.session.end(pair.now, &farewell);
    pair.settle();
    assert_eq!(pair.client.closed.as_ref().map(ToString::to_string).as_deref(), Some(expected));
    pair.pass(seconds(6));
    assert_eq!(pair.server.closed, Some(CloseReason::Ended));
}

#[test]
fn an_end_without_a_word_is_at_once() {
    let mut pair = Pair::standard();
    pair.connect();
    pair.server.session.end(pair.now, &Farewell::Silent);
    assert!(pair.server.drain().is_empty());
    assert_eq!(pair.server.closed, Some(CloseReason::Ended));
}

#[test]
fn a_client_that_exits_is_heard_and_heard_out_once() {
    let mut pair = Pair::standard();
    pair.connect();
    pair.client.session.exit(pair.now);
    let exit = pair.client.drain();
    pair.server.feed(pair.now, &exit, 1000);
    assert_eq!(pair.server.closed, Some(CloseReason::PeerExit));
    assert!(pair.server.feed(pair.now, &exit, 1000).is_empty());
    pair.pass(seconds(6));
    assert_eq!(pair.client.closed, Some(CloseReason::Ended));
}

#[test]
fn messages_wait_for_a_renegotiation_and_go_out_on_the_new_key() {
    let mut pair =
        Pair::new(PKI.server_config(), ClientConfig { renegotiate_every: Some(seconds(10)), ..PKI.client_config() });
    pair.connect();
    pair.pass(seconds(9));
    pair.now += seconds(2);
    let reset = pair.client.timeout(pair.now);
    let answer = pair.server.feed(pair.now, &reset, 1000);
    pair.server.session.end(pair.now, &Farewell::Restart(String::new()));
    assert!(pair.server.drain().is_empty(), "nothing on the old key");
    pair.to_client.extend(answer);
    pair.settle();
    // The session ends instead of finishing the renegotiation; the client is cut off and comes again.
    pair.pass(seconds(6));
    assert_eq!(pair.server.closed, Some(CloseReason::Ended));
}

/// Appendix B: what other versions say and how they differ.
struct Fixture {
    name: &'static str,
    peer_info: &'static str,
    cipher: Option<&'static str>,
    ciphers: &'static [Cipher],
    asks_for_push: bool,
    expected: (Cipher, &'static str, bool),
}

const FIXTURES: &[Fixture] = &[
    Fixture {
        name: "2.4.12",
        peer_info: "IV_VER=2.4.12\nIV_PLAT=linux\nIV_PROTO=2\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM:BF-CBC\n",
        cipher: Some("BF-CBC"),
        ciphers: &[Cipher::Aes256Gcm, Cipher::Aes128Gcm],
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", false),
    },
    Fixture {
        name: "2.4.9",
        peer_info: "IV_VER=2.4.9\nIV_PLAT=linux\nIV_PROTO=2\nIV_NCP=2\n",
        cipher: Some("BF-CBC"),
        ciphers: &[Cipher::Aes256Gcm, Cipher::Aes128Gcm],
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", false),
    },
    Fixture {
        name: "2.5.11",
        peer_info: "IV_VER=2.5.11\nIV_PLAT=linux\nIV_PROTO=6\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM\n",
        cipher: None,
        ciphers: &[Cipher::Aes256Gcm, Cipher::Aes128Gcm],
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", false),
    },
    Fixture {
        name: "2.6.14",
        peer_info: PEER_2_6,
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", true),
    },
    Fixture {
        name: "2.7.6",
        peer_info: "IV_VER=2.7.6\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=8094\nIV_COMP_STUBv2=1\n",
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "Epoch", true),
    },
    Fixture {
        name: "master with DCO",
        peer_info: "ID=4a5f6c\nIV_VER=2.8_git\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=2974\n",
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", true),
    },
    Fixture {
        name: "openvpn3",
        peer_info: "IV_VER=3.11\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-128-GCM:AES-256-GCM:CHACHA20-POLY1305\nIV_PROTO=7070\n",
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "V2", true),
    },
    Fixture {
        name: "openvpn3 with epochs",
        peer_info: "IV_VER=3.11\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-128-GCM:AES-256-GCM:CHACHA20-POLY1305\nIV_PROTO=8094\n",
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: true,
        expected: (Cipher::Aes256Gcm, "Epoch", true),
    },
    Fixture {
        name: "MirageVPN",
        peer_info: "IV_PLAT=mirage\nIV_NCP=2\nIV_PROTO=140\n\
                    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\n",
        cipher: None,
        ciphers: &Cipher::ALL,
        asks_for_push: false,
        expected: (Cipher::Aes256Gcm, "V1", true),
    },
    Fixture {
        name: "minivpn",
        peer_info: "IV_VER=2.5.5\nIV_PROTO=2\n",
        cipher: Some("AES-128-GCM"),
        ciphers: &[Cipher::Aes128Gcm],
        asks_for_push: true,
        expected: (Cipher::Aes128Gcm, "V2", false),
    },
];

#[test]
fn other_versions_get_what_they_can() {
    for fixture in FIXTURES {
        let options = fixture.cipher.map_or_else(|| OPTIONS.to_owned(), |cipher| format!("{OPTIONS},cipher {cipher}"));
        let client = ClientConfig {
            peer_info: fixture.peer_info.into(),
            options: options.into_bytes(),
            ciphers: fixture.ciphers.to_vec(),
            push_request_every: fixture.asks_for_push.then_some(seconds(5)),
            renegotiate_every: Some(seconds(20)),
            ..PKI.client_config()
        };
        let mut pair = Pair::new(PKI.server_config(), client);
        pair.connect();
        let agreed = *pair.client.session.agreed().unwrap();
        let format = match agreed.format {
            Format::V1 => "V1",
            Format::V2 { .. } => "V2",
            Format::Epoch { .. } => "Epoch",
        };
        assert_eq!((agreed.cipher, format, agreed.is_tls_ekm), fixture.expected, "{}", fixture.name);
        let pushed = pair.client.pushed().unwrap();
        assert!(pushed.options.contains(&"topology subnet".to_owned()), "{}", fixture.name);
        assert_eq!(pushed.peer_id.is_some(), format != "V1", "{}", fixture.name);
        for mark in 0..50 {
            pair.exchange_packets(mark);
            pair.pass(seconds(1));
        }
        assert_eq!(pair.server.rekeyed(), [1, 2], "{}", fixture.name);
        if fixture.name == "MirageVPN" {
            // It dies of a message in two packets, and of KM2 and push in one.
            let bytes: Vec<usize> = frames(&pair.server.sent).iter().map(Vec::len).collect();
            assert!(bytes.iter().all(|bytes| *bytes <= 1222));
        }
    }
}

#[test]
fn what_stock_2_6_is_pushed_is_what_a_stock_server_pushes() {
    let client = ClientConfig { peer_info: PEER_2_6.into(), ..PKI.client_config() };
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.connect();
    assert_eq!(
        pair.client.pushed().unwrap().options.join(","),
        "route-gateway 10.77.0.1,topology subnet,ping 10,ping-restart 60,ifconfig 10.77.0.2 255.255.255.0,peer-id 5,\
         cipher AES-256-GCM,protocol-flags cc-exit tls-ekm dyn-tls-crypt,tun-mtu 1500"
    );
}

#[test]
fn both_sides_send_the_peer_id_that_was_pushed() {
    let client = ClientConfig { peer_info: PEER_2_6.into(), ..PKI.client_config() };
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.connect();
    assert_eq!(pair.client.seal(pair.now, b"")[2..6], [0x48, 0, 0, 5]);
    assert_eq!(pair.server.seal(pair.now, b"")[2..6], [0x48, 0, 0, 5]);
}

#[test]
fn a_session_may_move_between_threads() {
    let mut pair = Pair::standard();
    pair.connect();
    let (mut server, now) = (pair.server, pair.now);
    let server = std::thread::spawn(move || {
        server.seal(now, b"");
        server
    });
    pair.server = server.join().unwrap();
    pair.exchange_packets(1);
}

#[test]
fn keys_and_pushes_come_in_packets_of_their_own() {
    // What MirageVPN insists on: each TLS record begins a packet, and none is in two.
    let client =
        ClientConfig { peer_info: FIXTURES[8].peer_info.into(), push_request_every: None, ..PKI.client_config() };
    assert_eq!(FIXTURES[8].name, "MirageVPN");
    let mut pair = Pair::new(PKI.server_config(), client);
    pair.connect();
    let payload = |frame: &Vec<u8>| {
        let acks = usize::from(frame[9]);
        frame[14 + acks * 4 + if acks > 0 { 8 } else { 0 }..].to_vec()
    };
    let sent = frames(&pair.server.sent);
    let controls: Vec<Vec<u8>> = sent.iter().filter(|frame| frame[0] == 0x20).map(payload).collect();
    for payload in &controls[controls.len() - 2..] {
        let record_bytes = usize::from(u16::from_be_bytes([payload[3], payload[4]]));
        assert_eq!((payload[0], payload.len()), (0x17, 5 + record_bytes));
    }
}

#[test]
fn no_plaintext_shows_on_the_wire() {
    let mut pair = Pair::standard();
    pair.connect();
    let inner = packet(CLIENT_IP, SERVER_IP, 0xa5);
    let frame = pair.client.seal(pair.now, &inner);
    assert!(!frame.windows(8).any(|window| window == [0xa5; 8]));
}
