//! `GET /storm-plan`: how long a fleet takes to come back.

use std::sync::LazyLock;

use axum::extract::State;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::admission::plan::{DEVICES_MAX, NODES_MAX};
use crate::http::Context;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, Query};
use crate::model::storm_plan::StormPlan;

/// Plans that are made at the same time: each takes a processor for a while.
static PLANNING: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(1));

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StormQuery {
    /// Devices that lose their links together, at most 1,000,000.
    devices: u32,
    /// Nodes that are left, each like the one that is asked; 1 if it is not given.
    nodes: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("too many devices or nodes, or none")]
    Range,
    #[error("it is over too late to be foreseen")]
    Endless,
    #[error("there is no device port")]
    Off,
    #[error("the node stops")]
    Stopping,
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Range => Self::new(
                Kind::BadRequest,
                format!("`devices` is from 1 to {DEVICES_MAX}, `nodes` from 1 to {NODES_MAX}."),
            ),
            RouteError::Endless => Self::unprocessable(
                "So many devices come back to so few nodes so slowly that it cannot be foreseen: over hours or days."
                    .to_owned(),
            ),
            RouteError::Off => Self::not_found(),
            RouteError::Stopping => Self::unavailable(),
        }
    }
}

/// How long it takes until all devices are back
///
/// When they lose their links together, because a node or all of them died. By what the node that answers has measured.
#[utoipa::path(get, path = "/storm-plan", operation_id = "storm_plan_show", tag = "nodes",
    params(StormQuery), responses((status = 200, body = StormPlan)))]
#[tracing::instrument(name = "http.storm_plan.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    Query(query): Query<StormQuery>,
) -> Result<Json<StormPlan>, RouteError> {
    let (devices, nodes) = (query.devices, query.nodes.unwrap_or(1));
    if !(1..=DEVICES_MAX).contains(&devices) || !(1..=NODES_MAX).contains(&nodes) {
        return Err(RouteError::Range);
    }
    let links = context.links.clone().ok_or(RouteError::Off)?;
    let turn = PLANNING.acquire().await.map_err(|_| RouteError::Stopping)?;
    let plan = spawn_blocking(move || {
        // Whoever asked may not wait for it any more.
        let _turn = turn;
        links.plan_storm(devices, nodes)
    });
    let plan = plan.await.map_err(|_| RouteError::Stopping)?;
    plan.map(Json).ok_or(RouteError::Endless)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_no_storm_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for query in ["devices=0", "devices=1000001", "devices=10&nodes=0", "devices=10&nodes=1001"] {
            let call = scene.get(&format!("/storm-plan?{query}")).by(&scene.admin);
            call.send().await.expect_problem(Kind::BadRequest);
        }
        scene.get("/storm-plan?devices=10").by(&scene.admin).send().await.expect(StatusCode::NOT_FOUND);
    }
}
