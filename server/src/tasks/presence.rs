//! Writes what links say all the time, in batches: that their devices are there, and what those measure. And takes back what
//! the database says about links that this node does not have.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::link::{Links, Registry, Shared, Unproven};
use crate::store::link::{ClosedLink, Ended, LiveLink, link_close, link_list_silent, link_prove};
use crate::store::report::report_upsert;
use crate::store::{StoreError, single};

/// How long a report or a sign of life waits at most.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// Rows in one statement.
const ROWS_MAX: usize = 1000;
/// How often the database's live links are compared with this node's. A link that has just ended has this long to write so
/// itself, and how it ended.
pub(crate) const COMPARE_EVERY: Duration = Duration::from_secs(15);
/// How long a device must not have been heard of before its link may count as an orphan: longer than it takes to enter one,
/// even if the database is slow to answer.
pub(crate) const ORPHAN_GRACE: Duration = Duration::from_secs(30);
/// For the metrics of failed tasks.
const NAME: &str = "presence";

pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut orphans, mut compared_at) = (Orphans::default(), Instant::now());
    loop {
        let is_last = tokio::select! {
            () = shutdown.soft.cancelled() => true,
            _ = tick.tick() => false,
        };
        for stored in [store_reports(&shared).await, store_proofs(&shared).await] {
            note(&shared, stored, "cannot store what devices report");
        }
        if is_last {
            return;
        }
        if compared_at.elapsed() >= COMPARE_EVERY {
            compared_at = Instant::now();
            note(&shared, orphans.close(&shared, ORPHAN_GRACE).await, "cannot look for links that nobody holds");
        }
    }
}

fn note(shared: &Shared, done: Result<(), StoreError>, message: &'static str) {
    if let Err(error) = done {
        shared.metrics.task_failures.with_label_values(&[NAME]).inc();
        tracing::warn!(error = &error as &dyn std::error::Error, "{message}");
    }
}

/// Stores the reports that wait, and keeps those that could not be stored.
async fn store_reports(shared: &Shared) -> Result<(), StoreError> {
    while let Some(taken) = shared.reports.take(ROWS_MAX) {
        let rows = taken.rows(Instant::now());
        let stored = async { single!(shared.store, |connection| report_upsert(connection, &rows)) };
        if let Err(error) = shared.store.within(stored).await {
            if error.is_retryable() {
                shared.reports.put_back(taken);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Writes when each device was last heard of, if it was heard of since that was last written.
async fn store_proofs(shared: &Shared) -> Result<(), StoreError> {
    for links in shared.registry.unproven(Instant::now()).chunks(ROWS_MAX) {
        let rows: Vec<_> = links.iter().map(Unproven::row).collect();
        let store = &shared.store;
        store.within(async { single!(store, |connection| link_prove(connection, &rows)) }).await?;
        links.iter().for_each(Unproven::written);
    }
    Ok(())
}

/// Links that are live in the database and not on this node: the answer that gave one its epoch was lost, or its task died
/// before it could write the end.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    /// What the last look found.
    suspected: HashSet<LiveLink>,
}

impl Orphans {
    /// Closes what this look and the one before it found.
    pub(crate) async fn close(&mut self, shared: &Shared, grace: Duration) -> Result<(), StoreError> {
        let store = &shared.store;
        let listed = async { single!(store, |connection| link_list_silent(connection, &shared.node, grace)) };
        let orphans = self.look(store.within(listed).await?, &shared.registry);
        for rows in orphans.chunks(ROWS_MAX) {
            let closed = store.within(async { single!(store, |connection| link_close(connection, rows)) }).await?;
            tracing::warn!(links = closed, "closed links that this node does not have");
        }
        Ok(())
    }

    /// Of the silent links that the database has, those that the node had neither at the last look nor has now: they are to be closed.
    ///
    /// An older link that the node does have is ended: its device has knocked twice, and the answer to the later one was lost. Over that
    /// link nothing could be done any more.
    pub(crate) fn look(&mut self, silent: Vec<LiveLink>, registry: &Registry) -> Vec<ClosedLink> {
        let found: Vec<(LiveLink, Ended)> =
            silent.into_iter().filter_map(|link| Some((link, orphan(registry, &link)?))).collect();
        let suspected: HashSet<LiveLink> = found.iter().map(|(link, _)| *link).collect();
        let before = std::mem::replace(&mut self.suspected, suspected);
        let orphans: Vec<_> = found.into_iter().filter(|(link, _)| before.contains(link)).collect();
        orphans.iter().for_each(|(link, _)| registry.supersede_link(link.key));
        // Nobody saw how it ended, so it proves nothing.
        let closed = |(link, ended): (LiveLink, Ended)| ClosedLink {
            device_id: link.key.device_id,
            ended,
            reason: "orphaned",
            is_loss: false,
        };
        orphans.into_iter().map(closed).collect()
    }
}

/// What the row claims and this node does not have.
fn orphan(registry: &Registry, link: &LiveLink) -> Option<Ended> {
    let LiveLink { key, tunnel_id, has_agent } = *link;
    if let Some(id) = tunnel_id {
        let tunnel = registry.find_tunnel(key.device_id);
        if tunnel.is_none_or(|tunnel| tunnel.tunnel_id() != Some(id)) {
            return Some(Ended::Tunnel(id));
        }
    }
    (has_agent && registry.find_exactly(key).is_none()).then_some(Ended::Link(key.epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Ending;
    use crate::link::registry::tests::{enter_inside, enter_tunnel, key, tunnel_id};

    #[test]
    fn a_link_inside_a_tunnel_that_came_before_one_whose_answer_was_lost_is_ended() {
        let registry = Registry::new(10, 8);
        let (tunnel, link) = (enter_tunnel(&registry, key(1, 1), 7), enter_inside(&registry, key(1, 2), 7));
        let silent = || vec![LiveLink { key: key(1, 3), tunnel_id: Some(tunnel_id(7)), has_agent: true }];
        let mut orphans = Orphans::default();
        assert!(orphans.look(silent(), &registry).is_empty(), "it may be about to be entered");
        assert_eq!((tunnel.ending(), link.ending()), (None, None));
        let closed = orphans.look(silent(), &registry);
        assert_eq!(closed.iter().map(|closed| closed.ended).collect::<Vec<_>>(), [Ended::Link(3)]);
        assert_eq!((tunnel.ending(), link.ending()), (None, Some(Ending::REPLACED)));
        let gone = LiveLink { tunnel_id: Some(tunnel_id(8)), ..silent()[0] };
        orphans.look(vec![gone], &registry);
        assert_eq!(orphans.look(vec![gone], &registry)[0].ended, Ended::Tunnel(tunnel_id(8)));
        assert_eq!(tunnel.ending(), None);
    }
}
