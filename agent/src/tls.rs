//! TLS 1.3 towards the server: what is trusted, at what time, and what the device proves itself with.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use cloudlink_certs::TrustAnchor;

use crate::clock;
use crate::identity::Credential;

/// Names of the server for which tickets are kept. There is one.
const SESSIONS_MAX: usize = 2;

/// What the device's clock is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// It is not earlier.
    pub earliest: OffsetDateTime,
    /// The end of the device's own certificate: a clock beyond it is wrong, or the device is of no use anyway.
    pub own_end: Option<OffsetDateTime>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("cannot use the root certificates")]
    Roots(#[source] rustls::Error),
    #[error("cannot check against the root certificates")]
    Verifier(#[source] VerifierBuilderError),
    #[error("the device's certificate cannot be read")]
    Credential(#[source] rustls::Error),
    #[error("cannot set up TLS 1.3")]
    Versions(#[source] rustls::Error),
}

/// A client of the server, with what is needed to resume its sessions.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    verifier: Arc<TimedVerifier>,
}

impl Client {
    /// Without a credential it is only good for enrollment.
    ///
    /// # Errors
    /// When the roots cannot be used.
    pub fn new(anchor: &TrustAnchor, credential: Option<&Credential>, bounds: Bounds) -> Result<Self, TlsSetupError> {
        let (config, verifier) = client_config(anchor, credential, bounds)?;
        Ok(Self { config: Arc::new(config), verifier })
    }

    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// From now on the device's clock is measured against these.
    pub fn judge_by(&self, bounds: Bounds) {
        *self.verifier.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
    }

    /// Judges the server's certificates of a resumed session as a full handshake does, at this moment.
    ///
    /// # Errors
    /// When they do not hold any more.
    pub fn verify_again(
        &self,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(clock::wall_clock().unix_timestamp()).unwrap_or(0),
        ));
        self.verifier.verify_server_cert(leaf, intermediates, server_name, &[], now).map(|_| ())
    }
}

/// The client of the links, kept from one to the next: a session can only be resumed by the client that began it.
#[derive(Debug, Default)]
pub struct Kept(Option<(CertificateDer<'static>, Client)>);

impl Kept {
    /// The client of before, if it proves the device with the same certificate.
    ///
    /// # Errors
    /// When the roots cannot be used.
    pub fn client(
        &mut self,
        anchor: &TrustAnchor,
        credential: &Credential,
        bounds: Bounds,
    ) -> Result<Client, TlsSetupError> {
        let leaf = credential.certified_key.end_entity_cert().map_err(TlsSetupError::Credential)?;
        if let Some((_, client)) = self.0.as_ref().filter(|(of, _)| of == leaf) {
            client.judge_by(bounds);
            return Ok(client.clone());
        }
        let client = Client::new(anchor, Some(credential), bounds)?;
        self.0 = Some((leaf.clone().into_owned(), client.clone()));
        Ok(client)
    }
}

fn client_config(
    anchor: &TrustAnchor,
    credential: Option<&Credential>,
    bounds: Bounds,
) -> Result<(ClientConfig, Arc<TimedVerifier>), TlsSetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in anchor.roots() {
        roots.add(root.clone()).map_err(TlsSetupError::Roots)?;
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(TlsSetupError::Verifier)?;
    let verifier = Arc::new(TimedVerifier { chain, bounds: Mutex::new(bounds) });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsSetupError::Versions)?
        // Nothing is weakened: the verifier below hands everything on, with another time.
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
    let mut config = match credential {
        Some(credential) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&credential.certified_key))))
        }
        None => builder.with_no_client_auth(),
    };
    // Whoever resumes a session judges the server's certificates again.
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX).tls12_resumption(Tls12Resumption::Disabled);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, verifier))
}

/// Checks chain, name, usage and life as always, but not by a clock that is proven wrong.
#[derive(Debug)]
struct TimedVerifier {
    chain: Arc<WebPkiServerVerifier>,
    bounds: Mutex<Bounds>,
}

impl TimedVerifier {
    fn bounds(&self) -> Bounds {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for TimedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let begins = validity(end_entity).map(|(begins, _)| begins);
        let at = judged_at(now, self.bounds(), begins);
        self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The time at which a server's certificate is judged: the device's clock, unless that is proven wrong. Then it is the
/// earliest that it can be, or the beginning of the certificate, which is evidence of the time once its signature holds.
fn judged_at(clock: UnixTime, bounds: Bounds, certificate_begins: Option<OffsetDateTime>) -> UnixTime {
    let plausible = bounds.earliest.unix_timestamp()..=bounds.own_end.map_or(i64::MAX, OffsetDateTime::unix_timestamp);
    let clock_seconds = i64::try_from(clock.as_secs()).unwrap_or(i64::MAX);
    if plausible.contains(&clock_seconds) {
        return clock;
    }
    let at = certificate_begins.map_or(bounds.earliest, |begins| begins.max(bounds.earliest));
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at.unix_timestamp()).unwrap_or(0)))
}

/// From when to when a certificate is valid; `None` for what is no certificate.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

/// When the oldest of the trusted roots was made.
#[must_use]
pub fn authority_made(anchor: &TrustAnchor) -> OffsetDateTime {
    let made = anchor.roots().iter().filter_map(|root| validity(root).map(|(begins, _)| begins)).min();
    made.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use time::macros::datetime;

    use super::*;

    const EARLIEST: OffsetDateTime = datetime!(2027-01-01 00:00 UTC);
    const OWN_END: OffsetDateTime = datetime!(2027-06-01 00:00 UTC);
    const RENEWED: OffsetDateTime = datetime!(2027-03-01 00:00 UTC);

    #[rstest]
    #[case::plausible(datetime!(2027-02-01 00:00 UTC), Some(OWN_END), None, datetime!(2027-02-01 00:00 UTC))]
    #[case::plausible_but_before_the_certificate(datetime!(2027-02-01 00:00 UTC), Some(OWN_END), Some(RENEWED), datetime!(2027-02-01 00:00 UTC))]
    #[case::no_battery(datetime!(1970-01-01 00:00 UTC), Some(OWN_END), None, EARLIEST)]
    #[case::no_battery_and_a_renewed_server(datetime!(1970-01-01 00:00 UTC), Some(OWN_END), Some(RENEWED), RENEWED)]
    #[case::years_ahead(datetime!(2040-01-01 00:00 UTC), Some(OWN_END), None, EARLIEST)]
    #[case::ahead_without_a_certificate(datetime!(2040-01-01 00:00 UTC), None, None, datetime!(2040-01-01 00:00 UTC))]
    fn a_clock_counts_unless_it_is_proven_wrong(
        #[case] clock: OffsetDateTime,
        #[case] own_end: Option<OffsetDateTime>,
        #[case] begins: Option<OffsetDateTime>,
        #[case] expected: OffsetDateTime,
    ) {
        let seconds = std::time::Duration::from_secs(u64::try_from(clock.unix_timestamp()).unwrap());
        let at = judged_at(UnixTime::since_unix_epoch(seconds), Bounds { earliest: EARLIEST, own_end }, begins);
        assert_eq!(i64::try_from(at.as_secs()).unwrap(), expected.unix_timestamp());
    }
}
