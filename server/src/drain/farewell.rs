//! The last word to devices that could not be told to connect elsewhere first, or that did not: when to come back.

use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;

use super::slot::taken_every;
use crate::link::{Ending, Handle, Seat, Shared};

/// How long after its end a tunnel is up again, as a rule.
const TUNNEL_BACK_WITHIN: Duration = Duration::from_secs(5);

pub(super) const fn come_back(retry_after: Duration) -> Ending {
    Ending::Polite { code: Code::ShuttingDown, message: "this node stops", retry_after }
}

/// Links are told when to come back. Clients of tunnels come back at once when they are told, so each tunnel tells its own in its
/// time, within `tunnels_within`, while this node still serves it; the agent inside one comes back when the tunnel is there again.
pub(crate) fn send_away(shared: &Shared, handles: &[Arc<Handle>], tunnels_within: Duration) {
    let count = u32::try_from(handles.len()).unwrap_or(u32::MAX).max(1);
    let spread = shared.reconnect_spread().max(taken_every(shared.drain.taken_per_second(&shared.admission)) * count);
    let spread_tunnels = spread.min(tunnels_within);
    for (place, handle) in (0..).zip(handles) {
        if let Seat::Direct = handle.seat {
            handle.end(come_back(spread / count * place));
            continue;
        }
        let retry_after = spread_tunnels / count * place;
        handle.end(come_back(retry_after));
        let agent = shared.registry.find(handle.key.device_id);
        if let Some(agent) = agent.filter(|link| matches!(link.seat, Seat::Inside(_))) {
            agent.end(come_back(retry_after + TUNNEL_BACK_WITHIN));
        }
    }
    tracing::info!(devices = handles.len(), ?spread, "told the devices to come back later");
}
