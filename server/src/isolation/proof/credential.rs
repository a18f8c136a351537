//! What a probe shows to be let in: a certificate of the fleet's authority, like any device's, for a key that never leaves this
//! process. It lives short, and is made anew long before it ends.

use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::{
    Authority, CertificateRequest, DeviceIdentity, PrivateKey, Serial, TrustDomain, Validity, create_request,
};
use cloudlink_proto::openvpn::{
    ClientConfig, ClientWrapping, KeyDirection, KeyMetadata, ServerWrapping, StaticKey, tls_client_config,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use time::{Duration, OffsetDateTime};

use crate::clock;
use crate::model::device::probe_id;
use crate::store::certificate::NewCertificate;
use crate::store::proof::{probe_enroll_in_txn, probe_tenant};
use crate::store::{Store, StoreError, Visibility};

/// How long a certificate is valid, and after how long the next one is made.
const LIFETIME: Duration = Duration::hours(24);
const RENEW_AFTER: Duration = Duration::hours(16);

/// Whom probes are, and by whom.
#[derive(Clone, Debug)]
pub(super) struct Issuer {
    pub(super) node: String,
    pub(super) trust_domain: TrustDomain,
    pub(super) authority: Arc<Authority>,
    pub(super) store: Store,
    pub(super) wrapping: ServerWrapping,
    /// The name that the server's certificate has.
    pub(super) server_name: String,
}

/// Why a probe gets no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrollError {
    #[error("a key or a certificate of it cannot be made")]
    Make(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the database does not take it")]
    Store(#[from] StoreError),
}

impl EnrollError {
    fn make(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Make(error.into())
    }
}

/// A client's configuration that is good until it is to be made anew.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) client: Arc<ClientConfig>,
    pub(super) renew_at: OffsetDateTime,
}

impl Issuer {
    /// Makes the probe of this number a device of the internal tenant, with a certificate.
    pub(super) async fn enroll(&self, number: u8) -> Result<Credential, EnrollError> {
        let now = clock::now();
        let key = new_key()?;
        let request = create_request(&key).map_err(EnrollError::make)?;
        let request = CertificateRequest::from_der(&request).map_err(EnrollError::make)?;
        let key_hash = digest::digest(&digest::SHA256, &request.public_key_der());
        let device_id = probe_id(&self.node, number);
        let lifetime = LIFETIME.min(self.authority.validity().not_after() - now);
        let validity = Validity::starting_at(now, lifetime).map_err(EnrollError::make)?;
        let serial = Serial::from_random(random());

        let recorded = async {
            let mut transaction = self.store.begin(Visibility::All).await?;
            let tenant_id = probe_tenant(&mut transaction).await?;
            let identity = DeviceIdentity {
                trust_domain: self.trust_domain.clone(),
                tenant: tenant_id.as_uuid(),
                device: device_id.as_uuid(),
            };
            let certificate = self.authority.issue_device(&request, &identity, serial, validity);
            let Ok(certificate) = certificate else { return Ok(certificate) };
            let record = NewCertificate {
                serial: serial.as_bytes(),
                device_id,
                tenant_id,
                key_hash: key_hash.as_ref(),
                der: &certificate,
                not_after: validity.not_after(),
            };
            probe_enroll_in_txn(&mut transaction, &format!("{} {number}", self.node), record).await?;
            self.store.commit(transaction).await?;
            Ok(Ok(certificate))
        };
        let certificate = self.store.within(recorded).await?.map_err(EnrollError::make)?;

        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate_der().clone()).map_err(EnrollError::make)?;
        let mut tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.as_pkcs8_der().clone_key()))
            .map_err(EnrollError::make)?;
        tls_client_config(&mut tls);
        let server_name = ServerName::try_from(self.server_name.clone()).map_err(EnrollError::make)?;
        let client = ClientConfig {
            wrapping: self.client_wrapping(device_id.as_uuid().as_bytes())?,
            push_request_every: Some(std::time::Duration::ZERO),
            ..ClientConfig::new(Arc::new(tls), server_name)
        };
        Ok(Credential { client: Arc::new(client), renew_at: now + RENEW_AFTER.min(lifetime / 2) })
    }

    /// The other half of the server's.
    fn client_wrapping(&self, device: &[u8]) -> Result<ClientWrapping, EnrollError> {
        Ok(match &self.wrapping {
            ServerWrapping::None => ClientWrapping::None,
            ServerWrapping::TlsAuth { key, direction, digest } => ClientWrapping::TlsAuth {
                key: key.clone(),
                direction: match direction {
                    KeyDirection::Both => KeyDirection::Both,
                    KeyDirection::Zero => KeyDirection::One,
                    KeyDirection::One => KeyDirection::Zero,
                },
                digest: *digest,
            },
            ServerWrapping::TlsCrypt(key) => ClientWrapping::TlsCrypt(key.clone()),
            ServerWrapping::TlsCryptV2(server) => {
                let metadata = KeyMetadata::Issuer(device).to_bytes();
                let key = server.issue(StaticKey::from_bytes(random()), &metadata).map_err(EnrollError::make)?;
                ClientWrapping::TlsCryptV2(key)
            }
        })
    }
}

fn new_key() -> Result<PrivateKey, EnrollError> {
    let made = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).and_then(|pair| pair.to_pkcs8v1());
    let document = made.map_err(|_| EnrollError::make("the system gives no key"))?;
    PrivateKey::from_pkcs8_der(document.as_ref()).map_err(EnrollError::make)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source has no way to fail once it is seeded");
    bytes
}
