//! `POST /access-policies/{id}/approve`: the second person, where two must approve.

use axum::extract::State;
use cloudlink_proto::ids::AccessPolicyId;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::v1::access_request::record::robot;
use crate::model::access_policy::AccessPolicy;
use crate::model::audit::Subject;
use crate::store::access_policy::{PolicyApproved, access_policy_approve, access_policy_show};
use crate::store::audit::audit_append;

/// Approve a policy that somebody else has made
#[utoipa::path(post, path = "/access-policies/{id}/approve", operation_id = "access_policy_approve", tag = "access",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = AccessPolicy)))]
#[tracing::instrument(name = "http.access_policy.approve", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<AccessPolicy>, Problem> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let id = AccessPolicyId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let approved = match access_policy_approve(&mut transaction, id, caller.person()).await? {
        PolicyApproved::Approved => true,
        PolicyApproved::Again => false,
        PolicyApproved::Unknown => return Err(Problem::not_found()),
        PolicyApproved::NoPerson => {
            return Err(Problem::new(Kind::Forbidden, "Only the tenant's own people approve its policies."));
        }
        PolicyApproved::Robot => return Err(robot()),
        PolicyApproved::Own => {
            let detail = "You have made this policy yourself. Somebody else of your tenant must approve it.";
            return Err(Problem::new(Kind::Conflict, detail));
        }
        PolicyApproved::Revoked => return Err(Problem::new(Kind::Conflict, "The policy is revoked. Make a new one.")),
    };
    let policy = access_policy_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if approved {
        let subject = Subject::new("access_policy", policy.id);
        let details = json!({"name": policy.name});
        audit_append(&mut transaction, tenant, &caller.actor(), "access_policy.approved", subject, details).await?;
        context.store.commit(transaction).await?;
    }
    Ok(Json(policy))
}
