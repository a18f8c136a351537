//! Message ids of one key: what was sent and not acknowledged, what came and in which order (wire page §2.1, §2.6).
//!
//! TCP loses nothing, so nothing is kept to be sent again: of what is in flight only the ids are known.

use super::packet::{ACKS_MAX, Acks};

/// Control packets in flight: every version's receive window holds these.
pub const IN_FLIGHT_MAX: usize = 4;
/// How far ahead of the next id one may be; those further ahead are dropped and not acknowledged.
pub const RECEIVE_WINDOW: u32 = 8;

/// What became of a packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// To be acknowledged; its payload, and perhaps others behind it, can be [popped](Reliable::pop).
    New,
    /// To be acknowledged again and otherwise ignored.
    Duplicate,
    /// Too far ahead: ignored.
    Ahead,
}

/// One key's message ids.
#[derive(Debug, Default)]
pub(super) struct Reliable {
    next_sent: u32,
    in_flight: Acks,
    next_received: u32,
    /// What waits for a packet before it, at most [`RECEIVE_WINDOW`] packets.
    waiting: Vec<(u32, Vec<u8>)>,
    /// To be acknowledged.
    acks: Acks,
}

impl Reliable {
    /// The id for the next packet, unless too many are in flight.
    pub(super) fn take_id(&mut self) -> Option<u32> {
        if !self.may_send() {
            return None;
        }
        let id = self.next_sent;
        self.next_sent = id.checked_add(1)?;
        self.in_flight.add(id);
        Some(id)
    }

    pub(super) fn may_send(&self) -> bool {
        self.in_flight.len() < IN_FLIGHT_MAX
    }

    /// Whether the peer has acknowledged everything that was sent.
    pub(super) const fn is_acknowledged(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The peer acknowledges these. Ids that were never sent, or are acknowledged already, mean nothing.
    pub(super) fn acknowledged(&mut self, acks: &Acks) {
        for id in acks.as_slice() {
            self.in_flight.remove(*id);
        }
    }

    pub(super) fn arrived(&mut self, id: u32, payload: &[u8]) -> Arrival {
        let Some(ahead) = id.checked_sub(self.next_received) else { return Arrival::Duplicate };
        if ahead >= RECEIVE_WINDOW {
            return Arrival::Ahead;
        }
        if self.waiting.iter().any(|(waiting, _)| *waiting == id) {
            return Arrival::Duplicate;
        }
        self.waiting.push((id, payload.to_vec()));
        Arrival::New
    }

    /// The next payload in order.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let place = self.waiting.iter().position(|(id, _)| *id == self.next_received)?;
        // An endpoint that runs out of ids has long been renegotiated; nothing in order can follow.
        self.next_received = self.next_received.checked_add(1)?;
        Some(self.waiting.swap_remove(place).1)
    }

    /// Notes that `id` is to be acknowledged; false when an acknowledgement packet must go first.
    pub(super) fn acknowledge(&mut self, id: u32) -> bool {
        self.acks.add(id)
    }

    /// Acknowledgements to be sent with the next packet: payload packets take few of them.
    pub(super) fn take_acks(&mut self, with_payload: bool) -> Acks {
        self.acks.take(if with_payload { ACKS_WITH_PAYLOAD_MAX } else { ACKS_MAX })
    }

    pub(super) const fn has_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// Gives back memory that only a handshake needs.
    pub(super) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }
}

/// As stock peers do (`ssl.h: CONTROL_SEND_ACK_MAX`).
const ACKS_WITH_PAYLOAD_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn acks(ids: &[u32]) -> Acks {
        let mut acks = Acks::default();
        ids.iter().for_each(|id| assert!(acks.add(*id)));
        acks
    }

    #[test]
    fn sends_four_and_waits() {
        let mut reliable = Reliable::default();
        let ids: Vec<u32> = std::iter::from_fn(|| reliable.take_id()).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
        reliable.acknowledged(&acks(&[1]));
        assert_eq!((reliable.take_id(), reliable.take_id()), (Some(4), None));
        reliable.acknowledged(&acks(&[0, 2, 3, 4]));
        assert!(reliable.is_acknowledged());
    }

    #[test]
    fn acknowledgements_of_ids_never_sent_or_twice_mean_nothing() {
        let mut reliable = Reliable::default();
        reliable.take_id();
        reliable.acknowledged(&acks(&[7, u32::MAX]));
        assert!(!reliable.is_acknowledged());
        reliable.acknowledged(&acks(&[0]));
        reliable.acknowledged(&acks(&[0]));
        assert!(reliable.is_acknowledged());
        assert_eq!(reliable.take_id(), Some(1));
    }

    #[test]
    fn the_window_is_bounded() {
        let mut reliable = Reliable::default();
        assert_eq!(reliable.arrived(RECEIVE_WINDOW, b""), Arrival::Ahead);
        assert_eq!(reliable.arrived(RECEIVE_WINDOW - 1, b""), Arrival::New);
        assert_eq!(reliable.arrived(RECEIVE_WINDOW - 1, b""), Arrival::Duplicate);
        assert_eq!(reliable.pop(), None);
    }

    #[test]
    fn payload_packets_take_four_acknowledgements() {
        let mut reliable = Reliable::default();
        assert!((0..8).all(|id| reliable.acknowledge(id)));
        assert!(!reliable.acknowledge(8));
        assert_eq!(reliable.take_acks(true).as_slice(), [0, 1, 2, 3]);
        assert_eq!(reliable.take_acks(false).as_slice(), [4, 5, 6, 7]);
    }

    proptest! {
        #[test]
        fn payloads_come_out_once_and_in_order(
            order in prop::collection::vec(0_u32..30, 0..300),
        ) {
            let mut reliable = Reliable::default();
            let mut popped = Vec::new();
            for id in order {
                reliable.arrived(id, &id.to_be_bytes());
                prop_assert!(reliable.waiting.len() <= RECEIVE_WINDOW as usize);
                while let Some(payload) = reliable.pop() {
                    popped.push(u32::from_be_bytes(payload.try_into().unwrap()));
                }
            }
            let expected: Vec<u32> = (0..).take(popped.len()).collect();
            prop_assert_eq!(popped, expected);
        }
    }
}
