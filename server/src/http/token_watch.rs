//! Tokens in use by streams, which outlive the check at their start: a stream ends within a second when its token is revoked or
//! expires, or its person is shut out. One query a round looks at all of them, however many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::TokenId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use uuid::Uuid;

use crate::bus::{Heard, Hint, Listener};
use crate::clock;
use crate::model::token::Session;
use crate::store::token::token_list_over;
use crate::store::{Store, StoreError, single};
use crate::support::freshness::Freshness;

/// Between two looks without a hint: what another node did is seen in time.
const CHECKED_EVERY: Duration = Duration::from_millis(250);

/// As many as there are streams, which have their own limits.
#[derive(Debug)]
pub(crate) struct TokenWatch {
    tokens: Mutex<HashMap<TokenId, Entry>>,
    freshness: Arc<Freshness>,
}

#[derive(Debug)]
struct Entry {
    over: watch::Sender<Option<Over>>,
    streams: usize,
}

/// That a token no longer lets its person in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// Since when.
    pub(crate) since: Instant,
    /// Nor does any other token of the person.
    pub(crate) is_shut_out: bool,
    /// Since when nothing of streams passes, for lack of this.
    pub(crate) silent_since: Option<Instant>,
}

impl TokenWatch {
    pub(crate) fn new() -> Self {
        Self { tokens: Mutex::default(), freshness: Freshness::new() }
    }

    /// Of what the database says of the tokens of streams.
    pub(crate) fn freshness(&self) -> &Arc<Freshness> {
        &self.freshness
    }

    /// To be called before anything is shown of the stream.
    pub(crate) fn watch(self: &Arc<Self>, session: &Session) -> Watched {
        let left = Duration::try_from(session.token_expires_at - clock::now()).unwrap_or_default();
        let token = session.token;
        let mut tokens = self.lock();
        let entry = tokens.entry(token).or_insert_with(|| Entry { over: watch::Sender::new(None), streams: 0 });
        entry.streams += 1;
        let over = entry.over.subscribe();
        Watched { watch: Arc::clone(self), token, over, expires_at: Instant::now() + left }
    }

    /// Looks on hints and on a timer, until the bus is closed.
    pub(crate) async fn follow(&self, store: &Store, mut hints: Listener) {
        let mut tick = interval(CHECKED_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = hints.hear() => match heard {
                    Heard::Hint(Hint::PersonChanged(_)) | Heard::Everything => {}
                    Heard::Closed => return,
                    Heard::Hint(
                        Hint::CommandsDue(_)
                        | Hint::CommandChanged(_)
                        | Hint::DeviceChanged(_)
                        | Hint::DeviceLinked(_)
                        | Hint::OpeningsDue(_)
                        | Hint::SupportDue(_)
                        | Hint::ConfigurationDue(_) | Hint::NoticesDue,
                    ) => continue,
                },
                _ = tick.tick() => {}
            }
            if let Err(error) = self.look(store).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at the tokens of streams");
            }
        }
    }

    async fn look(&self, store: &Store) -> Result<(), StoreError> {
        // A token that is watched from here on was looked up for its request, a moment ago.
        let asked_at = Instant::now();
        let ids: Vec<Uuid> = self.lock().keys().map(|token| token.as_uuid()).collect();
        if ids.is_empty() {
            self.freshness.heard(asked_at);
            return Ok(());
        }
        let over = store.within(async { single!(store, |connection| token_list_over(connection, &ids)) }).await?;
        let silent_since = self.freshness.silent_since(Instant::now());
        let tokens = self.lock();
        let mut has_news = false;
        for token in over {
            if let Some(entry) = tokens.get(&token.id) {
                has_news |= entry.over.borrow().is_none();
                entry.over.send_replace(Some(Over { since: token.since, is_shut_out: !token.is_active, silent_since }));
            }
        }
        // Where somebody is to go, that comes first: the next look lets pass again what waits for this.
        if !has_news {
            self.freshness.heard(asked_at);
        }
        Ok(())
    }

    fn unwatch(&self, token: TokenId) {
        let mut tokens = self.lock();
        if let Some(entry) = tokens.get_mut(&token) {
            entry.streams -= 1;
            if entry.streams == 0 {
                tokens.remove(&token);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Entry>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token that a stream goes on with.
#[derive(Debug)]
pub(crate) struct Watched {
    watch: Arc<TokenWatch>,
    token: TokenId,
    over: watch::Receiver<Option<Over>>,
    /// By this node's clock: holds with the database away.
    expires_at: Instant,
}

impl Watched {
    /// Waits until the token no longer lets its person in.
    pub(crate) async fn over(&self) -> Over {
        let mut over = self.over.clone();
        let looked = async {
            match over.wait_for(Option::is_some).await.map(|over| *over) {
                Ok(Some(over)) => over,
                // Only its own watch takes the entry away, which has been asked to wait here.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            over = looked => over,
            () = sleep_until(self.expires_at) => Over { since: self.expires_at, is_shut_out: false, silent_since: None },
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.unwatch(self.token);
    }
}
