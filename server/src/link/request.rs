//! The one HTTP request of a connection: an upgrade to a link or to a stream of a support session, a poll, or an enrollment. By hyper, and gone with the answer.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::TunnelId;
use cloudlink_proto::link::{ENROLL_PATH, LINK_PATH, SUBPROTOCOL};
use cloudlink_proto::ndt::{DOWNLOAD_PATH, Direction, UPLOAD_PATH};
use cloudlink_proto::poll::POLL_PATH;
use cloudlink_proto::stream::{self, STREAM_PATH};
use http::header::{AUTHORIZATION, HeaderName, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::admission::{Identified, admit, check_standing, register};
use super::problem::{Answer, Problem};
use super::stream::Stream;
use super::{Shared, enroll, ndt, poll};
use crate::admission::Registration;
use crate::cluster::peer::{Carriage, stream_request};
use crate::metrics::Failure;
use crate::support::expect::{Maker, Ticket};
use crate::websocket::{self, HandshakeError};

/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Least that hyper takes as the size of its buffer.
const BUFFER_BYTES_MIN: usize = 8_192;
/// How long a peer that was refused may take to read why.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

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

/// A connection that is a WebSocket now.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for a moment, and almost all are links")]
pub(crate) enum Upgraded {
    Link(UpgradedLink),
    /// Of a support session or a test, in whose hands it is already.
    Stream,
}

/// A connection of a peer that may link.
#[derive(Debug)]
pub(crate) struct UpgradedLink {
    pub(super) stream: Stream,
    /// The tunnel that it is inside of.
    pub(super) tunnel_id: Option<TunnelId>,
    /// What the peer sent right after its request.
    pub(super) read_ahead: Bytes,
    pub(super) peer: Identified,
    /// `None` inside a tunnel.
    pub(super) registration: Option<Registration>,
}

/// What a request is let in for.
enum Admitted {
    Link(Identified, Option<Registration>),
    Stream(Ticket),
    /// Another node waits for it.
    Carried(Carriage),
    Test(Box<ndt::Test>),
}

/// Answers the request. `None`: it came to nothing, and the connection is closed.
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
                Some(peer) if request.uri().path() == POLL_PATH => {
                    Box::pin(poll::answer(&shared, request, peer, tunnel_id, remote)).await
                }
                Some(peer) => {
                    Box::pin(device(&shared, &request, peer, tunnel_id, remote)).await.map(|(what, answer)| {
                        *admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                        answer
                    })
                }
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
    let admitted = admitted.lock().unwrap_or_else(PoisonError::into_inner).take();
    match admitted {
        Some(Admitted::Link(peer, registration)) => {
            Some(Upgraded::Link(UpgradedLink { stream, tunnel_id, read_ahead, peer, registration }))
        }
        Some(Admitted::Stream(ticket)) => {
            ticket.arrive(stream, read_ahead);
            Some(Upgraded::Stream)
        }
        Some(Admitted::Carried(carriage)) => {
            carriage.begin(stream, read_ahead);
            Some(Upgraded::Stream)
        }
        Some(Admitted::Test(test)) => {
            test.begin(shared, stream, read_ahead);
            Some(Upgraded::Stream)
        }
        None => {
            // The peer may be gone already.
            let _ = timeout(GOODBYE_WITHIN, stream.shutdown()).await;
            None
        }
    }
}

/// A request under a linked device's name.
async fn device(
    shared: &Shared,
    request: &Request<Incoming>,
    peer: Result<Identified, Problem>,
    tunnel_id: Option<TunnelId>,
    remote: IpAddr,
) -> Result<(Admitted, Answer), Problem> {
    match (request.uri().path(), request.method()) {
        (LINK_PATH, &Method::GET) => {
            let answer = upgrade(request.headers(), SUBPROTOCOL)?;
            let peer = peer?;
            if tunnel_id.is_some() {
                // With its tunnel the device was admitted, and has a place.
                return Ok((Admitted::Link(peer, None), answer));
            }
            let registration = register(shared, &peer)?;
            admit(shared, &peer).await?;
            Ok((Admitted::Link(peer, Some(registration)), answer))
        }
        (STREAM_PATH, &Method::GET) => {
            let answer = upgrade(request.headers(), stream::SUBPROTOCOL)?;
            let peer = peer?;
            if tunnel_id.is_none() {
                check_standing(shared, &peer).await?;
            }
            let token = bearer_token(request.headers()).ok_or_else(stream_unknown)?;
            // Last: from here on the token is used up.
            let admitted = match shared.expectations.admit(peer.device_id, token) {
                Some(ticket) => Admitted::Stream(ticket),
                None => carry(shared, &peer, token, request.headers()).await.ok_or_else(stream_unknown)?,
            };
            Ok((admitted, answer))
        }
        (path @ (DOWNLOAD_PATH | UPLOAD_PATH), &Method::GET) => {
            let answer = upgrade(request.headers(), cloudlink_proto::ndt::SUBPROTOCOL)?;
            let direction = if path == UPLOAD_PATH { Direction::Upload } else { Direction::Download };
            let asked = ndt::Asked::read(direction, request.uri().query().unwrap_or_default(), remote)?;
            let test = ndt::admit(shared, &peer?, tunnel_id.is_some(), asked).await?;
            Ok((Admitted::Test(Box::new(test)), answer))
        }
        (LINK_PATH | STREAM_PATH | DOWNLOAD_PATH | UPLOAD_PATH, _) => Err(Problem::method_not_allowed("GET")),
        (ENROLL_PATH, _) => Err(Problem::not_found("dial the server's enrollment name to enroll")),
        _ => Err(Problem::not_found("a device finds its link and its streams here, and nothing else")),
    }
}

/// Brings a stream to the node that waits for it.
async fn carry(shared: &Shared, peer: &Identified, token: &str, headers: &HeaderMap) -> Option<Admitted> {
    let (peers, maker) = (shared.peers.get()?, Maker::of_presented(token)?);
    let node = peers.named(|node| Maker::named(node) == maker).await?;
    match peers.stream(&node, peer.device_id, stream_request(headers)).await {
        Ok(carriage) => carriage.map(Admitted::Carried),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                node,
                "cannot carry a device's stream to its node"
            );
            None
        }
    }
}

/// The token, if there is exactly one.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn stream_unknown() -> Problem {
    let detail = "nobody waits for this stream of this device: the token is unknown, used or too old";
    Problem::new("stream_unknown", StatusCode::FORBIDDEN, "Stream unknown", detail, Failure::Token)
}

/// Checks the WebSocket handshake and answers it.
fn upgrade(headers: &HeaderMap, subprotocol: &'static str) -> Result<Answer, Problem> {
    let headers = websocket::accept(headers, subprotocol).map_err(|error| match error {
        HandshakeError::NoUpgrade => upgrade_required(UPGRADE, "websocket", error),
        HandshakeError::Version => upgrade_required(SEC_WEBSOCKET_VERSION, "13", error),
        HandshakeError::Key | HandshakeError::Subprotocol(_) => Problem::bad_request(error.to_string()),
    })?;
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    Ok(answer)
}

fn upgrade_required(name: HeaderName, value: &'static str, error: HandshakeError) -> Problem {
    let detail = error.to_string();
    Problem::new("upgrade_required", StatusCode::UPGRADE_REQUIRED, "Upgrade required", detail, Failure::Http)
        .with_header(name, value)
}
