//! What is counted of samples.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use crate::metrics::{Registering, counter, counters, gauge, histogram};

/// A statement of many samples: fine steps around what it should take.
const INSERT_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Why a sample is not stored. The values of the label `reason`.
const REASONS: [&str; 4] = ["queue_full", "refused", "too_old", "too_often"];

/// Registered with those of the node.
#[derive(Clone, Debug)]
pub struct TelemetryMetrics {
    /// Samples that were stored.
    pub stored: IntCounter,
    /// `reason`: samples that were not.
    pub dropped: IntCounterVec,
    /// Samples that wait.
    pub waiting: IntGauge,
    /// For one statement.
    pub insert_seconds: Histogram,
    /// In Unix time.
    pub added_up_until: IntGauge,
}

impl TelemetryMetrics {
    pub(crate) fn new(registry: &Registering) -> Self {
        let dropped = counters(
            registry,
            "cloudlink_telemetry_dropped_total",
            "Samples of devices that are not stored: more waited than the node keeps (queue_full), too long (too_old), the \
             database refused them (refused), or the device sends more than it was told to (too_often).",
            &["reason"],
        );
        for reason in REASONS {
            dropped.with_label_values(&[reason]);
        }
        Self {
            stored: counter(registry, "cloudlink_telemetry_stored_total", "Samples of devices that were stored."),
            dropped,
            waiting: gauge(
                registry,
                "cloudlink_telemetry_waiting",
                "Samples that wait for the database, as of the last second.",
            ),
            insert_seconds: histogram(
                registry,
                "cloudlink_telemetry_insert_seconds",
                "For storing up to 500 samples, as this node sees it.",
                INSERT_BUCKETS_SECONDS,
            ),
            added_up_until: gauge(
                registry,
                "cloudlink_telemetry_added_up_timestamp_seconds",
                "Up to when samples are added up, in Unix time, by what this node has added up last. 0: not yet.",
            ),
        }
    }

    pub(crate) fn dropped(&self, reason: &str, samples: u64) {
        self.dropped.with_label_values(&[reason]).inc_by(samples);
    }
}
