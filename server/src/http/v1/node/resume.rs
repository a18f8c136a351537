//! `POST /nodes/{name}/resume`: it takes devices again.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::show::show;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::pass_on::pass_on;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, Kept, Name, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::node::Node;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::node::node_resume;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeResume {}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such node")]
    Unknown,
    #[error("it is not drained")]
    Serving,
    #[error("another node alone can do this")]
    Elsewhere,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Serving => Self::new(Kind::Conflict, "The node is not drained."),
            RouteError::Elsewhere => Self::new(
                Kind::Unavailable,
                "That node alone can do this, and this one has no way to it: ask it directly.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Have a drained node take devices again
///
/// Devices that were told to connect elsewhere do so nevertheless.
#[utoipa::path(post, path = "/nodes/{name}/resume", operation_id = "node_resume", tag = "nodes",
    params(("name" = String, Path)), request_body = NodeResume, responses((status = 200, body = Node)))]
#[tracing::instrument(name = "http.node.resume", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Name(name): Name,
    _: NoQuery,
    Kept { json: Json(NodeResume {}), request: whole }: Kept<NodeResume>,
) -> Result<Response, RouteError> {
    let Some(node) = context.node.as_ref().filter(|node| node.name == name) else {
        show(&context, &caller, &name).await?.ok_or(RouteError::Unknown)?;
        return Ok(pass_on(&context, &name, whole).await.ok_or(RouteError::Elsewhere)??);
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let instance = node_resume(&mut transaction, &name).await?.ok_or(RouteError::Serving)?;
    let (subject, details) = (Subject::new("node", instance), json!({"node": name}));
    audit_append(&mut transaction, PLATFORM, &caller.actor(), "node.resumed", subject, details).await?;
    context.store.commit(transaction).await?;
    node.drain.resume();
    let shown = show(&context, &caller, &name).await?.ok_or(RouteError::Unknown)?;
    Ok(Json(shown).into_response())
}
