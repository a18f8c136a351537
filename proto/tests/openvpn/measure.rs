//! What a session costs. Run with `cargo test --release -p cloudlink-proto --test openvpn -- --ignored --nocapture measure`.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement reads the clock and shows its result"
)]

use std::hint::black_box;
use std::time::Instant;

use cloudlink_proto::openvpn::{Cipher, HEADROOM, ServerConfig, Session, TAILROOM};

use crate::wire::*;

const PACKET_BYTES: usize = 1400;
const PACKETS: usize = 100_000;
const SESSIONS: usize = 2000;

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn connected(config: ServerConfig) -> Pair {
    let mut pair = Pair::new(config, PKI.client_config());
    pair.connect();
    pair.exchange_packets(1);
    pair
}

#[test]
#[ignore = "a measurement"]
fn memory_of_an_idle_session() {
    let idle = || {
        let mut pair = connected(PKI.server_config());
        pair.pass(std::time::Duration::from_secs(30));
        pair.server.session
    };
    let warm_up: Vec<Session> = (0..200).map(|_| idle()).collect();
    let before = resident_bytes();
    let sessions: Vec<Session> = (0..SESSIONS).map(|_| idle()).collect();
    let bytes = (resident_bytes() - before) / SESSIONS;
    println!("{bytes} bytes per idle server session, of which {} the session itself", size_of::<Session>());
    drop((warm_up, sessions));
    assert!(bytes < 20_000, "{bytes} bytes");
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_handshake() {
    let started = Instant::now();
    let count = 300;
    for _ in 0..count {
        black_box(connected(PKI.server_config()));
    }
    println!("{} us per handshake, both sides together", started.elapsed().as_micros() / count);
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_packet() {
    for cipher in Cipher::ALL {
        for has_epoch in [false, true] {
            let mut pair = connected(ServerConfig { ciphers: vec![cipher], has_epoch, ..PKI.server_config() });
            let mut packet = packet(CLIENT_IP, SERVER_IP, 1);
            packet.resize(PACKET_BYTES, 0);
            packet[2..4].copy_from_slice(&u16::try_from(PACKET_BYTES).unwrap().to_be_bytes());
            let mut buffer = vec![0; HEADROOM + PACKET_BYTES + TAILROOM];

            let started = Instant::now();
            for _ in 0..PACKETS {
                let frame = pair.server.session.seal(pair.now, &mut buffer, PACKET_BYTES).unwrap();
                black_box(&buffer[frame]);
            }
            let sealing = started.elapsed();

            let mut opening = std::time::Duration::ZERO;
            for _ in 0..PACKETS / 100 {
                let mut stream = Vec::new();
                for _ in 0..100 {
                    stream.extend(pair.client.seal(pair.now, &packet));
                }
                let started = Instant::now();
                let mut packets = 0;
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
                opening += started.elapsed();
                assert_eq!(packets, 100);
            }
            let each = |total: std::time::Duration| total.as_nanos() / u128::try_from(PACKETS).unwrap();
            let name = cipher.name();
            println!(
                "{name}, epoch {has_epoch}: seal {} ns, open {} ns for {PACKET_BYTES} bytes",
                each(sealing),
                each(opening)
            );
        }
    }
}
