//! `GET /rollouts/{id}/executions`: its devices in the order in which they are begun, and at the end those that are out.

use axum::extract::State;
use cloudlink_proto::ids::RolloutId;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{NumberWindow, Page};
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::model::rollout::Execution;
use crate::store::rollout::{execution_list, rollout_show};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecutionQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Devices of a rollout
///
/// Each with what became of it, or why it is out.
#[utoipa::path(get, path = "/rollouts/{id}/executions", operation_id = "rollout_execution_list", tag = "rollouts",
    params(("id" = uuid::Uuid, Path), ExecutionQuery), responses((status = 200, body = Page<Execution>)))]
#[tracing::instrument(name = "http.rollout.execution", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<ExecutionQuery>,
) -> Result<Json<Page<Execution>>, Problem> {
    let window = NumberWindow::new(query.limit, query.cursor.as_deref())?;
    let id = RolloutId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    rollout_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    // A window goes from high numbers to low ones, and places the other way.
    let from = window.before.map_or(0, |last| last.saturating_neg().saturating_add(1));
    let executions = execution_list(&mut transaction, id, from, window.fetch_limit()).await?;
    Ok(Json(window.page(executions, |execution| -i64::from(execution.place))))
}
