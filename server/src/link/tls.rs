//! TLS on the device port. The name that a client asks for decides: under the enrollment name nobody is asked for a
//! certificate, under any other name nobody gets in without one.
//!
//! Sessions may be resumed, which spares both sides three signatures. What rustls does not look at again then, the caller
//! does for every connection: who the device is, when its certificate ends, and what the database says about both. Tickets
//! are stateless: an idle device costs no memory for them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::GetRandomFailed;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::{AlertDescription, CertificateError, RootCertStore, ServerConfig};

use crate::metrics::Failure;

/// The TLS configurations of the device port.
#[derive(Debug)]
pub struct Tls {
    enroll_name: String,
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
    #[error("no keys for session tickets")]
    Tickets(#[source] rustls::Error),
}

impl Tls {
    /// `root`: what device certificates go back to. `server`: what devices see. `resumption`: how long a session may be
    /// resumed; zero for never.
    pub fn new(
        root: CertificateDer<'static>,
        server: Arc<dyn ResolvesServerCert>,
        enroll_name: &str,
        resumption: Duration,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(TlsError::Root)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(TlsError::Verifier)?;
        let mut link = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&server));
        let mut enrollment = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_cert_resolver(server);
        for config in [&mut link, &mut enrollment] {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        if !resumption.is_zero() {
            link.ticketer = tickets(resumption).map_err(TlsError::Tickets)?;
            link.send_tls13_tickets = 1;
        }
        let enroll_name = enroll_name.to_ascii_lowercase();
        Ok(Self { enroll_name, link: Arc::new(link), enrollment: Arc::new(enrollment) })
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

/// Tickets whose keys are gone after `lifetime`: two sets of keys, each made for half of it. A device is told the half, for
/// which any ticket is good.
fn tickets(lifetime: Duration) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    let half_seconds = u32::try_from(lifetime.as_secs() / 2).unwrap_or(u32::MAX).max(1);
    let rotator = rustls::ticketer::TicketRotator::new(half_seconds, || {
        let keys = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|_| GetRandomFailed)?;
        Ok(Box::new(Keys(keys)))
    })?;
    Ok(Arc::new(rotator))
}

/// One set of ticket keys, in the box that the rotator wants.
struct Keys(Arc<dyn ProducesTickets>);

impl ProducesTickets for Keys {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(redacted)")
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
