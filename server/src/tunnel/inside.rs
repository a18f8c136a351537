//! The link inside a tunnel: a plain WebSocket to the gateway's address. The tunnel has authenticated its device and lets no other
//! source address through, so the address is the identity for as long as the tunnel lives.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::Tunnels;
use crate::lifecycle::Shutdown;
use crate::link::limit::Pass;
use crate::link::request::{self, Caller, Upgraded};
use crate::link::stream::Stream;
use crate::link::{Links, Seat, Shared, conn, opening};
use crate::metrics::Failure;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1_024;
/// How long to wait when the system refuses to accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Why agents cannot be served inside tunnels.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} of {interface} (tunnel.link_port)")]
pub(crate) struct InsideError {
    address: SocketAddr,
    interface: String,
    #[source]
    source: io::Error,
}

/// Listens on an address of the interface, for what comes in through it and for nothing else.
pub(crate) fn listen(interface: &str, address: SocketAddr) -> Result<TcpListener, InsideError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
            // The kernel may still be looking for somebody else who has the address.
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|source| InsideError { address, interface: interface.to_owned(), source })
}

/// Takes in agents until the soft stop.
pub(crate) async fn run(links: Links, tunnels: Arc<Tunnels>, listener: TcpListener, shutdown: Shutdown) {
    let Links(shared) = links;
    loop {
        let accepted = tokio::select! {
            () = shutdown.soft.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => admit(&shared, &tunnels, stream, remote.ip().to_canonical(), &shutdown),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a connection out of a tunnel");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Finds out whose tunnel it comes from, and whether that device may have one more connection.
pub(crate) fn admit(shared: &Arc<Shared>, tunnels: &Tunnels, stream: TcpStream, inner: IpAddr, shutdown: &Shutdown) {
    // Both addresses of a tunnel count as one.
    let owner = tunnels.plane.owner(inner);
    let counted = tunnels.plane.slice().host_of(inner).and_then(|host| tunnels.plane.slice().addresses(host));
    let (Some(owner), Some(addresses)) = (owner, counted) else {
        return shared.refuse(Failure::Unknown, inner);
    };
    let tunnel = shared.registry.find_tunnel(owner.device);
    let Some(Seat::Tunnel(tunnel)) = tunnel.as_ref().map(|handle| &handle.seat) else {
        return shared.refuse(Failure::Unknown, inner);
    };
    if tunnel.tunnel_id != owner.tunnel {
        return shared.refuse(Failure::Unknown, inner);
    }
    let Some(pass) = tunnels.inside.enter(addresses.ipv4.into(), Instant::now()) else {
        return shared.refuse(Failure::Overload, inner);
    };
    let caller = Caller::Tunnel { tunnel_id: tunnel.tunnel_id, peer: tunnel.identity.clone() };
    let (shared, shutdown, remote) = (Arc::clone(shared), shutdown.clone(), tunnel.remote);
    shutdown.clone().tasks.spawn(Box::pin(serve(shared, stream, caller, remote, pass, shutdown)));
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, caller: Caller, remote: IpAddr, pass: Pass, shutdown: Shutdown) {
    let link = tokio::select! {
        () = shutdown.soft.cancelled() => None,
        link = establish(&shared, stream, caller, remote) => link,
    };
    drop(pass);
    if let Some(link) = link {
        shutdown.tasks.spawn(conn::run(link, shutdown.hard.clone()));
    }
}

async fn establish(shared: &Arc<Shared>, stream: TcpStream, caller: Caller, remote: IpAddr) -> Option<conn::Link> {
    if stream.set_nodelay(true).is_err() {
        shared.refuse(Failure::Closed, remote);
        return None;
    }
    let deadline = Instant::now() + shared.device.request_timeout_seconds.duration();
    let upgraded = match timeout_at(deadline, request::serve(shared, Stream::Plain(stream), caller, remote)).await {
        Ok(upgraded) => upgraded?,
        Err(_) => {
            shared.refuse(Failure::Timeout, remote);
            return None;
        }
    };
    match upgraded {
        Upgraded::Link(link) => opening::open(shared, link, remote).await,
        Upgraded::Stream => None,
    }
}
