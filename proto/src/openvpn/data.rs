//! Encrypted packets (wire page §5). Everything happens in the caller's buffer: nothing is allocated or copied for a packet.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::cipher::Cipher;
use super::epoch::{COUNTER_MAX, EPOCH_RENEGOTIATE, EpochKey, EpochSecret, FUTURE_EPOCHS};
use super::key_material::{Flow, KeyMaterial};
use super::opcode::{KeyId, Opcode};
use super::replay::{ReplayError, Window};
use super::stream::LENGTH_BYTES;

/// Bytes that must be free before a packet that is to be encrypted: frame length, header and tag.
pub const HEADROOM: usize = LENGTH_BYTES + V2_HEAD_BYTES + TAG_BYTES;
/// Bytes that must be free behind it: the epoch format puts its tag there.
pub const TAILROOM: usize = TAG_BYTES;

/// The plaintext that only says "I am here".
pub const PING: [u8; 16] =
    [0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48];
/// How a plaintext of OpenVPN's own begins; a type byte follows.
pub(super) const OCC: [u8; 16] =
    [0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c];
/// The type that says goodbye.
pub(super) const OCC_EXIT: u8 = 6;

const TAG_BYTES: usize = 16;
/// `op | packet id`.
const V1_HEAD_BYTES: usize = 1 + 4;
/// `op | peer id | packet id`.
const V2_HEAD_BYTES: usize = 4 + 4;
/// `op | peer id | epoch | counter`.
const EPOCH_HEAD_BYTES: usize = 4 + 8;

/// From this packet id on a new key is asked for (`packet_id.h: PACKET_ID_WRAP_TRIGGER`).
const PACKET_ID_RENEGOTIATE: u32 = 0xff00_0000;

/// Why an encrypted packet ends the session: over TCP none of this happens to an honest peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than its header and tag.
    #[error("an encrypted packet is too short")]
    Short,
    /// Another key, or bytes changed on the way.
    #[error("an encrypted packet's tag is wrong")]
    Tag,
    /// Its packet id is not fresh.
    #[error("an encrypted packet is not fresh")]
    Replay(#[source] ReplayError),
    /// Its epoch is too old or too far ahead.
    #[error("an encrypted packet has epoch {0}")]
    Epoch(u16),
    /// Not in the format that was agreed on.
    #[error("an encrypted packet has another format than agreed")]
    Format,
}

/// Why a packet cannot be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The session is not up, or is over.
    #[error("the session is not live")]
    NotLive,
    /// Larger than the tunnel's MTU: the peer would end the session over it.
    #[error("the packet is larger than the tunnel's MTU")]
    TooLarge,
    /// No room around the packet: see [`HEADROOM`] and [`TAILROOM`].
    #[error("the buffer has no room around the packet")]
    NoRoom,
    /// The key may not be used any more; a renegotiation is under way.
    #[error("the key is used up")]
    Exhausted,
}

/// How packets look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Without a peer id.
    V1,
    /// With a peer id.
    V2 {
        /// 24 bits that say nothing over TCP.
        peer_id: u32,
    },
    /// With a peer id and an epoch.
    Epoch {
        /// 24 bits that say nothing over TCP.
        peer_id: u32,
    },
}

impl Format {
    /// The same with another peer id, if it has one.
    #[must_use]
    pub const fn with_peer_id(self, peer_id: u32) -> Self {
        match self {
            Self::V1 => Self::V1,
            Self::V2 { .. } => Self::V2 { peer_id },
            Self::Epoch { .. } => Self::Epoch { peer_id },
        }
    }

    fn head(self, key: KeyId) -> u32 {
        match self {
            Self::V1 => u32::from(Opcode::DataV1.with(key)) << 24,
            Self::V2 { peer_id } | Self::Epoch { peer_id } => {
                u32::from(Opcode::DataV2.with(key)) << 24 | peer_id & 0x00ff_ffff
            }
        }
    }
}

/// Both directions of one key.
#[derive(Debug)]
pub(super) struct DataKeys {
    format: Format,
    head: u32,
    sealing: Sealing,
    opening: Opening,
    usage_limit: Option<u64>,
}

impl DataKeys {
    pub(super) fn new(cipher: Cipher, format: Format, key: KeyId, material: &KeyMaterial, is_server: bool) -> Self {
        let (out, into) = if is_server { (Flow::ToClient, Flow::ToServer) } else { (Flow::ToServer, Flow::ToClient) };
        let (sealing, opening) = match format {
            Format::V1 | Format::V2 { .. } => (
                Sealing::Packet(StaticSealing { key: PacketKey::new(cipher, material, out), last_id: 0, usage: 0 }),
                Opening::Packet(StaticOpening {
                    key: PacketKey::new(cipher, material, into),
                    window: Window::default(),
                    usage: 0,
                }),
            ),
            Format::Epoch { .. } => (
                Sealing::Epoch(Box::new(EpochSealing::new(EpochSecret::first(cipher, material.cipher(out))))),
                Opening::Epoch(Box::new(EpochOpening::new(EpochSecret::first(cipher, material.cipher(into))))),
            ),
        };
        Self { format, head: format.head(key), sealing, opening, usage_limit: cipher.usage_limit() }
    }

    /// Sets the peer id that was agreed on after the keys were made.
    pub(super) const fn set_format(&mut self, format: Format) {
        if let Format::V2 { peer_id } | Format::Epoch { peer_id } = format {
            self.format = format;
            self.head = self.head & 0xff00_0000 | peer_id & 0x00ff_ffff;
        }
    }

    /// Encrypts the `bytes` behind [`HEADROOM`] in place: where the frame then lies.
    pub(super) fn seal(&mut self, buffer: &mut [u8], bytes: usize) -> Result<Range<usize>, SealError> {
        let (head, rest) = buffer.split_at_mut_checked(HEADROOM).ok_or(SealError::NoRoom)?;
        let (packet, tail) = rest.split_at_mut_checked(bytes).ok_or(SealError::NoRoom)?;
        let tail = tail.first_chunk_mut::<TAG_BYTES>().ok_or(SealError::NoRoom)?;
        let frame_bytes = |around: usize| u16::try_from(around + bytes).map_err(|_| SealError::TooLarge);
        let cost = usage_of(bytes);
        match (&mut self.sealing, self.format) {
            (Sealing::Packet(sealing), Format::V1) => {
                let id = sealing.next_id(cost, self.usage_limit)?;
                let start = HEADROOM - TAG_BYTES - V1_HEAD_BYTES - LENGTH_BYTES;
                let (head, tag) = head[start..].split_at_mut(LENGTH_BYTES + V1_HEAD_BYTES);
                put(
                    head,
                    &[&frame_bytes(V1_HEAD_BYTES + TAG_BYTES)?.to_be_bytes(), &self.head.to_be_bytes()[..1], &id],
                );
                sealing.key.seal(id, &id, packet, tag)?;
                Ok(start..HEADROOM + bytes)
            }
            (Sealing::Packet(sealing), Format::V2 { .. } | Format::Epoch { .. }) => {
                let id = sealing.next_id(cost, self.usage_limit)?;
                let (head, tag) = head.split_at_mut(LENGTH_BYTES + V2_HEAD_BYTES);
                put(head, &[&frame_bytes(V2_HEAD_BYTES + TAG_BYTES)?.to_be_bytes(), &self.head.to_be_bytes(), &id]);
                sealing.key.seal(id, &head[LENGTH_BYTES..], packet, tag)?;
                Ok(0..HEADROOM + bytes)
            }
            (Sealing::Epoch(sealing), _) => {
                let id = sealing.next_id(cost, self.usage_limit)?;
                let start = HEADROOM - EPOCH_HEAD_BYTES - LENGTH_BYTES;
                let head = &mut head[start..];
                let frame_bytes = frame_bytes(EPOCH_HEAD_BYTES + TAG_BYTES)?;
                put(head, &[&frame_bytes.to_be_bytes(), &self.head.to_be_bytes(), &id]);
                let nonce = sealing.key.nonce(id);
                seal_with(&sealing.key.key, nonce, &head[LENGTH_BYTES..], packet, tail)?;
                Ok(start..HEADROOM + bytes + TAG_BYTES)
            }
        }
    }

    /// Decrypts a packet in place: where its plaintext then lies.
    pub(super) fn open(&mut self, opcode: Opcode, packet: &mut [u8]) -> Result<Range<usize>, OpenError> {
        let bytes = packet.len();
        match &mut self.opening {
            Opening::Packet(opening) => {
                let head_bytes = if opcode == Opcode::DataV1 { V1_HEAD_BYTES } else { V2_HEAD_BYTES };
                let (head, rest) = packet.split_at_mut_checked(head_bytes).ok_or(OpenError::Short)?;
                let (tag, sealed) = rest.split_at_mut_checked(TAG_BYTES).ok_or(OpenError::Short)?;
                let id: [u8; 4] = *head.last_chunk().expect("both heads end in a packet id");
                let aad: &[u8] = if opcode == Opcode::DataV1 { &id } else { head };
                opening.open(id, aad, tag, sealed)?;
                Ok(head_bytes + TAG_BYTES..bytes)
            }
            Opening::Epoch(opening) => {
                if opcode == Opcode::DataV1 {
                    return Err(OpenError::Format);
                }
                let (head, rest) = packet.split_at_mut_checked(EPOCH_HEAD_BYTES).ok_or(OpenError::Short)?;
                let end = rest.len().checked_sub(TAG_BYTES).ok_or(OpenError::Short)?;
                let (sealed, tag) = rest.split_at_mut(end);
                let epoch = opening.open(head, tag, sealed)?;
                if let Sealing::Epoch(sealing) = &mut self.sealing {
                    sealing.lift_to(epoch);
                }
                Ok(EPOCH_HEAD_BYTES..EPOCH_HEAD_BYTES + end)
            }
        }
    }

    /// Whether this key should be replaced soon.
    pub(super) fn wants_renegotiation(&self) -> bool {
        let is_near = |usage: u64| self.usage_limit.is_some_and(|limit| usage >= limit / 8 * 7);
        let sends = match &self.sealing {
            Sealing::Packet(sealing) => sealing.last_id >= PACKET_ID_RENEGOTIATE || is_near(sealing.usage),
            Sealing::Epoch(sealing) => sealing.key.epoch >= EPOCH_RENEGOTIATE,
        };
        let receives = match &self.opening {
            Opening::Packet(opening) => {
                opening.window.highest() >= u64::from(PACKET_ID_RENEGOTIATE) || is_near(opening.usage)
            }
            Opening::Epoch(opening) => opening.current.key.epoch >= EPOCH_RENEGOTIATE,
        };
        sends || receives
    }

    /// Moves the sender close to the end of its packet ids, or epochs, for tests.
    #[cfg(test)]
    pub(super) fn age(&mut self, last_id: u32) {
        match &mut self.sealing {
            Sealing::Packet(sealing) => sealing.last_id = last_id,
            Sealing::Epoch(sealing) => sealing.usage = u64::from(last_id) << 16,
        }
    }
}

fn put(out: &mut [u8], parts: &[&[u8]]) {
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

/// What a packet counts against a key's limit: itself and its 16-byte blocks.
const fn usage_of(bytes: usize) -> u64 {
    1 + bytes.div_ceil(16) as u64
}

fn seal_with(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    packet: &mut [u8],
    tag: &mut [u8],
) -> Result<(), SealError> {
    key.seal_in_place_scatter(Nonce::assume_unique_for_key(nonce), Aad::from(aad), packet, &[], tag)
        .map_err(|_| SealError::TooLarge)
}

fn open_with(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    tag: &[u8],
    sealed: &mut [u8],
) -> Result<(), OpenError> {
    key.open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), tag, sealed)
        .map(|_| ())
        .map_err(|_| OpenError::Tag)
}

/// A key whose nonces are packet id and implicit IV.
#[derive(Debug)]
struct PacketKey {
    key: LessSafeKey,
    implicit_iv: [u8; 8],
}

impl PacketKey {
    fn new(cipher: Cipher, material: &KeyMaterial, flow: Flow) -> Self {
        Self { key: cipher.key(material.cipher(flow)), implicit_iv: material.implicit_iv(flow) }
    }

    fn nonce(&self, id: [u8; 4]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        put(&mut nonce, &[&id, &self.implicit_iv]);
        nonce
    }

    fn seal(&self, id: [u8; 4], aad: &[u8], packet: &mut [u8], tag: &mut [u8]) -> Result<(), SealError> {
        seal_with(&self.key, self.nonce(id), aad, packet, tag)
    }
}

#[derive(Debug)]
enum Sealing {
    Packet(StaticSealing),
    Epoch(Box<EpochSealing>),
}

#[derive(Debug)]
struct StaticSealing {
    key: PacketKey,
    last_id: u32,
    usage: u64,
}

impl StaticSealing {
    fn next_id(&mut self, cost: u64, usage_limit: Option<u64>) -> Result<[u8; 4], SealError> {
        let usage = self.usage + cost;
        if usage_limit.is_some_and(|limit| usage > limit) {
            return Err(SealError::Exhausted);
        }
        self.last_id = self.last_id.checked_add(1).ok_or(SealError::Exhausted)?;
        self.usage = usage;
        Ok(self.last_id.to_be_bytes())
    }
}

#[derive(Debug)]
struct EpochSealing {
    secret: EpochSecret,
    key: EpochKey,
    counter: u64,
    usage: u64,
}

impl EpochSealing {
    fn new(secret: EpochSecret) -> Self {
        Self { key: secret.key(), secret, counter: 0, usage: 0 }
    }

    fn next_id(&mut self, cost: u64, usage_limit: Option<u64>) -> Result<[u8; 8], SealError> {
        let is_used_up = usage_limit.is_some_and(|limit| self.usage + cost > limit) || self.counter >= COUNTER_MAX;
        if is_used_up {
            *self = Self::new(self.secret.next().ok_or(SealError::Exhausted)?);
        }
        self.usage += cost;
        self.counter += 1;
        Ok((u64::from(self.key.epoch) << 48 | self.counter).to_be_bytes())
    }

    /// Follows a peer that went on to a later epoch, at most [`FUTURE_EPOCHS`] ahead of what it was seen to use.
    fn lift_to(&mut self, epoch: u16) {
        if self.key.epoch >= epoch {
            return;
        }
        let mut secret = self.secret.clone();
        while secret.epoch() < epoch {
            let Some(next) = secret.next() else { return };
            secret = next;
        }
        *self = Self::new(secret);
    }
}

#[derive(Debug)]
enum Opening {
    Packet(StaticOpening),
    Epoch(Box<EpochOpening>),
}

#[derive(Debug)]
struct StaticOpening {
    key: PacketKey,
    window: Window,
    usage: u64,
}

impl StaticOpening {
    fn open(&mut self, id: [u8; 4], aad: &[u8], tag: &[u8], sealed: &mut [u8]) -> Result<(), OpenError> {
        let number = u64::from(u32::from_be_bytes(id));
        self.window.check(number).map_err(OpenError::Replay)?;
        open_with(&self.key.key, self.key.nonce(id), aad, tag, sealed)?;
        self.window.accept(number);
        self.usage += usage_of(sealed.len());
        Ok(())
    }
}

/// One epoch that packets may come from, with an own window.
#[derive(Debug)]
struct OpenEpoch {
    key: EpochKey,
    window: Window,
}

impl OpenEpoch {
    fn new(secret: &EpochSecret) -> Self {
        Self { key: secret.key(), window: Window::default() }
    }

    fn open(&mut self, id: [u8; 8], aad: &[u8], tag: &[u8], sealed: &mut [u8]) -> Result<(), OpenError> {
        let counter = u64::from_be_bytes(id) & COUNTER_MAX;
        self.window.check(counter).map_err(OpenError::Replay)?;
        open_with(&self.key.key, self.key.nonce(id), aad, tag, sealed)?;
        self.window.accept(counter);
        Ok(())
    }
}

#[derive(Debug)]
struct EpochOpening {
    secret: EpochSecret,
    current: OpenEpoch,
    previous: Option<OpenEpoch>,
}

impl EpochOpening {
    fn new(secret: EpochSecret) -> Self {
        Self { current: OpenEpoch::new(&secret), secret, previous: None }
    }

    /// Opens a packet, and says which epoch it is of.
    fn open(&mut self, head: &[u8], tag: &[u8], sealed: &mut [u8]) -> Result<u16, OpenError> {
        let id: [u8; 8] = *head.last_chunk().ok_or(OpenError::Short)?;
        let epoch = u16::from_be_bytes([id[0], id[1]]);
        if epoch == self.current.key.epoch {
            self.current.open(id, head, tag, sealed)?;
            return Ok(epoch);
        }
        if let Some(previous) = self.previous.as_mut().filter(|previous| previous.key.epoch == epoch) {
            previous.open(id, head, tag, sealed)?;
            return Ok(epoch);
        }
        // Ahead by at most as many as anybody may be: no more keys are derived for anybody's sake (CVE-2025-15497).
        let ahead = epoch.checked_sub(self.current.key.epoch).filter(|ahead| *ahead <= FUTURE_EPOCHS);
        let ahead = ahead.ok_or(OpenError::Epoch(epoch))?;
        let mut secret = self.secret.clone();
        for _ in 0..ahead {
            secret = secret.next().ok_or(OpenError::Epoch(epoch))?;
        }
        let mut opened = OpenEpoch::new(&secret);
        opened.open(id, head, tag, sealed)?;
        // Only an authentic packet moves on.
        self.previous = Some(std::mem::replace(&mut self.current, opened));
        self.secret = secret;
        Ok(epoch)
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
