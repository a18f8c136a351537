//! Two ends and a wire between them, in virtual time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloudlink_proto::link::{Device, FromDevice, FromServer, Server, Session, State, Timing};

use crate::example::{admission, hello, start};

/// A server and a device. The server welcomes by itself; everything else is noted.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) server: Session<Server>,
    pub(crate) device: Session<Device>,
    pub(crate) to_server: Wire,
    pub(crate) to_device: Wire,
    pub(crate) from_device: Vec<FromDevice>,
    pub(crate) from_server: Vec<FromServer>,
}

/// One direction. Like TCP it keeps the order and loses nothing, until it is cut.
pub(crate) struct Wire {
    pub(crate) latency: Duration,
    /// Whatever is sent now vanishes.
    pub(crate) is_cut: bool,
    /// Whatever is sent now arrives twice.
    pub(crate) is_doubling: bool,
    pub(crate) messages: usize,
    in_flight: VecDeque<(Instant, Bytes)>,
}

impl Pair {
    pub(crate) fn new(timing: Timing) -> Self {
        let now = start();
        Self {
            now,
            server: Session::server(now, &timing),
            device: Session::device(now, hello()).unwrap(),
            to_server: Wire::new(),
            to_device: Wire::new(),
            from_device: Vec::new(),
            from_server: Vec::new(),
        }
    }

    /// A pair whose link is live.
    pub(crate) fn live(timing: Timing) -> Self {
        let mut pair = Self::new(timing);
        pair.run_for(pair.to_device.latency + pair.to_server.latency);
        assert_eq!((pair.server.state(), pair.device.state()), (State::Live, State::Live));
        pair
    }

    /// Lets this much time go by. Panics if it takes more rounds than anything sensible could: a busy loop.
    pub(crate) fn run_for(&mut self, time: Duration) {
        const ROUNDS_MAX: u32 = 100_000;
        let end = self.now + time;
        for _ in 0..ROUNDS_MAX {
            self.transmit();
            let Some(next) = self.next_event().filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = next.max(self.now);
            self.deliver();
            self.server.handle_timeout(self.now);
            self.device.handle_timeout(self.now);
        }
        panic!("the sessions keep each other busy for nothing");
    }

    fn transmit(&mut self) {
        while let Some(message) = self.device.poll_transmit() {
            self.to_server.send(self.now, message);
        }
        while let Some(message) = self.server.poll_transmit() {
            self.to_device.send(self.now, message);
        }
    }

    fn deliver(&mut self) {
        while let Some(message) = self.to_server.receive(self.now) {
            if let Ok(Some(incoming)) = self.server.handle_message(self.now, &message) {
                if matches!(incoming, FromDevice::Hello(_)) {
                    self.server.welcome(self.now, &admission()).unwrap();
                }
                self.from_device.push(incoming);
            }
        }
        while let Some(message) = self.to_device.receive(self.now) {
            if let Ok(Some(incoming)) = self.device.handle_message(self.now, &message) {
                self.from_server.push(incoming);
            }
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let wires = [&self.to_server, &self.to_device].map(|wire| wire.in_flight.front().map(|(at, _)| *at));
        [self.server.poll_timeout(), self.device.poll_timeout()].into_iter().chain(wires).flatten().min()
    }
}

impl Wire {
    fn new() -> Self {
        Self {
            latency: Duration::from_millis(40),
            is_cut: false,
            is_doubling: false,
            messages: 0,
            in_flight: VecDeque::new(),
        }
    }

    fn send(&mut self, now: Instant, message: Bytes) {
        self.messages += 1;
        if self.is_cut {
            return;
        }
        // Order is kept when the latency falls.
        let at = self.in_flight.back().map_or(now, |(last, _)| *last).max(now + self.latency);
        if self.is_doubling {
            self.in_flight.push_back((at, message.clone()));
        }
        self.in_flight.push_back((at, message));
    }

    fn receive(&mut self, now: Instant) -> Option<Bytes> {
        self.in_flight
            .front()
            .is_some_and(|(at, _)| *at <= now)
            .then(|| self.in_flight.pop_front())
            .flatten()
            .map(|(_, message)| message)
    }
}
