//! What is around control packets: nothing, a MAC (`tls-auth`), or a MAC and a cipher (`tls-crypt`). Wire page §2.3, §2.4.

use std::borrow::Cow;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::packet::{PacketError, SessionId};
use super::replay::{ReplayError, TimedWindow};
use super::static_key::{Half, StaticKey};
use super::wire::{Reader, Short};

/// The digest of `tls-auth`, chosen by `--auth` on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum AuthDigest {
    /// OpenVPN's default.
    #[default]
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl AuthDigest {
    const fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// `key-direction`: which half of a `tls-auth` key a side sends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyDirection {
    /// No direction: both sides use the first half both ways.
    Both,
    /// Direction 0, by convention the server's.
    Zero,
    /// Direction 1, by convention the client's.
    One,
}

/// Why a wrapped packet is refused. Nothing of it may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// Not even the wrapping is whole.
    #[error("a wrapped packet is too short")]
    Short,
    /// Another key, or bytes changed on the way.
    #[error("a control packet's MAC is wrong")]
    Mac,
    /// Its packet id is not fresh.
    #[error("a control packet is not fresh")]
    Replay(#[source] ReplayError),
    /// The all-zero session id.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

impl From<Short> for UnwrapError {
    fn from(Short: Short) -> Self {
        Self::Short
    }
}

/// A control packet out of its wrapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwrapped<'a> {
    pub(super) sender: SessionId,
    pub(super) body: Cow<'a, [u8]>,
}

/// The wrapping of one connection, both directions.
#[derive(Debug)]
pub(super) enum Wrap {
    Plain,
    Auth(Box<Auth>),
    Crypt(Box<Crypt>),
}

impl Wrap {
    pub(super) fn auth(key: &StaticKey, direction: KeyDirection, digest: AuthDigest, time: u32) -> Self {
        let (send, receive) = match direction {
            KeyDirection::Both => (Half::First, Half::First),
            KeyDirection::Zero => (Half::First, Half::Second),
            KeyDirection::One => (Half::Second, Half::First),
        };
        let key = |half| Zeroizing::new(key.mac(half)[..digest.bytes()].to_vec());
        Self::Auth(Box::new(Auth { digest, send: key(send), receive: key(receive), fresh: Freshness::new(time) }))
    }

    pub(super) fn crypt(key: &StaticKey, is_server: bool, time: u32) -> Self {
        let (send, receive) = if is_server { (Half::First, Half::Second) } else { (Half::Second, Half::First) };
        Self::Crypt(Box::new(Crypt {
            send: CryptKey::new(key, send),
            receive: CryptKey::new(key, receive),
            fresh: Freshness::new(time),
        }))
    }

    /// Appends a whole packet.
    pub(super) fn seal(&mut self, first: u8, own: SessionId, body: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Plain => {
                out.push(first);
                out.extend_from_slice(own.as_bytes());
                out.extend_from_slice(body);
            }
            Self::Auth(auth) => auth.seal(first, own, body, out),
            Self::Crypt(crypt) => crypt.seal(first, own, body, out),
        }
    }

    /// Takes a whole packet apart.
    pub(super) fn open<'a>(&mut self, packet: &'a [u8]) -> Result<Unwrapped<'a>, UnwrapError> {
        match self {
            Self::Plain => {
                let mut reader = Reader::new(packet);
                reader.u8()?;
                let sender = session_id(reader.array()?)?;
                Ok(Unwrapped { sender, body: Cow::Borrowed(reader.rest()) })
            }
            Self::Auth(auth) => auth.open(packet),
            Self::Crypt(crypt) => crypt.open(packet),
        }
    }
}

fn session_id(bytes: [u8; SessionId::BYTES]) -> Result<SessionId, PacketError> {
    SessionId::new(bytes).ok_or(PacketError::ZeroSessionId)
}

/// Packet ids of both directions. One for all keys of a connection.
#[derive(Debug)]
struct Freshness {
    time: u32,
    sent: u32,
    received: TimedWindow,
}

impl Freshness {
    fn new(time: u32) -> Self {
        Self { time, sent: 0, received: TimedWindow::default() }
    }

    /// `packet id | time` of the next packet.
    fn stamp(&mut self) -> [u8; 8] {
        // Starts anew a second later, should four thousand million control packets ever be sent.
        (self.sent, self.time) = match self.sent.checked_add(1) {
            Some(next) => (next, self.time),
            None => (1, self.time.wrapping_add(1)),
        };
        (u64::from(self.sent) << 32 | u64::from(self.time)).to_be_bytes()
    }

    fn accept(&mut self, stamp: [u8; 8]) -> Result<(), UnwrapError> {
        let mut reader = Reader::new(&stamp);
        let (id, time) = (reader.u32()?, reader.u32()?);
        self.received.accept(time, id).map_err(UnwrapError::Replay)
    }
}

/// `tls-auth`: `op | session id | MAC | packet id | time | rest`, with the MAC over `packet id | time | op | session id |
/// rest`. Keys are held raw and set up for each packet: control packets are rare, and a set-up HMAC takes ten times the room.
pub(super) struct Auth {
    digest: AuthDigest,
    send: Zeroizing<Vec<u8>>,
    receive: Zeroizing<Vec<u8>>,
    fresh: Freshness,
}

impl Auth {
    fn seal(&mut self, first: u8, own: SessionId, body: &[u8], out: &mut Vec<u8>) {
        let stamp = self.fresh.stamp();
        let mac = self.mac(&self.send, stamp, first, own, body);
        out.push(first);
        out.extend_from_slice(own.as_bytes());
        out.extend_from_slice(mac.as_ref());
        out.extend_from_slice(&stamp);
        out.extend_from_slice(body);
    }

    fn open<'a>(&mut self, packet: &'a [u8]) -> Result<Unwrapped<'a>, UnwrapError> {
        let mut reader = Reader::new(packet);
        let first = reader.u8()?;
        let sender = session_id(reader.array()?)?;
        let mac = reader.take(self.digest.bytes())?;
        let stamp: [u8; 8] = reader.array()?;
        let body = reader.rest();
        let key = hmac::Key::new(self.digest.algorithm(), &self.receive);
        hmac::verify(&key, &mac_input(stamp, first, sender, body), mac).map_err(|_| UnwrapError::Mac)?;
        self.fresh.accept(stamp)?;
        Ok(Unwrapped { sender, body: Cow::Borrowed(body) })
    }

    fn mac(&self, key: &[u8], stamp: [u8; 8], first: u8, sender: SessionId, body: &[u8]) -> hmac::Tag {
        hmac::sign(&hmac::Key::new(self.digest.algorithm(), key), &mac_input(stamp, first, sender, body))
    }
}

fn mac_input(stamp: [u8; 8], first: u8, sender: SessionId, body: &[u8]) -> Vec<u8> {
    [&stamp, [first].as_slice(), sender.as_bytes(), body].concat()
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// `tls-crypt`: `op | session id | packet id | time | tag | AES-256-CTR(rest)`, with the tag over everything before it and the
/// plain rest, and the cipher's first counter block from the tag.
pub(super) struct Crypt {
    send: CryptKey,
    receive: CryptKey,
    fresh: Freshness,
}

impl Crypt {
    /// `op | session id | packet id | time`.
    const HEAD_BYTES: usize = 1 + SessionId::BYTES + 8;

    fn seal(&mut self, first: u8, own: SessionId, body: &[u8], out: &mut Vec<u8>) {
        let mut plain = Vec::with_capacity(Self::HEAD_BYTES + body.len());
        plain.push(first);
        plain.extend_from_slice(own.as_bytes());
        plain.extend_from_slice(&self.fresh.stamp());
        plain.extend_from_slice(body);
        let tag = self.send.tag(&plain);
        self.send.apply(&tag, &mut plain[Self::HEAD_BYTES..]);
        let (head, body) = plain.split_at(Self::HEAD_BYTES);
        out.extend_from_slice(head);
        out.extend_from_slice(&tag);
        out.extend_from_slice(body);
    }

    fn open<'a>(&mut self, packet: &'a [u8]) -> Result<Unwrapped<'a>, UnwrapError> {
        let mut reader = Reader::new(packet);
        let head: [u8; Self::HEAD_BYTES] = reader.array()?;
        let tag: [u8; CryptKey::TAG_BYTES] = reader.array()?;
        let mut plain = [&head, reader.rest()].concat();
        self.receive.apply(&tag, &mut plain[Self::HEAD_BYTES..]);
        self.receive.verify(&plain, &tag)?;
        let mut reader = Reader::new(&head);
        reader.u8()?;
        let sender = session_id(reader.array()?)?;
        self.fresh.accept(reader.array()?)?;
        plain.drain(..Self::HEAD_BYTES);
        Ok(Unwrapped { sender, body: Cow::Owned(plain) })
    }
}

impl std::fmt::Debug for Crypt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crypt").finish_non_exhaustive()
    }
}

/// One direction's keys, also for wrapping client keys.
pub(super) struct CryptKey {
    cipher: Zeroizing<[u8; 32]>,
    mac: Zeroizing<[u8; 32]>,
}

impl CryptKey {
    pub(super) const TAG_BYTES: usize = 32;

    fn new(key: &StaticKey, half: Half) -> Self {
        Self::from_slices(key.cipher(half), key.mac(half))
    }

    /// Takes the first 32 bytes of both, which every kind of key has.
    pub(super) fn from_slices(cipher: &[u8], mac: &[u8]) -> Self {
        let first = |bytes: &[u8]| Zeroizing::new(*bytes.first_chunk().expect("slots of keys have 32 bytes or more"));
        Self { cipher: first(cipher), mac: first(mac) }
    }

    pub(super) fn tag(&self, plain: &[u8]) -> [u8; Self::TAG_BYTES] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.mac.as_slice()), plain);
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    pub(super) fn verify(&self, plain: &[u8], tag: &[u8]) -> Result<(), UnwrapError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.mac.as_slice());
        hmac::verify(&key, plain, tag).map_err(|_| UnwrapError::Mac)
    }

    /// Encrypts or decrypts: counter mode is its own inverse.
    pub(super) fn apply(&self, tag: &[u8; Self::TAG_BYTES], bytes: &mut [u8]) {
        let iv: [u8; 16] = *tag.first_chunk().expect("a tag has 32 bytes");
        let key = UnboundCipherKey::new(&AES_256, self.cipher.as_slice()).expect("the key has 32 bytes");
        EncryptingKey::ctr(key)
            .and_then(|key| key.less_safe_encrypt(bytes, EncryptionContext::Iv128(iv.into())))
            .expect("counter mode takes any length");
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// The packet of appendix A: a server's answer to a reset.
    const FIRST: u8 = 0x40;
    const BODY: &[u8] = b"\x01\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
    const TIME: u32 = 0x6500_0000;

    fn server_id() -> SessionId {
        SessionId::new([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]).unwrap()
    }

    fn counting_key() -> StaticKey {
        StaticKey::from_bytes(std::array::from_fn(|index| u8::try_from(index).unwrap()))
    }

    fn sealed(wrap: &mut Wrap) -> Vec<u8> {
        let mut out = Vec::new();
        wrap.seal(FIRST, server_id(), BODY, &mut out);
        out
    }

    #[test]
    fn packets_equal_appendix_a() {
        assert_eq!(HEXLOWER.encode(&sealed(&mut Wrap::Plain)), "4011121314151617180100000000010203040506070800000000");
        let mut auth = Wrap::auth(&counting_key(), KeyDirection::Zero, AuthDigest::Sha1, TIME);
        assert_eq!(
            HEXLOWER.encode(&sealed(&mut auth)),
            "4011121314151617182053010ed42448803522a65ffc89bfca1d0f67e200000001650000000100000000010203040506070800000000"
        );
        let mut crypt = Wrap::crypt(&counting_key(), true, TIME);
        assert_eq!(
            HEXLOWER.encode(&sealed(&mut crypt)),
            "4011121314151617180000000165000000916c21bc5d66000ca71f818325982ca7144e1e830dfa355ba6a36731fc080406eb9321d5176ad9\
             19439633cb4220c3a5bb"
        );
    }

    fn pairs() -> Vec<(Wrap, Wrap)> {
        let key = counting_key();
        let auth = |direction, digest| Wrap::auth(&key, direction, digest, TIME);
        vec![
            (auth(KeyDirection::Zero, AuthDigest::Sha1), auth(KeyDirection::One, AuthDigest::Sha1)),
            (auth(KeyDirection::Both, AuthDigest::Sha256), auth(KeyDirection::Both, AuthDigest::Sha256)),
            (auth(KeyDirection::One, AuthDigest::Sha384), auth(KeyDirection::Zero, AuthDigest::Sha384)),
            (auth(KeyDirection::Zero, AuthDigest::Sha512), auth(KeyDirection::One, AuthDigest::Sha512)),
            (Wrap::crypt(&key, true, TIME), Wrap::crypt(&key, false, TIME)),
        ]
    }

    #[test]
    fn the_other_side_opens_what_one_side_sealed_and_only_once() {
        for (mut one, mut other) in pairs() {
            let packet = sealed(&mut one);
            let opened = other.open(&packet).unwrap();
            assert_eq!((opened.sender, opened.body.as_ref()), (server_id(), BODY));
            assert_eq!(other.open(&packet), Err(UnwrapError::Replay(ReplayError::Repeated)));
        }
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_noticed() {
        for (mut one, mut other) in pairs() {
            let packet = sealed(&mut one);
            for index in 0..packet.len() {
                let mut changed = packet.clone();
                changed[index] ^= 0x01;
                assert_eq!(other.open(&changed), Err(UnwrapError::Mac), "byte {index} of {other:?}");
                assert!(other.open(&packet[..index]).is_err());
            }
            assert!(other.open(&packet).is_ok());
        }
    }

    #[rstest]
    #[case(Wrap::auth(&counting_key(), KeyDirection::Zero, AuthDigest::Sha1, TIME))]
    #[case(Wrap::crypt(&counting_key(), true, TIME))]
    fn the_wrong_half_is_refused(#[case] mut wrap: Wrap) {
        let packet = sealed(&mut wrap);
        assert_eq!(wrap.open(&packet), Err(UnwrapError::Mac));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic_and_never_pass(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            _ = Wrap::Plain.open(&bytes);
            for (mut one, mut other) in pairs() {
                prop_assert!(one.open(&bytes).is_err() && other.open(&bytes).is_err());
            }
        }

        #[test]
        fn any_body_survives_its_wrapping(body in prop::collection::vec(any::<u8>(), 0..300), first in any::<u8>()) {
            for (mut one, mut other) in pairs() {
                let mut packet = Vec::new();
                one.seal(first, server_id(), &body, &mut packet);
                let opened = other.open(&packet).unwrap();
                prop_assert_eq!((opened.sender, opened.body.as_ref()), (server_id(), body.as_slice()));
            }
        }
    }
}
