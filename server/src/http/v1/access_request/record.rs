//! What is written down of each step, in the transaction of the step itself: an entry in the tenant's audit log, and notices.

use cloudlink_proto::ids::{AccessRequestId, GrantId, TenantId};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::http::problem::Problem;
use crate::model::access_request::{AccessRequest, AccessRequestKind};
use crate::model::audit::{Actor, Subject};
use crate::model::grant::Grant;
use crate::model::notice::Event;
use crate::store::StoreError;
use crate::store::access_request::access_request_show;
use crate::store::audit::audit_append;
use crate::store::grant::grant_show;
use crate::store::notice::notice_emit;

/// A step with its request as it stands then.
#[derive(Clone, Copy, Debug)]
pub(in crate::http::v1) enum Step {
    Created,
    /// A policy allows it: there is nobody to be asked.
    CreatedByPolicy,
    /// One of those who must approve has, or all of them.
    Approved,
    Denied,
    Withdrawn,
}

/// Gives the request, and whether there is anybody outside to be told.
pub(in crate::http::v1) async fn record_in_txn(
    transaction: &mut PgConnection,
    id: AccessRequestId,
    actor: &Actor,
    step: Step,
) -> Result<(AccessRequest, bool), StoreError> {
    let request = access_request_show(transaction, id, None).await?;
    let request = request.ok_or(StoreError::Inconsistent { table: "access_requests", column: "id" })?;
    let tenant = TenantId::from_uuid(request.tenant_id);
    let (action, event, details) = match step {
        Step::Created | Step::CreatedByPolicy => {
            ("access_request.created", Event::AccessRequestCreated, json!(request))
        }
        Step::Approved => ("access_request.approved", Event::AccessRequestApproved, decision(&request, actor)),
        Step::Denied => ("access_request.denied", Event::AccessRequestDenied, decision(&request, actor)),
        Step::Withdrawn => ("access_request.withdrawn", Event::AccessRequestWithdrawn, json!({})),
    };
    let grant = match (step, request.grant_id) {
        (Step::Approved, Some(grant)) => grant_show(transaction, GrantId::from_uuid(grant), None).await?,
        (Step::Created | Step::CreatedByPolicy | Step::Approved | Step::Denied | Step::Withdrawn, _) => None,
    };
    // The first of two approvals changes nothing for anybody outside.
    let mut is_told = false;
    if grant.is_some() || matches!(step, Step::Created | Step::Denied | Step::Withdrawn) {
        is_told |= notice_emit(transaction, tenant, event, json!(request)).await?;
    }
    if let Some(grant) = &grant {
        is_told |= notice_emit(transaction, tenant, grant_event(&request), json!(grant)).await?;
    }
    let subject = Subject::new("access_request", request.id);
    audit_append(transaction, tenant, actor, action, subject, details).await?;
    if let Some(grant) = &grant {
        record_grant(transaction, tenant, actor, &request, grant).await?;
    }
    Ok((request, is_told))
}

/// What this person answered, and what came of it.
fn decision(request: &AccessRequest, actor: &Actor) -> Value {
    let own = match actor {
        Actor::Person { id, .. } => request.decisions.iter().find(|decision| decision.person_id == *id),
        Actor::Device { .. } | Actor::Server { .. } => None,
    };
    json!({"decision": own, "state": request.state, "approvals_needed": request.approvals_needed, "grant_id": request.grant_id,
           "policy_id": request.policy_id})
}

fn grant_event(request: &AccessRequest) -> Event {
    match request.kind {
        AccessRequestKind::Access | AccessRequestKind::Grant => Event::GrantCreated,
        AccessRequestKind::Extension => Event::GrantExtended,
    }
}

async fn record_grant(
    transaction: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    request: &AccessRequest,
    grant: &Grant,
) -> Result<(), StoreError> {
    let action = grant_event(request).name();
    let subject = Subject::new("grant", grant.id);
    audit_append(transaction, tenant, actor, action, subject, json!(grant)).await
}

/// For who proposes something signed.
pub(in crate::http::v1) const LAST_SIGNS: &str = "Two people must approve in this tenant, and whoever approves last signs. \
     Propose it without a `statement`.";

/// The service account that counts for nobody, in words.
pub(in crate::http::v1) fn robot() -> Problem {
    Problem::new(
        crate::http::problem::Kind::Forbidden,
        "Two people must approve in this tenant, and a service account is none. Ask one of them.",
    )
}
