//! `POST /access-requests/{id}/deny`: one of the tenant's people says no, and that is the end of it, whoever else has approved.

use axum::extract::State;
use cloudlink_proto::ids::{AccessRequestId, GrantId};
use serde::Deserialize;

use super::approve::{RouteError, decide};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::check_comment;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::access_request::{AccessRequest, Decision};
use crate::model::new_id;
use crate::store::access_request::Answer;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessRequestDeny {
    /// For whoever asked, and the record. 1 to 1,024 characters.
    comment: Option<String>,
}

/// Do not let somebody in who has asked
#[utoipa::path(post, path = "/access-requests/{id}/deny", operation_id = "access_request_deny", tag = "access",
    params(("id" = uuid::Uuid, Path)), request_body = AccessRequestDeny, responses((status = 200, body = AccessRequest)))]
#[tracing::instrument(name = "http.access_request.deny", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<AccessRequestDeny>,
) -> Result<Json<AccessRequest>, RouteError> {
    request.comment.as_deref().map_or(Ok(()), check_comment)?;
    let answer = Answer {
        request: AccessRequestId::from_uuid(id),
        person: caller.person(),
        decision: Decision::Deny,
        scopes: None,
        device_ids: None,
        access_until: None,
        comment: request.comment.as_deref(),
        grant: GrantId::from_uuid(new_id()),
        statement: None,
    };
    let transaction = context.store.begin(caller.visibility()).await?;
    Ok(Json(decide(&context, &caller, transaction, answer, None).await?))
}
