//! What became of spans, as metrics.

use prometheus::IntCounterVec;

use crate::metrics::{Registering, counters};

const EXPORTED: &str = "exported";
const FAILED: &str = "failed";
const DROPPED: &str = "dropped";

/// Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Figures {
    /// `outcome`.
    spans: IntCounterVec,
}

impl Figures {
    pub(crate) fn new(registry: &Registering) -> Self {
        let spans = counters(
            registry,
            "cloudlink_trace_spans_total",
            "Spans by what became of them: exported, failed (the collector did not take them), dropped (too many waited).",
            &["outcome"],
        );
        for outcome in [EXPORTED, FAILED, DROPPED] {
            spans.with_label_values(&[outcome]);
        }
        Self { spans }
    }

    pub(super) fn exported(&self, spans: usize) {
        self.add(EXPORTED, spans);
    }

    pub(super) fn failed(&self, spans: usize) {
        self.add(FAILED, spans);
    }

    pub(super) fn dropped(&self, spans: usize) {
        self.add(DROPPED, spans);
    }

    fn add(&self, outcome: &str, spans: usize) {
        self.spans.with_label_values(&[outcome]).inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
    }
}
