//! A collector of traces: OTLP over plain HTTP, read by the messages that OpenTelemetry publishes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::receiver;

/// A span, as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whose it is: `service.instance.id`.
    pub node: String,
    pub name: String,
    pub kind: SpanKind,
    pub trace_id: String,
    pub id: String,
    /// Empty: none.
    pub parent: String,
    pub start_ns: u64,
    pub end_ns: u64,
    pub is_error: bool,
    pub attributes: HashMap<String, String>,
    pub events: Vec<String>,
}

/// What it does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Takes,
    /// Reads it, and never answers.
    Hangs,
}

#[derive(Debug)]
pub struct Collector {
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Collector {
    pub async fn start(address: SocketAddr, manner: Manner) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (address, spans) = (listener.local_addr()?, Arc::<Mutex<Vec<Seen>>>::default());
        let taken = Arc::clone(&spans);
        let task = tokio::spawn(async move {
            // Dropped with this, they end.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let taken = Arc::clone(&taken);
                connections.spawn(async move {
                    if let Ok(come) = take(stream, manner).await {
                        taken.lock().unwrap_or_else(PoisonError::into_inner).extend(come);
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, spans, task })
    }

    /// Its address is free again.
    pub async fn stop(mut self) {
        self.task.abort();
        // That it was aborted is what was asked for.
        let _ = (&mut self.task).await;
    }

    /// What the server's configuration calls it.
    #[must_use]
    pub fn setting(address: SocketAddr) -> String {
        format!("trace.collector=http://{address}")
    }

    /// The spans of a trace that have come until now.
    #[must_use]
    pub fn of(&self, trace_id: &str) -> Vec<Seen> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| span.trace_id == trace_id).cloned().collect()
    }

    /// Everything that has come until now.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(mut stream: TcpStream, manner: Manner) -> anyhow::Result<Vec<Seen>> {
    let request = receiver::read(&mut stream).await?;
    if manner == Manner::Hangs {
        std::future::pending::<()>().await;
    }
    ensure!(request.path == "/v1/traces", "{}", request.path);
    ensure!(request.header("content-type")? == "application/x-protobuf", "{:?}", request.headers);
    let spans = read(&ExportTraceServiceRequest::decode(request.body.as_slice())?)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
    stream.shutdown().await?;
    Ok(spans)
}

fn read(request: &ExportTraceServiceRequest) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for resource in &request.resource_spans {
        let whose = attributes(&resource.resource.as_ref().context("whose are they?")?.attributes);
        let node = whose.get("service.instance.id").context("no service.instance.id")?;
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            seen.push(Seen {
                node: node.clone(),
                name: span.name.clone(),
                kind: span.kind(),
                trace_id: HEXLOWER.encode(&span.trace_id),
                id: HEXLOWER.encode(&span.span_id),
                parent: HEXLOWER.encode(&span.parent_span_id),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
                is_error: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
                attributes: attributes(&span.attributes),
                events: span.events.iter().map(|event| event.name.clone()).collect(),
            });
        }
    }
    Ok(seen)
}

fn attributes(pairs: &[KeyValue]) -> HashMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map(shown).unwrap_or_default())).collect()
}

fn shown(value: &AnyValue) -> String {
    match &value.value {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}
