//! The life of a tunnel that is up, as the rest of the node and the database see it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::conn::{self, Ended, Tunnel};
use super::day::Stay;
use super::opening::TRANSPORT;
use super::plane::{Counts, Owner};
use crate::link::{Handle, Seat, Shared, close_row};
use crate::model::device::is_probe;
use crate::store::link::ClosedLink;
use crate::store::tunnel::TunnelTraffic;

/// How long the link inside may take to store what its device said before the end: without the `running` of a shutdown, the
/// loss of the tunnel proves nothing.
const FINISH_WITHIN: Duration = Duration::from_secs(6);

/// However its task ends, even by a panic, the node does not take it for live.
struct Entered {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    /// Its tenant has a tunnel on this node.
    _stay: Option<Stay>,
}

impl Entered {
    fn new(shared: Arc<Shared>, handle: Arc<Handle>) -> Self {
        let stay = match (&handle.seat, &shared.tunnels) {
            (Seat::Tunnel(seat), Some(tunnels)) if !is_probe(seat.identity.device_id) => {
                Some(tunnels.days.enter(seat.identity.tenant_id))
            }
            // Probes are nobody's devices, and count as none.
            (Seat::Tunnel(_) | Seat::Direct | Seat::Inside(_), _) => None,
        };
        Self { shared, handle, _stay: stay }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.registry.leave(&self.handle);
    }
}

/// Serves a tunnel until its end.
pub(crate) async fn run(shared: Arc<Shared>, tunnel: Tunnel, hard: CancellationToken) {
    let entered = Entered::new(shared, Arc::clone(&tunnel.handle));
    if !is_probe(entered.handle.key.device_id) {
        let metrics = &entered.shared.metrics;
        metrics.tunnels_live.inc();
        metrics.tunnels_opened.inc();
        metrics.links_live.with_label_values(&[TRANSPORT]).inc();
        metrics.links_opened.with_label_values(&[TRANSPORT]).inc();
    }
    tracing::debug!(device = %entered.handle.key.device_id, epoch = entered.handle.key.epoch, "a tunnel is live");
    let ended = conn::run(tunnel, hard.clone()).await;
    Box::pin(finish(&entered, ended, hard)).await;
}

/// Ends the tunnel: out of the registry, with the link inside it; what that one heard into the database, then the row.
async fn finish(entered: &Entered, ended: Ended, hard: CancellationToken) {
    let Entered { shared, handle, .. } = entered;
    let carried = shared.registry.leave(handle);
    if let Some(tunnels) = &shared.tunnels {
        tunnels.has_left.notify_one();
    }
    let Ended { reason, is_loss, counts } = ended;
    if !is_probe(handle.key.device_id) {
        let metrics = &shared.metrics;
        metrics.tunnels_live.dec();
        metrics.tunnels_closed.with_label_values(&[reason]).inc();
        metrics.links_live.with_label_values(&[TRANSPORT]).dec();
        metrics.links_closed.with_label_values(&[TRANSPORT, reason]).inc();
    }
    let device_id = handle.key.device_id;
    let Some(tunnel_id) = handle.tunnel_id() else { return };
    let stored = async {
        // Nothing of an older epoch would be taken.
        if reason != "replaced" {
            if let Some(Seat::Inside(inside)) = carried.as_ref().map(|link| &link.seat) {
                let _ = timeout(FINISH_WITHIN, inside.finished.cancelled()).await;
            }
            let ended = crate::store::link::Ended::Tunnel(tunnel_id);
            close_row(shared, ClosedLink { device_id, ended, reason, is_loss }).await;
        }
        // A row begins with nothing.
        if let Some(tunnels) = shared.tunnels.as_ref().filter(|_| counts != Counts::default()) {
            // A database that is away costs the last figures, and no more.
            let _ = tunnels.totals.ask(row(Owner { tunnel: tunnel_id, device: device_id }, counts)).await;
        }
    };
    tokio::select! {
        () = hard.cancelled() => {}
        () = stored => {}
    }
}

pub(crate) fn row(owner: Owner, counts: Counts) -> TunnelTraffic {
    let Counts { packets_in, bytes_in, packets_out, bytes_out, dropped } = counts;
    let Owner { tunnel: tunnel_id, device: device_id } = owner;
    TunnelTraffic { tunnel_id, device_id, packets_in, packets_out, bytes_in, bytes_out, dropped }
}
