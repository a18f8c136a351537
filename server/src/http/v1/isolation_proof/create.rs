//! `POST /isolation/proofs`: the node that is asked tries at once.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use crate::http::Context;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::proof::Proof;

/// How long the caller is let wait for the result. Below the time that any request has.
const WAIT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProofCreate {
    /// Whether each of the 65,535 ports is tried; otherwise those that something listens on, and a part of the others.
    #[serde(default)]
    all_ports: bool,
}

/// A round that goes on.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProofBegun {
    /// Where it will be found when it is over.
    id: Uuid,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("this node makes no proofs")]
    Off,
    #[error("too many ask")]
    Busy,
    #[error("the node stops")]
    Stopping,
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Off => Self::new(
                Kind::Conflict,
                "This node makes no proofs of its isolation: `tunnel.enabled` or `isolation.proofs` is off.",
            ),
            RouteError::Busy => {
                Self::new(Kind::Conflict, "Others have asked for rounds that are not over yet: ask again.")
            }
            RouteError::Stopping => Self::unavailable(),
        }
    }
}

/// Prove the isolation of the node that is asked
#[utoipa::path(post, path = "/isolation/proofs", operation_id = "isolation_proof_create", tag = "isolation",
    request_body = ProofCreate,
    responses((status = 201, body = Proof), (status = 202, body = ProofBegun, headers(("Location" = String)))))]
#[tracing::instrument(name = "http.isolation_proof.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    _: NoQuery,
    Json(request): Json<ProofCreate>,
) -> Result<Response, RouteError> {
    let prover = context.prover.as_ref().ok_or(RouteError::Off)?;
    let (id, proof) = prover.ask(request.all_ports).ok_or(RouteError::Busy)?;
    let location = [(header::LOCATION, format!("/api/v1/isolation/proofs/{id}"))];
    match timeout(WAIT, proof).await {
        Ok(Ok(proof)) => Ok((StatusCode::CREATED, location, Json(Proof::from(proof))).into_response()),
        Ok(Err(_)) => Err(RouteError::Stopping),
        Err(_) => Ok((StatusCode::ACCEPTED, location, Json(ProofBegun { id })).into_response()),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_node_without_proofs_says_so(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let ask = || scene.post("/isolation/proofs").by(&scene.admin).json(json!({}));
        ask().send().await.expect_problem(Kind::Conflict);
        let unknown = scene.post("/isolation/proofs").by(&scene.admin).json(json!({"ports": 1}));
        unknown.send().await.expect_problem(Kind::BadRequest);
        let operator = scene.post("/isolation/proofs").by(&scene.operator).json(json!({}));
        assert_eq!(operator.send().await.expect_problem(Kind::Forbidden)["status"], StatusCode::FORBIDDEN.as_u16());
    }
}
