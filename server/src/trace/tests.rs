use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::SpanExporter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::metrics::Metrics;

fn tracer(room: usize, sample_percent: u32) -> (Tracer, mpsc::Receiver<SpanData>, Metrics) {
    let metrics = Metrics::new();
    let (queue, spans) = mpsc::channel(room);
    (Tracer::new(queue, metrics.traces.clone(), sample_percent), spans, metrics)
}

fn place(is_sampled: bool) -> TraceParent {
    TraceParent::new([7; 16], [9; 8], is_sampled).unwrap()
}

fn told(metrics: &Metrics, outcome: &str, spans: usize) {
    let series = format!("cloudlink_trace_spans_total{{outcome=\"{outcome}\"}} {spans}\n");
    let text = metrics.render().unwrap();
    assert!(text.contains(&series), "{series}{text}");
}

#[test]
fn without_a_collector_there_are_no_spans() {
    let tracer = Tracer::default();
    assert!(tracer.entry(SpanKind::Server, "it", None).is_none());
    assert!(tracer.entry(SpanKind::Server, "it", Some(place(true))).is_none());
}

#[test]
fn a_span_is_told_when_it_ends_with_its_parent() {
    let (tracer, mut spans, _) = tracer(8, 100);
    let root = tracer.entry(SpanKind::Server, "root", Some(place(true))).unwrap();
    let child = tracer.child(SpanKind::Client, "child", root.place()).unwrap();
    assert!(spans.try_recv().is_err());
    let (root_place, child_place) = (root.place(), child.place());
    drop((child, root));
    let (child, root) = (spans.try_recv().unwrap(), spans.try_recv().unwrap());
    for (span, own, parent) in [(root, root_place, place(true)), (child, child_place, root_place)] {
        assert_eq!(span.span_context.trace_id().to_bytes(), [7; 16]);
        assert_eq!(span.span_context.span_id().to_bytes(), own.span_id());
        assert_eq!(span.parent_span_id.to_bytes(), parent.span_id());
        assert!(span.start_time <= span.end_time);
    }
}

#[test]
fn what_its_sender_does_not_keep_is_not_kept_and_the_rest_as_configured() {
    let (all, ..) = tracer(8, 100);
    let (none, ..) = tracer(8, 0);
    assert!(all.entry(SpanKind::Server, "it", Some(place(false))).is_none());
    assert!(none.entry(SpanKind::Server, "it", Some(place(true))).is_some());
    assert!(none.entry(SpanKind::Server, "it", None).is_none());
    let (some, ..) = tracer(8, 10);
    let kept = (0..10_000).filter(|_| some.entry(SpanKind::Server, "it", None).is_some()).count();
    assert!((800..1200).contains(&kept), "{kept}");
}

#[test]
fn what_has_no_room_is_dropped_and_counted_and_nobody_waits() {
    let (tracer, mut spans, metrics) = tracer(2, 100);
    for _ in 0..5 {
        drop(tracer.entry(SpanKind::Server, "it", None));
    }
    tracer.entry(SpanKind::Server, "it", None).unwrap().discard();
    told(&metrics, "dropped", 3);
    assert!(spans.try_recv().is_ok() && spans.try_recv().is_ok() && spans.try_recv().is_err());
}

#[test]
fn a_sending_has_the_same_span_wherever_it_is_asked_for() {
    let command = cloudlink_proto::ids::CommandId::from_uuid(Uuid::from_u128(1));
    let other = cloudlink_proto::ids::CommandId::from_uuid(Uuid::from_u128(2));
    assert_eq!(super::place::dispatch_span(command, 1), super::place::dispatch_span(command, 1));
    assert_ne!(super::place::dispatch_span(command, 1), super::place::dispatch_span(command, 2));
    assert_ne!(super::place::dispatch_span(command, 1), super::place::dispatch_span(other, 1));
}

/// Takes batches, or does not.
#[derive(Clone, Debug, Default)]
struct Collector {
    batches: Arc<Mutex<Vec<usize>>>,
    refuses: bool,
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        if self.refuses {
            return Err(OTelSdkError::InternalFailure("away".to_owned()));
        }
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(batch.len());
        Ok(())
    }
}

async fn export(spans: usize, collector: Collector) -> Metrics {
    let (tracer, receiver, metrics) = tracer(QUEUE_MAX, 100);
    for _ in 0..spans {
        drop(tracer.entry(SpanKind::Server, "it", None));
    }
    let stop = CancellationToken::new();
    stop.cancel();
    export::testing::run(receiver, collector, metrics.traces.clone(), stop).await;
    metrics
}

#[tokio::test]
async fn a_stop_leaves_nothing_behind_that_the_collector_takes() {
    let collector = Collector::default();
    let metrics = export(1300, collector.clone()).await;
    told(&metrics, "exported", 1300);
    let batches = collector.batches.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(batches.len() >= 3 && batches.iter().all(|spans| *spans <= 512), "{batches:?}");
}

#[tokio::test]
async fn what_the_collector_does_not_take_is_counted() {
    let metrics = export(700, Collector { refuses: true, ..Collector::default() }).await;
    told(&metrics, "failed", 700);
    told(&metrics, "exported", 0);
}
