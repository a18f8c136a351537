//! `GET /thresholds/{id}`: one of the tenant's, also when it is deleted.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::ThresholdId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::threshold::Threshold;
use crate::store::threshold::threshold_show;

/// One rule over what devices measure
#[utoipa::path(get, path = "/thresholds/{id}", operation_id = "threshold_show", tag = "thresholds",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Threshold, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.threshold.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let threshold = threshold_show(&mut transaction, tenant, ThresholdId::from_uuid(id)).await?;
    let threshold = threshold.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(threshold.version).header(), Json(threshold)))
}
