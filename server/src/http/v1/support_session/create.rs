//! `POST /devices/{id}/support-sessions`: a session with a device, under a grant. The check of the grant and the insert are one
//! statement of the database, with its clock; everything else here explains why nothing came of it. What is to be done in the
//! session comes over `GET /support-sessions/{id}/stream`.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, SupportSessionId, TenantId};
use http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::time::sleep;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::field::check_reason;
use crate::http::pass_on::{Repeatable, kind_of, pass_on};
use crate::http::problem::{Kind as Problems, Problem, respond_as_problem};
use crate::http::request::{Id, Json, Kept, NoQuery};
use crate::http::v1::command::create::explain;
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::support_session::{Kind, SupportSession, Target, TargetError};
use crate::store::audit::audit_append;
use crate::store::command::Missing;
use crate::store::support_session::{
    LinkFacts, NewSession, Obstacle, SessionFacts, support_session_create, support_session_explain,
    support_session_facts,
};
use crate::store::{StoreError, Visibility, single};
use crate::support::Support;
use crate::support::session::Facts;

/// How often a session is tried when what was in the way has gone meanwhile.
const ATTEMPTS_MAX: usize = 2;
/// Before it is looked for anew where the device's link is, which was on its way to another node.
const MOVED_AGAIN_AFTER: Duration = Duration::from_millis(250);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SupportSessionCreate {
    kind: Kind,
    /// Nothing for a terminal. For a forward `port`, and perhaps `host` (`localhost` if it is left out) and `via`: `agent`, or
    /// `node` for a device without an agent. For a file `path` and `direction` (`to_device` or `from_device`), and for the device
    /// `size` and perhaps `mode` (420, which is 0o644, if it is left out).
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    target: Value,
    /// Why, for the device's owner. 1 to 1,024 characters.
    reason: String,
    /// Under this grant, and no other; left out: under the longest that allows it.
    grant_id: Option<Uuid>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("no grant allows it: {}", .0.name())]
    GrantRequired(Missing),
    #[error("the device has no live link")]
    NotLinked,
    #[error("the device has no live link, and polls")]
    Polling,
    #[error("the device is linked to another node")]
    OtherNode(String),
    #[error("the device's agent opens no such streams")]
    NoAgent,
    #[error("the device has no tunnel")]
    NoTunnel,
    #[error("the device is in quarantine")]
    Quarantined,
    #[error("the device has as many sessions as it may")]
    DeviceFull,
    #[error("the node has as many sessions as it may, or stops")]
    NodeFull,
    #[error("the device is revoked")]
    DeviceRevoked,
    #[error("no such device")]
    DeviceUnknown,
    #[error("grants or links change too fast")]
    Unsettled,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Target(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                Self::unprocessable(format!("The target is none: {error}{cause}."))
            }
            RouteError::GrantRequired(missing) => {
                Self::new(Problems::GrantRequired, explain(missing)).reason(missing.name())
            }
            RouteError::NotLinked => Self::new(
                Problems::NotLinked,
                "The device has no live link, so nothing can be opened on it. Look at its `link`, and ask again when it is back.",
            ),
            RouteError::Polling => Self::new(
                Problems::Polling,
                "The device has no live link: it polls, and nothing can be opened on it that way. Find out why its network lets no link through, and ask again when it is linked.",
            ),
            RouteError::OtherNode(node) => Self::new(
                Problems::NotLinked,
                format!(
                    "The device is linked to the node {node:?}, which alone can open sessions with it. Ask that one."
                ),
            ),
            RouteError::NoAgent => Self::new(
                Problems::NoAgent,
                "No agent answers on the device that opens such streams. Let it run the agent, with that enabled; or forward a port with `via` = `node`.",
            ),
            RouteError::NoTunnel => Self::new(
                Problems::NoTunnel,
                "The device has no tunnel now, so the node has no way to its ports. Let it connect with OpenVPN, or ask with `via` = `agent`.",
            ),
            RouteError::Quarantined => Self::new(
                Problems::Quarantined,
                "The device is in quarantine: nothing but its link is let through. Look into why, and end the quarantine first.",
            ),
            RouteError::DeviceFull => Self::new(
                Problems::TooManySessions,
                "The device has as many sessions as it may. Close one that is not needed.",
            ),
            RouteError::NodeFull => Self::new(
                Problems::TooManySessions,
                "The server has as many sessions as it may, or is about to stop. Close one that is not needed, or ask again.",
            ),
            RouteError::DeviceRevoked => {
                Self::new(Problems::DeviceRevoked, "The device was revoked. Nothing of it can be opened any more.")
            }
            RouteError::DeviceUnknown => Self::not_found(),
            RouteError::Unsettled => Self::new(
                Problems::Conflict,
                "Grants or the device's link changed while the session was checked. Nothing was done: ask again.",
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Open a session with a device
///
/// A terminal, a TCP port forward or a file copy. It ends with its grant at the latest, is recorded, and waits a minute for its
/// first stream: `GET /support-sessions/{id}/stream`.
#[utoipa::path(post, path = "/devices/{id}/support-sessions", operation_id = "support_session_create",
    tag = "support", params(("id" = uuid::Uuid, Path)), request_body = SupportSessionCreate,
    responses((status = 201, body = SupportSession)))]
#[tracing::instrument(name = "http.support_session.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Kept { json: Json(request), request: whole }: Kept<SupportSessionCreate>,
) -> Result<Response, RouteError> {
    check_reason(&request.reason)?;
    let target = Target::read(request.kind, request.target)?;
    let support = context.support()?;
    let id = (SupportSessionId::from_uuid(new_id()), DeviceId::from_uuid(id));
    let new = NewSession {
        id: id.0,
        operator: caller.person(),
        actor: caller.actor().to_json(),
        device: id.1,
        grant: request.grant_id.map(GrantId::from_uuid),
        target: &target,
        reason: &request.reason,
        node: support.node(),
        sessions_max: support.per_device_max(),
    };
    let whole = Repeatable::of(whole).await?;
    let mut is_again = false;
    let session = loop {
        match create(&context, support, &caller, &new).await {
            Err(RouteError::OtherNode(node)) => {
                let answer = pass_on(&context, &node, whole.request()).await.ok_or(RouteError::OtherNode(node))??;
                let (answer, kind) = kind_of(answer).await?;
                if is_again || kind.as_deref() != Some(Problems::NotLinked.name()) {
                    return Ok(answer);
                }
                // The link has moved on while that node was asked.
                is_again = true;
                sleep(MOVED_AGAIN_AFTER).await;
            }
            made => break made?,
        }
    };
    let location = format!("/api/v1/support-sessions/{}", session.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(session)).into_response())
}

async fn create(
    context: &Context,
    support: &Support,
    caller: &Caller,
    new: &NewSession<'_>,
) -> Result<SupportSession, RouteError> {
    for _ in 0..ATTEMPTS_MAX {
        let reserved = support.reserve(new.id);
        let mut transaction = context.store.begin(Visibility::All).await?;
        let made = support_session_create(&mut transaction, new).await?;
        let (tenant, missing, refused) = if let Some(session) = made {
            let facts = support_session_facts(&mut transaction, new.id).await?.ok_or(RouteError::Unsettled)?;
            match (check_reach(support, new, &facts), reserved) {
                (Ok(()), Some(reserved)) => {
                    context.store.commit(transaction).await?;
                    support.open(&reserved, known(caller, new, &session, facts));
                    return Ok(session);
                }
                (Ok(()), None) => (TenantId::from_uuid(session.tenant_id), "room", RouteError::NodeFull),
                (Err(other @ RouteError::OtherNode(_)), _) => return Err(other),
                (Err(refused), _) => (TenantId::from_uuid(session.tenant_id), "link", refused),
            }
        } else {
            match support_session_explain(&mut transaction, new).await? {
                Obstacle::DeviceUnknown => return Err(RouteError::DeviceUnknown),
                Obstacle::DeviceRevoked => return Err(RouteError::DeviceRevoked),
                Obstacle::Grant { tenant, missing } => (tenant, missing.name(), RouteError::GrantRequired(missing)),
                Obstacle::Quarantined { tenant } => (tenant, "quarantine", RouteError::Quarantined),
                Obstacle::NotLinked { tenant } => (tenant, "link", RouteError::NotLinked),
                Obstacle::Polling { tenant } => (tenant, "link", RouteError::Polling),
                Obstacle::TooMany { tenant } => (tenant, "room", RouteError::DeviceFull),
                Obstacle::Gone => continue,
            }
        };
        // With everything that was done in it.
        drop(transaction);
        single!(context.store, |connection| audit_refused(connection, caller, new, tenant, missing))?;
        return Err(refused);
    }
    Err(RouteError::Unsettled)
}

/// Whether this node has a way to what is asked for.
fn check_reach(support: &Support, new: &NewSession<'_>, facts: &SessionFacts) -> Result<(), RouteError> {
    let LinkFacts { node, has_agent, has_tunnel, capabilities } = facts.link.as_ref().ok_or(RouteError::NotLinked)?;
    if node != support.node() {
        return Err(RouteError::OtherNode(node.clone()));
    }
    if new.target.port_via_node().is_some() {
        return if *has_tunnel { Ok(()) } else { Err(RouteError::NoTunnel) };
    }
    let capability = new.target.kind().capability();
    if *has_agent && capabilities.iter().any(|known| known == capability) { Ok(()) } else { Err(RouteError::NoAgent) }
}

fn known(caller: &Caller, new: &NewSession<'_>, session: &SupportSession, facts: SessionFacts) -> Facts {
    Facts {
        id: new.id,
        tenant: TenantId::from_uuid(session.tenant_id),
        device: new.device,
        grant: GrantId::from_uuid(session.grant_id),
        opened_by: PersonId::from_uuid(session.opened_by),
        name: caller.session().name.clone(),
        target: new.target.clone(),
        reason: new.reason.to_owned(),
        grant_statement: facts.grant_statement,
        deadline: facts.deadline,
    }
}

/// The owner of the device sees who tried, and what was missing.
async fn audit_refused(
    connection: &mut PgConnection,
    caller: &Caller,
    new: &NewSession<'_>,
    tenant: TenantId,
    missing: &str,
) -> Result<(), StoreError> {
    let subject = Subject::new("device", new.device.as_uuid());
    let (kind, target) = (new.target.kind(), new.target.to_json());
    let details = json!({"kind": kind, "target": target, "reason": new.reason, "missing": missing});
    audit_append(connection, tenant, &caller.actor(), "support_session.refused", subject, details).await
}
