//! `POST /thresholds/{id}/delete`: nothing new is told of it. Those whose crossing was told are told to be clear again.

use axum::extract::State;
use cloudlink_proto::ids::ThresholdId;

use super::create::audited;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::threshold::Threshold;
use crate::store::audit::audit_append;
use crate::store::threshold::{threshold_delete_in_txn, threshold_lock};

/// Delete a rule
///
/// What webhooks were told to have crossed it, they are told to be clear of it again.
#[utoipa::path(post, path = "/thresholds/{id}/delete", operation_id = "threshold_delete", tag = "thresholds",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Threshold)))]
#[tracing::instrument(name = "http.threshold.delete", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Threshold>, Problem> {
    let (tenant, id) = (caller.tenant().ok_or_else(Problem::not_found)?, ThresholdId::from_uuid(id));
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = threshold_lock(&mut transaction, tenant, id).await?.ok_or_else(Problem::not_found)?;
    if before.deleted_at.is_some() {
        return Ok(Json(before));
    }
    let threshold = threshold_delete_in_txn(&mut transaction, id).await?;
    let (subject, details) = (Subject::new("threshold", threshold.id), audited(&threshold));
    audit_append(&mut transaction, tenant, &caller.actor(), "threshold.deleted", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(Json(threshold))
}
