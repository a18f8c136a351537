//! `GET /access-policies/{id}`.

use axum::extract::State;
use cloudlink_proto::ids::AccessPolicyId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::access_policy::AccessPolicy;
use crate::store::access_policy::access_policy_show;

/// One access policy
#[utoipa::path(get, path = "/access-policies/{id}", operation_id = "access_policy_show", tag = "access",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = AccessPolicy)))]
#[tracing::instrument(name = "http.access_policy.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<AccessPolicy>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let policy = access_policy_show(&mut transaction, AccessPolicyId::from_uuid(id)).await?;
    Ok(Json(policy.ok_or_else(Problem::not_found)?))
}
