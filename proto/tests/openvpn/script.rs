//! What may happen to a server and a client on a wire, and fuzzers' bytes as such a script.

use std::time::Duration;

use cloudlink_proto::openvpn::{ClientConfig, Farewell, ServerConfig};

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
    Packet(bool, u8),
    Pass(u16),
    Renegotiate(bool),
    /// Everything arrives.
    Settle,
    End,
}

impl Step {
    /// Takes a step off a fuzzer's bytes.
    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut byte = || {
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            Some(*first)
        };
        let kind = byte()?;
        let up = kind & 0x80 == 0;
        let mut number = || Some(usize::from(u16::from_be_bytes([byte()?, byte()?])));
        Some(match kind & 0x0f {
            0 | 1 => Self::ToServer(number()?),
            2 | 3 => Self::ToClient(number()?),
            4 => Self::Flip(up, number()?),
            5 => {
                let count = number()? % 256;
                let (inserted, rest) = bytes.split_at(count.min(bytes.len()));
                *bytes = rest;
                Self::Insert(up, inserted.to_vec())
            }
            6 => Self::Repeat(up),
            7 | 8 => Self::Packet(up, kind),
            9 => Self::Renegotiate(up),
            10 => Self::End,
            11 => Self::Settle,
            _ => Self::Pass(u16::try_from(number()?).unwrap_or(u16::MAX)),
        })
    }
}

/// Plays a fuzzer's bytes; panics where a promise is broken.
pub(crate) fn run(mut bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    bytes = rest;
    let mut pair = pair(first & 1 == 1, usize::from(first >> 2) % 5);
    if first & 2 == 2 {
        pair.connect();
    }
    let mut sent = [0, 0];
    for _ in 0..STEPS_MAX {
        let Some(step) = Step::decode(&mut bytes) else { break };
        play(&mut pair, &step, &mut sent);
    }
    check_end(pair, sent);
}

/// Steps of a script; the rest is ignored.
const STEPS_MAX: usize = 300;

/// Plays one step; packets that an end accepts for sending are counted.
pub(crate) fn play(pair: &mut Pair, step: &Step, sent: &mut [usize; 2]) {
    match step {
        Step::ToServer(count) => {
            let bytes: Vec<u8> = pair.to_server.drain(..pair.to_server.len().min(*count)).collect();
            let out = pair.server.feed(pair.now, &bytes, usize::MAX);
            pair.to_client.extend(out);
            if pair.server.peer_info().is_some() && pair.server.session.admit(pair.now, &admission()).is_ok() {
                pair.to_client.extend(pair.server.drain());
            }
        }
        Step::ToClient(count) => {
            let bytes: Vec<u8> = pair.to_client.drain(..pair.to_client.len().min(*count)).collect();
            pair.to_server.extend(pair.client.feed(pair.now, &bytes, usize::MAX));
        }
        Step::Flip(up, at) => {
            let way = if *up { &mut pair.to_server } else { &mut pair.to_client };
            if let Some(byte) = way.get_mut(*at) {
                *byte ^= 0x11;
            }
        }
        Step::Insert(up, bytes) => {
            let way = if *up { &mut pair.to_server } else { &mut pair.to_client };
            way.splice(..0, bytes.iter().copied());
        }
        Step::Repeat(up) => {
            let way = if *up { &mut pair.to_server } else { &mut pair.to_client };
            *way = way.repeat(2);
            way.truncate(20_000);
        }
        Step::Packet(up, mark) => {
            let (end, way, plain, count) = if *up {
                (&mut pair.client, &mut pair.to_server, packet(CLIENT_IP, SERVER_IP, *mark), &mut sent[0])
            } else {
                (&mut pair.server, &mut pair.to_client, packet(SERVER_IP, CLIENT_IP, *mark), &mut sent[1])
            };
            if let Some(frame) = end.try_seal(pair.now, &plain) {
                way.extend(frame);
                *count += 1;
            }
        }
        Step::Pass(milliseconds) => {
            pair.now += Duration::from_millis((*milliseconds).into());
            pair.to_client.extend(pair.server.timeout(pair.now));
            pair.to_server.extend(pair.client.timeout(pair.now));
        }
        Step::Renegotiate(up) => {
            let (end, way) =
                if *up { (&mut pair.client, &mut pair.to_server) } else { (&mut pair.server, &mut pair.to_client) };
            end.session.renegotiate(pair.now);
            way.extend(end.drain());
        }
        Step::Settle => pair.settle(),
        Step::End => {
            pair.server.session.end(pair.now, &Farewell::Restart(String::new()));
            pair.to_client.extend(pair.server.drain());
        }
    }
}

pub(crate) fn pair(has_epoch: bool, wrapping: usize) -> Pair {
    let (_, server, client) = wrappings().swap_remove(wrapping);
    Pair::new(
        ServerConfig { wrapping: server, has_epoch, ..PKI.server_config() },
        ClientConfig { wrapping: client, ..PKI.client_config() },
    )
}

/// What must hold whatever has happened.
pub(crate) fn check_end(mut pair: Pair, sent: [usize; 2]) {
    // What comes out was sent, in this form.
    assert!(pair.server.packets.len() <= sent[0] && pair.client.packets.len() <= sent[1]);
    assert!(pair.server.packets.iter().chain(&pair.client.packets).all(|packet| packet.len() == 64));
    // And with a silent peer sooner or later all is over.
    for _ in 0..200 {
        pair.now += Duration::from_secs(10);
        pair.server.timeout(pair.now);
        pair.client.timeout(pair.now);
    }
    assert!(pair.server.closed.is_some() && pair.client.closed.is_some());
}
