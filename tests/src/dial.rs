//! The device port, dialled by hand: with any certificate, any TLS version, or none.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cloudlink_certs::{PrivateKey, TrustAnchor};
use cloudlink_proto::link::message::{DeviceMessage, Hello, ServerMessage, device_message, server_message};
use cloudlink_proto::link::{LINK_PATH, SUBPROTOCOL, VERSIONS};
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::api::install_provider;

/// For the whole of a dial, refusals included.
const LIMIT: Duration = Duration::from_secs(20);

/// What a device shows.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub certificate: CertificateDer<'static>,
    /// Not checked to fit: a thief's client does not check either.
    pub key: Arc<PrivateKey>,
}

/// A TLS client that trusts the fleet.
pub fn client_config(
    ca_file: &Path,
    credentials: Option<&Credentials>,
    versions: &[&'static SupportedProtocolVersion],
) -> anyhow::Result<ClientConfig> {
    install_provider();
    let mut roots = RootCertStore::empty();
    for root in TrustAnchor::from_pem(&std::fs::read(ca_file)?)?.roots() {
        roots.add(root.clone())?;
    }
    let builder = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => {
            let key = credentials.key.as_pkcs8_der().clone_key().into();
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
            let certified = CertifiedKey::new(vec![credentials.certificate.clone()], key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
    };
    // A test that wants to resume says so.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A TLS connection to an address under a name. With TLS 1.3 a refused client certificate only shows at the first read.
pub async fn tls(address: SocketAddr, name: &str, config: ClientConfig) -> anyhow::Result<TlsStream<TcpStream>> {
    let dial = async {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name.to_owned())?, stream)
            .await
            .map_err(anyhow::Error::from)
    };
    tokio::time::timeout(LIMIT, dial).await.context("no TLS in time")?
}

/// A link, driven by hand: it says what the test says and nothing else, so it does not live long by itself.
#[derive(Debug)]
pub struct Link {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

/// What came over a link.
#[expect(clippy::large_enum_variant, reason = "a test holds one at a time")]
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Message(server_message::Kind),
    /// The server closed the WebSocket with this code.
    Closed(u16),
    /// The connection is gone, without a word.
    Cut,
}

impl Link {
    /// Opens a WebSocket as a device does it. An error holds what the server said: [`Refusal::of`].
    pub async fn open(
        address: SocketAddr,
        name: &str,
        ca_file: &Path,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let stream = tls(address, name, client_config(ca_file, Some(credentials), &[&TLS13])?).await?;
        Self::upgrade(name, stream).await
    }

    /// Asks for a WebSocket on a connection that is there.
    pub async fn upgrade(name: &str, stream: TlsStream<TcpStream>) -> anyhow::Result<Self> {
        let mut request = format!("wss://{name}{LINK_PATH}").into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", SUBPROTOCOL.try_into()?);
        let opened = tokio::time::timeout(LIMIT, tokio_tungstenite::client_async(request, stream));
        let (socket, _) = opened.await.context("no WebSocket in time")??;
        Ok(Self { socket })
    }

    /// Says hello and hears the welcome.
    pub async fn hello(&mut self, hello: Hello) -> anyhow::Result<Heard> {
        self.send(device_message::Kind::Hello(hello)).await?;
        self.hear().await
    }

    pub async fn send(&mut self, kind: device_message::Kind) -> anyhow::Result<()> {
        self.send_raw(Message::Binary(DeviceMessage { kind: Some(kind) }.encode_to_vec().into())).await
    }

    /// Sends whatever it is.
    pub async fn send_raw(&mut self, message: Message) -> anyhow::Result<()> {
        Ok(self.socket.send(message).await?)
    }

    /// The next message, or the end.
    pub async fn hear(&mut self) -> anyhow::Result<Heard> {
        loop {
            let message = tokio::time::timeout(LIMIT, self.socket.next()).await.context("nothing heard in time")?;
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let message = ServerMessage::decode(bytes)?;
                    return Ok(Heard::Message(message.kind.context("the server said nothing that is known")?));
                }
                Some(Ok(Message::Close(frame))) => {
                    return Ok(Heard::Closed(frame.map_or(1005, |frame| frame.code.into())));
                }
                Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(_)) | None => return Ok(Heard::Cut),
            }
        }
    }

    /// Listens until the server closes; what it says before does not matter.
    pub async fn hear_the_end(&mut self) -> anyhow::Result<Heard> {
        loop {
            match self.hear().await? {
                Heard::Message(_) => {}
                end @ (Heard::Closed(_) | Heard::Cut) => return Ok(end),
            }
        }
    }
}

/// A hello of a device that can do everything.
#[must_use]
pub fn hello(boot_id: &str) -> Hello {
    let capabilities = ["metrics.collect", "service.restart", "device.reboot", "device.shutdown"];
    Hello {
        versions: VERSIONS.to_vec(),
        capabilities: capabilities.map(str::to_owned).into(),
        boot_id: boot_id.to_owned(),
        agent: "by-hand/1".to_owned(),
        os: "a test".to_owned(),
        hostname: "by-hand".to_owned(),
        clock_unix_ms: 0,
        transport_failures: Vec::new(),
        boot_hint: 0,
        busy_lock: None,
        configuration: None,
    }
}

/// How a dial was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TLS says why.
    Alert(rustls::AlertDescription),
    /// HTTP says why: the status, and the last part of the problem's type.
    Http(u16, String),
    /// The connection was cut.
    Cut,
    /// It went another way wrong.
    Other(String),
}

impl Refusal {
    /// Reads it from what a dial gave.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        use tokio_tungstenite::tungstenite::Error as WebSocketError;

        for cause in error.chain() {
            if let Some(WebSocketError::Http(answer)) = cause.downcast_ref() {
                return Self::Http(answer.status().as_u16(), problem(answer.body().as_deref().unwrap_or_default()));
            }
            if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                return Self::of_io(io);
            }
            if let Some(WebSocketError::Io(io)) = cause.downcast_ref() {
                return Self::of_io(io);
            }
        }
        Self::Other(format!("{error:#}"))
    }

    fn of_io(error: &std::io::Error) -> Self {
        if let Some(rustls::Error::AlertReceived(alert)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
            return Self::Alert(*alert);
        }
        if matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::BrokenPipe
        ) {
            return Self::Cut;
        }
        Self::Other(error.to_string())
    }
}

fn problem(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    body["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default().to_owned()
}
