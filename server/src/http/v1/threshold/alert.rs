//! `GET /alerts`: what is not as it should be at the tenant's devices, newest first.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, ThresholdId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::threshold::{Alert, AlertState};
use crate::store::threshold::{AlertFilter, alert_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AlertQuery {
    threshold_id: Option<Uuid>,
    device_id: Option<Uuid>,
    state: Option<AlertState>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Devices across a threshold
#[utoipa::path(get, path = "/alerts", operation_id = "alert_list", tag = "thresholds", params(AlertQuery),
    responses((status = 200, body = Page<Alert>)))]
#[tracing::instrument(name = "http.threshold.alert", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<AlertQuery>,
) -> Result<Json<Page<Alert>>, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = AlertFilter {
        threshold: query.threshold_id.map(ThresholdId::from_uuid),
        device: query.device_id.map(DeviceId::from_uuid),
        state: query.state,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let alerts = alert_list(&mut transaction, tenant, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(alerts, |alert| (alert.since, alert.id))))
}
