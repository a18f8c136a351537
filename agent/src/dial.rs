//! From a configuration to an open connection, of a link or of a stream: name, TCP or a proxy, TLS 1.3, WebSocket. Each step has a time limit of its own. Inside a
//! tunnel there is neither a name nor TLS.

mod proxy;
mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{Close, LINK_PATH, MESSAGE_BYTES_MAX, SUBPROTOCOL};
use cloudlink_proto::{ndt, stream};
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderValue, Request, header};
use rustls::{AlertDescription, HandshakeKind};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use time::OffsetDateTime;
use tokio::io::BufReader;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, tungstenite};

pub use self::proxy::ProxyError;
pub use self::wire::Wire;
use crate::config::{Proxies, Proxy, Server};
use crate::problem::{Problem, shown};
use crate::tls;
use crate::tunnel::TunnelError;
use crate::tunnel::interface::Interface;

const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const TLS_WITHIN: Duration = Duration::from_secs(20);
const WEBSOCKET_WITHIN: Duration = Duration::from_secs(20);
/// How many addresses of one name are tried in one attempt.
const ADDRESSES_MAX: usize = 4;
/// A link is idle most of the time: small buffers are enough.
const READ_BUFFER_BYTES: usize = 4096;
/// Room for a whole message of a stream, and its header.
const STREAM_READ_BUFFER_BYTES: usize = stream::DATA_BYTES_MAX + 1024;
/// What TLS gives out at once. A WebSocket clears as much memory as it asks for, each time.
const TLS_RECORD_BYTES: usize = 16 * 1024;
/// When a connection of a stream has been silent for so long, the other side is asked whether it is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(20);
/// It is asked so often, ...
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// ... and given up after so many questions without an answer.
const KEEPALIVE_RETRIES: u32 = 3;

/// An open WebSocket.
pub type Socket = WebSocketStream<Wire>;

/// How the server is reached.
#[derive(Clone, Debug)]
pub enum Route {
    Direct { server: Box<Server>, tls: tls::Client },
    Inside(Interface),
}

/// What is to be expected on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Something small, now and then.
    Sparse,
    /// As much as goes through.
    Bulk,
}

impl Traffic {
    /// What is taken from the connection before TLS, which asks for one record at a time and for a quarter of it after a pause, has use
    /// for it: each time is a call of the system, and tells the server that there is room again.
    const fn read_ahead_bytes(self) -> usize {
        match self {
            // Less than is ever asked for, which is then not kept.
            Self::Sparse => 1,
            Self::Bulk => 64 * 1024,
        }
    }
}

/// A connection to the server, over which a WebSocket can be opened.
#[derive(Debug)]
pub struct Way {
    pub wire: Wire,
    /// As in a URL.
    pub authority: String,
    /// When the certificate ends that the server proved itself with; `None` if it did that to somebody else.
    pub server_certificate_ends: Option<OffsetDateTime>,
    /// What it goes through.
    pub tunnel: Option<Interface>,
}

/// What takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Resolve,
    Connect,
    Tls,
    WebSocket,
    ConnectInside,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolving the name",
            Self::Connect => "connecting",
            Self::Tls => "the TLS handshake",
            Self::WebSocket => "opening the WebSocket",
            Self::ConnectInside => "connecting inside the tunnel",
        })
    }
}

/// Why there is no link, or no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("cannot resolve {host}")]
    Resolve { host: String, source: io::Error },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("cannot connect to {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("the proxy {proxy}")]
    Proxy { proxy: String, source: ProxyError },
    #[error("through the proxy {proxy}")]
    Through { proxy: String, source: Box<Self> },
    #[error("{step} took longer than {} s", within.as_secs())]
    TimedOut { step: Step, within: Duration },
    #[error("TLS with {name} failed")]
    Tls { name: String, source: io::Error },
    #[error("{0}")]
    Http(Problem),
    #[error("the WebSocket cannot be opened")]
    WebSocket(#[source] tungstenite::Error),
    #[error("the server closed before its welcome: {:?} {}", .0.code, shown(&.0.message))]
    Closed(Close),
    #[error("TLS cannot be set up")]
    Setup(#[source] crate::tls::TlsSetupError),
    #[error("the first message cannot be sent")]
    Hello(#[source] cloudlink_proto::link::SendError),
    #[error("the server did not begin with a welcome")]
    NoWelcome,
    #[error("the device is not enrolled")]
    NotEnrolled,
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

impl DialError {
    /// Whether the server refuses who this device is: dialling again soon is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Http(problem) => {
                matches!(problem.status.as_u16(), 401 | 403) || problem.kind.as_deref() == Some("device_revoked")
            }
            Self::Closed(close) => is_refusal(close.code),
            Self::Tunnel(error) => error.is_refusal(),
            Self::Through { source, .. } => source.is_refusal(),
            Self::WebSocket(tungstenite::Error::Io(source)) => is_refusing_alert(source),
            // Until the handshake is done, an alert is anybody's who is on the way.
            Self::Tls { .. }
            | Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::TimedOut { .. }
            | Self::WebSocket(_)
            | Self::Setup(_)
            | Self::Hello(_)
            | Self::NoWelcome
            | Self::NotEnrolled => false,
        }
    }

    /// Whether the server itself has said so, by whatever way it was reached.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Http(_) => true,
            Self::Closed(close) => is_answer(close.code),
            Self::Through { source, .. } => source.is_answer(),
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::WebSocket(_)
            | Self::Setup(_)
            | Self::Hello(_)
            | Self::NoWelcome
            | Self::NotEnrolled
            | Self::Tunnel(_) => self.is_refusal(),
        }
    }

    /// When the server wants to be dialled again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http(problem) => problem.retry_after,
            Self::Closed(close) => Some(close.retry_after).filter(|after| !after.is_zero()),
            Self::Through { source, .. } => source.retry_after(),
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::WebSocket(_)
            | Self::Setup(_)
            | Self::Hello(_)
            | Self::NoWelcome
            | Self::NotEnrolled
            | Self::Tunnel(_) => None,
        }
    }
}

/// Whether a goodbye says that the transport works. One that says that nothing came in time says that it does not: something on the
/// way passes on answers only when they are whole.
#[must_use]
pub fn is_answer(code: Code) -> bool {
    code != Code::TimedOut
}

/// Whether a goodbye says that this device, its certificate or its software is not wanted: somebody must act first.
#[must_use]
pub fn is_refusal(code: Code) -> bool {
    match code {
        Code::Revoked | Code::CertificateExpired | Code::Version => true,
        Code::Unspecified
        | Code::ShuttingDown
        | Code::Replaced
        | Code::ProtocolError
        | Code::TimedOut
        | Code::Overloaded => false,
    }
}

/// Whether the server refuses the certificate. With TLS 1.3 a client hears that only after the handshake, when it reads, and from
/// nobody else than the server.
pub(crate) fn is_refusing_alert(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = tls else {
        return false;
    };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

impl Route {
    /// All steps up to a connection whose other end is proven.
    ///
    /// # Errors
    /// Of any step.
    pub async fn go(self, traffic: Traffic) -> Result<Way, DialError> {
        match self {
            Self::Direct { server, tls } => {
                let stream = secure(&server, &server.server_name, &tls, traffic).await?;
                let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let ends = leaf.and_then(tls::validity).map_or(OffsetDateTime::UNIX_EPOCH, |(_, ends)| ends);
                Ok(Way {
                    wire: Wire::Tls(Box::new(stream)),
                    authority: authority(&server.server_name, server.port),
                    server_certificate_ends: Some(ends),
                    tunnel: None,
                })
            }
            Self::Inside(tunnel) => {
                let wire = Wire::Plain(connect_inside(&tunnel).await?);
                let authority = tunnel.gateway.to_string();
                Ok(Way { wire, authority, server_certificate_ends: None, tunnel: Some(tunnel) })
            }
        }
    }
}

impl Way {
    /// Opens the WebSocket of a stream with its token.
    ///
    /// # Errors
    /// When the server refuses, or does not speak the protocol.
    pub async fn open_stream(self, token: &[u8]) -> Result<Socket, DialError> {
        stay_alive(self.wire.tcp());
        let request =
            stream_request(&self.authority, &self.wire, token).map_err(|error| DialError::WebSocket(error.into()))?;
        let read_buffer_bytes = match &self.wire {
            Wire::Tls(_) => TLS_RECORD_BYTES,
            Wire::Plain(_) => STREAM_READ_BUFFER_BYTES,
        };
        let limits = limits(read_buffer_bytes, stream::DATA_BYTES_MAX.max(stream::CONTROL_BYTES_MAX));
        upgrade(request, self.wire, limits).await
    }

    /// Opens the WebSocket of a test of the way, at this path and query.
    ///
    /// # Errors
    /// When the server refuses, or does not speak the protocol.
    pub async fn open_test(self, path: &str) -> Result<Socket, DialError> {
        let request = upgrade_request(&self.authority, &self.wire, path, ndt::SUBPROTOCOL)
            .body(())
            .map_err(|error| DialError::WebSocket(error.into()))?;
        upgrade(request, self.wire, limits(4 * TLS_RECORD_BYTES, ndt::MESSAGE_BYTES_MAX)).await
    }

    /// Opens the WebSocket of a link.
    ///
    /// # Errors
    /// When the server refuses, or does not speak the protocol.
    pub async fn open_link(self) -> Result<Socket, DialError> {
        websocket(&self.authority, self.wire).await
    }
}

/// A stream may be idle for hours. That the other side went away without a word must show nevertheless.
fn stay_alive(connection: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_RETRIES);
    if let Err(error) = SockRef::from(connection).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "a connection cannot be kept alive");
    }
}

/// The addresses to dial: the configured one, or what the name resolves to just now.
///
/// # Errors
/// When there is none.
pub async fn resolve(server: &Server) -> Result<Vec<SocketAddr>, DialError> {
    match server.address {
        Some(address) => Ok(vec![address]),
        None => resolve_name(&server.host, server.port).await,
    }
}

/// What the name resolves to just now.
async fn resolve_name(name: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let host = || name.to_owned();
    let found = timeout(RESOLVE_WITHIN, tokio::net::lookup_host((name, port)))
        .await
        .map_err(|_| DialError::TimedOut { step: Step::Resolve, within: RESOLVE_WITHIN })?
        .map_err(|source| DialError::Resolve { host: host(), source })?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if addresses.is_empty() { Err(DialError::NoAddress { host: host() }) } else { Ok(addresses) }
}

/// Lets the proxy connect to the server.
///
/// # Errors
/// What was wrong with the proxy, or what it said.
pub async fn connect_through(proxy: &Proxy, server: &Server) -> Result<TcpStream, DialError> {
    let (host, port) = server.target();
    proxy::open(proxy, &host_and_port(&host, port))
        .await
        .map_err(|source| DialError::Proxy { proxy: proxy.to_string(), source })
}

/// Connects to the first address that answers.
///
/// # Errors
/// What was wrong with the last one.
pub async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut failure = DialError::NoAddress { host: "the server".to_owned() };
    for address in addresses {
        match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Messages are small and wanted at once; where it cannot be set, they are a little late.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(source)) => failure = DialError::Connect { address: *address, source },
            Err(_) => failure = DialError::TimedOut { step: Step::Connect, within: CONNECT_WITHIN },
        }
    }
    Err(failure)
}

/// Proves the server, and the device if the configuration has a certificate.
///
/// # Errors
/// When either does not hold.
pub async fn handshake(
    stream: TcpStream,
    name: &ServerName<'static>,
    client: &tls::Client,
    traffic: Traffic,
) -> Result<TlsStream<BufReader<TcpStream>>, DialError> {
    let stream = BufReader::with_capacity(traffic.read_ahead_bytes(), stream);
    let failed = |source| DialError::Tls { name: name.to_str().into_owned(), source };
    let stream = timeout(TLS_WITHIN, TlsConnector::from(client.config()).connect(name.clone(), stream))
        .await
        .map_err(|_| DialError::TimedOut { step: Step::Tls, within: TLS_WITHIN })?
        .map_err(failed)?;
    let connection = stream.get_ref().1;
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        let chain = connection.peer_certificates().unwrap_or_default();
        client.verify_again(chain, name).map_err(|error| failed(io::Error::other(error)))?;
    }
    Ok(stream)
}

/// All steps up to TLS.
///
/// # Errors
/// Of any step.
pub async fn secure(
    server: &Server,
    name: &ServerName<'static>,
    client: &tls::Client,
    traffic: Traffic,
) -> Result<TlsStream<BufReader<TcpStream>>, DialError> {
    let Some(proxy) = server.proxy() else {
        let stream = connect(&resolve(server).await?).await?;
        return handshake(stream, name, client, traffic).await;
    };
    let stream = connect_through(proxy, server).await?;
    let through = |source| DialError::Through { proxy: proxy.to_string(), source: Box::new(source) };
    handshake(stream, name, client, traffic).await.map_err(through)
}

/// Connects to a host that is not the server, through the proxy if there is one for it; with TLS if there is a client for that.
///
/// # Errors
/// Of any step.
pub async fn open_other(
    proxies: &Proxies,
    host: &str,
    port: u16,
    client: Option<&tls::Client>,
) -> Result<Wire, DialError> {
    let stream = match proxies.of_host(host, port) {
        Some(proxy) => proxy::open(proxy, &host_and_port(host, port))
            .await
            .map_err(|source| DialError::Proxy { proxy: proxy.to_string(), source })?,
        None => connect(&resolve_name(host, port).await?).await?,
    };
    let Some(client) = client else { return Ok(Wire::Plain(stream)) };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| DialError::Tls { name: host.to_owned(), source: io::Error::other(error) })?;
    Ok(Wire::Tls(Box::new(handshake(stream, &name, client, Traffic::Bulk).await?)))
}

/// Connects to the gateway inside a tunnel, and by no other way.
///
/// # Errors
/// When it cannot be bound to the tunnel, or the gateway does not answer.
pub async fn connect_inside(tunnel: &Interface) -> Result<TcpStream, DialError> {
    let bind = |source| TunnelError::Bind { interface: tunnel.name.clone(), source };
    let socket = TcpSocket::new_v4().map_err(bind)?;
    // The address alone would not do: the routes may lead elsewhere, and there the link would be in the clear.
    socket.bind_device(Some(tunnel.name.as_bytes())).map_err(bind)?;
    socket.bind((tunnel.address, 0).into()).map_err(bind)?;
    let address = SocketAddr::from(tunnel.gateway);
    let stream = timeout(CONNECT_WITHIN, socket.connect(address))
        .await
        .map_err(|_| DialError::TimedOut { step: Step::ConnectInside, within: CONNECT_WITHIN })?
        .map_err(|source| DialError::Connect { address, source })?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Opens the WebSocket of a link.
///
/// # Errors
/// When the server refuses, or does not speak the protocol.
pub async fn websocket(authority: &str, stream: Wire) -> Result<Socket, DialError> {
    let request = upgrade_request(authority, &stream, LINK_PATH, SUBPROTOCOL)
        .body(())
        .map_err(|error| DialError::WebSocket(error.into()))?;
    upgrade(request, stream, limits(READ_BUFFER_BYTES, MESSAGE_BYTES_MAX)).await
}

fn limits(read_buffer_bytes: usize, message_bytes_max: usize) -> WebSocketConfig {
    let mut config = WebSocketConfig::default()
        .read_buffer_size(read_buffer_bytes)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * message_bytes_max);
    config.max_message_size = Some(message_bytes_max);
    config.max_frame_size = Some(message_bytes_max);
    config
}

async fn upgrade(request: Request<()>, stream: Wire, limits: WebSocketConfig) -> Result<Socket, DialError> {
    let opened = timeout(WEBSOCKET_WITHIN, tokio_tungstenite::client_async_with_config(request, stream, Some(limits)))
        .await
        .map_err(|_| DialError::TimedOut { step: Step::WebSocket, within: WEBSOCKET_WITHIN })?;
    match opened {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err(DialError::Http(Problem::read(response.status(), response.headers(), body)))
        }
        Err(error) => Err(DialError::WebSocket(error)),
    }
}

fn stream_request(authority: &str, stream: &Wire, token: &[u8]) -> Result<Request<()>, http::Error> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", BASE64URL_NOPAD.encode(token)))?;
    bearer.set_sensitive(true);
    upgrade_request(authority, stream, stream::STREAM_PATH, stream::SUBPROTOCOL)
        .header(header::AUTHORIZATION, bearer)
        .body(())
}

fn upgrade_request(authority: &str, stream: &Wire, path: &str, subprotocol: &str) -> http::request::Builder {
    let scheme = match stream {
        Wire::Tls(_) => "wss",
        Wire::Plain(_) => "ws",
    };
    Request::builder()
        .uri(format!("{scheme}://{authority}{path}"))
        .header(header::HOST, authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, tungstenite::handshake::client::generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, subprotocol)
        .header(header::USER_AGENT, crate::machine::AGENT)
}

/// Name and port as in a URL.
#[must_use]
pub fn authority(name: &ServerName<'_>, port: u16) -> String {
    host_and_port(&name.to_str(), port)
}

fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::link::Party;

    use super::*;

    #[test]
    fn a_goodbye_because_nothing_came_is_no_sign_that_the_transport_works() {
        let closed = |code| {
            let close = Close { by: Party::Peer, code, message: String::new(), retry_after: Duration::ZERO };
            DialError::Closed(close).is_answer()
        };
        assert!(!closed(Code::TimedOut) && closed(Code::Overloaded) && closed(Code::Revoked));
    }
}
