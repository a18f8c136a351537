//! Renewal of a device certificate, over its link or by a poll. The new one is `issued` until a link with it is welcomed, or a poll
//! answered; until then the old one stays good.

use std::time::Duration;

use aws_lc_rs::digest;
use cloudlink_certs::CertificateRequest;
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::message::{CertificateIssued, CertificateRefused};

use super::Shared;
use super::enroll::{identity, new_certificate};
use crate::store::certificate::{NewCertificate, Renewal, certificate_renew};
use crate::store::{StoreError, single};

/// How long a device waits that renews too often.
const TOO_MANY_RETRY: Duration = Duration::from_secs(3600);
/// How long it waits when the database is away.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(30);
/// How long it waits when the server cannot sign, which takes a person to mend.
const FAULT_RETRY: Duration = Duration::from_secs(600);

/// What a device is told.
pub(super) type Renewed = Result<CertificateIssued, CertificateRefused>;

fn refused(code: &str, message: impl Into<String>, retry_after: Duration) -> Renewed {
    let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    Err(CertificateRefused { code: code.to_owned(), message: message.into(), retry_after_ms })
}

pub(super) async fn renew(shared: &Shared, tenant: TenantId, device: DeviceId, csr_der: &[u8]) -> Renewed {
    let request = match CertificateRequest::from_der(csr_der) {
        Ok(request) => request,
        Err(error) => return refused("csr_invalid", error.to_string(), Duration::ZERO),
    };
    let key_hash = digest::digest(&digest::SHA256, &request.public_key_der());
    let signed = new_certificate(shared).ok().and_then(|(serial, validity)| {
        let identity = identity(shared, tenant, device);
        let certificate = shared.authority.issue_device(&request, &identity, serial, validity);
        certificate
            .inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "cannot renew a certificate"))
            .ok()
            .map(|certificate| (serial, validity, certificate))
    });
    let Some((serial, validity, certificate)) = signed else {
        return refused("internal", "the server cannot sign; its log says why", FAULT_RETRY);
    };
    let recorded = async {
        let record = NewCertificate {
            serial: serial.as_bytes(),
            device_id: device,
            tenant_id: tenant,
            key_hash: key_hash.as_ref(),
            der: &certificate,
            not_after: validity.not_after(),
        };
        single!(shared.store, |connection| certificate_renew(connection, record))
    };
    match shared.store.within(recorded).await {
        Ok(Renewal::Recorded) => {
            shared.metrics.certificate_renewals.inc();
            Ok(CertificateIssued { chain_der: vec![certificate.to_vec().into()] })
        }
        Ok(Renewal::TooMany) => refused("too_many_requests", "renewed too often", TOO_MANY_RETRY),
        Ok(Renewal::Revoked) => refused("device_revoked", "the device was revoked", Duration::ZERO),
        Err(error) => refused_by_store(&error),
    }
}

fn refused_by_store(error: &StoreError) -> Renewed {
    if error.is_retryable() {
        return refused("unavailable", "the database cannot be reached", UNAVAILABLE_RETRY);
    }
    tracing::error!(error = error as &dyn std::error::Error, "cannot record a renewed certificate");
    refused("internal", "the server failed; its log says why", FAULT_RETRY)
}
