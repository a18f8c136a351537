//! The session: what both sides have in common.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use super::close::{Close, Party};
use super::limit::{Check, FieldError, MISSED_PINGS_MAX, PING_INTERVAL_MS_MAX, PING_INTERVAL_MS_MIN};
use super::message::goodbye::Code;
use super::message::{Goodbye, Ping, Pong};
use super::state::{Event, State};
use super::violation::Violation;
use super::{CLOSE_WITHIN, MESSAGE_BYTES_MAX, OUTGOING_MAX};

/// One end of a link: [`Server`](super::Server) or [`Device`](super::Device). The module's documentation shows how to drive
/// it.
///
/// It holds no buffer while there is nothing to transmit, and asks for one timer at most.
pub struct Session<S> {
    state: State,
    /// What the peer may do wrong without being cut off: kinds that this version does not know.
    unknown_messages: u32,
    pub(super) version: u32,
    ping_interval_ms: u32,
    max_missed_pings: u32,
    /// Of `AwaitHello`, `AwaitWelcome` and `Closing`.
    deadline: Instant,
    last_heard: Instant,
    last_sent: Instant,
    /// From where `Command.sent_after_ms` counts: the server's `Welcome`; on the device its `Hello`, which was before.
    pub(super) zero: Instant,
    /// At most `OUTGOING_MAX`; without an allocation while empty.
    outgoing: VecDeque<Bytes>,
    /// One slot each, so that a peer cannot fill memory with pings.
    pong_due: Option<u64>,
    ping_due: bool,
    goodbye_due: bool,
    pings_sent: u32,
    /// Of these, the last that was answered.
    pings_answered: u32,
    close: Option<Box<Close>>,
    side: PhantomData<S>,
}

/// How a server keeps time on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A side that has sent nothing for this long sends a `Ping`. Default 25 s; 0.1 s to 600 s.
    pub ping_interval: Duration,
    /// A side that got nothing for this many intervals closes the link. Default 3; 1 to 100.
    pub max_missed_pings: u32,
    /// How long a device may take to its `Hello`. Default 10 s.
    pub hello_within: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { ping_interval: Duration::from_secs(25), max_missed_pings: 3, hello_within: Duration::from_secs(10) }
    }
}

/// A message was not taken; nothing was sent and the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is not live (or, for a welcome, none is awaited).
    #[error("the link is in state {0:?}")]
    State(State),
    /// [`OUTGOING_MAX`] messages wait to be transmitted: the caller has not drained the session.
    #[error("{OUTGOING_MAX} messages wait to be transmitted")]
    QueueFull,
    /// The message breaks a limit.
    #[error("the message breaks a limit: {0}")]
    Field(FieldError),
    /// The message is over [`MESSAGE_BYTES_MAX`].
    #[error("the message is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
}

/// What the two ends do differently. [`Server`](super::Server) and [`Device`](super::Device) are all there are.
pub trait Side: Sized {
    /// A message as it comes in.
    type WireIn: Message + Default;
    /// A message as it goes out.
    type WireOut: Message + Default;
    /// A message for the caller.
    type Incoming;
    /// A message of the caller.
    type Outgoing: Into<Self::WireOut>;

    /// Wraps what both sides may send.
    fn wire(message: Common) -> Self::WireOut;
    /// Whether a caller's message keeps its limits.
    fn check(message: &Self::Outgoing) -> Result<(), FieldError>;
    /// Judges a message, and turns it into what the caller is given.
    fn accept(
        session: &mut Session<Self>,
        now: Instant,
        wire: Self::WireIn,
    ) -> Result<Option<Self::Incoming>, Violation>;
    /// Says why nothing became of a session in `AwaitWelcome`.
    fn welcome_missing() -> (Code, &'static str);
}

/// What both sides may send, and the session sends by itself.
#[derive(Clone, Debug)]
pub enum Common {
    /// Asks whether the peer is there.
    Ping(Ping),
    /// Says that this side is.
    Pong(Pong),
    /// Says why this side closes.
    Goodbye(Goodbye),
}

impl<S: Side> Session<S> {
    /// Takes in one binary WebSocket message. Pings, pongs and unknown kinds are dealt with here and give `None`; so does
    /// whatever comes while the link is ending.
    ///
    /// # Errors
    /// The peer broke the protocol. The session has said goodbye already: drain [`Self::poll_transmit`] and close.
    pub fn handle_message(&mut self, now: Instant, message: &[u8]) -> Result<Option<S::Incoming>, Violation> {
        if self.state.is_ending() {
            return Ok(None);
        }
        let incoming = self.judge(now, message);
        if let Err(violation) = &incoming {
            self.violated(now, violation);
        }
        incoming
    }

    /// Does what is due. Calling it too early, or twice, does no harm.
    ///
    /// Feed what the socket holds first: a process that was held up must not blame the peer for its silence.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::AwaitHello if now >= self.deadline => self.violated(now, &Violation::HelloMissing),
            State::AwaitWelcome if now >= self.deadline => {
                let (code, message) = S::welcome_missing();
                self.goodbye(now, code, message, Duration::ZERO);
            }
            State::Live if now >= self.silence_deadline() => {
                self.goodbye(now, Code::TimedOut, "nothing was heard for too long", Duration::ZERO);
            }
            State::Live if now >= self.ping_deadline() => {
                self.ping(now);
            }
            State::Closing if now >= self.deadline => {
                self.enter(Event::CloseDeadline);
            }
            State::AwaitHello | State::AwaitWelcome | State::Live | State::Closing | State::Closed => {}
        }
    }

    /// Asks the peer for a sign of life now, for [`Self::has_answered`]. A link that is not live asks for none.
    pub fn ping(&mut self, now: Instant) -> u32 {
        if self.state == State::Live {
            self.pings_sent = self.pings_sent.wrapping_add(1);
            self.ping_due = true;
            self.last_sent = now;
        }
        self.pings_sent
    }

    /// When [`Self::handle_timeout`] is next to be called; `None` once the link is closed. Moves with every message.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::AwaitHello | State::AwaitWelcome | State::Closing => Some(self.deadline),
            State::Live => Some(self.silence_deadline().min(self.ping_deadline())),
            State::Closed => None,
        }
    }

    /// Queues a message for the peer.
    ///
    /// # Errors
    /// The message was not taken, and the session goes on.
    pub fn send(&mut self, now: Instant, message: impl Into<S::Outgoing>) -> Result<(), SendError> {
        if self.state != State::Live {
            return Err(SendError::State(self.state));
        }
        let message = message.into();
        S::check(&message).map_err(SendError::Field)?;
        self.queue(now, &message.into())
    }

    /// The next binary WebSocket message to send. To be drained after every other call, before the socket is read again;
    /// what is queued counts as sent at that time.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        if let Some(message) = self.outgoing.pop_front() {
            if self.outgoing.is_empty() {
                self.outgoing = VecDeque::new();
            }
            return Some(message);
        }
        let message = if let Some(token) = self.pong_due.take() {
            Common::Pong(Pong { token })
        } else if std::mem::take(&mut self.ping_due) {
            Common::Ping(Ping { token: self.pings_sent.into() })
        } else if std::mem::take(&mut self.goodbye_due) {
            Common::Goodbye(self.close.as_ref()?.to_goodbye())
        } else {
            return None;
        };
        Some(S::wire(message).encode_to_vec().into())
    }

    /// Ends the link, after what is queued. Does nothing on a link that is ending.
    ///
    /// `message` is for people; what is over [`STRING_BYTES_MAX`](super::STRING_BYTES_MAX) is cut off.
    pub fn goodbye(&mut self, now: Instant, code: Code, message: &str, retry_after: Duration) {
        if !self.enter(Event::Leave) {
            return;
        }
        self.pong_due = None;
        self.ping_due = false;
        self.goodbye_due = true;
        self.deadline = now + CLOSE_WITHIN;
        self.close = Some(Box::new(Close { by: Party::Us, code, message: message.to_owned(), retry_after }));
    }

    /// Ends the link because of a violation that the driver saw: [`Violation::Text`], or [`Violation::TooLarge`] when the
    /// WebSocket layer refused a message before it came here.
    pub fn violated(&mut self, now: Instant, violation: &Violation) {
        self.outgoing = VecDeque::new();
        self.goodbye(now, violation.code(), &violation.to_string(), Duration::ZERO);
    }

    /// Notes that the WebSocket was closed by the peer with this code, or broke (`None`). Nothing more goes out.
    pub fn transport_lost(&mut self, close_code: Option<u16>) {
        if self.enter(Event::TransportLost) {
            self.closed(Close::from_transport(close_code));
        }
    }

    /// Why the link is ending; `None` while it is not. The first reason stays.
    #[must_use]
    pub fn close(&self) -> Option<&Close> {
        self.close.as_deref()
    }

    /// Where the link stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// When the peer was last heard of: the time for "last proven".
    #[must_use]
    pub const fn last_proven(&self) -> Instant {
        self.last_heard
    }

    /// Whether the peer has answered that ping, or a later one. Whatever else was heard since may have lain in a buffer.
    #[must_use]
    pub const fn has_answered(&self, ping: u32) -> bool {
        // It wraps after more than 100 years.
        self.pings_answered >= ping && ping > 0
    }

    /// Messages of kinds that this version does not know. They are ignored.
    #[must_use]
    pub const fn unknown_messages(&self) -> u32 {
        self.unknown_messages
    }

    fn judge(&mut self, now: Instant, message: &[u8]) -> Result<Option<S::Incoming>, Violation> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(Violation::TooLarge);
        }
        let wire = S::WireIn::decode(message).map_err(Violation::Undecodable)?;
        self.last_heard = now;
        S::accept(self, now, wire)
    }

    pub(super) fn new(now: Instant, state: State, deadline: Instant, timing: &Timing) -> Self {
        let ping_interval_ms = u32::try_from(timing.ping_interval.as_millis()).unwrap_or(u32::MAX);
        Self {
            state,
            unknown_messages: 0,
            version: 0,
            ping_interval_ms: ping_interval_ms.clamp(PING_INTERVAL_MS_MIN, PING_INTERVAL_MS_MAX),
            max_missed_pings: timing.max_missed_pings.clamp(1, MISSED_PINGS_MAX),
            deadline,
            last_heard: now,
            last_sent: now,
            zero: now,
            outgoing: VecDeque::new(),
            pong_due: None,
            ping_due: false,
            goodbye_due: false,
            pings_sent: 0,
            pings_answered: 0,
            close: None,
            side: PhantomData,
        }
    }

    /// Moves on; false, and nothing happens, if the event has no meaning here.
    pub(super) fn enter(&mut self, event: Event) -> bool {
        self.state.next(event).map(|next| self.state = next).is_some()
    }

    /// Queues a message that was checked.
    pub(super) fn queue(&mut self, now: Instant, wire: &S::WireOut) -> Result<(), SendError> {
        if self.outgoing.len() >= OUTGOING_MAX {
            return Err(SendError::QueueFull);
        }
        if wire.encoded_len() > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        self.outgoing.push_back(wire.encode_to_vec().into());
        self.last_sent = now;
        Ok(())
    }

    pub(super) fn ping_received(&mut self, now: Instant, ping: &Ping) -> Result<(), Violation> {
        self.only_live("Ping")?;
        self.pong_due = Some(ping.token);
        self.last_sent = now;
        Ok(())
    }

    pub(super) fn pong_received(&mut self, pong: &Pong) -> Result<(), Violation> {
        self.only_live("Pong")?;
        // Nobody answers what was not asked.
        if let Ok(ping) = u32::try_from(pong.token)
            && ping <= self.pings_sent
        {
            self.pings_answered = self.pings_answered.max(ping);
        }
        Ok(())
    }

    pub(super) fn goodbye_received(&mut self, goodbye: Goodbye) -> Result<(), Violation> {
        goodbye.check().map_err(Violation::Field)?;
        self.enter(Event::PeerLeft);
        self.closed(Close::from_goodbye(goodbye));
        Ok(())
    }

    pub(super) fn unknown_received(&mut self) {
        self.unknown_messages = self.unknown_messages.saturating_add(1);
    }

    pub(super) fn only_live(&self, kind: &'static str) -> Result<(), Violation> {
        if self.state == State::Live { Ok(()) } else { Err(self.unexpected(kind)) }
    }

    pub(super) fn unexpected(&self, kind: &'static str) -> Violation {
        Violation::Unexpected { kind, state: self.state }
    }

    pub(super) const fn ping_interval_ms(&self) -> u32 {
        self.ping_interval_ms
    }

    pub(super) const fn max_missed_pings(&self) -> u32 {
        self.max_missed_pings
    }

    /// Takes on what the `Welcome` says. Both values were checked.
    pub(super) fn set_liveness(&mut self, ping_interval_ms: u32, max_missed_pings: u32) {
        self.ping_interval_ms = ping_interval_ms;
        self.max_missed_pings = max_missed_pings;
    }

    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    fn closed(&mut self, close: Close) {
        self.outgoing = VecDeque::new();
        self.pong_due = None;
        self.ping_due = false;
        self.goodbye_due = false;
        self.close.get_or_insert_with(|| Box::new(close));
    }

    fn ping_deadline(&self) -> Instant {
        self.last_sent + Duration::from_millis(self.ping_interval_ms.into())
    }

    fn silence_deadline(&self) -> Instant {
        self.last_heard + Duration::from_millis(u64::from(self.ping_interval_ms) * u64::from(self.max_missed_pings))
    }
}

impl<S> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state).field("close", &self.close).finish_non_exhaustive()
    }
}

/// Lets callers send a message without naming the enum that wraps it.
macro_rules! outgoing {
    ($wrapper:ident: $($message:ident),+ $(,)?) => {$(
        impl From<$message> for $wrapper {
            fn from(message: $message) -> Self {
                Self::$message(message)
            }
        }
    )+};
}
pub(super) use outgoing;
