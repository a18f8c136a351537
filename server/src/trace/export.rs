//! Spans on their way to the collector: gathered for a moment, sent in batches, one after another. A collector that is away costs
//! spans, and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use reqwest::redirect;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::figure::Figures;
use super::{QUEUE_MAX, Tracer};
use crate::config;

/// Spans in one request.
const BATCH_MAX: usize = 512;
/// For further ones to come.
const GATHER_FOR: Duration = Duration::from_millis(500);
/// For one batch, with all attempts.
const EXPORT_WITHIN: Duration = Duration::from_secs(10);
/// For what is left when the node stops.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("cannot read trace.ca_file {}", path.display())]
    Certificates {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("trace.ca_file {} holds no certificates", path.display())]
    NoCertificate {
        path: std::path::PathBuf,
        #[source]
        source: reqwest::Error,
    },
    #[error("there is no client for the collector")]
    Client(#[source] reqwest::Error),
    #[error("the collector cannot be used")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// The task that tells spans.
#[derive(Debug)]
pub(crate) struct Exporting {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporting {
    /// Starts it, if there is a collector. To be called in a runtime.
    pub(crate) fn start(
        config: &config::Trace,
        node: &str,
        trust_domain: &str,
        figures: &Figures,
    ) -> Result<Option<(Tracer, Self)>, TraceError> {
        let Some(exporter) = exporter(config, node, trust_domain)? else { return Ok(None) };
        let (queue, spans) = mpsc::channel(QUEUE_MAX);
        let stop = CancellationToken::new();
        let export = Export { spans, exporter, figures: figures.clone(), is_away: false };
        let task = tokio::spawn(export.run(stop.clone()));
        Ok(Some((Tracer::new(queue, figures.clone(), config.sample_percent), Self { stop, task })))
    }

    /// Tells what is left.
    pub(crate) async fn finish(mut self) {
        self.stop.cancel();
        if timeout(FLUSH_WITHIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

fn exporter(config: &config::Trace, node: &str, trust_domain: &str) -> Result<Option<OtlpExporter>, TraceError> {
    let Some(collector) = &config.collector else { return Ok(None) };
    let mut client = reqwest::Client::builder().timeout(EXPORT_WITHIN).redirect(redirect::Policy::none());
    if let Some(path) = &config.ca_file {
        let pem = std::fs::read(path).map_err(|source| TraceError::Certificates { path: path.clone(), source })?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|source| TraceError::NoCertificate { path: path.clone(), source })?;
        client = client.tls_certs_only(roots);
    }
    let headers = config.authorization.iter().map(|value| ("authorization".to_owned(), value.expose().to_owned()));
    let mut exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(client.build().map_err(TraceError::Client)?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(collector.traces())
        .with_timeout(EXPORT_WITHIN)
        .with_headers(HashMap::from_iter(headers))
        .build()
        .map_err(TraceError::Exporter)?;
    let attributes = [
        KeyValue::new("service.name", "cloudlinkd"),
        KeyValue::new("service.namespace", trust_domain.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_owned()),
    ];
    exporter.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
    Ok(Some(exporter))
}

struct Export<E> {
    spans: mpsc::Receiver<SpanData>,
    exporter: E,
    figures: Figures,
    /// The last batch was not taken.
    is_away: bool,
}

impl<E: SpanExporter> Export<E> {
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.gather(&mut batch, &stop).await {
            self.export(&mut batch).await;
        }
    }

    /// Waits for spans, and a moment for more of them. False: there will be none.
    async fn gather(&mut self, batch: &mut Vec<SpanData>, stop: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            _ = self.spans.recv_many(batch, BATCH_MAX) => {}
            () = stop.cancelled() => {}
        }
        let until = Instant::now() + GATHER_FOR;
        let more = async {
            while !batch.is_empty() && batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                if self.spans.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            _ = timeout_at(until, more) => {}
            () = stop.cancelled() => {}
        }
        !batch.is_empty()
    }

    async fn export(&mut self, batch: &mut Vec<SpanData>) {
        let spans = std::mem::replace(batch, Vec::with_capacity(BATCH_MAX));
        let count = spans.len();
        let outcome = timeout(EXPORT_WITHIN, self.exporter.export(spans)).await;
        let was_away = self.is_away;
        self.is_away = !matches!(outcome, Ok(Ok(())));
        match outcome {
            Ok(Ok(())) => {
                self.figures.exported(count);
                if was_away {
                    tracing::info!("the collector takes spans again");
                }
            }
            Ok(Err(error)) if !was_away => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the collector takes no spans: they are lost");
                self.figures.failed(count);
            }
            Err(_) if !was_away => {
                tracing::warn!("the collector does not answer in time: spans are lost");
                self.figures.failed(count);
            }
            Ok(Err(_)) | Err(_) => self.figures.failed(count),
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// The task, with another exporter.
    pub(crate) async fn run(
        spans: mpsc::Receiver<SpanData>,
        exporter: impl SpanExporter,
        figures: Figures,
        stop: CancellationToken,
    ) {
        Export { spans, exporter, figures, is_away: false }.run(stop).await;
    }
}
