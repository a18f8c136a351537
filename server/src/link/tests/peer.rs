//! A device, as the port sees it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use bytes::Bytes;
use cloudlink_certs::PrivateKey;
use cloudlink_proto::ids::{CommandId, DeviceId, TenantId};
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{CommandStatus, Hello, RestartService};
use cloudlink_proto::link::{Admission, Close, Device, FromServer, LINK_PATH, SUBPROTOCOL, Session, ToServer};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use super::{PATIENCE, Port, SERVER_NAME};

/// A key, and a certificate for it.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) config: Arc<ClientConfig>,
}

impl Credentials {
    pub(super) fn new(port: &Port, certificate: &CertificateDer<'static>, key: &PrivateKey) -> Self {
        let key = key.as_pkcs8_der().clone_key().into();
        let config = builder(port).with_client_auth_cert(vec![certificate.clone()], key).unwrap();
        Self { config: Arc::new(config) }
    }

    pub(super) fn none(port: &Port) -> Self {
        Self { config: Arc::new(builder(port).with_no_client_auth()) }
    }
}

fn builder(port: &Port) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(port.authority.certificate_der().clone()).unwrap();
    ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]).with_root_certificates(roots)
}

pub(super) fn new_key() -> PrivateKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    PrivateKey::from_pkcs8_der(pair.to_pkcs8v1().unwrap().as_ref()).unwrap()
}

/// Why there is no link.
#[derive(Debug)]
pub(super) enum DialError {
    /// The server ended the connection during or after the TLS handshake.
    Tls(io::Error),
    /// The server answered something else than an upgrade.
    Http { status: u16, problem: serde_json::Value, headers: HeaderMap },
    /// The server said goodbye.
    Goodbye(Close),
}

impl DialError {
    pub(super) fn in_tls(&self) -> &io::Error {
        match self {
            Self::Tls(error) => error,
            other @ (Self::Http { .. } | Self::Goodbye(_)) => panic!("not in TLS, but {other:?}"),
        }
    }

    pub(super) fn problem(&self) -> (u16, &str) {
        match self {
            Self::Http { status, problem, .. } => {
                (*status, problem["type"].as_str().unwrap().strip_prefix("urn:cloudlink:problem:").unwrap())
            }
            other @ (Self::Tls(_) | Self::Goodbye(_)) => panic!("no problem, but {other:?}"),
        }
    }
}

pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// TLS, and nothing more.
pub(super) async fn dial_tls(port: &Port, credentials: &Credentials, name: &str) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(port.address).await?;
    stream.set_nodelay(true)?;
    shake(stream, credentials, name).await
}

/// TLS over a connection that is there.
pub(super) async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    credentials: &Credentials,
    name: &str,
) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let shaken = TlsConnector::from(Arc::clone(&credentials.config)).connect(name, stream);
    timeout(PATIENCE, shaken).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// TLS and the WebSocket, without a hello.
pub(super) async fn dial_socket(port: &Port, credentials: &Credentials) -> Result<Socket, DialError> {
    let stream = dial_tls(port, credentials, SERVER_NAME).await.map_err(DialError::Tls)?;
    upgrade(stream).await
}

/// The WebSocket over TLS that is there.
pub(super) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Result<WebSocketStream<S>, DialError> {
    let mut request = format!("wss://{SERVER_NAME}{LINK_PATH}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    match timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.expect("an answer") {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => {
            let (parts, body) = answer.into_parts();
            let problem = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
            Err(DialError::Http { status: parts.status.as_u16(), problem, headers: parts.headers })
        }
        Err(Error::Io(error)) => Err(DialError::Tls(error)),
        Err(error) => Err(DialError::Tls(io::Error::other(error))),
    }
}

/// A device with a link.
pub(super) struct Peer<S = TlsStream<TcpStream>> {
    pub(super) socket: WebSocketStream<S>,
    pub(super) session: Session<Device>,
    pub(super) admission: Admission,
}

impl Peer {
    pub(super) async fn dial(port: &Port, credentials: &Credentials, boot_id: &str) -> Result<Self, DialError> {
        let hello = Hello {
            boot_id: boot_id.to_owned(),
            capabilities: vec!["metrics.collect".to_owned(), "device.reboot".to_owned()],
            agent: "test/1".to_owned(),
            hostname: "gateway".to_owned(),
            ..Hello::default()
        };
        Self::dial_with(port, credentials, hello).await
    }

    pub(super) async fn dial_with(port: &Port, credentials: &Credentials, hello: Hello) -> Result<Self, DialError> {
        let socket = dial_socket(port, credentials).await?;
        Self::open(socket, hello).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Says hello on a socket that is open.
    pub(super) async fn say_hello(socket: WebSocketStream<S>, boot_id: &str) -> Result<Self, DialError> {
        Self::open(socket, Hello { boot_id: boot_id.to_owned(), ..Hello::default() }).await
    }

    async fn open(socket: WebSocketStream<S>, hello: Hello) -> Result<Self, DialError> {
        let session = Session::device(Instant::now().into_std(), hello).unwrap();
        let admission = Admission {
            device_id: DeviceId::from_uuid(Uuid::nil()),
            tenant_id: TenantId::from_uuid(Uuid::nil()),
            epoch: 0,
            clock_unix_ms: 0,
            metrics_interval: Duration::ZERO,
        };
        let mut peer = Self { socket, session, admission };
        match peer.next().await {
            Some(FromServer::Welcome(admission)) => {
                peer.admission = admission;
                Ok(peer)
            }
            _ => Err(DialError::Goodbye(peer.session.close().expect("a reason").clone())),
        }
    }

    /// The next message of the server; `None` once the link has ended. Keeps the link alive meanwhile.
    pub(super) async fn next(&mut self) -> Option<FromServer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.transmit().await;
            let due = self.session.poll_timeout().map_or(deadline, |due| deadline.min(due.into()));
            match timeout_at(due, self.socket.next()).await {
                Ok(Some(Ok(Message::Binary(message)))) => {
                    let now = Instant::now().into_std();
                    match self.session.handle_message(now, &message).expect("the server keeps the protocol") {
                        Some(FromServer::Goodbye) => return None,
                        Some(message) => return Some(message),
                        None => {}
                    }
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) => {
                    self.session.transport_lost(None);
                    return None;
                }
                Err(_) => {
                    assert!(Instant::now() < deadline, "the server says nothing");
                    self.session.handle_timeout(Instant::now().into_std());
                }
            }
        }
    }

    async fn transmit(&mut self) {
        while let Some(message) = self.session.poll_transmit() {
            // If the socket has ended, reading it will tell.
            let _ = self.socket.send(Message::Binary(message)).await;
        }
    }

    /// Waits for the end, and gives the reason.
    pub(super) async fn ended(&mut self) -> Code {
        while let Some(message) = self.next().await {
            assert!(!matches!(message, FromServer::Welcome(_)), "{message:?}");
        }
        self.session.close().expect("a reason").code
    }

    pub(super) async fn send(&mut self, message: impl Into<ToServer>) {
        self.session.send(Instant::now().into_std(), message).unwrap();
        self.transmit().await;
    }

    /// Sends bytes as they are.
    pub(super) async fn send_raw(&mut self, message: Message) {
        let _ = self.socket.send(message).await;
    }

    pub(super) async fn report(&mut self, command: CommandId, state: State) {
        self.send(status(command, state)).await;
    }

    /// Waits for the next command.
    pub(super) async fn command(&mut self) -> (CommandId, cloudlink_proto::link::message::Command) {
        match self.next().await {
            Some(FromServer::Command { id, command, .. }) => (id, command),
            other => panic!("no command, but {other:?}"),
        }
    }

    /// Waits for the receipt of a command.
    pub(super) async fn receipt(&mut self) -> CommandId {
        match self.next().await {
            Some(FromServer::CommandReceipt { id }) => id,
            other => panic!("no receipt, but {other:?}"),
        }
    }

    /// Nothing but pings and pongs comes for this long.
    pub(super) async fn hears_nothing_for(&mut self, duration: Duration) {
        if let Ok(heard) = timeout(duration, self.next()).await {
            panic!("{heard:?}");
        }
    }
}

pub(super) fn status(command: CommandId, state: State) -> CommandStatus {
    CommandStatus { id: command.to_wire(), state: state.into(), ..CommandStatus::default() }
}

pub(super) fn restart(service: &str) -> RestartService {
    RestartService { service: service.to_owned() }
}

/// Sends a request as it is, and gives status and body.
pub(super) async fn request(
    port: &Port,
    credentials: &Credentials,
    name: &str,
    request: &[u8],
) -> io::Result<(u16, HeaderMap, Bytes)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = dial_tls(port, credentials, name).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end")?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok()).unwrap_or(0);
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (http::HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    Ok((status, headers, Bytes::from(body.to_owned())))
}
