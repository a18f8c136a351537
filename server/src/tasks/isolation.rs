//! Cuts all tunnels while isolation is not in force and cannot be, or leaks. What comes meanwhile is refused where it comes in. The
//! node's own probes stay: they are what says that a leak is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::isolation::State;
use crate::lifecycle::Shutdown;
use crate::link::{Ending, Links, Seat};
use crate::model::device::is_probe;
use crate::tunnel::Tunnels;

/// A tunnel that was on its way in when the others were cut is found soon after.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Until the hard stop: tunnels live on through the soft one.
pub(super) async fn cut(links: Links, tunnels: Arc<Tunnels>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut state = tunnels.isolation.subscribe();
    // Tunnels hold what tells of the state.
    drop(tunnels);
    loop {
        tokio::select! {
            () = shutdown.hard.cancelled() => return,
            () = async {
                shutdown.soft.cancelled().await;
                shared.registry.emptied().await;
            } => return,
            cuts = state.wait_for(|state: &State| state.cuts_tunnels()) => if cuts.is_err() {
                return;
            },
        }
        let mut count = 0_u64;
        for handle in shared.registry.all() {
            let is_device = matches!(handle.seat, Seat::Tunnel(_)) && !is_probe(handle.key.device_id);
            if is_device && handle.ending() != Some(Ending::Cut) {
                handle.end(Ending::Cut);
                count += 1;
            }
        }
        if count > 0 {
            tracing::error!(tunnels = count, "tunnels were cut, which are not isolated");
        }
        sleep(AGAIN_AFTER).await;
    }
}
