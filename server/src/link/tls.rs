//! TLS on the device port. The name that a client asks for decides: under the enrollment name nobody is asked for a
//! certificate, under any other name nobody gets in without one.
//!
//! Sessions may be resumed, which spares both sides signatures. What rustls does not look at again then, [`Tls::verify`] and the
//! caller do for every connection: the device's certificate and when it ends, who the device is, and what the database says
//! about both. Tickets are stateless: an idle device costs no memory for them.

use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{AlertDescription, CertificateError, RootCertStore, ServerConfig};

use super::ticket::Tickets;
use crate::clock;
use crate::metrics::Failure;

/// The TLS configurations of the device port.
#[derive(Debug)]
pub struct Tls {
    enroll_name: String,
    /// What judges devices' certificates.
    verifier: Arc<dyn ClientCertVerifier>,
    tickets: Option<Arc<Tickets>>,
    link: Arc<ServerConfig>,
    enrollment: Arc<ServerConfig>,
}

/// What a connection is for, by the name it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Link,
    Enrollment,
}

/// Why the device port has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the fleet's root certificate cannot be used")]
    Root(#[source] rustls::Error),
    #[error("the fleet's root certificate cannot verify devices")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

impl Tls {
    /// `root`: what device certificates go back to. `server`: what devices see. `tickets`: how sessions are resumed, if they
    /// may be.
    pub fn new(
        root: CertificateDer<'static>,
        server: Arc<dyn ResolvesServerCert>,
        enroll_name: &str,
        tickets: Option<Arc<Tickets>>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(TlsError::Root)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(TlsError::Verifier)?;
        let mut link = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::clone(&server));
        let mut enrollment = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_cert_resolver(server);
        for config in [&mut link, &mut enrollment] {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        if let Some(tickets) = &tickets {
            link.ticketer = Arc::clone(tickets) as _;
            link.send_tls13_tickets = 1;
        }
        let enroll_name = enroll_name.to_ascii_lowercase();
        Ok(Self { enroll_name, verifier, tickets, link: Arc::new(link), enrollment: Arc::new(enrollment) })
    }

    /// How sessions are resumed, if they may be.
    pub(crate) fn tickets(&self) -> Option<&Arc<Tickets>> {
        self.tickets.as_ref()
    }

    /// Judges a device's certificates as a full handshake does, at this moment.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = u64::try_from(clock::now().unix_timestamp()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        self.verifier.verify_client_cert(leaf, intermediates, now).map(|_| ())
    }

    pub(super) fn choose(&self, hello: &ClientHello<'_>) -> (Purpose, Arc<ServerConfig>) {
        // DNS names compare without regard to case.
        if hello.server_name().is_some_and(|name| name.eq_ignore_ascii_case(&self.enroll_name)) {
            (Purpose::Enrollment, Arc::clone(&self.enrollment))
        } else {
            (Purpose::Link, Arc::clone(&self.link))
        }
    }
}

/// Why a handshake failed, in a bounded number of words.
pub(super) fn failure(error: &io::Error) -> Failure {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    error.map_or(Failure::Closed, failure_of)
}

/// The same, from what TLS itself says.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named here is a broken handshake, in a newer rustls as well"
)]
pub(crate) fn failure_of(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::NoCertificatesPresented => Failure::CertificateMissing,
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => Failure::Tls,
        rustls::Error::InvalidCertificate(_) => Failure::CertificateInvalid,
        // The peer did not like our certificate, or gave up.
        rustls::Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => Failure::Closed,
        _ => Failure::Tls,
    }
}
