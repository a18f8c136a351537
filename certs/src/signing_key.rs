//! The keys with which a tenant signs grants.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use crate::jws;
use crate::key::PublicKey;

/// The most keys that a tenant has at a time.
pub const KEYS_MAX: usize = 16;

/// How a key is called: SHA-256 of its `SubjectPublicKeyInfo`, shown in lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 32]);

impl KeyId {
    #[must_use]
    pub fn of(key: &PublicKey) -> Self {
        let digest = digest::digest(&digest::SHA256, &key.to_der());
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Whether a key of this kind can sign for a tenant: Ed25519 and P-256 can.
#[must_use]
pub fn can_sign(key: &PublicKey) -> bool {
    jws::can_sign(key.algorithm())
}
