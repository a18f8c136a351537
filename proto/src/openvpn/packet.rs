//! What a control packet says once its wrapping is off (wire page §2.1):
//! `n u8 | n × acknowledged id u32 | peer session id, if n > 0 | message id u32, not in ACK | payload`.

use super::opcode::Opcode;
use super::wire::{Reader, Short};

/// Acknowledgements in one packet that a receiver takes (`reliable.h: RELIABLE_ACK_SIZE`).
pub const ACKS_MAX: usize = 8;

/// One end of a session, chosen at random by that end and kept over renegotiations. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; 8]);

impl SessionId {
    /// Length on the wire.
    pub const BYTES: usize = 8;

    /// `None` for the all-zero id, which means "no session".
    #[must_use]
    pub const fn new(bytes: [u8; Self::BYTES]) -> Option<Self> {
        if u64::from_be_bytes(bytes) == 0 { None } else { Some(Self(bytes)) }
    }

    /// As on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionId({:016x})", u64::from_be_bytes(self.0))
    }
}

/// Message ids that are acknowledged, at most [`ACKS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acks {
    ids: [u32; ACKS_MAX],
    count: u8,
}

impl Acks {
    /// Adds an id unless it is there; false when there is no room.
    pub(super) fn add(&mut self, id: u32) -> bool {
        if self.as_slice().contains(&id) {
            return true;
        }
        let Some(place) = self.ids.get_mut(usize::from(self.count)) else { return false };
        *place = id;
        self.count += 1;
        true
    }

    pub(super) fn remove(&mut self, id: u32) {
        if let Some(place) = self.as_slice().iter().position(|held| *held == id) {
            self.count -= 1;
            self.ids[place] = self.ids[usize::from(self.count)];
        }
    }

    /// Takes the oldest ones out, at most `count`.
    pub(super) fn take(&mut self, count: usize) -> Self {
        let (taken, left) = self.as_slice().split_at(count.min(self.len()));
        let (taken, left) = (Self::from_slice(taken), Self::from_slice(left));
        *self = left;
        taken
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        &self.ids[..usize::from(self.count)]
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.count)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn from_slice(ids: &[u32]) -> Self {
        let mut acks = Self::default();
        for id in ids {
            acks.add(*id);
        }
        acks
    }
}

/// Why a control packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its own fields.
    #[error("a control packet is too short")]
    Short,
    /// More acknowledgements than anybody sends.
    #[error("a control packet has {0} acknowledgements")]
    TooManyAcks(u8),
    /// The all-zero session id.
    #[error("a session id is zero")]
    ZeroSessionId,
    /// An acknowledgement packet with something behind the acknowledgements.
    #[error("an acknowledgement packet has a payload")]
    AckPayload,
}

impl From<Short> for PacketError {
    fn from(Short: Short) -> Self {
        Self::Short
    }
}

/// A control packet behind its session id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body<'a> {
    pub(super) acks: Acks,
    /// Whose packets are acknowledged; there if and only if something is.
    pub(super) acked: Option<SessionId>,
    /// Not in [`Opcode::Ack`].
    pub(super) id: Option<u32>,
    pub(super) payload: &'a [u8],
}

impl<'a> Body<'a> {
    pub(super) fn decode(opcode: Opcode, bytes: &'a [u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(bytes);
        let count = reader.u8()?;
        if usize::from(count) > ACKS_MAX {
            return Err(PacketError::TooManyAcks(count));
        }
        let mut acks = Acks::default();
        for _ in 0..count {
            acks.add(reader.u32()?);
        }
        let acked =
            if count > 0 { Some(SessionId::new(reader.array()?).ok_or(PacketError::ZeroSessionId)?) } else { None };
        let id = if opcode == Opcode::Ack { None } else { Some(reader.u32()?) };
        let payload = reader.rest();
        if id.is_none() && !payload.is_empty() {
            return Err(PacketError::AckPayload);
        }
        Ok(Self { acks, acked, id, payload })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + 4 * ACKS_MAX + SessionId::BYTES + 4 + self.payload.len());
        out.push(self.acks.count);
        for id in self.acks.as_slice() {
            out.extend_from_slice(&id.to_be_bytes());
        }
        if let Some(acked) = self.acked.filter(|_| !self.acks.is_empty()) {
            out.extend_from_slice(acked.as_bytes());
        }
        if let Some(id) = self.id {
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.extend_from_slice(self.payload);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bodies_survive_a_round_trip(
            ids in prop::collection::vec(any::<u32>(), 0..=ACKS_MAX),
            id in prop::option::of(any::<u32>()),
            payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let acks = Acks::from_slice(&ids);
            let acked = (!acks.is_empty()).then(|| SessionId::new([9; 8]).unwrap());
            let opcode = if id.is_some() { Opcode::Control } else { Opcode::Ack };
            let payload = if id.is_some() { payload.as_slice() } else { &[] };
            let body = Body { acks, acked, id, payload };
            let encoded = body.encode();
            prop_assert_eq!(Body::decode(opcode, &encoded).unwrap(), body);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = Body::decode(Opcode::Control, &bytes);
            _ = Body::decode(Opcode::Ack, &bytes);
        }
    }

    #[test]
    fn ack_lists_are_checked() {
        assert_eq!(Body::decode(Opcode::Ack, &[9]), Err(PacketError::TooManyAcks(9)));
        assert_eq!(Body::decode(Opcode::Ack, &[1, 0, 0, 0]), Err(PacketError::Short));
        assert_eq!(Body::decode(Opcode::Ack, &[1, 0, 0, 0, 0]), Err(PacketError::Short));
        assert_eq!(
            Body::decode(Opcode::Ack, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(PacketError::ZeroSessionId)
        );
        assert_eq!(Body::decode(Opcode::Control, &[0]), Err(PacketError::Short));
    }
}
