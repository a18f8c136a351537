//! Who a device is, and how its certificate says so.
//!
//! A device certificate carries exactly one subject alternative name, the URI
//! `spiffe://<trust-domain>/tenant/<tenant>/device/<device>` with both ids as lower-case hyphenated UUIDs, and the device's
//! UUID again as its only common name. Nothing else about a certificate identifies anybody.

use std::fmt;
use std::str::FromStr;

use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::key::{PublicKey, PublicKeyError};

/// Bytes of the largest certificate that is looked at. Ours have about 600.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// The fleet that an identity belongs to: a host name in lower case (SPIFFE-ID section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    /// Characters in the longest trust domain.
    pub const CHARS_MAX: usize = 255;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || s.len() > Self::CHARS_MAX || !s.bytes().all(allowed) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(s.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a device is. Displayed and parsed as its SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceIdentity {
    pub trust_domain: TrustDomain,
    pub tenant: Uuid,
    pub device: Uuid,
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/tenant/{}/device/{}", self.trust_domain, self.tenant, self.device)
    }
}

impl FromStr for DeviceIdentity {
    type Err = IdentityError;

    /// Takes the one canonical spelling and no other, so that equal identities are equal texts.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let rest = s.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdentityError::Path)?;
        let (tenant, device) =
            path.strip_prefix("tenant/").and_then(|path| path.split_once("/device/")).ok_or(IdentityError::Path)?;
        Ok(Self {
            trust_domain: trust_domain.parse()?,
            tenant: canonical_uuid(tenant).ok_or(IdentityError::Path)?,
            device: canonical_uuid(device).ok_or(IdentityError::Path)?,
        })
    }
}

/// Why a text is not a [`DeviceIdentity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("a device identity begins with spiffe://")]
    Scheme,
    #[error("a trust domain has 1 to {} characters a-z 0-9 . - _", TrustDomain::CHARS_MAX)]
    TrustDomain,
    #[error("the path of a device identity is /tenant/<uuid>/device/<uuid>")]
    Path,
}

/// What a device certificate says. Whether it is to be believed (signature, time, revocation) is not answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    pub identity: DeviceIdentity,
    /// Big-endian, without leading zeros.
    pub serial: Vec<u8>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// A DER `SubjectPublicKeyInfo`.
    pub public_key_der: Vec<u8>,
}

impl DeviceCertificate {
    /// Reads a certificate that TLS has verified, as on each connect: costs microseconds.
    ///
    /// Refuses whatever is not exactly a device certificate: it has one URI as its only alternative name, the device's UUID
    /// as its only common name, client authentication as its only extended usage, is no CA, and has a key of a kind that we
    /// sign.
    pub fn parse(der: &[u8]) -> Result<Self, DeviceCertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(DeviceCertificateError::TooLarge);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| DeviceCertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(DeviceCertificateError::Malformed);
        }
        Self::from_parsed(&certificate)
    }

    pub(crate) fn from_parsed(certificate: &X509Certificate<'_>) -> Result<Self, DeviceCertificateError> {
        let identity = identity_of(certificate)?;
        if common_name_of(certificate)? != identity.device.to_string() {
            return Err(DeviceCertificateError::CommonName);
        }
        if !is_for_client_authentication_only(certificate)? {
            return Err(DeviceCertificateError::Usage);
        }
        if certificate.is_ca() {
            return Err(DeviceCertificateError::Authority);
        }
        let public_key = PublicKey::from_parsed(certificate.public_key()).map_err(DeviceCertificateError::PublicKey)?;
        Ok(Self {
            identity,
            serial: serial_of(certificate),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            public_key_der: public_key.to_der(),
        })
    }
}

/// Why a certificate is not a device certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceCertificateError {
    #[error("the certificate is larger than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the certificate is malformed")]
    Malformed,
    #[error("a device certificate has one URI as its only alternative name")]
    AlternativeName,
    #[error("the certificate's URI is not a device identity")]
    Identity(#[source] IdentityError),
    #[error("the certificate's common name is not its device's id")]
    CommonName,
    #[error("a device certificate is for client authentication and nothing else")]
    Usage,
    #[error("the certificate is one of an authority")]
    Authority,
    #[error("the certificate's public key cannot be used")]
    PublicKey(#[source] PublicKeyError),
}

fn identity_of(certificate: &X509Certificate<'_>) -> Result<DeviceIdentity, DeviceCertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| DeviceCertificateError::Malformed)?
        .ok_or(DeviceCertificateError::AlternativeName)?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(DeviceCertificateError::AlternativeName);
    };
    uri.parse().map_err(DeviceCertificateError::Identity)
}

fn common_name_of<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, DeviceCertificateError> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().map_err(|_| DeviceCertificateError::CommonName),
        _ => Err(DeviceCertificateError::CommonName),
    }
}

fn is_for_client_authentication_only(certificate: &X509Certificate<'_>) -> Result<bool, DeviceCertificateError> {
    let usage = certificate.extended_key_usage().map_err(|_| DeviceCertificateError::Malformed)?;
    Ok(usage.is_some_and(|usage| {
        let usage = usage.value;
        let others = usage.any
            || usage.server_auth
            || usage.code_signing
            || usage.email_protection
            || usage.time_stamping
            || usage.ocsp_signing
            || !usage.other.is_empty();
        usage.client_auth && !others
    }))
}

fn serial_of(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let raw = certificate.raw_serial();
    let zeros = raw.iter().take_while(|&&byte| byte == 0).count();
    raw[zeros..].to_vec()
}

fn canonical_uuid(s: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(s).ok()?;
    (uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == s).then_some(uuid)
}
