//! The first byte of every packet: what it is, and which key it belongs to.

/// What a packet is (wire page §1.2). Key method 1's opcodes are dead and not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Either side starts a new key.
    SoftReset = 3,
    /// TLS bytes.
    Control = 4,
    /// Acknowledgements and nothing else.
    Ack = 5,
    /// An encrypted packet without a peer id.
    DataV1 = 6,
    /// A client's first packet.
    HardResetClientV2 = 7,
    /// A server's answer to it.
    HardResetServerV2 = 8,
    /// An encrypted packet with a peer id.
    DataV2 = 9,
    /// A client's first packet with a wrapped client key behind it.
    HardResetClientV3 = 10,
    /// As [`Opcode::Control`] with a wrapped client key behind it; UDP only in practice.
    ControlWkc = 11,
}

impl Opcode {
    /// Splits the first byte. `None` for an opcode that no current peer sends.
    #[must_use]
    pub const fn split(byte: u8) -> (Option<Self>, KeyId) {
        let opcode = match byte >> 3 {
            3 => Some(Self::SoftReset),
            4 => Some(Self::Control),
            5 => Some(Self::Ack),
            6 => Some(Self::DataV1),
            7 => Some(Self::HardResetClientV2),
            8 => Some(Self::HardResetServerV2),
            9 => Some(Self::DataV2),
            10 => Some(Self::HardResetClientV3),
            11 => Some(Self::ControlWkc),
            _ => None,
        };
        (opcode, KeyId(byte & 0x07))
    }

    /// The first byte of a packet.
    #[must_use]
    pub const fn with(self, key: KeyId) -> u8 {
        (self as u8) << 3 | key.0
    }

    /// Whether the packet belongs to the data channel.
    #[must_use]
    pub const fn is_data(self) -> bool {
        matches!(self, Self::DataV1 | Self::DataV2)
    }
}

/// Which of a session's keys a packet belongs to: 0 for the first one, then 1 to 7 round and round (wire page §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(u8);

impl KeyId {
    /// The key of the first handshake.
    pub const FIRST: Self = Self(0);

    /// The key id of the next renegotiation; never comes back to 0.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(if self.0 >= 7 { 1 } else { self.0 + 1 })
    }

    /// As on the wire, 0 to 7.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_splits_and_joins() {
        for byte in 0..=u8::MAX {
            let (opcode, key) = Opcode::split(byte);
            assert_eq!(opcode.is_some(), (3..=11).contains(&(byte >> 3)));
            if let Some(opcode) = opcode {
                assert_eq!(opcode.with(key), byte);
            }
        }
    }

    #[test]
    fn key_ids_never_come_back_to_zero() {
        let ids: Vec<u8> =
            std::iter::successors(Some(KeyId::FIRST), |id| Some(id.next())).map(KeyId::value).take(10).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7, 1, 2]);
    }
}
