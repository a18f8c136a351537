//! `GET /rollouts`: those that the caller may see, plans included, newest first.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::rollout::{Record, State as RolloutState};
use crate::store::rollout::rollout_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutQuery {
    state: Option<RolloutState>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Rollouts
#[utoipa::path(get, path = "/rollouts", operation_id = "rollout_list", tag = "rollouts", params(RolloutQuery),
    responses((status = 200, body = Page<Record>)))]
#[tracing::instrument(name = "http.rollout.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<RolloutQuery>,
) -> Result<Json<Page<Record>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let rollouts = rollout_list(&mut transaction, query.state, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(rollouts, |rollout| (rollout.created_at, rollout.id))))
}
