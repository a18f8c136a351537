//! Control packets, in and out.

use std::borrow::Cow;

use super::budget::Budget;
use super::close::CloseReason;
use super::counters::count;
use super::key::{Key, Phase};
use super::opcode::{KeyId, Opcode};
use super::packet::{Acks, Body, SessionId};
use super::reliable::Arrival;
use super::session::{Event, Role, Session};
use super::state::{Event as Step, State};
use super::stream::frame;
use super::timer::{RENEGOTIATION_INTERVAL_MIN, RETIRED_FOR};
use super::wrap::{Unwrapped, Wrap};

/// TLS bytes in one control packet: with every wrapping this stays below what any version takes.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 1150;

/// One of the two keys that have a control channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Current,
    Next,
}

impl Session {
    pub(super) fn control_packet(&mut self, opcode: Opcode, key: KeyId, packet: &[u8]) -> Result<(), CloseReason> {
        if matches!(self.state(), State::Live) {
            self.budget.renew_if_due(self.now);
        }
        self.budget.spend(packet.len()).map_err(|_| CloseReason::Budget)?;
        let Unwrapped { sender, body } = self.unwrap(opcode, key, packet)?;
        let body = Body::decode(opcode, &body)?;
        if self.state() == State::AwaitReset {
            self.first_reset(opcode, key, sender, &body)?;
        }
        if self.peer_id != Some(sender) || body.acked.is_some_and(|acked| acked != self.own_id) {
            return Err(CloseReason::SessionId);
        }
        self.deadlines.received_at = self.now;
        match (opcode, body.id) {
            (Opcode::SoftReset, Some(0)) => self.soft_reset(key)?,
            (Opcode::Control, Some(1..)) | (Opcode::Ack, None) => {}
            (Opcode::HardResetClientV2 | Opcode::HardResetClientV3 | Opcode::HardResetServerV2, Some(0)) => {
                self.hard_reset_again(opcode, key)?;
            }
            _ => return Err(CloseReason::Unexpected("control packet")),
        }
        let Some(which) = self.which(key) else {
            // Acknowledgements may still come for a key that has just been replaced.
            let is_late = opcode == Opcode::Ack && self.retired.as_ref().is_some_and(|retired| retired.id == key);
            return if is_late { Ok(()) } else { Err(CloseReason::Unexpected("key id")) };
        };
        self.acknowledged(which, &body.acks);
        if let Some(id) = body.id {
            self.arrived(which, id, body.payload)?;
        }
        // Not only when output is asked for: the next packet may already build on it.
        self.complete_exchange();
        Ok(())
    }

    /// The reset that starts a session, of either side.
    fn first_reset(
        &mut self,
        opcode: Opcode,
        key: KeyId,
        sender: SessionId,
        body: &Body<'_>,
    ) -> Result<(), CloseReason> {
        // Servers acknowledge the client's reset with theirs; a client has nothing to acknowledge.
        let is_expected = match &self.role {
            Role::Server(side) => opcode == side.expected_reset() && body.acks.is_empty(),
            Role::Client(_) => opcode == Opcode::HardResetServerV2,
        };
        if !is_expected || key != KeyId::FIRST || body.id != Some(0) {
            return Err(CloseReason::Unexpected("first packet"));
        }
        self.peer_id = Some(sender);
        self.step(Step::Reset);
        Ok(())
    }

    /// Stock clients send their reset again when the answer takes long; the session id has been checked.
    fn hard_reset_again(&self, opcode: Opcode, key: KeyId) -> Result<(), CloseReason> {
        let is_expected = match &self.role {
            Role::Server(side) => opcode == side.expected_reset(),
            Role::Client(_) => opcode == Opcode::HardResetServerV2,
        };
        if is_expected && key == KeyId::FIRST { Ok(()) } else { Err(CloseReason::Unexpected("hard reset")) }
    }

    /// The peer starts a renegotiation, or answers the one that this side started.
    fn soft_reset(&mut self, id: KeyId) -> Result<(), CloseReason> {
        if self.next.as_ref().is_some_and(|next| next.id == id) {
            return Ok(());
        }
        if !self.may_renegotiate() || id != self.current.id.next() {
            return Err(CloseReason::Renegotiation);
        }
        if self.deadlines.peer_reset_at.is_some_and(|at| self.now < at + RENEGOTIATION_INTERVAL_MIN) {
            return Err(CloseReason::RenegotiationRate);
        }
        self.deadlines.peer_reset_at = Some(self.now);
        self.budget = Budget::new(self.now);
        if let Some(retired) = &mut self.retired {
            // Nobody renegotiates without having the current key; and soon the peer will not have the one before any more.
            retired.is_sending = false;
        }
        self.add_next_key();
        Ok(())
    }

    /// Starts a renegotiation unless one is under way, or the last one may not have reached the peer yet.
    pub(super) fn start_renegotiation(&mut self) {
        if self.may_start_renegotiation() {
            self.add_next_key();
        }
    }

    fn add_next_key(&mut self) {
        let key = Key::new(self.current.id.next(), Phase::AwaitReset, Opcode::SoftReset, self.now);
        self.next = Some(Box::new(key));
    }

    fn unwrap<'a>(&mut self, opcode: Opcode, key: KeyId, packet: &'a [u8]) -> Result<Unwrapped<'a>, CloseReason> {
        let packet = match &mut self.role {
            Role::Server(side) if opcode == Opcode::HardResetClientV3 => {
                let (front, wrap) = side.client_key(packet)?;
                if let Some(wrap) = wrap {
                    self.wrap = wrap;
                }
                front
            }
            Role::Server(side) if self.peer_id.is_none() && opcode != side.expected_reset() => {
                return Err(CloseReason::Unexpected("first packet"));
            }
            Role::Server(_) | Role::Client(_) => packet,
        };
        Ok(self.wrap_of(key).open(packet)?)
    }

    fn wrap_of(&mut self, key: KeyId) -> &mut Wrap {
        match &mut self.later_wrap {
            Some(wrap) if key != KeyId::FIRST => wrap,
            _ => &mut self.wrap,
        }
    }

    fn which(&self, id: KeyId) -> Option<Which> {
        if self.current.id == id {
            Some(Which::Current)
        } else if self.next.as_ref().is_some_and(|next| next.id == id) {
            Some(Which::Next)
        } else {
            None
        }
    }

    /// The key; the current one if there is no next.
    pub(super) fn key(&mut self, which: Which) -> &mut Key {
        match (which, &mut self.next) {
            (Which::Next, Some(next)) => next,
            (Which::Next, None) | (Which::Current, _) => &mut self.current,
        }
    }

    fn acknowledged(&mut self, which: Which, acks: &Acks) {
        let reliable = &mut self.key(which).reliable;
        let was_waiting = !reliable.is_acknowledged();
        reliable.acknowledged(acks);
        let is_waiting = !reliable.is_acknowledged();
        if was_waiting && !acks.is_empty() {
            self.deadlines.unacknowledged_since = is_waiting.then_some(self.now);
        }
    }

    fn arrived(&mut self, which: Which, id: u32, payload: &[u8]) -> Result<(), CloseReason> {
        let arrival = self.key(which).reliable.arrived(id, payload);
        if arrival != Arrival::New {
            count(&mut self.counters.control_order);
        }
        if arrival == Arrival::Ahead {
            return Ok(());
        }
        if !self.key(which).reliable.acknowledge(id) {
            self.send_acks(which);
            self.key(which).reliable.acknowledge(id);
        }
        while let Some(payload) = self.key(which).reliable.pop() {
            if self.key(which).phase == Phase::AwaitReset {
                // Whatever a reset carries says nothing over TCP.
                self.key(which).phase = Phase::Exchange;
                self.begin_exchange(which)?;
            } else if self.state() != State::Ending {
                self.feed(which, &payload)?;
            }
        }
        Ok(())
    }

    /// Moves on what can move, and puts what is to be sent into packets.
    pub(super) fn flush(&mut self) {
        if self.state() == State::Closed {
            return;
        }
        self.complete_exchange();
        if self.agreed.is_some() && self.current.data.as_ref().is_some_and(|data| data.wants_renegotiation()) {
            self.start_renegotiation();
        }
        self.write_message();
        if self.next.is_some() {
            // Nothing goes out on the old key's control channel once there is a new one.
            self.current.reliable.take_acks(false);
            self.send_packets(Which::Next);
        } else {
            self.send_packets(Which::Current);
        }
        let is_said = self.messages.is_empty() && self.next.as_deref().unwrap_or(&self.current).is_idle();
        if self.state() == State::Ending && is_said {
            self.close(CloseReason::Ended);
        }
    }

    fn complete_exchange(&mut self) {
        if self.current.is_complete() {
            self.current.phase = Phase::Active;
            self.current.active_at = self.now;
            self.step(Step::Keys);
            self.keys_complete();
        }
        if self.next.as_ref().is_some_and(|next| next.is_complete() && next.data.is_some()) {
            self.promote();
        }
    }

    /// The next key becomes the current one.
    fn promote(&mut self) {
        let Some(next) = self.next.take() else { return };
        let old = std::mem::replace(&mut self.current, *next);
        self.current.phase = Phase::Active;
        self.current.active_at = self.now;
        self.deadlines.unacknowledged_since = None;
        self.retired = old.data.map(|data| super::key::Retired {
            id: old.id,
            data,
            dies_at: self.now + RETIRED_FOR,
            is_sending: true,
        });
        self.events.push_back(Event::Rekeyed(self.current.id));
        self.shrink();
    }

    /// One message at a time, each when the one before is in packets, so that each starts a packet of its own.
    fn write_message(&mut self) {
        let is_ready = self.current.phase == Phase::Active && self.current.tls_out.is_empty() && self.next.is_none();
        if is_ready && let Some(message) = self.messages.pop_front() {
            self.current.write(&message);
        }
    }

    fn send_packets(&mut self, which: Which) {
        if let Some(reset) = self.key(which).reset
            && self.peer_may_hear(which)
        {
            self.key(which).reset = None;
            self.send(which, reset, &[]);
        }
        while !self.key(which).tls_out.is_empty() && self.key(which).reliable.may_send() {
            let mut rest = std::mem::take(&mut self.key(which).tls_out);
            let bytes = rest.len().min(CONTROL_PAYLOAD_BYTES_MAX);
            self.send(which, Opcode::Control, &rest[..bytes]);
            // Mostly that was all, and its memory goes.
            if bytes < rest.len() {
                rest.drain(..bytes);
                self.key(which).tls_out = rest;
            }
            if self.key(which).tls_out.is_empty() && which == Which::Current {
                self.write_message();
            }
        }
        if self.key(which).reliable.has_acks() {
            self.send_acks(which);
        }
    }

    /// A server says nothing before its client does.
    fn peer_may_hear(&self, which: Which) -> bool {
        which == Which::Next || self.peer_id.is_some() || matches!(self.role, Role::Client(_))
    }

    fn send_acks(&mut self, which: Which) {
        let acks = self.key(which).reliable.take_acks(false);
        self.send_body(which, Opcode::Ack, acks, None, &[]);
    }

    fn send(&mut self, which: Which, opcode: Opcode, payload: &[u8]) {
        let Some(id) = self.key(which).reliable.take_id() else { return };
        let acks = self.key(which).reliable.take_acks(true);
        self.deadlines.unacknowledged_since.get_or_insert(self.now);
        self.send_body(which, opcode, acks, Some(id), payload);
    }

    fn send_body(&mut self, which: Which, opcode: Opcode, acks: Acks, id: Option<u32>, payload: &[u8]) {
        let key = self.key(which).id;
        let body = Body { acks, acked: self.peer_id, id, payload }.encode();
        let (first, own_id) = (opcode.with(key), self.own_id);
        let behind: Cow<'static, [u8]> = match &self.role {
            Role::Client(side) if opcode == Opcode::HardResetClientV3 => side.wrapped_key().to_vec().into(),
            Role::Client(_) | Role::Server(_) => Cow::Borrowed(&[]),
        };
        let mut outbox = std::mem::take(&mut self.outbox);
        frame(&mut outbox, |out| {
            self.wrap_of(key).seal(first, own_id, &body, out);
            out.extend_from_slice(&behind);
        });
        self.outbox = outbox;
    }
}
