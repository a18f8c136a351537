//! Errors that devices are told over HTTP: problem details (RFC 9457), as on the people port.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::batch::Unanswered;
use crate::metrics::Failure;

/// An answer on the device port.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Something a device may be told.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// After `urn:cloudlink:problem:`.
    kind: &'static str,
    status: StatusCode,
    title: &'static str,
    /// Ours: nothing that a peer sent is in it.
    detail: String,
    retry_after_seconds: Option<u32>,
    /// A header that the status calls for.
    header: Option<(HeaderName, &'static str)>,
    /// How it is counted.
    pub(crate) failure: Failure,
}

/// How long a device waits when the database is away, or the node's place.
const UNAVAILABLE_RETRY_SECONDS: u32 = 5;

impl Problem {
    pub(crate) fn new(
        kind: &'static str,
        status: StatusCode,
        title: &'static str,
        detail: impl Into<String>,
        failure: Failure,
    ) -> Self {
        Self { kind, status, title, detail: detail.into(), retry_after_seconds: None, header: None, failure }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new("bad_request", StatusCode::BAD_REQUEST, "Bad request", detail, Failure::Http)
    }

    pub(crate) fn not_found(detail: &'static str) -> Self {
        Self::new("not_found", StatusCode::NOT_FOUND, "Not found", detail, Failure::Http)
    }

    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("only {allowed} is allowed here");
        let problem = Self::new(
            "method_not_allowed",
            StatusCode::METHOD_NOT_ALLOWED,
            "Method not allowed",
            detail,
            Failure::Http,
        );
        problem.with_header(http::header::ALLOW, allowed)
    }

    pub(crate) fn unavailable() -> Self {
        let detail = "the database cannot be reached, so nobody can be admitted; try again";
        Self::new("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Unavailable", detail, Failure::Unavailable)
            .with_retry_after(UNAVAILABLE_RETRY_SECONDS)
    }

    /// This node may serve nobody, and another one may.
    pub(crate) fn fenced() -> Self {
        let detail = "this node has lost its place among the nodes; dial again";
        Self::new("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Unavailable", detail, Failure::Unavailable)
            .with_retry_after(UNAVAILABLE_RETRY_SECONDS)
    }

    pub(crate) fn overloaded(detail: &'static str, retry_after_seconds: u32) -> Self {
        Self::new("overloaded", StatusCode::SERVICE_UNAVAILABLE, "Overloaded", detail, Failure::Overload)
            .with_retry_after(retry_after_seconds)
    }

    /// A device that was revoked after it was admitted.
    pub(crate) fn revoked() -> Self {
        let detail = "the device or its certificate was revoked";
        Self::new("device_revoked", StatusCode::FORBIDDEN, "Device revoked", detail, Failure::Revoked)
    }

    pub(crate) fn too_many_requests(detail: &'static str, retry_after_seconds: u32) -> Self {
        Self::new("too_many_requests", StatusCode::TOO_MANY_REQUESTS, "Too many requests", detail, Failure::Overload)
            .with_retry_after(retry_after_seconds)
    }

    pub(crate) fn internal() -> Self {
        let detail = "the server failed; its log says why";
        Self::new("internal", StatusCode::INTERNAL_SERVER_ERROR, "Internal error", detail, Failure::Unavailable)
    }

    pub(crate) fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// In words for people.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) const fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after_seconds
    }

    /// Whoever got an error dials again.
    pub(crate) fn answer(&self) -> Answer {
        let body = serde_json::json!({
            "type": format!("urn:cloudlink:problem:{}", self.kind),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut answer = Response::new(Full::from(body.to_string()));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some((name, value)) = &self.header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

impl From<Unanswered> for Problem {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Unavailable => Self::unavailable(),
            Unanswered::Fault => Self::internal(),
        }
    }
}
