//! `GET /support-sessions/{id}`.

use axum::extract::State;
use cloudlink_proto::ids::SupportSessionId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::support_session::SupportSession;
use crate::store::support_session::support_session_show;

/// One support session
#[utoipa::path(get, path = "/support-sessions/{id}", operation_id = "support_session_show", tag = "support",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = SupportSession)))]
#[tracing::instrument(name = "http.support_session.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<SupportSession>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let session = support_session_show(&mut transaction, SupportSessionId::from_uuid(id)).await?;
    Ok(Json(session.ok_or_else(Problem::not_found)?))
}
