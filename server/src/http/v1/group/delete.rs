//! `POST /groups/{id}/delete`: the name means nothing any more, and may be given again. Deleting again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::GroupId;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::group::Group;
use crate::store::audit::audit_append;
use crate::store::group::{group_delete_in_txn, group_lock};

/// Delete a group
///
/// What was made of it before stays as it is.
#[utoipa::path(post, path = "/groups/{id}/delete", operation_id = "group_delete", tag = "groups",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Group)))]
#[tracing::instrument(name = "http.group.delete", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Group>, Problem> {
    let id = GroupId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = group_lock(&mut transaction, caller.tenant(), id).await?.ok_or_else(Problem::not_found)?;
    if before.deleted_at.is_some() {
        return Ok(Json(before));
    }
    let group = group_delete_in_txn(&mut transaction, id).await?;
    let (subject, details) = (Subject::new("group", group.id), json!({"name": group.name, "selector": group.selector}));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "group.deleted", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(Json(group))
}
