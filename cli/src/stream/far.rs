//! The far end of streams, for tests: a server that says what a test tells it to say.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::{Authority, PrivateKey, Serial, Validity};
use cloudlink_proto::stream::{Control, SUBPROTOCOL};
use futures_util::{SinkExt, StreamExt};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use uuid::Uuid;

use crate::client::Client;
use crate::clock;
use crate::connection::{Connection, Secret};

pub(crate) const SESSION: Uuid = Uuid::from_u128(7);
/// No test takes that long.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection of a client, seen from the server.
pub(crate) struct Leg {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// What was asked for.
    pub(crate) path: String,
}

/// What a request for an upgrade is answered.
pub(crate) enum Answer {
    Upgrade,
    AnotherProtocol,
    Refuse(StatusCode, String),
}

/// A running server of one connection.
pub(crate) struct Far {
    connection: Connection,
    served: JoinHandle<()>,
}

impl Far {
    /// Answers one connection, and lets `script` speak on it.
    pub(crate) async fn start<F: Future<Output = ()> + Send>(script: impl FnOnce(Leg) -> F + Send + 'static) -> Self {
        Self::start_answering(Answer::Upgrade, script).await
    }

    /// Answers the request for an upgrade in another way.
    #[expect(clippy::result_large_err, reason = "the library wants an answer so large")]
    pub(crate) async fn start_answering<F: Future<Output = ()> + Send>(
        answer: Answer,
        script: impl FnOnce(Leg) -> F + Send + 'static,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (tls, ca_pem) = tls();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let api = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let served = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            // A client that does not trust us goes.
            let Ok(tls) = TlsAcceptor::from(Arc::new(tls)).accept(tcp).await else { return };
            let mut path = String::new();
            let upgraded = tokio_tungstenite::accept_hdr_async(tls, |request: &Request, mut response: Response| {
                path = request.uri().to_string();
                assert_eq!(request.headers()[AUTHORIZATION], "Bearer clk_test");
                assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
                match answer {
                    Answer::Upgrade => {
                        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
                        Ok(response)
                    }
                    Answer::AnotherProtocol => Ok(response),
                    Answer::Refuse(status, body) => {
                        let mut refusal = ErrorResponse::new(None);
                        *refusal.status_mut() = status;
                        refusal.headers_mut().insert(CONTENT_LENGTH, body.len().into());
                        *refusal.body_mut() = Some(body);
                        Err(refusal)
                    }
                }
            })
            .await;
            if let Ok(socket) = upgraded {
                script(Leg { socket, path }).await;
            }
        });
        let connection = Connection { api, ca_pem: Some(ca_pem), token: Secret::new("clk_test").unwrap() };
        Self { connection, served }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.connection).unwrap()
    }

    /// A client that trusts somebody else.
    pub(crate) fn client_of_another_authority(&self) -> Client {
        Client::new(&Connection { ca_pem: Some(tls().1), ..self.connection.clone() }).unwrap()
    }

    /// Waits until the script has come to its end.
    pub(crate) async fn end(self) {
        tokio::time::timeout(LIMIT, self.served).await.expect("the far end hangs").unwrap();
    }
}

impl Leg {
    pub(crate) async fn say(&mut self, control: &Control) {
        self.socket.send(Message::text(control.to_text())).await.unwrap();
    }

    /// Whatever it is.
    pub(crate) async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).await.unwrap();
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.socket.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    /// The next message but pings; `None` when the client has gone.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            let message = tokio::time::timeout(LIMIT, self.socket.next()).await.expect("the client is silent");
            match message {
                None | Some(Err(_) | Ok(Message::Close(_))) => return None,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
            }
        }
    }

    pub(crate) async fn hears(&mut self, control: &Control) {
        assert_eq!(self.next().await, Some(Message::text(control.to_text())));
    }

    /// All bytes until the next control message, or the end.
    pub(crate) async fn bytes(&mut self) -> (Vec<u8>, Option<Message>) {
        let mut bytes = Vec::new();
        loop {
            match self.next().await {
                Some(Message::Binary(more)) => bytes.extend_from_slice(&more),
                other => return (bytes, other),
            }
        }
    }
}

fn tls() -> (ServerConfig, String) {
    let now = OffsetDateTime::from_unix_timestamp(clock::now().as_second()).unwrap();
    let validity = Validity::starting_at(now, time::Duration::HOUR).unwrap();
    let serial = || Serial::from_random([2; 16]);
    let authority = Authority::create(key(), "test", serial(), validity).unwrap();
    let own = key();
    let names = ["localhost".parse().unwrap()];
    let certificate = authority.issue_server(&own.public_key(), &names, serial(), validity).unwrap();
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![certificate], own.as_pkcs8_der().clone_key().into())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    (config, authority.certificate_pem())
}

fn key() -> PrivateKey {
    let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
    PrivateKey::from_pkcs8_der(pkcs8.as_ref()).unwrap()
}
