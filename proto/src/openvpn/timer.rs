//! What time asks of a session, in one table.

use std::time::{Duration, Instant};

use super::close::{CloseReason, Waited};
use super::key::Phase;
use super::session::{Role, Session};
use super::state::State;

/// A client's first packet must come within this time.
pub const FIRST_PACKET_WITHIN: Duration = Duration::from_secs(10);
/// Handshake, key exchange and push must be through within this time (`--hand-window`); a renegotiation, too; and every control
/// packet must be acknowledged.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(60);
/// How long a last message may take to be acknowledged.
pub const END_WITHIN: Duration = Duration::from_secs(5);
/// How long the key before is still received with (`--tran-window`).
pub const RETIRED_FOR: Duration = Duration::from_secs(3600);
/// After this time a new key is used for sending although the peer was not seen to use it. By then any peer has read the
/// acknowledgements that make it ready.
pub const SWITCH_AFTER: Duration = Duration::from_secs(5);
/// A peer may not start renegotiations faster than this.
pub const RENEGOTIATION_INTERVAL_MIN: Duration = Duration::from_secs(2);

/// Why [`Session::handle_timeout`] is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The first packet did not come.
    FirstPacket,
    /// The handshake is not through.
    Handshake,
    /// A client asks for its push (again).
    PushRequest,
    /// Something must be sent.
    Ping,
    /// The peer is silent.
    Silence,
    /// A new key is due.
    Renegotiate,
    /// The new key is not through.
    Renegotiation,
    /// The new key is to be used.
    Switch,
    /// The old key dies.
    Retire,
    /// A control packet is not acknowledged.
    Acknowledgement,
    /// The last message is not acknowledged.
    End,
}

impl Timer {
    /// Every timer.
    pub const ALL: [Self; 11] = [
        Self::FirstPacket,
        Self::Handshake,
        Self::PushRequest,
        Self::Ping,
        Self::Silence,
        Self::Renegotiate,
        Self::Renegotiation,
        Self::Switch,
        Self::Retire,
        Self::Acknowledgement,
        Self::End,
    ];
}

/// The times that timers count from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// The handshake must be through by then.
    pub(super) handshake_at: Instant,
    /// The first packet must be there by then.
    pub(super) first_packet_at: Instant,
    /// The last encrypted packet was sent.
    pub(super) sent_at: Instant,
    /// The last good packet came in.
    pub(super) received_at: Instant,
    /// The oldest control packet in flight, or later.
    pub(super) unacknowledged_since: Option<Instant>,
    /// The peer last started a renegotiation.
    pub(super) peer_reset_at: Option<Instant>,
    pub(super) ending_at: Instant,
}

impl Deadlines {
    pub(super) fn new(now: Instant, first_packet_within: Duration) -> Self {
        Self {
            handshake_at: now + HANDSHAKE_WITHIN,
            first_packet_at: now + first_packet_within,
            sent_at: now,
            received_at: now,
            unacknowledged_since: None,
            peer_reset_at: None,
            ending_at: now,
        }
    }
}

impl Session {
    /// When a timer fires, if it is set.
    pub(super) fn due(&self, timer: Timer) -> Option<Instant> {
        let state = self.state();
        let is_live = state == State::Live;
        let is_in = |states: &[State]| states.contains(&state);
        match timer {
            Timer::FirstPacket => is_in(&[State::AwaitReset]).then_some(self.deadlines.first_packet_at),
            Timer::Handshake => is_in(&[State::AwaitReset, State::Handshaking, State::AwaitAdmission])
                .then_some(self.deadlines.handshake_at),
            Timer::PushRequest => match &self.role {
                Role::Client(side) if state == State::AwaitAdmission => side.push_request_at,
                Role::Client(_) | Role::Server(_) => None,
            },
            Timer::Ping => self.ping_every().filter(|_| is_live).map(|every| self.deadlines.sent_at + every),
            Timer::Silence => is_live.then(|| self.deadlines.received_at + self.silence_max()),
            Timer::Renegotiate => {
                let every = self.renegotiate_every().filter(|_| self.may_start_renegotiation())?;
                Some(self.current.active_at + every)
            }
            Timer::Renegotiation => {
                self.next.as_ref().filter(|_| is_live).map(|next| next.started_at + HANDSHAKE_WITHIN)
            }
            Timer::Switch => self
                .retired
                .as_ref()
                .filter(|retired| retired.is_sending)
                .map(|_| self.current.active_at + SWITCH_AFTER),
            Timer::Retire => self.retired.as_ref().map(|retired| retired.dies_at),
            Timer::Acknowledgement => {
                let since = self.deadlines.unacknowledged_since.filter(|_| is_live)?;
                Some(since + HANDSHAKE_WITHIN)
            }
            Timer::End => is_in(&[State::Ending]).then(|| self.deadlines.ending_at + END_WITHIN),
        }
    }

    pub(super) fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::FirstPacket => self.close_late(Waited::FirstPacket),
            Timer::Handshake => self.close_late(Waited::Handshake),
            Timer::PushRequest => self.request_push(),
            Timer::Ping => self.ping(),
            Timer::Silence => self.close_late(Waited::SignOfLife),
            Timer::Renegotiate => self.start_renegotiation(),
            Timer::Renegotiation => self.close_late(Waited::Renegotiation),
            Timer::Switch => {
                if let Some(retired) = &mut self.retired {
                    retired.is_sending = false;
                }
            }
            Timer::Retire => self.retired = None,
            Timer::Acknowledgement => self.close_late(Waited::Acknowledgement),
            Timer::End => self.close(CloseReason::Ended),
        }
    }

    /// Whether this side may start a renegotiation now.
    pub(super) fn may_start_renegotiation(&self) -> bool {
        self.may_renegotiate() && self.retired.as_ref().is_none_or(|retired| !retired.is_sending)
    }

    /// Whether the peer may.
    pub(super) fn may_renegotiate(&self) -> bool {
        self.state() == State::Live && self.current.phase == Phase::Active && self.next.is_none()
    }

    fn ping_every(&self) -> Option<Duration> {
        match &self.role {
            Role::Server(side) => Some(side.config.ping),
            Role::Client(side) => side.pushed.ping.or(side.config.ping),
        }
    }

    fn silence_max(&self) -> Duration {
        match &self.role {
            // A client comes again after half of it, so that it is the one to notice.
            Role::Server(side) => side.config.ping_restart * 2,
            Role::Client(side) => side.pushed.ping_restart.unwrap_or(side.config.ping_restart),
        }
    }

    fn renegotiate_every(&self) -> Option<Duration> {
        match &self.role {
            Role::Server(side) => side.config.renegotiate_every,
            Role::Client(side) => side.config.renegotiate_every,
        }
    }
}
