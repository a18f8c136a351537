//! What may happen to a server and a client on a wire, and fuzzers' bytes as such a script.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use cloudlink_proto::openvpn::{Cipher, ClientConfig, Farewell, ServerConfig, Session};
use rustls::pki_types::ServerName;

use crate::quick;
use crate::wire::*;

/// What may happen to a pair.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// So many bytes on their way to the server arrive.
    ToServer(usize),
    ToClient(usize),
    /// The oldest bytes on their way are changed, or lost, or come twice: TCP never does this, an attacker may.
    Flip(bool, usize),
    Insert(bool, Vec<u8>),
    Repeat(bool),
    /// An attacker who has seen the session ids makes a control packet: its first byte, acknowledgements, id and payload.
    Forge(bool, u8, u8, u8, Vec<u8>),
    Packet(bool, u8),
    /// Anything at all goes into the tunnel.
    Inner(bool, Vec<u8>),
    Pass(u16),
    /// Until the next timer of either side.
    PassToTimer,
    Renegotiate(bool),
    /// Everything arrives.
    Settle,
    Admit,
    Refuse,
    End(u8),
    Exit,
    EndOfStream(bool),
    /// The client gets another certificate for its next keys.
    ChangeCertificate,
}

impl Step {
    /// Takes a step off a fuzzer's bytes.
    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let kind = byte(bytes)?;
        let up = kind & 0x80 == 0;
        Some(match kind & 0x1f {
            0 | 1 => Self::ToServer(number(bytes)?),
            2 | 3 => Self::ToClient(number(bytes)?),
            4 => Self::Flip(up, number(bytes)?),
            5 => Self::Insert(up, string(bytes)?),
            6 => Self::Repeat(up),
            7 | 8 => Self::Packet(up, kind),
            9 => Self::Renegotiate(up),
            10 => Self::End(byte(bytes)?),
            11 | 19 => Self::Settle,
            12 | 13 => Self::PassToTimer,
            14 | 15 => Self::Pass(u16::try_from(number(bytes)?).unwrap_or(u16::MAX)),
            16 => Self::Inner(up, string(bytes)?),
            17 => Self::Forge(up, byte(bytes)?, byte(bytes)?, byte(bytes)?, string(bytes)?),
            18 => Self::Admit,
            20 => Self::Refuse,
            21 => Self::Exit,
            22 => Self::EndOfStream(up),
            23 => Self::ChangeCertificate,
            _ => Self::ToServer(usize::MAX),
        })
    }
}

pub(crate) fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

pub(crate) fn number(bytes: &mut &[u8]) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([byte(bytes)?, byte(bytes)?])))
}

/// A length and so many bytes, or all there are.
pub(crate) fn string(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let count = number(bytes)? % 2048;
    let (string, rest) = bytes.split_at(count.min(bytes.len()));
    *bytes = rest;
    Some(string.to_vec())
}

/// Plays a fuzzer's bytes; panics where a promise is broken.
pub(crate) fn run(mut bytes: &[u8]) {
    let Some(first) = byte(&mut bytes) else { return };
    let variant = Variant { has_epoch: first & 1 == 1, wrapping: usize::from(first >> 2 & 7) % 5, habits: first >> 5 };
    let mut pair = pair_of(variant);
    if first & 2 == 2 && variant.habits != UNDECIDED {
        pair.connect();
    }
    let mut sent = Sent::default();
    for _ in 0..STEPS_MAX {
        let Some(step) = Step::decode(&mut bytes) else { break };
        play(&mut pair, &step, &mut sent);
    }
    check_end(pair, &sent);
}

/// Steps of a script; the rest is ignored.
const STEPS_MAX: usize = 300;

/// Packets that an end has accepted for sending.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) up: Vec<Vec<u8>>,
    pub(crate) down: Vec<Vec<u8>>,
}

/// Plays one step.
pub(crate) fn play(pair: &mut Pair, step: &Step, sent: &mut Sent) {
    match step {
        Step::ToServer(count) => {
            let bytes: Vec<u8> = pair.to_server.drain(..pair.to_server.len().min(*count)).collect();
            let out = pair.server.feed(pair.now, &bytes, usize::MAX);
            pair.to_client.extend(out);
            pair.decide();
        }
        Step::ToClient(count) => {
            let bytes: Vec<u8> = pair.to_client.drain(..pair.to_client.len().min(*count)).collect();
            pair.to_server.extend(pair.client.feed(pair.now, &bytes, usize::MAX));
        }
        Step::Flip(up, at) => {
            if let Some(byte) = way(pair, *up).get_mut(*at) {
                *byte ^= 0x11;
            }
        }
        Step::Insert(up, bytes) => drop(way(pair, *up).splice(..0, bytes.iter().copied())),
        Step::Repeat(up) => {
            let way = way(pair, *up);
            *way = way.repeat(2);
            way.truncate(20_000);
        }
        Step::Forge(up, first, acks, id, payload) => {
            if let Some(packet) = forge(pair, *up, *first, *acks, *id, payload) {
                way(pair, *up).extend(packet);
            }
        }
        Step::Packet(up, mark) => {
            let (source, destination) = if *up { (CLIENT_IP, SERVER_IP) } else { (SERVER_IP, CLIENT_IP) };
            send(pair, *up, packet(source, destination, *mark), sent);
        }
        Step::Inner(up, bytes) => send(pair, *up, bytes.clone(), sent),
        Step::Pass(milliseconds) => pass(pair, Duration::from_millis((*milliseconds).into())),
        Step::PassToTimer => {
            let timers = [pair.server.session.poll_timeout(), pair.client.session.poll_timeout()];
            let next = timers.into_iter().flatten().map(|(at, _)| at).min();
            pass(pair, next.map_or(Duration::ZERO, |at| at.saturating_duration_since(pair.now)));
        }
        Step::Renegotiate(up) => on(pair, *up, Session::renegotiate),
        Step::Settle => pair.settle(),
        Step::Admit => {
            pair.decision = Decision::Admit(admission());
            pair.decide();
        }
        Step::Refuse => {
            pair.decision = Decision::Refuse("not today".to_owned());
            pair.decide();
        }
        Step::End(how) => {
            let text = "why".repeat(usize::from(how >> 3));
            let farewell = match how & 7 {
                0 => Farewell::Silent,
                1 | 2 => Farewell::Restart(text),
                3 => Farewell::Halt(text),
                4 => Farewell::AuthFailed(text),
                _ => Farewell::AuthFailedTemporarily { backoff_seconds: 300, text },
            };
            on(pair, false, |session, now| session.end(now, &farewell));
        }
        Step::Exit => on(pair, true, Session::exit),
        Step::EndOfStream(up) => on(pair, !*up, Session::handle_end_of_stream),
        Step::ChangeCertificate => {
            let mut config = CONFIGS[0].1.as_ref().clone();
            config.tls = Arc::clone(&quick::OTHER_CLIENT);
            on(pair, true, |session, _| session.set_client_config(Arc::new(config)));
        }
    }
}

fn way(pair: &mut Pair, up: bool) -> &mut Vec<u8> {
    if up { &mut pair.to_server } else { &mut pair.to_client }
}

/// Does something to the client's session, or the server's, and sends what comes of it.
fn on(pair: &mut Pair, is_client: bool, act: impl FnOnce(&mut Session, Instant)) {
    let end = if is_client { &mut pair.client } else { &mut pair.server };
    act(&mut end.session, pair.now);
    let out = end.drain();
    way(pair, is_client).extend(out);
}

fn pass(pair: &mut Pair, time: Duration) {
    pair.now += time;
    pair.to_client.extend(pair.server.timeout(pair.now));
    pair.to_server.extend(pair.client.timeout(pair.now));
}

fn send(pair: &mut Pair, up: bool, packet: Vec<u8>, sent: &mut Sent) {
    let end = if up { &mut pair.client } else { &mut pair.server };
    if let Some(frame) = end.try_seal(pair.now, &packet) {
        way(pair, up).extend(frame);
        if up { sent.up.push(packet) } else { sent.down.push(packet) }
    }
}

/// Session ids are never hidden.
fn forge(pair: &Pair, up: bool, first: u8, acks: u8, id: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let (own, other) = if up { (&pair.client, &pair.server) } else { (&pair.server, &pair.client) };
    let (own, other) = (own.sent.get(3..11)?, other.sent.get(3..11)?);
    let mut packet = vec![first];
    packet.extend(own);
    packet.push(acks & 0x0f);
    packet.extend((0..u32::from(acks & 0x0f)).flat_map(u32::to_be_bytes));
    if acks & 0x0f > 0 {
        packet.extend(other);
    }
    // An acknowledgement has none.
    if acks & 0x80 == 0 {
        packet.extend(u32::from(id).to_be_bytes());
    }
    packet.extend(payload);
    Some(framed(&packet))
}

/// What a pair is like.
#[derive(Clone, Copy, Debug)]
struct Variant {
    has_epoch: bool,
    wrapping: usize,
    habits: u8,
}

/// The habits of a server that has to be told what to do.
const UNDECIDED: u8 = 6;

/// A pair that costs little.
pub(crate) fn pair(has_epoch: bool, wrapping: usize) -> Pair {
    pair_of(Variant { has_epoch, wrapping, habits: 0 })
}

fn pair_of(variant: Variant) -> Pair {
    quick::restart();
    let place = (usize::from(variant.habits) * 5 + variant.wrapping) * 2 + usize::from(variant.has_epoch);
    let (server, client) = &CONFIGS[place];
    let mut pair = Pair::new(Arc::clone(server), Arc::clone(client));
    if variant.habits == UNDECIDED {
        pair.decision = Decision::Wait;
    }
    pair
}

/// All habits with each wrapping without and with epochs.
static CONFIGS: LazyLock<Vec<(Arc<ServerConfig>, Arc<ClientConfig>)>> = LazyLock::new(|| {
    let mut configs = Vec::new();
    for habits in 0..8 {
        for (_, server_wrapping, client_wrapping) in wrappings() {
            for has_epoch in [false, true] {
                let (mut server, mut client) = (server_config(), client_config());
                server.wrapping = server_wrapping.clone();
                client.wrapping = client_wrapping.clone();
                server.has_epoch = has_epoch;
                adopt(habits, &mut server, &mut client);
                configs.push((Arc::new(server), Arc::new(client)));
            }
        }
    }
    configs
});

/// A server's configuration that costs little.
pub(crate) fn server_config() -> ServerConfig {
    ServerConfig::new(Arc::clone(&quick::SERVER))
}

pub(crate) fn client_config() -> ClientConfig {
    let mut config = ClientConfig::new(Arc::clone(&quick::CLIENT), ServerName::try_from(SERVER_NAME).unwrap());
    config.renegotiate_every = None;
    config
}

fn adopt(habits: u8, server: &mut ServerConfig, client: &mut ClientConfig) {
    const OFTEN: Option<Duration> = Some(Duration::from_secs(10));

    match habits {
        1 => client.renegotiate_every = OFTEN,
        2 => server.renegotiate_every = OFTEN,
        3 => (client.renegotiate_every, server.renegotiate_every) = (OFTEN, OFTEN),
        // The old way.
        4 => {
            client.peer_info = b"IV_VER=2.4.12\nIV_PROTO=2\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM\n".to_vec();
            client.push_request_every = Some(Duration::from_secs(1));
        }
        // Without peer ids, and never asking for its push.
        5 => {
            client.peer_info = b"IV_NCP=2\nIV_PROTO=140\nIV_CIPHERS=CHACHA20-POLY1305\n".to_vec();
            client.ciphers = vec![Cipher::ChaCha20Poly1305];
            client.push_request_every = None;
            server.has_dynamic_tls_crypt = false;
        }
        7 => {
            client.peer_info = PEER_2_6.into();
            server.has_dynamic_tls_crypt = false;
            client.renegotiate_every = OFTEN;
        }
        _ => {}
    }
}

/// What must hold whatever has happened.
pub(crate) fn check_end(mut pair: Pair, sent: &Sent) {
    // What comes out was sent, in this form and order, and none of it twice.
    assert!(is_part_of(&pair.server.packets, &sent.up) && is_part_of(&pair.client.packets, &sent.down));
    let from_client = |packet: &Vec<u8>| packet[0] >> 4 == 4 && packet[12..16] == CLIENT_IP.octets();
    assert!(pair.server.packets.iter().all(from_client));
    // And with a silent peer sooner or later all is over.
    check_silence(pair.now, &mut pair.server);
    check_silence(pair.now, &mut pair.client);
}

/// Whether `some` are among `all`, in the same order.
fn is_part_of(some: &[Vec<u8>], all: &[Vec<u8>]) -> bool {
    let mut all = all.iter();
    some.iter().all(|packet| all.any(|other| other == packet))
}

/// An end whose peer is gone is over after a while, and does not wake its owner often until then.
pub(crate) fn check_silence(mut now: Instant, end: &mut End) {
    for _ in 0..60 {
        let Some((at, _)) = end.session.poll_timeout() else { break };
        now = now.max(at);
        end.timeout(now);
    }
    assert!(end.closed.is_some(), "still open in state {:?}", end.session.state());
}
