//! One session, as the node that serves it knows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, GrantId, OpeningId, PersonId, SupportSessionId, TenantId};
use cloudlink_proto::link::message::StreamRequest;
use cloudlink_proto::stream::{Control, Mode};
use serde_json::{Map, Value};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::freshness::Freshness;
use super::guest::Guest;
use crate::model::support_session::{EndReason, Target};
use crate::recording::{Health, Recorder};

/// Connections of one forward at once.
pub(crate) const STREAMS_MAX: usize = 64;
/// Those who may be there beside the operator who opened the session, at once.
pub(crate) const GUESTS_MAX: usize = 8;
/// Words that wait for one stream. What comes when it is full is left out.
const WORDS_MAX: usize = 32;

/// How a session has ended, as its node has learned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    /// When it had to be over.
    pub(crate) over_at: Instant,
    /// When the node learned of it.
    pub(crate) at: Instant,
    /// Until when something could pass: the same, unless the node let nothing pass because it knew too little.
    pub(crate) passed_until: Instant,
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) reason: EndReason,
    /// Since when.
    pub(crate) over_at: Instant,
    /// Since when nothing passes, for lack of what has just been learned.
    pub(crate) silent_since: Option<Instant>,
}

/// What a stream is told.
#[derive(Debug)]
pub(super) enum Word {
    Say(Control),
    Join(Box<Guest>),
    /// This guest may not be there any more.
    Part(Uuid),
}

/// What is known of a session when it begins.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: SupportSessionId,
    pub(crate) tenant: TenantId,
    pub(crate) device: DeviceId,
    pub(crate) grant: GrantId,
    pub(crate) opened_by: PersonId,
    /// Of that person.
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) reason: String,
    pub(crate) grant_statement: Option<String>,
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) facts: Facts,
    pub(super) opened_at: Instant,
    freshness: Arc<Freshness>,
    deadline: watch::Sender<Instant>,
    /// The same, in milliseconds from `opened_at`: to be looked at with each message.
    deadline_ms: AtomicU64,
    ending: watch::Sender<Option<Ending>>,
    /// Whoever holds a socket of the session holds a token of this.
    pub(super) streams: TaskTracker,
    places: Mutex<Places>,
    /// Whether the one stream of a terminal or a file was taken.
    is_taken: AtomicBool,
    /// From the first stream on.
    pub(super) recorder: AsyncMutex<Option<Arc<Recorder>>>,
    health: Mutex<Option<watch::Receiver<Health>>>,
    /// Its recording has begun.
    pub(super) begun: Notify,
    /// The port that is open for it.
    pub(super) opening: AsyncMutex<Option<OpeningId>>,
    pub(super) to_device: AtomicU64,
    pub(super) from_device: AtomicU64,
    /// When a byte moved last: milliseconds from `opened_at`.
    moved_ms: AtomicU64,
    result: Mutex<Map<String, Value>>,
}

#[derive(Debug, Default)]
struct Places {
    streams: HashMap<u32, mpsc::Sender<Word>>,
    /// Connections that there ever were.
    count: u32,
    /// Those who have joined, or are about to.
    guests: HashMap<Uuid, Mode>,
    /// What the device was asked for, of streams that it has brought.
    asked: HashMap<u32, StreamRequest>,
}

/// The right to one stream of a session.
#[derive(Debug)]
pub(super) struct Place {
    session: Arc<Session>,
    pub(super) number: u32,
    pub(super) words: mpsc::Receiver<Word>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.session.places();
        places.streams.remove(&self.number);
        places.asked.remove(&self.number);
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// It has one stream only.
    Taken,
    Full,
}

impl Session {
    /// Nothing of it passes while it is not `freshness` that holds.
    pub(super) fn new(facts: Facts, freshness: Arc<Freshness>) -> Arc<Self> {
        let opened_at = Instant::now();
        Arc::new(Self {
            opened_at,
            freshness,
            deadline: watch::Sender::new(facts.deadline),
            deadline_ms: AtomicU64::new(ms_between(opened_at, facts.deadline)),
            ending: watch::Sender::new(None),
            streams: TaskTracker::new(),
            places: Mutex::default(),
            is_taken: AtomicBool::new(false),
            recorder: AsyncMutex::default(),
            health: Mutex::default(),
            begun: Notify::new(),
            opening: AsyncMutex::default(),
            to_device: AtomicU64::new(0),
            from_device: AtomicU64::new(0),
            moved_ms: AtomicU64::new(0),
            result: Mutex::default(),
            facts,
        })
    }

    /// Ends it. The first reason stays; but what happens only after the grant's end, was ended by that.
    pub(crate) fn end(&self, reason: EndReason, over_at: Instant) {
        self.end_because(Cause { reason, over_at, silent_since: None });
    }

    pub(crate) fn end_because(&self, cause: Cause) {
        let (now, deadline) = (Instant::now(), *self.deadline.borrow());
        let Cause { reason, over_at, silent_since } = cause;
        let is_late = !reason.is_cut() && now >= deadline;
        let (reason, over_at) = if is_late { (EndReason::GrantEnded, deadline) } else { (reason, over_at) };
        let silent_since = [silent_since, self.freshness.silent_since(now)].into_iter().flatten().min();
        let passed_until = silent_since.map_or(now, |since| since.min(now));
        self.ending.send_if_modified(|ending| {
            let is_first = ending.is_none();
            if is_first {
                *ending = Some(Ending { reason, over_at, at: now, passed_until });
            }
            is_first
        });
    }

    pub(crate) fn ending(&self) -> Option<Ending> {
        *self.ending.borrow()
    }

    pub(super) async fn ended(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        let ended = ending.wait_for(Option::is_some).await.ok().and_then(|ending| *ending);
        ended.expect("the sender is this session's own, and it waited for some")
    }

    /// Ends it if its grant has ended by now. Says whether.
    pub(super) fn end_if_over(&self) -> bool {
        let is_over = ms_between(self.opened_at, Instant::now()) >= self.deadline_ms.load(Ordering::Relaxed);
        if is_over {
            self.end(EndReason::GrantEnded, *self.deadline.borrow());
        }
        is_over
    }

    pub(super) fn deadline(&self) -> watch::Receiver<Instant> {
        self.deadline.subscribe()
    }

    /// Its grant ends then. An end that only seems to be another, by the time that answers take, is none: but never later. Says
    /// whether it was moved to a later time.
    pub(crate) fn set_deadline(&self, deadline: Instant) -> bool {
        const SAME_WITHIN: Duration = Duration::from_millis(500);
        let mut is_later = false;
        self.deadline.send_if_modified(|before| {
            is_later = deadline > *before + SAME_WITHIN;
            let is_other = deadline < *before || is_later;
            if is_other {
                *before = deadline;
                self.deadline_ms.store(ms_between(self.opened_at, deadline), Ordering::Relaxed);
            }
            is_other
        });
        is_later
    }

    /// The device has brought what it was asked for.
    pub(super) fn note_asked(&self, number: u32, request: StreamRequest) {
        self.places().asked.insert(number, request);
    }

    /// What the device was asked for, of streams that go on.
    pub(super) fn asked(&self) -> Vec<StreamRequest> {
        self.places().asked.values().cloned().collect()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Bytes have moved.
    pub(super) fn moved(&self, now: Instant) {
        self.moved_ms.store(ms_between(self.opened_at, now), Ordering::Relaxed);
    }

    pub(super) fn moved_at(&self) -> Instant {
        self.opened_at + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    /// Its recording has begun, and is watched from here on.
    pub(super) fn begin(&self, health: watch::Receiver<Health>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(health);
        self.begun.notify_one();
    }

    /// Whether its recording goes on, once it has begun.
    pub(super) fn health(&self) -> Option<watch::Receiver<Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes something that it came to.
    pub(super) fn note_result(&self, name: &str, value: Value) {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value);
    }

    pub(super) fn result(&self) -> Map<String, Value> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections that there ever were.
    pub(super) fn streams_ever(&self) -> u32 {
        self.places().count
    }

    /// Takes a place for one more stream.
    pub(super) fn take_place(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let is_single = !matches!(self.facts.target, Target::Forward(_));
        if is_single && self.is_taken.swap(true, Ordering::Relaxed) {
            return Err(NoPlace::Taken);
        }
        let mut places = self.places();
        if places.streams.len() >= STREAMS_MAX {
            return Err(NoPlace::Full);
        }
        places.count += 1;
        let number = places.count;
        let (sender, words) = mpsc::channel(WORDS_MAX);
        places.streams.insert(number, sender);
        drop(places);
        Ok(Place { session: Arc::clone(self), number, words })
    }

    /// Tells every stream.
    pub(super) fn say(&self, control: &Control) {
        for stream in self.places().streams.values() {
            let _ = stream.try_send(Word::Say(control.clone()));
        }
    }

    /// Whether its one stream is there, or about to be.
    pub(crate) fn is_taken(&self) -> bool {
        self.is_taken.load(Ordering::Relaxed)
    }

    /// Keeps a place for a guest. False: there are too many.
    pub(super) fn admit_guest(&self, id: Uuid, mode: Mode) -> bool {
        let mut places = self.places();
        let has_room = places.guests.len() < GUESTS_MAX;
        if has_room {
            places.guests.insert(id, mode);
        }
        has_room
    }

    pub(super) fn dismiss_guest(&self, id: Uuid) {
        self.places().guests.remove(&id);
    }

    /// Who is there beside its operator, and to do what.
    pub(crate) fn guests(&self) -> Vec<(Uuid, Mode)> {
        self.places().guests.iter().map(|(id, mode)| (*id, *mode)).collect()
    }

    /// Hands a guest to the stream. Gives it back if there is none.
    pub(super) async fn join(&self, guest: Box<Guest>) -> Result<(), Box<Guest>> {
        let stream = self.places().streams.values().next().cloned();
        let Some(stream) = stream else { return Err(guest) };
        match stream.reserve().await {
            Ok(place) => {
                place.send(Word::Join(guest));
                Ok(())
            }
            Err(_) => Err(guest),
        }
    }

    /// Sends a guest away.
    pub(crate) fn part(&self, id: Uuid) {
        for stream in self.places().streams.values() {
            let _ = stream.try_send(Word::Part(id));
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Consistent after each statement.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole ones. None, if it is the other way round.
fn ms_between(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(left: Duration) -> Arc<Session> {
        let id = Uuid::from_u128(1);
        let facts = Facts {
            id: SupportSessionId::from_uuid(id),
            tenant: TenantId::from_uuid(id),
            device: DeviceId::from_uuid(id),
            grant: GrantId::from_uuid(id),
            opened_by: PersonId::from_uuid(id),
            name: String::new(),
            target: Target::Terminal,
            reason: String::new(),
            grant_statement: None,
            deadline: Instant::now() + left,
        };
        Session::new(facts, Freshness::new())
    }

    #[tokio::test]
    async fn the_first_reason_stays_unless_the_grant_had_ended_before() {
        let one = session(Duration::from_secs(60));
        one.end(EndReason::Idle, Instant::now());
        one.end(EndReason::GrantRevoked, Instant::now());
        assert_eq!(one.ended().await.reason, EndReason::Idle);
        // A process that was stopped, and goes on after the deadline.
        let other = session(Duration::ZERO);
        let deadline = other.facts.deadline;
        other.end(EndReason::RecordingFailed, Instant::now());
        let ending = other.ended().await;
        assert_eq!((ending.reason, ending.over_at), (EndReason::GrantEnded, deadline));
    }

    #[tokio::test]
    async fn nothing_passed_for_as_long_as_the_node_knew_too_little() {
        let ms = Duration::from_millis;
        let one = session(Duration::from_secs(60));
        let now = Instant::now();
        one.freshness.heard(now);
        one.end(EndReason::GrantRevoked, now);
        let ending = one.ended().await;
        assert!(ending.passed_until == ending.at && ending.at >= now);

        // It was told what it was told last, a second ago.
        let other = session(Duration::from_secs(60));
        let silent_since = Instant::now() - ms(5);
        other.freshness.heard(now);
        let cause = Cause { reason: EndReason::TokenEnded, over_at: silent_since, silent_since: Some(silent_since) };
        other.end_because(cause);
        assert_eq!(other.ended().await.passed_until, silent_since);
        let third = session(Duration::from_secs(60));
        third.end(EndReason::GrantRevoked, Instant::now());
        let ending = third.ended().await;
        assert!(ending.passed_until <= third.opened_at && ending.at >= third.opened_at, "it never was told anything");
    }

    #[tokio::test]
    async fn a_deadline_is_never_later_than_was_said_and_small_delays_are_no_extension() {
        let session = session(Duration::from_secs(60));
        let (deadline, ms) = (session.facts.deadline, Duration::from_millis);
        assert!(!session.set_deadline(deadline + ms(400)));
        assert_eq!(*session.deadline().borrow(), deadline);
        assert!(session.set_deadline(deadline + ms(60_000)));
        assert!(!session.set_deadline(deadline + ms(59_990)));
        assert_eq!(*session.deadline().borrow(), deadline + ms(59_990));
    }
}
