//! Renewal of a device certificate over its link. The new one is `issued` until a link with it is welcomed; until then the
//! old one stays good.

use std::time::Duration;

use aws_lc_rs::digest;
use cloudlink_certs::CertificateRequest;
use cloudlink_proto::ids::{DeviceId, TenantId};
use rustls_pki_types::CertificateDer;

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
#[derive(Debug)]
pub(super) enum Renewed {
    Issued(CertificateDer<'static>),
    Refused { code: &'static str, message: String, retry_after: Duration },
}

impl Renewed {
    fn refused(code: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self::Refused { code, message: message.into(), retry_after }
    }
}

pub(super) async fn renew(shared: &Shared, tenant: TenantId, device: DeviceId, csr_der: &[u8]) -> Renewed {
    let request = match CertificateRequest::from_der(csr_der) {
        Ok(request) => request,
        Err(error) => return Renewed::refused("csr_invalid", error.to_string(), Duration::ZERO),
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
        return Renewed::refused("internal", "the server cannot sign; its log says why", FAULT_RETRY);
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
            Renewed::Issued(certificate)
        }
        Ok(Renewal::TooMany) => Renewed::refused("too_many_requests", "renewed too often", TOO_MANY_RETRY),
        Ok(Renewal::Revoked) => Renewed::refused("device_revoked", "the device was revoked", Duration::ZERO),
        Err(error) => refused_by_store(&error),
    }
}

fn refused_by_store(error: &StoreError) -> Renewed {
    if error.is_retryable() {
        return Renewed::refused("unavailable", "the database cannot be reached", UNAVAILABLE_RETRY);
    }
    tracing::error!(error = error as &dyn std::error::Error, "cannot record a renewed certificate");
    Renewed::refused("internal", "the server failed; its log says why", FAULT_RETRY)
}
