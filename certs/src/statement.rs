//! Signed statements: what the server tells people outside, in a form that they can keep, and check without it.
//!
//! A statement is a JSON Web Signature in its compact form (RFC 7515): `header.content.signature`, each in base64url, on one
//! line. What is signed is the text itself, so that nothing has to be written in a canonical way before it can be checked.
//!
//! * Header: `alg` `ES256`; `typ` says what kind of statement it is (a kind of its own each, RFC 8725 section 3.11); `x5c` has
//!   the signer's certificate, and no other: the root has to come from elsewhere, or it would prove nothing.
//! * Content: a JSON object that has `trust_domain` (the certificate's) and `made_at` (RFC 3339), and what its kind adds.
//! * The certificate: the URI `spiffe://<trust-domain>/statement` as its only alternative name, a P-256 key, digital signatures
//!   as the only key usage, and document signing (RFC 9336) as the only extended one. So TLS refuses it, for links as for
//!   servers, and what TLS accepts signs no statements.
//!
//! It counts whether the certificate was valid when the statement was made, not when it is looked at.

use std::str::FromStr;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;

use crate::identity::{CERTIFICATE_BYTES_MAX, TrustDomain};
use crate::key::{KeyAlgorithm, PrivateKey, PublicKey};
use crate::verify::TrustAnchor;

/// Bytes of the largest statement that is looked at. One of a day of a tenant with a thousand devices has less than a hundredth.
pub const STATEMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What certificates for statements are called.
pub(crate) const COMMON_NAME: &str = "Cloudlink statements";
/// `id-kp-documentSigning` (RFC 9336).
pub(crate) const DOCUMENT_SIGNING: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 36];
/// The only key usage: bit 0 of RFC 5280 4.2.1.3.
const DIGITAL_SIGNATURE: u16 = 1;
const PATH: &str = "/statement";

/// Who signs the statements of a fleet.
pub(crate) fn uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}{PATH}")
}

/// What a statement is about. One of another kind is never taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// How a tenant's devices were kept apart on one day.
    Isolation,
    /// What was done under a grant, when it is over.
    Receipt,
}

impl StatementKind {
    /// The `typ` in the header: a media type without `application/`.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Isolation => "vnd.cloudlink.isolation-statement+jwt",
            Self::Receipt => "vnd.cloudlink.receipt+jwt",
        }
    }
}

/// Signs a statement. The key is the one of the certificate.
pub fn sign(
    kind: StatementKind,
    content: &impl Serialize,
    certificate: &CertificateDer<'_>,
    key: &PrivateKey,
) -> Result<String, SignError> {
    let parsed = StatementCertificate::parse(certificate).map_err(SignError::Certificate)?;
    if parsed.public_key_der != key.public_key_der() {
        return Err(SignError::WrongKey);
    }
    let mut header = Header::new(Algorithm::ES256);
    header.typ = Some(kind.media_type().to_owned());
    header.x5c = Some(vec![BASE64.encode(certificate)]);
    let key = EncodingKey::from_ec_der(key.as_pkcs8_der().secret_pkcs8_der());
    jsonwebtoken::encode(&header, content, &key).map_err(SignError::Sign)
}

/// Why a statement was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the certificate is not one for statements")]
    Certificate(#[source] StatementCertificateError),
    #[error("the private key does not belong to the certificate")]
    WrongKey,
    #[error("cannot sign the statement")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// A statement that was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub certificate: StatementCertificate,
    pub made_at: OffsetDateTime,
    /// The content as it was signed: JSON.
    pub content: String,
}

/// What every content has.
#[derive(Deserialize)]
struct Common {
    trust_domain: String,
    #[serde(with = "time::serde::rfc3339")]
    made_at: OffsetDateTime,
}

impl TrustAnchor {
    /// Checks everything about a statement that can be checked without its signer: its form and kind, that its certificate is
    /// one for statements, was signed by one of the roots and was valid when it was made, and its signature. Revocation is not
    /// looked at.
    pub fn verify_statement(&self, kind: StatementKind, text: &str) -> Result<Statement, StatementError> {
        if text.len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::TooLarge);
        }
        let Parts { signed, header, content, signature } = Parts::of(text).ok_or(StatementError::Form)?;
        if header.typ.as_deref() != Some(kind.media_type()) {
            return Err(StatementError::Kind);
        }
        // There is nothing in a header that has to be understood and is not named here.
        if header.alg != Algorithm::ES256 || header.crit.is_some() {
            return Err(StatementError::Algorithm);
        }
        let der = sole_certificate(&header).ok_or(StatementError::NoCertificate)?;
        let certificate = StatementCertificate::parse(&der).map_err(StatementError::Certificate)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| StatementError::NoCertificate)?;
        if !self.has_signed(&parsed) {
            return Err(StatementError::Issuer);
        }
        let key = DecodingKey::from_ec_der(&parsed.public_key().subject_public_key.data);
        let is_genuine = jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key, Algorithm::ES256);
        if !matches!(is_genuine, Ok(true)) {
            return Err(StatementError::Signature);
        }
        let content = BASE64URL_NOPAD.decode(content.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let content = content.ok_or(StatementError::Content)?;
        let Common { trust_domain, made_at } = serde_json::from_str(&content).map_err(|_| StatementError::Content)?;
        if trust_domain != certificate.trust_domain.as_str() {
            return Err(StatementError::TrustDomain);
        }
        if made_at < certificate.not_before || certificate.not_after < made_at {
            return Err(StatementError::NotValidThen);
        }
        Ok(Statement { certificate, made_at, content })
    }
}

/// Why a statement is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    #[error("the statement is larger than {STATEMENT_BYTES_MAX} bytes")]
    TooLarge,
    #[error("this is not a JSON Web Signature in its compact form")]
    Form,
    #[error("this is another kind of statement")]
    Kind,
    #[error("the statement is not signed the way statements are")]
    Algorithm,
    #[error("the statement does not have its signer's certificate, and no other")]
    NoCertificate,
    #[error("the signer's certificate is not one for statements")]
    Certificate(#[source] StatementCertificateError),
    #[error("the signer's certificate was not issued by the authority that is trusted")]
    Issuer,
    #[error("the signature does not fit: the statement was changed, or signed by somebody else")]
    Signature,
    #[error("the content is not a JSON object that says when it was made, and for which fleet")]
    Content,
    #[error("the statement is about another fleet than its signer's")]
    TrustDomain,
    #[error("the signer's certificate was not valid when the statement was made")]
    NotValidThen,
}

/// A statement taken apart.
struct Parts<'a> {
    /// Header and content as they stand there.
    signed: &'a str,
    header: Header,
    content: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (_, content) = signed.split_once('.')?;
        let header = jsonwebtoken::decode_header(text).ok()?;
        (!content.contains('.')).then_some(Self { signed, header, content, signature })
    }
}

fn sole_certificate(header: &Header) -> Option<Vec<u8>> {
    let [certificate] = header.x5c.as_deref()? else { return None };
    BASE64.decode(certificate.as_bytes()).ok()
}

/// What the certificate of a key for statements says. Whether it is to be believed is not answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementCertificate {
    pub trust_domain: TrustDomain,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// A DER `SubjectPublicKeyInfo`.
    pub public_key_der: Vec<u8>,
}

impl StatementCertificate {
    /// Refuses whatever is not exactly a certificate for statements.
    pub fn parse(der: &[u8]) -> Result<Self, StatementCertificateError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(StatementCertificateError::TooLarge);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| StatementCertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(StatementCertificateError::Malformed);
        }
        let trust_domain = trust_domain_of(&certificate)?;
        if certificate.is_ca() || !is_for_statements_only(&certificate)? {
            return Err(StatementCertificateError::Usage);
        }
        let public_key =
            PublicKey::from_parsed(certificate.public_key()).map_err(|_| StatementCertificateError::PublicKey)?;
        if public_key.algorithm() != KeyAlgorithm::P256 {
            return Err(StatementCertificateError::PublicKey);
        }
        Ok(Self {
            trust_domain,
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            public_key_der: public_key.to_der(),
        })
    }
}

/// Why a certificate is not one for statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementCertificateError {
    #[error("the certificate is larger than {CERTIFICATE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the certificate is malformed")]
    Malformed,
    #[error("its only alternative name would be spiffe://<trust-domain>{PATH}")]
    AlternativeName,
    #[error("it would be for signing documents and nothing else")]
    Usage,
    #[error("its key would be of P-256")]
    PublicKey,
}

fn trust_domain_of(certificate: &X509Certificate<'_>) -> Result<TrustDomain, StatementCertificateError> {
    let names = certificate.subject_alternative_name().map_err(|_| StatementCertificateError::Malformed)?;
    let names = names.ok_or(StatementCertificateError::AlternativeName)?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(StatementCertificateError::AlternativeName);
    };
    uri.strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_suffix(PATH))
        .and_then(|trust_domain| TrustDomain::from_str(trust_domain).ok())
        .ok_or(StatementCertificateError::AlternativeName)
}

fn is_for_statements_only(certificate: &X509Certificate<'_>) -> Result<bool, StatementCertificateError> {
    let usage = certificate.key_usage().map_err(|_| StatementCertificateError::Malformed)?;
    let extended = certificate.extended_key_usage().map_err(|_| StatementCertificateError::Malformed)?;
    let document_signing = Oid::from(DOCUMENT_SIGNING).map_err(|_| StatementCertificateError::Malformed)?;
    let is_documents_only = extended.is_some_and(|extended| {
        let extended = extended.value;
        let others = extended.any
            || extended.client_auth
            || extended.server_auth
            || extended.code_signing
            || extended.email_protection
            || extended.time_stamping
            || extended.ocsp_signing;
        !others && extended.other == [document_signing]
    });
    Ok(is_documents_only && usage.is_some_and(|usage| usage.value.flags == DIGITAL_SIGNATURE))
}
