//! `GET /nodes`: those of the cluster, and those that were of it until lately.

use std::time::Duration;

use axum::extract::State;
use sqlx::PgConnection;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::Page;
use crate::http::problem::Problem;
use crate::http::request::{Json, NoQuery};
use crate::model::node::Node;
use crate::store::StoreError;
use crate::store::node::node_list;

/// How long a node is shown that was stopped or has died.
const GONE_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// The nodes of the cluster
///
/// By name, all of them on one page. Those that were stopped or died more than a day ago are left out.
#[utoipa::path(get, path = "/nodes", operation_id = "node_list", tag = "nodes",
    responses((status = 200, body = Page<Node>)))]
#[tracing::instrument(name = "http.node.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<Page<Node>>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    Ok(Json(Page { items: nodes(&context, &mut transaction).await?, next_cursor: None }))
}

pub(crate) async fn nodes(context: &Context, connection: &mut PgConnection) -> Result<Vec<Node>, StoreError> {
    let mut nodes = node_list(connection, None, GONE_WITHIN).await?;
    for node in &mut nodes {
        node.is_asked = context.is_node(&node.name);
    }
    Ok(nodes)
}
