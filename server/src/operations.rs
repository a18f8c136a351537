//! The operations port: `/metrics`, `/healthz`, `/readyz`, for whoever runs the node.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Standing;
use crate::drain::Wish;
use crate::http_server::{Bounds, HttpServer};
use crate::isolation;
use crate::metrics::Metrics;
use crate::proxy::Proxies;
use crate::store::{Probe, Store};

/// Monitoring systems are few.
const BOUNDS: Bounds = Bounds {
    connections_max: 64,
    per_address_max: 64,
    handshake: Duration::from_secs(5),
    header: Duration::from_secs(5),
    idle: Duration::from_secs(60),
};
/// How often the database is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How far the node's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Stage {
    /// Waiting for the database, or preparing it.
    Starting,
    /// The listeners are up.
    Running,
    /// Asked to stop.
    Stopping,
}

/// Whether the node should be given work.
#[derive(Debug)]
pub struct Readiness {
    stage: AtomicU8,
    metrics: Arc<Metrics>,
    begun: Instant,
    /// Known once the database is.
    store: OnceLock<Store>,
    /// Where there are tunnels.
    isolation: OnceLock<watch::Receiver<isolation::State>>,
    /// Once the node has a place among nodes.
    standing: OnceLock<watch::Receiver<Standing>>,
    /// Once it has devices that could be sent to other nodes.
    drain: OnceLock<watch::Receiver<Option<Wish>>>,
}

impl Readiness {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let stage = AtomicU8::new(Stage::Starting as u8);
        Self {
            stage,
            metrics,
            begun: Instant::now(),
            store: OnceLock::new(),
            isolation: OnceLock::new(),
            standing: OnceLock::new(),
            drain: OnceLock::new(),
        }
    }

    /// The database was reached, is of the right version, and the listeners are up.
    pub fn running(&self, store: Store) {
        let _ = self.store.set(store);
        self.stage.store(Stage::Running as u8, Ordering::Release);
    }

    /// There are tunnels: nothing else may be said to be ready while they are not isolated.
    pub(crate) fn isolated(&self, state: watch::Receiver<isolation::State>) {
        let _ = self.isolation.set(state);
    }

    /// The node has a place: while it has lost it, it serves nobody.
    pub(crate) fn placed(&self, standing: watch::Receiver<Standing>) {
        let _ = self.standing.set(standing);
    }

    fn is_fenced(&self) -> bool {
        self.standing.get().is_some_and(|standing| *standing.borrow() != Standing::Held)
    }

    /// The node can be drained: meanwhile nobody new is wanted.
    pub(crate) fn drainable(&self, drain: watch::Receiver<Option<Wish>>) {
        let _ = self.drain.set(drain);
    }

    fn is_draining(&self) -> bool {
        self.drain.get().is_some_and(|drain| drain.borrow().is_some())
    }

    pub fn stopping(&self) {
        self.stage.store(Stage::Stopping as u8, Ordering::Release);
    }

    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 => Stage::Running,
            _ => Stage::Stopping,
        }
    }

    /// Watches the database, until the node stops.
    pub async fn watch_database(self: Arc<Self>, mut probe: Probe, stop: CancellationToken) {
        loop {
            let up = tokio::select! {
                () = stop.cancelled() => return,
                up = probe.run() => up,
            };
            let was_up = self.metrics.database_up.get() == 1;
            self.metrics.database_up.set(up.into());
            if let Some(store) = self.store.get() {
                store.doubt(!up);
            }
            match (was_up, up) {
                (true, false) => tracing::error!("the database went away: links stay up, requests get a 503"),
                (false, true) => tracing::info!("the database is there"),
                (true, true) | (false, false) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
        }
    }

    fn refresh_metrics(&self) {
        self.metrics.uptime_seconds.set(self.begun.elapsed().as_secs_f64());
        self.metrics.node_fenced.set(self.is_fenced().into());
        self.metrics.drain.draining.set(self.is_draining().into());
        if let Some(store) = self.store.get() {
            let pool = store.pool();
            self.metrics.pool_connections.set(pool.size().into());
            self.metrics.pool_connections_idle.set(i64::try_from(pool.num_idle()).unwrap_or(i64::MAX));
            self.metrics.pool_connections_max.set(pool.options().get_max_connections().into());
        }
    }
}

/// How the operations port is served.
#[must_use]
pub fn server(readiness: Arc<Readiness>) -> HttpServer {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(readiness);
    HttpServer { name: "operations", router, tls: None, proxies: Proxies::default(), bounds: BOUNDS, figures: None }
}

async fn metrics(State(readiness): State<Arc<Readiness>>) -> Response {
    readiness.refresh_metrics();
    match readiness.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The process answers: whoever restarts what does not answer, asks this.
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether to send work here.
async fn readyz(State(readiness): State<Arc<Readiness>>) -> impl IntoResponse {
    let isolation = readiness.isolation.get().map(|state| *state.borrow());
    let report = Report {
        stage: readiness.stage(),
        database: readiness.metrics.database_up.get() == 1,
        isolation: isolation.map_or("off", isolation::State::label),
        fenced: readiness.is_fenced(),
        draining: readiness.is_draining(),
    };
    let is_isolated = isolation.is_none_or(|state| state == isolation::State::Enforced);
    let is_wanted = report.stage == Stage::Running && !report.fenced && !report.draining;
    let ready = is_wanted && report.database && is_isolated;
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(report))
}

#[derive(Serialize)]
struct Report {
    stage: Stage,
    database: bool,
    /// Of tunnels: `off` where there are none, otherwise `enforced` or what is wrong with it.
    isolation: &'static str,
    /// Whether other nodes may have taken over what this one had.
    fenced: bool,
    /// Whether its devices are sent to other nodes.
    draining: bool,
}
