//! `GET /access-requests`: newest first. An operator sees what it has asked for.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, TenantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::access_request::{AccessRequest, AccessRequestState};
use crate::store::access_request::{AccessRequestFilter, access_request_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessRequestQuery {
    state: Option<AccessRequestState>,
    /// Only what is about this device.
    device_id: Option<Uuid>,
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Access requests
#[utoipa::path(get, path = "/access-requests", operation_id = "access_request_list", tag = "access",
    params(AccessRequestQuery), responses((status = 200, body = Page<AccessRequest>)))]
#[tracing::instrument(name = "http.access_request.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<AccessRequestQuery>,
) -> Result<Json<Page<AccessRequest>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = AccessRequestFilter {
        operator: caller.operator(),
        tenant: query.tenant_id.map(TenantId::from_uuid),
        state: query.state,
        device: query.device_id.map(DeviceId::from_uuid),
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let requests = access_request_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(requests, |request| (request.created_at, request.id))))
}
