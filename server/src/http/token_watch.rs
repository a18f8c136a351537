//! Tokens in use by streams, which outlive the check at their start: a stream ends within a second when its token is revoked or
//! expires, or its person is shut out. One query a round looks at all of them, however many there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::TokenId;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::{Heard, Hint, Listener};
use crate::clock;
use crate::model::token::Session;
use crate::store::token::token_list_over;
use crate::store::{Store, StoreError};

/// Between two looks without a hint: what another node did is seen in time.
const CHECKED_EVERY: Duration = Duration::from_millis(500);

/// As many as there are streams, which have their own limits.
#[derive(Debug, Default)]
pub(crate) struct TokenWatch {
    tokens: Mutex<HashMap<TokenId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    over: CancellationToken,
    /// For when the database is away.
    expires_at: Instant,
    streams: usize,
}

impl TokenWatch {
    /// To be called before anything is shown of the stream.
    pub(crate) fn watch(self: &Arc<Self>, session: &Session) -> Watched {
        let left = Duration::try_from(session.token_expires_at - clock::now()).unwrap_or_default();
        let token = session.token;
        let mut tokens = self.lock();
        let entry = tokens.entry(token).or_insert_with(|| Entry {
            over: CancellationToken::new(),
            expires_at: Instant::now() + left,
            streams: 0,
        });
        entry.streams += 1;
        Watched { watch: Arc::clone(self), token, over: entry.over.clone() }
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
                        | Hint::OpeningsDue(_)
                        | Hint::SupportDue(_)
                        | Hint::NoticesDue,
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
        let now = Instant::now();
        let ids: Vec<Uuid> = {
            let tokens = self.lock();
            tokens.values().filter(|entry| entry.expires_at <= now).for_each(|entry| entry.over.cancel());
            tokens.keys().map(|token| token.as_uuid()).collect()
        };
        if ids.is_empty() {
            return Ok(());
        }
        let over = store.within(async { token_list_over(&mut *store.connection().await?, &ids).await }).await?;
        let tokens = self.lock();
        over.iter().filter_map(|token| tokens.get(token)).for_each(|entry| entry.over.cancel());
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
    over: CancellationToken,
}

impl Watched {
    /// Waits until the token no longer lets its person in.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.unwatch(self.token);
    }
}
