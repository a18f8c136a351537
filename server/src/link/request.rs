//! The one HTTP request of a connection: an upgrade to a link, or an enrollment. By hyper, and gone with the answer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::TunnelId;
use cloudlink_proto::link::{ENROLL_PATH, LINK_PATH, SUBPROTOCOL};
use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::admission::{Identified, admit};
use super::problem::{Answer, Problem};
use super::stream::Stream;
use super::{Shared, enroll};
use crate::metrics::Failure;

/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Least that hyper takes as the size of its buffer.
const BUFFER_BYTES_MIN: usize = 8_192;
/// How long a peer that was refused may take to read why.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// Length of a `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455, section 4.1).
const KEY_CHARS: usize = 24;

/// Who makes a request, as far as the connection tells.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Whoever has no certificate, and a token perhaps.
    Stranger,
    /// Somebody with a certificate, or without one.
    Device(Result<Identified, Problem>),
    /// The device at the other end of a tunnel, which was admitted with it.
    Tunnel { tunnel_id: TunnelId, peer: Identified },
}

/// A connection that is a WebSocket now, of a peer that may link.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(super) stream: Stream,
    /// The tunnel that it is inside of.
    pub(super) tunnel_id: Option<TunnelId>,
    /// What the peer sent right after its request.
    pub(super) read_ahead: Bytes,
    pub(super) peer: Identified,
}

/// Answers the request. `None`: there is no link, and the connection is closed.
pub(crate) async fn serve(shared: &Arc<Shared>, stream: Stream, caller: Caller, remote: IpAddr) -> Option<Upgraded> {
    let (peer, tunnel_id) = match caller {
        Caller::Stranger => (None, None),
        Caller::Device(peer) => (Some(peer), None),
        Caller::Tunnel { tunnel_id, peer } => (Some(Ok(peer)), Some(tunnel_id)),
    };
    let admitted = Mutex::new(None);
    let service = service_fn(|request| {
        let (shared, peer, admitted) = (Arc::clone(shared), peer.clone(), &admitted);
        Box::pin(async move {
            let answer = match peer {
                None => enroll::answer(&shared, request, remote).await,
                Some(peer) => link(&shared, &request, peer, tunnel_id).await.map(|(peer, answer)| {
                    *admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
                    answer
                }),
            };
            Ok::<Answer, Infallible>(answer.unwrap_or_else(|problem| {
                shared.refuse(problem.failure, remote);
                problem.answer()
            }))
        })
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.device.request_timeout_seconds.duration())
        .max_headers(HEADERS_MAX)
        .max_buf_size((shared.device.request_bytes_max as usize).max(BUFFER_BYTES_MIN))
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .without_shutdown()
        .await;
    let parts = match served {
        Ok(parts) => parts,
        Err(error) => {
            // hyper has answered by itself if there was anything to answer.
            let failure = if error.is_timeout() {
                Failure::Timeout
            } else if error.is_parse() {
                Failure::Http
            } else {
                Failure::Closed
            };
            shared.refuse(failure, remote);
            return None;
        }
    };
    let (mut stream, read_ahead) = (parts.io.into_inner(), parts.read_buf);
    let peer = admitted.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(peer) = peer {
        return Some(Upgraded { stream, tunnel_id, read_ahead, peer });
    }
    // The peer may be gone already.
    let _ = timeout(GOODBYE_WITHIN, stream.shutdown()).await;
    None
}

/// A request under a linked device's name.
async fn link(
    shared: &Shared,
    request: &Request<Incoming>,
    peer: Result<Identified, Problem>,
    tunnel_id: Option<TunnelId>,
) -> Result<(Identified, Answer), Problem> {
    match (request.uri().path(), request.method()) {
        (LINK_PATH, &Method::GET) => {}
        (LINK_PATH, _) => return Err(Problem::method_not_allowed("GET")),
        (ENROLL_PATH, _) => return Err(Problem::not_found("dial the server's enrollment name to enroll")),
        _ => return Err(Problem::not_found("a device finds its link here, and nothing else")),
    }
    let answer = upgrade(request.headers())?;
    let peer = peer?;
    // With its tunnel the device was admitted, and has a place.
    if tunnel_id.is_none() {
        admit(shared, &peer).await?;
    }
    Ok((peer, answer))
}

/// Checks the WebSocket handshake (RFC 6455, section 4.2.1) and answers it.
fn upgrade(headers: &HeaderMap) -> Result<Answer, Problem> {
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(upgrade_required(UPGRADE, "websocket", "a link is a WebSocket: ask for the upgrade"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(upgrade_required(SEC_WEBSOCKET_VERSION, "13", "this server speaks WebSocket version 13"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| key.len() == KEY_CHARS)
        .ok_or_else(|| Problem::bad_request("Sec-WebSocket-Key is missing or malformed"))?;
    if !has_token(headers, SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(Problem::bad_request(format!("ask for the WebSocket subprotocol {SUBPROTOCOL}")));
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(answer)
}

fn upgrade_required(name: HeaderName, value: &'static str, detail: &'static str) -> Problem {
    Problem::new("upgrade_required", StatusCode::UPGRADE_REQUIRED, "Upgrade required", detail, Failure::Http)
        .with_header(name, value)
}

/// Whether one of the comma-separated values of a header is this one.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}
