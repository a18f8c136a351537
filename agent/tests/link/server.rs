//! A small server of the link protocol on loopback: real TLS, real certificates, the real session; the test decides what it
//! says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand;
use cloudlink_agent::clock;
use cloudlink_agent::config::Config;
use cloudlink_agent::identity::new_key;
use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_certs::{
    Authority, CertificateRequest, DeviceCertificate, DeviceIdentity, PrivateKey, Serial, ServerName, Validity,
};
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{
    Admission, Close, ENROLL_PATH, FromDevice, LINK_PATH, SUBPROTOCOL, Session, State, Timing, ToDevice,
};
use cloudlink_proto::stream;
use futures_util::{SinkExt, StreamExt};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use uuid::Uuid;

pub(crate) const HOST: &str = "link.test";
pub(crate) const ENROLL_HOST: &str = "enroll.link.test";
pub(crate) const TOKEN: &str = "cle_a-good-token";
/// Whatever a test waits for comes within this.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How often a device reports metrics that is not to.
pub(crate) const NEVER: Duration = Duration::ZERO;
/// Age and life of a certificate that needs no renewal.
pub(crate) const YOUNG: (time::Duration, time::Duration) = (time::Duration::ZERO, time::Duration::days(90));

/// A fleet with one device.
pub(crate) struct Fleet {
    pub(crate) authority: Authority,
    pub(crate) identity: DeviceIdentity,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let validity = Validity::starting_at(clock::wall_clock(), time::Duration::days(3650)).unwrap();
        let identity = DeviceIdentity {
            trust_domain: "fleet.test".parse().unwrap(),
            tenant: Uuid::from_u128(7),
            device: Uuid::from_u128(8),
        };
        Self { authority: Authority::create(new_key().unwrap(), "Test fleet", serial(), validity).unwrap(), identity }
    }

    /// A certificate that was made `age` ago and lives `life` in all.
    pub(crate) fn device_certificate(
        &self,
        request_der: &[u8],
        age: time::Duration,
        life: time::Duration,
    ) -> CertificateDer<'static> {
        let begins = clock::wall_clock() - age;
        let validity = Validity::new(begins, begins + life).unwrap();
        let request = CertificateRequest::from_der(request_der).unwrap();
        self.authority.issue_device(&request, &self.identity, serial(), validity).unwrap()
    }

    pub(crate) fn server_certificate(&self, key: &PrivateKey, validity: Validity) -> CertificateDer<'static> {
        let names: Vec<ServerName> = [HOST, ENROLL_HOST].iter().map(|name| name.parse().unwrap()).collect();
        self.authority.issue_server(&key.public_key(), &names, serial(), validity).unwrap()
    }
}

fn serial() -> Serial {
    let mut random = [0; 16];
    rand::fill(&mut random).unwrap();
    Serial::from_random(random)
}

/// What the server does with a connection, other than serving it.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// Answers the WebSocket request, or the enrollment, with this.
    Http { status: &'static str, headers: &'static str, body: &'static str },
    /// Issues the certificate and loses the answer.
    LoseAnswer,
}

#[derive(Default)]
struct Plan {
    refusals: VecDeque<Refusal>,
    /// Whoever comes with this certificate is refused.
    refused_serial: Option<Vec<u8>>,
    /// Whom each device is taken for.
    mistaken_for: Option<DeviceId>,
    /// What was issued for the token: the key, and the certificate.
    enrolled: Option<(Vec<u8>, CertificateDer<'static>)>,
    dialled: Vec<Instant>,
    /// From where, if inside of a tunnel.
    dialled_from: Vec<SocketAddr>,
    epoch: u64,
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) fleet: Arc<Fleet>,
    plan: Arc<Mutex<Plan>>,
    links: mpsc::Receiver<ServerLink>,
    streams: mpsc::Receiver<ServerStream>,
    task: tokio::task::JoinHandle<()>,
}

/// What was dialled: to be served by the test.
#[derive(Clone)]
struct Opened {
    links: mpsc::Sender<ServerLink>,
    streams: mpsc::Sender<ServerStream>,
}

/// What a WebSocket runs over.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Connection for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Connection for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The server's end of one stream.
pub(crate) struct ServerStream {
    /// `Authorization`, as it came.
    pub(crate) authorization: String,
    pub(crate) socket: WebSocketStream<Box<dyn Connection>>,
}

/// The server's end of one link, welcomed.
pub(crate) struct ServerLink {
    pub(crate) hello: Hello,
    pub(crate) certificate: DeviceCertificate,
    incoming: mpsc::Receiver<Incoming>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are messages")]
pub(crate) enum Incoming {
    Message(FromDevice),
    Closed(Close),
}

pub(crate) enum Order {
    Send(ToDevice),
    Raw(Message),
    Goodbye(Code, Duration),
    /// Breaks the connection.
    Cut,
}

impl TestServer {
    pub(crate) async fn start(fleet: Arc<Fleet>, metrics_interval: Duration) -> Self {
        let validity = Validity::starting_at(clock::wall_clock(), time::Duration::days(30)).unwrap();
        Self::start_with(fleet, metrics_interval, validity).await
    }

    pub(crate) async fn start_with(fleet: Arc<Fleet>, metrics_interval: Duration, validity: Validity) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = new_key().unwrap();
        let certificate = fleet.server_certificate(&key, validity);
        let mut roots = RootCertStore::empty();
        roots.add(fleet.authority.certificate_der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let builder = || ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let private = || PrivateKeyDer::Pkcs8(key.as_pkcs8_der().clone_key());
        let link = builder().with_client_cert_verifier(verifier).with_single_cert(vec![certificate.clone()], private());
        let enroll = builder().with_no_client_auth().with_single_cert(vec![certificate], private());
        let shared = Arc::new(Shared {
            fleet: Arc::clone(&fleet),
            plan: Arc::default(),
            link: Arc::new(link.unwrap()),
            enroll: Arc::new(enroll.unwrap()),
            metrics_interval,
        });
        let plan = Arc::clone(&shared.plan);
        let (links_in, links) = mpsc::channel(16);
        let (streams_in, streams) = mpsc::channel(32);
        let opened = Opened { links: links_in, streams: streams_in };
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(Arc::clone(&shared), stream, opened.clone()));
            }
        });
        Self { address, fleet, plan, links, streams, task }
    }

    /// The server's end of a tunnel: no TLS, and whoever comes is the device.
    pub(crate) fn start_inside(fleet: Arc<Fleet>, listener: std::net::TcpListener) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let request = cloudlink_agent::identity::request(&new_key().unwrap()).unwrap();
        let certificate = DeviceCertificate::parse(&fleet.device_certificate(&request, YOUNG.0, YOUNG.1)).unwrap();
        let plan = Arc::<Mutex<Plan>>::default();
        let (links_in, links) = mpsc::channel(16);
        let (streams_in, streams) = mpsc::channel(32);
        let opened = Opened { links: links_in, streams: streams_in };
        let task = tokio::spawn({
            let plan = Arc::clone(&plan);
            async move {
                loop {
                    let (stream, from) = listener.accept().await.unwrap();
                    plan.lock().unwrap().dialled_from.push(from);
                    let (plan, certificate, opened) = (Arc::clone(&plan), certificate.clone(), opened.clone());
                    tokio::spawn(async move { link(&plan, NEVER, stream, certificate, opened).await });
                }
            }
        });
        Self { address, fleet, plan, links, streams, task }
    }

    /// The next link that the device opens.
    pub(crate) async fn link(&mut self) -> ServerLink {
        timeout(SOON, self.links.recv()).await.expect("a link in time").unwrap()
    }

    /// The next stream that the device opens.
    pub(crate) async fn stream(&mut self) -> ServerStream {
        timeout(SOON, self.streams.recv()).await.expect("a stream in time").unwrap()
    }

    pub(crate) async fn no_stream_within(&mut self, within: Duration) {
        assert!(timeout(within, self.streams.recv()).await.is_err(), "a stream came");
    }

    pub(crate) async fn no_link_within(&mut self, within: Duration) {
        assert!(timeout(within, self.links.recv()).await.is_err(), "a link came");
    }

    pub(crate) fn refuse_next(&self, refusal: Refusal) {
        self.plan.lock().unwrap().refusals.push_back(refusal);
    }

    pub(crate) fn refuse_serial(&self, serial: &[u8]) {
        self.plan.lock().unwrap().refused_serial = Some(serial.to_vec());
    }

    pub(crate) fn mistake_for(&self, device: DeviceId) {
        self.plan.lock().unwrap().mistaken_for = Some(device);
    }

    /// From where it has dialled inside of the tunnel, in order.
    pub(crate) fn dialled_from(&self) -> Vec<SocketAddr> {
        self.plan.lock().unwrap().dialled_from.clone()
    }

    /// When the device has dialled, in order.
    pub(crate) fn dialled(&self) -> Vec<Instant> {
        self.plan.lock().unwrap().dialled.clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServerStream {
    /// Ends it at once, whatever is under way.
    pub(crate) fn reset(self) {
        self.socket.get_ref().tcp().set_zero_linger().unwrap();
    }
}

impl ServerLink {
    pub(crate) async fn send(&self, message: impl Into<ToDevice>) {
        self.order(Order::Send(message.into())).await;
    }

    pub(crate) async fn order(&self, order: Order) {
        self.orders.send(order).await.expect("the link is up");
    }

    /// The next thing that is not a metrics report.
    pub(crate) async fn next(&mut self) -> Incoming {
        loop {
            let incoming = timeout(SOON, self.incoming.recv()).await.expect("something in time");
            let incoming = incoming.expect("the link ends once");
            if !matches!(incoming, Incoming::Message(FromDevice::Metrics(_))) {
                return incoming;
            }
        }
    }

    /// The next message; pending when there is no more.
    pub(crate) async fn message(&mut self) -> FromDevice {
        match self.incoming.recv().await {
            Some(Incoming::Message(message)) => message,
            Some(Incoming::Closed(_)) | None => std::future::pending().await,
        }
    }

    pub(crate) async fn metrics(&mut self) -> cloudlink_proto::link::message::MetricsReport {
        loop {
            let incoming = timeout(SOON, self.incoming.recv()).await.expect("something in time").unwrap();
            if let Incoming::Message(FromDevice::Metrics(report)) = incoming {
                return report;
            }
        }
    }

    pub(crate) async fn status(&mut self) -> cloudlink_proto::link::message::CommandStatus {
        let incoming = self.next().await;
        let Incoming::Message(FromDevice::CommandStatus { status, .. }) = incoming else {
            panic!("expected a status, got {incoming:?}");
        };
        status
    }

    pub(crate) async fn closed(&mut self) -> Close {
        match self.next().await {
            Incoming::Closed(close) => close,
            Incoming::Message(other) => panic!("expected the end, got {other:?}"),
        }
    }
}

struct Shared {
    fleet: Arc<Fleet>,
    plan: Arc<Mutex<Plan>>,
    link: Arc<ServerConfig>,
    enroll: Arc<ServerConfig>,
    metrics_interval: Duration,
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, opened: Opened) {
    let Ok(start) = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await else { return };
    let enrolling = start.client_hello().server_name() == Some(ENROLL_HOST);
    let config = if enrolling { &shared.enroll } else { &shared.link };
    let Ok(stream) = start.into_stream(Arc::clone(config)).await else { return };
    if enrolling {
        return enroll(&shared, stream).await;
    }
    let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let certificate = DeviceCertificate::parse(&leaf).unwrap();
    link(&shared.plan, shared.metrics_interval, stream, certificate, opened).await;
}

async fn enroll(shared: &Shared, mut stream: TlsStream<TcpStream>) {
    let (head, body) = read_request(&mut stream).await;
    assert!(head.starts_with(&format!("POST {ENROLL_PATH} HTTP/1.1\r\n")), "{head}");
    let request: Value = serde_json::from_slice(&body).unwrap();
    let answer = answer_enrollment(shared, &request);
    if let Some(answer) = answer {
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    let _ = stream.shutdown().await;
}

fn answer_enrollment(shared: &Shared, request: &Value) -> Option<String> {
    let mut plan = shared.plan.lock().unwrap();
    plan.dialled.push(Instant::now());
    let refusal = plan.refusals.pop_front();
    if let Some(Refusal::Http { status, headers, body }) = refusal {
        return Some(http_answer(status, headers, body));
    }
    let csr = CertificateRequest::from_pem(request["csr_pem"].as_str().unwrap().as_bytes()).unwrap();
    let key = csr.public_key_der();
    let used = plan.enrolled.as_ref().is_some_and(|(first, _)| *first != key);
    if request["token"] != TOKEN || used {
        let body = r#"{"type":"urn:cloudlink:problem:forbidden","title":"No","detail":"this token will not do"}"#;
        return Some(http_answer("403 Forbidden", "", body));
    }
    let certificate = plan.enrolled.get_or_insert_with(|| {
        let validity = Validity::starting_at(clock::wall_clock(), time::Duration::days(90)).unwrap();
        let certificate = shared.fleet.authority.issue_device(&csr, &shared.fleet.identity, serial(), validity);
        (key, certificate.unwrap())
    });
    let body = json!({
        "device_id": shared.fleet.identity.device,
        "tenant_id": shared.fleet.identity.tenant,
        "certificate_pem": certificate_to_pem(&certificate.1),
        "ca_pem": shared.fleet.authority.certificate_pem(),
    });
    (!matches!(refusal, Some(Refusal::LoseAnswer))).then(|| http_answer("201 Created", "", &body.to_string()))
}

fn http_answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return (format!("{head}\r\n"), body.as_bytes().to_vec());
            }
        }
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.unwrap();
        assert!(count > 0, "half a request");
        bytes.extend_from_slice(&chunk[..count]);
    }
}

async fn link(
    plan: &Mutex<Plan>,
    metrics_interval: Duration,
    mut stream: impl Connection + 'static,
    certificate: DeviceCertificate,
    opened: Opened,
) {
    let refusal = {
        let mut plan = plan.lock().unwrap();
        plan.dialled.push(Instant::now());
        let refused = plan.refused_serial.as_ref() == Some(&certificate.serial);
        let body = r#"{"type":"urn:cloudlink:problem:forbidden","detail":"that certificate was revoked"}"#;
        let by_serial = refused.then_some(Refusal::Http { status: "403 Forbidden", headers: "", body });
        by_serial.or_else(|| plan.refusals.pop_front())
    };
    if let Some(Refusal::Http { status, headers, body }) = refusal {
        let _ = read_request(&mut stream).await;
        let _ = stream.write_all(http_answer(status, headers, body).as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let mut stream_token = None;
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let check = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let is_link = request.uri().path() == LINK_PATH;
        let subprotocol = if is_link { SUBPROTOCOL } else { stream::SUBPROTOCOL };
        if !is_link {
            assert_eq!(request.uri().path(), stream::STREAM_PATH);
            stream_token = Some(request.headers()["authorization"].to_str().unwrap().to_owned());
        }
        assert_eq!(request.headers()["sec-websocket-protocol"], subprotocol);
        response.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
        Ok(response)
    };
    let stream: Box<dyn Connection> = Box::new(stream);
    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
    if let Some(authorization) = stream_token {
        let _ = opened.streams.send(ServerStream { authorization, socket }).await;
        return;
    }
    let mut session = Session::server(Instant::now().into_std(), &Timing::default());
    let (to_test, incoming) = mpsc::channel(256);
    let (orders, mut ordered) = mpsc::channel(16);
    let mut pending = Some((opened, incoming, orders));
    loop {
        while let Some(message) = session.poll_transmit() {
            let _ = socket.send(Message::Binary(message)).await;
        }
        if session.state().is_ending() {
            break;
        }
        let now = || Instant::now().into_std();
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => match session.handle_message(now(), &bytes).unwrap() {
                    Some(FromDevice::Hello(hello)) => {
                        let admission = admission(plan, metrics_interval, &certificate);
                        session.welcome(now(), &admission).unwrap();
                        if let Some((opened, incoming, orders)) = pending.take() {
                            let certificate = certificate.clone();
                            let _ = opened.links.send(ServerLink { hello, certificate, incoming, orders }).await;
                        }
                    }
                    Some(FromDevice::Goodbye) | None => {}
                    Some(message) => to_test.send(Incoming::Message(message)).await.unwrap_or_default(),
                },
                Some(Ok(Message::Close(frame))) => session.transport_lost(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => session.transport_lost(None),
            },
            Some(order) = ordered.recv() => match order {
                Order::Send(message) => session.send(now(), message).unwrap(),
                Order::Raw(message) => { let _ = socket.send(message).await; }
                Order::Goodbye(code, retry_after) => session.goodbye(now(), code, "as the test wishes", retry_after),
                Order::Cut => return,
            },
        }
    }
    if session.state() == State::Closing {
        let _ = socket.close(None).await;
    }
    let _ = to_test.send(Incoming::Closed(session.close().unwrap().clone())).await;
}

fn admission(plan: &Mutex<Plan>, metrics_interval: Duration, certificate: &DeviceCertificate) -> Admission {
    let mut plan = plan.lock().unwrap();
    plan.epoch += 1;
    Admission {
        device_id: plan.mistaken_for.unwrap_or(DeviceId::from_uuid(certificate.identity.device)),
        tenant_id: TenantId::from_uuid(certificate.identity.tenant),
        epoch: plan.epoch,
        clock_unix_ms: clock::unix_ms(clock::wall_clock()),
        metrics_interval,
    }
}

/// A device's directory, with a configuration that points to a server.
pub(crate) struct Device {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Device {
    pub(crate) fn new(server: &TestServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("ca.pem"), server.fleet.authority.certificate_pem()).unwrap();
        std::fs::write(path("boot_id"), "boot-1\n").unwrap();
        std::fs::write(path("restart"), format!("echo \"$@\" >> {}\n", path("restarts"))).unwrap();
        std::fs::write(
            path("agent.toml"),
            format!(
                "state_dir = {:?}\nboot_id_path = {:?}\n[server]\nhost = {HOST:?}\naddress = \"{}\"\nca_file = {:?}\n\
                 [service]\nallow = [\"web\"]\nrestart_argv = [\"/bin/sh\", {:?}, \"{{service}}\"]\n\
                 [power]\nreboot_argv = [\"/bin/true\"]\nshutdown_argv = [\"/bin/true\"]\n",
                path("state"),
                path("boot_id"),
                server.address,
                path("ca.pem"),
                path("restart"),
            ),
        )
        .unwrap();
        let config = Config::load(&dir.path().join("agent.toml")).unwrap();
        Self { dir, config }
    }

    /// With a certificate that was made `age` ago and lives `life` in all.
    pub(crate) fn enrolled(server: &TestServer, age: time::Duration, life: time::Duration) -> Self {
        let device = Self::new(server);
        let key = new_key().unwrap();
        let request = cloudlink_agent::identity::request(&key).unwrap();
        let certificate = server.fleet.device_certificate(&request, age, life);
        std::fs::create_dir(&device.config.state_dir).unwrap();
        let slot = format!("{}{}", key.to_pem().as_str(), certificate_to_pem(&certificate));
        std::fs::write(device.slot("current"), slot).unwrap();
        device
    }

    pub(crate) fn slot(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(format!("{name}.pem"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The serial of the certificate in a slot.
pub(crate) fn serial_in(slot: &Path) -> Vec<u8> {
    let pem = std::fs::read(slot).unwrap();
    let chain = cloudlink_certs::pem::certificates_from_pem(&pem).unwrap();
    DeviceCertificate::parse(&chain[0]).unwrap().serial
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A moment as a validity wants it.
pub(crate) fn in_days(days: i64) -> OffsetDateTime {
    clock::wall_clock() + time::Duration::days(days)
}
