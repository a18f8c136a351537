//! Requests that another node must answer: the one that has the device's link, or serves the session.

use std::net::SocketAddr;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, OriginalUri, Request};
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Uri, Version};
use opentelemetry::trace::SpanKind;

use super::problem::{Kind, Problem, Rendered};
use super::traced::place_of;
use super::{BODY_BYTES_MAX, Context};
use crate::cluster::internal::PassedOn;
use crate::trace::place;

/// Has `node` answer. `None`: this request was passed on once already, or there are no other nodes.
pub(crate) async fn pass_on(context: &Context, node: &str, mut request: Request) -> Option<Result<Response, Problem>> {
    let peers = context.peers.as_ref().filter(|_| request.extensions().get::<PassedOn>().is_none())?;
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>()?.0.ip().to_canonical();
    to_http1(&mut request);
    let mut span = place_of(&request).and_then(|place| context.tracer.child(SpanKind::Client, "node.pass_on", place));
    if let Some(span) = &mut span {
        span.set("cloudlink.node", node.to_owned());
        place::to_headers(request.headers_mut(), span.place());
    }
    Some(match peers.pass_on(node, client, request).await {
        Ok(mut answer) => {
            answer.extensions_mut().insert(Rendered);
            if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().remove(CONNECTION);
                answer.headers_mut().remove(TRANSFER_ENCODING);
            }
            Ok(answer)
        }
        Err(error) => {
            if let Some(span) = &mut span {
                span.fail(error.to_string());
            }
            tracing::warn!(error = &error as &dyn std::error::Error, node, "cannot pass a request on");
            let detail = format!("The node {node:?}, which alone can do this, cannot be reached now. Ask again.");
            Err(Problem::new(Kind::Unavailable, detail))
        }
    })
}

/// A request that may have to be passed on twice.
#[derive(Debug)]
pub(crate) struct Repeatable {
    parts: Parts,
    body: Bytes,
}

impl Repeatable {
    pub(crate) async fn of(request: Request) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| Problem::too_large())?;
        Ok(Self { parts, body })
    }

    pub(crate) fn request(&self) -> Request {
        Request::from_parts(self.parts.clone(), self.body.clone().into())
    }
}

/// Which problem another node has answered, if it is one; and the answer, whole.
pub(crate) async fn kind_of(answer: Response) -> Result<(Response, Option<String>), Problem> {
    if !answer.status().is_client_error() {
        return Ok((answer, None));
    }
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| Problem::unavailable())?;
    let details: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let kind = details.as_ref().and_then(|details| details["type"].as_str()?.rsplit(':').next()).map(str::to_owned);
    Ok((Response::from_parts(parts, body.into()), kind))
}

/// However it came: nodes speak HTTP/1.1, which has the host in a header.
fn to_http1(request: &mut Request<Body>) {
    // With what the router has taken off.
    if let Some(OriginalUri(whole)) = request.extensions_mut().remove() {
        *request.uri_mut() = whole;
    }
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().entry(HOST).or_insert(host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    *request.version_mut() = Version::HTTP_11;
}
