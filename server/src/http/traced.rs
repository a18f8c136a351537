//! Requests in their traces.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request};
use axum::response::Response;
use cloudlink_proto::trace_parent::TraceParent;
use http::StatusCode;
use http::request::Parts;
use opentelemetry::trace::SpanKind;

use super::router::UNMATCHED;
use crate::trace::{Span, Tracer, place};

/// Whose doing it is what a handler does, if anybody's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(pub(crate) Option<TraceParent>);

impl<S: Send + Sync> FromRequestParts<S> for Place {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(None)))
    }
}

pub(super) fn place_of(request: &Request) -> Option<TraceParent> {
    request.extensions().get().and_then(|Place(place)| *place)
}

/// A request that is being answered.
pub(super) struct Traced {
    span: Option<Span>,
    place: Option<TraceParent>,
    is_unmatched: bool,
}

impl Traced {
    /// Without a collector, it has its place by whoever sent it.
    pub(super) fn begin(tracer: &Tracer, mut request: Request, route: &str) -> (Self, Request) {
        let is_unmatched = route == UNMATCHED;
        let from = place::of_headers(request.headers());
        let mut span = tracer.entry(SpanKind::Server, "http.request", from);
        if let Some(span) = &mut span {
            span.rename(format!("{} {route}", request.method()));
            span.set("http.request.method", request.method().to_string());
            span.set("http.route", route.to_owned());
        }
        let place = span.as_ref().map(Span::place).or(from);
        if place.is_some() {
            request.extensions_mut().insert(Place(place));
        }
        (Self { span, place, is_unmatched }, request)
    }

    /// For the log.
    pub(super) fn trace_id(&self) -> Option<String> {
        self.place.map(|place| place.shown_trace_id().to_string())
    }

    pub(super) fn end(self, answer: &Response, request_id: &str) {
        let Some(mut span) = self.span else { return };
        let status = answer.status();
        // Strangers could push everybody else's spans out of the queue.
        if self.is_unmatched || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS) {
            return span.discard();
        }
        span.set("http.response.status_code", i64::from(status.as_u16()));
        span.set("cloudlink.request.id", request_id.to_owned());
        if status.is_server_error() {
            span.fail(status.to_string());
        }
    }
}
