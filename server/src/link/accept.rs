//! Takes connections in, up to the point where they are a link, and lets them go when the node stops.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::openvpn::sniff::SNIFF_BYTES_MAX;
use cloudlink_proto::openvpn::{Sniffed, sniff};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::{identify, identify_resumed};
use super::intake::Intake;
use super::limit::{Pass, Unnamed};
use super::request::{Caller, Upgraded};
use super::stream::Stream;
use super::tls::{self, Purpose};
use super::{Ending, Links, Shared, conn, opening, request};
use crate::admission::cost::Kind;
use crate::admission::cpu::metered;
use crate::drain::send_away;
use crate::lifecycle::Shutdown;
use crate::metrics::Failure;
use crate::proxy::{self, ProxyError};
use crate::store::link::link_close_node;
use crate::store::single;
use crate::tunnel;
use crate::tunnel::opening::Arrival;

/// How long to wait when the system refuses to accept: most often it has no open file left, and one has to be closed first.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How much of the soft stop the tunnels' clients are sent away in: the last ones have to hear it, too.
const TUNNELS_SHARE_OF_SOFT: f64 = 0.7;
/// A load balancer, or the system, may hold connections that were made before it was known that nobody new is wanted. When none
/// comes for so long there are none left.
const BACKLOG_QUIET_FOR: Duration = Duration::from_millis(50);
/// The longest that is waited for that: somebody may not know better.
const BACKLOG_WITHIN: Duration = Duration::from_secs(1);
/// How long whoever is in the middle of a handshake when the node stops may take to come to its end, and to hear what to do.
const UNDER_WAY_WITHIN: Duration = Duration::from_secs(2);
/// Rows of an earlier life that one statement closes.
const ROWS_MAX: i64 = 1_000;
/// How long to wait for the database at the start.
const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// What a browser or a script that speaks plain HTTP is told.
const PLAIN_HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: application/problem+json\r\n\
    content-length: 132\r\n\
    connection: close\r\n\r\n\
    {\"type\":\"urn:cloudlink:problem:bad_request\",\"title\":\"Bad request\",\"status\":400,\"detail\":\"this port speaks TLS 1.3 and nothing else\"}";

/// Serves the device port until the soft stop, which may take as long as `soft`, then sends every device away, politely and
/// spread over time.
pub async fn run(links: Links, listener: TcpListener, soft: Duration, shutdown: Shutdown) {
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
            Ok((stream, peer)) => admit(&shared, stream, peer, &shutdown),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    let there = shared.registry.stop();
    send_away(&shared, &there, soft.mul_f64(TUNNELS_SHARE_OF_SOFT));
    take_backlog(&shared, listener, &shutdown).await;
    let hard = shutdown.hard.clone();
    shutdown.tasks.spawn(async move {
        // Links that end meanwhile are gone from the registry; the last of them ends this wait by the end of all tasks.
        tokio::select! {
            () = hard.cancelled() => {}
            () = shared.registry.emptied() => {}
        }
        for handle in shared.registry.all() {
            handle.end(Ending::Cut);
        }
    });
}

/// Takes in who is connected already, to be told to come back, and listens no more.
async fn take_backlog(shared: &Arc<Shared>, listener: TcpListener, shutdown: &Shutdown) {
    let all = async {
        while let Ok(Ok((stream, peer))) = timeout(BACKLOG_QUIET_FOR, listener.accept()).await {
            admit(shared, stream, peer, shutdown);
        }
    };
    tokio::select! {
        () = shutdown.hard.cancelled() => {}
        _ = timeout(BACKLOG_WITHIN, all) => {}
    }
}

/// Nothing of this node's is live before it has accepted anything.
async fn close_earlier_life(shared: &Shared) {
    loop {
        let closed = async {
            single!(shared.store, |connection| link_close_node(connection, &shared.node, "node_restarted", ROWS_MAX))
        };
        match shared.store.within(closed).await {
            Ok(0) => return,
            Ok(closed) => tracing::info!(links = closed, "closed links of an earlier life of this node"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot close links of an earlier life yet");
                sleep(DATABASE_RETRY).await;
            }
        }
    }
}

/// Somebody who was let in.
enum Newcomer {
    Here {
        remote: IpAddr,
        pass: Pass,
    },
    /// A load balancer is yet to say who it is.
    Behind {
        proxy: SocketAddr,
        place: Unnamed,
    },
}

/// Decides by numbers alone whether a stranger is let in at all.
fn admit(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, shutdown: &Shutdown) {
    let remote = peer.ip().to_canonical();
    let newcomer = if shared.proxies.include(remote) {
        let proxy = SocketAddr::new(remote, peer.port());
        shared.strangers.enter_unnamed().map(|place| Newcomer::Behind { proxy, place })
    } else {
        shared.strangers.enter(remote, Instant::now()).map(|pass| Newcomer::Here { remote, pass })
    };
    let Some(newcomer) = newcomer else { return shared.refuse(Failure::Overload, remote) };
    shutdown.tasks.spawn(Box::pin(serve(Arc::clone(shared), stream, newcomer, shutdown.clone())));
}

/// One connection, from its first byte to its link, which goes on in a task of its own: that of an idle link is to hold no
/// room for what came before.
async fn serve(shared: Arc<Shared>, stream: TcpStream, newcomer: Newcomer, shutdown: Shutdown) {
    shared.metrics.connections_unauthenticated.inc();
    let established = tokio::select! {
        () = cut_off(&shutdown) => None,
        established = establish(&shared, stream, newcomer) => established,
    };
    shared.metrics.connections_unauthenticated.dec();
    match established {
        Some(Established::Link(link)) => {
            shutdown.tasks.spawn(conn::run(link, shutdown.hard.clone()));
        }
        Some(Established::Tunnel(tunnel)) => {
            shutdown.tasks.spawn(tunnel::life::run(shared, tunnel, shutdown.hard.clone()));
        }
        None => {}
    }
}

/// Waits until the node stops, and then for what is under way.
async fn cut_off(shutdown: &Shutdown) {
    shutdown.soft.cancelled().await;
    tokio::select! {
        () = shutdown.hard.cancelled() => {}
        () = sleep(UNDER_WAY_WITHIN) => {}
    }
}

/// What a connection has become.
enum Established {
    Link(conn::Link),
    Tunnel(tunnel::conn::Tunnel),
}

async fn establish(shared: &Arc<Shared>, mut stream: TcpStream, newcomer: Newcomer) -> Option<Established> {
    let accepted_at = Instant::now();
    let deadline = accepted_at + shared.device.handshake_timeout_seconds.duration();
    let (remote, pass) = match newcomer {
        Newcomer::Here { remote, pass } => (remote, pass),
        // Apart: what it takes to read a header is held by nobody who needs none.
        Newcomer::Behind { proxy, place } => Box::pin(introduce(shared, &mut stream, proxy, place, deadline)).await?,
    };
    let spoken = timeout_at(deadline, listen(&mut stream)).await.unwrap_or(Err(Failure::Timeout));
    if matches!(spoken, Ok(Spoken::OpenVpn(_))) && shared.registry.are_doors_closed() {
        // A stock client comes again by itself within a second or two, and is served elsewhere.
        shared.refuse(Failure::Draining, remote);
        return None;
    }
    let is_served = matches!(spoken, Ok(Spoken::Tls)) || spoken.is_ok() && shared.tunnels.is_some();
    if is_served && !shared.admission.turn(remote).await {
        shared.refuse(Failure::Overload, remote);
        return None;
    }
    match (spoken, &shared.tunnels) {
        (Ok(Spoken::Tls), _) => {
            // Apart: whoever waits for its turn needs no room for what comes after it.
            let link = Box::pin(establish_link(shared, stream, remote, pass, accepted_at)).await;
            link.map(Established::Link)
        }
        (Ok(Spoken::OpenVpn(first)), Some(tunnels)) => {
            let arrival = Arrival { stream, first, remote, accepted_at, pass };
            let (tunnel, spent) = metered(Box::pin(tunnel::opening::open(shared, tunnels, arrival)).as_mut()).await;
            let tunnel = tunnel?;
            shared.admission.note(Kind::OpenVpn, spent, Duration::ZERO);
            Some(Established::Tunnel(tunnel))
        }
        (Ok(Spoken::OpenVpn(_)), None) => {
            shared.refuse(Failure::OpenvpnOff, remote);
            None
        }
        (Err(Failure::ProxyUntrusted), _) => {
            shared.refuse_proxy(&ProxyError::Untrusted, remote);
            None
        }
        (Err(failure), _) => {
            shared.refuse(failure, remote);
            None
        }
    }
}

/// Hears from a load balancer who somebody is.
async fn introduce(
    shared: &Shared,
    stream: &mut TcpStream,
    proxy: SocketAddr,
    place: Unnamed,
    deadline: Instant,
) -> Option<(IpAddr, Pass)> {
    let client = match timeout_at(deadline, shared.proxies.client(stream, proxy)).await {
        Ok(Ok(client)) => client.ip(),
        Ok(Err(error)) => {
            shared.refuse_proxy(&error, proxy.ip());
            return None;
        }
        Err(_) => {
            shared.refuse(Failure::Timeout, proxy.ip());
            return None;
        }
    };
    let pass = place.name(client, Instant::now());
    if pass.is_none() {
        shared.refuse(Failure::Overload, client);
    }
    Some((client, pass?))
}

async fn establish_link(
    shared: &Arc<Shared>,
    stream: TcpStream,
    remote: IpAddr,
    pass: Pass,
    begun: Instant,
) -> Option<conn::Link> {
    let deadline = Instant::now() + shared.device.handshake_timeout_seconds.duration();
    let shake = async { shake(shared, stream).await.map_err(|error| tls::failure(&error)) };
    let (shaken, shaking) = metered(pin!(timeout_at(deadline, shake))).await;
    let shaken = shaken.unwrap_or(Err(Failure::Timeout));
    let (purpose, stream) = match shaken {
        Ok(shaken) => shaken,
        Err(failure) => {
            shared.refuse(failure, remote);
            return None;
        }
    };
    let kind = match stream.get_ref().1.handshake_kind() {
        Some(rustls::HandshakeKind::Resumed) => Kind::Resumed,
        _ => Kind::Full,
    };
    shared.metrics.handshakes.with_label_values(&[kind.label()]).inc();
    shared.metrics.handshake_seconds.observe(begun.elapsed().as_secs_f64());

    let deadline = Instant::now() + shared.device.request_timeout_seconds.duration();
    let caller = match purpose {
        Purpose::Link => {
            let chain = stream.get_ref().1.peer_certificates();
            Caller::Device(match kind {
                Kind::Resumed => identify_resumed(shared, chain),
                Kind::Full | Kind::OpenVpn => identify(chain, &shared.trust_domain),
            })
        }
        Purpose::Enrollment => Caller::Stranger,
    };
    let serve = request::serve(shared, Stream::Tls(stream), caller, remote);
    let (upgraded, serving) = metered(pin!(timeout_at(deadline, serve))).await;
    let upgraded = match upgraded {
        Ok(upgraded) => upgraded?,
        Err(_) => {
            shared.refuse(Failure::Timeout, remote);
            return None;
        }
    };
    // Authenticated: no stranger any more.
    drop(pass);
    let Upgraded::Link(link) = upgraded else { return None };
    let tenant = link.peer.tenant_id;
    let (link, opening) = metered(pin!(opening::open(shared, link, remote))).await;
    let link = link?;
    shared.admission.learn(remote, tenant);
    shared.admission.note(kind, shaking, serving + opening);
    Some(link)
}

/// What a peer speaks.
enum Spoken {
    Tls,
    /// With the bytes that were taken to find out.
    OpenVpn(Vec<u8>),
}

/// Finds out by the first bytes. Those of TLS are left where they are; OpenVPN needs up to three, which are taken: a look that
/// takes nothing cannot wait for more.
async fn listen(stream: &mut TcpStream) -> Result<Spoken, Failure> {
    stream.set_nodelay(true).map_err(|_| Failure::Closed)?;
    let mut first = [0; SNIFF_BYTES_MAX];
    if !matches!(stream.peek(&mut first[..1]).await, Ok(1)) {
        return Err(Failure::Closed);
    }
    let mut heard = 1;
    let mut taken = 0;
    loop {
        match sniff(&first[..heard]) {
            Sniffed::Tls => return Ok(Spoken::Tls),
            Sniffed::OpenVpn => return Ok(Spoken::OpenVpn(first[..heard].to_vec())),
            Sniffed::Junk => {
                if taken == 0 && proxy::sends_header(stream).await {
                    return Err(Failure::ProxyUntrusted);
                }
                if taken == 0 && first[0].is_ascii_uppercase() {
                    // Nothing is lost if it does not arrive.
                    let _ = stream.write_all(PLAIN_HTTP_ANSWER).await;
                    let _ = stream.shutdown().await;
                }
                return Err(Failure::Tls);
            }
            Sniffed::NeedMore => match stream.read(&mut first[taken..]).await {
                Ok(0) | Err(_) => return Err(Failure::Closed),
                Ok(bytes) => taken += bytes,
            },
        }
        heard = heard.max(taken);
    }
}

async fn shake(shared: &Shared, stream: TcpStream) -> io::Result<(Purpose, TlsStream<Intake>)> {
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), Intake::new(stream)).await?;
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
