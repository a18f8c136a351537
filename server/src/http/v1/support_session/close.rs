//! `POST /support-sessions/{id}/close`: by the operator who opened it, or by the device's owner. Closing again changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use cloudlink_proto::ids::SupportSessionId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::support_session::{EndReason, SupportSession};
use crate::store::StoreError;
use crate::store::support_session::{
    Closing, support_session_end_in_txn, support_session_lock_in_txn, support_session_show, support_session_tell_in_txn,
};
use crate::support::session::Session;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such session")]
    Unknown,
    #[error("somebody else opened it")]
    Foreign,
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Foreign => Self::new(
                Kind::Forbidden,
                "Another operator opened it. Ask that one, or the device's owner, to close it.",
            ),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// End a support session
#[utoipa::path(post, path = "/support-sessions/{id}/close", operation_id = "support_session_close",
    tag = "support", params(("id" = uuid::Uuid, Path)), responses((status = 200, body = SupportSession)))]
#[tracing::instrument(name = "http.support_session.close", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<SupportSession>, RouteError> {
    let id = SupportSessionId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let session = support_session_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    if caller.operator().is_some_and(|operator| operator != session.opened_by) {
        return Err(RouteError::Foreign);
    }
    let is_ending = |live: Arc<Session>| live.ending().is_some();
    if context.support().is_ok_and(|support| support.find(id).is_some_and(is_ending)) {
        // It has its reason, which is about to be written.
        return Ok(Json(session));
    }
    let live = support_session_lock_in_txn(&mut transaction, Closing::One(id)).await?;
    let (actor, reason) = (caller.actor().to_json(), EndReason::Closed);
    let ended = support_session_end_in_txn(&mut transaction, &live, actor, reason, Duration::ZERO).await?;
    let is_told = support_session_tell_in_txn(&mut transaction, &ended).await?;
    let session = support_session_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    context.store.commit(transaction).await?;
    context.tell_sessions_ended(&ended);
    context.tell_outside(is_told);
    Ok(Json(session))
}
