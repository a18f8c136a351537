//! Devices that come at once and come again until they are let in, with the agent's pauses, and after each loss anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use cloudlink_proto::link::State;
use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::message::goodbye::Code;
use rustls::ClientConfig;
use rustls::client::Resumption;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::dial::Target;
use super::fleet::{Credential, Fleet};
use super::link::Link;

/// The first pause is anything up to this, each next one anything up to twice as much as the one before could be.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// One attempt: longer than a server lets somebody wait for its handshake.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(60);
/// Events that wait to be looked at.
const EVENTS_MAX: usize = 1 << 18;

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Live { index: usize, at: Instant },
    Lost { index: usize, at: Instant },
}

/// Devices of a storm. They hold their links until it is stopped, or dropped.
#[derive(Debug)]
pub struct Storm {
    devices: JoinSet<()>,
    stop: CancellationToken,
    turns: mpsc::Receiver<Turn>,
    attempts: Arc<AtomicU64>,
}

/// A device, with the tickets that it was given.
#[derive(Clone, Debug)]
pub struct Device {
    hello: Hello,
    tls: Arc<ClientConfig>,
    index: usize,
}

impl Device {
    /// `resumes`: whether it keeps tickets.
    pub fn new(target: &Target, credential: &Credential, index: usize, resumes: bool) -> Result<Self> {
        let mut tls = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(target.roots.clone())
            .with_client_auth_cert(vec![credential.certificate.clone()], credential.key())
            .context("the device's key does not suit its certificate")?;
        tls.resumption = if resumes { Resumption::in_memory_sessions(1) } else { Resumption::disabled() };
        let hello = Hello {
            boot_id: format!("storm-{}", credential.id),
            agent: "storm".to_owned(),
            hostname: format!("storm-{index}"),
            ..Hello::default()
        };
        Ok(Self { hello, tls: Arc::new(tls), index })
    }

    /// A connection to the server, with a ticket if it has one.
    pub async fn secure(&self, target: &Target) -> Result<TlsStream<TcpStream>> {
        let stream = target.connect(self.index).await?;
        let secured = TlsConnector::from(Arc::clone(&self.tls)).connect(target.server_name.clone(), stream);
        secured.await.context("the TLS handshake failed")
    }

    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Some of the fleet.
    pub fn of(target: &Target, fleet: &Fleet, range: std::ops::Range<usize>, resumes: bool) -> Result<Vec<Self>> {
        let devices = range.map(|index| {
            let credential = fleet.devices.get(index).context("the fleet has no such device")?;
            Self::new(target, credential, index, resumes)
        });
        devices.collect()
    }
}

impl Storm {
    /// All of them have lost their links just now. They dial the first target that answers.
    #[must_use]
    pub fn begin(targets: &[Target], devices: &[Device]) -> Self {
        let targets: Arc<[Target]> = targets.into();
        let (sender, turns) = mpsc::channel(EVENTS_MAX);
        let (stop, attempts) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for device in devices.iter().cloned() {
            let (targets, sender, stop) = (Arc::clone(&targets), sender.clone(), stop.clone());
            let attempts = Arc::clone(&attempts);
            tasks.spawn(async move {
                let life = Life { device, targets, turns: sender, attempts };
                life.run(&stop).await;
            });
        }
        Self { devices: tasks, stop, turns, attempts }
    }

    /// What happens next.
    pub async fn turn(&mut self) -> Option<Turn> {
        self.turns.recv().await
    }

    /// Waits until so many are live, and gives when each was, in order.
    pub async fn until_live(&mut self, count: usize, within: Duration) -> Result<Vec<Instant>> {
        let mut live = Vec::with_capacity(count);
        let all = async {
            while live.len() < count {
                match self.turn().await.context("all devices are gone")? {
                    Turn::Live { at, .. } => live.push(at),
                    Turn::Lost { index, .. } => anyhow::bail!("device {index} lost its link"),
                }
            }
            Ok(())
        };
        match timeout(within, all).await {
            Ok(done) => done?,
            Err(_) => anyhow::bail!("{} of {count} are live after {within:?}", live.len()),
        }
        live.sort_unstable();
        Ok(live)
    }

    /// Waits until so many have lost their links and are live again, and gives when each was, in order.
    pub async fn until_back(&mut self, count: usize, within: Duration) -> Result<Vec<Instant>> {
        let (mut lost, mut back) = (0, Vec::with_capacity(count));
        let all = async {
            while back.len() < count {
                match self.turn().await.context("all devices are gone")? {
                    Turn::Live { at, .. } => back.push(at),
                    Turn::Lost { .. } => lost += 1,
                }
            }
            anyhow::ensure!(lost == count, "{lost} of {count} links were lost");
            Ok(())
        };
        match timeout(within, all).await {
            Ok(done) => done?,
            Err(_) => anyhow::bail!("{} of {count} are back after {within:?}", back.len()),
        }
        back.sort_unstable();
        Ok(back)
    }

    /// How often they dialled, all together.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Says goodbye and waits until all connections are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.devices.join_next().await.is_some() {}
    }
}

struct Life {
    device: Device,
    targets: Arc<[Target]>,
    turns: mpsc::Sender<Turn>,
    attempts: Arc<AtomicU64>,
}

impl Life {
    async fn run(&self, stop: &CancellationToken) {
        let (mut failures, index) = (0, self.device.index);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause(failures)) => {}
            }
            failures += 1;
            self.attempts.fetch_add(1, Ordering::Relaxed);
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = timeout(ATTEMPT_WITHIN, self.dial()) => dialled,
            };
            let Ok(Ok(mut link)) = dialled else { continue };
            // Without an owner there is nobody to tell.
            let _ = self.turns.send(Turn::Live { index, at: Instant::now() }).await;
            while link.state() != State::Closed {
                let next = link.next(stop.cancelled()).await;
                match next {
                    Ok(super::link::Next::Woken(())) if link.close().is_none() => {
                        link.goodbye(Code::ShuttingDown, "the storm is over");
                    }
                    Ok(super::link::Next::Woken(())) => return,
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            if stop.is_cancelled() {
                return;
            }
            let _ = self.turns.send(Turn::Lost { index, at: Instant::now() }).await;
            failures = 0;
        }
    }

    async fn dial(&self) -> Result<Link<Box<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>>> {
        let (target, stream) = self.connect().await?;
        let connector = TlsConnector::from(Arc::clone(&self.device.tls));
        let stream = Box::new(connector.connect(target.server_name.clone(), stream).await?);
        let mut link = Link::open(stream, self.device.hello.clone()).await?;
        while link.state() == State::AwaitWelcome {
            link.next(std::future::pending::<()>()).await?;
        }
        anyhow::ensure!(link.close().is_none(), "the server sent the device away");
        Ok(link)
    }
}

impl Life {
    async fn connect(&self) -> Result<(&Target, tokio::net::TcpStream)> {
        let mut failure = None;
        for target in self.targets.iter() {
            match target.connect(self.device.index).await {
                Ok(stream) => return Ok((target, stream)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("there is nobody to dial")?)
    }
}

/// Anything up to a ceiling that doubles with each failure.
fn pause(failures: u32) -> Duration {
    let mut random = [0; 4];
    // Without randomness there is no TLS either.
    let share = aws_lc_rs::rand::fill(&mut random)
        .map_or(0.5, |()| f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX));
    PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(PAUSE_MAX).mul_f64(share)
}
