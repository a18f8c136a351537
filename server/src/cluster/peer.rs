//! The way to another node: one connection a request, TLS with certificates of nodes on both sides, HTTP/1.1. Used for what one
//! node alone can do, which is the node that has the device's link; a request is passed on once and no further, so there are no
//! loops whatever anybody believes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use cloudlink_proto::ids::DeviceId;
use cloudlink_proto::link::message::{StreamRefused, StreamRequest};
use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use prost::Message as _;
use rustls::version::TLS13;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Lease;
use crate::http_server::take_over;
use crate::link::stream::Stream;
use crate::pki::NodeCredentials;
use crate::pki::node::name_of;

/// Whose address the request came from, as the node that took it in saw it.
pub(crate) static CLIENT: HeaderName = HeaderName::from_static("x-cloudlink-client");
/// Which device the node that took it in has authenticated.
pub(crate) static DEVICE: HeaderName = HeaderName::from_static("x-cloudlink-device");
/// Where a node takes in streams of devices that came to another.
pub(crate) const STREAM_PATH: &str = "/internal/v1/stream";
/// Where a node orders a stream of a device that has its link to another one.
pub(crate) const ASK_PATH: &str = "/internal/v1/ask";
/// Of a device's refusal.
const REFUSAL_BYTES_MAX: usize = 4_096;
/// Streams that this node carries for others. Each is two sockets and two buffers.
const CARRIED_MAX: usize = 4_096;
/// Of what is carried, each way.
const BUFFER_BYTES: usize = 32 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Until the other node's answer begins. A request to this node has no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(18);
/// For a client to take the upgrade that it was answered.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);

/// Why another node has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("this node is not one of several, or the other one is not there")]
    NoNode,
    #[error("this node carries as many streams for others as it may")]
    Full,
    #[error("the other node did not answer in time")]
    Silent,
    #[error("cannot reach the other node")]
    Unreachable(#[source] std::io::Error),
    #[error("the other node broke off")]
    Broken(#[source] hyper::Error),
}

/// What nodes dial one another with.
pub(crate) struct Peers {
    lease: Arc<Lease>,
    tls: TlsConnector,
    places: Arc<Semaphore>,
    /// Requests by what came of them.
    passed_on: IntCounterVec,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl PassError {
    /// The values of the label `outcome`, besides that of an answer.
    const fn outcome(&self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::Full => "full",
            Self::Silent => "silent",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Peers {
    /// What is carried ends with `stop`, and is among `tasks`.
    pub(crate) fn new(
        lease: Arc<Lease>,
        credentials: &Arc<NodeCredentials>,
        passed_on: IntCounterVec,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let config = rustls::ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(credentials.roots())
            .with_client_cert_resolver(Arc::clone(credentials) as _);
        let places = Arc::new(Semaphore::new(CARRIED_MAX));
        Self { lease, tls: TlsConnector::from(Arc::new(config)), places, passed_on, tasks, stop }
    }

    /// Passes a person's request on, and its upgrade if it asks for one.
    pub(crate) async fn pass_on(
        &self,
        node: &str,
        client: IpAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, PassError> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let place = self.place()?;
        let (mut parts, body) = request.into_parts();
        let client = HeaderValue::from_str(&client.to_string()).expect("an address is a header value");
        parts.headers.insert(CLIENT.clone(), client);
        parts.headers.remove(&DEVICE);
        let request = Request::from_parts(parts, body);
        let mut answer = self.send(node, request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let (Some(upgrade), Some(other)) = (upgrade, answer.extensions_mut().remove::<OnUpgrade>())
        {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let Ok(Some((stream, ahead))) = timeout(UPGRADE_WITHIN, take_over(upgrade)).await else { return };
                carry(stream, ahead, other, stop, place).await;
            });
        }
        Ok(answer.map(|body| Body::new(body.map_err(axum::Error::new))))
    }

    /// Asks a node to take the stream of a device that came here. `None`: nobody waits for it there.
    pub(crate) async fn stream(
        &self,
        node: &str,
        device: DeviceId,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<Option<Carriage>, PassError> {
        let place = self.place()?;
        request.headers_mut().insert(DEVICE.clone(), device_value(device));
        let mut answer = self.send(node, request).await?;
        let is_taken = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        let other = answer.extensions_mut().remove::<OnUpgrade>().filter(|_| is_taken);
        let (stop, tasks) = (self.stop.clone(), self.tasks.clone());
        Ok(other.map(|other| Carriage { other, stop, tasks, place }))
    }

    /// Has the node that has the device's link ask it for a stream, and waits until the device refuses, or its time is up.
    pub(crate) async fn ask(&self, node: &str, device: DeviceId, request: &StreamRequest) -> Result<Asked, PassError> {
        let _place = self.place()?;
        let mut asking = Request::new(Full::from(request.encode_to_vec()));
        *asking.method_mut() = Method::POST;
        *asking.uri_mut() = Uri::from_static(ASK_PATH);
        asking.headers_mut().insert(HOST, HeaderValue::from_static("node"));
        asking.headers_mut().insert(DEVICE.clone(), device_value(device));
        let answer = self.send(node, asking).await?;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(Asked::Unrefused),
            StatusCode::OK => {
                let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
                let refused = body.ok().and_then(|body| StreamRefused::decode(body.to_bytes()).ok());
                refused.map(Asked::Refused).ok_or(PassError::Silent)
            }
            _ => Ok(Asked::NotLinked),
        }
    }

    /// Another node, by its name.
    pub(crate) async fn named(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        Some(self.lease.other(is_it).await?.name)
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, PassError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| PassError::Full);
        place.inspect_err(|error| self.count(error.outcome()))
    }

    async fn send<B>(&self, node: &str, request: Request<B>) -> Result<Response<Incoming>, PassError>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let answer = self.dial_and_send(node, request).await;
        self.count(answer.as_ref().map_or_else(PassError::outcome, |_| "answered"));
        answer
    }

    fn count(&self, outcome: &str) {
        self.passed_on.with_label_values(&[outcome]).inc();
    }

    async fn dial_and_send<B>(&self, node: &str, request: Request<B>) -> Result<Response<Incoming>, PassError>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let address = self.lease.other(|name| name == node).await.and_then(|other| other.address);
        let address = address.ok_or(PassError::NoNode)?;
        let name = ServerName::try_from(name_of(node)).expect("a hash is a DNS label");
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(name, stream).await
        };
        let connected = timeout(CONNECT_WITHIN, connect).await.map_err(|_| PassError::Silent)?;
        let stream = connected.map_err(PassError::Unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(PassError::Broken)?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // How it ended, whoever waits for the answer hears.
                _ = connection.with_upgrades() => {}
            }
        });
        let answer = timeout(ANSWER_WITHIN, sender.send_request(request)).await.map_err(|_| PassError::Silent)?;
        answer.map_err(PassError::Broken)
    }
}

fn device_value(device: DeviceId) -> HeaderValue {
    HeaderValue::from_str(&device.as_uuid().to_string()).expect("a UUID is a header value")
}

/// What came of asking another node for a device's stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// The device has been asked, and has not refused: it comes, or it does not.
    Unrefused,
    Refused(StreamRefused),
    /// That node has no link of the device either.
    NotLinked,
}

/// A stream of a device that is to be carried to another node.
#[derive(Debug)]
pub(crate) struct Carriage {
    other: OnUpgrade,
    stop: CancellationToken,
    tasks: TaskTracker,
    place: OwnedSemaphorePermit,
}

impl Carriage {
    /// Carries it until one of the two ends closes.
    pub(crate) fn begin(self, stream: Stream, ahead: Bytes) {
        let Self { other, stop, tasks, place } = self;
        tasks.spawn(carry(stream, ahead, other, stop, place));
    }
}

async fn carry(
    mut stream: Stream,
    ahead: Bytes,
    other: OnUpgrade,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let Ok(Ok(other)) = timeout(UPGRADE_WITHIN, other).await else { return };
    let mut other = TokioIo::new(other);
    let carried = tokio::select! {
        () = stop.cancelled() => Err(std::io::ErrorKind::ConnectionAborted.into()),
        carried = both_ways(&mut stream, ahead, &mut other) => carried,
    };
    if carried.is_err() {
        // Cut is cut: what has not left yet stays.
        stream.abort();
    }
}

async fn both_ways(
    stream: &mut Stream,
    ahead: Bytes,
    other: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> std::io::Result<()> {
    other.write_all(&ahead).await?;
    copy_bidirectional_with_sizes(stream, other, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

/// The request for a stream, as one node makes it to another.
pub(crate) fn stream_request(from: &http::HeaderMap) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from_static(STREAM_PATH);
    *request.headers_mut() = from.clone();
    request.headers_mut().insert(HOST, HeaderValue::from_static("node"));
    debug_assert!(request.headers().contains_key(AUTHORIZATION), "its token says whose it is");
    request
}
