//! How much a peer may send on the control channel.

use std::time::{Duration, Instant};

/// Control packets in one [`BUDGET_WINDOW`], and before a peer is admitted altogether.
pub const CONTROL_PACKETS_MAX: u32 = 256;
/// Bytes of them.
pub const CONTROL_BYTES_MAX: usize = 128 * 1024;
/// How long both of them last for an admitted peer.
pub const BUDGET_WINDOW: Duration = Duration::from_secs(60);

/// What is left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    renewed_at: Instant,
    packets: u32,
    bytes: usize,
}

/// Nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overspent;

impl Budget {
    pub(super) const fn new(now: Instant) -> Self {
        Self { renewed_at: now, packets: CONTROL_PACKETS_MAX, bytes: CONTROL_BYTES_MAX }
    }

    /// Renews the budget of an admitted peer when it is time for that.
    pub(super) fn renew_if_due(&mut self, now: Instant) {
        if now.duration_since(self.renewed_at) >= BUDGET_WINDOW {
            *self = Self::new(now);
        }
    }

    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Overspent> {
        self.packets = self.packets.checked_sub(1).ok_or(Overspent)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Overspent)?;
        Ok(())
    }
}
