//! JSON Web Signatures (RFC 7515) in their compact form, the few that tenants sign: Ed25519 or P-256, and nothing to choose from.
//!
//! What decides is the key: it has one algorithm, and a text that names another is refused (RFC 8725, section 3.1). Whatever in a
//! header is not known here is refused as well.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use data_encoding::BASE64URL_NOPAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::key::{KeyAlgorithm, PrivateKey, PublicKey};
use crate::signing_key::KeyId;

/// Bytes of the largest text that is looked at, or made.
pub const BYTES_MAX: usize = 32_768;

/// All of a header: there is nothing else in one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// Why a text is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    #[error("it is larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is not three parts in base64url, joined by dots, without padding")]
    Form,
    #[error("its header is not JSON with exactly `alg`, `typ` and `kid`")]
    Header,
    #[error("it is another kind of document, by the `typ` in its header")]
    Kind,
    #[error(
        "it is signed with a key that is not trusted here; sign with a trusted one, or have the key's public half added"
    )]
    UnknownKey,
    #[error("its `alg` is not the one of the key that it names")]
    Algorithm,
    #[error("its signature does not fit: it was changed, or signed by somebody else")]
    Signature,
    #[error("its content is not JSON with exactly the members that it would have, each once and well formed")]
    Content,
}

/// Why a text was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the key is of another kind than Ed25519 or P-256")]
    Key,
    #[error("it would be larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("the key cannot sign")]
    Sign,
}

fn algorithm_name(algorithm: KeyAlgorithm) -> Option<&'static str> {
    match algorithm {
        KeyAlgorithm::Ed25519 => Some("EdDSA"),
        KeyAlgorithm::P256 => Some("ES256"),
        KeyAlgorithm::P384 => None,
    }
}

/// Whether keys of this kind can sign for a tenant.
pub(crate) fn can_sign(algorithm: KeyAlgorithm) -> bool {
    algorithm_name(algorithm).is_some()
}

pub(crate) fn sign(typ: &str, content: &impl Serialize, key: &PrivateKey) -> Result<String, SignError> {
    let alg = algorithm_name(key.algorithm()).ok_or(SignError::Key)?;
    let header = Header { alg: alg.to_owned(), typ: typ.to_owned(), kid: KeyId::of(&key.public_key()).to_string() };
    let mut text = encoded(&header);
    text.push('.');
    text.push_str(&encoded(content));
    let signature = signature(text.as_bytes(), key).ok_or(SignError::Sign)?;
    text.push('.');
    BASE64URL_NOPAD.encode_append(&signature, &mut text);
    if text.len() > BYTES_MAX { Err(SignError::TooLarge) } else { Ok(text) }
}

fn encoded(value: &impl Serialize) -> String {
    BASE64URL_NOPAD.encode(&serde_json::to_vec(value).expect("structs of strings, numbers and lists are JSON"))
}

fn signature(message: &[u8], key: &PrivateKey) -> Option<Vec<u8>> {
    let pkcs8 = key.as_pkcs8_der();
    let pkcs8 = pkcs8.secret_pkcs8_der();
    match key.algorithm() {
        KeyAlgorithm::Ed25519 => Some(Ed25519KeyPair::from_pkcs8(pkcs8).ok()?.sign(message).as_ref().to_vec()),
        KeyAlgorithm::P256 => {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok()?;
            Some(pair.sign(&SystemRandom::new(), message).ok()?.as_ref().to_vec())
        }
        KeyAlgorithm::P384 => None,
    }
}

/// The content of a text that one of the keys has signed, and which.
pub(crate) fn open<'k, T: DeserializeOwned>(
    typ: &str,
    text: &str,
    keys: &'k [PublicKey],
) -> Result<(T, &'k PublicKey), JwsError> {
    if text.len() > BYTES_MAX {
        return Err(JwsError::TooLarge);
    }
    let (signed, signature) = text.rsplit_once('.').ok_or(JwsError::Form)?;
    let (header, content) = signed.split_once('.').ok_or(JwsError::Form)?;
    let decoded = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| JwsError::Form);
    let (header, content, signature) = (decoded(header)?, decoded(content)?, decoded(signature)?);
    let header: Header = serde_json::from_slice(&header).map_err(|_| JwsError::Header)?;
    if header.typ != typ {
        return Err(JwsError::Kind);
    }
    let key = keys.iter().find(|key| KeyId::of(key).to_string() == header.kid).ok_or(JwsError::UnknownKey)?;
    if algorithm_name(key.algorithm()) != Some(header.alg.as_str()) {
        return Err(JwsError::Algorithm);
    }
    if !is_genuine(signed.as_bytes(), &signature, key) {
        return Err(JwsError::Signature);
    }
    // Only what is genuine is read.
    let content = serde_json::from_slice(&content).map_err(|_| JwsError::Content)?;
    Ok((content, key))
}

fn is_genuine(message: &[u8], signature: &[u8], key: &PublicKey) -> bool {
    let algorithm: &'static dyn VerificationAlgorithm = match key.algorithm() {
        KeyAlgorithm::Ed25519 => &ED25519,
        KeyAlgorithm::P256 => &ECDSA_P256_SHA256_FIXED,
        KeyAlgorithm::P384 => return false,
    };
    UnparsedPublicKey::new(algorithm, key.as_bytes()).verify(message, signature).is_ok()
}
