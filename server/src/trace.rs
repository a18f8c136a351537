//! Traces: what one request did, on whichever nodes and as far as the device, told to a collector over OTLP (HTTP, protobuf).
//!
//! ```text
//! POST /devices/{id}/commands        the node that was asked        parent: the caller's `traceparent`, if it sent one
//! └─ command.insert                  the same                       kept with the command (`commands.trace_parent`)
//!    └─ command.dispatch             the node that has the link     its id is made of the command and the link's epoch
//!       └─ command.run               whoever stores the end         from the sending to the final state
//! ```
//!
//! Spans are few, and made where something is known to begin and end. They are not those of the log, which its filter switches
//! off and which end with their process: a command outlives nodes. What is needed to go on is in the command's row, so any node
//! can, at any time. A span is told when it ends; one whose node dies is missing, and its children name it all the same.
//!
//! Without a collector there is nothing to do but to pass a caller's place on to the device.

mod export;
pub(crate) mod figure;
pub(crate) mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloudlink_proto::trace_parent::TraceParent;
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

pub(crate) use export::Exporting;

use crate::clock;
use figure::Figures;

/// Spans that wait to be told. One more is dropped, and counted.
const QUEUE_MAX: usize = 8_192;

/// What makes spans. Cheap to clone; every clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Sink>>);

#[derive(Debug)]
struct Sink {
    queue: mpsc::Sender<SpanData>,
    figures: Figures,
    /// Of traces that begin here.
    sample_percent: u32,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
}

impl Tracer {
    fn new(queue: mpsc::Sender<SpanData>, figures: Figures, sample_percent: u32) -> Self {
        let scope = InstrumentationScope::builder("cloudlink").with_version(env!("CARGO_PKG_VERSION")).build();
        let ids = RandomIdGenerator::default();
        Self(Some(Arc::new(Sink { queue, figures, sample_percent, ids, scope })))
    }

    /// Something that comes from outside. With a `parent` it goes on with that trace, if it is kept; without, a share of them
    /// begins one.
    pub(crate) fn entry(&self, kind: SpanKind, name: &'static str, parent: Option<TraceParent>) -> Option<Span> {
        match parent {
            Some(parent) => self.child(kind, name, parent),
            None => self.0.as_ref()?.root(kind, name),
        }
    }

    /// Something that was caused by `parent`. None, if nobody keeps that trace.
    pub(crate) fn child(&self, kind: SpanKind, name: &'static str, parent: TraceParent) -> Option<Span> {
        let sink = self.0.as_ref()?;
        self.child_named(kind, name, parent, sink.ids.new_span_id().to_bytes())
    }

    /// The same, under an id that others know already.
    pub(crate) fn child_named(
        &self,
        kind: SpanKind,
        name: &'static str,
        parent: TraceParent,
        span_id: [u8; 8],
    ) -> Option<Span> {
        let sink = self.0.as_ref().filter(|_| parent.is_sampled())?;
        let place = TraceParent::new(parent.trace_id(), span_id, true)?;
        Some(Span::begin(sink, kind, name, place, Some(parent)))
    }
}

impl Sink {
    fn root(self: &Arc<Self>, kind: SpanKind, name: &'static str) -> Option<Span> {
        let trace_id = self.ids.new_trace_id().to_bytes();
        // By the id, which is drawn by lot.
        let [.., low] = trace_id.as_chunks::<8>().0 else { return None };
        let is_kept = u64::from_be_bytes(*low) % 100 < u64::from(self.sample_percent);
        let place = TraceParent::new(trace_id, self.ids.new_span_id().to_bytes(), true).filter(|_| is_kept)?;
        Some(Span::begin(self, kind, name, place, None))
    }
}

/// Something that goes on. Told when it is dropped.
#[derive(Debug)]
pub(crate) struct Span {
    sink: Arc<Sink>,
    place: TraceParent,
    /// None: it is not told.
    data: Option<Box<SpanData>>,
}

impl Span {
    fn begin(
        sink: &Arc<Sink>,
        span_kind: SpanKind,
        name: &'static str,
        place: TraceParent,
        parent: Option<TraceParent>,
    ) -> Self {
        let now: SystemTime = clock::now().into();
        let data = SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(place.trace_id()),
                SpanId::from_bytes(place.span_id()),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.span_id())),
            parent_span_is_remote: matches!(span_kind, SpanKind::Server | SpanKind::Consumer),
            span_kind,
            name: name.into(),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: sink.scope.clone(),
        };
        Self { sink: Arc::clone(sink), place, data: Some(Box::new(data)) }
    }

    /// What is caused by it has this for its parent.
    pub(crate) fn place(&self) -> TraceParent {
        self.place
    }

    pub(crate) fn rename(&mut self, name: String) {
        self.change(|data| data.name = name.into());
    }

    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.change(|data| data.attributes.push(KeyValue::new(key, value)));
    }

    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        self.change(|data| data.status = Status::error(why.into()));
    }

    /// It began before it was known of.
    pub(crate) fn began_ago(&mut self, ago: Duration) {
        self.change(|data| data.start_time = before(data.end_time, ago));
    }

    /// Something that happened meanwhile, so long ago.
    pub(crate) fn happened(&mut self, what: &'static str, ago: Duration) {
        self.change(|data| {
            let event = Event::new(what, before(data.end_time, ago), Vec::new(), 0);
            data.events.events.push(event);
        });
    }

    /// Not worth telling.
    pub(crate) fn discard(mut self) {
        self.data = None;
    }

    fn change(&mut self, change: impl FnOnce(&mut SpanData)) {
        if let Some(data) = &mut self.data {
            change(data);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut data) = self.data.take() else { return };
        data.end_time = SystemTime::from(clock::now()).max(data.start_time);
        if self.sink.queue.try_send(*data).is_err() {
            self.sink.figures.dropped(1);
        }
    }
}

fn before(time: SystemTime, ago: Duration) -> SystemTime {
    time.checked_sub(ago).unwrap_or(time)
}
