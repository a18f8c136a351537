//! Sends what people outside are to be told: takes from the outbox what is due, tries it, and writes what came of it. Nodes share
//! the work, by leases: what a node had taken that died is due again when its lease is over.
//!
//! Receivers are lanes beside one another: one webhook each, and the mail server. A lane has a few places, a webhook that fails
//! has one, and those that fail never have all places together: who is slow, or hangs, holds up itself.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::{Id, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::{Bus, Heard, Hint};
use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;
use crate::notice::Notices;
use crate::store::notice::{
    DueNotice, Lane, Names, Room, Settled, notice_claim, notice_names, notice_settle_in_txn, notice_trim,
    webhook_give_up_in_txn,
};
use crate::store::{Store, StoreError, Visibility, single};

/// What another node has put into the outbox, or has to be tried again, is seen within this time; what this one has, at once.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is forgotten what is too old.
const TRIM_EVERY: Duration = Duration::from_secs(3600);
/// What is being sent at once. Each takes a connection, and up to the longest event of memory (about 50 kB).
const FLYING_MAX: usize = 128;
/// Of those, to one webhook that works, or to the mail server.
const FLYING_PER_LANE_MAX: i64 = 4;
/// Of those, to webhooks that fail.
const FLYING_FAILING_MAX: usize = 64;
/// How long it may take to write what came of an attempt, beyond which somebody else tries again.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);
/// For the metrics of failed tasks.
const NAME: &str = "notice";

/// The outbox of all nodes, and this node's hands.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) node: String,
}

/// What this node is sending.
#[derive(Debug, Default)]
struct Flying {
    tasks: JoinSet<()>,
    by_task: HashMap<Id, Flight>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    lane: Lane,
    is_failing: bool,
}

impl Outbox {
    /// Until the soft stop; what is being sent then may end until the hard one.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let (mut tick, mut trim) = (interval(EVERY), interval(TRIM_EVERY));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hints = self.bus.listen();
        let mut flying = Flying::default();
        loop {
            tokio::select! {
                () = shutdown.soft.cancelled() => break,
                _ = tick.tick() => {}
                _ = trim.tick() => {
                    self.trim().await;
                    continue;
                }
                () = hinted(&mut hints) => {}
                () = flying.landed(), if !flying.is_empty() => {}
            }
            self.take_off(&mut flying).await;
        }
        while !flying.is_empty() {
            tokio::select! {
                () = shutdown.hard.cancelled() => return,
                () = flying.landed() => {}
            }
        }
    }

    /// Sends whatever is due and has room.
    async fn take_off(&self, flying: &mut Flying) {
        while let Some(room) = flying.room() {
            let lease = self.notices.within() + SETTLE_WITHIN;
            let lanes = flying.lanes();
            let claimed = async {
                let has_mail = self.notices.has_mail();
                single!(self.store, |connection| notice_claim(connection, room, &lanes, has_mail, lease))
            };
            match self.store.within(claimed).await {
                Ok(due) if due.is_empty() => return,
                Ok(due) => due.into_iter().for_each(|notice| flying.send(self.clone(), notice)),
                Err(error) => return self.failed(&error, "cannot read what is to be told outside"),
            }
        }
    }

    /// One attempt.
    async fn deliver(&self, notice: DueNotice) {
        if let Err(error) = self.try_to_deliver(&notice).await {
            self.failed(&error, "cannot write what came of telling something outside: it will be told again");
        }
    }

    async fn try_to_deliver(&self, notice: &DueNotice) -> Result<(), StoreError> {
        let names = self.names(notice).await?;
        // Whatever a receiver's name or answer does to a library: the others are still told, and this one is given up some day.
        let attempt = AssertUnwindSafe(self.notices.attempt(notice, &names)).catch_unwind().await;
        let attempt = attempt.unwrap_or_else(|_| Notices::panicked(notice));
        let settled = async {
            let mut transaction = self.store.begin(Visibility::All).await?;
            let (settling, give_up) = (attempt.settling, self.notices.give_up());
            let settled = notice_settle_in_txn(&mut transaction, notice, settling, &attempt.result, give_up).await?;
            let is_over = settled == Settled::GivenUp;
            let disabled = match notice.webhook() {
                Some(webhook) if is_over && attempt.is_gone => {
                    let reason = "the receiver answered that it is gone (410)";
                    webhook_give_up_in_txn(&mut transaction, webhook, Duration::ZERO, reason, &self.node).await?
                }
                Some(webhook) if is_over => {
                    let (after, reason) = (self.notices.disable_after(), "nothing could be delivered for too long");
                    webhook_give_up_in_txn(&mut transaction, webhook, after, reason, &self.node).await?
                }
                Some(_) | None => None,
            };
            self.store.commit(transaction).await?;
            Ok((settled, disabled))
        };
        let (settled, disabled) = self.store.within(settled).await?;
        if let Some(outcome) = outcome(settled) {
            self.metrics.notices.with_label_values(&[outcome]).inc();
        }
        if settled == Settled::GivenUp {
            tracing::warn!(notice = %notice.id, event = notice.event, result = ?attempt.result, "given up telling somebody outside");
        }
        if let Some(webhook) = disabled {
            tracing::warn!(webhook = %webhook.id, result = ?attempt.result, "disabled a webhook to which nothing can be delivered");
            self.bus.send(Hint::NoticesDue);
        }
        Ok(())
    }

    async fn names(&self, notice: &DueNotice) -> Result<Names, StoreError> {
        let (ids, Some(tenant)) = (Notices::named(notice), notice.tenant) else { return Ok(Names::default()) };
        if notice.webhook().is_some() {
            return Ok(Names::default());
        }
        self.store.within(async { single!(self.store, |connection| notice_names(connection, tenant, &ids)) }).await
    }

    async fn trim(&self) {
        let keep_days = self.notices.keep_days();
        let trimmed = async { single!(self.store, |connection| notice_trim(connection, keep_days)) };
        if let Err(error) = self.store.within(trimmed).await {
            self.failed(&error, "cannot forget what was told long ago");
        }
    }

    fn failed(&self, error: &StoreError, message: &'static str) {
        self.metrics.task_failures.with_label_values(&[NAME]).inc();
        tracing::warn!(error = error as &dyn std::error::Error, "{message}");
    }
}

impl Flying {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn send(&mut self, outbox: Outbox, notice: DueNotice) {
        let flight = Flight { lane: notice.lane(), is_failing: notice.is_failing };
        let task = self.tasks.spawn(async move { outbox.deliver(notice).await });
        self.by_task.insert(task.id(), flight);
    }

    /// Waits for one to be over, however it ended.
    async fn landed(&mut self) {
        let Some(landed) = self.tasks.join_next_with_id().await else { return };
        let id = match landed {
            Ok((id, ())) => id,
            Err(error) => error.id(),
        };
        self.by_task.remove(&id);
    }

    /// What else may be sent. `None`: nothing.
    fn room(&self) -> Option<Room> {
        let failing = self.by_task.values().filter(|flight| flight.is_failing).count();
        let free = FLYING_MAX.checked_sub(self.by_task.len()).filter(|free| *free > 0)?;
        let total = i64::try_from(free).expect("at most FLYING_MAX");
        Some(Room { total, per_lane: FLYING_PER_LANE_MAX, has_failing: failing < FLYING_FAILING_MAX })
    }

    fn lanes(&self) -> HashMap<Lane, i64> {
        let mut lanes = HashMap::new();
        for flight in self.by_task.values() {
            *lanes.entry(flight.lane).or_default() += 1;
        }
        lanes
    }
}

/// Waits for a hint that something is to be sent.
async fn hinted(hints: &mut crate::bus::Listener) {
    loop {
        match hints.hear().await {
            Heard::Hint(Hint::NoticesDue) | Heard::Everything => return,
            Heard::Hint(_) => {}
            // The tick still comes.
            Heard::Closed => std::future::pending().await,
        }
    }
}

/// For the metrics.
fn outcome(settled: Settled) -> Option<&'static str> {
    match settled {
        Settled::Delivered => Some("delivered"),
        Settled::Waiting => Some("retried"),
        Settled::GivenUp => Some("given_up"),
        Settled::Elsewhere => None,
    }
}
