//! How long a node may go on with what it was told.
//!
//! Access can be taken away through another node: this one finds out by asking the database, a few times a second. What it has not
//! been told anew for longer than [`HOLDS_FOR`] may not be so any more: because the database is away, or because the node itself has
//! stood still. Then nothing passes until it knows. A byte comes at most that much, and its own way, after the end of access.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long an answer of the database holds, from when it was asked for. Below the second that is promised, by the time that bytes
/// may take on their way; above the time between two looks, by the time that a busy database may take to answer.
const HOLDS_FOR: Duration = Duration::from_millis(700);

/// When the database last said what may go on.
#[derive(Debug)]
pub(crate) struct Freshness {
    begun: Instant,
    /// From `begun`.
    until_ms: AtomicU64,
    heard: watch::Sender<()>,
}

impl Freshness {
    /// Nothing has been heard yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), until_ms: AtomicU64::new(0), heard: watch::Sender::new(()) })
    }

    /// The database has answered what it was asked then, and everything that it said is done.
    pub(crate) fn heard(&self, asked_at: Instant) {
        let until = asked_at.saturating_duration_since(self.begun) + HOLDS_FOR;
        self.until_ms.fetch_max(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.heard.send_replace(());
    }

    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun).as_millis() < self.until_ms.load(Ordering::Relaxed).into()
    }

    /// Since when nothing passes. None: it does.
    pub(crate) fn silent_since(&self, now: Instant) -> Option<Instant> {
        let until = self.begun + Duration::from_millis(self.until_ms.load(Ordering::Relaxed));
        (!self.holds(now)).then_some(until)
    }

    /// Waits until it holds.
    async fn renewed(&self) {
        let mut heard = self.heard.subscribe();
        while !self.holds(Instant::now()) {
            // The sender is this one's own.
            let _ = heard.changed().await;
        }
    }
}

/// Lets a stream go on while it is known that it may.
pub(crate) struct Gate {
    all: Vec<Arc<Freshness>>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Gate {
    /// Open while all of it holds.
    pub(crate) fn new(all: Vec<Arc<Freshness>>) -> Self {
        Self { all, waiting: None }
    }

    /// Ready when it is open.
    pub(crate) fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let now = Instant::now();
            let Some(stale) = self.all.iter().find(|fresh| !fresh.holds(now)).map(Arc::clone) else {
                return Poll::Ready(());
            };
            self.waiting = Some(Box::pin(async move { stale.renewed().await }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    /// Far below what an answer holds for.
    const SHORT: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn an_answer_holds_from_when_it_was_asked_for() {
        let fresh = Freshness::new();
        let begun = fresh.begun;
        assert!(!fresh.holds(begun), "nothing was heard");
        fresh.heard(begun + SHORT);
        let until = begun + SHORT + HOLDS_FOR;
        assert!(fresh.holds(until - SHORT) && !fresh.holds(until));
        assert_eq!((fresh.silent_since(until - SHORT), fresh.silent_since(until + SHORT)), (None, Some(until)));
        // An older one that comes later takes nothing back.
        fresh.heard(begun);
        assert!(fresh.holds(until - SHORT) && !fresh.holds(until));
    }

    #[tokio::test]
    async fn a_gate_opens_when_all_of_it_was_heard() {
        let (one, other) = (Freshness::new(), Freshness::new());
        let mut gate = Gate::new(vec![Arc::clone(&one), Arc::clone(&other)]);
        one.heard(Instant::now());
        assert!(timeout(SHORT, poll_fn(|context| gate.poll_open(context))).await.is_err(), "half of it was heard");
        let opened = timeout(PATIENCE, poll_fn(|context| gate.poll_open(context)));
        let heard = async {
            for _ in 0..2 {
                one.heard(Instant::now());
                other.heard(Instant::now());
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::join!(opened, heard).0.is_ok());
    }
}
