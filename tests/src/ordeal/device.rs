//! One simulated device that stays: it dials again whenever its connection is gone, as the agent does, keeps its ledger across links,
//! and writes down what happens to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{FromServer, Party};
use rustls_pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ledger::{Ledger, Step};
use crate::chaos::seed::Seed;
use crate::history::{Book, Entry, What, now_us};
use crate::load::link::{Link, Next, Refused, sleep_until};
use crate::load::openvpn::{self, Tunnel};
use crate::load::{Credential, Target};

/// From dialling to the welcome.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// Back-off with full jitter, as the agent's.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// The longest that a device lets itself be told to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// A connection that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(10);
/// Devices that share one source address.
const DEVICES_PER_ADDRESS: usize = 50;

/// What all devices of a process have in common.
#[derive(Debug)]
pub struct Shared {
    /// Each device has one of them.
    pub addresses: Vec<SocketAddr>,
    pub server_name: ServerName<'static>,
    pub roots: Arc<rustls::RootCertStore>,
    pub book: Book,
}

/// How a device is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Link,
    Tunnel,
}

#[derive(Debug)]
pub struct Device {
    shared: Arc<Shared>,
    credential: Arc<Credential>,
    index: usize,
    transport: Transport,
    ledger: Ledger,
    links: u64,
    failures: u32,
    chance: Seed,
}

type Wire = Box<TlsStream<TcpStream>>;
/// A link that was welcomed, and its epoch.
type Dialled = anyhow::Result<(Box<Link<Wire>>, u64)>;
/// The next link, while it is being dialled.
type Dialling = Option<JoinHandle<Dialled>>;

/// A link that was welcomed.
struct Live {
    link: Box<Link<Wire>>,
    epoch: u64,
    number: u64,
}

enum Woken {
    Due,
    Dialled(Dialled),
    Stopped,
}

impl Device {
    #[must_use]
    pub fn new(
        shared: &Arc<Shared>,
        credential: Arc<Credential>,
        index: usize,
        transport: Transport,
        seed: u64,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            credential,
            index,
            transport,
            ledger: Ledger::default(),
            links: 0,
            failures: 0,
            chance: Seed::new(seed ^ (index as u64).wrapping_mul(0x2545_f491_4f6c_dd1d)),
        }
    }

    /// Begins after a while, and is there until `stop`.
    pub async fn run(mut self, begin_after: Duration, stop: CancellationToken) -> anyhow::Result<()> {
        let mut wait = begin_after;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(wait) => {}
            }
            let begun = Instant::now();
            let told = match self.transport {
                Transport::Link => self.link(&stop).await?,
                Transport::Tunnel => self.tunnel(&stop).await?,
            };
            self.failures = if begun.elapsed() > LASTED { 0 } else { self.failures + 1 };
            wait = self.backoff() + told.min(RETRY_AFTER_MAX);
        }
    }

    fn backoff(&mut self) -> Duration {
        let most = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8)).min(BACKOFF_MAX);
        Duration::from_millis(self.chance.within(0, u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    }

    fn note(&self, what: What) -> anyhow::Result<()> {
        self.shared.book.write(&Entry { at_us: now_us(), device: self.id(), what })
    }

    fn id(&self) -> Uuid {
        self.credential.id.as_uuid()
    }

    /// One link, and those that replace it while it lasts. Gives back how long the server wants it to stay away. An error is
    /// the end of the whole run: it cannot be written down what happened.
    async fn link(&mut self, stop: &CancellationToken) -> anyhow::Result<Duration> {
        let (shared, credential) = (Arc::clone(&self.shared), Arc::clone(&self.credential));
        let (link, epoch) = match dial(shared, credential, self.index).await {
            Ok(dialled) => dialled,
            Err(error) => return Ok(retry_after(&error)),
        };
        let mut live = self.welcomed(link, epoch)?;
        let mut dialling = None;
        let (told, why) = loop {
            if let Some(close) = live.link.close() {
                let told = if close.by == Party::Peer { close.retry_after } else { Duration::ZERO };
                break (told, format!("{:?} by {:?}", close.code, close.by));
            }
            match self.advance(&mut live, &mut dialling, stop).await? {
                Ok(None) => {}
                Ok(Some(next)) => {
                    // Welcomed before the old one is given up.
                    let old = std::mem::replace(&mut live, next);
                    self.note(What::Down { link: old.number, why: "replaced".to_owned() })?;
                }
                Err(error) => break (Duration::ZERO, format!("{error:#}")),
            }
            if stop.is_cancelled() {
                break (Duration::ZERO, "stopped".to_owned());
            }
        };
        if let Some(dialling) = dialling {
            dialling.abort();
        }
        self.note(What::Down { link: live.number, why })?;
        Ok(told)
    }

    /// Does what is due, then waits for one thing and deals with it. The inner result is about the link, and gives the one that
    /// replaces it.
    async fn advance(
        &mut self,
        live: &mut Live,
        dialling: &mut Dialling,
        stop: &CancellationToken,
    ) -> anyhow::Result<anyhow::Result<Option<Live>>> {
        while let Some(step) = self.ledger.step(Instant::now(), live.epoch) {
            self.tell(&mut live.link, step)?;
        }
        let due = self.ledger.due();
        let wake = async {
            tokio::select! {
                () = sleep_until(due) => Woken::Due,
                dialled = finished(dialling) => Woken::Dialled(dialled),
                () = stop.cancelled() => Woken::Stopped,
            }
        };
        match live.link.next(wake).await {
            Ok(Next::Said(said)) => self.obey(live, *said, dialling)?,
            Ok(Next::Woken(Woken::Dialled(dialled))) => {
                *dialling = None;
                return match dialled {
                    Ok((link, epoch)) => Ok(Ok(Some(self.welcomed(link, epoch)?))),
                    // The old link is still there.
                    Err(_) => Ok(Ok(None)),
                };
            }
            Ok(Next::Woken(Woken::Stopped)) => {
                live.link.goodbye(Code::ShuttingDown, "the run is over");
                // Sends it; what comes is of no interest any more.
                let _ = timeout(Duration::from_secs(1), live.link.next(std::future::ready(()))).await;
            }
            Ok(Next::Woken(Woken::Due) | Next::Nothing) => {}
            Err(error) => return Ok(Err(error)),
        }
        Ok(Ok(None))
    }

    fn welcomed(&mut self, mut link: Box<Link<Wire>>, epoch: u64) -> anyhow::Result<Live> {
        self.links += 1;
        self.note(What::Up { link: self.links, epoch: Some(epoch) })?;
        for status in self.ledger.outstanding() {
            // A link that takes nothing is about to end, and all of it is told again on the next one.
            let _ = link.send(status);
        }
        Ok(Live { link, epoch, number: self.links })
    }

    fn obey(&mut self, live: &mut Live, said: FromServer, dialling: &mut Dialling) -> anyhow::Result<()> {
        match said {
            FromServer::Command { id, grant_id, command } => {
                self.note(What::Delivered { command: id.as_uuid(), epoch: live.epoch })?;
                let step = self.ledger.take(Instant::now(), id, grant_id, &command);
                self.tell(&mut live.link, step)?;
            }
            FromServer::CommandCancel { id, .. } => {
                let step = self.ledger.cancel(id);
                self.tell(&mut live.link, step)?;
            }
            FromServer::CommandReceipt { id } => {
                self.note(What::Receipted { command: id.as_uuid(), epoch: live.epoch })?;
                self.ledger.receipt(id);
            }
            FromServer::Reconnect { after, .. } if dialling.is_none() => {
                let (shared, credential, index) = (Arc::clone(&self.shared), Arc::clone(&self.credential), self.index);
                *dialling = Some(tokio::spawn(async move {
                    sleep(after.min(RETRY_AFTER_MAX)).await;
                    dial(shared, credential, index).await
                }));
            }
            FromServer::Reconnect { .. }
            | FromServer::Welcome(_)
            | FromServer::CertificateIssued(_)
            | FromServer::CertificateRefused(_)
            | FromServer::StreamRequest { .. }
            | FromServer::Configuration(_)
            | FromServer::Goodbye => {}
        }
        Ok(())
    }

    /// Writes down what happened before anybody hears of it.
    fn tell(&self, link: &mut Link<Wire>, step: Step) -> anyhow::Result<()> {
        if let Some(what) = step.what {
            self.note(what)?;
        }
        // As above.
        let _ = link.send(step.status);
        Ok(())
    }

    async fn tunnel(&mut self, stop: &CancellationToken) -> anyhow::Result<Duration> {
        let opening = async {
            let config = openvpn::config(&self.credential, &self.shared.roots, &self.shared.server_name)?;
            Tunnel::open(connect(&self.shared, self.index).await?, config).await
        };
        let Ok(Ok(mut tunnel)) = timeout(CONNECT_WITHIN, opening).await else { return Ok(Duration::ZERO) };
        self.links += 1;
        self.note(What::Up { link: self.links, epoch: None })?;
        let why = tunnel.hold(stop).await.map_or_else(|error| format!("{error:#}"), |()| "stopped".to_owned());
        self.note(What::Down { link: self.links, why })?;
        Ok(Duration::ZERO)
    }
}

/// The next link, once it is there.
async fn finished(dialling: &mut Dialling) -> Dialled {
    match dialling {
        Some(dialling) => dialling.await.context("the dialling panicked")?,
        None => std::future::pending().await,
    }
}

/// How long the server wants it to stay away.
fn retry_after(error: &anyhow::Error) -> Duration {
    error.downcast_ref::<Refused>().and_then(|refused| refused.retry_after).unwrap_or_default()
}

/// From TCP to the welcome.
async fn dial(shared: Arc<Shared>, credential: Arc<Credential>, index: usize) -> Dialled {
    timeout(CONNECT_WITHIN, welcome(&shared, &credential, index)).await.context("it took too long to connect")?
}

async fn welcome(shared: &Shared, credential: &Credential, index: usize) -> Dialled {
    let stream = connect(shared, index).await?;
    let (address, server_name) = (stream.peer_addr()?, shared.server_name.clone());
    let target = Target { address, server_name, roots: Arc::clone(&shared.roots) };
    let stream = Box::new(target.secure(stream, credential).await?);
    let mut link = Box::new(Link::open(stream, hello(credential, index)).await?);
    loop {
        if let Some(close) = link.close() {
            bail!("refused with {:?}", close.code);
        }
        if let Next::Said(said) = link.next(std::future::pending::<()>()).await?
            && let FromServer::Welcome(admission) = *said
        {
            return Ok((link, admission.epoch));
        }
    }
}

/// From an address of its own, as from so many buildings.
async fn connect(shared: &Shared, index: usize) -> anyhow::Result<TcpStream> {
    let address = shared.addresses[index % shared.addresses.len().max(1)];
    let [_, high, middle, low] = u32::try_from(index / DEVICES_PER_ADDRESS).unwrap_or(u32::MAX).to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(Ipv4Addr::new(10, high, middle, low.saturating_add(1)).into(), 0))?;
    let stream = socket.connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn hello(credential: &Credential, index: usize) -> Hello {
    Hello {
        versions: Vec::new(),
        capabilities: ["metrics.collect", "service.restart"].map(str::to_owned).into(),
        boot_id: credential.id.to_string(),
        agent: concat!("cloudlink-ordeal/", env!("CARGO_PKG_VERSION")).to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        hostname: format!("gateway-{index}"),
        clock_unix_ms: 0,
        transport_failures: Vec::new(),
        boot_hint: 0,
        busy_lock: None,
        configuration: None,
    }
}
