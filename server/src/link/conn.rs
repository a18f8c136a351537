//! One live link: drives the session of `proto::link` over its WebSocket, with one timer.
//!
//! What the device reports is stored one after another, in the order in which it came, while the link goes on: a database
//! that is away holds up neither pings nor a revocation.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::{CommandId, TenantId};
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    Command, CommandCancel, CommandReceipt, CommandStatus, Reconnect, StreamRefused, StreamRequest,
};
use cloudlink_proto::link::{
    CLOSE_WITHIN, FromDevice, Party, REASON_BYTES_MAX, STRING_BYTES_MAX, SendError, Server, Session, ToDevice,
    Violation,
};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::admission::Identified;
use super::command::{self, cut_to, to_wire};
use super::registry::{Ending, Handle, Order, Seat, StreamOrder};
use super::renew::{self, Renewed};
use super::stream::Stream;
use super::{Shared, account};
use crate::batch::Unanswered;
use crate::bus::Hint;
use crate::model::busy_lock::{self, NewBusyLock};
use crate::model::command::State;
use crate::model::configuration::{self, ConfigurationTold};
use crate::store::busy_lock::busy_lock_tell;
use crate::store::configuration::configuration_tell;
use crate::store::dispatch::{ClaimedCommand, LinkKey};
use crate::store::link::{ClosedLink, Ended, link_prove_boot_in_txn};
use crate::store::transition::{Applied, Transition};
use crate::store::{StoreError, Visibility, single};

pub(super) type Socket = WebSocketStream<Stream>;

/// Reports of one device that wait to be stored. A device that has more is sent away, and says them again later.
const WORK_MAX: usize = 64;
/// How long a report of progress waits for the next one: most commands are over by then, and cost one statement instead of
/// three. Final reports do not wait.
const PROGRESS_WAIT: Duration = Duration::from_millis(3);
/// How long a device may take to read what it is sent.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take when the link is to end.
const LAST_WRITE_WITHIN: Duration = Duration::from_millis(500);
/// How long reports that came before the end of a link may take to be stored: without the `running` of a shutdown, the loss
/// of the link proves nothing.
const FINISH_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait before the database is asked again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// When a device comes back that was sent away with its reports.
const OVERLOAD_RETRY: Duration = Duration::from_secs(15);
/// So many changes of what a device says of itself, its busy lock and its configuration, are written down at once, others so far apart: each may
/// be an entry in the audit log.
const SAID_AT_WILL: u32 = 8;
const SAID_EVERY: Duration = Duration::from_secs(30);

/// A live link. Everything large is in a box: there are tens of thousands of these, and most are idle.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    socket: Box<Socket>,
    session: Box<Session<Server>>,
    handle: Arc<Handle>,
    tenant_id: TenantId,
    boot_id: Box<str>,
    /// When the certificate ends.
    expires_at: Instant,
    /// When as many of them as were written down would have been, had they been [`SAID_EVERY`] apart.
    said_spread_until: Instant,
    work: VecDeque<Box<Work>>,
}

/// However its task ends, even by a panic, the node does not take it for live.
impl Drop for Link {
    fn drop(&mut self) {
        self.shared.registry.leave(&self.handle);
        self.finished();
    }
}

/// Something to be done in the database, one after another.
#[derive(Debug)]
enum Work {
    /// What the boot id says about open commands.
    ProveBoot,
    Report {
        transition: Transition,
        not_before: Instant,
    },
    Renew(Bytes),
    /// The lock that the device holds.
    Busy {
        lock: Option<NewBusyLock>,
        heard_at: Instant,
        not_before: Instant,
    },
    /// How far it is with its configuration.
    Configuration {
        told: ConfigurationTold,
        not_before: Instant,
    },
}

impl Work {
    fn not_before(&self) -> Option<Instant> {
        match self {
            Self::Report { not_before, .. }
            | Self::Busy { not_before, .. }
            | Self::Configuration { not_before, .. } => Some(*not_before),
            Self::ProveBoot | Self::Renew(_) => None,
        }
    }
}

/// What came of it.
enum Done {
    BootProven,
    Reported { command_id: CommandId, target: State, applied: Result<Applied, Unanswered> },
    Renewed(Renewed),
    BusyTold,
    ConfigurationTold,
}

type Doing = Pin<Box<dyn Future<Output = Done> + Send>>;

/// Nothing more can be sent.
struct Lost;

impl Link {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: Box<Socket>,
        session: Box<Session<Server>>,
        handle: Arc<Handle>,
        peer: &Identified,
        boot_id: Box<str>,
    ) -> Self {
        let (tenant_id, expires_at) = (peer.tenant_id, peer.expires_at);
        let (said_spread_until, work) = (Instant::now(), VecDeque::new());
        Self { shared, socket, session, handle, tenant_id, boot_id, expires_at, said_spread_until, work }
    }

    /// Commands of the device are open: its boot id may prove some, and others may be due.
    pub(super) fn with_open_commands(mut self) -> Self {
        self.work.push_back(Box::new(Work::ProveBoot));
        self
    }

    /// The device said with its hello which lock it holds, and that, or an older one, is to be written down.
    pub(super) fn with_busy_lock(mut self, lock: Option<NewBusyLock>) -> Self {
        self.busy(lock);
        self
    }

    /// What it said with its hello of its configuration is to be written down, or it is to be given another one.
    pub(super) fn with_configuration(mut self, told: ConfigurationTold) -> Self {
        self.configured(told);
        self
    }
}

/// Serves a link until its end.
pub(crate) async fn run(mut link: Link, hard: CancellationToken) {
    link.shared.metrics.link_opened(link.handle.tunnel_id().is_some());
    tracing::debug!(device = %link.handle.key.device_id, epoch = link.handle.key.epoch, "a link is live");
    let doing = link.drive().await;
    Box::pin(link.finish(doing, hard)).await;
}

impl Link {
    /// Gives what is still being done when the link ends.
    async fn drive(&mut self) -> Option<Doing> {
        let mut doing: Option<Doing> = None;
        loop {
            if self.transmit().await.is_err() {
                self.session.transport_lost(None);
            }
            if self.session.state().is_ending() || self.handle.ending() == Some(Ending::Cut) {
                return doing;
            }
            if doing.is_none() {
                doing = self.take_work(Instant::now()).map(|work| self.begin(*work));
            }
            let deadline = self.deadline(doing.is_none());
            tokio::select! {
                biased;
                () = self.handle.woken() => self.follow_orders(),
                done = async { doing.as_mut().expect("guarded by the branch's condition").await }, if doing.is_some() => {
                    doing = None;
                    self.done(done);
                }
                message = receive(&mut self.socket, &mut self.session) => self.take(message),
                () = sleep_until(deadline) => self.time_passed(),
            }
        }
    }

    /// The first work that need not wait.
    fn take_work(&mut self, now: Instant) -> Option<Box<Work>> {
        let ready = self.work.iter().position(|work| work.not_before().is_none_or(|not_before| not_before <= now))?;
        let work = self.work.remove(ready);
        if self.work.is_empty() {
            self.work = VecDeque::new();
        }
        work
    }

    /// When something is to be done that nobody asks for.
    fn deadline(&self, may_begin: bool) -> Instant {
        let work = self.work.iter().filter(|_| may_begin).filter_map(|work| work.not_before());
        let session = self.session.poll_timeout().map(Instant::from);
        work.chain(session).fold(self.expires_at, Instant::min)
    }

    /// Sends what the session has to say. Costs nothing if that is nothing.
    async fn transmit(&mut self) -> Result<(), Lost> {
        while let Some(message) = self.session.poll_transmit() {
            self.shared.metrics.link_messages.with_label_values(&["out"]).inc();
            Box::pin(write(&mut self.socket, message, &self.handle)).await?;
        }
        Ok(())
    }

    fn take(&mut self, message: Option<FromDevice>) {
        let now = Instant::now();
        if now >= self.expires_at {
            // A device that never stops talking leaves the timer no turn.
            return self.end(Ending::CERTIFICATE_EXPIRED);
        }
        self.shared.metrics.link_messages.with_label_values(&["in"]).inc();
        self.handle.heard(self.session.last_proven().into());
        match message {
            Some(FromDevice::Metrics(report)) => {
                self.shared.take_report(self.handle.key.device_id, self.tenant_id, report, None, now);
            }
            Some(FromDevice::CommandStatus { id, status, .. }) => self.reported(id, status),
            Some(FromDevice::CertificateRequest(request)) => self.push(Work::Renew(request.csr_der)),
            Some(FromDevice::BusyLock(lock)) => self.busy(busy_lock::told(&lock)),
            Some(FromDevice::ConfigurationStatus(status)) => self.configured(configuration::told(&status)),
            Some(FromDevice::StreamRefused { id, refused }) => {
                let StreamRefused { code, message, .. } = refused;
                self.shared.expectations.refuse(self.handle.key.device_id, id, code, message);
            }
            Some(FromDevice::Hello(_) | FromDevice::Goodbye) | None => {}
        }
    }

    fn time_passed(&mut self) {
        let now = Instant::now();
        if now >= self.expires_at {
            self.end(Ending::CERTIFICATE_EXPIRED);
        } else {
            self.session.handle_timeout(now.into_std());
        }
    }

    fn follow_orders(&mut self) {
        for order in self.handle.take_orders() {
            match order {
                Order::Command(command) => self.send_command(*command),
                Order::Callback(id, reason) => {
                    self.send(CommandCancel { id: id.to_wire(), reason: reason.to_owned() });
                }
                Order::Stream(order) => self.ask_for_stream(*order),
                Order::Reconnect(after) => self.ask_to_reconnect(after),
                Order::Configuration(configuration) => self.send(*configuration),
            }
        }
        if let Some(ending) = self.handle.ending() {
            self.end(ending);
        }
    }

    fn send_command(&mut self, command: ClaimedCommand) {
        let now = Instant::now();
        let sent_after_ms = self.session.sent_after_ms(now.into_std());
        self.send(Command { sent_after_ms, ..to_wire(command, now) });
    }

    fn ask_for_stream(&mut self, order: StreamOrder) {
        let now = Instant::now();
        let request = order.into_request(now);
        self.send(StreamRequest {
            sent_after_ms: self.session.sent_after_ms(now.into_std()),
            requested_by: cut_to(request.requested_by, STRING_BYTES_MAX),
            reason: cut_to(request.reason, REASON_BYTES_MAX),
            ..request
        });
    }

    fn ask_to_reconnect(&mut self, after: Duration) {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.send(Reconnect { after_ms, reason: "this node sends its devices to others".to_owned() });
    }

    fn send(&mut self, message: impl Into<ToDevice>) {
        match self.session.send(Instant::now().into_std(), message) {
            // What was to be sent on a link that ends, is sent over the next one.
            Ok(()) | Err(SendError::State(_)) => {}
            Err(SendError::QueueFull) => self.end(Ending::SLOW),
            Err(error @ (SendError::Field(_) | SendError::TooLarge)) => {
                tracing::error!(device = %self.handle.key.device_id, %error, "a message for a device breaks a limit");
            }
        }
    }

    fn end(&mut self, ending: Ending) {
        match ending {
            Ending::Polite { code, message, retry_after } => {
                self.session.goodbye(Instant::now().into_std(), code, message, retry_after);
            }
            Ending::Lost => self.session.transport_lost(None),
            Ending::Cut => {}
        }
    }

    fn reported(&mut self, id: CommandId, status: CommandStatus) {
        let Some(transition) = command::reported(self.handle.key, &self.boot_id, id, status) else { return };
        let target = transition.target;
        let now = Instant::now();
        let not_before = if target.is_final() { now } else { now + PROGRESS_WAIT };
        // Only the newest state of a command is worth a statement.
        let waiting = self.work.iter_mut().find_map(|work| match work.as_mut() {
            Work::Report { transition, not_before } if transition.command_id == id => Some((transition, not_before)),
            Work::Report { .. } | Work::ProveBoot | Work::Renew(_) | Work::Busy { .. } | Work::Configuration { .. } => {
                None
            }
        });
        match waiting {
            Some((waiting, due)) if !waiting.target.is_final() => {
                *waiting = transition;
                *due = not_before.min(*due);
            }
            Some(_) => {}
            None => self.push(Work::Report { transition, not_before }),
        }
    }

    /// Only what it said last is worth a statement.
    fn busy(&mut self, lock: Option<NewBusyLock>) {
        self.work.retain(|work| !matches!(**work, Work::Busy { .. }));
        let (heard_at, not_before) = (Instant::now(), self.said_not_before());
        self.push(Work::Busy { lock, heard_at, not_before });
    }

    /// Only what it said last is worth a statement.
    fn configured(&mut self, told: ConfigurationTold) {
        self.work.retain(|work| !matches!(**work, Work::Configuration { .. }));
        let not_before = self.said_not_before();
        self.push(Work::Configuration { told, not_before });
    }

    fn said_not_before(&self) -> Instant {
        self.said_spread_until.checked_sub(SAID_EVERY * (SAID_AT_WILL - 1)).unwrap_or_else(Instant::now)
    }

    fn push(&mut self, work: Work) {
        if self.work.len() < WORK_MAX {
            self.work.push_back(Box::new(work));
        } else {
            let message = "the server cannot store what the device reports";
            self.session.goodbye(Instant::now().into_std(), Code::Overloaded, message, OVERLOAD_RETRY);
        }
    }

    fn begin(&mut self, work: Work) -> Doing {
        let (shared, handle) = (Arc::clone(&self.shared), Arc::clone(&self.handle));
        match work {
            Work::ProveBoot => {
                let boot_id = self.boot_id.clone();
                Box::pin(async move {
                    prove_boot(&shared, &handle, &boot_id).await;
                    Done::BootProven
                })
            }
            Work::Report { transition, .. } => Box::pin(async move {
                let (command_id, target) = (transition.command_id, transition.target);
                let applied = apply(&shared, &transition).await;
                Done::Reported { command_id, target, applied }
            }),
            Work::Busy { lock, heard_at, .. } => {
                self.said_spread_until = self.said_spread_until.max(Instant::now()) + SAID_EVERY;
                Box::pin(async move {
                    tell_busy(&shared, handle.key, lock, heard_at).await;
                    Done::BusyTold
                })
            }
            Work::Configuration { told, .. } => {
                self.said_spread_until = self.said_spread_until.max(Instant::now()) + SAID_EVERY;
                Box::pin(async move {
                    tell_configuration(&shared, handle.key, &told).await;
                    Done::ConfigurationTold
                })
            }
            Work::Renew(csr_der) => {
                let tenant_id = self.tenant_id;
                Box::pin(async move {
                    Done::Renewed(renew::renew(&shared, tenant_id, handle.key.device_id, &csr_der).await)
                })
            }
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::BootProven => self.shared.bus.send(Hint::CommandsDue(self.handle.key.device_id)),
            Done::Reported { command_id, target, applied: Ok(applied) } => self.applied(command_id, target, applied),
            // Whether it is to have another one, this node's own task finds out.
            Done::ConfigurationTold => self.shared.bus.deliver(Hint::ConfigurationDue(self.tenant_id)),
            // It was logged. Without a receipt the device says it again over its next link.
            Done::Reported { applied: Err(_), .. } | Done::BusyTold => {}
            Done::Renewed(Ok(issued)) => self.send(issued),
            Done::Renewed(Err(refused)) => self.send(refused),
        }
    }

    fn applied(&mut self, command_id: CommandId, target: State, applied: Applied) {
        match command::settle(&self.shared, self.handle.key, command_id, target, applied) {
            command::Answer::Nothing => {}
            command::Answer::Receipt => self.send(CommandReceipt { id: command_id.to_wire() }),
            command::Answer::Foreign => {
                let message = "a command status names a command of another device";
                self.session.goodbye(Instant::now().into_std(), Code::ProtocolError, message, Duration::ZERO);
            }
        }
    }

    /// Ends the link: out of the registry, goodbye to the device, what it said before into the database, then its row.
    async fn finish(mut self, doing: Option<Doing>, hard: CancellationToken) {
        self.shared.registry.leave(&self.handle);
        let reason = self.close_reason();
        let metrics = &self.shared.metrics;
        metrics.link_closed(self.handle.tunnel_id().is_some(), reason);
        metrics.link_messages_unknown.inc_by(self.session.unknown_messages().into());
        tracing::debug!(device = %self.handle.key.device_id, epoch = self.handle.key.epoch, reason, "a link has ended");

        let shared = Arc::clone(&self.shared);
        let is_loss = matches!(reason, "lost" | "device_closed" | "timed_out");
        let LinkKey { device_id, epoch } = self.handle.key;
        let link = ClosedLink { device_id, ended: Ended::Link(epoch), reason, is_loss };
        let stored = async {
            // Nothing of an older epoch would be taken.
            if reason != "replaced" {
                let _ = timeout(FINISH_WITHIN, self.finish_work(doing)).await;
                close_row(&shared, link).await;
            }
            self.finished();
            say_goodbye(&mut self.socket, &mut self.session).await;
        };
        tokio::select! {
            () = hard.cancelled() => {}
            () = stored => {}
        }
    }

    /// The tunnel that carried the link may write its own end.
    fn finished(&self) {
        if let Seat::Inside(seat) = &self.handle.seat {
            seat.finished.cancel();
        }
    }

    async fn finish_work(&mut self, doing: Option<Doing>) {
        if let Some(doing) = doing {
            self.done(doing.await);
        }
        while let Some(work) = self.work.pop_front() {
            // A certificate could not be handed over any more.
            if !matches!(*work, Work::Renew(_)) {
                let done = self.begin(*work).await;
                self.done(done);
            }
        }
    }

    fn close_reason(&self) -> &'static str {
        let Some(close) = self.session.close() else { return "cut" };
        match (close.by, close.code) {
            (Party::Transport, _) => "lost",
            (Party::Peer, _) => "device_closed",
            (Party::Us, Code::Unspecified) => "unspecified",
            (Party::Us, Code::ShuttingDown) => "shutting_down",
            (Party::Us, Code::Replaced) => "replaced",
            (Party::Us, Code::Revoked) => "revoked",
            (Party::Us, Code::ProtocolError) => "protocol_error",
            (Party::Us, Code::TimedOut) => "timed_out",
            (Party::Us, Code::Version) => "version",
            (Party::Us, Code::Overloaded) => "overloaded",
            (Party::Us, Code::CertificateExpired) => "certificate_expired",
        }
    }
}

/// Reads one message of the device. What the WebSocket layer finds wrong, the session is told. Can be dropped at any time.
pub(super) async fn receive(socket: &mut Socket, session: &mut Session<Server>) -> Option<FromDevice> {
    let message = socket.next().await;
    let now = Instant::now().into_std();
    match message {
        Some(Ok(Message::Binary(message))) => session.handle_message(now, &message).unwrap_or_else(|violation| {
            tracing::debug!(error = &violation as &dyn std::error::Error, "a device broke the link protocol");
            None
        }),
        Some(Ok(Message::Text(_))) => {
            session.violated(now, &Violation::Text);
            None
        }
        Some(Ok(Message::Close(frame))) => {
            session.transport_lost(Some(frame.map_or(1005, |frame| frame.code.into())));
            None
        }
        // The layer below answers pings by itself.
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
        Some(Err(error)) => {
            broken(session, now, &error);
            None
        }
        None => {
            session.transport_lost(None);
            None
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named here is a broken connection, in a newer tungstenite as well"
)]
fn broken(session: &mut Session<Server>, now: std::time::Instant, error: &tungstenite::Error) {
    use tungstenite::error::ProtocolError;
    match error {
        tungstenite::Error::Capacity(_) => session.violated(now, &Violation::TooLarge),
        tungstenite::Error::Utf8(_) => session.violated(now, &Violation::Text),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => session.transport_lost(None),
        tungstenite::Error::Protocol(_) => {
            session.goodbye(now, Code::ProtocolError, "a WebSocket frame is malformed", Duration::ZERO);
        }
        _ => session.transport_lost(None),
    }
}

/// Sends one message, unless the device does not read it, or the link is told to end meanwhile.
async fn write(socket: &mut Socket, message: Bytes, handle: &Handle) -> Result<(), Lost> {
    tokio::select! {
        biased;
        sent = socket.send(Message::Binary(message)) => sent.map_err(|_| Lost),
        () = sleep(WRITE_WITHIN) => Err(Lost),
        () = async {
            handle.ended().await;
            sleep(LAST_WRITE_WITHIN).await;
        } => Err(Lost),
    }
}

/// Sends what the session has left, closes the WebSocket, and gives the device a moment to read it: a socket that is closed
/// with unread data in it takes back what was sent.
pub(super) async fn say_goodbye(socket: &mut Socket, session: &mut Session<Server>) {
    let close = async {
        while let Some(message) = session.poll_transmit() {
            socket.send(Message::Binary(message)).await?;
        }
        let frame = session
            .close()
            .filter(|close| close.by == Party::Us)
            .map(|close| CloseFrame { code: close.close_code().into(), reason: close.close_text().to_owned().into() });
        socket.close(frame).await
    };
    if let Ok(Ok(())) = timeout(LAST_WRITE_WITHIN, close).await {
        let _ = timeout(CLOSE_WITHIN, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    }
}

/// Stores a report, however long the database is away.
async fn apply(shared: &Shared, transition: &Transition) -> Result<Applied, Unanswered> {
    loop {
        match shared.transitions.ask(transition.clone()).await {
            Err(Unanswered::Unavailable) => sleep(STORE_RETRY).await,
            answer => return answer,
        }
    }
}

async fn prove_boot(shared: &Shared, handle: &Handle, boot_id: &str) {
    loop {
        let proven = async {
            let mut transaction = shared.store.begin(Visibility::All).await?;
            let ended = link_prove_boot_in_txn(&mut transaction, handle.key.device_id, boot_id).await?;
            transaction.commit().await?;
            Ok::<_, StoreError>(ended)
        };
        match shared.store.within(proven).await {
            Ok(ended) => {
                for (command_id, applied) in ended {
                    account(shared, command_id, applied);
                    shared.bus.send(Hint::CommandChanged(command_id));
                }
                return;
            }
            Err(error) if error.is_retryable() => sleep(STORE_RETRY).await,
            Err(error) => {
                // The sweep of deadlines ends what this would have proven.
                tracing::error!(error = &error as &dyn std::error::Error, "cannot judge the commands of another boot");
                return;
            }
        }
    }
}

/// Writes down which lock the device holds, however long the database is away.
async fn tell_busy(shared: &Shared, reporter: LinkKey, mut lock: Option<NewBusyLock>, mut heard_at: Instant) {
    loop {
        let waited = std::mem::replace(&mut heard_at, Instant::now()).elapsed();
        lock = lock.and_then(|lock| lock.after(waited));
        let store = &shared.store;
        let told = async { single!(store, |connection| busy_lock_tell(connection, reporter, lock.as_ref())) };
        match store.within(told).await {
            Ok(()) => return,
            Err(error) if error.is_retryable() => sleep(STORE_RETRY).await,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot write down a busy lock");
                return;
            }
        }
    }
}

/// Writes down how far a device is with its configuration, however long the database is away.
async fn tell_configuration(shared: &Shared, reporter: LinkKey, told: &ConfigurationTold) {
    loop {
        let store = &shared.store;
        let written = async { single!(store, |connection| configuration_tell(connection, reporter, told)) };
        match store.within(written).await {
            Ok(()) => return,
            Err(error) if error.is_retryable() => sleep(STORE_RETRY).await,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot write down how far a configuration is"
                );
                return;
            }
        }
    }
}

/// Closes the link's row, however long the database is away: presence is never wrong for longer than need be.
pub(crate) async fn close_row(shared: &Shared, mut link: ClosedLink) {
    while shared.closes.ask(link).await == Err(Unanswered::Unavailable) {
        link.is_loss = false;
        sleep(STORE_RETRY).await;
    }
}
