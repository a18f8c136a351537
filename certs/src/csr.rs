//! Certificate signing requests (PKCS#10, RFC 2986).
//!
//! All that a request is good for is a public key and the proof that its sender holds the private one. The names, usages and
//! constraints that it may ask for are not even looked at.

use rcgen::CertificateParams;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::key::{PrivateKey, PublicKey, PublicKeyError};

/// Bytes of the largest request that is looked at, as DER. Ours have about 200.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the largest request that is looked at, as PEM.
pub const REQUEST_PEM_BYTES_MAX: usize = 8 * 1024;

/// A request whose sender has proven to hold the private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    public_key: PublicKey,
}

impl CertificateRequest {
    /// Reads a request and checks its signature.
    pub fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(RequestError::Malformed);
        }
        let public_key =
            PublicKey::from_parsed(&request.certification_request_info.subject_pki).map_err(RequestError::PublicKey)?;
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        Ok(Self { public_key })
    }

    /// Reads the first `CERTIFICATE REQUEST` of a PEM text, as [`Self::from_der`] does.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RequestError> {
        if pem.len() > REQUEST_PEM_BYTES_MAX {
            return Err(RequestError::TooLarge);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| RequestError::Malformed)?;
        Self::from_der(&der)
    }

    /// The key, as a DER `SubjectPublicKeyInfo`, byte for byte as it will stand in the certificate: what to hash.
    #[must_use]
    pub fn public_key_der(&self) -> Vec<u8> {
        self.public_key.to_der()
    }

    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

/// Why a request is refused. All of it is the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the certificate request is larger than {REQUEST_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the certificate request is malformed")]
    Malformed,
    #[error("the public key of the certificate request cannot be used")]
    PublicKey(#[source] PublicKeyError),
    #[error("the signature of the certificate request does not fit its public key")]
    Signature,
}

/// Makes a request for a certificate of this key, as DER. It asks for nothing: what the certificate says is up to the issuer.
pub fn create_request(key: &PrivateKey) -> Result<Vec<u8>, CreateRequestError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(key.pair()).map_err(CreateRequestError)?;
    Ok(request.der().to_vec())
}

/// The cryptography library could not sign.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign the certificate request")]
pub struct CreateRequestError(#[source] rcgen::Error);
