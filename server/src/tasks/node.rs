//! Keeps this node's place, and closes what nodes had that are gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::support::sweep_sessions_of_gone;
use crate::bus::Hint;
use crate::cluster::Lease;
use crate::cluster::tenure::Act;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::status::Condition;
use crate::model::support_session::EndReason;
use crate::store::link::link_close_gone;
use crate::store::node::node_list_unsettled;
use crate::store::{StoreError, single};
use crate::support::Support;

/// How often a node says how it is although nothing has changed.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Rows that one statement closes.
const ROWS_MAX: i64 = 1_000;
/// For the metrics of failed tasks.
const NAME: &str = "node";

/// Until the hard stop: the node has its place until its last link and support session are gone. Ends early when another has taken
/// it.
pub(super) async fn keep(links: Links, support: Support, lease: Arc<Lease>, shutdown: Shutdown) {
    let Links(shared) = links;
    let renewed = Notify::new();
    tokio::select! {
        () = stopped(&shared, &support, &shutdown) => {}
        () = lease.answer() => {}
        () = renew(&shared, &support, &lease, &renewed) => {}
        () = settle_always(&shared, &lease, &renewed) => {}
    }
}

async fn renew(shared: &Shared, support: &Support, lease: &Lease, renewed: &Notify) {
    loop {
        sleep(lease.pause()).await;
        match lease.renew().await {
            Act::Serve => shared.registry.readmit(),
            Act::BeginAnew => {
                tracing::warn!("other nodes took this one to be gone: its links start anew");
                give_up(shared, support);
                continue;
            }
            Act::Wait | Act::Ask => {
                shared.metrics.task_failures.with_label_values(&[NAME]).inc();
                continue;
            }
            Act::GiveUp => {
                tracing::error!("the database cannot be reached, and others may reach it: links are given up");
                give_up(shared, support);
                continue;
            }
            Act::Stop => {
                tracing::error!("another node serves under this node's name");
                return give_up(shared, support);
            }
        }
        renewed.notify_one();
    }
}

/// After each renewal, and beside the next ones: closing ten thousand links of a dead node takes longer than a lease lasts, and whoever
/// let its own run out meanwhile would be the next to be closed.
async fn settle_always(shared: &Shared, lease: &Lease, renewed: &Notify) {
    let mut told = None;
    // What cannot be said now is said with the first renewal.
    let _ = shared.store.within(tell(shared, lease, &mut told)).await;
    loop {
        renewed.notified().await;
        let look = async {
            tell(shared, lease, &mut told).await?;
            settle(shared, lease).await
        };
        if let Err(error) = shared.store.within(look).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot say how this node is, or look for nodes that are gone"
            );
        }
    }
}

/// Says how this node is, if that has changed, or a database that was put back has forgotten it.
async fn tell(shared: &Shared, lease: &Lease, told: &mut Option<(Condition, Instant)>) -> Result<(), StoreError> {
    let isolation = shared.tunnels.as_ref().map(|_| shared.metrics.isolation_enforced.get() == 1);
    let condition = Condition { bus: lease.is_bus_up(), isolation };
    let is_told = |(last, at): &(Condition, Instant)| *last == condition && at.elapsed() < TELL_EVERY;
    if !told.as_ref().is_some_and(is_told) {
        lease.tell_condition(condition).await?;
        *told = Some((condition, Instant::now()));
    }
    Ok(())
}

async fn stopped(shared: &Shared, support: &Support, shutdown: &Shutdown) {
    shutdown.soft.cancelled().await;
    tokio::select! {
        () = shutdown.hard.cancelled() => {}
        ((), ()) = async { tokio::join!(shared.registry.emptied(), support.finished()) } => {}
    }
}

/// Ends everything that others may take over.
fn give_up(shared: &Shared, support: &Support) {
    let now = Instant::now();
    for session in support.live() {
        session.end(EndReason::NodeLost, now);
    }
    shared.registry.fence();
}

/// Closes what nodes had that are gone.
async fn settle(shared: &Shared, lease: &Lease) -> Result<(), StoreError> {
    for name in lease.expire().await? {
        tracing::warn!(node = ?name, "a node is gone");
    }
    let names = single!(shared.store, |connection| node_list_unsettled(connection))?;
    for name in names {
        let mut closed = 0;
        loop {
            let some = single!(shared.store, |connection| link_close_gone(connection, &name, ROWS_MAX))?;
            closed += some;
            if some < ROWS_MAX.unsigned_abs() {
                break;
            }
        }
        tracing::info!(node = ?name, links = closed, "closed what a node had that is gone");
        if sweep_sessions_of_gone(&shared.store, &name).await? {
            shared.bus.send(Hint::NoticesDue);
        }
    }
    Ok(())
}
