//! Errors as their readers get them: RFC 9457 problem details, the same shape for every one, whoever made it.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::store::StoreError;

/// The longest `detail`, in characters: what a parser says about a hostile body may be as long as that body.
const DETAIL_CHARS_MAX: usize = 500;
/// When to ask again while the database is away.
const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Every type of problem there is. Names are stable: callers act on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    BadRequest,
    Unauthenticated,
    Forbidden,
    CrossSite,
    ScopeRequired,
    TokenUsedUp,
    SignInOff,
    SignInFailed,
    SignInRefused,
    LockedOut,
    ProviderUnavailable,
    GrantRequired,
    GrantUnsigned,
    NotFound,
    MethodNotAllowed,
    NotLinked,
    Polling,
    NoAgent,
    DeviceBusy,
    NoTunnel,
    Quarantined,
    TunnelsOff,
    DeviceRevoked,
    RecordingDeleted,
    RecordingUnreadable,
    SessionEnded,
    TooManySessions,
    TooManyRollouts,
    StreamRefused,
    RecordingUnavailable,
    Conflict,
    IdempotencyConflict,
    PlanMoved,
    VersionMismatch,
    ConfigurationInvalid,
    TooLarge,
    Unprocessable,
    VersionRequired,
    TooManyRequests,
    Internal,
    Unavailable,
}

impl Kind {
    /// Status, name in `type`, title.
    const fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "The request is malformed"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "A valid token is required"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The role may not do this"),
            Self::CrossSite => (StatusCode::FORBIDDEN, "cross_site", "The request does not come from our own pages"),
            Self::ScopeRequired => (StatusCode::FORBIDDEN, "scope_required", "The token may not be used for this"),
            Self::TokenUsedUp => (StatusCode::FORBIDDEN, "token_used_up", "The token works once, and was used"),
            Self::SignInOff => (StatusCode::CONFLICT, "sign_in_off", "There is no OpenID provider"),
            Self::SignInRefused => (StatusCode::FORBIDDEN, "sign_in_refused", "Whoever signed in may not come in"),
            Self::LockedOut => (StatusCode::TOO_MANY_REQUESTS, "locked_out", "Too many sign-ins have failed"),
            Self::ProviderUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "provider_unavailable", "The OpenID provider does not answer")
            }
            Self::SignInFailed => (StatusCode::FORBIDDEN, "sign_in_failed", "The sign-in does not hold"),
            Self::GrantRequired => (StatusCode::FORBIDDEN, "grant_required", "No grant in force allows this"),
            Self::GrantUnsigned => {
                (StatusCode::UNPROCESSABLE_ENTITY, "grant_unsigned", "Grants of this tenant must be signed")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such thing"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The method does not fit the path")
            }
            Self::NotLinked => (StatusCode::CONFLICT, "not_linked", "The device has no live link"),
            Self::Polling => (StatusCode::CONFLICT, "polling", "The device has no live link, it polls"),
            Self::NoAgent => (StatusCode::CONFLICT, "no_agent", "The device has no agent to carry this out"),
            Self::DeviceBusy => (StatusCode::CONFLICT, "device_busy", "The device is busy"),
            Self::NoTunnel => (StatusCode::CONFLICT, "no_tunnel", "The device has no tunnel"),
            Self::Quarantined => (StatusCode::CONFLICT, "quarantined", "The device is in quarantine"),
            Self::TunnelsOff => (StatusCode::CONFLICT, "tunnels_off", "OpenVPN clients are not served"),
            Self::DeviceRevoked => (StatusCode::CONFLICT, "device_revoked", "The device is revoked"),
            Self::RecordingDeleted => (StatusCode::GONE, "recording_deleted", "The recording was deleted"),
            Self::RecordingUnreadable => {
                (StatusCode::INTERNAL_SERVER_ERROR, "recording_unreadable", "The recording cannot be decrypted")
            }
            Self::SessionEnded => (StatusCode::CONFLICT, "session_ended", "The support session has ended"),
            Self::TooManySessions => (StatusCode::CONFLICT, "too_many_sessions", "There are as many as there may be"),
            Self::TooManyRollouts => (StatusCode::CONFLICT, "too_many_rollouts", "As many rollouts have begun as may"),
            Self::StreamRefused => (StatusCode::CONFLICT, "stream_refused", "The device does not open the stream"),
            Self::RecordingUnavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "recording_unavailable", "What cannot be recorded may not be done")
            }
            Self::Conflict => (StatusCode::CONFLICT, "conflict", "The present state does not allow this"),
            Self::IdempotencyConflict => {
                (StatusCode::CONFLICT, "idempotency_conflict", "The idempotency key belongs to another request")
            }
            Self::PlanMoved => (StatusCode::CONFLICT, "plan_moved", "The plan does not hold any more"),
            Self::VersionMismatch => (StatusCode::PRECONDITION_FAILED, "version_mismatch", "Somebody else changed it"),
            Self::ConfigurationInvalid => {
                (StatusCode::UNPROCESSABLE_ENTITY, "configuration_invalid", "A configuration is not as the schema says")
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is too large"),
            Self::Unprocessable => (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "The request is not allowed"),
            Self::VersionRequired => (StatusCode::PRECONDITION_REQUIRED, "version_required", "If-Match is missing"),
            Self::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "Too many requests"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The server failed"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The server cannot do this now"),
        }
    }

    pub(crate) const fn status(self) -> StatusCode {
        self.facts().0
    }

    pub(crate) const fn name(self) -> &'static str {
        self.facts().1
    }
}

/// One problem, on its way to [`ProblemDetails`].
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    detail: Cow<'static, str>,
    reason: Option<&'static str>,
    maximum_seconds: Option<i32>,
    violation: Option<Box<(String, String)>>,
    retry_after: Option<Duration>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl Problem {
    /// `detail`: what happened, and what to do about it.
    pub(crate) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            reason: None,
            maximum_seconds: None,
            violation: None,
            retry_after: None,
            cause: None,
        }
    }

    pub(crate) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    pub(crate) fn unprocessable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Unprocessable, detail)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(Kind::NotFound, "There is nothing of this id that you may see. Check the id.")
    }

    pub(crate) fn unavailable() -> Self {
        let detail = "The server cannot reach its database, or takes too long. Nothing is known to be lost: ask again.";
        Self::new(Kind::Unavailable, detail).retry_after(UNAVAILABLE_RETRY_AFTER)
    }

    pub(crate) fn internal() -> Self {
        Self::new(Kind::Internal, "This is a fault of the server. Report it with the request_id.")
    }

    /// The same, for the log.
    pub(crate) fn internal_because(cause: impl Error + Send + Sync + 'static) -> Self {
        Self { cause: Some(Arc::new(cause)), ..Self::internal() }
    }

    /// What is missing of a grant, for machines.
    pub(crate) fn reason(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    pub(crate) fn maximum_seconds(self, seconds: i32) -> Self {
        Self { maximum_seconds: Some(seconds), ..self }
    }

    /// Where a document is not as a rule says: JSON pointers into both.
    pub(crate) fn violation(self, pointer: String, rule: String) -> Self {
        Self { violation: Some(Box::new((pointer, rule))), ..self }
    }

    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// For answers that others made: routing, limits, a caught panic.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(Kind::NotFound, "There is no such route. See /openapi.json."),
            StatusCode::METHOD_NOT_ALLOWED => {
                Self::new(Kind::MethodNotAllowed, "The path exists, with the methods that `Allow` names.")
            }
            StatusCode::PAYLOAD_TOO_LARGE => Self::too_large(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => Self::unavailable(),
            status if status.is_client_error() => Self::bad_request("The request cannot be read."),
            _ => Self::internal(),
        }
    }

    pub(crate) fn too_large() -> Self {
        Self::new(Kind::TooLarge, format!("A body may have {} bytes. Send less.", super::BODY_BYTES_MAX))
    }

    /// Turns any answer that reports an error into problem details, and logs what is ours to mend: the one place.
    pub(crate) fn render(response: Response, request_id: &str) -> Response {
        let (mut parts, body) = response.into_parts();
        if parts.extensions.get::<Rendered>().is_some() {
            return Response::from_parts(parts, body);
        }
        let problem = match parts.extensions.remove::<Self>() {
            Some(problem) => problem,
            None if parts.status.is_client_error() || parts.status.is_server_error() => Self::of_status(parts.status),
            None => return Response::from_parts(parts, body),
        };
        problem.log();
        let body = problem.to_details(request_id).to_json();
        parts.status = problem.kind.status();
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = problem.retry_after {
            // Rounded up: whoever comes back after that time is let in.
            parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        if problem.kind == Kind::Unauthenticated {
            parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Response::from_parts(parts, Body::from(body))
    }

    fn log(&self) {
        let Some(cause) = &self.cause else {
            if self.kind == Kind::Internal {
                tracing::error!("request failed without a cause: see the panic before this line");
            }
            return;
        };
        let chain = error_chain(cause.as_ref());
        if self.kind == Kind::Unavailable {
            tracing::warn!(error = chain, "request refused: the database is not available");
        } else {
            tracing::error!(error = chain, "request failed");
        }
    }

    fn to_details(&self, request_id: &str) -> ProblemDetails {
        let (status, name, title) = self.kind.facts();
        ProblemDetails {
            kind: format!("urn:cloudlink:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.chars().take(DETAIL_CHARS_MAX).collect(),
            request_id: request_id.to_owned(),
            reason: self.reason.map(str::to_owned),
            maximum_seconds: self.maximum_seconds,
            pointer: self.violation.as_deref().map(|(pointer, _)| pointer.clone()),
            rule: self.violation.as_deref().map(|(_, rule)| rule.clone()),
        }
    }
}

fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl IntoResponse for Problem {
    /// The body follows in [`Problem::render`], which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let problem = if error.is_retryable() { Self::unavailable() } else { Self::internal() };
        Self { cause: Some(Arc::new(error)), ..problem }
    }
}

/// Another node's answer: it has its problem in it already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rendered;

/// Makes a route's errors answers, by their `From<…> for Problem`.
macro_rules! respond_as_problem {
    ($error:ty) => {
        impl axum::response::IntoResponse for $error {
            fn into_response(self) -> axum::response::Response {
                $crate::http::problem::Problem::from(self).into_response()
            }
        }
    };
}
pub(crate) use respond_as_problem;

/// RFC 9457 problem details.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProblemDetails {
    /// `urn:cloudlink:problem:` and a stable name: act on this.
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    /// What happened, and what to do about it.
    detail: String,
    /// Quote it when you report the problem.
    request_id: String,
    /// Of `sign_in_refused`: `no_role`, `several_roles`, `shut_out` or `replayed`.
    /// Of `grant_required`: `none`, `scope`, `ended`, `revoked`, `not_started` or `not_named`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Of `unprocessable`, when a grant is longer than the tenant's policy allows: the longest that is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum_seconds: Option<i32>,
    /// Of `configuration_invalid`: where in the configuration, as a JSON pointer (RFC 6901). Empty: the whole of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// Of `configuration_invalid`: which rule of the schema, as a JSON pointer into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
}

impl ProblemDetails {
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialise")
    }
}
