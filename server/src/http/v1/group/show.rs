//! `GET /groups/{id}`: one of one's own, also when it is deleted. Its devices are those of `GET /devices?selector=@NAME`.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::GroupId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::group::Group;
use crate::store::group::group_show;

/// One group
#[utoipa::path(get, path = "/groups/{id}", operation_id = "group_show", tag = "groups",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Group, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.group.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let group = group_show(&mut transaction, caller.tenant(), GroupId::from_uuid(id)).await?;
    let group = group.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(group.version).header(), Json(group)))
}
