//! Trades a single-use token for a certificate.
//!
//! The key is on the disk before the token is used, and the server answers the same key and token with the same certificate:
//! an answer that is lost costs nothing but another attempt.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_certs::pem::{PemError, certificates_from_pem};
use cloudlink_certs::{DeviceCertificate, TrustAnchor};
use cloudlink_proto::enroll::Access;
use cloudlink_proto::link::ENROLL_PATH;
use data_encoding::BASE64;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::access::{PinError, Pinned};
use crate::clock::KnownTime;
use crate::config::Server;
use crate::dial::{self, DialError, Traffic};
use crate::disk;
use crate::exchange::{ExchangeError, exchange};
use crate::identity::{self, Identity, IdentityError};
use crate::machine;
use crate::problem::{BODY_BYTES_MAX, Problem};
use crate::tls::{self, Bounds};

const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// A token has about 50 bytes.
const TOKEN_BYTES_MAX: u64 = 512;

/// What lets one device in, once. Never shown and never logged.
pub struct Token(Zeroizing<String>);

/// Who the device is from now on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Enrolled {
    pub device_id: String,
    pub tenant_id: String,
    certificate_pem: String,
    #[serde(default)]
    access: Access,
}

/// Why a token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the token")]
    Read(#[source] io::Error),
    #[error("a token is one line of letters, digits, - and _")]
    Malformed,
}

/// Why the device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("the server cannot be reached")]
    Dial(#[source] DialError),
    #[error("the request did not get through")]
    Request(#[source] hyper::Error),
    #[error("the server's answer took longer than {} s", ANSWERED_WITHIN.as_secs())]
    TimedOut,
    #[error("the server's answer cannot be read")]
    Answer,
    #[error("{0}")]
    Refused(Problem),
    #[error("the certificate that was issued cannot be read")]
    Certificate(#[source] PemError),
    #[error("the device's identity cannot be set up")]
    Identity(#[source] IdentityError),
    #[error("what the tenant wants of grants cannot be kept")]
    Pin(#[source] PinError),
}

impl EnrollError {
    /// Whether the same attempt may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Dial(error) => !error.is_refusal(),
            Self::Request(_) | Self::TimedOut | Self::Answer => true,
            Self::Refused(problem) => {
                problem.status.is_server_error() || problem.status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Certificate(_) | Self::Identity(_) | Self::Pin(_) => false,
        }
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused(problem) = self { problem.retry_after } else { None }
    }
}

impl Token {
    /// Reads a token from a file, or from standard input for `-`.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let content = if path == Path::new("-") {
            disk::read_bounded(io::stdin().lock(), TOKEN_BYTES_MAX)
        } else {
            std::fs::File::open(path).and_then(|file| disk::read_bounded(file, TOKEN_BYTES_MAX))
        };
        let content = Zeroizing::new(content.map_err(TokenError::Read)?);
        Self::parse(&content).ok_or(TokenError::Malformed)
    }

    fn parse(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?.trim();
        let clean = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        (!text.is_empty() && clean).then(|| Self(Zeroizing::new(text.to_owned())))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token([redacted])")
    }
}

#[derive(Serialize)]
struct EnrollRequest<'t> {
    token: &'t str,
    csr_pem: String,
}

/// One attempt.
///
/// # Errors
/// See [`EnrollError::is_retryable`].
pub async fn enroll(
    server: &Server,
    anchor: &TrustAnchor,
    known_time: &KnownTime,
    identity: &mut Identity,
    token: &Token,
) -> Result<Enrolled, EnrollError> {
    let key = identity.enrollment_key().map_err(EnrollError::Identity)?;
    let csr_der = identity::request(&key).map_err(EnrollError::Identity)?;
    let body = serde_json::to_vec(&EnrollRequest { token: &token.0, csr_pem: pem("CERTIFICATE REQUEST", &csr_der) })
        .expect("strings can be written as JSON");
    let bounds = Bounds { earliest: known_time.earliest(), own_end: identity.ends_at() };
    let answer = timeout(ANSWERED_WITHIN, post(server, anchor, bounds, Bytes::from(body)))
        .await
        .map_err(|_| EnrollError::TimedOut)??;
    let enrolled: Enrolled = serde_json::from_slice(&answer).map_err(|_| EnrollError::Answer)?;
    let chain = certificates_from_pem(enrolled.certificate_pem.as_bytes()).map_err(EnrollError::Certificate)?;
    // Before the certificate: there is no moment at which the device is enrolled and does not know.
    let own = chain.first().and_then(|leaf| DeviceCertificate::parse(leaf).ok()).ok_or(EnrollError::Answer)?;
    Pinned::enrolled(identity.state_dir(), own.identity.tenant, &enrolled.access).map_err(EnrollError::Pin)?;
    identity.enrolled(&key, &chain, anchor, known_time.best()).map_err(EnrollError::Identity)?;
    Ok(enrolled)
}

async fn post(server: &Server, anchor: &TrustAnchor, bounds: Bounds, body: Bytes) -> Result<Bytes, EnrollError> {
    let client = tls::Client::new(anchor, None, bounds).map_err(|error| EnrollError::Dial(DialError::Setup(error)))?;
    let stream =
        dial::secure(server, &server.enroll_name, &client, Traffic::Sparse).await.map_err(EnrollError::Dial)?;
    let request = Request::post(ENROLL_PATH)
        .header(header::HOST, dial::authority(&server.enroll_name, server.port))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, application/problem+json")
        .header(header::USER_AGENT, machine::AGENT)
        .body(Full::new(body))
        .expect("a configured server name is a valid header");
    let (head, body) = exchange(stream, request, BODY_BYTES_MAX).await.map_err(|error| match error {
        ExchangeError::Request(error) => EnrollError::Request(error),
        ExchangeError::Answer => EnrollError::Answer,
    })?;
    if head.status == StatusCode::CREATED || head.status == StatusCode::OK {
        Ok(body)
    } else {
        Err(EnrollError::Refused(Problem::read(head.status, &head.headers, &body)))
    }
}

/// In lines of 64 characters (RFC 7468, section 2).
fn pem(label: &str, der: &[u8]) -> String {
    let lines: Vec<String> = der.chunks(48).map(|bytes| BASE64.encode(bytes)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_clean_line_and_never_shown() {
        let token = Token::parse(b"  cle_abc-123_X\n").unwrap();
        assert_eq!(token.0.as_str(), "cle_abc-123_X");
        assert!(!format!("{token:?}").contains("abc"));
        for content in [&b""[..], b"\n", b"a b", b"a\nb", b"a\r\nHost: x", b"\xff", "cle_ü".as_bytes()] {
            assert!(Token::parse(content).is_none(), "{content:?}");
        }
    }

    #[test]
    fn a_request_is_pem_that_the_other_side_reads() {
        let key = identity::new_key().unwrap();
        let der = identity::request(&key).unwrap();
        let request =
            cloudlink_certs::CertificateRequest::from_pem(pem("CERTIFICATE REQUEST", &der).as_bytes()).unwrap();
        assert_eq!(request.public_key_der(), key.public_key_der());
    }
}
