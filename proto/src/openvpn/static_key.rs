//! Key files that `openvpn --genkey` writes (wire page §2.2, §2.5).

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, Zeroizing};

use super::random::Random;

/// Why a key file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// A `BEGIN` or `END` line is missing.
    #[error("the file has no {0:?}")]
    NotFound(&'static str),
    /// What is between the lines is neither hex nor base64.
    #[error("the key is not encoded as it should be")]
    Encoding,
    /// Not as many bytes as such a key has.
    #[error("the key has {0} bytes")]
    Length(usize),
}

const STATIC_KEY: &str = "OpenVPN Static key V1";
const V2_SERVER_KEY: &str = "OpenVPN tls-crypt-v2 server key";
const V2_CLIENT_KEY: &str = "OpenVPN tls-crypt-v2 client key";

/// A shared key for `tls-auth` or `tls-crypt`: two halves, each with 64 bytes for a cipher and 64 for a MAC.
#[derive(Clone, PartialEq, Eq)]
pub struct StaticKey([u8; Self::BYTES]);

impl StaticKey {
    /// Length of the whole key.
    pub const BYTES: usize = 256;

    /// A new key.
    #[must_use]
    pub fn generate(random: &mut Random) -> Self {
        Self(random.array())
    }

    /// From raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// From a key file. Text around the key is ignored, as OpenVPN does.
    ///
    /// # Errors
    /// There is no key in it, or not a whole one.
    pub fn from_pem(text: &str) -> Result<Self, KeyFileError> {
        let digits = Zeroizing::new(block(text, STATIC_KEY)?);
        let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| KeyFileError::Encoding)?);
        Self::from_slice(&bytes)
    }

    /// As a key file, but for the comment that OpenVPN puts in front.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let lines: Vec<String> = self.0.chunks(16).map(|line| HEXLOWER_PERMISSIVE.encode(line)).collect();
        format!("-----BEGIN {STATIC_KEY}-----\n{}\n-----END {STATIC_KEY}-----\n", lines.join("\n"))
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Result<Self, KeyFileError> {
        bytes.try_into().map(Self).map_err(|_| KeyFileError::Length(bytes.len()))
    }

    /// This key with another one laid over it.
    pub(super) fn xor(&self, other: &[u8; Self::BYTES]) -> Self {
        let mut mixed = self.clone();
        for (byte, over) in mixed.0.iter_mut().zip(other) {
            *byte ^= over;
        }
        mixed
    }

    /// 64 bytes of the half (0 or 1), for the cipher.
    pub(super) fn cipher(&self, half: Half) -> &[u8] {
        &self.0[half.offset()..][..64]
    }

    /// 64 bytes of the half, for the MAC.
    pub(super) fn mac(&self, half: Half) -> &[u8] {
        &self.0[half.offset() + 64..][..64]
    }
}

impl Drop for StaticKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticKey").finish_non_exhaustive()
    }
}

/// One of the halves of a [`StaticKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    First,
    Second,
}

impl Half {
    const fn offset(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 128,
        }
    }
}

/// What a server needs to read the wrapped keys of its `tls-crypt-v2` clients.
#[derive(Clone, PartialEq, Eq)]
pub struct V2ServerKey([u8; Self::BYTES]);

impl V2ServerKey {
    /// Length of the key.
    pub const BYTES: usize = 128;

    /// A new key.
    #[must_use]
    pub fn generate(random: &mut Random) -> Self {
        Self(random.array())
    }

    /// From raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// From a key file.
    ///
    /// # Errors
    /// There is no key in it, or not a whole one.
    pub fn from_pem(text: &str) -> Result<Self, KeyFileError> {
        let bytes = decode_base64(text, V2_SERVER_KEY)?;
        bytes.as_slice().try_into().map(Self).map_err(|_| KeyFileError::Length(bytes.len()))
    }

    /// As a key file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        encode_base64(&self.0, V2_SERVER_KEY)
    }

    pub(super) fn cipher(&self) -> &[u8] {
        &self.0[..32]
    }

    pub(super) fn mac(&self) -> &[u8] {
        &self.0[64..96]
    }
}

impl Drop for V2ServerKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for V2ServerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("V2ServerKey").finish_non_exhaustive()
    }
}

/// What one `tls-crypt-v2` client holds: its own key, and the same key wrapped for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V2ClientKey {
    /// The client's own key.
    pub key: StaticKey,
    /// The same for the server's eyes only, with metadata; sent in clear with the first packet.
    pub wrapped: Vec<u8>,
}

impl V2ClientKey {
    /// From a key file.
    ///
    /// # Errors
    /// There is no key in it, or not a whole one.
    pub fn from_pem(text: &str) -> Result<Self, KeyFileError> {
        let bytes = decode_base64(text, V2_CLIENT_KEY)?;
        let (key, wrapped) =
            bytes.split_at_checked(StaticKey::BYTES).ok_or_else(|| KeyFileError::Length(bytes.len()))?;
        Ok(Self { key: StaticKey::from_slice(key)?, wrapped: wrapped.to_vec() })
    }

    /// As a key file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let bytes = Zeroizing::new([self.key.as_bytes(), self.wrapped.as_slice()].concat());
        encode_base64(&bytes, V2_CLIENT_KEY)
    }
}

/// What stands between the marker lines, without white space.
fn block(text: &str, name: &'static str) -> Result<String, KeyFileError> {
    let (_, behind) = text.split_once(&format!("-----BEGIN {name}-----")).ok_or(KeyFileError::NotFound(name))?;
    let (inside, _) = behind.split_once(&format!("-----END {name}-----")).ok_or(KeyFileError::NotFound(name))?;
    Ok(inside.split_whitespace().collect())
}

fn decode_base64(text: &str, name: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let digits = Zeroizing::new(block(text, name)?);
    BASE64.decode(digits.as_bytes()).map(Zeroizing::new).map_err(|_| KeyFileError::Encoding)
}

fn encode_base64(bytes: &[u8], name: &str) -> String {
    let mut text = format!("-----BEGIN {name}-----\n");
    // 48 bytes are 64 characters, a whole number of base64 groups.
    for line in bytes.chunks(48) {
        text.push_str(&BASE64.encode(line));
        text.push('\n');
    }
    text + &format!("-----END {name}-----\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counting<const N: usize>() -> [u8; N] {
        std::array::from_fn(|index| u8::try_from(index % 256).unwrap())
    }

    #[test]
    fn key_files_survive_a_round_trip_with_text_around() {
        let key = StaticKey::from_bytes(counting());
        assert_eq!(StaticKey::from_pem(&format!("#\n# comment\n{}trailing", key.to_pem())), Ok(key.clone()));
        let server = V2ServerKey::from_bytes(counting());
        assert_eq!(V2ServerKey::from_pem(&server.to_pem()), Ok(server));
        let client = V2ClientKey { key, wrapped: vec![7; 299] };
        assert_eq!(V2ClientKey::from_pem(&client.to_pem()), Ok(client));
    }

    #[test]
    fn files_without_a_whole_key_are_refused() {
        assert!(matches!(StaticKey::from_pem(""), Err(KeyFileError::NotFound(_))));
        let short = "-----BEGIN OpenVPN Static key V1-----\n00ff\n-----END OpenVPN Static key V1-----";
        assert_eq!(StaticKey::from_pem(short), Err(KeyFileError::Length(2)));
        assert_eq!(StaticKey::from_pem(&short.replace("ff", "zz")), Err(KeyFileError::Encoding));
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", V2ClientKey { key: StaticKey::from_bytes([0xab; 256]), wrapped: vec![] });
        assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(inside in "(.|\n)*") {
            for name in [STATIC_KEY, V2_SERVER_KEY, V2_CLIENT_KEY] {
                let text = format!("-----BEGIN {name}-----{inside}-----END {name}-----");
                _ = StaticKey::from_pem(&text);
                _ = V2ServerKey::from_pem(&text);
                _ = V2ClientKey::from_pem(&text);
            }
        }

        #[test]
        fn any_key_survives_its_file_whatever_the_white_space(seed in any::<[u8; 32]>(), gap in "[ \t\r\n]{0,4}") {
            let mut random = Random::from_seed(seed);
            let key = StaticKey::generate(&mut random);
            prop_assert_eq!(StaticKey::from_pem(&key.to_pem().replace('\n', &format!("\n{gap}"))), Ok(key));
            let key = V2ServerKey::generate(&mut random);
            prop_assert_eq!(V2ServerKey::from_pem(&key.to_pem().replace('\n', &format!("{gap}\n"))), Ok(key));
        }
    }
}
