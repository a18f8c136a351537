//! `GET /nodes/{name}`.

use axum::extract::State;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Json, Name, NoQuery};
use crate::model::node::Node;
use crate::store::StoreError;
use crate::store::node::node_show;

/// One node
#[utoipa::path(get, path = "/nodes/{name}", operation_id = "node_show", tag = "nodes",
    params(("name" = String, Path)), responses((status = 200, body = Node)))]
#[tracing::instrument(name = "http.node.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Name(name): Name,
    _: NoQuery,
) -> Result<Json<Node>, Problem> {
    show(&context, &caller, &name).await?.map(Json).ok_or_else(Problem::not_found)
}

pub(super) async fn show(context: &Context, caller: &Caller, name: &str) -> Result<Option<Node>, StoreError> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let node = node_show(&mut transaction, name).await?;
    Ok(node.map(|node| Node { is_asked: context.is_node(&node.name), ..node }))
}
