//! Arbitrary bytes, in arbitrary order, at arbitrary times.
//!
//! Sessions as a whole are here, and the corpus of the fuzz targets (`proto/fuzz`): `first_bytes` is before TLS, with key files,
//! peer info, inner packets and the sniffer; `session` is both sides and their wire, from the start or from a live session, with
//! renegotiations; `insider` is behind TLS. Each parser has its own property tests beside it: frames in `stream`, wrappings
//! in `wrap`, wrapped client keys in `client_key`, key files in `static_key`, control packets in `packet`, their order in
//! `reliable`, key exchanges in `key_method`, `options`, `peer_info`, control messages in `message`, `push`, encrypted packets
//! in `data`, packet ids in `replay`, what comes out of a tunnel in `inner`.

use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;

use crate::insider;
use crate::raw::Raw;
use crate::script::{Sent, Step, check_end, pair, play, run};
use crate::stranger;
use crate::wire::*;

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
        1 => (any::<bool>(), any::<u8>(), 0_u8..10, 0_u8..10, prop::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(up, first, acks, id, payload)| Step::Forge(up, first, acks, id, payload)),
        1 => (any::<bool>(), prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(up, bytes)| Step::Inner(up, bytes)),
        1 => Just(Step::PassToTimer),
        1 => any::<u8>().prop_map(Step::End),
    ]
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
        let mut sent = Sent::default();
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
        prop_assert_eq!((&pair.server.packets, &pair.client.packets), (&sent.up, &sent.down));
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
        let mut sent = Sent::default();
        for step in &steps {
            play(&mut pair, step, &mut sent);
        }
        check_end(pair, &sent);
    }
}

/// What fuzzers have found worth keeping. A crash gets its file here, too.
#[rstest]
#[case::session("session", run)]
#[case::insider("insider", insider::run)]
#[case::first_bytes("first_bytes", stranger::run)]
fn the_corpus_holds(#[case] target: &str, #[case] run: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus is gone");
    for file in files {
        run(&std::fs::read(file).unwrap());
    }
}

proptest! {
    #[test]
    fn arbitrary_scripts_hold(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        run(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        stranger::run(&bytes);
    }

    #[test]
    fn an_insider_only_ever_ends_its_session(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        insider::run(&bytes);
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
