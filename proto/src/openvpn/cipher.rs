//! The data channel's ciphers, and the choice of one (wire page §3.7).

use aws_lc_rs::aead;

use super::options::Options;
use super::peer_info::PeerInfo;

/// A cipher of the data channel. There are no others: CBC has no place here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// `AES-256-GCM`.
    Aes256Gcm,
    /// `AES-128-GCM`.
    Aes128Gcm,
    /// `CHACHA20-POLY1305`.
    ChaCha20Poly1305,
}

impl Cipher {
    /// All of them, the preferred ones first.
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::Aes128Gcm, Self::ChaCha20Poly1305];

    /// As on the wire, where case matters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::Aes128Gcm => "AES-128-GCM",
            Self::ChaCha20Poly1305 => "CHACHA20-POLY1305",
        }
    }

    /// The cipher of that name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name().as_bytes() == name)
    }

    pub(super) const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// A key from the first bytes of a cipher slot.
    pub(super) fn key(self, slot: &[u8]) -> aead::LessSafeKey {
        let algorithm = match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = aead::UnboundKey::new(algorithm, &slot[..self.key_bytes()]).expect("cut to the cipher's key length");
        aead::LessSafeKey::new(key)
    }

    /// How many packets and 16-byte blocks one key may encrypt (`crypto.c: cipher_get_aead_limits`). `None`: packet ids run
    /// out first.
    pub(super) const fn usage_limit(self) -> Option<u64> {
        match self {
            Self::Aes256Gcm | Self::Aes128Gcm => Some((1 << 36) - 1),
            Self::ChaCha20Poly1305 => None,
        }
    }
}

/// The first of the server's ciphers that the client has, if any.
pub(super) fn choose(allowed: &[Cipher], info: &PeerInfo, options: &Options) -> Option<Cipher> {
    let list: &[u8] = match &info.ciphers {
        Some(list) => list,
        None if info.ncp >= 2 => b"AES-256-GCM:AES-128-GCM",
        None => options.cipher()?,
    };
    let offers = |cipher: &Cipher| list.split(|byte| *byte == b':').any(|name| name == cipher.name().as_bytes());
    allowed.iter().copied().find(offers)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::own_list(b"IV_NCP=2\nIV_CIPHERS=AES-128-GCM:AES-256-GCM", "", Some(Cipher::Aes256Gcm))]
    #[case::only_chacha(b"IV_CIPHERS=CHACHA20-POLY1305", "", Some(Cipher::ChaCha20Poly1305))]
    #[case::before_lists(b"IV_NCP=2", "cipher BF-CBC", Some(Cipher::Aes256Gcm))]
    #[case::no_negotiation(b"IV_VER=2.5.5\nIV_PROTO=2", "cipher AES-128-GCM", Some(Cipher::Aes128Gcm))]
    #[case::only_cbc(b"IV_CIPHERS=AES-256-CBC", "cipher AES-256-GCM", None)]
    #[case::empty_list(b"IV_CIPHERS=", "cipher AES-256-GCM", None)]
    #[case::case_matters(b"IV_CIPHERS=aes-256-gcm", "", None)]
    #[case::nothing(b"", "", None)]
    fn the_first_common_cipher_wins(#[case] info: &[u8], #[case] options: &str, #[case] expected: Option<Cipher>) {
        let options = Options::new(format!("V4,{options}").into_bytes());
        assert_eq!(choose(&Cipher::ALL, &PeerInfo::parse(info), &options), expected);
    }
}
