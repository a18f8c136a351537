//! Certificates for devices, servers, nodes and statements.

use std::net::IpAddr;
use std::str::FromStr;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, DnsName};

use crate::ca::{Authority, COMMON_NAME_CHARS_MAX};
use crate::csr::CertificateRequest;
use crate::identity::{DeviceIdentity, TrustDomain};
use crate::key::{KeyAlgorithm, PublicKey};
use crate::profile::{Serial, Validity};
use crate::statement::{self, DOCUMENT_SIGNING};

/// Names in one server certificate.
pub const SERVER_NAMES_MAX: usize = 64;
/// The common name of a server whose name is too long for one.
const COMMON_NAME_FALLBACK: &str = "cloudlinkd";

/// A name that a server answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Dns(DnsName<'static>),
    Ip(IpAddr),
}

impl FromStr for ServerName {
    type Err = IssueError;

    /// An IP address or a DNS name; a leading `*.` is not taken.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Ok(ip) = s.parse() {
            return Ok(Self::Ip(ip));
        }
        let name = DnsName::try_from(s.to_owned()).map_err(|_| IssueError::ServerName)?;
        Ok(Self::Dns(name.to_lowercase_owned()))
    }
}

impl ServerName {
    /// What a server certificate calls a server with this first name: the name itself, or a fixed one if it is too long. OpenVPN
    /// clients compare it (`verify-x509-name … name`) and look at no other name; all others go by the alternative names.
    #[must_use]
    pub fn common_name(&self) -> String {
        let name = match self {
            Self::Dns(name) => name.as_ref().to_owned(),
            Self::Ip(ip) => ip.to_string(),
        };
        if name.len() <= COMMON_NAME_CHARS_MAX { name } else { COMMON_NAME_FALLBACK.to_owned() }
    }
}

impl Authority {
    /// Signs a device certificate: the public key of the request, and for the rest what the caller says. For client
    /// authentication only.
    pub fn issue_device(
        &self,
        request: &CertificateRequest,
        identity: &DeviceIdentity,
        serial: Serial,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let mut params = leaf_params(serial, validity, ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::CommonName, identity.device.to_string());
        let uri = identity.to_string().try_into().expect("identities are ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        self.sign(&params, request.public_key())
    }

    /// Signs a server certificate. For server authentication only. Its common name is the first name's.
    pub fn issue_server(
        &self,
        public_key: &PublicKey,
        names: &[ServerName],
        serial: Serial,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let Some(first) = names.first().filter(|_| names.len() <= SERVER_NAMES_MAX) else {
            return Err(IssueError::ServerNames);
        };
        let mut params = leaf_params(serial, validity, ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name.push(DnType::CommonName, first.common_name());
        params.subject_alt_names = names.iter().map(alternative_name).collect();
        self.sign(&params, public_key)
    }

    /// Signs the certificate of a node, under the one name that other nodes dial it by. For both ends of a connection. The authority
    /// must be one of nodes alone: whoever holds a certificate of it is a node.
    pub fn issue_node(
        &self,
        public_key: &PublicKey,
        name: &ServerName,
        serial: Serial,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let mut params = leaf_params(serial, validity, ExtendedKeyUsagePurpose::ServerAuth);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::CommonName, name.common_name());
        params.subject_alt_names = vec![alternative_name(name)];
        self.sign(&params, public_key)
    }

    /// Signs the certificate of a key that signs statements. For signing documents only: TLS refuses it in both directions.
    pub fn issue_statement(
        &self,
        public_key: &PublicKey,
        trust_domain: &TrustDomain,
        serial: Serial,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, IssueError> {
        if public_key.algorithm() != KeyAlgorithm::P256 {
            return Err(IssueError::StatementKey);
        }
        let usage = ExtendedKeyUsagePurpose::Other(DOCUMENT_SIGNING.to_vec());
        let mut params = leaf_params(serial, validity, usage);
        params.distinguished_name.push(DnType::CommonName, statement::COMMON_NAME);
        let uri = statement::uri(trust_domain).try_into().expect("trust domains are ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        self.sign(&params, public_key)
    }

    fn sign(&self, params: &CertificateParams, public_key: &PublicKey) -> Result<CertificateDer<'static>, IssueError> {
        if params.not_after > self.validity().not_after() {
            return Err(IssueError::OutlivesAuthority);
        }
        Ok(params.signed_by(public_key.info(), &self.issuer).map_err(IssueError::Sign)?.into())
    }
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("the certificate would be valid for longer than the authority that signs it")]
    OutlivesAuthority,
    #[error("a server certificate has 1 to {SERVER_NAMES_MAX} names")]
    ServerNames,
    #[error("statements are signed with P-256 keys")]
    StatementKey,
    #[error("this is neither a DNS name nor an IP address")]
    ServerName,
    #[error("cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
}

/// What all leaves have in common. Set here in full: the library's defaults are a CA's worst (a name, and no end).
fn leaf_params(serial: Serial, validity: Validity, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.not_before = validity.not_before();
    params.not_after = validity.not_after();
    params.use_authority_key_identifier_extension = true;
    params
}

fn alternative_name(name: &ServerName) -> SanType {
    match name {
        ServerName::Dns(name) => SanType::DnsName(name.as_ref().try_into().expect("DNS names are ASCII")),
        ServerName::Ip(ip) => SanType::IpAddress(*ip),
    }
}
