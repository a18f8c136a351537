//! What is counted of it.

use prometheus::{IntCounter, IntGauge};

use crate::metrics::{Registering, counter, gauge};

/// Registered with those of the node.
#[derive(Clone, Debug)]
pub struct DrainMetrics {
    /// Whether the node is drained.
    pub draining: IntGauge,
    /// Devices that were told to connect elsewhere.
    pub told: IntCounter,
}

impl DrainMetrics {
    pub(crate) fn new(registry: &Registering) -> Self {
        Self {
            draining: gauge(registry, "cloudlink_node_draining", "1 while this node sends its devices to other nodes."),
            told: counter(
                registry,
                "cloudlink_drain_told_total",
                "Devices that were told to connect to another node while this one goes on serving them.",
            ),
        }
    }
}
