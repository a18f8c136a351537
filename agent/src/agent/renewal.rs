//! Asks for the next certificate in time, by the server's clock, and takes it.

use std::time::Duration;

use cloudlink_certs::PrivateKey;
use cloudlink_certs::renew::renew_at;
use cloudlink_proto::link::message::{CertificateIssued, CertificateRequest};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::{Agent, Dialling, Reason, TRY_NEXT_WITHIN};
use crate::backoff::jitter;
use crate::chain;
use crate::identity::{self, Slot};

/// How long the server may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// When to ask again after no answer, or one that does not hold.
pub(super) const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// The longest sleep: a certificate lives for months, longer than a timer should be trusted.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Where a renewal stands on the present link.
#[derive(Debug, Default)]
pub(super) enum Renewal {
    /// Not on this link.
    #[default]
    Not,
    /// To be looked at then.
    At(Instant),
    /// Asked; to be given up then.
    Asked { key: PrivateKey, until: Instant },
}

impl Renewal {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Not => None,
            Self::At(at) | Self::Asked { until: at, .. } => Some(*at),
        }
    }

    /// Zero: not before the next link.
    pub(super) fn refused(&mut self, now: Instant, retry_after: Duration) {
        *self = if retry_after.is_zero() { Self::Not } else { Self::At(now + retry_after) };
    }

    pub(super) fn link_lost(&mut self) {
        *self = Self::Not;
    }
}

impl Agent {
    /// Sets when to look at the certificate next.
    pub(super) fn schedule_renewal(&mut self, now: Instant) {
        self.renewal = match self.renewal_in(now) {
            Some(wait) => Renewal::At(now + wait.min(LOOK_EVERY)),
            None => Renewal::Not,
        };
    }

    /// `None` while a renewed one waits to be tried out, and when it is not this agent's certificate that proves the device.
    fn renewal_in(&self, now: Instant) -> Option<Duration> {
        if self.is_beside() {
            return None;
        }
        if self.identity.slot(Slot::Next).is_some() {
            return None;
        }
        let certificate = &self.identity.slot(Slot::Current)?.certificate;
        let at = renew_at(certificate.not_before, certificate.not_after, jitter_of(&certificate.serial));
        // The device's own clock may be off by years: the server's counts.
        let wait = at - self.known_time.best();
        Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).max(self.trial.ask_after(now)))
    }

    /// Asks for a certificate if it is time; gives up on an answer that did not come.
    pub(super) fn renew(&mut self, now: Instant) {
        self.known_time.tick();
        if matches!(self.renewal, Renewal::Asked { .. }) {
            tracing::warn!("the server did not answer the request for a new certificate");
            self.renewal = Renewal::At(now + ASK_AGAIN_AFTER);
            return;
        }
        if self.renewal_in(now) != Some(Duration::ZERO) {
            return self.schedule_renewal(now);
        }
        match self.ask_for_certificate() {
            Ok(key) => self.renewal = Renewal::Asked { key, until: now + ANSWERED_WITHIN },
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot ask for a new certificate");
                self.renewal = Renewal::At(now + ASK_AGAIN_AFTER);
            }
        }
    }

    fn ask_for_certificate(&mut self) -> Result<PrivateKey, identity::IdentityError> {
        let (key, request) = new_request()?;
        self.tell(request);
        Ok(key)
    }

    /// What a poll asks for, if it is time.
    pub(super) fn ask_by_poll(&mut self, now: Instant) -> Option<(PrivateKey, CertificateRequest)> {
        self.known_time.tick();
        if self.renewal_in(now) != Some(Duration::ZERO) {
            return None;
        }
        new_request()
            .inspect_err(|error| tracing::error!(error = chain(error), "cannot ask for a new certificate"))
            .ok()
    }

    /// Puts the certificate beside the present one. Gives whether that could be done.
    pub(super) fn keep_issued(&mut self, key: &PrivateKey, issued: &CertificateIssued) -> bool {
        let chain_der: Vec<_> = issued.chain_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let kept = self.identity.renewed(key, &chain_der, &self.anchor, self.known_time.best());
        kept.inspect_err(|error| tracing::error!(error = chain(error), "the new certificate cannot be used")).is_ok()
    }

    pub(super) fn handle_issued(&mut self, now: Instant, issued: &CertificateIssued) {
        let Renewal::Asked { key, .. } = std::mem::take(&mut self.renewal) else {
            tracing::warn!("a certificate came that was not asked for");
            return self.schedule_renewal(now);
        };
        if !self.keep_issued(&key, issued) {
            self.renewal = Renewal::At(now + ASK_AGAIN_AFTER);
            return;
        }
        tracing::info!("a new certificate is here: trying it out on a new link");
        if matches!(self.dialling, Dialling::Not) {
            self.dialling = Dialling::At(now + TRY_NEXT_WITHIN.mul_f64(jitter()), Reason::Own);
        }
    }
}

fn new_request() -> Result<(PrivateKey, CertificateRequest), identity::IdentityError> {
    let key = identity::new_key()?;
    let csr_der = identity::request(&key)?.into();
    tracing::info!("asking for a new certificate");
    Ok((key, CertificateRequest { csr_der }))
}

/// The same for each look at one certificate; serials are random.
fn jitter_of(serial: &[u8]) -> f64 {
    match serial {
        [.., high, low] => f64::from(u16::from_be_bytes([*high, *low])) / f64::from(u16::MAX),
        _ => 0.5,
    }
}
