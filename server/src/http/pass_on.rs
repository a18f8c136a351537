//! Requests that another node must answer: the one that has the device's link, or serves the session.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::{ConnectInfo, OriginalUri, Request};
use axum::response::Response;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Uri, Version};
use opentelemetry::trace::SpanKind;

use super::Context;
use super::problem::{Kind, Problem};
use super::traced::place_of;
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
