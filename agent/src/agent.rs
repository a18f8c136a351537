//! The agent: keeps one link up, polls when none comes about, renews the certificate, reports metrics, and lets the desk work.

mod climb;
mod polling;
mod renewal;
mod trial;
mod tunnel;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cloudlink_certs::TrustAnchor;
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{CommandStatus, Configuration, Hello, MetricsReport, StreamRefused};
use cloudlink_proto::link::{Close, FromServer, ToServer};
use futures_util::FutureExt;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::climb::Climb;
use self::polling::Polling;
use self::renewal::Renewal;
use self::trial::Trial;
use self::tunnel::{DIAL_WITHIN, Tunnel, may_be_dialled_at_once, may_be_the_certificate};
use crate::access::Access;
use crate::backoff::{about, jitter};
use crate::boot::{Boot, WATCHDOGS};
use crate::busy::Busy;
use crate::clock::{self, KnownTime};
use crate::config::{Config, Transport};
use crate::desired::Desired;
use crate::desk::Desk;
use crate::dial::{self, DialError, Route};
use crate::disk::StateDir;
use crate::executor::{Bus, Executor, Steps, is_system_stopping};
use crate::identity::{Identity, Slot};
use crate::ladder::Failure;
use crate::ledger::Ledger;
use crate::link::{Event, Link, until};
use crate::metrics::{self, Sampler};
use crate::problem::{RETRY_AFTER_MAX, shown};
use crate::stream::Streams;
use crate::tls::{self, Bounds};
use crate::{chain, local, machine};

/// Messages that are taken in before a command is begun. A server that sends without end does not keep it from beginning.
const HEARD_AT_ONCE_MAX: usize = 64;
/// How soon a renewed certificate is used that failed for another reason than being refused.
const NEXT_RETRY: Duration = Duration::from_secs(15 * 60);
/// A time to dial that the server gave is kept without a link if it is not later than this.
const SLOT_MAX: Duration = Duration::from_secs(300);
/// A renewed certificate is tried out within this.
const TRY_NEXT_WITHIN: Duration = Duration::from_secs(5);
/// The first report of a link comes within this, so that a fleet that comes back does not report as one.
const FIRST_REPORT_WITHIN: Duration = Duration::from_secs(15);
/// Whatever the server says, metrics are not reported more often.
const REPORT_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How long systemd may take to say whether the system goes down.
const ASKED_WITHIN: Duration = Duration::from_secs(2);
/// How long a stop waits for commands that are under way.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    _state_dir: StateDir,
    anchor: TrustAnchor,
    /// What links and streams are secured by.
    tls: tls::Kept,
    known_time: KnownTime,
    /// What this device wants of grants.
    access: Access,
    identity: Identity,
    boot_id: String,
    boot: Boot,
    bus: Bus,
    desk: Desk,
    /// What applications on the device see of the agent.
    local: Arc<local::Desk>,
    /// The busy lock has changed, and there was no link to say so over, or not for long.
    has_busy_to_tell: bool,
    /// What there is to say of the configuration has changed since a link was welcomed.
    has_configuration_to_tell: bool,
    /// How far its commands are.
    steps: Steps,
    streams: Streams,
    /// What the link goes through, if it does not go directly.
    tunnel: Option<Tunnel>,
    sampler: Arc<Mutex<Sampler>>,
    link: Option<Link>,
    dialling: Dialling,
    /// When the server wants to be dialled anew that said so while an attempt was under way.
    asked: Option<Instant>,
    climb: Climb,
    trial: Trial,
    renewal: Renewal,
    polling: Polling,
    report_due: Option<Instant>,
    measuring: Option<JoinHandle<Option<MetricsReport>>>,
}

type Opening = Pin<Box<dyn Future<Output = Result<Link, DialError>> + Send>>;

enum Dialling {
    Not,
    At(Instant, Reason),
    Now(Slot, Opening),
}

/// Why it is dialled at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The server asked for it: it holds also when the present link is lost before.
    Asked,
    /// The agent's own plan, which a lost link overturns.
    Own,
}

impl std::fmt::Debug for Dialling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Not => "Not",
            Self::At(..) => "At",
            Self::Now(..) => "Now",
        })
    }
}

impl Agent {
    /// Takes up what is in the state directory.
    ///
    /// # Errors
    /// When something of it cannot be read, or the boot id cannot.
    pub fn new(config: Config, state_dir: StateDir, bus: Bus) -> anyhow::Result<Self> {
        let anchor = load_anchor(&config)?;
        let boot_id = machine::boot_id(&config.boot_id_path)
            .with_context(|| format!("cannot read the boot id from {}", config.boot_id_path.display()))?;
        let identity = Identity::load(state_dir.path()).context("cannot read the device's certificate")?;
        let ledger = Ledger::open(state_dir.path()).context("cannot open the ledger")?;
        let sampler = Arc::new(Mutex::new(Sampler::new()));
        let tunnel = Tunnel::new(&config);
        let busy = Arc::new(Busy::load(state_dir.path(), config.busy.max));
        let (executor, steps) = Executor::new(&config, bus.clone(), Arc::clone(&sampler), Arc::clone(&busy));
        let restarts = executor.restarts();
        Ok(Self {
            access: Access::load(&config.access, state_dir.path(), &identity),
            known_time: KnownTime::load(state_dir.path(), tls::authority_made(&anchor)),
            desk: Desk::new(ledger, executor, boot_id.clone(), Arc::clone(&busy)),
            local: Arc::new(local::Desk::new(busy, Desired::load(state_dir.path()), restarts)),
            has_busy_to_tell: false,
            has_configuration_to_tell: false,
            steps,
            streams: Streams::new(&config),
            trial: if tunnel.is_some() { Trial::interrupting() } else { Trial::default() },
            tunnel,
            polling: Polling::new(&config, Instant::now()),
            climb: Climb::new(&config),
            config,
            anchor,
            tls: tls::Kept::default(),
            identity,
            boot: Boot::begin(state_dir.path(), &boot_id, Path::new(WATCHDOGS)),
            bus,
            boot_id,
            sampler,
            link: None,
            dialling: Dialling::Not,
            asked: None,
            renewal: Renewal::default(),
            report_due: None,
            measuring: None,
            _state_dir: state_dir,
        })
    }

    /// Runs until it is told to stop. Nothing that the server or the network does ends it.
    pub async fn run(mut self, stop: CancellationToken) {
        self.dialling = Dialling::At(Instant::now(), Reason::Own);
        let _serving = self.serve_applications();
        let (local, executor) = (Arc::clone(&self.local), self.desk.executor());
        let mut keeping_whole = Box::pin(executor.keep_whole());
        loop {
            self.begin_commands().await;
            let wake = self.poll_timeout();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                (id, report) = self.desk.done() => {
                    let status = self.desk.handle_done(id, report);
                    self.tell(status);
                }
                () = local.busy.changed() => self.handle_busy(),
                () = local.desired.changed() => self.tell_configuration(),
                Some((id, percent)) = self.steps.recv() => self.tell_step(id, percent),
                () = executor.contact_wanted() => self.seek_contact(),
                () = &mut keeping_whole => {}
                refused = self.streams.done() => self.tell_refusal(refused),
                event = next_event(&mut self.link) => self.handle_event(event),
                (slot, opened) = opened(&mut self.dialling) => self.handle_opened(slot, opened),
                polled = self.polling.answered() => self.handle_polled(polled),
                report = measured(&mut self.measuring) => self.handle_measured(report),
                () = until(wake) => self.handle_timeout(Instant::now()),
            }
        }
        self.stop().await;
    }

    /// The link is worth more than the socket: without one, the agent goes on.
    fn serve_applications(&self) -> Option<local::Serving> {
        let served = local::serve(&self.config.local, Arc::clone(&self.local));
        let socket = self.config.local.socket.display();
        served.inspect_err(|error| tracing::error!(%socket, error = chain(error), "applications are not served")).ok()
    }

    fn handle_busy(&mut self) {
        let refused = self.desk.handle_busy();
        self.tell_all(refused);
        // The hello of an attempt under way was made before; what is told over a link that it replaces may come too late.
        self.has_busy_to_tell = self.link.is_none() || matches!(self.dialling, Dialling::Now(..));
        self.tell(self.local.busy.told());
    }

    fn take_configuration(&self, configuration: &Configuration) {
        let version = configuration.version;
        match self.local.desired.take(configuration) {
            Ok(true) => tracing::info!(version, "the device has another configuration"),
            Ok(false) => tracing::debug!(version, "the device has this configuration, or a newer one"),
            Err(error) => tracing::error!(version, error = chain(&error), "a configuration cannot be taken"),
        }
    }

    fn tell_configuration(&mut self) {
        // Also over the next link: its hello may have been made before.
        self.has_configuration_to_tell = true;
        if let Some(status) = self.local.desired.told() {
            self.tell(status);
        }
    }

    /// Lets commands that are under way end, and says goodbye. A reboot is not waited for.
    async fn stop(mut self) {
        tracing::info!("stopping");
        // First of all: a system that goes down does not wait for long.
        self.boot.end(is_system_stopping(&self.bus, ASKED_WITHIN).await);
        self.desk.stop();
        self.streams.stop().await;
        let deadline = Instant::now() + STOP_WITHIN;
        while self.desk.is_at_work() {
            tokio::select! {
                (id, report) = self.desk.done() => {
                    let status = self.desk.handle_done(id, report);
                    self.tell(status);
                }
                event = next_event(&mut self.link) => self.handle_event(event),
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!("a command is still under way: it will be told as interrupted");
                    break;
                }
            }
        }
        if let Some(link) = self.link.take() {
            link.close(Code::ShuttingDown, "the agent stops").await;
        }
        if let Some(tunnel) = self.tunnel.take() {
            tunnel.stop().await;
        }
    }

    async fn begin_commands(&mut self) {
        self.hear_what_is_there();
        while let Some((begun, status)) = self.desk.begin_next(Instant::now()) {
            self.tell(status);
            let Some(begun) = begun else { continue };
            if let Some(link) = self.link.as_mut().filter(|_| begun.is_power()) {
                // The loss of the link proves a shutdown only if the server has heard that it was begun.
                link.flush().await;
            }
            let route = begun.needs_route().then(|| self.stream_route());
            self.desk.execute(begun, route);
        }
    }

    /// Takes what has come already before anything is begun: behind a command that lay in a buffer, it may have been called
    /// back.
    fn hear_what_is_there(&mut self) {
        if !self.desk.has_waiting() {
            return;
        }
        for _ in 0..HEARD_AT_ONCE_MAX {
            let Some(event) = next_event(&mut self.link).now_or_never() else { return };
            self.handle_event(event);
        }
    }

    fn tell(&mut self, message: impl Into<ToServer>) {
        // Without a link there is no harm: the desk tells all that is outstanding on the next one, or with the next poll.
        let Some(link) = &mut self.link else { return self.polling.tell() };
        if let Err(error) = link.send(message) {
            tracing::warn!(%error, "a message was not sent");
        }
    }

    fn tell_step(&mut self, id: CommandId, percent: u32) {
        // It is worth no poll of its own.
        if self.link.is_some()
            && let Some(status) = self.desk.handle_step(id, percent)
        {
            self.tell(status);
        }
    }

    fn tell_refusal(&mut self, refused: Option<StreamRefused>) {
        if let Some(refused) = refused {
            self.tell(refused);
        }
    }

    fn tell_all(&mut self, statuses: Vec<CommandStatus>) {
        for status in statuses {
            self.tell(status);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let dial_at = if let Dialling::At(at, _) = self.dialling { Some(at) } else { None };
        let renew_at = self.renewal.poll_timeout().filter(|_| self.link.is_some());
        let report_at = self.report_due.filter(|_| self.measuring.is_none());
        let look_at = self.tunnel_look_at();
        let climb_at = self.climb.poll_timeout();
        let poll_at = self.polling.poll_timeout();
        [dial_at, renew_at, report_at, look_at, climb_at, poll_at, self.desk.poll_timeout()].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let late = self.desk.handle_timeout(now);
        self.tell_all(late);
        self.look_at_tunnel(now);
        self.climb(now);
        if let Dialling::At(at, reason) = self.dialling
            && at <= now
        {
            self.dial(now, reason);
        }
        if self.link.is_some() && self.renewal.poll_timeout().is_some_and(|at| at <= now) {
            self.renew(now);
        }
        if self.measuring.is_none() && self.report_due.is_some_and(|at| at <= now) {
            self.measure();
        }
        self.poll(now);
    }

    fn handle_event(&mut self, event: Event) {
        let message = match event {
            Event::Message(message) => message,
            Event::Heard => return self.note_contact(),
            Event::Closed(close) => return self.handle_closed(&close),
        };
        let now = Instant::now();
        match message {
            FromServer::Command { id, grant_id, command } => {
                let leave = self.access.judge_command(&mut self.known_time, now, grant_id, &command);
                let server_unix_ms = self.server_unix_ms();
                let status = self.desk.handle_command(now, id, &command, leave, server_unix_ms);
                self.tell(status);
            }
            FromServer::CommandCancel { id, reason } => {
                tracing::info!(command.id = %id, reason = ?shown(&reason), "a command was called back");
                let server_unix_ms = self.server_unix_ms();
                let status = self.desk.handle_cancel(id, server_unix_ms);
                self.tell(status);
            }
            FromServer::CommandReceipt { id } => {
                let server_unix_ms = self.server_unix_ms();
                self.desk.handle_receipt(id, server_unix_ms);
            }
            FromServer::CertificateIssued(issued) => self.handle_issued(now, &issued),
            FromServer::CertificateRefused(refused) => {
                tracing::warn!(code = ?shown(&refused.code), reason = ?shown(&refused.message), "no new certificate");
                self.renewal.refused(now, Duration::from_millis(refused.retry_after_ms).min(RETRY_AFTER_MAX));
            }
            FromServer::Reconnect { after, reason } => {
                tracing::info!(after_ms = after.as_millis(), reason = ?shown(&reason), "asked to dial anew");
                let at = now + after.min(RETRY_AFTER_MAX);
                match self.dialling {
                    Dialling::Now(..) => self.asked = Some(at),
                    Dialling::Not | Dialling::At(..) => self.dialling = Dialling::At(at, Reason::Asked),
                }
            }
            FromServer::StreamRequest { id, grant_id, request, .. } => {
                let leave = self.access.judge_stream(&mut self.known_time, now, grant_id, &request);
                let route = self.stream_route();
                let refused = self.streams.handle_request(now, id, *request, leave, route);
                self.tell_refusal(refused);
            }
            FromServer::Configuration(configuration) => self.take_configuration(&configuration),
            // The session takes one welcome only, and keeps goodbyes to itself.
            FromServer::Welcome(_) | FromServer::Goodbye => {}
        }
    }

    /// Asks the server for a sign of life, by whatever there is.
    fn seek_contact(&mut self) {
        match &mut self.link {
            Some(link) => link.ask(),
            None => self.polling.hasten(),
        }
    }

    fn note_contact(&self) {
        if let Some(link) = &self.link {
            self.desk.executor().answered(link.answered());
        }
    }

    /// What ids are kept by. Never ahead of the time: a device whose clock jumps must not forget.
    fn server_unix_ms(&self) -> u64 {
        clock::unix_ms(self.known_time.earliest())
    }

    fn handle_closed(&mut self, close: &Close) {
        let Some((link, wait)) = self.leave_link(close) else { return };
        let proven_for_s = link.proven_for().as_secs();
        tracing::info!(by = ?close.by, code = ?close.code, reason = ?shown(&close.message), proven_for_s, "link closed");
        let refused = dial::is_refusal(close.code);
        let planned = match self.dialling {
            Dialling::Not => false,
            Dialling::At(at, Reason::Asked) => at <= Instant::now() + SLOT_MAX,
            Dialling::At(_, Reason::Own) => false,
            Dialling::Now(..) => true,
        };
        // An attempt that is under way is left alone: it may be for a transport that still works.
        if (refused || !planned) && wait.is_some() {
            self.dial_later(wait);
        }
    }

    /// Goes on without the present link. How long to wait until the next attempt; `None` if one is under way.
    fn leave_link(&mut self, close: &Close) -> Option<(Link, Option<Duration>)> {
        let link = self.link.take()?;
        self.renewal.link_lost();
        self.polling.unlinked();
        self.desk.executor().lost();
        if self.desk.executor().wants_contact() {
            self.polling.hasten();
        }
        self.local.linked(None);
        self.report_due = None;
        let wait = self.climb.lost(&link, close);
        self.rest_tunnel();
        Some((link, wait))
    }

    fn dial(&mut self, now: Instant, reason: Reason) {
        let not_before = self.climb.not_before(now);
        if not_before > now {
            tracing::debug!(wait_ms = (not_before - now).as_millis(), "there were attempts enough for now");
            self.dialling = Dialling::At(not_before, reason);
            return;
        }
        if self.link.is_none() {
            self.climb.look_around();
        } else if reason == Reason::Asked {
            // What is asked for is a link in place of this one, and a better transport may not make it.
            self.climb.put_better_off(now);
        }
        let has = |slot| self.identity.slot(slot).is_some();
        let has_next = has(Slot::Next) && !self.is_beside();
        let slot = self.trial.slot(has(Slot::Current), has_next);
        match self.climb.next(now) {
            Transport::WebSocket => self.dial_directly(now, slot),
            Transport::OpenVpn => self.dial_inside(now, slot),
            Transport::Polling => self.dial_by_poll(now),
        }
    }

    fn dial_directly(&mut self, now: Instant, slot: Slot) {
        self.climb.begin(now);
        let hello = self.hello();
        self.climb.tells(&hello.transport_failures);
        tracing::debug!(slot = ?slot, host = self.config.server.host, "dialling");
        let route = self.direct_route(slot);
        let opening = async move { Link::open(route?, hello).await };
        self.dialling = Dialling::Now(slot, Box::pin(opening));
    }

    fn direct_route(&mut self, slot: Slot) -> Result<Route, DialError> {
        let credential = self.identity.slot(slot).ok_or(DialError::NotEnrolled)?;
        let bounds = Bounds { earliest: self.known_time.earliest(), own_end: self.identity.ends_at() };
        let tls = self.tls.client(&self.anchor, credential, bounds).map_err(DialError::Setup)?;
        Ok(Route::Direct { server: Box::new(self.config.server.clone()), tls })
    }

    /// Streams go the way of the link that they were asked for on.
    fn stream_route(&mut self) -> Result<Route, DialError> {
        match self.link.as_ref().and_then(|link| link.tunnel.clone()) {
            Some(tunnel) => Ok(Route::Inside(tunnel)),
            // The certificate that a link was welcomed with is the current one by then.
            None => self.direct_route(Slot::Current),
        }
    }

    fn hello(&self) -> Hello {
        machine::hello(
            &self.boot_id,
            self.boot.hint(),
            &self.streams.capabilities(),
            self.climb.failures(),
            &self.local.busy,
            self.local.desired.told(),
        )
    }

    /// Whether the certificate that proves the device is not this agent's.
    fn is_beside(&self) -> bool {
        self.tunnel.as_ref().is_some_and(Tunnel::is_beside)
    }

    fn handle_opened(&mut self, slot: Slot, opened: Result<Link, DialError>) {
        self.dialling = Dialling::Not;
        let asked = self.asked.take();
        match opened {
            // A newer link is what was asked for.
            Ok(link) => self.handle_welcome(slot, link),
            Err(error) => {
                self.handle_dial_error(slot, &error);
                self.keep_asked(asked.filter(|_| !error.is_refusal()));
            }
        }
        self.rest_tunnel();
    }

    /// Dials when the server asked for it, and not before the agent's own plan.
    fn keep_asked(&mut self, asked: Option<Instant>) {
        let Some(asked) = asked.filter(|asked| self.link.is_some() || *asked <= Instant::now() + SLOT_MAX) else {
            return;
        };
        let planned = if let Dialling::At(at, _) = self.dialling { at } else { asked };
        self.dialling = Dialling::At(asked.max(planned), Reason::Asked);
    }

    fn handle_dial_error(&mut self, slot: Slot, error: &DialError) {
        let now = Instant::now();
        let transport = self.climb.trying().name();
        tracing::warn!(transport, error = chain(error), refused = error.is_refusal(), slot = ?slot, "no link");
        self.climb.report(error);
        if self.climb.trying() == Transport::OpenVpn {
            self.doubt_password();
        }
        if may_be_dialled_at_once(error) && self.climb.is_alone() {
            self.climb.interrupted();
            self.dialling = Dialling::At(now + DIAL_WITHIN.mul_f64(jitter()), Reason::Own);
            return;
        }
        let is_against_it = may_be_the_certificate(error);
        // A server that made a tunnel with a certificate has taken it, and the other one no longer: what fails then is something
        // else.
        let is_taken = self.climb.trying() == Transport::OpenVpn && !is_against_it;
        if !is_taken && self.trial.failed(slot, is_against_it, self.identity.slot(Slot::Current).is_some()) {
            // The present certificate is tried at once: it is not what was refused.
            self.climb.interrupted();
            self.dialling = Dialling::At(now + Duration::from_secs(1).mul_f64(jitter()), Reason::Own);
            return;
        }
        let wait = self.climb.failed(now, error.into());
        self.dial_later(wait);
    }

    fn handle_welcome(&mut self, slot: Slot, link: Link) {
        let now = Instant::now();
        let admission = link.admission;
        let own = self.identity.slot(slot).map(|credential| &credential.certificate);
        if own.is_some_and(|own| own.identity.device != admission.device_id.as_uuid()) {
            // Its commands would be another device's.
            tracing::error!(device.id = %admission.device_id, "the server takes this device for another one");
            tokio::spawn(async move { link.close(Code::ProtocolError, "that is another device").await });
            let wait = self.climb.failed(now, Failure { is_answer: true, is_refusal: true, retry_after: None });
            return self.dial_later(wait);
        }
        self.climb.welcomed(now);
        // Of a server that proved itself to the client, this much is known: the device's certificate has not ended for it.
        let own_ends = own.filter(|_| !self.is_beside()).map(|own| own.not_after);
        self.known_time.learn(admission.clock_unix_ms, link.server_certificate_ends.or(own_ends));
        tracing::info!(
            device.id = %admission.device_id, tenant.id = %admission.tenant_id, link.epoch = admission.epoch, slot = ?slot, "link open",
        );
        if let Some(old) = self.link.replace(link) {
            tokio::spawn(async move { old.close(Code::Replaced, "a newer link is up").await });
        }
        self.local.linked(Some(self.climb.trying().name()));
        if std::mem::take(&mut self.has_busy_to_tell) {
            // It changed before the hello was made, or after.
            self.tell(self.local.busy.told());
        }
        if std::mem::take(&mut self.has_configuration_to_tell)
            && let Some(status) = self.local.desired.told()
        {
            self.tell(status);
        }
        self.polling.linked();
        self.note_contact();
        if self.desk.executor().wants_contact() {
            // It was wanted after the link had begun.
            self.seek_contact();
        }
        self.settle_slots(slot, now);
        if self.identity.slot(Slot::Next).is_some() && !self.is_beside() {
            self.dialling = Dialling::At(now + about(NEXT_RETRY, jitter()), Reason::Own);
        }
        let outstanding = self.desk.outstanding();
        self.tell_all(outstanding);
        self.report_due = (!admission.metrics_interval.is_zero())
            .then(|| now + (admission.metrics_interval / 4).min(FIRST_REPORT_WITHIN).mul_f64(jitter()));
        self.schedule_renewal(now);
    }

    /// The server has taken the certificate of this slot, for a link or a poll.
    fn settle_slots(&mut self, slot: Slot, now: Instant) {
        if self.is_beside() {
            return;
        }
        let give_up = self.trial.welcomed(slot, now);
        let settled = match slot {
            Slot::Next => self.identity.promote().map(|()| self.rename_slot_of_client()),
            Slot::Current if give_up => self.identity.discard_next(),
            Slot::Current => Ok(()),
        };
        if let Err(error) = settled {
            tracing::warn!(error = chain(&error), "the certificates cannot be put in order");
        }
    }

    fn measure(&mut self) {
        let sampler = Arc::clone(&self.sampler);
        self.measuring = Some(tokio::spawn(async move { metrics::sample(&sampler).await }));
    }

    fn handle_measured(&mut self, report: Option<MetricsReport>) {
        self.measuring = None;
        let Some(link) = &self.link else { return };
        let interval = link.admission.metrics_interval.max(REPORT_INTERVAL_MIN);
        self.report_due = Some(Instant::now() + about(interval, jitter()));
        if let Some(report) = report {
            self.tell(MetricsReport { clock_unix_ms: Some(clock::unix_ms(clock::wall_clock())), ..report });
        }
    }
}

/// Reads the roots that are trusted.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn load_anchor(config: &Config) -> anyhow::Result<TrustAnchor> {
    let path = &config.server.ca_file;
    let pem = std::fs::read(path).with_context(|| format!("cannot read ca_file {}", path.display()))?;
    TrustAnchor::from_pem(&pem).with_context(|| format!("cannot use ca_file {}", path.display()))
}

async fn next_event(link: &mut Option<Link>) -> Event {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn opened(dialling: &mut Dialling) -> (Slot, Result<Link, DialError>) {
    match dialling {
        Dialling::Now(slot, opening) => (*slot, opening.await),
        Dialling::Not | Dialling::At(..) => std::future::pending().await,
    }
}

/// `None` when the measurement broke off.
async fn measured(measuring: &mut Option<JoinHandle<Option<MetricsReport>>>) -> Option<MetricsReport> {
    match measuring {
        Some(task) => task.await.ok().flatten(),
        None => std::future::pending().await,
    }
}
