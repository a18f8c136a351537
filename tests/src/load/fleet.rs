//! Keys and certificates of many devices, as enrollment would give them.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::{
    Authority, CertificateRequest, DeviceIdentity, PrivateKey, Serial, ServerName, TrustDomain, Validity,
    create_request, profile,
};
use cloudlink_proto::ids::{DeviceId, TenantId};
use data_encoding::BASE64;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::dial::Credentials;

/// The name that every server of a benchmark answers to.
pub const SERVER_NAME: &str = "localhost";

/// Devices of one tenant, and the authority that vouches for them.
#[derive(Debug)]
pub struct Fleet {
    pub authority: Authority,
    pub tenant: TenantId,
    pub devices: Vec<Credential>,
    pub roots: Arc<RootCertStore>,
}

/// What one device has.
#[derive(Debug)]
pub struct Credential {
    pub id: DeviceId,
    pub serial: Serial,
    pub certificate: CertificateDer<'static>,
    pub not_after: OffsetDateTime,
    /// SHA-256 of the public key.
    pub key_hash: [u8; 32],
    key: Arc<PrivateKey>,
}

/// What a server has.
#[derive(Debug)]
pub struct ServerCredential {
    pub certificate_pem: String,
    pub key: PrivateKey,
}

impl Fleet {
    /// Makes `count` devices of this tenant, each with a P-256 key of its own.
    pub fn issue(
        authority: Authority,
        trust_domain: &TrustDomain,
        tenant: TenantId,
        count: usize,
        now: OffsetDateTime,
    ) -> Result<Self> {
        let devices =
            (0..count).map(|_| Credential::issue(&authority, trust_domain, tenant, now)).collect::<Result<_>>()?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate_der().clone()).context("cannot trust the fleet's authority")?;
        Ok(Self { authority, tenant, devices, roots: Arc::new(roots) })
    }

    /// A certificate for a server that answers to [`SERVER_NAME`].
    pub fn issue_server(&self, now: OffsetDateTime) -> Result<ServerCredential> {
        let key = new_key()?;
        let names: [ServerName; 2] = [SERVER_NAME.parse()?, "127.0.0.1".parse()?];
        let validity = Validity::starting_at(now - profile::BACKDATE, profile::SERVER_LIFETIME)?;
        let certificate = self.authority.issue_server(&key.public_key(), &names, new_serial()?, validity)?;
        Ok(ServerCredential { certificate_pem: cloudlink_certs::pem::certificate_to_pem(&certificate), key })
    }
}

impl Credential {
    fn issue(authority: &Authority, trust_domain: &TrustDomain, tenant: TenantId, now: OffsetDateTime) -> Result<Self> {
        let key = new_key()?;
        let id = DeviceId::from_uuid(Uuid::now_v7());
        let identity =
            DeviceIdentity { trust_domain: trust_domain.clone(), tenant: tenant.as_uuid(), device: id.as_uuid() };
        let request = CertificateRequest::from_der(&create_request(&key)?)?;
        let serial = new_serial()?;
        let validity = Validity::starting_at(now - profile::BACKDATE, profile::DEVICE_LIFETIME)?;
        let certificate = authority.issue_device(&request, &identity, serial, validity)?;
        let mut key_hash = [0; 32];
        key_hash.copy_from_slice(digest::digest(&digest::SHA256, &request.public_key_der()).as_ref());
        Ok(Self { id, serial, certificate, not_after: validity.not_after(), key_hash, key: Arc::new(key) })
    }

    /// For another process: one line, which [`Self::from_line`] reads.
    #[must_use]
    pub fn to_line(&self) -> String {
        let parts = [
            self.id.to_string(),
            BASE64.encode(self.serial.as_bytes()),
            BASE64.encode(&self.certificate),
            self.not_after.unix_timestamp().to_string(),
            BASE64.encode(&self.key_hash),
            BASE64.encode(self.key.as_pkcs8_der().secret_pkcs8_der()),
        ];
        parts.join(" ")
    }

    pub fn from_line(line: &str) -> Result<Self> {
        let parts: Vec<_> = line.split(' ').collect();
        let [id, serial, certificate, not_after, key_hash, key] = parts[..] else { bail!("it is no credential") };
        let bytes = |part: &str| BASE64.decode(part.as_bytes()).context("it is no base64");
        let wrong = |_| anyhow!("it is of another length");
        Ok(Self {
            id: id.parse().map_err(|_| anyhow!("it is no id"))?,
            serial: Serial::from_random(bytes(serial)?.try_into().map_err(wrong)?),
            certificate: bytes(certificate)?.into(),
            not_after: OffsetDateTime::from_unix_timestamp(not_after.parse()?)?,
            key_hash: bytes(key_hash)?.try_into().map_err(wrong)?,
            key: Arc::new(PrivateKey::from_pkcs8_der(&bytes(key)?)?),
        })
    }

    /// What it shows to be let in, for other clients than those of the load generator.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials { certificate: self.certificate.clone(), key: self.key.clone() }
    }

    /// The private key, for a TLS stack.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.as_pkcs8_der().clone_key())
    }
}

/// A self-signed authority, for what is measured without a Cloudlink server.
pub fn new_authority(now: OffsetDateTime) -> Result<Authority> {
    let validity = Validity::starting_at(now - profile::BACKDATE, profile::AUTHORITY_LIFETIME)?;
    Ok(Authority::create(new_key()?, "Benchmark CA", new_serial()?, validity)?)
}

pub(crate) fn new_key() -> Result<PrivateKey> {
    let document = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
        .and_then(|pair| pair.to_pkcs8v1())
        .map_err(|_| anyhow!("cannot make a key"))?;
    Ok(PrivateKey::from_pkcs8_der(document.as_ref())?)
}

pub(crate) fn new_serial() -> Result<Serial> {
    let mut random = [0; Serial::LEN];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow!("no randomness"))?;
    Ok(Serial::from_random(random))
}
