//! Moves the bytes of one stream: one task, which polls the device's leg, the client's, and those of guests.
//!
//! A leg is read only when the leg that it is read for has nothing left to say: there is one message each way, and TCP holds up
//! whoever writes. No lock that others share is taken for a message.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use bytes::Bytes;
use cloudlink_proto::stream::{Control, Mode, Party};
use data_encoding::HEXLOWER;
use futures_util::FutureExt;
use futures_util::future::join_all;
use prometheus::IntCounter;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::freshness::Gate;
use super::guest::{Guest, Screen, Size};
use super::leg::{Gone, Heard, Leg, cut, cut_since, drained};
use super::session::{Ending, Place, Session, Word};
use crate::model::support_session::{Direction, EndReason, FileTarget, Target};
use crate::recording::{Entry, Recorder};

/// How often peers are asked for a sign of life: below the usual cuts of idle connections.
const PING_EVERY: Duration = Duration::from_secs(25);

/// A node that learns of the end of access later than this has stood still, or its database has. What it has begun to say to a
/// peer that did not take it is not said any more, nor is why.
const LATE_AFTER: Duration = Duration::from_millis(500);

/// What became of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It came to its own end.
    Done,
    /// The device could not do what it was asked for.
    Failed,
    ClientGone,
    DeviceGone,
    /// Somebody broke the protocol.
    Broken(Party),
    Unrecorded,
    /// With its session.
    Cut(Ending),
}

impl End {
    /// What it means for a session that has one stream.
    pub(super) const fn reason(&self) -> EndReason {
        match self {
            Self::Done => EndReason::Exited,
            Self::Failed => EndReason::Refused,
            Self::ClientGone | Self::Broken(Party::Client | Party::Node) => EndReason::Closed,
            Self::DeviceGone | Self::Broken(Party::Device) => EndReason::DeviceGone,
            Self::Unrecorded => EndReason::RecordingFailed,
            Self::Cut(ending) => ending.reason,
        }
    }
}

/// What the node's last word is.
pub(super) fn closed(reason: EndReason) -> Control {
    Control::Closed { reason: reason.name().to_owned(), message: reason.sentence().to_owned() }
}

pub(super) struct Pump {
    session: Arc<Session>,
    recorder: Arc<Recorder>,
    place: Place,
    device: Leg,
    client: Leg,
    guests: Vec<Guest>,
    flow: Flow,
    /// Nothing passes while it is closed.
    gate: Gate,
    /// How it ends once the client has read what was said.
    last: Option<End>,
    /// Who is listened to first: nobody keeps the others from being heard.
    turn: usize,
    /// Something was not recorded that was to be.
    is_unrecorded: Cell<bool>,
    metrics: [IntCounter; 2],
}

/// What is special about a kind.
enum Flow {
    Terminal { screen: Screen, size: Size, told: Size },
    Forward { to_device: Meter, from_device: Meter },
    File { target: FileTarget, meter: Meter },
}

/// What passed in one direction.
struct Meter {
    bytes: u64,
    digest: digest::Context,
    /// The sender has said that this was all.
    is_over: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Self { bytes: 0, digest: digest::Context::new(&SHA256), is_over: false }
    }
}

impl Meter {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
    }

    fn sha256(&self) -> String {
        HEXLOWER.encode(self.digest.clone().finish().as_ref())
    }
}

/// Who has to have read everything before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    AfterClient,
    AfterBoth,
}

enum Event {
    Device(Heard),
    Client(Heard),
    Guest(Uuid, Heard),
    /// Everything that was to be said at the end was read.
    Flushed,
}

/// What a stream is made of.
pub(super) struct Parts {
    pub(super) session: Arc<Session>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) place: Place,
    pub(super) device: Leg,
    pub(super) client: Leg,
    /// Of the client's window.
    pub(super) size: Size,
    pub(super) gate: Gate,
    /// Bytes to the device, and from it.
    pub(super) metrics: [IntCounter; 2],
}

impl Pump {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { session, recorder, place, device, client, size, gate, metrics } = parts;
        let flow = match &session.facts.target {
            Target::Terminal => Flow::Terminal { screen: Screen::default(), size, told: size },
            Target::Forward(_) => Flow::Forward { to_device: Meter::default(), from_device: Meter::default() },
            Target::File(target) => Flow::File { target: target.clone(), meter: Meter::default() },
        };
        let (guests, last, is_unrecorded) = (Vec::new(), None, Cell::new(false));
        Self { session, recorder, place, device, client, guests, flow, gate, last, turn: 0, is_unrecorded, metrics }
    }

    /// Until its end, whoever brings that about. The sockets are closed when this returns.
    pub(super) async fn run(mut self) -> End {
        if let Target::Forward(target) = &self.session.facts.target {
            let (connection, host, port) = (self.place.number, target.host.clone(), target.port);
            self.note(&Entry::ConnectionOpened { connection, host, port });
        }
        let end = self.pump().await;
        self.account();
        self.close(&end).await;
        end
    }

    async fn pump(&mut self) -> End {
        let (session, recorder) = (Arc::clone(&self.session), Arc::clone(&self.recorder));
        let mut ended = pin!(session.ended());
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.reset();
        loop {
            if self.is_unrecorded.get() {
                return End::Unrecorded;
            }
            let closing = match (&self.last, &self.flow) {
                (None, _) => Closing::No,
                (Some(_), Flow::Forward { .. }) => Closing::AfterBoth,
                (Some(_), Flow::Terminal { .. } | Flow::File { .. }) => Closing::AfterClient,
            };
            // What is not recorded does not happen: a terminal that says more than can be written is slowed down.
            let has_room = recorder.room().now_or_never().is_some();
            let end = tokio::select! {
                biased;
                ending = &mut ended => return End::Cut(ending),
                word = self.place.words.recv() => {
                    if let Some(word) = word {
                        self.hear_word(word);
                    }
                    None
                }
                () = recorder.room(), if !has_room => None,
                _ = pings.tick() => self.ping(),
                event = poll_fn(|context| {
                    if self.session.end_if_over() {
                        // Whoever keeps it may be later than what has just come. The end wakes this task.
                        return Poll::Pending;
                    }
                    ready!(self.gate.poll_open(context));
                    let guests = &mut self.guests;
                    Self::poll(context, &mut self.device, &mut self.client, guests, &mut self.turn, closing, has_room)
                }) => self.take(event),
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Says what waits, and listens where there is room for what is heard.
    fn poll(
        context: &mut Context<'_>,
        device: &mut Leg,
        client: &mut Leg,
        guests: &mut [Guest],
        turn: &mut usize,
        closing: Closing,
        has_room: bool,
    ) -> Poll<Event> {
        let device_free = match device.poll_say(context) {
            Poll::Ready(Err(Gone)) if closing == Closing::No => return Poll::Ready(Event::Device(Heard::Gone)),
            Poll::Ready(Err(Gone)) => true,
            said @ (Poll::Ready(Ok(())) | Poll::Pending) => said.is_ready(),
        };
        let client_free = match client.poll_say(context) {
            Poll::Ready(Err(Gone)) => return Poll::Ready(Event::Client(Heard::Gone)),
            said @ (Poll::Ready(Ok(())) | Poll::Pending) => said.is_ready(),
        };
        for guest in &mut *guests {
            if let Poll::Ready(Err(Gone)) = guest.leg.poll_say(context) {
                return Poll::Ready(Event::Guest(guest.seat.id, Heard::Gone));
            }
        }
        match closing {
            Closing::No => {}
            Closing::AfterClient | Closing::AfterBoth => {
                let is_flushed = client_free && (device_free || closing == Closing::AfterClient);
                return if is_flushed { Poll::Ready(Event::Flushed) } else { Poll::Pending };
            }
        }
        if client_free
            && has_room
            && let Poll::Ready(heard) = device.poll_hear(context)
        {
            return Poll::Ready(Event::Device(heard));
        }
        if device_free {
            let speakers = guests.len() + 1;
            for speaker in (0..speakers).map(|place| (place + *turn) % speakers) {
                let heard = match guests.get_mut(speaker) {
                    Some(guest) => guest.leg.poll_hear(context).map(|heard| Event::Guest(guest.seat.id, heard)),
                    None => client.poll_hear(context).map(Event::Client),
                };
                if heard.is_ready() {
                    *turn = speaker + 1;
                    return heard;
                }
            }
        }
        Poll::Pending
    }

    fn take(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Device(Heard::Bytes(bytes)) => self.device_sends(bytes),
            Event::Device(Heard::Control(control)) => self.device_says(control),
            Event::Device(Heard::Gone) => Some(End::DeviceGone),
            Event::Device(Heard::Broken) => Some(End::Broken(Party::Device)),
            Event::Client(Heard::Bytes(bytes)) => self.client_sends(bytes),
            Event::Client(Heard::Control(control)) => self.client_says(control),
            Event::Client(Heard::Gone) => Some(self.last.take().unwrap_or(End::ClientGone)),
            Event::Client(Heard::Broken) => Some(End::Broken(Party::Client)),
            Event::Guest(id, heard) => {
                self.guest_says(id, heard);
                None
            }
            Event::Flushed => self.last.take(),
        }
    }

    fn device_sends(&mut self, bytes: Bytes) -> Option<End> {
        let count = bytes.len() as u64;
        match &mut self.flow {
            Flow::Terminal { screen, .. } => {
                if self.recorder.output(self.session.elapsed(), &bytes).is_err() {
                    return Some(End::Unrecorded);
                }
                screen.show(&bytes);
                let behind: Vec<_> =
                    self.guests.iter_mut().filter_map(|guest| (!guest.show(&bytes)).then_some(guest.seat.id)).collect();
                for guest in behind {
                    self.send_away(guest, "too_slow", "you do not read what is shown fast enough");
                }
            }
            Flow::Forward { from_device, .. } => from_device.take(&bytes),
            Flow::File { target, meter } if target.direction == Direction::FromDevice => meter.take(&bytes),
            Flow::File { .. } => return Some(End::Broken(Party::Device)),
        }
        self.session.from_device.fetch_add(count, Ordering::Relaxed);
        self.metrics[1].inc_by(count);
        self.session.moved(Instant::now());
        self.client.pass(bytes);
        None
    }

    fn client_sends(&mut self, bytes: Bytes) -> Option<End> {
        let count = bytes.len() as u64;
        match &mut self.flow {
            Flow::Terminal { .. } => {}
            Flow::Forward { to_device, .. } => to_device.take(&bytes),
            Flow::File { target, meter } if target.direction == Direction::ToDevice => {
                meter.take(&bytes);
                if target.size.is_none_or(|size| meter.bytes > size) {
                    return Some(End::Broken(Party::Client));
                }
            }
            Flow::File { .. } => return Some(End::Broken(Party::Client)),
        }
        self.session.to_device.fetch_add(count, Ordering::Relaxed);
        self.metrics[0].inc_by(count);
        self.session.moved(Instant::now());
        self.device.pass(bytes);
        None
    }

    fn device_says(&mut self, control: Control) -> Option<End> {
        match (&mut self.flow, &control) {
            (_, Control::Ready) => {}
            (_, Control::Failed { code, message }) => {
                let (code, message) = (code.clone(), message.clone());
                self.session.note_result("failed", json!(code));
                self.note(&Entry::Failed { code, message });
                self.last = Some(End::Failed);
            }
            (Flow::Terminal { .. }, Control::Exit { status, signal }) => {
                let (status, signal) = (*status, signal.clone());
                self.session.note_result("exit_status", json!(status));
                self.session.note_result("exit_signal", json!(signal));
                for guest in &mut self.guests {
                    guest.leg.pass_control(control.clone());
                }
                self.note(&Entry::Exited { status, signal });
                self.last = Some(End::Done);
            }
            (Flow::Forward { to_device, from_device }, Control::Eof) => {
                from_device.is_over = true;
                if to_device.is_over {
                    self.last = Some(End::Done);
                }
            }
            (Flow::File { target, .. }, Control::File { size, mode }) if target.direction == Direction::FromDevice => {
                let (path, size, mode) = (target.path.clone(), *size, *mode);
                self.session.note_result("size", json!(size));
                self.note(&Entry::FileBegun { direction: "from_device".to_owned(), path, size, mode });
            }
            (Flow::File { .. }, Control::Done { size, sha256 }) => {
                self.session.note_result("device_size", json!(size));
                self.session.note_result("device_sha256", json!(sha256.to_ascii_lowercase()));
                self.last = Some(End::Done);
            }
            // Of another kind of stream.
            _ => return Some(End::Broken(Party::Device)),
        }
        self.client.pass_control(control);
        None
    }

    fn client_says(&mut self, control: Control) -> Option<End> {
        match (&mut self.flow, &control) {
            (Flow::Terminal { size, .. }, Control::Resize { columns, rows }) => {
                *size = (*columns, *rows);
                self.fit();
                return None;
            }
            (Flow::Terminal { .. }, Control::Signal { .. } | Control::Eof) => {}
            (Flow::Forward { to_device, from_device }, Control::Eof) => {
                to_device.is_over = true;
                if from_device.is_over {
                    self.last = Some(End::Done);
                }
            }
            (Flow::File { target, .. }, Control::File { size, mode })
                if target.direction == Direction::ToDevice && target.size == Some(*size) =>
            {
                let (path, size, mode) = (target.path.clone(), *size, *mode);
                self.session.note_result("size", json!(size));
                self.note(&Entry::FileBegun { direction: "to_device".to_owned(), path, size, mode });
            }
            (Flow::File { target, meter }, Control::Done { size, sha256 })
                if target.direction == Direction::ToDevice =>
            {
                meter.is_over = true;
                self.session.note_result("client_size", json!(size));
                self.session.note_result("client_sha256", json!(sha256.to_ascii_lowercase()));
            }
            _ => return Some(End::Broken(Party::Client)),
        }
        self.device.pass_control(control);
        None
    }

    fn guest_says(&mut self, id: Uuid, heard: Heard) {
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.seat.id == id) else { return };
        match heard {
            Heard::Bytes(bytes) if guest.operates() => {
                let count = bytes.len() as u64;
                self.session.to_device.fetch_add(count, Ordering::Relaxed);
                self.metrics[0].inc_by(count);
                self.session.moved(Instant::now());
                self.device.pass(bytes);
            }
            Heard::Control(control @ Control::Signal { .. }) if guest.operates() => self.device.pass_control(control),
            Heard::Control(Control::Resize { columns, rows }) => {
                guest.size = Some((columns, rows));
                self.fit();
            }
            Heard::Gone => {
                self.part(id);
            }
            Heard::Bytes(_) | Heard::Control(_) | Heard::Broken => {
                self.send_away(id, "not_allowed", "you may watch, and nothing else");
            }
        }
    }

    fn hear_word(&mut self, word: Word) {
        match word {
            Word::Say(control) => {
                if let Control::Warning { seconds_left, reason } = &control {
                    self.note(&Entry::Warned { seconds_left: *seconds_left, reason: reason.clone() });
                }
                self.tell(&control);
            }
            Word::Join(guest) => self.join(*guest),
            Word::Part(id) => self.send_away(id, "not_allowed", "you may not be there any more"),
        }
    }

    /// Tells everybody.
    fn tell(&mut self, control: &Control) {
        self.device.tell(control);
        self.client.tell(control);
        for guest in &mut self.guests {
            guest.leg.tell(control);
        }
    }

    fn join(&mut self, mut guest: Guest) {
        let Flow::Terminal { screen, told, .. } = &self.flow else { return };
        guest.welcome(screen, *told);
        let (name, mode) = (guest.name.clone(), guest.mode);
        let mode_name = if mode == Mode::Operate { "operate" } else { "watch" };
        self.guests.push(guest);
        self.note(&Entry::Joined { name: name.clone(), mode: mode_name.to_owned() });
        self.tell(&Control::Joined { name, mode });
        self.fit();
    }

    /// A guest has gone, or is to go.
    fn part(&mut self, id: Uuid) -> Option<Guest> {
        let place = self.guests.iter().position(|guest| guest.seat.id == id)?;
        let guest = self.guests.swap_remove(place);
        let name = guest.name.clone();
        self.note(&Entry::Left { name: name.clone() });
        self.tell(&Control::Left { name });
        self.fit();
        Some(guest)
    }

    fn send_away(&mut self, id: Uuid, reason: &str, message: &str) {
        if let Some(guest) = self.part(id) {
            let last = Control::Closed { reason: reason.to_owned(), message: message.to_owned() };
            // It has a place among those whom the end of the session waits for.
            tokio::spawn(async move {
                let Guest { leg, seat, .. } = guest;
                leg.close(Some(last), cut()).await;
                drop(seat);
            });
        }
    }

    /// The terminal is as large as the smallest window of those who type.
    fn fit(&mut self) {
        let Flow::Terminal { size, told, .. } = &mut self.flow else { return };
        let guests = self.guests.iter().filter(|guest| guest.operates()).filter_map(|guest| guest.size);
        let (columns, rows) = guests.fold(*size, |least, size| (least.0.min(size.0), least.1.min(size.1)));
        if *told != (columns, rows) {
            *told = (columns, rows);
            self.device.tell(&Control::Resize { columns, rows });
            self.client.tell(&Control::Screen { columns, rows });
            for guest in &mut self.guests {
                guest.leg.tell(&Control::Screen { columns, rows });
            }
            if self.recorder.resize(self.session.elapsed(), columns, rows).is_err() {
                self.is_unrecorded.set(true);
            }
        }
    }

    fn ping(&mut self) -> Option<End> {
        let now = Instant::now();
        let silent: Vec<_> =
            self.guests.iter_mut().filter_map(|guest| (!guest.leg.ping(now)).then_some(guest.seat.id)).collect();
        for guest in silent {
            self.part(guest);
        }
        let (device, client) = (self.device.ping(now), self.client.ping(now));
        match (device, client) {
            (true, true) => None,
            (false, _) => Some(End::DeviceGone),
            (true, false) => Some(End::ClientGone),
        }
    }

    /// What cannot be recorded ends the session.
    fn note(&self, entry: &Entry) {
        if self.recorder.note(self.session.elapsed(), entry).is_err() {
            self.is_unrecorded.set(true);
        }
    }

    /// What it came to, as far as the node has seen it.
    fn account(&self) {
        match &self.flow {
            Flow::Terminal { .. } => {}
            Flow::Forward { to_device, from_device } => self.note(&Entry::ConnectionClosed {
                connection: self.place.number,
                bytes_to_device: to_device.bytes,
                bytes_from_device: from_device.bytes,
                sha256_to_device: to_device.sha256(),
                sha256_from_device: from_device.sha256(),
            }),
            Flow::File { meter, .. } => {
                let sha256 = meter.sha256();
                self.session.note_result("bytes", json!(meter.bytes));
                self.session.note_result("sha256", json!(sha256));
                self.note(&Entry::FileDone { bytes: meter.bytes, sha256 });
            }
        }
    }

    /// All at once: nobody's end waits for another's.
    async fn close(self, end: &End) {
        let Self { session, device, client, guests, .. } = self;
        let last = match end {
            // The device's last word was passed on.
            End::Done | End::Failed => None,
            End::ClientGone | End::DeviceGone | End::Broken(_) | End::Unrecorded | End::Cut(_) => {
                Some(closed(end.reason()))
            }
        };
        let guests = join_all(guests.into_iter().map(|guest| {
            let last = last.clone();
            async move {
                let Guest { leg, seat, .. } = guest;
                leg.close(last, cut()).await;
                drop(seat);
            }
        }));
        // What was said to them before may still be under way. Of a terminal and a file, the device said the last word itself.
        let is_own_end = matches!(end, End::Done | End::Failed);
        let is_forward = matches!(session.facts.target, Target::Forward(_));
        let is_late = matches!(end, End::Cut(ending) if ending.over_at.elapsed() > LATE_AFTER);
        let close = async |leg: Leg, is_slow: bool| {
            if is_late && leg.is_held_up() {
                return leg.abort();
            }
            let patience = async {
                if let End::Cut(ending) = end
                    && ending.reason.is_cut()
                {
                    cut_since(ending.over_at).await;
                } else if is_slow {
                    drained(&session).await;
                } else {
                    cut().await;
                }
            };
            leg.close(last.clone(), patience).await;
        };
        tokio::join!(close(device, is_own_end && is_forward), close(client, is_own_end), guests);
    }
}
