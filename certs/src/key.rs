//! Keys: P-256 (what we make), P-384 and Ed25519 (what we also take).

use std::fmt;

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
    SigningKey, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use zeroize::{Zeroize, Zeroizing};

/// The kinds of keys that a fleet knows. RSA is not among them: each handshake would cost the server a multiple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    P256,
    P384,
    Ed25519,
}

impl KeyAlgorithm {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Ed25519];

    fn signature(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &PKCS_ED25519,
        }
    }

    /// The one length of such a key in a certificate: an uncompressed point, or 32 bytes.
    fn public_key_bytes(self) -> usize {
        match self {
            Self::P256 => 65,
            Self::P384 => 97,
            Self::Ed25519 => 32,
        }
    }
}

/// A private key. Wiped from memory when dropped, never shown by `Debug`.
///
/// Made by the caller, for example with `aws_lc_rs::signature::EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)`
/// and `to_pkcs8v1()`.
pub struct PrivateKey {
    pair: WipedPair,
    algorithm: KeyAlgorithm,
}

impl PrivateKey {
    /// Reads an unencrypted PKCS#8 key (RFC 5958).
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        let der = PrivatePkcs8KeyDer::from(der);
        KeyAlgorithm::ALL
            .into_iter()
            .find_map(|algorithm| {
                let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm.signature()).ok()?;
                Some(Self { pair: WipedPair(pair), algorithm })
            })
            .ok_or(PrivateKeyError::Unsupported)
    }

    /// Reads the first `PRIVATE KEY` of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PrivateKeyError> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(PrivateKeyError::Pem)?;
        let key = Self::from_pkcs8_der(der.secret_pkcs8_der());
        der.zeroize();
        key
    }

    /// The key as PEM, for a file that only its owner can read.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        crate::pem::encode("PRIVATE KEY", self.pair.0.serialized_der())
    }

    /// The key as PKCS#8, for a TLS stack (`clone_key()` makes it owned).
    #[must_use]
    pub fn as_pkcs8_der(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.pair.0.serialized_der())
    }

    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The public half, as a DER `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn public_key_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let info = SubjectPublicKeyInfo::from_der(&self.public_key_der())
            .expect("the key's algorithm is one that the encoder and the decoder know");
        PublicKey { info, algorithm: self.algorithm }
    }

    pub(crate) fn pair(&self) -> &WipedPair {
        &self.pair
    }

    pub(crate) fn into_pair(self) -> WipedPair {
        self.pair
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?}, [redacted])", self.algorithm)
    }
}

/// Why a private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateKeyError {
    #[error("this is not a PEM private key")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("the private key is not an unencrypted PKCS#8 key of P-256, P-384 or Ed25519")]
    Unsupported,
}

/// A key pair that wipes its serialized form; the library wipes its own.
pub(crate) struct WipedPair(KeyPair);

impl Drop for WipedPair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for WipedPair {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for WipedPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A public key of a kind that the fleet knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    info: SubjectPublicKeyInfo,
    algorithm: KeyAlgorithm,
}

impl PublicKey {
    /// Reads a DER `SubjectPublicKeyInfo`. That the point lies on its curve shows when it is used.
    pub fn from_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        let (rest, info) =
            x509_parser::x509::SubjectPublicKeyInfo::from_der(der).map_err(|_| PublicKeyError::Malformed)?;
        if !rest.is_empty() {
            return Err(PublicKeyError::Malformed);
        }
        Self::from_parsed(&info)
    }

    pub(crate) fn from_parsed(info: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<Self, PublicKeyError> {
        let algorithm = algorithm_of(info)?;
        if info.subject_public_key.data.len() != algorithm.public_key_bytes()
            || info.subject_public_key.unused_bits != 0
        {
            return Err(PublicKeyError::Malformed);
        }
        let info = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| PublicKeyError::Malformed)?;
        Ok(Self { info, algorithm })
    }

    /// The key as a DER `SubjectPublicKeyInfo`, byte for byte as it stands in a certificate issued for it: what to hash.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        self.info.subject_public_key_info()
    }

    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// Reads the first `PUBLIC KEY` of a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PublicKeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| PublicKeyError::Pem)?;
        Self::from_der(&der)
    }

    /// The key as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        std::mem::take(&mut *crate::pem::encode("PUBLIC KEY", &self.to_der()))
    }

    /// The 32 bytes of Ed25519, or the uncompressed point.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.info.der_bytes()
    }

    pub(crate) fn info(&self) -> &SubjectPublicKeyInfo {
        &self.info
    }
}

/// Why a public key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("this is not a PEM public key")]
    Pem,
    #[error("the public key is malformed")]
    Malformed,
    #[error("RSA keys are not supported: use P-256, P-384 or Ed25519")]
    Rsa,
    #[error("this kind of public key is not supported: use P-256, P-384 or Ed25519")]
    Unsupported,
}

fn algorithm_of(info: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<KeyAlgorithm, PublicKeyError> {
    let kind = &info.algorithm.algorithm;
    if *kind == OID_SIG_ED25519 {
        Ok(KeyAlgorithm::Ed25519)
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let parameters = info.algorithm.parameters.as_ref().ok_or(PublicKeyError::Malformed)?;
        let curve = parameters.as_oid().map_err(|_| PublicKeyError::Malformed)?;
        if curve == OID_EC_P256 {
            Ok(KeyAlgorithm::P256)
        } else if curve == OID_NIST_EC_P384 {
            Ok(KeyAlgorithm::P384)
        } else {
            Err(PublicKeyError::Unsupported)
        }
    } else if *kind == OID_PKCS1_RSAENCRYPTION {
        Err(PublicKeyError::Rsa)
    } else {
        Err(PublicKeyError::Unsupported)
    }
}
