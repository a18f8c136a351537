//! Serves a router on a listener: TLS or not, HTTP/1.1 or HTTP/2, with bounds on how many connections there are and how slow
//! they may be. The people port and the operations port are served by it; the device port is not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::conn::auto::upgrade::downcast;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use crate::lifecycle::Shutdown;
use crate::link::intake::Intake;
use crate::link::limit::{Allowance, Gate, Pass, Unnamed};
use crate::link::stream::Stream;
use crate::proxy::{self, Proxies, ProxyError};

/// Requests at once on one HTTP/2 connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// The head of a request.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// After an accept that failed (no file left, most likely), before the next.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How a router is served.
#[derive(Clone, Debug)]
pub struct HttpServer {
    /// Of the port, in logs.
    pub name: &'static str,
    pub router: Router,
    /// Plain when `None`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Load balancers in front of it.
    pub proxies: Proxies,
    pub bounds: Bounds,
    pub figures: Option<Figures>,
}

/// What strangers may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most connections. Above it, new ones are closed at once.
    pub connections_max: u32,
    /// The most of one address. A stranger needs many of them to keep everybody else out.
    pub per_address_max: u32,
    pub handshake: Duration,
    /// From the start of a request to the end of its head.
    pub header: Duration,
    /// A connection on which no byte moved for so long is closed.
    pub idle: Duration,
}

/// Where connections are counted.
#[derive(Clone, Debug)]
pub struct Figures {
    pub connections: IntGauge,
    pub refused: IntCounter,
    /// By reason.
    pub proxy_refused: IntCounterVec,
}

impl HttpServer {
    /// Accepts until the soft stop; then lets requests end, until the hard stop.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let gate = Gate::new(self.bounds.allowance());
        let server = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = shutdown.soft.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(port = server.name, %error, "cannot accept a connection");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                }
            };
            let Some(place) = server.place(&gate, peer) else {
                server.refuse();
                continue;
            };
            let connection = Arc::clone(&server).connection(stream, peer, place, shutdown.clone());
            shutdown.tasks.spawn(connection);
        }
    }

    /// Whoever comes through a load balancer has no address yet.
    fn place(&self, gate: &Arc<Gate>, peer: SocketAddr) -> Option<Place> {
        if self.proxies.include(peer.ip()) {
            return gate.enter_unnamed().map(Place::Unnamed);
        }
        gate.enter(peer.ip(), Instant::now()).map(Place::Named)
    }

    fn refuse(&self) {
        if let Some(figures) = &self.figures {
            figures.refused.inc();
        }
    }

    async fn connection(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, place: Place, shutdown: Shutdown) {
        let _counted = self.figures.as_ref().map(|figures| Counted::new(figures.connections.clone()));
        let serving = async {
            let _ = stream.set_nodelay(true);
            let deadline = Instant::now() + self.bounds.handshake;
            let client = match timeout_at(deadline, self.client(&mut stream, peer)).await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) => return self.refuse_proxy(&error, peer),
                Err(_) => return tracing::debug!(port = self.name, %peer, "the first bytes were too slow"),
            };
            let Some(_place) = place.named(client) else { return self.refuse() };
            match &self.tls {
                None => self.serve(stream, client, &shutdown).await,
                Some(tls) => {
                    let accept = TlsAcceptor::from(Arc::clone(tls)).accept(Intake::new(stream));
                    match timeout_at(deadline, accept).await {
                        Ok(Ok(stream)) => self.serve(stream, client, &shutdown).await,
                        Ok(Err(error)) => {
                            tracing::debug!(port = self.name, peer = %client, ?error, "the TLS handshake failed");
                        }
                        Err(_) => tracing::debug!(port = self.name, peer = %client, "the TLS handshake was too slow"),
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.hard.cancelled() => {}
            () = serving => {}
        }
    }

    /// Who a connection is from.
    async fn client(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<SocketAddr, ProxyError> {
        if self.proxies.include(peer.ip()) {
            return Box::pin(self.proxies.client(stream, peer)).await;
        }
        // Without TLS it is no request, and told so.
        if self.tls.is_some() && proxy::sends_header(stream).await {
            return Err(ProxyError::Untrusted);
        }
        Ok(peer)
    }

    fn refuse_proxy(&self, error: &ProxyError, peer: SocketAddr) {
        if let (Some(figures), ProxyError::Untrusted | ProxyError::Header(_)) = (&self.figures, error) {
            figures.proxy_refused.with_label_values(&[error.failure().label()]).inc();
        }
        self.proxies.refused(error, peer.ip().to_canonical());
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: SocketAddr,
        shutdown: &Shutdown,
    ) {
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            router.clone().oneshot(request)
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header)
            .max_buf_size(HEAD_BYTES_MAX as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .max_header_list_size(HEAD_BYTES_MAX);
        // The first request may take no longer than any other's head; hyper does not watch the time before it.
        let stream = IdleStream::new(stream, self.bounds.header, self.bounds.idle);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.soft.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(port = self.name, %peer, ?error, "a connection ended early");
        }
    }
}

/// Takes over the connection of a request that was answered with an upgrade, with what was read ahead. From here on nobody watches
/// how long it is idle. `None`: it is not there any more.
pub(crate) async fn take_over(upgrade: OnUpgrade) -> Option<(Stream, Bytes)> {
    let upgraded = upgrade.await.ok()?;
    let upgraded = match downcast::<TokioIo<IdleStream<TlsStream<Intake>>>>(upgraded) {
        Ok(parts) => return Some((Stream::Tls(parts.io.into_inner().stream), parts.read_buf)),
        Err(upgraded) => upgraded,
    };
    let parts = downcast::<TokioIo<IdleStream<TcpStream>>>(upgraded).ok()?;
    Some((Stream::Plain(parts.io.into_inner().stream), parts.read_buf))
}

impl Bounds {
    fn allowance(&self) -> Allowance {
        // How fast they come is no matter.
        let (per_second, burst) = (u32::MAX, u32::MAX);
        Allowance { total_max: self.connections_max, per_address_max: self.per_address_max, per_second, burst }
    }
}

/// Of a connection, among all and among those of its address.
enum Place {
    Named(Pass),
    Unnamed(Unnamed),
}

impl Place {
    fn named(self, client: SocketAddr) -> Option<Pass> {
        match self {
            Self::Named(pass) => Some(pass),
            Self::Unnamed(unnamed) => unnamed.name(client.ip(), Instant::now()),
        }
    }
}

struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A stream that fails once no byte has moved, in either direction, for a time.
struct IdleStream<S> {
    stream: S,
    idle: Duration,
    until: Pin<Box<Sleep>>,
}

impl<S> IdleStream<S> {
    /// `first` is for the first byte.
    fn new(stream: S, first: Duration, idle: Duration) -> Self {
        Self { stream, idle, until: Box::pin(sleep(first)) }
    }

    fn moved<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.until.as_mut().reset(Instant::now() + self.idle);
            return poll;
        }
        match self.until.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.moved(context, poll)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for IdleStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.moved(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Often ready with nothing to do: that is no movement.
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.moved(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use cloudlink_proto::proxy_header;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(50);
    /// Far below `LONG`: what fails is a bound that was not kept.
    const PATIENCE: Duration = Duration::from_secs(30);
    const BOUNDS: Bounds = Bounds { connections_max: 8, per_address_max: 8, handshake: LONG, header: LONG, idle: LONG };

    struct Running {
        address: SocketAddr,
        shutdown: Shutdown,
        accepting: JoinHandle<()>,
    }

    async fn serve(bounds: Bounds) -> Running {
        serve_behind(Proxies::default(), bounds).await
    }

    async fn serve_behind(proxies: Proxies, bounds: Bounds) -> Running {
        let whence = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() };
        let slow = || async {
            sleep(SHORT).await;
            "slow"
        };
        let router =
            Router::new().route("/", get(|| async { "hello" })).route("/slow", get(slow)).route("/whence", get(whence));
        let server = HttpServer { name: "test", router, tls: None, proxies, bounds, figures: None };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let accepting = tokio::spawn(server.run(listener, shutdown.clone()));
        Running { address, shutdown, accepting }
    }

    async fn connect(running: &Running, send: &str) -> TcpStream {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(send.as_bytes()).await.unwrap();
        stream
    }

    /// All that comes until the other side closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset is an end as well.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the other side closes");
        String::from_utf8(bytes).unwrap()
    }

    fn get_request(path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n")
    }

    #[tokio::test]
    async fn who_says_nothing_is_closed_after_the_time_for_a_head() {
        let running = serve(Bounds { header: SHORT, ..BOUNDS }).await;
        assert_eq!(rest(connect(&running, "").await).await, "");
    }

    #[tokio::test]
    async fn who_sends_its_head_too_slowly_is_closed() {
        let running = serve(Bounds { header: SHORT, ..BOUNDS }).await;
        let answer = rest(connect(&running, "GET / HTTP/1.1\r\nHost:").await).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_moves_is_closed() {
        let running = serve(Bounds { idle: SHORT, ..BOUNDS }).await;
        let answer = rest(connect(&running, &get_request("/", "")).await).await;
        assert!(answer.ends_with("hello"), "{answer}");
    }

    #[tokio::test]
    async fn requests_behind_a_load_balancer_are_from_whom_it_says() {
        let running = serve_behind(Proxies::new("test", &["127.0.0.1/32".parse().unwrap()]), BOUNDS).await;
        let request = get_request("/whence", "Connection: close\r\n");
        let header = "PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n";
        let answer = rest(connect(&running, &format!("{header}{request}")).await).await;
        assert!(answer.ends_with("\r\n\r\n[2001:db8::7]:40000"), "{answer}");
        let own = String::from_utf8(proxy_header::LOCAL.to_vec()).unwrap();
        let stream = connect(&running, &format!("{own}{request}")).await;
        let address = stream.local_addr().unwrap();
        assert!(rest(stream).await.ends_with(&format!("\r\n\r\n{address}")));
        assert_eq!(rest(connect(&running, &request).await).await, "", "without a header it is not served");
    }

    #[tokio::test]
    async fn a_load_balancer_that_does_not_finish_its_header_is_closed() {
        let proxies = Proxies::new("test", &["127.0.0.0/8".parse().unwrap()]);
        let running = serve_behind(proxies, Bounds { handshake: SHORT, ..BOUNDS }).await;
        assert_eq!(rest(connect(&running, "").await).await, "");
        assert_eq!(rest(connect(&running, "PROXY TCP4 192.0.2.7 ").await).await, "");
    }

    #[tokio::test]
    async fn connections_beyond_the_most_are_closed_at_once_and_free_places_are_given_again() {
        let running = serve(Bounds { connections_max: 1, ..BOUNDS }).await;
        let mut first = connect(&running, &get_request("/", "")).await;
        let mut answer = [0; 15];
        first.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        assert_eq!(rest(connect(&running, &get_request("/", "")).await).await, "");

        drop(first);
        let until = Instant::now() + PATIENCE;
        while !rest(connect(&running, &get_request("/", "Connection: close\r\n")).await).await.ends_with("hello") {
            assert!(Instant::now() < until, "the place was never free again");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn one_address_takes_no_more_than_its_share() {
        let behind = Proxies::new("test", &["127.0.0.9/32".parse().unwrap()]);
        let running = serve_behind(behind, Bounds { per_address_max: 1, ..BOUNDS }).await;
        let from = async |address: &str, send: &str| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
            let mut stream = socket.connect(running.address).await.unwrap();
            stream.write_all(send.as_bytes()).await.unwrap();
            stream
        };
        let served = async |stream: &mut TcpStream| {
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await.is_ok_and(|_| &answer == b"HTTP/1.1 200 OK")
        };
        let request = get_request("/", "");
        let behind = format!("PROXY TCP4 192.0.2.7 192.0.2.1 4711 8443\r\n{request}");
        let mut direct = from("127.0.0.1", &request).await;
        let mut through = from("127.0.0.9", &behind).await;
        assert!(served(&mut direct).await && served(&mut through).await);
        for (address, send) in [("127.0.0.1", &request), ("127.0.0.9", &behind)] {
            assert_eq!(rest(from(address, send).await).await, "", "{address}");
        }
        let behind = behind.replace("192.0.2.7", "192.0.2.8");
        for (address, send) in [("127.0.0.2", &request), ("127.0.0.9", &behind)] {
            assert!(served(&mut from(address, send).await).await, "{address}");
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let running = serve(BOUNDS).await;
        let large = format!("X-Large: {}\r\n", "x".repeat(HEAD_BYTES_MAX as usize));
        let answer = rest(connect(&running, &get_request("/", &large)).await).await;
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[tokio::test]
    async fn a_soft_stop_lets_requests_end_and_closes_idle_connections() {
        let running = serve(BOUNDS).await;
        let mut idle = connect(&running, &get_request("/", "")).await;
        let mut answer = [0; 15];
        idle.read_exact(&mut answer).await.unwrap();
        let slow = connect(&running, &get_request("/slow", "")).await;
        // The request is in the server's hands when a later one has been answered.
        let later = rest(connect(&running, &get_request("/", "Connection: close\r\n")).await).await;
        assert!(later.ends_with("hello"), "{later}");

        assert!(running.shutdown.run(PATIENCE, SHORT, std::future::pending()).await);
        running.accepting.await.unwrap();
        assert!(rest(slow).await.ends_with("slow"));
        assert!(rest(idle).await.ends_with("hello"));
        assert!(TcpStream::connect(running.address).await.is_err(), "the port is closed");
    }

    #[tokio::test]
    async fn a_hard_stop_cuts_what_is_under_way() {
        let running = serve(BOUNDS).await;
        let half = connect(&running, "GET / HTTP/1.1\r\n").await;
        let later = rest(connect(&running, &get_request("/", "Connection: close\r\n")).await).await;
        assert!(later.ends_with("hello"), "{later}");
        assert!(running.shutdown.run(SHORT, PATIENCE, std::future::pending()).await);
        assert_eq!(rest(half).await, "");
    }
}
