//! `GET /rollouts/{id}`, with its totals.

use axum::extract::State;
use cloudlink_proto::ids::RolloutId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::rollout::Shown;
use crate::store::rollout::rollout_show;

/// A rollout
#[utoipa::path(get, path = "/rollouts/{id}", operation_id = "rollout_show", tag = "rollouts",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Shown)))]
#[tracing::instrument(name = "http.rollout.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Shown>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = rollout_show(&mut transaction, RolloutId::from_uuid(id)).await?;
    Ok(Json(shown.ok_or_else(Problem::not_found)?))
}
