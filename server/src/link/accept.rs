//! Takes connections in, up to the point where they are a link, and lets them go when the node stops.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::limit::Pass;
use super::tls::{self, Purpose};
use super::{Ending, Links, Shared, conn, opening, request};
use crate::lifecycle::Shutdown;
use crate::metrics::Failure;
use crate::store::link::link_close_node;

/// How long to wait when the system refuses to accept: most often it has no open file left, and one has to be closed first.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long to wait for the database at the start.
const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// The first byte of a TLS record that holds a ClientHello (RFC 8446, section 5.1: `handshake`).
const TLS_HANDSHAKE: u8 = 0x16;
/// What a browser or a script that speaks plain HTTP is told.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: application/problem+json\r\n\
    content-length: 132\r\n\
    connection: close\r\n\r\n\
    {\"type\":\"urn:cloudlink:problem:bad_request\",\"title\":\"Bad request\",\"status\":400,\"detail\":\"this port speaks TLS 1.3 and nothing else\"}";

/// Serves the device port until the soft stop, then sends every device away, politely and spread over time.
pub async fn run(links: Links, listener: TcpListener, shutdown: Shutdown) {
    let Links(shared) = links;
    tokio::select! {
        () = shutdown.soft.cancelled() => return,
        () = close_earlier_life(&shared) => {}
    }
    loop {
        let accepted = tokio::select! {
            () = shutdown.soft.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => admit(&shared, stream, remote.ip().to_canonical(), &shutdown),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    send_away(&shared);
    let hard = shutdown.hard.clone();
    shutdown.tasks.spawn(async move {
        // Links that end meanwhile are gone from the registry; the last of them ends this wait by the end of all tasks.
        while shared.registry.len() > 0 {
            tokio::select! {
                () = hard.cancelled() => break,
                () = sleep(ACCEPT_RETRY) => {}
            }
        }
        for handle in shared.registry.all() {
            handle.end(Ending::Cut);
        }
    });
}

/// Nothing of this node's is live before it has accepted anything.
async fn close_earlier_life(shared: &Shared) {
    loop {
        let closed = async { link_close_node(&mut *shared.store.connection().await?, &shared.node).await };
        match shared.store.within(closed).await {
            Ok(0) => return,
            Ok(closed) => return tracing::info!(links = closed, "closed links of an earlier life of this node"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot close links of an earlier life yet");
                sleep(DATABASE_RETRY).await;
            }
        }
    }
}

fn send_away(shared: &Shared) {
    let handles = shared.registry.all();
    let spread = shared.link.reconnect_spread_seconds.duration();
    let count = u32::try_from(handles.len()).unwrap_or(u32::MAX).max(1);
    for (place, handle) in (0..).zip(&handles) {
        let retry_after = spread / count * place;
        handle.end(Ending::Polite { code: Code::ShuttingDown, message: "this node stops", retry_after });
    }
    tracing::info!(links = handles.len(), ?spread, "told the devices to come back later");
}

/// Decides by numbers alone whether a stranger is let in at all.
fn admit(shared: &Arc<Shared>, stream: TcpStream, remote: IpAddr, shutdown: &Shutdown) {
    let Some(pass) = shared.strangers.enter(remote, Instant::now()) else {
        return shared.refuse(Failure::Overload, remote);
    };
    shutdown.tasks.spawn(Box::pin(serve(Arc::clone(shared), stream, remote, pass, shutdown.clone())));
}

/// One connection, from its first byte to its link, which goes on in a task of its own: that of an idle link is to hold no
/// room for what came before.
async fn serve(shared: Arc<Shared>, stream: TcpStream, remote: IpAddr, pass: Pass, shutdown: Shutdown) {
    shared.metrics.connections_unauthenticated.inc();
    let link = tokio::select! {
        () = shutdown.soft.cancelled() => None,
        link = establish(&shared, stream, remote, pass) => link,
    };
    shared.metrics.connections_unauthenticated.dec();
    if let Some(link) = link {
        shutdown.tasks.spawn(conn::run(link, shutdown.hard.clone()));
    }
}

async fn establish(shared: &Arc<Shared>, stream: TcpStream, remote: IpAddr, pass: Pass) -> Option<conn::Link> {
    let begun = Instant::now();
    let deadline = begun + shared.device.handshake_timeout_seconds.duration();
    let shaken = timeout_at(deadline, handshake(shared, stream)).await.unwrap_or(Err(Failure::Timeout));
    let (purpose, stream) = match shaken {
        Ok(shaken) => shaken,
        Err(failure) => {
            shared.refuse(failure, remote);
            return None;
        }
    };
    let kind = match stream.get_ref().1.handshake_kind() {
        Some(rustls::HandshakeKind::Resumed) => "resumed",
        _ => "full",
    };
    shared.metrics.handshakes.with_label_values(&[kind]).inc();
    shared.metrics.handshake_seconds.observe(begun.elapsed().as_secs_f64());

    let deadline = Instant::now() + shared.device.request_timeout_seconds.duration();
    let upgraded = match timeout_at(deadline, request::serve(shared, stream, purpose, remote)).await {
        Ok(upgraded) => upgraded?,
        Err(_) => {
            shared.refuse(Failure::Timeout, remote);
            return None;
        }
    };
    // Authenticated: no stranger any more.
    drop(pass);
    opening::open(shared, upgraded, remote).await
}

/// What the first byte says that the peer speaks. OpenVPN over TCP, which begins with the length of its first packet, gets
/// its branch here.
async fn handshake(shared: &Shared, mut stream: TcpStream) -> Result<(Purpose, TlsStream<TcpStream>), Failure> {
    stream.set_nodelay(true).map_err(|_| Failure::Closed)?;
    let mut first = [0; 1];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => Err(Failure::Closed),
        Ok(_) if first[0] == TLS_HANDSHAKE => shake(shared, stream).await.map_err(|error| tls::failure(&error)),
        Ok(_) => {
            if first[0].is_ascii_uppercase() {
                // Nothing is lost if it does not arrive.
                let _ = stream.write_all(PLAIN_HTTP_ANSWER).await;
                let _ = stream.shutdown().await;
            }
            Err(Failure::Tls)
        }
    }
}

async fn shake(shared: &Shared, stream: TcpStream) -> io::Result<(Purpose, TlsStream<TcpStream>)> {
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let (purpose, config) = shared.tls.choose(&hello.client_hello());
    Ok((purpose, hello.into_stream(config).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = std::str::from_utf8(PLAIN_HTTP_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
