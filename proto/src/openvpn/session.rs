//! One OpenVPN session, either side: what its owner drives it by, and the way of packets through it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::cipher::Cipher;
use super::client::{ClientEvent, ClientSide};
use super::close::{CloseReason, Waited};
use super::counters::{Counters, count};
use super::data::{Format, HEADROOM, OCC, OCC_EXIT, PING, SealError, TAILROOM};
use super::inner::InnerPolicy;
use super::key::{Key, Retired};
use super::opcode::{KeyId, Opcode};
use super::packet::SessionId;
use super::random::Random;
use super::server::{ServerEvent, ServerSide};
use super::state::{Event as Step, State};
use super::stream::{Deframer, FRAME_BYTES_MAX, LENGTH_BYTES, Place};
use super::timer::{Deadlines, Timer};
use super::wrap::Wrap;

/// Encrypted packets that a peer may send before the tunnel is up.
pub const EARLY_DATA_MAX: u32 = 1024;

/// One OpenVPN session over one TCP connection. The [module](super) says how to drive it.
#[derive(Debug)]
pub struct Session {
    pub(super) role: Role,
    state: State,
    /// Why it is over, or will be when [`State::Ending`] is.
    ending: Option<CloseReason>,
    is_close_reported: bool,
    /// The latest time that was heard of.
    pub(super) now: Instant,
    pub(super) deadlines: Deadlines,
    pub(super) random: Random,
    pub(super) own_id: SessionId,
    pub(super) peer_id: Option<SessionId>,
    pub(super) wrap: Wrap,
    /// What is around control packets of later keys, if it differs.
    pub(super) later_wrap: Option<Wrap>,
    pub(super) budget: Budget,
    deframer: Deframer,
    /// Whole frames that wait to be taken.
    pub(super) outbox: Vec<u8>,
    pub(super) events: VecDeque<Event>,
    /// Control messages that wait for their turn.
    pub(super) messages: VecDeque<Vec<u8>>,
    pub(super) current: Key,
    pub(super) next: Option<Box<Key>>,
    pub(super) retired: Option<Retired>,
    pub(super) agreed: Option<Agreed>,
    /// The peer's certificate of the first handshake, as a digest.
    pub(super) pinned: Option<[u8; 32]>,
    pub(super) counters: Counters,
}

/// Which side this is, and what only this side has.
#[derive(Debug)]
pub(super) enum Role {
    Server(Box<ServerSide>),
    Client(Box<ClientSide>),
}

/// What both sides agreed on for all keys of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The data channel's cipher.
    pub cipher: Cipher,
    /// How packets of this side look.
    pub format: Format,
    /// Keys come from the TLS exporter; else from the legacy pseudo-random function.
    pub is_tls_ekm: bool,
    /// Later handshakes are hidden.
    pub is_dynamic_tls_crypt: bool,
    /// `EXIT` is understood.
    pub has_exit: bool,
    /// The largest packet in the tunnel.
    pub mtu: u16,
}

/// What a call of [`Session::handle_input`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// So many bytes are done with: call again with the rest.
    pub consumed: usize,
    /// An IP packet out of the tunnel, decrypted in place: it lies in the caller's bytes or, when it came in pieces, in the
    /// session's own.
    pub packet: Option<&'a mut [u8]>,
}

/// What a session wants of its owner.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Bytes for the peer, whole frames. May be sent before or after encrypted packets, but in the order in which they came
    /// out.
    Transmit(Vec<u8>),
    /// Something happened.
    Event(Event),
    /// It is over: close the connection. Nothing comes after this.
    Closed(CloseReason),
}

/// What happened.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// To a server's session.
    Server(ServerEvent),
    /// To a client's session.
    Client(ClientEvent),
    /// A renegotiation is through.
    Rekeyed(KeyId),
}

impl Session {
    pub(super) fn new(
        role: Role,
        now: Instant,
        mut random: Random,
        wrap: Wrap,
        current: Key,
        within: Duration,
    ) -> Self {
        let own_id = loop {
            if let Some(id) = SessionId::new(random.array()) {
                break id;
            }
        };
        Self {
            role,
            state: State::AwaitReset,
            ending: None,
            is_close_reported: false,
            now,
            deadlines: Deadlines::new(now, within),
            random,
            own_id,
            peer_id: None,
            wrap,
            later_wrap: None,
            budget: Budget::new(now),
            deframer: Deframer::default(),
            outbox: Vec::new(),
            events: VecDeque::new(),
            messages: VecDeque::new(),
            current,
            next: None,
            retired: None,
            agreed: None,
            pinned: None,
            counters: Counters::default(),
        }
    }

    /// Takes bytes from the peer, at most one packet's worth: call again with what is left until all is consumed, then drain
    /// [`Session::poll_output`]. A packet that comes out is valid until the next call.
    pub fn handle_input<'a>(&'a mut self, now: Instant, input: &'a mut [u8]) -> Received<'a> {
        self.hear(now);
        if self.state == State::Closed {
            return Received { consumed: input.len(), packet: None };
        }
        let (consumed, place) = match self.deframer.next(input, self.frame_bytes_max()) {
            Ok(found) => found,
            Err(error) => {
                self.close(error.into());
                return Received { consumed: input.len(), packet: None };
            }
        };
        let packet = match place {
            None => None,
            Some(Place::Input(range)) => {
                let frame = &mut input[range];
                self.accept(frame).map(|plain| &mut frame[plain])
            }
            Some(Place::Partial) => {
                let mut partial = std::mem::take(&mut self.deframer.partial);
                let plain = self.accept(&mut partial[LENGTH_BYTES..]);
                self.deframer.partial = partial;
                plain.map(|plain| &mut self.deframer.partial[LENGTH_BYTES..][plain])
            }
        };
        Received { consumed, packet }
    }

    /// The peer will send nothing more.
    pub fn handle_end_of_stream(&mut self, now: Instant) {
        self.hear(now);
        let reason = if self.deframer.is_inside() { CloseReason::Truncated } else { CloseReason::PeerClosed };
        self.close(reason);
    }

    /// Does what time asks for.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.hear(now);
        self.deframer.shrink();
        // Each timer that fires moves on, so more rounds than there are timers would be a fault.
        for _ in 0..Timer::ALL.len() {
            let Some((_, timer)) = self.poll_timeout().filter(|(at, _)| *at <= self.now) else { return };
            self.fire(timer);
        }
    }

    /// When [`Session::handle_timeout`] is to be called, and why. Changes with every other call.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        Timer::ALL.into_iter().filter_map(|timer| Some((self.due(timer)?, timer))).min_by_key(|(at, _)| *at)
    }

    /// What is to be done. Drain it to `None` after each other call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.flush();
        if let Some(event) = self.events.pop_front() {
            return Some(Output::Event(event));
        }
        if !self.outbox.is_empty() {
            return Some(Output::Transmit(std::mem::take(&mut self.outbox)));
        }
        if self.state == State::Closed && !self.is_close_reported {
            self.is_close_reported = true;
            return self.ending.clone().map(Output::Closed);
        }
        None
    }

    /// Encrypts an IP packet for the peer in place: it lies behind [`HEADROOM`] bytes and has [`TAILROOM`] bytes behind it.
    /// Gives back where the whole frame lies, ready for the connection.
    ///
    /// # Errors
    /// The packet cannot be sent; the session goes on.
    pub fn seal(&mut self, now: Instant, buffer: &mut [u8], packet_bytes: usize) -> Result<Range<usize>, SealError> {
        self.hear(now);
        let mtu = self.agreed.as_ref().map_or(0, |agreed| agreed.mtu);
        if self.state != State::Live {
            return Err(SealError::NotLive);
        }
        if packet_bytes > usize::from(mtu) {
            return Err(SealError::TooLarge);
        }
        self.seal_any(buffer, packet_bytes)
    }

    /// Asks for new keys now, unless that is under way or the session is not live.
    pub fn renegotiate(&mut self, now: Instant) {
        self.hear(now);
        self.start_renegotiation();
    }

    /// Where the session stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// What both sides agreed on, once they have.
    #[must_use]
    pub const fn agreed(&self) -> Option<&Agreed> {
        self.agreed.as_ref()
    }

    /// What was dropped.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why the session is over, or will be in a moment.
    #[must_use]
    pub const fn close_reason(&self) -> Option<&CloseReason> {
        self.ending.as_ref()
    }

    fn hear(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn frame_bytes_max(&self) -> usize {
        let mtu = self.agreed.as_ref().map_or(0, |agreed| usize::from(agreed.mtu));
        FRAME_BYTES_MAX.max(mtu + HEADROOM + TAILROOM)
    }

    fn accept(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        match self.packet(packet) {
            Ok(plain) => plain,
            Err(reason) => {
                self.close(reason);
                None
            }
        }
    }

    fn packet(&mut self, packet: &mut [u8]) -> Result<Option<Range<usize>>, CloseReason> {
        let first = packet.first().copied().unwrap_or_default();
        match Opcode::split(first) {
            (Some(opcode), key) if opcode.is_data() => self.data_packet(opcode, key, packet),
            (Some(opcode), key) => self.control_packet(opcode, key, packet).map(|()| None),
            (None, _) => Err(match first >> 3 {
                1 | 2 => CloseReason::KeyMethod1,
                unused => CloseReason::Opcode(unused),
            }),
        }
    }

    fn data_packet(
        &mut self,
        opcode: Opcode,
        key: KeyId,
        packet: &mut [u8],
    ) -> Result<Option<Range<usize>>, CloseReason> {
        if self.state != State::Live {
            return self.early_data();
        }
        let retired = self.retired.as_mut().filter(|retired| retired.id == key).map(|retired| &mut retired.data);
        let next = self.next.as_mut().filter(|next| next.id == key).and_then(|next| next.data.as_mut());
        let current = self.current.data.as_mut().filter(|_| self.current.id == key);
        let is_current = current.is_some();
        let Some(data) = current.or(next).or(retired) else {
            count(&mut self.counters.unknown_key);
            return Ok(None);
        };
        let plain = data.open(opcode, packet)?;
        self.deadlines.received_at = self.now;
        if is_current && let Some(retired) = &mut self.retired {
            // The peer has the new key, so it can be used.
            retired.is_sending = false;
        }
        self.inner_packet(&packet[plain.clone()]).map(|passes| passes.then_some(plain))
    }

    fn early_data(&mut self) -> Result<Option<Range<usize>>, CloseReason> {
        if self.state == State::AwaitReset {
            return Err(CloseReason::Unexpected("data before a reset"));
        }
        count(&mut self.counters.early_data);
        // A peer that has not heard of its end yet goes on sending for a moment.
        let is_flood = self.state != State::Ending && self.counters.early_data > EARLY_DATA_MAX;
        if is_flood { Err(CloseReason::Budget) } else { Ok(None) }
    }

    /// Whether what came out of the tunnel is for the owner.
    fn inner_packet(&mut self, packet: &[u8]) -> Result<bool, CloseReason> {
        if packet == PING {
            return Ok(false);
        }
        if let Some(occ) = packet.strip_prefix(&OCC) {
            count(&mut self.counters.occ);
            return if occ.first() == Some(&OCC_EXIT) { Err(CloseReason::PeerExit) } else { Ok(false) };
        }
        let Some(policy) = self.inner_policy() else { return Ok(true) };
        if let Err(drop) = policy.check(packet) {
            self.counters.count_inner(drop);
            return Ok(false);
        }
        Ok(true)
    }

    /// Only a server is choosy about sources: everybody may write to a client.
    const fn inner_policy(&self) -> Option<InnerPolicy> {
        match &self.role {
            Role::Server(side) => side.inner,
            Role::Client(_) => None,
        }
    }

    fn seal_any(&mut self, buffer: &mut [u8], bytes: usize) -> Result<Range<usize>, SealError> {
        let data = match &mut self.retired {
            Some(retired) if retired.is_sending => &mut retired.data,
            _ => self.current.data.as_mut().ok_or(SealError::NotLive)?,
        };
        let frame = data.seal(buffer, bytes)?;
        self.deadlines.sent_at = self.now;
        Ok(frame)
    }

    /// Queues a ping.
    pub(super) fn ping(&mut self) {
        let mut buffer = [0; HEADROOM + PING.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + PING.len()].copy_from_slice(&PING);
        // A key that is used up has asked for a new one by now; until then the peer hears nothing.
        if let Ok(frame) = self.seal_any(&mut buffer, PING.len()) {
            self.outbox.extend_from_slice(&buffer[frame]);
        }
        self.deadlines.sent_at = self.now;
    }

    /// Moves on; an event without meaning here changes nothing.
    pub(super) fn step(&mut self, step: Step) -> bool {
        let next = self.state.next(step);
        self.state = next.unwrap_or(self.state);
        next.is_some()
    }

    /// Ends at once. What is not sent yet never will be.
    pub(super) fn close(&mut self, reason: CloseReason) {
        if !self.step(Step::Close) {
            return;
        }
        // A session that was about to end keeps its own reason.
        self.ending.get_or_insert(reason);
        self.outbox = Vec::new();
        self.messages = VecDeque::new();
        self.events = VecDeque::new();
        self.deframer = Deframer::default();
        self.next = None;
        self.retired = None;
        self.current.tls = None;
        self.current.data = None;
        self.current.secrets = None;
        self.current.client_secret = None;
        self.current.tls_out = Vec::new();
    }

    /// Ends when the peer has acknowledged what is said last, or after a while.
    pub(super) fn leave(&mut self, reason: CloseReason, message: Option<Vec<u8>>) {
        if !self.step(Step::Leave) {
            self.close(reason);
            return;
        }
        self.ending = Some(reason);
        self.deadlines.ending_at = self.now;
        // What waited before is of no use any more.
        self.messages.clear();
        self.messages.extend(message);
    }

    pub(super) fn close_late(&mut self, waited: Waited) {
        self.close(CloseReason::Deadline(waited));
    }

    /// Gives back memory that only a handshake needs.
    pub(super) fn shrink(&mut self) {
        self.current.shrink();
        self.messages.shrink_to_fit();
        self.events.shrink_to_fit();
        self.deframer.shrink();
    }
}
