//! The keys with which a tenant signs grants, and how it replaces them where a device has been told of them already.
//!
//! A device that knows keys takes others only from one of these: a key set is a JSON Web Signature (RFC 7515, compact) with the
//! header of a [`grant`](crate::grant) but for its `typ`, and the content `iss` (the tenant's id), `iat` (seconds since 1970),
//! `version` (greater than that of the set that it replaces) and `keys` (each a `SubjectPublicKeyInfo` in base64).

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::grant::id;
use crate::jws::{self, JwsError, SignError};
use crate::key::{PrivateKey, PublicKey};

/// The most keys that a tenant has at a time.
pub const KEYS_MAX: usize = 16;

const TYP: &str = "vnd.cloudlink.signing-keys+jwt";

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

/// All keys that a tenant's devices are to trust from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    pub tenant: Uuid,
    pub version: u64,
    pub signed_at: OffsetDateTime,
    /// 1 to [`KEYS_MAX`].
    pub keys: Vec<PublicKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(with = "id")]
    iss: Uuid,
    iat: i64,
    version: u64,
    keys: Vec<String>,
}

/// Why a set of keys is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("this is not a key set that counts")]
    Jws(#[source] JwsError),
    #[error("the key set is another tenant's")]
    OtherTenant,
    #[error("the key set has version {found}, and the present one {present}: sign one with a greater version")]
    NotNewer { found: u64, present: u64 },
    #[error("the key set must have 1 to {KEYS_MAX} keys of Ed25519 or P-256, each once")]
    Keys,
}

impl KeySet {
    /// Signs it with a key of the set that is to be replaced.
    pub fn sign(&self, key: &PrivateKey) -> Result<String, SignError> {
        let content = Content {
            iss: self.tenant,
            iat: self.signed_at.unix_timestamp(),
            version: self.version,
            keys: self.keys.iter().map(|key| BASE64.encode(&key.to_der())).collect(),
        };
        jws::sign(TYP, &content, key)
    }

    /// Takes a set that replaces the one of `present_version`, and that one of the present keys has signed.
    pub fn verify(
        text: &str,
        present_keys: &[PublicKey],
        tenant: Uuid,
        present_version: u64,
    ) -> Result<Self, KeySetError> {
        let (content, _) = jws::open::<Content>(TYP, text, present_keys).map_err(KeySetError::Jws)?;
        if content.iss != tenant {
            return Err(KeySetError::OtherTenant);
        }
        if content.version <= present_version {
            return Err(KeySetError::NotNewer { found: content.version, present: present_version });
        }
        let signed_at =
            OffsetDateTime::from_unix_timestamp(content.iat).map_err(|_| KeySetError::Jws(JwsError::Content))?;
        let keys = keys(&content.keys).ok_or(KeySetError::Keys)?;
        Ok(Self { tenant, version: content.version, signed_at, keys })
    }
}

fn keys(texts: &[String]) -> Option<Vec<PublicKey>> {
    if !(1..=KEYS_MAX).contains(&texts.len()) {
        return None;
    }
    let mut keys: Vec<PublicKey> = Vec::with_capacity(texts.len());
    for text in texts {
        let key = PublicKey::from_der(&BASE64.decode(text.as_bytes()).ok()?).ok()?;
        if !can_sign(&key) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    Some(keys)
}
