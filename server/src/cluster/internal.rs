//! The internal port: what other nodes pass on. The API as on the people port, and streams of devices. Only who has a certificate of
//! the nodes' own authority gets past the TLS handshake.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use cloudlink_proto::ids::{DeviceId, StreamId};
use cloudlink_proto::link::message::{StreamRefused, StreamRequest};
use cloudlink_proto::stream::SUBPROTOCOL;
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use prost::Message as _;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use tokio::time::{Instant, timeout, timeout_at};

use super::peer::{ASK_PATH, CLIENT, DEVICE, STREAM_PATH};
use crate::http_server::{Bounds, HttpServer, take_over};
use crate::link::request::bearer_token;
use crate::link::{Links, Order, Shared, StreamOrder};
use crate::pki::NodeCredentials;
use crate::proxy::Proxies;
use crate::support::expect::Answer;
use crate::websocket;

/// Nodes are few, but what they pass on holds a connection each.
const BOUNDS: Bounds = Bounds {
    connections_max: 8_192,
    per_address_max: 8_192,
    handshake: Duration::from_secs(5),
    header: Duration::from_secs(5),
    idle: Duration::from_secs(120),
};
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);
/// Of an order for a stream.
const ASK_BYTES_MAX: usize = 64 * 1024;
/// How long a device's refusal is waited for. Nobody waits for a stream for longer.
const ASK_WITHIN: Duration = Duration::from_secs(18);

/// A request that another node has taken in. It is not passed on again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassedOn;

/// How the internal port is served: `api` is the router of the people port.
pub(crate) fn server(credentials: &Arc<NodeCredentials>, api: Router, links: &Links) -> anyhow::Result<HttpServer> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(credentials.roots()))
        .build()
        .context("the authority of nodes cannot be used")?;
    let tls = rustls::ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(credentials) as _);
    let streams =
        Router::new().route(STREAM_PATH, get(stream)).route(ASK_PATH, post(ask)).with_state(Arc::clone(&links.0));
    let router = api.layer(from_fn(passed_on)).merge(streams);
    Ok(HttpServer {
        name: "internal",
        router,
        tls: Some(Arc::new(tls)),
        bounds: BOUNDS,
        figures: None,
        proxies: Proxies::default(),
    })
}

/// The request is as if it had come here at once, from whom it came to the other node.
async fn passed_on(mut request: Request, next: Next) -> Response {
    let client = request.headers_mut().remove(&CLIENT);
    let client: Option<IpAddr> = client.and_then(|client| client.to_str().ok()?.parse().ok());
    let Some(client) = client else { return refusal(StatusCode::BAD_REQUEST) };
    request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client, 0)));
    request.extensions_mut().insert(PassedOn);
    next.run(request).await
}

/// A device's stream that this node waits for.
async fn stream(State(links): State<Arc<Shared>>, mut request: Request) -> Response {
    let Some(ticket) =
        device_and_token(request.headers()).and_then(|(device, token)| links.expectations.admit(device, token))
    else {
        return refusal(StatusCode::FORBIDDEN);
    };
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let (Ok(headers), Some(upgrade)) = (websocket::accept(request.headers(), SUBPROTOCOL), upgrade) else {
        return refusal(StatusCode::BAD_REQUEST);
    };
    tokio::spawn(async move {
        if let Ok(Some((stream, ahead))) = timeout(UPGRADE_WITHIN, take_over(upgrade)).await {
            ticket.arrive(stream, ahead);
        }
    });
    let mut answer = refusal(StatusCode::SWITCHING_PROTOCOLS);
    *answer.headers_mut() = headers;
    answer
}

fn device_and_token(headers: &HeaderMap) -> Option<(DeviceId, &str)> {
    Some((device(headers)?, bearer_token(headers)?))
}

fn device(headers: &HeaderMap) -> Option<DeviceId> {
    headers.get(&DEVICE)?.to_str().ok()?.parse().ok().map(DeviceId::from_uuid)
}

/// Another node wants a stream of a device whose link is here. The device brings it to whichever node it dials; what is answered
/// here is its refusal, if it refuses.
async fn ask(State(links): State<Arc<Shared>>, request: Request) -> Response {
    let device = device(request.headers());
    let body = axum::body::to_bytes(request.into_body(), ASK_BYTES_MAX).await;
    let asked = body.ok().and_then(|body| StreamRequest::decode(body).ok());
    let id = asked.as_ref().and_then(|asked| StreamId::from_wire(&asked.id));
    let order = asked.and_then(|asked| StreamOrder::of_request(asked, Instant::now()));
    let (Some(device), Some(id), Some(order)) = (device, id, order) else { return refusal(StatusCode::BAD_REQUEST) };
    let Some(link) = links.registry.find(device) else { return refusal(StatusCode::NOT_FOUND) };
    // Under a token of its own, which nobody gets.
    let Some((_, mut awaited)) = links.expectations.expect(device, id) else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE);
    };
    let until = order.open_by.min(Instant::now() + ASK_WITHIN);
    link.order(Order::Stream(Box::new(order)));
    match timeout_at(until, awaited.answer()).await {
        Ok(Some(Answer::Refused { code, message })) => {
            let refused = StreamRefused { code, message, id: id.to_wire() };
            Response::new(Body::from(refused.encode_to_vec()))
        }
        Ok(Some(Answer::Arrived { .. }) | None) | Err(_) => refusal(StatusCode::NO_CONTENT),
    }
}

fn refusal(status: StatusCode) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}
