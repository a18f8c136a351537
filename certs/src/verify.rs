//! Checking a certificate against the fleet's root, where no TLS stack does it: a device with the certificate that it has
//! just been given.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::identity::{CERTIFICATE_BYTES_MAX, DeviceCertificate, DeviceCertificateError};
use crate::pem::{PemError, certificates_from_pem};

/// The root certificates that are trusted: one, or several while a new one replaces an old one.
#[derive(Clone, Debug)]
pub struct TrustAnchor {
    roots: Vec<CertificateDer<'static>>,
}

impl TrustAnchor {
    /// Reads the roots of a PEM text; refuses one that is not an authority's.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustAnchorError> {
        let roots = certificates_from_pem(pem).map_err(TrustAnchorError::Pem)?;
        for root in &roots {
            let (_, root) = X509Certificate::from_der(root).map_err(|_| TrustAnchorError::Malformed)?;
            if !root.is_ca() {
                return Err(TrustAnchorError::NotAnAuthority);
            }
        }
        Ok(Self { roots })
    }

    /// The roots, for a TLS stack.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Checks that a device certificate was signed by one of the roots and is valid at a moment. Revocation is not looked at.
    pub fn verify_device(&self, der: &[u8], at: OffsetDateTime) -> Result<DeviceCertificate, VerifyError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(VerifyError::Certificate(DeviceCertificateError::TooLarge));
        }
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|_| VerifyError::Certificate(DeviceCertificateError::Malformed))?;
        if !rest.is_empty() {
            return Err(VerifyError::Certificate(DeviceCertificateError::Malformed));
        }
        let certificate = DeviceCertificate::from_parsed(&parsed).map_err(VerifyError::Certificate)?;
        if !self.has_signed(&parsed) {
            return Err(VerifyError::Issuer);
        }
        if at < certificate.not_before {
            return Err(VerifyError::NotYetValid);
        }
        if at > certificate.not_after {
            return Err(VerifyError::Expired);
        }
        Ok(certificate)
    }

    /// Whether one of the roots signed it.
    pub(crate) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        self.roots.iter().any(|root| is_signed_by(certificate, root))
    }
}

/// Why a PEM text does not hold trusted roots.
#[derive(Debug, thiserror::Error)]
pub enum TrustAnchorError {
    #[error("cannot read the root certificates")]
    Pem(#[source] PemError),
    #[error("a root certificate is malformed")]
    Malformed,
    #[error("a root certificate is not one of an authority")]
    NotAnAuthority,
}

/// Why a certificate is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("this is not a device certificate")]
    Certificate(#[source] DeviceCertificateError),
    #[error("the certificate was not signed by the fleet's authority")]
    Issuer,
    #[error("the certificate is not valid yet")]
    NotYetValid,
    #[error("the certificate has expired")]
    Expired,
}

fn is_signed_by(certificate: &X509Certificate<'_>, root: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(root).is_ok_and(|(_, root)| {
        certificate.issuer().as_raw() == root.subject().as_raw()
            && certificate.verify_signature(Some(root.public_key())).is_ok()
    })
}
