//! Whatever a peer sends and whenever: no panic, no way back, no busy timer, bounded output.

use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{DeviceMessage, ServerMessage};
use cloudlink_proto::link::{Device, OUTGOING_MAX, Server, Session, State, Timing};
use proptest::prelude::*;
use prost::Message;

use crate::example::{admission, device_kinds, hello, report, server_kinds, start};

#[derive(Clone, Debug)]
enum Step {
    /// A message of the peer.
    Bytes(Vec<u8>),
    /// A well-formed message of the peer, by its place in the list of all kinds, with a byte changed.
    Kind {
        index: usize,
        at: usize,
        byte: Option<u8>,
    },
    Wait(Duration),
    /// The own side wants to say something.
    Say,
    Leave,
    Lose(Option<u16>),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Bytes),
        8 => (any::<usize>(), any::<usize>(), any::<Option<u8>>()).prop_map(|(index, at, byte)| Step::Kind { index, at, byte }),
        4 => (0_u64..40_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        4 => Just(Step::Say),
        1 => Just(Step::Leave),
        1 => any::<Option<u16>>().prop_map(Step::Lose),
        3 => Just(Step::Drain),
    ]
}

fn rank(state: State) -> usize {
    State::ALL.iter().position(|it| *it == state).expect("ALL has every state")
}

macro_rules! holds_for {
    ($name:ident, $session:expr, $side:ty, $kinds:expr, $say:expr) => {
        proptest! {
            #[test]
            fn $name(steps in prop::collection::vec(step(), 0..60)) {
                let mut now = start();
                let mut session: Session<$side> = $session;
                let messages: Vec<Vec<u8>> = $kinds;
                for step in steps {
                    let before = session.state();
                    match step {
                        Step::Bytes(bytes) => { let _ = session.handle_message(now, &bytes); },
                        Step::Kind { index, at, byte } => {
                            let mut message = messages[index % messages.len()].clone();
                            if let (Some(byte), false) = (byte, message.is_empty()) {
                                let at = at % message.len();
                                message[at] = byte;
                            }
                            let _ = session.handle_message(now, &message);
                        }
                        Step::Wait(time) => {
                            now += time;
                            session.handle_timeout(now);
                            prop_assert!(session.poll_timeout().is_none_or(|next| next > now), "the timer is busy");
                        }
                        Step::Say => {
                            let said = $say(&mut session, now);
                            prop_assert!(!said || session.state() == State::Live, "said something on a link that is not live");
                        }
                        Step::Leave => session.goodbye(now, Code::ShuttingDown, "maintenance", Duration::ZERO),
                        Step::Lose(code) => session.transport_lost(code),
                        Step::Drain => {
                            let count = std::iter::from_fn(|| session.poll_transmit()).count();
                            prop_assert!(count <= OUTGOING_MAX + 3);
                        }
                    }
                    prop_assert!(rank(session.state()) >= rank(before), "{before:?} -> {:?}", session.state());
                    prop_assert_eq!(session.state().is_ending(), session.close().is_some());
                    prop_assert_eq!(session.state() == State::Closed, session.poll_timeout().is_none());
                }
            }
        }
    };
}

holds_for!(
    server_holds_whatever_comes,
    Session::server(start(), &Timing::default()),
    Server,
    device_kinds().into_iter().map(|(_, kind)| DeviceMessage { kind: Some(kind) }.encode_to_vec()).collect(),
    |session: &mut Session<Server>, now| session.welcome(now, &admission()).is_ok()
);

holds_for!(
    device_holds_whatever_comes,
    Session::device(start(), hello()).unwrap(),
    Device,
    server_kinds().into_iter().map(|(_, kind)| ServerMessage { kind: Some(kind) }.encode_to_vec()).collect(),
    |session: &mut Session<Device>, now| session.send(now, report()).is_ok()
);

proptest! {
    /// What decodes is encoded and decoded again without a change: nothing is read that is not understood.
    #[test]
    fn decoded_messages_survive_a_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = DeviceMessage::decode(&bytes[..]) {
            prop_assert_eq!(DeviceMessage::decode(&message.encode_to_vec()[..]), Ok(message));
        }
        if let Ok(message) = ServerMessage::decode(&bytes[..]) {
            prop_assert_eq!(ServerMessage::decode(&message.encode_to_vec()[..]), Ok(message));
        }
    }
}
