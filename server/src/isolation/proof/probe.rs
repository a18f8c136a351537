//! A device of the node's own: an OpenVPN client in this process that dials the device port as any other does. It keeps its
//! tunnel up, sends what it is told to, and shows the lookout what comes out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::openvpn::{
    ClientConfig, ClientEvent, CloseReason, Event, HEADROOM, Output, Pushed, Session, Start, State, TAILROOM,
};
use cloudlink_proto::proxy_header;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::credential::{Credential, EnrollError, Issuer};
use super::lookout::{Lookout, Place};
use super::mark::What;
use super::packet::Datagram;
use crate::clock;
use crate::proxy::Proxies;
use crate::tunnel::slice::Addresses;

/// Batches of packets that wait to be sent: whoever gives more waits.
const ORDERS_MAX: usize = 4;
/// For the whole way from the first packet to a tunnel that is up.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For the node to take in what it is sent.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts to have a tunnel, doubled with each.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(20);
/// How long a tunnel must have been up for the next attempt to come soon again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 16 * 1024;

/// Why a probe has no tunnel.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("it has no certificate")]
    Enroll(#[from] EnrollError),
    #[error("the device port cannot be reached")]
    Connection(#[from] std::io::Error),
    #[error("the tunnel did not come up in time")]
    Slow,
    #[error("the tunnel has ended: {0}")]
    Closed(CloseReason),
    #[error("the node has not given it both addresses")]
    Addresses,
}

/// What the rest knows of a probe.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// Not yet up, or not any more: why, in words.
    Down(String),
    Up(Up),
}

/// A tunnel of a probe. The next one has the same addresses, as a rule, and is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Up {
    pub(super) addresses: Addresses,
    since: Instant,
}

impl Up {
    pub(super) fn now(addresses: Addresses) -> Self {
        Self { addresses, since: Instant::now() }
    }
}

/// A probe that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Probe {
    standing: watch::Receiver<Standing>,
    orders: mpsc::Sender<Vec<Vec<u8>>>,
    _stop: tokio_util::sync::DropGuard,
}

impl Probe {
    /// To be called in a runtime.
    pub(super) fn start(
        number: usize,
        issuer: Arc<Issuer>,
        port: SocketAddr,
        proxies: Proxies,
        lookout: Arc<Lookout>,
    ) -> Self {
        let (standing, seen) = watch::channel(Standing::Down("it has not been up yet".to_owned()));
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        let stop = CancellationToken::new();
        let run = Run { number, issuer, port: reachable(port), proxies, lookout, standing, orders: taken };
        let until = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = Box::pin(run.run()) => {}
            }
        });
        Self { standing: seen, orders, _stop: stop.drop_guard() }
    }

    /// One for tests, which has a tunnel until it is told otherwise, with what it is told to send.
    #[cfg(test)]
    pub(super) fn attached(addresses: Addresses) -> (Self, watch::Sender<Standing>, mpsc::Receiver<Vec<Vec<u8>>>) {
        let (told, standing) = watch::channel(Standing::Up(Up::now(addresses)));
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        (Self { standing, orders, _stop: CancellationToken::new().drop_guard() }, told, taken)
    }

    /// Waits until it has a tunnel, or until time is up: then why it has none.
    pub(super) async fn is_up(&self, deadline: Instant) -> Result<Up, String> {
        let mut standing = self.standing.clone();
        let up = standing.wait_for(|standing| matches!(standing, Standing::Up(_)));
        let _ = timeout_at(deadline, up).await;
        match &*self.standing.borrow() {
            Standing::Up(up) => Ok(*up),
            Standing::Down(reason) => Err(reason.clone()),
        }
    }

    /// Whether it still has this tunnel.
    pub(super) fn is_still(&self, up: Up) -> bool {
        matches!(&*self.standing.borrow(), Standing::Up(now) if *now == up)
    }

    /// Waits until it has this tunnel no more.
    pub(super) async fn lost(&self, up: Up) {
        let mut standing = self.standing.clone();
        if standing.wait_for(|standing| !matches!(standing, Standing::Up(now) if *now == up)).await.is_err() {
            // Nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Sends packets through the tunnel. Without one it waits for the next: see [`Self::lost`].
    pub(super) async fn send(&self, packets: Vec<Vec<u8>>) {
        // Without a probe nothing is sent, and what must work does not.
        let _ = self.orders.send(packets).await;
    }
}

/// The same port, on an address that can be dialled.
fn reachable(port: SocketAddr) -> SocketAddr {
    // Any IPv6 address takes IPv4 as well, and a host may be without IPv6 on its loopback interface.
    let ip = if port.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { port.ip() };
    SocketAddr::new(ip, port.port())
}

struct Run {
    number: usize,
    issuer: Arc<Issuer>,
    port: SocketAddr,
    proxies: Proxies,
    lookout: Arc<Lookout>,
    standing: watch::Sender<Standing>,
    orders: mpsc::Receiver<Vec<Vec<u8>>>,
}

impl Run {
    async fn run(mut self) {
        let (mut credential, mut pause) = (None, AGAIN_AFTER);
        loop {
            let began = Instant::now();
            if let Err(error) = self.serve(&mut credential).await {
                if began.elapsed() > STABLE_AFTER {
                    pause = AGAIN_AFTER;
                }
                let reason = in_words(&error);
                tracing::debug!(probe = self.number, reason, again_in = ?pause, "a probe has no tunnel");
                self.standing.send_replace(Standing::Down(reason));
                // Maybe it was the certificate: somebody may have restored an older database.
                credential = None;
                sleep(pause).await;
                pause = (pause * 2).min(AGAIN_AFTER_MAX);
            }
        }
    }

    /// Has a tunnel until it is lost, or until its certificate is to be made anew.
    async fn serve(&mut self, credential: &mut Option<Credential>) -> Result<(), ProbeError> {
        let number = u8::try_from(self.number).unwrap_or(u8::MAX);
        let good = match credential.take().filter(|credential| clock::now() < credential.renew_at) {
            Some(good) => good,
            None => self.issuer.enroll(number).await?,
        };
        let (client, renew_at) = (Arc::clone(&good.client), good.renew_at);
        *credential = Some(good);
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut stream = timeout_at(deadline, TcpStream::connect(self.port)).await.map_err(|_| ProbeError::Slow)??;
        stream.set_nodelay(true)?;
        if self.proxies.include(stream.local_addr()?.ip()) {
            // From where a load balancer may be nothing is taken without a header.
            stream.write_all(&proxy_header::LOCAL).await?;
        }
        let mut tunnel = Tunnel::new(stream, client, self.number, Arc::clone(&self.lookout));
        let addresses = timeout_at(deadline, tunnel.open()).await.map_err(|_| ProbeError::Slow)??;
        tunnel.addresses = Some(addresses);
        self.standing.send_replace(Standing::Up(Up::now(addresses)));
        // What waited was meant for another tunnel.
        while self.orders.try_recv().is_ok() {}
        let left = (renew_at - clock::now()).unsigned_abs();
        let until = Instant::now() + left;
        loop {
            tokio::select! {
                () = sleep_until(until) => {
                    self.standing.send_replace(Standing::Down("its certificate is being made anew".to_owned()));
                    return tunnel.leave().await;
                }
                order = self.orders.recv() => match order {
                    Some(packets) => tunnel.send(&packets).await?,
                    // Nobody is left to give any.
                    None => return tunnel.leave().await,
                },
                readable = tunnel.stream.readable() => {
                    readable?;
                    tunnel.take_in().await?;
                }
                () = due(tunnel.due()) => tunnel.pass_time().await?,
            }
        }
    }
}

fn in_words(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    std::iter::once(error.to_string()).chain(sources.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

struct Tunnel {
    stream: TcpStream,
    session: Box<Session>,
    number: usize,
    lookout: Arc<Lookout>,
    addresses: Option<Addresses>,
    pushed: Option<Box<Pushed>>,
    /// What the lookout asks to be sent: the end of connections that were accepted.
    replies: Vec<Vec<u8>>,
    unsent: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Tunnel {
    fn new(stream: TcpStream, client: Arc<ClientConfig>, number: usize, lookout: Arc<Lookout>) -> Self {
        let session = Box::new(Session::client(Instant::now().into_std(), client, start()));
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let (replies, unsent) = (Vec::new(), Vec::new());
        Self { stream, session, number, lookout, addresses: None, pushed: None, replies, unsent, buffer }
    }

    async fn open(&mut self) -> Result<Addresses, ProbeError> {
        self.drain().await?;
        while self.pushed.is_none() {
            self.wait().await?;
        }
        let pushed = self.pushed.take().ok_or(ProbeError::Addresses)?;
        let (Some((ipv4, _)), Some((ipv6, _))) = (pushed.ipv4, pushed.ipv6) else { return Err(ProbeError::Addresses) };
        Ok(Addresses { ipv4, ipv6 })
    }

    /// Waits for one thing and deals with it. Not to be cancelled but with the tunnel: it may have sent half of something.
    async fn wait(&mut self) -> Result<(), ProbeError> {
        tokio::select! {
            readable = self.stream.readable() => {
                readable?;
                self.take_in().await
            }
            () = due(self.due()) => self.pass_time().await,
        }
    }

    fn due(&self) -> Option<Instant> {
        self.session.poll_timeout().map(|(at, _)| Instant::from_std(at))
    }

    async fn pass_time(&mut self) -> Result<(), ProbeError> {
        self.session.handle_timeout(now());
        self.drain().await
    }

    async fn take_in(&mut self) -> Result<(), ProbeError> {
        self.receive()?;
        self.drain().await
    }

    fn receive(&mut self) -> Result<(), ProbeError> {
        let Self { stream, session, buffer, lookout, number, addresses, replies, .. } = self;
        match stream.try_read(buffer) {
            Ok(0) => session.handle_end_of_stream(now()),
            Ok(read) => {
                let mut rest = &mut buffer[..read];
                while !rest.is_empty() {
                    let received = session.handle_input(now(), rest);
                    if let Some(packet) = received.packet {
                        let found = lookout.see(Place::Device(*number), packet);
                        if found.is_some_and(|found| found.what == What::SynAck) && addresses.is_some() {
                            replies.extend(reset(packet));
                        }
                    }
                    let consumed = received.consumed;
                    rest = &mut rest[consumed..];
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), ProbeError> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Transmit(bytes) => self.unsent.extend_from_slice(&bytes),
                Output::Event(Event::Client(ClientEvent::Connected(pushed))) => self.pushed = Some(pushed),
                Output::Event(Event::Client(ClientEvent::Info(_)) | Event::Server(_) | Event::Rekeyed(_)) => {}
                Output::Closed(reason) => return Err(ProbeError::Closed(reason)),
            }
        }
        let replies = std::mem::take(&mut self.replies);
        self.seal(&replies);
        self.flush().await
    }

    async fn send(&mut self, packets: &[Vec<u8>]) -> Result<(), ProbeError> {
        self.seal(packets);
        self.flush().await
    }

    /// Packets that cannot be sent are too large for the tunnel, which no probe's is, or the tunnel is at its end.
    fn seal(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            let mut slot = [&[0; HEADROOM], packet.as_slice(), &[0; TAILROOM]].concat();
            if let Ok(frame) = self.session.seal(now(), &mut slot, packet.len()) {
                self.unsent.extend_from_slice(&slot[frame]);
            }
        }
    }

    /// Sends all that waits.
    async fn flush(&mut self) -> Result<(), ProbeError> {
        let unsent = std::mem::take(&mut self.unsent);
        if unsent.is_empty() {
            return Ok(());
        }
        let sent = timeout_at(Instant::now() + SEND_WITHIN, self.stream.write_all(&unsent)).await;
        Ok(sent.map_err(|_| ProbeError::Slow)??)
    }

    /// Says goodbye.
    async fn leave(&mut self) -> Result<(), ProbeError> {
        self.session.exit(now());
        let deadline = Instant::now() + SEND_WITHIN;
        while self.session.state() != State::Closed {
            // The node may close its end first.
            if !matches!(timeout_at(deadline, self.wait()).await, Ok(Ok(()))) {
                break;
            }
        }
        Ok(())
    }
}

/// Takes back a connection that was accepted, so that none waits for its end.
fn reset(packet: &[u8]) -> Option<Vec<u8>> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match sliced.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let (node, own) =
        (SocketAddr::new(source, tcp.source_port()), SocketAddr::new(destination, tcp.destination_port()));
    Some(Datagram::reset(own, node, tcp.acknowledgment_number()).packet())
}

fn start() -> Start {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).expect("the system's random source has no way to fail once it is seeded");
    Start { seed, unix_seconds: u32::try_from(clock::now().unix_timestamp()).unwrap_or(u32::MAX) }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
