//! How a device gets its first certificate.
//!
//! It dials the server's enrollment name (TLS 1.3, no client certificate) and sends `POST` [`ENROLL_PATH`] with a
//! [`Request`] as JSON. The answer is `200` with a [`Response`], or a problem (RFC 9457, `application/problem+json`) whose
//! `type` is `urn:cloudlink:problem:` and one of:
//!
//! | type | status | meaning |
//! |---|---|---|
//! | `bad_request` | 400 | not JSON, or not a [`Request`] |
//! | `enrollment_token_invalid` | 403 | there is no such token |
//! | `enrollment_token_expired` | 403 | ask for a new one |
//! | `enrollment_token_used` | 409 | by another device, or by this one with another key |
//! | `device_name_taken` | 409 | the tenant has a device of the token's name already |
//! | `too_large` | 413 | the body is over [`BODY_BYTES_MAX`] |
//! | `csr_invalid` | 422 | `detail` says why |
//! | `too_many_requests` | 429 | with `Retry-After` |
//! | `unavailable` | 503 | with `Retry-After` |
//!
//! A token is good once. A device that lost the answer asks again with the same token and the same key: until the token
//! expires it is given the same certificate.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::link::ENROLL_PATH;

/// The largest body of a request, in bytes.
pub const BODY_BYTES_MAX: usize = 16_384;

/// Trades a token for a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `cle_…`, as it was handed out.
    pub token: String,
    /// PKCS #10, PEM. Only its public key is used.
    pub csr_pem: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("csr_pem", &self.csr_pem).finish_non_exhaustive()
    }
}

/// What an enrolled device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// UUID, as it stands in the certificate.
    pub device_id: String,
    /// UUID, as it stands in the certificate.
    pub tenant_id: String,
    /// What the device is called.
    pub name: String,
    /// The certificate chain, PEM, leaf first.
    pub certificate_pem: String,
    /// The fleet's root certificate, PEM.
    pub ca_pem: String,
    /// Who signs grants; nobody, by a server that does not say.
    #[serde(default)]
    pub access: Access,
}

/// What a device keeps of its tenant's wish that grants be signed. It is said once: no server can change it later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Whether the device is to do nothing privileged without a grant that one of the keys has signed.
    pub required: bool,
    /// The tenant's keys, PEM public keys of Ed25519 or P-256. At most 16.
    pub keys_pem: Vec<String>,
}
