//! The wrapped client keys of `tls-crypt-v2` (wire page §2.5): `tag 32 | AES-256-CTR(client key | metadata) | length u16`.

use zeroize::Zeroizing;

use super::static_key::{StaticKey, V2ClientKey, V2ServerKey};
use super::wrap::CryptKey;

/// Bytes of metadata, its type byte included, that fit into a wrapped key.
pub const METADATA_BYTES_MAX: usize = WRAPPED_BYTES_MAX - WRAPPED_BYTES_MIN;
/// A wrapped key without metadata.
const WRAPPED_BYTES_MIN: usize = CryptKey::TAG_BYTES + StaticKey::BYTES + LENGTH_BYTES;
/// What stock peers take at most.
const WRAPPED_BYTES_MAX: usize = 1024;
const LENGTH_BYTES: usize = 2;

/// Why a wrapped client key is refused. Nothing may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientKeyError {
    /// Its length does not fit it, or the packet.
    #[error("a wrapped client key says that it is {0} bytes long")]
    Length(usize),
    /// Wrapped for another server, or bytes changed on the way.
    #[error("a wrapped client key's tag is wrong")]
    Tag,
}

/// What the issuer wrote into a client's key, as a server [reads](super::Authenticated::key_metadata) it again. Only the issuer
/// can have written it: it is under the server's MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMetadata<'a> {
    /// Nothing.
    None,
    /// Bytes that only the issuer understands, such as which device the key is for.
    Issuer(&'a [u8]),
    /// When the key was made, in Unix seconds: what `openvpn --genkey` writes unless told otherwise.
    CreatedAt(u64),
    /// Of a type, or a length, that nobody has given a meaning.
    Unknown(&'a [u8]),
}

impl<'a> KeyMetadata<'a> {
    const ISSUER: u8 = 0;
    const CREATED_AT: u8 = 1;

    /// Reads metadata, its type byte in front.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Self {
        match bytes.split_first() {
            None => Self::None,
            Some((&Self::ISSUER, own)) => Self::Issuer(own),
            Some((&Self::CREATED_AT, time)) => {
                time.try_into().map_or(Self::Unknown(bytes), |time| Self::CreatedAt(u64::from_be_bytes(time)))
            }
            Some(_) => Self::Unknown(bytes),
        }
    }

    /// As [`V2ServerKey::issue`] takes it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Issuer(own) => [&[Self::ISSUER], *own].concat(),
            Self::CreatedAt(time) => [[Self::CREATED_AT].as_slice(), &time.to_be_bytes()].concat(),
            Self::Unknown(bytes) => bytes.to_vec(),
        }
    }
}

/// A client key as the server reads it from the first packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwrapped {
    /// How many bytes of the packet belong to the packet proper.
    pub(super) packet_bytes: usize,
    pub(super) key: StaticKey,
    /// See [`KeyMetadata`].
    pub(super) metadata: Vec<u8>,
}

impl V2ServerKey {
    /// Makes a client's key file: `key` must be fresh random bytes, `metadata` starts with its type byte or is empty.
    ///
    /// # Errors
    /// The metadata is longer than [`METADATA_BYTES_MAX`].
    pub fn issue(&self, key: StaticKey, metadata: &[u8]) -> Result<V2ClientKey, ClientKeyError> {
        let bytes = WRAPPED_BYTES_MIN + metadata.len();
        let length = u16::try_from(bytes).ok().filter(|_| bytes <= WRAPPED_BYTES_MAX);
        let length = length.ok_or(ClientKeyError::Length(bytes))?.to_be_bytes();
        let mut plain = Zeroizing::new([&length, key.as_bytes().as_slice(), metadata].concat());
        let tag = self.crypt_key().tag(&plain);
        self.crypt_key().apply(&tag, &mut plain[LENGTH_BYTES..]);
        let wrapped = [&tag, &plain[LENGTH_BYTES..], &length].concat();
        Ok(V2ClientKey { key, wrapped })
    }

    /// Reads the wrapped key at the end of `packet`.
    pub(super) fn unwrap(&self, packet: &[u8]) -> Result<Unwrapped, ClientKeyError> {
        let (packet_bytes, wrapped) = split(packet)?;
        let (tag, rest) = wrapped.split_first_chunk().expect("longer than the smallest wrapped key");
        let (sealed, length) = rest.split_last_chunk::<LENGTH_BYTES>().expect("longer than the smallest wrapped key");
        let mut plain = Zeroizing::new([length, sealed].concat());
        self.crypt_key().apply(tag, &mut plain[LENGTH_BYTES..]);
        self.crypt_key().verify(&plain, tag).map_err(|_| ClientKeyError::Tag)?;
        let (key, metadata) = plain[LENGTH_BYTES..].split_at(StaticKey::BYTES);
        let key = StaticKey::from_slice(key).expect("split at a key's length");
        Ok(Unwrapped { packet_bytes, key, metadata: metadata.to_vec() })
    }

    fn crypt_key(&self) -> CryptKey {
        CryptKey::from_slices(self.cipher(), self.mac())
    }
}

/// How long the packet before the wrapped key is, and the wrapped key. The packet keeps at least its opcode
/// (CVE-2026-35058).
pub(super) fn split(packet: &[u8]) -> Result<(usize, &[u8]), ClientKeyError> {
    let length = packet.last_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    if !(WRAPPED_BYTES_MIN..=WRAPPED_BYTES_MAX).contains(&length) || length >= packet.len() {
        return Err(ClientKeyError::Length(length));
    }
    let packet_bytes = packet.len() - length;
    Ok((packet_bytes, &packet[packet_bytes..]))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn counting<const N: usize>() -> [u8; N] {
        std::array::from_fn(|index| u8::try_from(index).unwrap())
    }

    fn server_key() -> V2ServerKey {
        V2ServerKey::from_bytes(counting())
    }

    fn issued() -> V2ClientKey {
        let metadata = [[1].as_slice(), &0x6500_0000_u64.to_be_bytes()].concat();
        server_key().issue(StaticKey::from_bytes(counting()), &metadata).unwrap()
    }

    #[test]
    fn a_wrapped_key_equals_appendix_a() {
        let wrapped = issued().wrapped;
        assert_eq!(wrapped.len(), 299);
        assert_eq!(HEXLOWER.encode(&wrapped[..32]), "3c57811d3c2e91a4eb921952dd3c602e1709510ca36dbfe1e1d79793b07cb3f5");
        assert_eq!(
            HEXLOWER.encode(digest(&SHA256, &wrapped).as_ref()),
            "e0d2c72fa404a8c34c04c056477cc729e2fbda9b7c3958a1423e53d0da663786"
        );
    }

    #[test]
    fn a_packet_with_a_wrapped_key_comes_apart() {
        let packet = [b"packet".as_slice(), &issued().wrapped].concat();
        let unwrapped = server_key().unwrap(&packet).unwrap();
        assert_eq!(unwrapped.packet_bytes, 6);
        assert_eq!(unwrapped.key, issued().key);
        assert_eq!(unwrapped.metadata, [1, 0, 0, 0, 0, 0x65, 0, 0, 0]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let wrapped = issued().wrapped;
        // The opcode would belong to the wrapped key.
        assert_eq!(server_key().unwrap(&wrapped), Err(ClientKeyError::Length(299)));
        for length in [0_u16, 1, 289, 1025, 0xffff] {
            let packet = [&[0x50; 2000], length.to_be_bytes().as_slice()].concat();
            assert_eq!(server_key().unwrap(&packet), Err(ClientKeyError::Length(usize::from(length))));
        }
        assert_eq!(server_key().unwrap(&[]), Err(ClientKeyError::Length(0)));
        let too_much = vec![0; METADATA_BYTES_MAX + 1];
        assert!(server_key().issue(StaticKey::from_bytes([0; 256]), &too_much).is_err());
        assert!(server_key().issue(StaticKey::from_bytes([0; 256]), &too_much[1..]).is_ok());
    }

    #[test]
    fn metadata_is_what_its_type_byte_says() {
        let metadata: [(&[u8], _); 6] = [
            (b"", KeyMetadata::None),
            (b"\0", KeyMetadata::Issuer(b"")),
            (b"\0device 7", KeyMetadata::Issuer(b"device 7")),
            (&[1, 0, 0, 0, 0, 0x65, 0, 0, 0], KeyMetadata::CreatedAt(0x6500_0000)),
            (&[1, 0x65], KeyMetadata::Unknown(&[1, 0x65])),
            (&[2, 3], KeyMetadata::Unknown(&[2, 3])),
        ];
        for (bytes, expected) in metadata {
            assert_eq!(KeyMetadata::parse(bytes), expected);
            assert_eq!(expected.to_bytes(), bytes);
        }
    }

    #[test]
    fn another_servers_key_is_refused() {
        let packet = [b"packet".as_slice(), &issued().wrapped].concat();
        assert_eq!(V2ServerKey::from_bytes([7; 128]).unwrap(&packet), Err(ClientKeyError::Tag));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_pass(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            prop_assert!(server_key().unwrap(&bytes).is_err());
        }
    }
}
