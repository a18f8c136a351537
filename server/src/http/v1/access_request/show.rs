//! `GET /access-requests/{id}`. An operator sees what it has asked for.

use axum::extract::State;
use cloudlink_proto::ids::AccessRequestId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::access_request::AccessRequest;
use crate::store::access_request::access_request_show;

/// One access request
#[utoipa::path(get, path = "/access-requests/{id}", operation_id = "access_request_show", tag = "access",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = AccessRequest)))]
#[tracing::instrument(name = "http.access_request.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<AccessRequest>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let request = access_request_show(&mut transaction, AccessRequestId::from_uuid(id), caller.operator()).await?;
    Ok(Json(request.ok_or_else(Problem::not_found)?))
}
