//! Arbitrary bytes, in arbitrary order, at arbitrary times.

use std::time::Duration;

use cloudlink_proto::openvpn::{ClientConfig, Farewell, ServerConfig};
use proptest::prelude::*;

use crate::raw::Raw;
use crate::wire::*;

/// What may happen to a pair.
#[derive(Clone, Debug)]
enum Step {
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
    End,
}

fn honest_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_usize..3000).prop_map(Step::ToServer),
        6 => (1_usize..3000).prop_map(Step::ToClient),
        3 => (any::<bool>(), any::<u8>()).prop_map(|(up, mark)| Step::Packet(up, mark)),
        2 => (0_u16..3000).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Renegotiate),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => honest_step(),
        1 => (any::<bool>(), 0_usize..2000).prop_map(|(up, at)| Step::Flip(up, at)),
        1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 1..100)).prop_map(|(up, bytes)| Step::Insert(up, bytes)),
        1 => any::<bool>().prop_map(Step::Repeat),
        1 => Just(Step::End),
    ]
}

/// Plays one step; packets that an end accepts for sending are counted.
fn play(pair: &mut Pair, step: &Step, sent: &mut [usize; 2]) {
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
        Step::End => {
            pair.server.session.end(pair.now, &Farewell::Restart(String::new()));
            pair.to_client.extend(pair.server.drain());
        }
    }
}

fn pair(has_epoch: bool, wrapping: usize) -> Pair {
    let (_, server, client) = wrappings().swap_remove(wrapping);
    Pair::new(
        ServerConfig { wrapping: server, has_epoch, ..PKI.server_config() },
        ClientConfig { wrapping: client, ..PKI.client_config() },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_wire_loses_nothing_whatever_its_timing(
        steps in prop::collection::vec(honest_step(), 0..150),
        has_epoch in any::<bool>(),
        wrapping in 0_usize..5,
    ) {
        let mut pair = pair(has_epoch, wrapping);
        pair.connect();
        // Renegotiations in a row are a flood.
        let mut last = None;
        let mut sent = [0, 0];
        for step in &steps {
            if matches!(step, Step::Renegotiate(_)) {
                if last.is_some_and(|last| pair.now < last + Duration::from_secs(2)) {
                    continue;
                }
                last = Some(pair.now);
            }
            play(&mut pair, step, &mut sent);
        }
        pair.settle();
        prop_assert_eq!((&pair.server.closed, &pair.client.closed), (&None, &None));
        prop_assert_eq!([pair.server.packets.len(), pair.client.packets.len()], sent);
    }

    #[test]
    fn a_hostile_wire_only_ever_ends_the_session(
        before in 0_usize..2,
        steps in prop::collection::vec(any_step(), 0..150),
        has_epoch in any::<bool>(),
        wrapping in 0_usize..5,
    ) {
        let mut pair = pair(has_epoch, wrapping);
        if before == 1 {
            pair.connect();
        }
        let mut sent = [0, 0];
        for step in &steps {
            play(&mut pair, step, &mut sent);
        }
        // What comes out was sent, in this form.
        prop_assert!(pair.server.packets.len() <= sent[0] && pair.client.packets.len() <= sent[1]);
        prop_assert!(pair.server.packets.iter().all(|packet| packet.len() == 64));
        // And sooner or later all is over.
        pair.to_server.clear();
        pair.to_client.clear();
        for _ in 0..200 {
            pair.now += Duration::from_secs(10);
            pair.server.timeout(pair.now);
            pair.client.timeout(pair.now);
        }
        prop_assert!(pair.server.closed.is_some() && pair.client.closed.is_some());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        cut in 1_usize..100,
        wrapping in 0_usize..5,
    ) {
        let (_, wrapping, _) = wrappings().swap_remove(wrapping);
        Raw::server(ServerConfig { wrapping, ..PKI.server_config() }).feed(beginning(), &bytes, cut);
    }

    #[test]
    fn arbitrary_packets_after_the_reset_never_panic(
        packets in prop::collection::vec((0x18_u8..0x60, prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 0..20),
    ) {
        let mut raw = Raw::reset();
        for (first, bytes, is_ours) in packets {
            let mut packet = vec![first];
            if is_ours {
                packet.extend(crate::raw::SESSION);
            }
            packet.extend(bytes);
            raw.inject(&framed(&packet));
        }
    }
}
