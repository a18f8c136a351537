//! Which transport the link takes: what the ladder is told, and what follows from what it says.

use std::path::Path;
use std::time::Duration;

use cloudlink_proto::link::message::TransportFailure;
use cloudlink_proto::link::{Close, Party};
use tokio::time::Instant;

use super::{Agent, Dialling, Reason};
use crate::backoff::jitter;
use crate::clock::{unix_ms, wall_clock};
use crate::config::{Config, Transport};
use crate::dial::{self, DialError};
use crate::ladder::memory::Memory;
use crate::ladder::network::Network;
use crate::ladder::report::{self, Report};
use crate::ladder::{Failure, Ladder, Settings};
use crate::link::Link;
use crate::poll::PollError;

/// When a better transport is tried that had to wait for what goes over the present one.
const BUSY_RETRY: Duration = Duration::from_secs(60);

/// The ladder, and what it stands on.
#[derive(Debug)]
pub(super) struct Climb {
    transports: Vec<Transport>,
    ladder: Ladder,
    memory: Memory,
    network: Network,
    report: Report,
    /// What the attempt under way tells of it.
    telling: Vec<TransportFailure>,
}

impl Climb {
    pub(super) fn new(config: &Config) -> Self {
        let server = &config.server;
        let (memory, network) = (Memory::load(&config.state_dir), here());
        let transports = server.transports.clone();
        let first = memory.of(&network).and_then(|transport| position(&transports, transport));
        if let Some(first) = first.filter(|first| *first > 0) {
            tracing::info!(%network, transport = transports[first].name(), "this worked last on this network");
        }
        let settings = Settings { attempts_per_hour: server.attempts_per_hour, better_after: server.better_after };
        let ladder = Ladder::new(settings, transports.len(), first);
        Self { transports, ladder, memory, network, report: Report::default(), telling: Vec::new() }
    }

    /// The transport of an attempt that begins now.
    pub(super) fn next(&self, now: Instant) -> Transport {
        self.transport(self.ladder.next(now))
    }

    /// Takes in that an attempt begins.
    pub(super) fn begin(&mut self, now: Instant) -> Transport {
        let rung = self.ladder.begin(now);
        self.transport(rung)
    }

    /// Before this no attempt may begin.
    pub(super) fn not_before(&self, now: Instant) -> Instant {
        self.ladder.not_before(now)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ladder.poll_timeout()
    }

    pub(super) fn welcomed(&mut self, now: Instant) {
        self.ladder.welcomed(now, jitter());
        self.report.told(&std::mem::take(&mut self.telling));
    }

    /// Takes in what the attempt under way tells of those that failed.
    pub(super) fn tells(&mut self, failures: &[TransportFailure]) {
        self.telling = failures.to_vec();
    }

    /// A poll has told these.
    pub(super) fn told(&mut self, failures: &[TransportFailure]) {
        self.report.told(failures);
    }

    /// Whether polling is one of the transports. If not, the agent polls beside its attempts.
    pub(super) fn has_polling(&self) -> bool {
        self.transports.contains(&Transport::Polling)
    }

    /// Takes in that a poll was answered, where polling is one of the transports.
    pub(super) fn polled(&mut self, now: Instant) {
        if self.is_trying(Transport::Polling) {
            self.ladder.welcomed(now, jitter());
            tracing::info!("no link: the device polls");
        }
    }

    /// Takes in that a poll failed, and for how long they were answered before. How long to wait before the next attempt; `None` if one
    /// is under way.
    pub(super) fn poll_failed(&mut self, now: Instant, failure: Failure, proven_for: Duration) -> Option<Duration> {
        if self.is_trying(Transport::Polling) {
            self.ladder.failed(now, failure, jitter())
        } else {
            self.ladder.lost(failure, proven_for, jitter())
        }
    }

    /// Takes in how a poll failed.
    pub(super) fn report_poll(&mut self, error: &PollError) {
        self.report.add(Transport::Polling, &error.into(), unix_ms(wall_clock()));
    }

    fn is_trying(&self, transport: Transport) -> bool {
        self.ladder.trying().is_some_and(|rung| self.transport(rung) == transport)
    }

    /// What the server is to hear of attempts that failed.
    pub(super) fn failures(&self) -> &[TransportFailure] {
        self.report.failures()
    }

    /// Takes in how the attempt under way failed.
    pub(super) fn report(&mut self, error: &DialError) {
        self.report.add(self.trying(), &error.into(), unix_ms(wall_clock()));
    }

    /// The transport of the attempt that is under way.
    pub(super) fn trying(&self) -> Transport {
        self.transport(self.ladder.trying().unwrap_or(0))
    }

    pub(super) fn is_in_use(&self, transport: Transport) -> bool {
        position(&self.transports, transport).is_some_and(|rung| self.ladder.is_in_use(rung))
    }

    /// Whether there is nothing to choose from.
    pub(super) fn is_alone(&self) -> bool {
        self.transports.len() == 1
    }

    /// No better transport has its turn now.
    pub(super) fn put_better_off(&mut self, now: Instant) {
        self.ladder.put_better_off(now + BUSY_RETRY);
    }

    /// How long to wait after this attempt; `None` if there is no need for another.
    pub(super) fn failed(&mut self, now: Instant, failure: Failure) -> Option<Duration> {
        self.ladder.failed(now, failure, jitter())
    }

    /// The attempt came to nothing, and it was not the transport's doing: another one follows at once.
    pub(super) fn interrupted(&mut self) {
        self.ladder.interrupted();
    }

    /// How long to wait after this link; `None` if there is an attempt under way.
    pub(super) fn lost(&mut self, link: &Link, close: &Close) -> Option<Duration> {
        if close.by != Party::Peer {
            let transport = if link.tunnel.is_some() { Transport::OpenVpn } else { Transport::WebSocket };
            self.report.add(transport, &report::lost(close.code), unix_ms(wall_clock()));
        }
        self.ladder.lost(Failure::from(close), link.proven_for(), jitter())
    }

    /// On another network another transport may be the one that works.
    pub(super) fn look_around(&mut self) {
        let network = here();
        if network.is(&self.network) {
            return;
        }
        tracing::info!(%network, "this is another network");
        let first = self.memory.of(&network).and_then(|transport| position(&self.transports, transport));
        self.ladder.moved(first);
        self.network = network;
    }

    fn prove(&mut self, now: Instant, proven_for: Duration) {
        let Some(rung) = self.ladder.prove(now, proven_for).filter(|_| !self.is_alone()) else { return };
        // By now the gateway has answered, and its address is known.
        let network = here();
        if network.is(&self.network) {
            self.network = network;
            self.memory.remember(&self.network, self.transport(rung), wall_clock());
        }
    }

    fn transport(&self, rung: usize) -> Transport {
        self.transports.get(rung).copied().unwrap_or_default()
    }
}

fn position(transports: &[Transport], transport: Transport) -> Option<usize> {
    transports.iter().position(|known| *known == transport)
}

fn here() -> Network {
    Network::look(Path::new("/"))
}

impl Agent {
    /// Looks whether the link, or polling, has proven itself, and tries a better transport when it is time.
    pub(super) fn climb(&mut self, now: Instant) {
        if self.climb.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        let proven_for = self.link.as_ref().map_or(self.polling.proven_for(), Link::proven_for);
        self.climb.prove(now, proven_for);
        if !self.climb.ladder.is_better_due(now) {
            return;
        }
        // A tunnel that is left takes with it what goes through it.
        let is_tunnelled = self.link.as_ref().is_some_and(|link| link.tunnel.is_some());
        let is_in_need = self.desk.is_at_work() || is_tunnelled && !self.streams.is_empty();
        if is_in_need || !matches!(self.dialling, Dialling::Not) {
            return self.climb.put_better_off(now);
        }
        self.dialling = Dialling::At(now, Reason::Own);
    }

    /// Dials again when the ladder says so, if at all.
    pub(super) fn dial_later(&mut self, wait: Option<Duration>) {
        self.dialling = match wait {
            Some(wait) => {
                tracing::info!(wait_ms = wait.as_millis(), "dialling again later");
                Dialling::At(Instant::now() + wait, Reason::Own)
            }
            None => Dialling::Not,
        };
    }
}

impl From<&DialError> for Failure {
    fn from(error: &DialError) -> Self {
        Self { is_answer: error.is_answer(), is_refusal: error.is_refusal(), retry_after: error.retry_after() }
    }
}

impl From<&PollError> for Failure {
    fn from(error: &PollError) -> Self {
        Self { is_answer: error.is_answer(), is_refusal: error.is_refusal(), retry_after: error.retry_after() }
    }
}

impl From<&Close> for Failure {
    fn from(close: &Close) -> Self {
        Self {
            is_answer: close.by == Party::Peer && dial::is_answer(close.code),
            is_refusal: dial::is_refusal(close.code),
            retry_after: Some(close.retry_after).filter(|after| !after.is_zero()),
        }
    }
}
