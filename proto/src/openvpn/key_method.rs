//! Key method 2: the one message that each side sends inside TLS before anything else (wire page §3.4).

use zeroize::Zeroizing;

use super::peer_info::PeerInfo;
use super::wire::{Reader, Short};

/// The options string, with its NUL.
pub const OPTIONS_BYTES_MAX: usize = 512;
/// User name and password each, with their NUL.
pub const CREDENTIAL_BYTES_MAX: usize = 128;
/// Peer info, with its NUL.
pub const PEER_INFO_BYTES_MAX: usize = 4096;

/// The only method there is.
const METHOD: u8 = 2;

/// Why a key exchange message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyExchangeError {
    /// It ends inside a field.
    #[error("the key exchange message is too short")]
    Short,
    /// Key method 1 or something unheard of.
    #[error("the peer uses key method {0}, not 2")]
    Method(u8),
    /// A string over its limit.
    #[error("the {field} of the key exchange message has {bytes} bytes")]
    TooLong {
        /// Which string.
        field: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// A string that does not end in its only NUL.
    #[error("the {0} of the key exchange message does not end in its only NUL")]
    Terminator(&'static str),
    /// Bytes behind the last field.
    #[error("the key exchange message has bytes behind its last field")]
    Trailing,
}

impl From<Short> for KeyExchangeError {
    fn from(Short: Short) -> Self {
        Self::Short
    }
}

/// What a client contributes to the keys, and says about itself.
#[derive(Debug)]
pub(super) struct ClientMessage {
    pub(super) secret: ClientSecret,
    pub(super) options: Vec<u8>,
    pub(super) peer_info: Vec<u8>,
}

/// The client's contribution: `pre-master 48 | random 32 | random 32`. Boxed, since each session has room for one and hardly ever has
/// one.
pub(super) struct ClientSecret(Box<Zeroizing<[u8; 112]>>);

impl ClientSecret {
    pub(super) fn new(bytes: [u8; 112]) -> Self {
        Self(Box::new(Zeroizing::new(bytes)))
    }

    pub(super) fn pre_master(&self) -> &[u8] {
        &self.0[..48]
    }

    pub(super) fn random1(&self) -> &[u8] {
        &self.0[48..80]
    }

    pub(super) fn random2(&self) -> &[u8] {
        &self.0[80..]
    }
}

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSecret").finish_non_exhaustive()
    }
}

impl ClientMessage {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, KeyExchangeError> {
        let mut reader = Reader::new(bytes);
        method(&mut reader)?;
        let secret = ClientSecret::new(reader.array()?);
        let options = string(&mut reader, "options string", OPTIONS_BYTES_MAX)?;
        string(&mut reader, "user name", CREDENTIAL_BYTES_MAX)?;
        string(&mut reader, "password", CREDENTIAL_BYTES_MAX)?;
        // Old peers leave it away.
        let peer_info =
            if reader.is_empty() { Vec::new() } else { string(&mut reader, "peer info", PEER_INFO_BYTES_MAX)? };
        if reader.is_empty() { Ok(Self { secret, options, peer_info }) } else { Err(KeyExchangeError::Trailing) }
    }

    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(vec![0, 0, 0, 0, METHOD]);
        out.extend_from_slice(self.secret.0.as_slice());
        put_string(&mut out, &self.options);
        put_string(&mut out, b"");
        put_string(&mut out, b"");
        put_string(&mut out, &self.peer_info);
        out
    }

    pub(super) fn info(&self) -> PeerInfo {
        PeerInfo::parse(&self.peer_info)
    }
}

/// What a server contributes to the keys: `random 32 | random 32`.
#[derive(Clone)]
pub(super) struct ServerSecret(Box<Zeroizing<[u8; 64]>>);

impl ServerSecret {
    pub(super) fn new(bytes: [u8; 64]) -> Self {
        Self(Box::new(Zeroizing::new(bytes)))
    }

    pub(super) fn random1(&self) -> &[u8] {
        &self.0[..32]
    }

    pub(super) fn random2(&self) -> &[u8] {
        &self.0[32..]
    }

    /// Reads a server's message. What follows the options string says nothing today and is ignored.
    pub(super) fn decode_message(bytes: &[u8]) -> Result<Self, KeyExchangeError> {
        let mut reader = Reader::new(bytes);
        method(&mut reader)?;
        let secret = Self::new(reader.array()?);
        string(&mut reader, "options string", OPTIONS_BYTES_MAX)?;
        Ok(secret)
    }

    /// The server's message. The three empty strings at the end are what stock servers send.
    pub(super) fn encode_message(&self, options: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(vec![0, 0, 0, 0, METHOD]);
        out.extend_from_slice(self.0.as_slice());
        put_string(&mut out, options);
        out.extend_from_slice(&[0; 6]);
        out
    }
}

impl std::fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSecret").finish_non_exhaustive()
    }
}

fn method(reader: &mut Reader<'_>) -> Result<(), KeyExchangeError> {
    reader.u32()?;
    match reader.u8()? & 0x0f {
        METHOD => Ok(()),
        other => Err(KeyExchangeError::Method(other)),
    }
}

fn string(reader: &mut Reader<'_>, field: &'static str, bytes_max: usize) -> Result<Vec<u8>, KeyExchangeError> {
    let bytes = usize::from(reader.u16()?);
    if bytes > bytes_max {
        return Err(KeyExchangeError::TooLong { field, bytes });
    }
    let Some((last, text)) = reader.take(bytes)?.split_last() else { return Ok(Vec::new()) };
    if *last != 0 || text.contains(&0) {
        return Err(KeyExchangeError::Terminator(field));
    }
    Ok(text.to_vec())
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len() + 1).expect("strings of ours are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
    out.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> ClientMessage {
        ClientMessage {
            secret: ClientSecret::new([7; 112]),
            options: b"V4,tls-client".to_vec(),
            peer_info: b"IV_PROTO=2\n".to_vec(),
        }
    }

    #[test]
    fn both_messages_survive_a_round_trip() {
        let decoded = ClientMessage::decode(&message().encode()).unwrap();
        assert_eq!((decoded.options, decoded.peer_info), (message().options, message().peer_info));
        assert_eq!(**decoded.secret.0, [7; 112]);
        let encoded = ServerSecret::new([9; 64]).encode_message(b"V4");
        assert_eq!(**ServerSecret::decode_message(&encoded).unwrap().0, [9; 64]);
    }

    #[test]
    fn peer_info_may_be_missing_but_nothing_else() {
        let encoded = message().encode();
        let whole = encoded.len();
        let without = whole - 2 - message().peer_info.len() - 1;
        for length in 0..whole {
            assert_eq!(ClientMessage::decode(&encoded[..length]).is_ok(), length == without, "{length} bytes");
        }
    }

    #[test]
    fn odd_messages_are_refused() {
        let mut encoded = message().encode();
        encoded.push(0);
        assert!(matches!(ClientMessage::decode(&encoded), Err(KeyExchangeError::Trailing)));
        encoded[4] = 1;
        assert!(matches!(ClientMessage::decode(&encoded), Err(KeyExchangeError::Method(1))));

        let with_options = |options: &[u8]| {
            let encoded = ClientMessage { options: options.to_vec(), ..message() }.encode();
            ClientMessage::decode(&encoded).map(|_| ())
        };
        assert_eq!(with_options(b"a\0b"), Err(KeyExchangeError::Terminator("options string")));
        assert_eq!(with_options(&[b'x'; OPTIONS_BYTES_MAX - 1]), Ok(()));
        assert_eq!(
            with_options(&[b'x'; OPTIONS_BYTES_MAX]),
            Err(KeyExchangeError::TooLong { field: "options string", bytes: OPTIONS_BYTES_MAX + 1 })
        );
        let mut unterminated = message().encode();
        let last = unterminated.len() - 1;
        unterminated[last] = b'x';
        assert!(matches!(ClientMessage::decode(&unterminated), Err(KeyExchangeError::Terminator("peer info"))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            _ = ClientMessage::decode(&bytes);
            _ = ServerSecret::decode_message(&bytes);
        }
    }
}
