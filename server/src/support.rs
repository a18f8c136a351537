//! Support sessions: terminals, port forwards and file copies, live, under a grant and never a moment longer.
//!
//! ```text
//! operator ── wss, people port ──> http::v1::support_session::stream ─┐           ┌── wss /v1/stream, device port ── agent
//! guests   ── the same ───────────────────────────────────────────────┤   pump    ├── or inside its tunnel
//!                                                                     └─ recorder ┴── or TCP to a port that is opened for it
//! ```
//!
//! `POST /devices/{id}/support-sessions` makes the row, and `Support::open` the `session::Session`, with a task that keeps it
//! (`life`): its deadline by the monotonic clock, its warnings, its idle time, and the account of it afterwards. The client's
//! WebSocket asks for a stream (`attach`): the device is told over its link to dial `/v1/stream` with a token (`expect`), and
//! once it is there, one task moves the bytes (`pump`) between both `leg`s. When the session ends, every stream of it says
//! why and closes its sockets.
//!
//! `tasks::support` looks in the database for what else ends sessions. With the database away nothing passes, and they end by their
//! deadlines (`freshness`).
//!
//! Start reading at `attach`, then `pump` and `life`.

pub(crate) mod attach;
pub(crate) mod expect;
pub(crate) mod freshness;
pub(crate) mod guest;
mod leg;
mod life;
mod opening;
mod pump;
pub(crate) mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::SupportSessionId;
use tokio::time::sleep;
use uuid::Uuid;

use self::freshness::Freshness;
use self::session::{Facts, Session};
use crate::config;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::storage_key::StorageKey;
use crate::store::single;
use crate::store::support_session::support_guest_leave;

/// How often it is tried to note that a guest has left. In vain: the end of the session notes it, too.
const LEAVE_ATTEMPTS_MAX: usize = 3;
const LEAVE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often a node that stops looks whether its last session is gone.
const EMPTIED_CHECK: Duration = Duration::from_millis(50);

/// The sessions of this node. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Support(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    links: Arc<Shared>,
    config: config::Support,
    key: Arc<StorageKey>,
    shutdown: Shutdown,
    /// Of what the database says of sessions.
    freshness: Arc<Freshness>,
    /// Those that are being made have a place as well, and those that have ended until that is written.
    sessions: Mutex<HashMap<SupportSessionId, Option<Arc<Session>>>>,
}

/// A place among this node's sessions, for one that is being made.
#[derive(Debug)]
pub(crate) struct Reserved {
    support: Support,
    id: SupportSessionId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut sessions = self.support.sessions();
        if sessions.get(&self.id).is_some_and(Option::is_none) {
            sessions.remove(&self.id);
        }
    }
}

impl Support {
    /// Whatever it starts ends with `shutdown`.
    #[must_use]
    pub fn new(links: &Links, config: config::Support, key: Arc<StorageKey>, shutdown: Shutdown) -> Self {
        let (links, freshness, sessions) = (Arc::clone(&links.0), Freshness::new(), Mutex::default());
        Self(Arc::new(Inner { links, config, key, shutdown, freshness, sessions }))
    }

    pub(crate) fn node(&self) -> &str {
        &self.0.links.node
    }

    /// The most sessions of one device.
    pub(crate) fn per_device_max(&self) -> i32 {
        i32::try_from(self.0.config.sessions_per_device_max).unwrap_or(i32::MAX)
    }

    /// Keeps a place for a session. `None`: this node serves as many as it may, or stops.
    pub(crate) fn reserve(&self, id: SupportSessionId) -> Option<Reserved> {
        let mut sessions = self.sessions();
        if self.0.shutdown.soft.is_cancelled() || sessions.len() >= self.0.config.sessions_max as usize {
            return None;
        }
        sessions.insert(id, None);
        drop(sessions);
        Some(Reserved { support: self.clone(), id })
    }

    /// Serves a session that is in the database.
    pub(crate) fn open(&self, reserved: &Reserved, facts: Facts) {
        let session = Session::new(facts, Arc::clone(self.freshness()));
        self.sessions().insert(reserved.id, Some(Arc::clone(&session)));
        self.0.shutdown.tasks.spawn(life::keep(self.clone(), session));
    }

    /// A session that this node serves.
    pub(crate) fn find(&self, id: SupportSessionId) -> Option<Arc<Session>> {
        self.sessions().get(&id)?.clone()
    }

    /// The sessions of this node that go on.
    pub(crate) fn live(&self) -> Vec<Arc<Session>> {
        self.sessions().values().flatten().filter(|session| session.ending().is_none()).cloned().collect()
    }

    /// Whether this node serves it, is about to, or has yet to write its end.
    pub(crate) fn knows(&self, id: SupportSessionId) -> bool {
        self.sessions().contains_key(&id)
    }

    pub(crate) fn freshness(&self) -> &Arc<Freshness> {
        &self.0.freshness
    }

    /// Waits until the node stops, and serves none any more: they live on through the soft stop.
    pub(crate) async fn finished(&self) {
        self.0.shutdown.soft.cancelled().await;
        let emptied = async {
            while !self.sessions().is_empty() {
                sleep(EMPTIED_CHECK).await;
            }
        };
        tokio::select! {
            () = self.0.shutdown.hard.cancelled() => {}
            () = emptied => {}
        }
    }

    fn forget(&self, id: SupportSessionId) {
        self.sessions().remove(&id);
    }

    pub(crate) fn links(&self) -> &Arc<Shared> {
        &self.0.links
    }

    fn note_guest_left(&self, id: Uuid) {
        let support = self.clone();
        self.0.shutdown.tasks.spawn(async move {
            let store = &support.0.links.store;
            for _ in 0..LEAVE_ATTEMPTS_MAX {
                let left = async { single!(store, |connection| support_guest_leave(connection, &[id])) };
                if store.within(left).await.is_ok() {
                    return;
                }
                tokio::select! {
                    () = support.0.shutdown.hard.cancelled() => return,
                    () = sleep(LEAVE_AGAIN_AFTER) => {}
                }
            }
        });
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SupportSessionId, Option<Arc<Session>>>> {
        // Consistent after each statement.
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
