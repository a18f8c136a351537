//! When this node carried tunnels of which tenant. Statements of isolation are about the nodes and times that are written here, so
//! a tunnel that lived for a second counts as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::TenantId;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Tenants with tunnels that are up, or were since it was last written. Whoever has a tunnel is in the database, so there are no
/// more of these than tenants.
#[derive(Debug, Default)]
pub(crate) struct Days {
    carried: Mutex<HashMap<TenantId, Carried>>,
    changed: Notify,
}

#[derive(Debug)]
struct Carried {
    /// Tunnels that are up.
    live: usize,
    /// From here on nothing is written.
    since: Instant,
    /// When the last one ended; of no meaning while one is up.
    until: Instant,
    /// Nothing at all is written since it was entered.
    is_fresh: bool,
}

/// What is to be written of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) tenant_id: TenantId,
    pub(crate) since: Instant,
    pub(crate) until: Instant,
}

/// Of what something is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Tenants of which nothing is.
    Fresh,
    All,
}

impl Days {
    /// A tunnel of the tenant is up until this is dropped.
    pub(crate) fn enter(self: &Arc<Self>, tenant_id: TenantId) -> Stay {
        let now = Instant::now();
        let mut carried = self.carried();
        let entry = carried.entry(tenant_id);
        let entry = entry.or_insert(Carried { live: 0, since: now, until: now, is_fresh: true });
        entry.live += 1;
        if entry.is_fresh {
            self.changed.notify_waiters();
        }
        Stay { days: Arc::clone(self), tenant_id }
    }

    pub(crate) fn due(&self, extent: Extent, now: Instant) -> Vec<Due> {
        let mut due: Vec<_> = self
            .carried()
            .iter()
            .filter(|(_, carried)| carried.is_fresh || extent == Extent::All)
            .map(|(&tenant_id, carried)| Due {
                tenant_id,
                since: carried.since,
                until: if carried.live > 0 { now } else { carried.until },
            })
            .collect();
        due.sort_unstable_by_key(|due| due.tenant_id);
        due
    }

    /// That is in the database. What has no tunnel any more is forgotten, but not at once: it may be about to come back.
    pub(crate) fn written(&self, extent: Extent, due: &[Due]) {
        let mut carried = self.carried();
        for due in due {
            let Some(entry) = carried.get_mut(&due.tenant_id) else { continue };
            entry.is_fresh = false;
            entry.since = due.until;
            if extent == Extent::All && entry.live == 0 && entry.until <= due.until {
                carried.remove(&due.tenant_id);
            }
        }
    }

    /// Waits until there is a tenant of which nothing is written.
    pub(crate) async fn fresh(&self) {
        loop {
            let changed = self.changed.notified();
            if self.carried().values().any(|carried| carried.is_fresh) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until no tunnel is up.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.carried().values().all(|carried| carried.live == 0) {
                return;
            }
            changed.await;
        }
    }

    fn carried(&self) -> MutexGuard<'_, HashMap<TenantId, Carried>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it is there, a tunnel is up.
#[derive(Debug)]
pub(crate) struct Stay {
    days: Arc<Days>,
    tenant_id: TenantId,
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some(carried) = self.days.carried().get_mut(&self.tenant_id) {
            carried.live = carried.live.saturating_sub(1);
            carried.until = Instant::now();
        }
        self.days.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;
    use crate::model::new_id;

    fn tenant() -> TenantId {
        TenantId::from_uuid(new_id())
    }

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// The only one.
    fn sole(due: &[Due]) -> Due {
        let [due] = due else { panic!("{due:?}") };
        *due
    }

    #[test]
    fn a_tunnel_that_has_ended_is_written_with_when_it_was_up() {
        let (days, tenant_id) = (Arc::new(Days::default()), tenant());
        let before = Instant::now();
        drop(days.enter(tenant_id));
        let after = Instant::now();
        assert!(is_ready(days.fresh()) && is_ready(days.idle()));
        let due = days.due(Extent::Fresh, after + Duration::from_secs(30));
        let Due { since, until, .. } = sole(&due);
        assert!(before <= since && since <= until && until <= after);
        days.written(Extent::Fresh, &due);
        assert!(!is_ready(days.fresh()) && days.due(Extent::Fresh, after).is_empty());
        days.written(Extent::All, &days.due(Extent::All, after));
        assert!(days.carried().is_empty());
    }

    #[test]
    fn what_goes_on_is_written_piece_by_piece_without_a_gap() {
        let (days, tenant_id) = (Arc::new(Days::default()), tenant());
        let first = days.enter(tenant_id);
        let start = Instant::now();
        days.written(Extent::Fresh, &days.due(Extent::Fresh, start));
        let second = days.enter(tenant_id);
        assert!(!is_ready(days.fresh()), "something is written of it");
        drop(first);
        assert!(!is_ready(days.idle()));
        let minute = start + Duration::from_secs(60);
        assert_eq!(days.due(Extent::All, minute), [Due { tenant_id, since: start, until: minute }]);
        // It was not: the database was away.
        let now = Instant::now();
        let due = days.due(Extent::All, now);
        assert_eq!(due, [Due { tenant_id, since: start, until: now }]);
        drop(second);
        days.written(Extent::All, &due);
        assert!(is_ready(days.idle()));
        let rest = sole(&days.due(Extent::All, minute));
        assert!(rest.since == now && (now..minute).contains(&rest.until), "{rest:?}");
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (days, tenant_id) = (Arc::new(Days::default()), tenant());
        let seen = Arc::clone(&days);
        let waiting = tokio::spawn(async move {
            seen.fresh().await;
            seen.written(Extent::Fresh, &seen.due(Extent::Fresh, Instant::now()));
            tokio::select! {
                () = seen.fresh() => false,
                () = seen.idle() => true,
            }
        });
        tokio::task::yield_now().await;
        let stay = days.enter(tenant_id);
        tokio::task::yield_now().await;
        drop(stay);
        assert!(waiting.await.unwrap());
    }
}
