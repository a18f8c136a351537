//! What nodes show one another: certificates of an authority of their own, so that neither a device nor the public certificate of
//! a server is ever taken for a node.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_certs::ca::Authority;
use cloudlink_certs::issue::ServerName;
use cloudlink_certs::profile::{BACKDATE, NODE_LIFETIME, Validity};
use data_encoding::HEXLOWER;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use time::OffsetDateTime;

use super::{Files, PkiError, create, days, generate_key, read, read_key, serial, short};
use crate::config::Config;
use crate::file;

/// Under `internal`, which no public name can be (a top-level domain that is set aside).
const NAME_SUFFIX: &str = "node.cloudlink.internal";
/// Of the hash of a node's name: one label of a DNS name.
const HASH_BYTES: usize = 16;

/// The name in a node's certificate. Nodes may be called anything, so it is a hash.
#[must_use]
pub(crate) fn name_of(node: &str) -> String {
    let hash = digest(&SHA256, node.as_bytes());
    format!("{}.{NAME_SUFFIX}", HEXLOWER.encode(&hash.as_ref()[..HASH_BYTES]))
}

/// This node's certificate for other nodes, and whom it believes.
#[derive(Debug)]
pub(crate) struct NodeCredentials {
    authority: Authority,
    name: ServerName,
    current: ArcSwap<CertifiedKey>,
}

impl NodeCredentials {
    /// Makes the authority of nodes if there is none, and a certificate with a key that is never stored.
    pub(super) fn load_or_make(config: &Config, files: &Files, now: OffsetDateTime) -> Result<Self, PkiError> {
        let authority = if files.cluster_key.exists() || files.cluster_certificate.exists() {
            let key = read_key(&files.cluster_key)?;
            Authority::load(&read(&files.cluster_certificate)?, key)
                .map_err(|source| PkiError::Load { path: files.cluster_certificate.clone(), source })?
        } else {
            make(config, files, now)?
        };
        let name: ServerName = name_of(&config.node).parse()?;
        let current = ArcSwap::new(Arc::new(issue(&authority, &name, now)?));
        Ok(Self { authority, name, current })
    }

    /// A new certificate, with a new key.
    pub(super) fn refresh(&self, now: OffsetDateTime) -> Result<(), PkiError> {
        self.current.store(Arc::new(issue(&self.authority, &self.name, now)?));
        Ok(())
    }

    /// Whom nodes believe.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).expect("an authority that was loaded can be parsed");
        roots
    }

    fn root(&self) -> CertificateDer<'static> {
        self.authority.certificate_der().clone()
    }
}

fn make(config: &Config, files: &Files, now: OffsetDateTime) -> Result<Authority, PkiError> {
    let key = generate_key()?;
    create(&files.cluster_key, key.to_pem().as_bytes(), file::PRIVATE)?;
    let validity = Validity::starting_at(now, days(config.certificate.ca_days))?;
    let name = format!("Cloudlink nodes {}", short(&config.trust_domain));
    let authority = Authority::create(key, &name, serial()?, validity)?;
    create(&files.cluster_certificate, authority.certificate_pem().as_bytes(), file::PUBLIC)?;
    Ok(authority)
}

fn issue(authority: &Authority, name: &ServerName, now: OffsetDateTime) -> Result<CertifiedKey, PkiError> {
    let key = generate_key()?;
    let until = (now + NODE_LIFETIME).min(authority.validity().not_after());
    let validity = Validity::new(now - BACKDATE, until)?;
    let certificate = authority.issue_node(&key.public_key(), name, serial()?, validity)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.as_pkcs8_der().clone_key().into())
        .map_err(PkiError::Tls)?;
    Ok(CertifiedKey::new(vec![certificate], key))
}

impl ResolvesServerCert for NodeCredentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for NodeCredentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
