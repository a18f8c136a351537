//! `POST /rollouts/{id}/pause`, `/resume` and `/cancel`.

use axum::extract::State;
use cloudlink_proto::ids::{RolloutId, TenantId};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::rollout::{Event, NotNow, Shown};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::rollout::{rollout_hold, rollout_show};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such rollout")]
    Unknown,
    #[error("somebody else has planned it")]
    NotYours,
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::NotYours => Self::new(
                Kind::Conflict,
                "Another operator has planned it, and what is begun is begun in that one's name. Plan the rest of it yourself.",
            ),
            RouteError::NotNow(NotNow(state)) => Self::new(
                Kind::Conflict,
                format!("The rollout is {}, and that cannot be done to it then.", state.name()),
            ),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Pause a rollout
///
/// Nothing more is begun; what is under way ends as it does.
#[utoipa::path(post, path = "/rollouts/{id}/pause", operation_id = "rollout_pause", tag = "rollouts",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Shown)))]
#[tracing::instrument(name = "http.rollout.pause", skip_all)]
pub(crate) async fn pause(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Shown>, RouteError> {
    change(&context, &caller, RolloutId::from_uuid(id), Event::Pause, "rollout.paused").await
}

/// Let a rollout go on
///
/// One that halted by itself as well: what has failed by then halts it no more. Only who planned it may.
#[utoipa::path(post, path = "/rollouts/{id}/resume", operation_id = "rollout_resume", tag = "rollouts",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Shown)))]
#[tracing::instrument(name = "http.rollout.resume", skip_all)]
pub(crate) async fn resume(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Shown>, RouteError> {
    change(&context, &caller, RolloutId::from_uuid(id), Event::Resume, "rollout.resumed").await
}

/// Cancel a rollout
///
/// What no device has begun is called back; what has begun ends as it does, and the rollout is `cancelled` then.
#[utoipa::path(post, path = "/rollouts/{id}/cancel", operation_id = "rollout_cancel", tag = "rollouts",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Shown)))]
#[tracing::instrument(name = "http.rollout.cancel", skip_all)]
pub(crate) async fn cancel(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Shown>, RouteError> {
    change(&context, &caller, RolloutId::from_uuid(id), Event::Cancel, "rollout.cancelled").await
}

async fn change(
    context: &Context,
    caller: &Caller,
    id: RolloutId,
    event: Event,
    action: &str,
) -> Result<Json<Shown>, RouteError> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let mut held = rollout_hold(&mut transaction, id, true).await?.ok_or(RouteError::Unknown)?;
    // Whoever stops it takes nothing upon another; whoever has more begun does.
    if event == Event::Resume && held.record.requested_by != caller.person().as_uuid() {
        return Err(RouteError::NotYours);
    }
    held.handle(event)?;
    let called_back = held.store_in_txn(&mut transaction, Some(held.now), &caller.actor().to_json()).await?;
    let shown = rollout_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    let (tenant, subject) = (TenantId::from_uuid(held.record.tenant_id), Subject::new("rollout", held.record.id));
    audit_append(&mut transaction, tenant, &caller.actor(), action, subject, held.details()).await?;
    context.store.commit(transaction).await?;
    context.tell_called_back(&called_back);
    Ok(Json(shown))
}
