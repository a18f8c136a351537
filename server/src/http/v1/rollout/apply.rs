//! `POST /rollouts/{id}/apply`: lets a plan begin, if the world is still as it was planned for.

use axum::extract::State;
use cloudlink_proto::ids::{RolloutId, TenantId};
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::rollout::{BEGUN_MAX, PLAN_LASTS, Shown, State as RolloutState};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::rollout::{
    Drift, rollout_begin_in_txn, rollout_count_begun, rollout_drift, rollout_hold, rollout_show,
};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutApply {
    /// Of the plan.
    hash: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such rollout")]
    Unknown,
    #[error("somebody else has planned it")]
    NotYours,
    #[error("the rollout is {}", .0.name())]
    NotPlanned(RolloutState),
    #[error("the plan is too old")]
    TooOld,
    #[error("the hash is another plan's")]
    OtherHash,
    #[error("no device is in")]
    Nobody,
    #[error("it is not as planned any more")]
    Moved { drift: Drift, drift_max: i32 },
    #[error("too many rollouts of the tenant have begun")]
    TooMany,
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
                "Another operator has planned it. Plan it yourself: what is done is done in your name.",
            ),
            RouteError::NotPlanned(state) => {
                Self::new(Kind::Conflict, format!("The rollout is {} already. A plan is applied once.", state.name()))
            }
            RouteError::TooOld => Self::new(Kind::PlanMoved, "The plan is older than an hour. Plan again."),
            RouteError::OtherHash => Self::new(
                Kind::PlanMoved,
                "The hash is not this plan's. See `hash` of GET /rollouts/{id}, and what the plan says.",
            ),
            RouteError::Nobody => {
                Self::new(Kind::Conflict, "No device is in. GET /rollouts/{id}/executions says of each why not.")
            }
            RouteError::Moved { drift, drift_max } => {
                let said = |what: &Option<String>| what.clone().unwrap_or_else(|| "in".to_owned());
                let first: Vec<_> = drift
                    .first
                    .iter()
                    .map(|moved| format!("{} ({}, now {})", moved.device, said(&moved.was), said(&moved.is)))
                    .collect();
                Self::new(
                    Kind::PlanMoved,
                    format!(
                        "Plan again: it is not as planned any more. Of {} devices more has changed than a link or a busy lock, and of {} only \
                         that, where `drift_max` of the plan is {drift_max}. The first: {}.",
                        drift.firm,
                        drift.passing,
                        first.join(", ")
                    ),
                )
            }
            RouteError::TooMany => Self::new(
                Kind::TooManyRollouts,
                format!(
                    "{BEGUN_MAX} rollouts of this tenant have begun and are not over. Wait for one, or cancel one: GET /rollouts."
                ),
            ),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Apply a plan
///
/// Refused with `plan_moved`, which names the first devices that differ, if any device would be in or out otherwise than planned; for
/// `drift_max` devices of the plan it may have changed whether they can be reached, or are busy. Who was in stays in, and who was out stays out.
#[utoipa::path(post, path = "/rollouts/{id}/apply", operation_id = "rollout_apply", tag = "rollouts",
    params(("id" = uuid::Uuid, Path)), request_body = RolloutApply, responses((status = 200, body = Shown)))]
#[tracing::instrument(name = "http.rollout.apply", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<RolloutApply>,
) -> Result<Json<Shown>, RouteError> {
    let id = RolloutId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let held = rollout_hold(&mut transaction, id, true).await?.ok_or(RouteError::Unknown)?;
    let record = &held.record;
    if record.requested_by != caller.person().as_uuid() {
        return Err(RouteError::NotYours);
    }
    if record.state != RolloutState::Planned {
        return Err(RouteError::NotPlanned(record.state));
    }
    if record.created_at + PLAN_LASTS <= held.now {
        return Err(RouteError::TooOld);
    }
    if record.hash != request.hash {
        return Err(RouteError::OtherHash);
    }
    if held.rollout.totals().all() == 0 {
        return Err(RouteError::Nobody);
    }
    let drift = rollout_drift(&mut transaction, id).await?;
    if drift.firm > 0 || drift.passing > i64::from(record.drift_max) {
        return Err(RouteError::Moved { drift, drift_max: record.drift_max });
    }
    rollout_begin_in_txn(&mut transaction, id).await?;
    let (tenant, subject) = (TenantId::from_uuid(record.tenant_id), Subject::new("rollout", record.id));
    let shown = rollout_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    let mut details = held.details();
    details["drifted"] = drift.passing.into();
    audit_append(&mut transaction, tenant, &caller.actor(), "rollout.applied", subject, details).await?;
    // Counted while the tenant's log is held: no two may be the last one.
    if rollout_count_begun(&mut transaction, tenant).await? > BEGUN_MAX {
        return Err(RouteError::TooMany);
    }
    context.store.commit(transaction).await?;
    Ok(Json(shown))
}
