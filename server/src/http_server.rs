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
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus::{IntCounter, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::lifecycle::Shutdown;

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
    pub bounds: Bounds,
    pub figures: Option<Figures>,
}

/// What strangers may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The most connections. Above it, new ones are closed at once.
    pub connections_max: usize,
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
}

impl HttpServer {
    /// Accepts until the soft stop; then lets requests end, until the hard stop.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown) {
        let free = Arc::new(Semaphore::new(self.bounds.connections_max));
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
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                if let Some(figures) = &server.figures {
                    figures.refused.inc();
                }
                continue;
            };
            let connection = Arc::clone(&server).connection(stream, peer, permit, shutdown.clone());
            shutdown.tasks.spawn(connection);
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        _permit: OwnedSemaphorePermit,
        shutdown: Shutdown,
    ) {
        let _counted = self.figures.as_ref().map(|figures| Counted::new(figures.connections.clone()));
        let serving = async {
            let _ = stream.set_nodelay(true);
            match &self.tls {
                None => self.serve(stream, peer, &shutdown).await,
                Some(tls) => {
                    let accept = TlsAcceptor::from(Arc::clone(tls)).accept(stream);
                    match timeout(self.bounds.handshake, accept).await {
                        Ok(Ok(stream)) => self.serve(stream, peer, &shutdown).await,
                        Ok(Err(error)) => tracing::debug!(port = self.name, %peer, ?error, "the TLS handshake failed"),
                        Err(_) => tracing::debug!(port = self.name, %peer, "the TLS handshake was too slow"),
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.hard.cancelled() => {}
            () = serving => {}
        }
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
        let connection = builder.serve_connection(TokioIo::new(stream), service);
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
