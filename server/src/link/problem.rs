//! Errors that devices are told over HTTP: problem details (RFC 9457), as on the people port.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::metrics::Failure;

/// An answer on the device port.
pub(super) type Answer = Response<Full<Bytes>>;

/// Something a device may be told.
#[derive(Clone, Debug)]
pub(super) struct Problem {
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
    pub(super) failure: Failure,
}

/// How long a device waits when the database is away.
const UNAVAILABLE_RETRY_SECONDS: u32 = 5;

impl Problem {
    pub(super) fn new(
        kind: &'static str,
        status: StatusCode,
        title: &'static str,
        detail: impl Into<String>,
        failure: Failure,
    ) -> Self {
        Self { kind, status, title, detail: detail.into(), retry_after_seconds: None, header: None, failure }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new("bad_request", StatusCode::BAD_REQUEST, "Bad request", detail, Failure::Http)
    }

    pub(super) fn not_found(detail: &'static str) -> Self {
        Self::new("not_found", StatusCode::NOT_FOUND, "Not found", detail, Failure::Http)
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
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

    pub(super) fn unavailable() -> Self {
        let detail = "the database cannot be reached, so nobody can be admitted; try again";
        Self::new("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Unavailable", detail, Failure::Unavailable)
            .with_retry_after(UNAVAILABLE_RETRY_SECONDS)
    }

    pub(super) fn too_many_requests(detail: &'static str, retry_after_seconds: u32) -> Self {
        Self::new("too_many_requests", StatusCode::TOO_MANY_REQUESTS, "Too many requests", detail, Failure::Overload)
            .with_retry_after(retry_after_seconds)
    }

    pub(super) fn internal() -> Self {
        let detail = "the server failed; its log says why";
        Self::new("internal", StatusCode::INTERNAL_SERVER_ERROR, "Internal error", detail, Failure::Unavailable)
    }

    pub(super) fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// Whoever got an error dials again.
    pub(super) fn answer(&self) -> Answer {
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
