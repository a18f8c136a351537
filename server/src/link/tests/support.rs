//! Support sessions over real sockets: the API on a people port, a device with its link and its streams, and a real database.

mod end;
mod guest;
mod stream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use cloudlink_proto::ids::SupportSessionId;
use cloudlink_proto::link::FromServer;
use cloudlink_proto::link::message::{Hello, StreamRequest};
use cloudlink_proto::stream::{Control, STREAM_PATH, SUBPROTOCOL};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tower::ServiceExt;
use uuid::Uuid;

use super::fleet::{Fleet, Gateway};
use super::peer::{DialError, Peer, dial_tls};
use super::{PATIENCE, Port, SERVER_NAME};
use crate::config;
use crate::http::{self as api, Context};
use crate::http_server::{Bounds, HttpServer};
use crate::proxy::Proxies;
use crate::secret::{Purpose, Token};
use crate::storage_key::StorageKey;
use crate::support::Support;
use crate::tasks;

/// What the product promises.
const CUT_WITHIN: Duration = Duration::from_secs(1);

/// Somebody with a token.
struct Somebody {
    id: Uuid,
    token: String,
}

/// A node with both its ports, a device with a link, and people.
struct Desk {
    port: Port,
    fleet: Fleet,
    device: Gateway,
    support: Support,
    router: Router,
    people: SocketAddr,
    operator: Somebody,
    colleague: Somebody,
    customer: Somebody,
    stranger: Somebody,
}

impl Desk {
    async fn new(database: PgConnectOptions) -> (Self, Peer) {
        Self::with(database, |_| {}).await
    }

    async fn with(database: PgConnectOptions, change: impl FnOnce(&mut config::Support)) -> (Self, Peer) {
        Self::on(Port::start(database).await, change).await
    }

    async fn on(port: Port, change: impl FnOnce(&mut config::Support)) -> (Self, Peer) {
        let mut config = config::Support::default();
        change(&mut config);
        let fleet = Fleet::new(&port).await;
        let device = fleet.device(&port).await;
        let link = link(&port, &device).await;
        let key = Arc::new(StorageKey::from_bytes([7; 32]));
        let support = Support::new(&port.links, config, Arc::clone(&key), port.shutdown.clone());
        tasks::start_support(&support, &port.shutdown);
        let shared = &port.links.0;
        let stopping = port.shutdown.soft.clone();
        let settings = api::Settings::default();
        let context =
            Context::new(shared.store.clone(), port.bus.clone(), Arc::clone(&port.metrics), settings, stopping)
                .with_storage_key(key)
                .with_support(support.clone());
        port.shutdown.tasks.spawn(context.clone().follow_hints());
        let router = api::router(context);
        let long = Duration::from_secs(60);
        let bounds = Bounds { connections_max: 64, per_address_max: 64, handshake: long, header: long, idle: long };
        let server = HttpServer {
            name: "test",
            router: router.clone(),
            tls: None,
            proxies: Proxies::default(),
            bounds,
            figures: None,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let people = listener.local_addr().unwrap();
        port.shutdown.tasks.spawn(server.run(listener, port.shutdown.clone()));
        let (colleague, stranger) = (Uuid::now_v7(), Uuid::now_v7());
        port.run(&format!(
            "insert into people (id, name, role) values ('{colleague}', 'colleague', 'operator');
             with t as (insert into tenants (id, name) values (gen_random_uuid(), 'another') returning id)
             insert into people (id, name, role, tenant_id) select '{stranger}', 'stranger', 'tenant', id from t"
        ))
        .await;
        let operator = token(&port, fleet.operator).await;
        let customer = token(&port, fleet.user).await;
        let (colleague, stranger) = (token(&port, colleague).await, token(&port, stranger).await);
        (Self { port, fleet, device, support, router, people, operator, colleague, customer, stranger }, link)
    }

    /// A grant for the device, to `operators` or to all.
    async fn grant(&self, scope: &str, seconds: f64, operators: Option<&[Uuid]>) -> Uuid {
        let id = Uuid::now_v7();
        let (Fleet { tenant, user, .. }, device) = (&self.fleet, self.device.id);
        let operators = operators.map_or("null".to_owned(), |ids| {
            format!("array[{}]::uuid[]", ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(","))
        });
        self.port
            .run(&format!(
                "insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, operator_ids, starts_at, ends_at,
                                     policy_max_seconds)
                 select '{id}', '{tenant}', '{user}', 'look', '{{{scope}}}', '{{{device}}}', {operators}, now(),
                        clock_timestamp() + make_interval(secs => {seconds}), 0"
            ))
            .await;
        id
    }

    async fn call(&self, method: Method, path: &str, who: &Somebody, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header("authorization", format!("Bearer {}", who.token));
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let answer = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn create(&self, who: &Somebody, body: Value) -> (StatusCode, Value) {
        let mut whole = json!({"reason": "ticket 4711"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        self.call(Method::POST, &format!("/devices/{}/support-sessions", self.device.id), who, Some(whole)).await
    }

    async fn opened(&self, body: Value) -> SupportSessionId {
        let (status, session) = self.create(&self.operator, body).await;
        assert_eq!(status, StatusCode::CREATED, "{session}");
        session["id"].as_str().unwrap().parse().unwrap()
    }

    async fn show(&self, id: SupportSessionId) -> Value {
        let (status, session) = self.call(Method::GET, &format!("/support-sessions/{id}"), &self.operator, None).await;
        assert_eq!(status, StatusCode::OK, "{session}");
        session
    }

    /// Waits until the session has ended and is accounted for.
    async fn accounted(&self, id: SupportSessionId) -> Value {
        self.port
            .until(&format!("select (result <> '{{}}')::text from support_sessions where id = '{id}'"), "true")
            .await;
        // The operator may be nobody any more.
        let (status, session) = self.call(Method::GET, &format!("/support-sessions/{id}"), &self.customer, None).await;
        assert_eq!(status, StatusCode::OK, "{session}");
        session
    }

    /// Asks for a stream of a session, as a client.
    async fn dial(
        &self,
        id: SupportSessionId,
        who: &Somebody,
        query: &str,
    ) -> Result<Side<TcpStream>, (StatusCode, Value)> {
        let stream = TcpStream::connect(self.people).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let uri = format!("ws://{}/api/v1/support-sessions/{id}/stream{query}", self.people);
        let mut request = uri.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        headers.insert("authorization", format!("Bearer {}", who.token).parse().unwrap());
        match timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.expect("an answer") {
            Ok((socket, _)) => Ok(Side { socket }),
            Err(Error::Http(answer)) => {
                let (parts, body) = answer.into_parts();
                Err((parts.status, serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A stream that flows: the client's side, and the device's.
    async fn flowing(&self, link: &mut Peer, id: SupportSessionId) -> (Side<TcpStream>, DeviceSide) {
        self.flowing_with(link, id, "").await
    }

    async fn flowing_with(&self, link: &mut Peer, id: SupportSessionId, query: &str) -> (Side<TcpStream>, DeviceSide) {
        let device = async {
            let request = requested(link).await;
            bring(&self.port, &self.device, &request.token).await.unwrap()
        };
        let (client, mut device) = tokio::join!(self.dial(id, &self.operator, query), device);
        let mut client = client.unwrap_or_else(|refused| panic!("{refused:?}"));
        device.say(Control::Ready).await;
        assert_eq!(client.hears().await, Control::Ready);
        (client, device)
    }

    /// A terminal that flows.
    async fn terminal(&self, link: &mut Peer) -> (SupportSessionId, Side<TcpStream>, DeviceSide) {
        let id = self.opened(json!({"kind": "terminal"})).await;
        let (client, device) = self.flowing(link, id).await;
        (id, client, device)
    }
}

async fn token(port: &Port, id: Uuid) -> Somebody {
    let token = Token::generate(Purpose::Api);
    let hash = HEXLOWER.encode(token.hash().as_bytes());
    port.run(&format!(
        "insert into api_tokens (id, person_id, name, secret_hash, expires_at)
         values (gen_random_uuid(), '{id}', 'test', '\\x{hash}', now() + interval '1 day')"
    ))
    .await;
    Somebody { id, token: token.expose().to_owned() }
}

/// The link of a device whose agent opens every kind of stream.
async fn link(port: &Port, device: &Gateway) -> Peer {
    let capabilities = ["stream.terminal", "stream.forward", "stream.file"].map(str::to_owned).to_vec();
    let hello = Hello { boot_id: "boot-1".to_owned(), capabilities, ..Hello::default() };
    Peer::dial_with(port, &device.credentials, hello).await.unwrap()
}

/// Waits until the device is asked for a stream.
async fn requested(link: &mut Peer) -> StreamRequest {
    match link.next().await {
        Some(FromServer::StreamRequest { request, .. }) => *request,
        other => panic!("no request for a stream, but {other:?}"),
    }
}

/// Dials a stream as a device.
async fn bring(port: &Port, device: &Gateway, token: &[u8]) -> Result<DeviceSide, DialError> {
    let stream = dial_tls(port, &device.credentials, SERVER_NAME).await.map_err(DialError::Tls)?;
    let mut request = format!("wss://{SERVER_NAME}{STREAM_PATH}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    let bearer = format!("Bearer {}", BASE64URL_NOPAD.encode(token));
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    match timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await.expect("an answer") {
        Ok((socket, _)) => Ok(Side { socket }),
        Err(Error::Http(answer)) => {
            let (parts, body) = answer.into_parts();
            let problem = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
            Err(DialError::Http { status: parts.status.as_u16(), problem, headers: parts.headers })
        }
        Err(error) => Err(DialError::Tls(std::io::Error::other(error))),
    }
}

/// One end of a stream.
struct Side<S> {
    socket: WebSocketStream<S>,
}

type DeviceSide = Side<TlsStream<TcpStream>>;

impl<S: AsyncRead + AsyncWrite + Unpin> Side<S> {
    async fn say(&mut self, control: Control) {
        self.socket.send(Message::Text(control.to_text().into())).await.unwrap();
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.send(Message::Binary(Bytes::copy_from_slice(bytes))).await.unwrap();
    }

    /// The next message; `None` once it is over.
    async fn next(&mut self) -> Option<Message> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("something is said") {
                // The answer to a close goes out with the next look.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_))) => {}
                Some(Err(_)) | None => return None,
                Some(Ok(message)) => return Some(message),
            }
        }
    }

    async fn hears(&mut self) -> Control {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("no word, but {other:?}"),
        }
    }

    async fn receives(&mut self) -> Vec<u8> {
        match self.next().await {
            Some(Message::Binary(bytes)) => bytes.to_vec(),
            other => panic!("no bytes, but {other:?}"),
        }
    }

    /// Waits for the node's last word, whatever comes before, and for the end.
    async fn closed(&mut self) -> String {
        let mut last = None;
        while let Some(message) = self.next().await {
            if let Message::Text(text) = &message
                && let Ok(Control::Closed { reason, message }) = serde_json::from_str(text)
            {
                assert!(!message.is_empty());
                last = Some(reason);
            }
        }
        last.expect("a last word")
    }
}
