//! Many devices at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cloudlink_proto::ids::CommandId;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::device::Link;
use super::dial::Target;
use super::fleet::Fleet;
use super::openvpn::{self, Tunnel};
use super::{mqtt, nats};

/// Events that wait to be looked at. A swarm whose owner does not look holds its devices up, and loses nothing.
const EVENTS_MAX: usize = 1 << 18;
/// How long one device may take from dialling to being connected.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// What devices speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Link,
    Mqtt,
    Nats,
    OpenVpn,
}

/// How fast the devices of a swarm come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as they get through, with so many dialling at the same time.
    AtOnce(usize),
    /// One after each such pause, however many are still dialling.
    Every(Duration),
}

/// What becomes of the devices of a swarm.
#[derive(Clone, Debug)]
pub enum Event {
    /// Connected, and welcomed by the server.
    Live { index: usize, at: Instant },
    /// The server has stored the result of this command, and has told the device so.
    Stored { command: CommandId, at: Instant },
    /// The connection was not made, or it ended, and nobody had asked for that.
    Lost { index: usize, reason: String },
}

/// Where a device tells what becomes of it.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    events: mpsc::Sender<Event>,
}

impl Reporter {
    pub(super) async fn report(&self, event: Event) {
        // Without an owner there is nobody to tell.
        let _ = self.events.send(event).await;
    }
}

/// Devices that hold their connections until the swarm is stopped, or dropped.
#[derive(Debug)]
pub struct Swarm {
    devices: JoinSet<()>,
    stop: CancellationToken,
    events: mpsc::Receiver<Event>,
    /// What happened to some devices before all of them were live.
    early: VecDeque<Event>,
    count: usize,
}

impl Swarm {
    /// Connects these devices of the fleet, and returns when all of them are.
    pub async fn connect(
        target: &Target,
        fleet: &Arc<Fleet>,
        protocol: Protocol,
        range: impl ExactSizeIterator<Item = usize>,
        pace: Pace,
    ) -> Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let mut swarm = Self {
            devices: JoinSet::new(),
            stop: CancellationToken::new(),
            events,
            early: VecDeque::new(),
            count: range.len(),
        };
        let (at_once, every) = match pace {
            Pace::AtOnce(devices) => (devices, None),
            Pace::Every(pause) => (Semaphore::MAX_PERMITS, Some(pause)),
        };
        let dialling = Arc::new(Semaphore::new(at_once));
        let mut ticks = every.map(interval);
        for index in range {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let member = Member {
                target: target.clone(),
                fleet: fleet.clone(),
                protocol,
                index,
                reporter: Reporter { events: sender.clone() },
            };
            let permit = dialling.clone().acquire_owned().await?;
            swarm.devices.spawn(member.run(permit, swarm.stop.clone()));
        }
        swarm.until_live().await?;
        Ok(swarm)
    }

    /// The next thing that happens. A lost connection is an error: what was to be measured is not there.
    pub async fn event(&mut self) -> Result<Event> {
        match self.early.pop_front() {
            Some(event) => Ok(event),
            None => self.next_event().await,
        }
    }

    async fn next_event(&mut self) -> Result<Event> {
        match self.events.recv().await.context("all devices are gone")? {
            Event::Lost { index, reason } => bail!("device {index} lost its connection: {reason}"),
            event @ (Event::Live { .. } | Event::Stored { .. }) => Ok(event),
        }
    }

    /// Says goodbye and waits until all connections are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.devices.join_next().await.is_some() {}
    }

    async fn until_live(&mut self) -> Result<()> {
        let mut live = 0;
        while live < self.count {
            let event = self.next_event().await?;
            live += usize::from(matches!(event, Event::Live { .. }));
            self.early.push_back(event);
        }
        Ok(())
    }
}

struct Member {
    target: Target,
    fleet: Arc<Fleet>,
    protocol: Protocol,
    index: usize,
    reporter: Reporter,
}

impl Member {
    async fn run(self, dialling: OwnedSemaphorePermit, stop: CancellationToken) {
        if let Err(error) = self.serve(dialling, &stop).await {
            self.reporter.report(Event::Lost { index: self.index, reason: format!("{error:#}") }).await;
        }
    }

    async fn serve(&self, dialling: OwnedSemaphorePermit, stop: &CancellationToken) -> Result<()> {
        let connecting = tokio::time::timeout(CONNECT_WITHIN, self.connect());
        let connection = connecting.await.context("it took too long to connect")??;
        drop(dialling);
        match connection {
            Connection::Link(mut link) => link.run(stop).await,
            Connection::Mqtt(mut stream) => mqtt::hold(&mut stream, stop).await,
            Connection::Nats(mut stream) => nats::hold(&mut stream, stop).await,
            Connection::OpenVpn(mut tunnel) => tunnel.hold(stop).await,
        }
    }

    async fn connect(&self) -> Result<Connection> {
        let Self { target, protocol, index, .. } = self;
        let credential = self.fleet.devices.get(*index).context("the fleet has no such device")?;
        let mut stream = target.connect(*index).await?;
        let connection = match protocol {
            // Tells by itself that it is live.
            Protocol::Link => {
                let stream = Box::new(target.secure(stream, credential).await?);
                let link = Link::open(stream, credential.id, *index, self.reporter.clone()).await?;
                return Ok(Connection::Link(Box::new(link)));
            }
            Protocol::Mqtt => {
                let mut stream = Box::new(target.secure(stream, credential).await?);
                mqtt::open(&mut stream, &credential.id.to_string()).await?;
                Connection::Mqtt(stream)
            }
            Protocol::Nats => {
                nats::greeting(&mut stream).await?;
                let mut stream = Box::new(target.secure(stream, credential).await?);
                nats::open(&mut stream, &credential.id.to_string()).await?;
                Connection::Nats(stream)
            }
            Protocol::OpenVpn => {
                let config = openvpn::config(credential, &target.roots, &target.server_name)?;
                Connection::OpenVpn(Box::new(Tunnel::open(stream, config).await?))
            }
        };
        self.reporter.report(Event::Live { index: *index, at: Instant::now() }).await;
        Ok(connection)
    }
}

/// A connection that is up.
enum Connection {
    Link(Box<Link<Box<TlsStream<TcpStream>>>>),
    Mqtt(Box<TlsStream<TcpStream>>),
    Nats(Box<TlsStream<TcpStream>>),
    OpenVpn(Box<Tunnel>),
}
