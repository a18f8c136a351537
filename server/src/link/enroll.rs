//! Enrollment: a token and a certificate request become a device with its first certificate, in one transaction.

use std::net::IpAddr;

use aws_lc_rs::digest;
use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_certs::{CertificateRequest, DeviceIdentity, PublicKey, Serial, Validity};
use cloudlink_proto::enroll::{Access, BODY_BYTES_MAX, Request as Enrollment, Response as Enrolled};
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::ENROLL_PATH;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use uuid::Uuid;

use super::Shared;
use super::problem::{Answer, Problem};
use crate::clock;
use crate::metrics::Failure;
use crate::secret::{Purpose, TokenHash};
use crate::store::certificate::NewCertificate;
use crate::store::enrollment::{
    LockedToken, enrollment_certificate, enrollment_complete_in_txn, enrollment_token_lock_in_txn,
};
use crate::store::signing_key::signing_key_rules;
use crate::store::{StoreError, Visibility};

/// How long somebody who enrolls too fast is told to wait.
const RETRY_AFTER_SECONDS: u32 = 10;
/// The constraint that refuses a second device of one name.
const DEVICE_NAME_CONSTRAINT: &str = "devices_tenant_id_name_key";

/// Answers a request under the enrollment name.
pub(super) async fn answer(shared: &Shared, request: Request<Incoming>, remote: IpAddr) -> Result<Answer, Problem> {
    match (request.uri().path(), request.method()) {
        (ENROLL_PATH, &Method::POST) => {}
        (ENROLL_PATH, _) => return Err(Problem::method_not_allowed("POST")),
        _ => return Err(Problem::not_found("a device enrolls here, and can do nothing else")),
    }
    let enrolled = Box::pin(enroll(shared, request, remote)).await;
    match &enrolled {
        Ok(_) => shared.metrics.enrollments.inc(),
        Err(problem) => shared.metrics.enrollment_failed(problem.failure),
    }
    Ok(to_answer(&enrolled?))
}

async fn enroll(shared: &Shared, request: Request<Incoming>, remote: IpAddr) -> Result<Enrolled, Problem> {
    let Some(_pass) = shared.enrolling.enter(remote, Instant::now()) else {
        return Err(Problem::too_many_requests("too many enrollments from this address", RETRY_AFTER_SECONDS));
    };
    let enrollment = read(request).await?;
    let secret = TokenHash::of_presented(Purpose::Enrollment, &enrollment.token).ok_or_else(token_invalid)?;
    let request = CertificateRequest::from_pem(enrollment.csr_pem.as_bytes())
        .map_err(|error| csr_invalid(&error as &dyn std::error::Error))?;
    trade(shared, &secret, &request).await.map_err(|refusal| match refusal {
        Refusal::Told(problem) => problem,
        Refusal::Store(error) if error.is_retryable() => Problem::unavailable(),
        Refusal::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "an enrollment failed");
            Problem::internal()
        }
    })
}

async fn read(request: Request<Incoming>) -> Result<Enrollment, Problem> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let detail = format!("the body is over {BODY_BYTES_MAX} bytes");
            Problem::new("too_large", StatusCode::PAYLOAD_TOO_LARGE, "Too large", detail, Failure::Http)
        } else {
            Problem::bad_request("the body is incomplete")
        }
    })?;
    // The error of the parser may quote the body, and with it the token.
    serde_json::from_slice(&body.to_bytes())
        .map_err(|_| Problem::bad_request(r#"the body is not JSON of the form {"token": "cle_…", "csr_pem": "…"}"#))
}

enum Refusal {
    Told(Problem),
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

/// Trades the token for a certificate. The same token with the same key gives the same certificate until it expires, so
/// that a lost answer is no lost device.
async fn trade(shared: &Shared, secret: &TokenHash, request: &CertificateRequest) -> Result<Enrolled, Refusal> {
    let key_hash = digest::digest(&digest::SHA256, &request.public_key_der());
    let mut transaction = shared.store.begin(Visibility::All).await?;
    let token = enrollment_token_lock_in_txn(&mut transaction, secret.as_bytes()).await?.ok_or_else(token_invalid)?;
    if token.is_expired {
        return Err(token_expired().into());
    }
    let access = access(signing_key_rules(&mut transaction, token.tenant_id).await?);
    if let Some(device) = token.device_id {
        let issued = enrollment_certificate(&mut transaction, device, key_hash.as_ref()).await?;
        let issued = CertificateDer::from(issued.ok_or_else(token_used)?);
        return Ok(enrolled(shared, &token, device, &issued, access));
    }
    let device = DeviceId::from_uuid(Uuid::now_v7());
    let (serial, validity) = new_certificate(shared)?;
    let identity = identity(shared, token.tenant_id, device);
    let certificate = shared.authority.issue_device(request, &identity, serial, validity).map_err(cannot_sign)?;
    let recorded = enrollment_complete_in_txn(
        &mut transaction,
        &token,
        NewCertificate {
            serial: serial.as_bytes(),
            device_id: device,
            tenant_id: token.tenant_id,
            key_hash: key_hash.as_ref(),
            der: &certificate,
            not_after: validity.not_after(),
        },
    )
    .await;
    match recorded {
        Err(error) if error.constraint() == Some(DEVICE_NAME_CONSTRAINT) => return Err(name_taken().into()),
        recorded => recorded?,
    }
    transaction.commit().await.map_err(StoreError::from)?;
    tracing::info!(%device, tenant = %token.tenant_id, "a device enrolled");
    Ok(enrolled(shared, &token, device, &certificate, access))
}

/// What the device is to keep of its tenant's wish that grants be signed.
fn access((required, keys): (bool, Vec<PublicKey>)) -> Access {
    Access { required, keys_pem: keys.iter().map(PublicKey::to_pem).collect() }
}

/// Serial and validity of a device certificate that is to be issued now.
pub(super) fn new_certificate(shared: &Shared) -> Result<(Serial, Validity), Problem> {
    let mut random = [0; Serial::LEN];
    aws_lc_rs::rand::fill(&mut random).expect("the system's random source has no way to fail once it is seeded");
    let lifetime = time::Duration::days(shared.certificate.device_days.into());
    // A certificate does not outlive the authority that signs it.
    let now = clock::now();
    let validity =
        Validity::starting_at(now, lifetime.min(shared.authority.validity().not_after() - now)).map_err(cannot_sign)?;
    Ok((Serial::from_random(random), validity))
}

pub(super) fn identity(shared: &Shared, tenant: TenantId, device: DeviceId) -> DeviceIdentity {
    DeviceIdentity { trust_domain: shared.trust_domain.clone(), tenant: tenant.as_uuid(), device: device.as_uuid() }
}

fn enrolled(
    shared: &Shared,
    token: &LockedToken,
    device: DeviceId,
    certificate: &CertificateDer<'_>,
    access: Access,
) -> Enrolled {
    Enrolled {
        device_id: device.to_string(),
        tenant_id: token.tenant_id.to_string(),
        name: token.device_name.clone(),
        certificate_pem: certificate_to_pem(certificate),
        ca_pem: shared.authority.certificate_pem(),
        access,
    }
}

fn to_answer(enrolled: &Enrolled) -> Answer {
    let body = serde_json::to_vec(enrolled).expect("strings are JSON");
    let mut answer = Response::new(Full::from(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn token_invalid() -> Problem {
    refused("enrollment_token_invalid", StatusCode::FORBIDDEN, "Token invalid", "there is no such enrollment token")
}

fn token_expired() -> Problem {
    let detail = "the enrollment token has expired; ask for a new one";
    refused("enrollment_token_expired", StatusCode::FORBIDDEN, "Token expired", detail)
}

fn token_used() -> Problem {
    let detail = "the enrollment token was used, with another key; ask for a new one";
    refused("enrollment_token_used", StatusCode::CONFLICT, "Token used", detail)
}

fn name_taken() -> Problem {
    let detail = "the tenant has a device of the token's name already; ask for a token with another name";
    refused("device_name_taken", StatusCode::CONFLICT, "Device name taken", detail)
}

fn refused(kind: &'static str, status: StatusCode, title: &'static str, detail: &'static str) -> Problem {
    Problem::new(kind, status, title, detail, Failure::Token)
}

/// Says why in the words of this program: an error's text never repeats what the peer sent.
fn csr_invalid(error: &dyn std::error::Error) -> Problem {
    let detail = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    Problem::new("csr_invalid", StatusCode::UNPROCESSABLE_ENTITY, "Certificate request invalid", detail, Failure::Csr)
}

fn cannot_sign(error: impl std::error::Error) -> Problem {
    tracing::error!(error = %error, "cannot issue a device certificate");
    Problem::internal()
}
