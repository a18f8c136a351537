//! Who may open a link: asked for every connection, full handshake or resumed session alike.
//!
//! TLS has proven that the peer holds the key of its certificate (or resumed a session in which it had). What remains is
//! whether the certificate is one of a device of this fleet, whether it is valid at this moment, and what the database says
//! about it and its device. Without an answer from the database nobody is admitted.

use cloudlink_certs::{DeviceCertificate, TrustDomain};
use cloudlink_proto::ids::{DeviceId, TenantId};
use http::StatusCode;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::Shared;
use super::problem::Problem;
use crate::admission::Registration;
use crate::clock;
use crate::metrics::Failure;
use crate::store::certificate::Standing;

/// A peer that holds the key of a device certificate that is valid now. Not yet checked against the database.
#[derive(Clone, Debug)]
pub(crate) struct Identified {
    pub(crate) device_id: DeviceId,
    pub(crate) tenant_id: TenantId,
    pub(crate) serial: Box<[u8]>,
    /// When the certificate ends.
    pub(crate) expires_at: Instant,
}

/// Reads who the peer is from its certificates.
pub(crate) fn identify(
    chain: Option<&[CertificateDer<'_>]>,
    trust_domain: &TrustDomain,
) -> Result<Identified, Problem> {
    let leaf = chain.and_then(|chain| chain.first()).ok_or_else(certificate_missing)?;
    let certificate = DeviceCertificate::parse(leaf).map_err(|error| certificate_invalid(error.to_string()))?;
    if certificate.identity.trust_domain != *trust_domain {
        return Err(certificate_invalid("the certificate is one of another trust domain"));
    }
    let now = clock::now();
    check_validity(&certificate, now)?;
    let left = (certificate.not_after - now).unsigned_abs();
    Ok(Identified {
        device_id: DeviceId::from_uuid(certificate.identity.device),
        tenant_id: TenantId::from_uuid(certificate.identity.tenant),
        serial: certificate.serial.into(),
        expires_at: Instant::now() + left,
    })
}

/// Who the peer of a resumed session is. Its certificates are those of the session's first handshake, and are judged anew: as
/// that one did, and by what holds now.
pub(crate) fn identify_resumed(shared: &Shared, chain: Option<&[CertificateDer<'_>]>) -> Result<Identified, Problem> {
    let peer = identify(chain, &shared.trust_domain)?;
    shared.tls.verify(chain.unwrap_or_default()).map_err(|error| certificate_invalid(error.to_string()))?;
    Ok(peer)
}

/// The handshake checked this too, but the one that a session resumes may have been long ago.
fn check_validity(certificate: &DeviceCertificate, now: OffsetDateTime) -> Result<(), Problem> {
    if now > certificate.not_after {
        let detail = "the certificate has expired; the device has to be enrolled again";
        return Err(refused("certificate_expired", "Certificate expired", detail, Failure::CertificateInvalid));
    }
    if now < certificate.not_before {
        return Err(certificate_invalid("the certificate is not yet valid"));
    }
    Ok(())
}

/// When a device comes back that came to a node which wants nobody new: by then another one is asked.
const DRAINING_RETRY_SECONDS: u32 = 1;

/// Whether this node serves one more device.
pub(crate) fn check_room(shared: &Shared) -> Result<(), Problem> {
    check_doors(shared)?;
    if shared.registry.is_fenced() {
        return Err(Problem::fenced());
    }
    if shared.registry.has_room() {
        return Ok(());
    }
    Err(Problem::overloaded("this node serves as many links as it may", shared.reconnect_spread_seconds()))
}

/// Whether this node wants to see devices at all.
pub(super) fn check_doors(shared: &Shared) -> Result<(), Problem> {
    if shared.registry.are_doors_closed() {
        let detail = "this node sends its devices to others; dial again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(Problem::new("draining", status, "Draining", detail, Failure::Draining)
            .with_retry_after(DRAINING_RETRY_SECONDS));
    }
    Ok(())
}

/// Whether the device may be asked about now, when many others are.
pub(crate) fn register(shared: &Shared, peer: &Identified) -> Result<Registration, Problem> {
    let busy = || Problem::overloaded("too many devices come back at once", shared.admission.retry_after_seconds());
    shared.admission.register(peer.tenant_id).ok_or_else(busy)
}

/// Asks the database whether the device may open a link.
pub(crate) async fn admit(shared: &Shared, peer: &Identified) -> Result<(), Problem> {
    check_room(shared)?;
    check_standing(shared, peer).await
}

/// Asks the database whether the device may be here at all.
pub(crate) async fn check_standing(shared: &Shared, peer: &Identified) -> Result<(), Problem> {
    let known = shared.standings.ask(peer.serial.to_vec()).await.map_err(Problem::from)?;
    let Some(known) = known.filter(|known| known.device_id == peer.device_id && known.tenant_id == peer.tenant_id)
    else {
        let detail = "the fleet's authority signed this certificate, but the server has no record of it";
        return Err(refused("certificate_unknown", "Certificate unknown", detail, Failure::Unknown));
    };
    match known.standing {
        Standing::Good => Ok(()),
        Standing::Revoked => {
            Err(refused("certificate_revoked", "Certificate revoked", "the certificate was revoked", Failure::Revoked))
        }
        Standing::Superseded => {
            let detail = "the device has used a newer certificate since; dial with that one";
            Err(refused("certificate_superseded", "Certificate superseded", detail, Failure::Revoked))
        }
        Standing::DeviceRevoked => {
            Err(refused("device_revoked", "Device revoked", "the device was revoked", Failure::Revoked))
        }
    }
}

fn certificate_missing() -> Problem {
    let detail = "a link needs a device certificate";
    refused("certificate_missing", "Certificate missing", detail, Failure::CertificateMissing)
}

fn certificate_invalid(detail: impl Into<String>) -> Problem {
    refused("certificate_invalid", "Certificate invalid", detail, Failure::CertificateInvalid)
}

fn refused(kind: &'static str, title: &'static str, detail: impl Into<String>, failure: Failure) -> Problem {
    Problem::new(kind, StatusCode::FORBIDDEN, title, detail, failure)
}
