//! Revocation lists (RFC 5280 section 5), for verifiers that cannot ask the database.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use time::OffsetDateTime;

use crate::ca::Authority;
use crate::profile::to_certificate_time;

/// Bytes in the longest serial (RFC 5280 4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;

/// A certificate that is no longer to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Big-endian, as [`crate::DeviceCertificate`] gives it.
    pub serial: Vec<u8>,
    pub revoked_at: OffsetDateTime,
    pub reason: RevocationReason,
}

/// Why a certificate was revoked (RFC 5280 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationReason {
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// A newer certificate is in use.
    Superseded,
    /// The device is out of service.
    CessationOfOperation,
}

impl Authority {
    /// Signs a list of revoked certificates. `number` grows with each list; a verifier that enforces expiry refuses the
    /// list after `next_update`.
    pub fn issue_revocation_list(
        &self,
        number: u64,
        entries: &[Revocation],
        this_update: OffsetDateTime,
        next_update: OffsetDateTime,
    ) -> Result<CertificateRevocationListDer<'static>, RevocationListError> {
        let this_update = to_certificate_time(this_update).ok_or(RevocationListError::Time)?;
        let next_update = to_certificate_time(next_update).ok_or(RevocationListError::Time)?;
        if next_update <= this_update {
            return Err(RevocationListError::Time);
        }
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: entries.iter().map(revoked_params).collect::<Result<_, _>>()?,
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_identifier.clone()),
        };
        Ok(params.signed_by(&self.issuer).map_err(RevocationListError::Sign)?.into())
    }
}

/// Why a revocation list was not issued.
#[derive(Debug, thiserror::Error)]
pub enum RevocationListError {
    #[error("a revocation list is valid from 1970 to 9999 at most, and ends after it begins")]
    Time,
    #[error("a serial has 1 to {SERIAL_BYTES_MAX} bytes and is not zero")]
    Serial,
    #[error("cannot sign the revocation list")]
    Sign(#[source] rcgen::Error),
}

fn revoked_params(revocation: &Revocation) -> Result<RevokedCertParams, RevocationListError> {
    let Revocation { serial, revoked_at, reason } = revocation;
    if serial.len() > SERIAL_BYTES_MAX || serial.iter().all(|&byte| byte == 0) {
        return Err(RevocationListError::Serial);
    }
    Ok(RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: to_certificate_time(*revoked_at).ok_or(RevocationListError::Time)?,
        reason_code: match reason {
            RevocationReason::Unspecified => None,
            RevocationReason::KeyCompromise => Some(rcgen::RevocationReason::KeyCompromise),
            RevocationReason::Superseded => Some(rcgen::RevocationReason::Superseded),
            RevocationReason::CessationOfOperation => Some(rcgen::RevocationReason::CessationOfOperation),
        },
        invalidity_date: None,
    })
}
