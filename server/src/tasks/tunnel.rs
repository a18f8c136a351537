//! Keeps this node's slice of the address pool, and writes what goes through its tunnels, and when whose tunnels there were.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::TunnelId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::store::tunnel::{CarriedTunnels, TunnelTraffic, slice_renew, tunnel_count, tunnel_day_note};
use crate::store::{StoreError, single};
use crate::tunnel::day::Extent;
use crate::tunnel::{SLICE_LEASE, Tunnels};

const RENEW_EVERY: Duration = Duration::from_secs(60);
/// How far the figures of a tunnel lag behind.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How often it is written that tunnels are still up.
const DAYS_EVERY: Duration = Duration::from_secs(60);
/// Rows in one statement.
const ROWS_MAX: usize = 1000;
/// For the metrics of failed tasks.
const LEASE: &str = "tunnel_lease";
const TRAFFIC: &str = "tunnel_traffic";
const DAYS: &str = "tunnel_days";

/// Until the soft stop, after which the lease lasts long enough. Ends early if another node has the slice: this one has not
/// reached the database for longer than a lease, and must not go on giving out the other's addresses.
pub(super) async fn lease(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(RENEW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        let renewed = async {
            let number = tunnels.slice_number;
            single!(shared.store, |connection| slice_renew(connection, &shared.node, number, SLICE_LEASE))
        };
        match shared.store.within(renewed).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(slice = tunnels.slice_number, "another node has taken this node's tunnel addresses");
                return;
            }
            Err(error) => note(&shared, LEASE, &error, "cannot renew the lease of the tunnels' addresses"),
        }
    }
}

/// Writes the figures of tunnels through which something went. The last ones of a tunnel are written by itself.
pub(super) async fn traffic(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(COUNT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = write(&shared, &tunnels, &mut written).await {
            note(&shared, TRAFFIC, &error, "cannot store what goes through tunnels");
        }
    }
}

/// `written`: packets and drops of each tunnel that is live, as they were last written.
async fn write(shared: &Shared, tunnels: &Tunnels, written: &mut HashMap<TunnelId, u64>) -> Result<(), StoreError> {
    let all = tunnels.traffic();
    let sum = |row: &TunnelTraffic| row.packets_in.wrapping_add(row.packets_out).wrapping_add(row.dropped);
    let before = std::mem::take(written);
    let (unchanged, changed): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|row| before.get(&row.tunnel_id).copied().unwrap_or(0) == sum(row));
    written.extend(unchanged.iter().map(|row| (row.tunnel_id, sum(row))));
    for rows in changed.chunks(ROWS_MAX) {
        let store = &shared.store;
        store.within(async { single!(store, |connection| tunnel_count(connection, rows)) }).await?;
        written.extend(rows.iter().map(|row| (row.tunnel_id, sum(row))));
    }
    Ok(())
}

/// Writes when tunnels of which tenants were up: of a tenant that had none at once, of the others now and then, and all of it at
/// the end of the last tunnel.
pub(super) async fn days(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(DAYS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_failing = false;
    loop {
        let extent = tokio::select! {
            () = shutdown.hard.cancelled() => break,
            () = async { shutdown.soft.cancelled().await; tunnels.days.idle().await } => break,
            () = tunnels.days.fresh(), if !is_failing => Extent::Fresh,
            _ = tick.tick() => Extent::All,
        };
        is_failing = !write_days(&shared, &tunnels, extent).await;
    }
    write_days(&shared, &tunnels, Extent::All).await;
}

/// False: it could not be written. It will be the next time.
async fn write_days(shared: &Shared, tunnels: &Tunnels, extent: Extent) -> bool {
    for due in tunnels.days.due(extent, Instant::now()).chunks(ROWS_MAX) {
        let now = Instant::now();
        let carried: Vec<_> = due
            .iter()
            .map(|due| CarriedTunnels {
                tenant_id: due.tenant_id,
                since: now.saturating_duration_since(due.since),
                until: now.saturating_duration_since(due.until),
            })
            .collect();
        let store = &shared.store;
        let written = async { single!(store, |connection| tunnel_day_note(connection, &shared.node, &carried)) };
        if let Err(error) = store.within(written).await {
            note(shared, DAYS, &error, "cannot store that there are tunnels");
            return false;
        }
        tunnels.days.written(extent, due);
    }
    true
}

fn note(shared: &Shared, task: &str, error: &StoreError, message: &'static str) {
    shared.metrics.task_failures.with_label_values(&[task]).inc();
    tracing::warn!(error = error as &dyn std::error::Error, "{message}");
}
