//! What a session costs. Run with `cargo test --release -p cloudlink-proto --test openvpn -- --ignored --nocapture measure`.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement reads the clock and shows its result"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use cloudlink_proto::openvpn::{Cipher, ClientConfig, HEADROOM, ServerConfig, Session, TAILROOM};

use crate::wire::*;

const PACKET_BYTES: usize = 1400;
/// In one batch: they stay in the processor's cache.
const PACKETS: usize = 100;
const BATCHES: usize = 400;
const SESSIONS: usize = 2000;

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn connected(config: impl Into<Arc<ServerConfig>>) -> Pair {
    let mut pair = Pair::new(config, PKI.client_config());
    pair.connect();
    pair.exchange_packets(1);
    pair
}

#[test]
#[ignore = "a measurement"]
fn memory_of_an_idle_session() {
    let config = Arc::new(PKI.server_config());
    let idle = || {
        let mut pair = connected(Arc::clone(&config));
        pair.pass(Duration::from_secs(30));
        pair.server.session
    };
    let mut sessions: Vec<Session> = Vec::with_capacity(SESSIONS * 2);
    sessions.extend((0..SESSIONS / 10).map(|_| idle()));
    let before = resident_bytes();
    sessions.extend((0..SESSIONS).map(|_| idle()));
    let bytes = (resident_bytes() - before) / SESSIONS;
    println!("{bytes} bytes per idle server session, of which {} the session itself", size_of::<Session>());
    assert!(bytes < 13_000, "{bytes} bytes");
}

/// What a server does for one client: the middle one of many, since a busy machine only ever adds.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_handshake() {
    let (server, client) = (Arc::new(PKI.server_config()), Arc::new(stock_like_client()));
    let mut costs: Vec<[Duration; 2]> = Vec::new();
    for _ in 0..HANDSHAKES {
        let mut cost = [Duration::ZERO; 2];
        let now = beginning();
        let mut server = End::new(Session::server(now, Arc::clone(&server), start(1)));
        let mut client = End::new(Session::client(now, Arc::clone(&client), start(2)));
        let (mut up, mut is_admitted) = (client.drain(), false);
        while client.pushed().is_none() {
            let mut down = timed(&mut cost[0], || server.feed(now, &up, usize::MAX));
            if server.peer_info().is_some() && !is_admitted {
                is_admitted = true;
                down.extend(timed(&mut cost[0], || {
                    server.session.admit(now, &admission()).unwrap();
                    server.drain()
                }));
            }
            up = timed(&mut cost[1], || client.feed(now, &down, usize::MAX));
        }
        costs.push(cost);
    }
    let middle = |side: usize| {
        let mut costs: Vec<_> = costs.iter().map(|cost| cost[side]).collect();
        costs.sort();
        costs[costs.len() / 2].as_micros()
    };
    println!("{} us per handshake for the server, {} us for the client", middle(0), middle(1));
}

const HANDSHAKES: usize = 1000;

/// As OpenSSL does it: an elliptic curve without anything post-quantum, and the authority's certificate sent along.
fn stock_like_client() -> ClientConfig {
    let mut config = PKI.client_config();
    config.peer_info = PEER_2_6.into();
    config.tls = PKI.stock_client_tls();
    config
}

fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = black_box(work());
    *total += started.elapsed();
    result
}

/// Against what the cipher itself costs: the middle ones of many batches, taken in turn.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_packet() {
    for cipher in Cipher::ALL {
        for has_epoch in [false, true] {
            let mut pair = connected(ServerConfig { ciphers: vec![cipher], has_epoch, ..PKI.server_config() });
            let mut raw = RawCipher::new(cipher);
            let mut costs: [Vec<Duration>; 4] = Default::default();
            for _ in 0..BATCHES {
                costs[0].push(raw.seal());
                costs[1].push(seal(&mut pair));
                costs[2].push(raw.open());
                costs[3].push(open(&mut pair));
            }
            let each = costs.map(|mut costs| {
                costs.sort();
                costs[BATCHES / 2].as_nanos() / u128::try_from(PACKETS).unwrap()
            });
            let [raw_seal, seal, raw_open, open] = each;
            let name = cipher.name();
            let over = |whole: u128, raw: u128| (whole * 100 / raw).cast_signed() - 100;
            println!(
                "{name}, epoch {has_epoch}: seal {seal} ns ({:+} %), open {open} ns ({:+} %) for {PACKET_BYTES} bytes",
                over(seal, raw_seal),
                over(open, raw_open)
            );
        }
    }
}

fn seal(pair: &mut Pair) -> Duration {
    let mut buffer = vec![0; HEADROOM + PACKET_BYTES + TAILROOM];
    let mut total = Duration::ZERO;
    timed(&mut total, || {
        for _ in 0..PACKETS {
            let frame = pair.server.session.seal(pair.now, &mut buffer, PACKET_BYTES).unwrap();
            black_box(&buffer[frame]);
        }
    });
    total
}

/// From pieces as a socket gives them.
fn open(pair: &mut Pair) -> Duration {
    let mut packet = packet(CLIENT_IP, SERVER_IP, 1);
    packet.resize(PACKET_BYTES, 0);
    packet[2..4].copy_from_slice(&u16::try_from(PACKET_BYTES).unwrap().to_be_bytes());
    let mut stream: Vec<u8> = (0..PACKETS).flat_map(|_| pair.client.seal(pair.now, &packet)).collect();
    let (mut total, mut packets) = (Duration::ZERO, 0);
    timed(&mut total, || {
        for piece in stream.chunks_mut(16 * 1024) {
            let mut rest = piece;
            while !rest.is_empty() {
                let received = pair.server.session.handle_input(pair.now, rest);
                packets += usize::from(black_box(received.packet).is_some());
                let consumed = received.consumed;
                rest = &mut rest[consumed..];
            }
            assert_eq!(pair.server.session.poll_output(), None);
        }
    });
    assert_eq!(packets, PACKETS);
    total
}

/// Nothing but the cipher.
struct RawCipher {
    key: LessSafeKey,
    packets: Vec<Vec<u8>>,
    tags: Vec<Vec<u8>>,
}

impl RawCipher {
    fn new(cipher: Cipher) -> Self {
        let algorithm = match cipher {
            Cipher::Aes256Gcm => &aead::AES_256_GCM,
            Cipher::Aes128Gcm => &aead::AES_128_GCM,
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32][..algorithm.key_len()]).unwrap());
        Self { key, packets: vec![vec![0; PACKET_BYTES]; PACKETS], tags: vec![vec![0; 16]; PACKETS] }
    }

    fn seal(&mut self) -> Duration {
        let mut total = Duration::ZERO;
        let packets: Vec<_> = (0_u32..).zip(self.packets.iter_mut().zip(&mut self.tags)).collect();
        timed(&mut total, || {
            for (id, (packet, tag)) in packets {
                let aad = Aad::from([0; 8]);
                self.key.seal_in_place_scatter(nonce(id), aad, packet, &[], tag).unwrap();
            }
        });
        total
    }

    fn open(&mut self) -> Duration {
        let mut total = Duration::ZERO;
        let packets: Vec<_> = (0_u32..).zip(self.packets.iter_mut().zip(&self.tags)).collect();
        timed(&mut total, || {
            for (id, (packet, tag)) in packets {
                self.key.open_in_place_separate_tag(nonce(id), Aad::from([0; 8]), tag, packet).unwrap();
            }
        });
        total
    }
}

fn nonce(id: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&id.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
