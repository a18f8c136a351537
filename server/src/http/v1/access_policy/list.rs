//! `GET /access-policies`: newest first.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::access_policy::AccessPolicy;
use crate::store::access_policy::access_policy_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessPolicyQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Access policies
#[utoipa::path(get, path = "/access-policies", operation_id = "access_policy_list", tag = "access",
    params(AccessPolicyQuery), responses((status = 200, body = Page<AccessPolicy>)))]
#[tracing::instrument(name = "http.access_policy.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<AccessPolicyQuery>,
) -> Result<Json<Page<AccessPolicy>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let policies = access_policy_list(&mut transaction, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(policies, |policy| (policy.created_at, policy.id))))
}
