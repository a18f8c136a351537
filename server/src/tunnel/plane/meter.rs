//! The metrics that packets move, looked up once.

use prometheus::IntCounter;

use super::port::Counts;
use crate::metrics::{Metrics, TunnelDrop};

#[derive(Debug)]
pub(super) struct Meters {
    packets_in: IntCounter,
    packets_out: IntCounter,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
    dropped: [IntCounter; TunnelDrop::ALL.len()],
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            packets_in: metrics.tunnel_packets.with_label_values(&["in"]),
            packets_out: metrics.tunnel_packets.with_label_values(&["out"]),
            bytes_in: metrics.tunnel_bytes.with_label_values(&["in"]),
            bytes_out: metrics.tunnel_bytes.with_label_values(&["out"]),
            dropped: TunnelDrop::ALL.map(|reason| metrics.tunnel_dropped.with_label_values(&[reason.label()])),
        }
    }

    pub(super) fn count(&self, counts: &Counts) {
        let pairs = [
            (&self.packets_in, counts.packets_in),
            (&self.packets_out, counts.packets_out),
            (&self.bytes_in, counts.bytes_in),
            (&self.bytes_out, counts.bytes_out),
        ];
        for (counter, count) in pairs {
            if count > 0 {
                counter.inc_by(count);
            }
        }
    }

    pub(super) fn dropped(&self, reason: TunnelDrop, packets: u64) {
        for (counted, counter) in TunnelDrop::ALL.iter().zip(&self.dropped) {
            if *counted == reason {
                counter.inc_by(packets);
            }
        }
    }
}
