//! The fleet's root.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::key::{PrivateKey, WipedPair};
use crate::pem::{PemError, certificate_to_pem, certificates_from_pem};
use crate::profile::{Serial, Validity, ValidityError};

/// Characters in a common name (RFC 5280 appendix A, `ub-common-name`).
pub const COMMON_NAME_CHARS_MAX: usize = 64;

/// A fleet's root certificate with its key: what signs everything else.
pub struct Authority {
    pub(crate) issuer: Issuer<'static, WipedPair>,
    certificate: CertificateDer<'static>,
    validity: Validity,
    /// What the certificate says its key is called; what is signed repeats it.
    pub(crate) key_identifier: Vec<u8>,
}

impl Authority {
    /// Makes a self-signed root. It may sign leaf certificates and revocation lists, but no further authority.
    pub fn create(
        key: PrivateKey,
        common_name: &str,
        serial: Serial,
        validity: Validity,
    ) -> Result<Self, CreateAuthorityError> {
        if common_name.is_empty() || common_name.chars().count() > COMMON_NAME_CHARS_MAX {
            return Err(CreateAuthorityError::CommonName);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = validity.not_before();
        params.not_after = validity.not_after();
        // A root that names itself as its authority: OpenSSL's strict check wants it.
        params.use_authority_key_identifier_extension = true;

        let pair = key.into_pair();
        let certificate = params.self_signed(&pair).map_err(CreateAuthorityError::Sign)?.into();
        let key_identifier = params.key_identifier(&pair);
        Ok(Self { issuer: Issuer::new(params, pair), certificate, validity, key_identifier })
    }

    /// Takes up a root that exists. Refuses a certificate that is not an authority's, and a key that is not its key.
    ///
    /// The PEM text must hold the root and nothing else. That the root has not expired is not looked at: what it issues
    /// cannot outlive it.
    pub fn load(certificate_pem: &[u8], key: PrivateKey) -> Result<Self, LoadAuthorityError> {
        let certificates = certificates_from_pem(certificate_pem).map_err(LoadAuthorityError::Pem)?;
        let [certificate] = <[_; 1]>::try_from(certificates).map_err(|_| LoadAuthorityError::SeveralCertificates)?;
        let (rest, parsed) = X509Certificate::from_der(&certificate).map_err(|_| LoadAuthorityError::Malformed)?;
        if !rest.is_empty() {
            return Err(LoadAuthorityError::Malformed);
        }
        if !may_sign_certificates_and_lists(&parsed) {
            return Err(LoadAuthorityError::NotAnAuthority);
        }
        if parsed.public_key().raw != key.public_key_der() {
            return Err(LoadAuthorityError::WrongKey);
        }
        let validity =
            Validity::new(parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime())
                .map_err(LoadAuthorityError::Validity)?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key.into_pair()).map_err(|_| LoadAuthorityError::Malformed)?;
        if !writes_name(&issuer, parsed.subject().as_raw(), validity.not_before()) {
            return Err(LoadAuthorityError::Name);
        }
        let key_identifier =
            key_identifier_of(&parsed).unwrap_or_else(|| CertificateParams::default().key_identifier(issuer.key()));
        drop(parsed);
        Ok(Self { issuer, certificate, validity, key_identifier })
    }

    /// The root certificate: what peers trust.
    #[must_use]
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        certificate_to_pem(&self.certificate)
    }

    /// When the root is valid; what it issues ends no later.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// Why a root could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateAuthorityError {
    #[error("the common name of an authority has 1 to {COMMON_NAME_CHARS_MAX} characters")]
    CommonName,
    #[error("cannot sign the authority's certificate")]
    Sign(#[source] rcgen::Error),
}

/// Why a root that exists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadAuthorityError {
    #[error("cannot read the authority's certificate")]
    Pem(#[source] PemError),
    #[error("the file of the authority's certificate holds several certificates")]
    SeveralCertificates,
    #[error("the authority's certificate is malformed")]
    Malformed,
    #[error("the certificate is not one of an authority that may sign certificates and revocation lists")]
    NotAnAuthority,
    #[error("the private key does not belong to the authority's certificate")]
    WrongKey,
    #[error("the authority's certificate has no usable validity")]
    Validity(#[source] ValidityError),
    #[error("the authority's name has a form that certificates issued here could not repeat")]
    Name,
}

fn may_sign_certificates_and_lists(certificate: &X509Certificate<'_>) -> bool {
    // Without the extension a root may be used for anything (RFC 5280 4.2.1.3).
    let usage_allows = match certificate.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign() && usage.value.crl_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    certificate.is_ca() && usage_allows
}

fn key_identifier_of(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(identifier) = extension.parsed_extension() else { return None };
        Some(identifier.0.to_vec())
    })
}

/// Whether what this issuer signs repeats the name byte for byte. Verifiers compare bytes, and a name made by another tool
/// may have a form (repeated or multi-valued attributes) that does not survive being read and written.
fn writes_name(issuer: &Issuer<'_, WipedPair>, name: &[u8], at: OffsetDateTime) -> bool {
    let probe = CertificateRevocationListParams {
        this_update: at,
        next_update: at + Duration::SECOND,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let Ok(list) = probe.signed_by(issuer) else { return false };
    CertificateRevocationList::from_der(list.der()).is_ok_and(|(_, list)| list.issuer().as_raw() == name)
}
