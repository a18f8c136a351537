//! Who may begin a handshake, and when. Stock clients come again every two seconds, without end and without jitter, so a node
//! that was away is dialled by all of its clients at once, and a client that is refused is back at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::link::limit::Source;

/// Sources whose refusals are remembered. Those of more are forgotten at once.
const SOURCES_MAX: usize = 65_536;
/// How long the first refusal delays the next handshake of its source; doubled with each, up to [`DELAY_MAX`].
const DELAY: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A source that was not refused for so long begins anew.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// How often sources that wait no more are looked for while the memory is full: a look goes over all of it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Turns of handshakes: so many at the same time, first come, first served. What waits has its connection and nothing else.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

/// A handshake's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }

    pub(super) async fn take(&self) -> Turn {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        Turn(permit.expect("nobody closes the semaphore"))
    }
}

/// Sources whose handshakes were refused lately.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<Sources>);

#[derive(Debug, Default)]
struct Sources {
    refusals: HashMap<Source, Refusals>,
    looked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Refusals {
    count: u32,
    last_at: Instant,
}

impl Refused {
    /// How long the next handshake of this source is to wait.
    pub(super) fn delay(&self, remote: IpAddr, now: Instant) -> Duration {
        let Some(refusals) = self.sources().refusals.get(&Source::from(remote)).copied() else { return Duration::ZERO };
        let age = now.duration_since(refusals.last_at);
        if age >= FORGET_AFTER {
            return Duration::ZERO;
        }
        let delay = DELAY.saturating_mul(1_u32.checked_shl(refusals.count.saturating_sub(1)).unwrap_or(u32::MAX));
        delay.min(DELAY_MAX).saturating_sub(age)
    }

    pub(super) fn note(&self, remote: IpAddr, now: Instant) {
        let mut sources = self.sources();
        if !sources.has_room_for(Source::from(remote), now) {
            return;
        }
        let refusals = sources.refusals.entry(Source::from(remote)).or_insert(Refusals { count: 0, last_at: now });
        let is_old = now.duration_since(refusals.last_at) >= FORGET_AFTER;
        *refusals = Refusals { count: if is_old { 1 } else { refusals.count.saturating_add(1) }, last_at: now };
    }

    /// A client of this source was let in: it is no stranger's.
    pub(super) fn forgive(&self, remote: IpAddr) {
        self.sources().refusals.remove(&Source::from(remote));
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        // Consistent after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    fn has_room_for(&mut self, source: Source, now: Instant) -> bool {
        if self.refusals.len() < SOURCES_MAX || self.refusals.contains_key(&source) {
            return true;
        }
        if self.looked_at.is_none_or(|at| now.duration_since(at) >= LOOK_EVERY) {
            self.looked_at = Some(now);
            self.refusals.retain(|_, refusals| now.duration_since(refusals.last_at) < DELAY_MAX);
        }
        self.refusals.len() < SOURCES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_was_refused_waits_longer_each_time_but_never_long() {
        let (refused, mut now) = (Refused::default(), Instant::now());
        assert_eq!(refused.delay(address("192.0.2.1"), now), Duration::ZERO);
        for seconds in [1, 2, 4, 8, 10, 10] {
            refused.note(address("192.0.2.1"), now);
            assert_eq!(refused.delay(address("192.0.2.1"), now), Duration::from_secs(seconds));
            assert_eq!(refused.delay(address("192.0.2.2"), now), Duration::ZERO);
            now += Duration::from_secs(2);
        }
        assert_eq!(refused.delay(address("192.0.2.1"), now), Duration::from_secs(8), "it has waited for a part of it");
        assert_eq!(refused.delay(address("192.0.2.1"), now + FORGET_AFTER), Duration::ZERO);
        refused.forgive(address("192.0.2.1"));
        assert_eq!(refused.delay(address("192.0.2.1"), now), Duration::ZERO);
    }

    #[test]
    fn no_more_sources_are_remembered_than_there_is_room_for() {
        let (refused, now) = (Refused::default(), Instant::now());
        for n in 0..=u32::try_from(SOURCES_MAX).unwrap() {
            refused.note(IpAddr::from(Ipv4Addr::from_bits(n)), now);
        }
        assert_eq!(refused.sources().refusals.len(), SOURCES_MAX);
        refused.note(address("0.0.0.7"), now);
        assert_eq!(refused.delay(address("0.0.0.7"), now), 2 * DELAY, "who is known stays so");
        // The memory was looked through a moment ago, in vain.
        refused.sources().looked_at = Some(now + DELAY_MAX);
        refused.note(address("192.0.2.1"), now + DELAY_MAX);
        assert_eq!(refused.sources().refusals.len(), SOURCES_MAX);
        refused.note(address("192.0.2.1"), now + DELAY_MAX + LOOK_EVERY);
        assert_eq!(refused.sources().refusals.len(), 1, "those that wait no more make room");
    }

    #[tokio::test]
    async fn turns_are_given_in_the_order_in_which_they_were_asked_for() {
        let turns = Arc::new(Turns::new(1));
        let first = turns.take().await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for n in 0..4 {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let _turn = turns.take().await;
                order.lock().unwrap().push(n);
            }));
            // On one thread: it has asked when this comes back.
            tokio::task::yield_now().await;
        }
        assert!(order.lock().unwrap().is_empty());
        drop(first);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    }
}
