//! `GET /groups`: one's own that are not deleted, newest first.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::group::Group;
use crate::store::group::group_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupQuery {
    /// The exact name.
    name: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Groups of devices
#[utoipa::path(get, path = "/groups", operation_id = "group_list", tag = "groups", params(GroupQuery),
    responses((status = 200, body = Page<Group>)))]
#[tracing::instrument(name = "http.group.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<GroupQuery>,
) -> Result<Json<Page<Group>>, Problem> {
    if query.name.as_ref().is_some_and(|name| name.contains('\0')) {
        return Err(Problem::bad_request("The parameter `name` is malformed."));
    }
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let (owner, name) = (caller.tenant(), query.name.as_deref());
    let groups = group_list(&mut transaction, owner, name, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(groups, |group| (group.created_at, group.id))))
}
