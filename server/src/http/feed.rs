//! What may have changed, for streams of events of whoever shows it. One task a node looks at how far the audit logs have come: everything
//! that anybody does has an entry there, on whichever node. Each stream then finds out what of it its caller may see. A stream that says
//! too much costs a question; it shows nothing.

use std::collections::HashMap;
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::store::audit::audit_heads;
use crate::store::{Store, single};

/// Between two looks, while anybody listens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How far the audit logs have come.
#[derive(Debug)]
pub(crate) struct Feed {
    heads: watch::Sender<Heads>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heads(HashMap<Uuid, i64>);

impl Heads {
    /// Of this tenant's log, or of all. `None`: nobody has looked yet.
    pub(crate) fn of(&self, tenant: Option<TenantId>) -> Option<i64> {
        match tenant {
            Some(tenant) if !self.0.is_empty() => Some(self.0.get(&tenant.as_uuid()).copied().unwrap_or(0)),
            None if !self.0.is_empty() => Some(self.0.values().sum()),
            Some(_) | None => None,
        }
    }
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { heads: watch::Sender::new(Heads::default()) }
    }

    pub(crate) fn listen(&self) -> watch::Receiver<Heads> {
        self.heads.subscribe()
    }

    /// Does not end.
    pub(crate) async fn follow(&self, store: &Store) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.heads.receiver_count() == 0 {
                continue;
            }
            let heads = async { single!(store, |connection| audit_heads(connection)) };
            match store.within(heads).await {
                Ok(heads) => {
                    let heads = Heads(heads.into_iter().collect());
                    self.heads.send_if_modified(|known| {
                        let has_moved = *known != heads;
                        *known = heads;
                        has_moved
                    });
                }
                // It is tried again, and whoever shows anything asks for itself.
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "cannot see what has changed"),
            }
        }
    }
}
