//! `GET /thresholds`: those that are not deleted, newest first.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::threshold::Threshold;
use crate::store::threshold::threshold_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThresholdQuery {
    /// The exact name.
    name: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Rules over what devices measure
#[utoipa::path(get, path = "/thresholds", operation_id = "threshold_list", tag = "thresholds", params(ThresholdQuery),
    responses((status = 200, body = Page<Threshold>)))]
#[tracing::instrument(name = "http.threshold.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<ThresholdQuery>,
) -> Result<Json<Page<Threshold>>, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    if query.name.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(Problem::bad_request("The parameter `name` is malformed."));
    }
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let name = query.name.as_deref();
    let thresholds = threshold_list(&mut transaction, tenant, name, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(thresholds, |threshold| (threshold.created_at, threshold.id))))
}
