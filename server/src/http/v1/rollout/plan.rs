//! `POST /rollouts`: freezes which devices the same command is for, and says why it is for no others. Nothing is begun.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{GrantId, RolloutId, TenantId};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::{check_reason, check_seconds};
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::access_policy::DAYS;
use crate::model::audit::Subject;
use crate::model::command::{Instruction, InstructionError, QUEUE_FOR_MAX, START_WITHIN_DEFAULT};
use crate::model::new_id;
use crate::model::rollout::{LASTS_MAX, Shown, TARGETS_MAX, Window};
use crate::store::StoreError;
use crate::store::access_policy::time_zone_is_known;
use crate::store::audit::audit_append;
use crate::store::rollout::{NewRollout, Unplanned, rollout_plan_in_txn};

/// The longest name of a time zone or of an agent, in bytes.
const NAME_BYTES_MAX: usize = 128;
const LASTS_DEFAULT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutPlan {
    /// Under this grant, and within its tenant.
    grant_id: Uuid,
    /// Which of the tenant's devices. Groups in it are one's own, and are taken for what they mean now.
    selector: WrittenSelector,
    /// As of a command.
    kind: String,
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    arguments: Value,
    /// Why, for the owner of the devices. 1 to 1,024 characters.
    reason: String,
    /// How many devices are tried first: 0 to 50,000. One that fails halts the rollout. Left out: 1.
    #[serde(default = "one")]
    canaries: i32,
    /// How many there are in each later batch, 1 to 50,000; it begins when the one before has ended. Left out: 50.
    #[serde(default = "fifty")]
    batch: i32,
    /// How many are begun within a minute, 1 to 50,000. Left out: 600.
    #[serde(default = "six_hundred")]
    rate_per_minute: i32,
    /// How many must have failed for it to halt by itself, 1 to 50,000. Left out: 1.
    #[serde(default = "one")]
    abort_after: i32,
    /// How long each command may wait for its device: 1 to 604,800. Left out: now or never, and who has no link is out.
    queue_for_seconds: Option<u64>,
    /// Nothing is begun after this time from its start: 1 to 7,776,000. Left out: a day.
    lasts_seconds: Option<u64>,
    /// Devices whose agent is this one, as `agent` of the device says, are out.
    unless_agent: Option<String>,
    /// For how many devices it may have changed when the plan is applied whether they can be reached, or are busy: 0 to 50,000. Left
    /// out: one in a hundred of those that the selector means.
    drift_max: Option<i32>,
    /// Left out: at any time.
    window: Option<Window>,
}

const fn one() -> i32 {
    1
}

const fn fifty() -> i32 {
    50
}

const fn six_hundred() -> i32 {
    600
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error(transparent)]
    Instruction(#[from] InstructionError),
    #[error("no such grant")]
    NoGrant,
    #[error("too many devices")]
    TooMany,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Instruction(error) => Self::unprocessable(format!("The command is not allowed: {error}.")),
            RouteError::NoGrant => {
                Self::new(Kind::NotFound, "There is no such grant that names you. See GET /grants for those there are.")
            }
            RouteError::TooMany => Self::unprocessable(format!(
                "The selector means more than {TARGETS_MAX} devices. Make several rollouts, each of a part of them."
            )),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Plan a rollout
///
/// The answer's `hash` stands for all of it, and `POST /rollouts/{id}/apply` wants it. `GET /rollouts/{id}/executions` says of each
/// device whether it is in, and why not. A plan may be applied for an hour.
#[utoipa::path(post, path = "/rollouts", operation_id = "rollout_plan", tag = "rollouts", request_body = RolloutPlan,
    responses((status = 201, body = Shown)))]
#[tracing::instrument(name = "http.rollout.plan", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<RolloutPlan>,
) -> Result<impl IntoResponse, RouteError> {
    let (start_within, lasts) = request.check()?;
    let instruction = Instruction::parse(&request.kind, request.arguments.clone())?;
    if matches!(instruction, Instruction::TestLink { .. }) && request.queue_for_seconds.is_some() {
        return Err(InstructionError::NowOrNever.into());
    }
    let mut transaction = context.store.begin(caller.visibility()).await?;
    if let Some(window) = &request.window
        && !time_zone_is_known(&mut transaction, &window.time_zone).await?
    {
        let detail = "`window.time_zone` must be UTC or a name of the time zone database, as Europe/Berlin.";
        return Err(Problem::unprocessable(detail).into());
    }
    let selector = request.selector.resolve(&mut transaction, caller.tenant()).await?;
    let selector_text = match &request.selector {
        WrittenSelector::Text(text) => text.clone(),
        WrittenSelector::Labels(_) => selector.to_string(),
    };
    let new = NewRollout {
        id: RolloutId::from_uuid(new_id()),
        operator: caller.person(),
        actor: caller.actor().to_json(),
        grant: GrantId::from_uuid(request.grant_id),
        instruction: &instruction,
        reason: &request.reason,
        selector_text: &selector_text,
        selector: &selector,
        canaries: request.canaries,
        batch: request.batch,
        rate: request.rate_per_minute,
        abort_after: request.abort_after,
        start_within,
        may_queue: request.queue_for_seconds.is_some(),
        lasts,
        unless_agent: request.unless_agent.as_deref(),
        drift_max: request.drift_max,
        window: request.window.as_ref(),
    };
    let shown = match rollout_plan_in_txn(&mut transaction, &new).await? {
        Ok(shown) => shown,
        Err(Unplanned::NoGrant) => return Err(RouteError::NoGrant),
        Err(Unplanned::TooMany) => return Err(RouteError::TooMany),
    };
    let details = json!({
        "grant_id": new.grant.as_uuid(), "kind": instruction.kind().name, "arguments": instruction.arguments(),
        "selector": selector_text, "reason": request.reason, "hash": shown.rollout.hash, "totals": shown.totals,
    });
    let (tenant, subject) = (TenantId::from_uuid(shown.rollout.tenant_id), Subject::new("rollout", shown.rollout.id));
    audit_append(&mut transaction, tenant, &caller.actor(), "rollout.planned", subject, details).await?;
    context.store.commit(transaction).await?;
    let location = format!("/api/v1/rollouts/{}", shown.rollout.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(shown)))
}

impl RolloutPlan {
    /// Checks what is neither instruction nor selector. Returns how soon each device must begin, and how long the rollout lasts.
    fn check(&self) -> Result<(Duration, Duration), Problem> {
        check_reason(&self.reason)?;
        let most = i32::try_from(TARGETS_MAX).unwrap_or(i32::MAX);
        for (field, number, least) in [
            ("canaries", self.canaries, 0),
            ("batch", self.batch, 1),
            ("rate_per_minute", self.rate_per_minute, 1),
            ("abort_after", self.abort_after, 1),
            ("drift_max", self.drift_max.unwrap_or(0), 0),
        ] {
            if !(least..=most).contains(&number) {
                return Err(Problem::unprocessable(format!("`{field}` must be {least} to {most}.")));
            }
        }
        if self.unless_agent.as_ref().is_some_and(|agent| agent.len() > NAME_BYTES_MAX || agent.contains('\0')) {
            return Err(Problem::unprocessable("`unless_agent` is not the name of an agent."));
        }
        if let Some(window) = &self.window {
            check_window(window)?;
        }
        let start_within = self
            .queue_for_seconds
            .map_or(Ok(START_WITHIN_DEFAULT), |seconds| check_seconds("queue_for_seconds", seconds, QUEUE_FOR_MAX))?;
        let lasts = self
            .lasts_seconds
            .map_or(Ok(LASTS_DEFAULT), |seconds| check_seconds("lasts_seconds", seconds, LASTS_MAX))?;
        Ok((start_within, lasts))
    }
}

fn check_window(window: &Window) -> Result<(), Problem> {
    let are_days = (1..=7).contains(&window.days.len()) && window.days.iter().all(|day| DAYS.contains(day));
    let are_minutes = (0..1440).contains(&window.from_minute) && (1..=1440).contains(&window.to_minute);
    let is_name = window.time_zone.len() <= NAME_BYTES_MAX && !window.time_zone.contains('\0');
    if are_days && are_minutes && is_name && window.from_minute != window.to_minute {
        return Ok(());
    }
    Err(Problem::unprocessable(
        "`window` must have `days` of 1 (Monday) to 7, a `from_minute` of 0 to 1,439 and another `to_minute` of 1 to 1,440.",
    ))
}
