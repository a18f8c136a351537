//! `PATCH /people/{id}`: keeps somebody out, or lets it in again. What an operator has queued is cancelled with it, and what it has
//! opened is closed.

use std::time::Duration;

use axum::extract::State;
use cloudlink_proto::ids::{PersonId, TenantId};
use serde::Deserialize;
use serde_json::json;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::{PLATFORM, Subject};
use crate::model::opening::EndReason;
use crate::model::person::{Person, PersonKind, Role};
use crate::model::support_session::EndReason as SessionEndReason;
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::command::{Cancellation, command_cancel_in_txn, command_lock_in_txn};
use crate::store::opening::{Closing, opening_end_in_txn, opening_lock_in_txn};
use crate::store::person::{person_set_active, person_show};
use crate::store::support_session::{
    Closing as SessionClosing, support_session_end_in_txn, support_session_lock_in_txn, support_session_tell_in_txn,
};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PersonUpdate {
    /// False: every token of this person is refused from now on.
    active: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("nobody locks itself out")]
    Oneself,
    #[error("a tenant's user rules its service accounts only")]
    NotAService,
    #[error("no such person")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Oneself => {
                Self::new(Kind::Conflict, "You would lock yourself out. Let another administrator do it.")
            }
            RouteError::NotAService => Self::new(
                Kind::Forbidden,
                "You rule the service accounts of your tenant. Ask the vendor's administrator about people.",
            ),
            RouteError::Unknown => Self::not_found(),
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Keep a person out, or let it in
#[utoipa::path(patch, path = "/people/{id}", operation_id = "person_update", tag = "people",
    params(("id" = uuid::Uuid, Path)), request_body = PersonUpdate, responses((status = 200, body = Person)))]
#[tracing::instrument(name = "http.person.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    Json(request): Json<PersonUpdate>,
) -> Result<Json<Person>, RouteError> {
    let id = PersonId::from_uuid(id);
    if id == caller.person() && !request.active {
        return Err(RouteError::Oneself);
    }
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let session = caller.session();
    if session.role == Role::Tenant {
        let person = person_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
        if session.is_service || person.kind == PersonKind::Human {
            return Err(RouteError::NotAService);
        }
    }
    let person = person_set_active(&mut transaction, id, request.active).await?.ok_or(RouteError::Unknown)?;
    let (mut called_back, mut ended, mut sessions_ended, mut is_told) = (Vec::new(), Vec::new(), Vec::new(), false);
    // What a tenant's people do is not theirs any more once it is done.
    if !request.active && person.role != Role::Tenant {
        let open = command_lock_in_txn(&mut transaction, Cancellation::OfPerson(id)).await?;
        let openings = opening_lock_in_txn(&mut transaction, Closing::OfPerson(id)).await?;
        let sessions = support_session_lock_in_txn(&mut transaction, SessionClosing::OfPerson(id)).await?;
        let (actor, code) = (caller.actor().to_json(), "operator_inactive");
        let message = "the operator who asked for it is no longer active";
        called_back = command_cancel_in_txn(&mut transaction, &open, actor.clone(), code, message).await?;
        ended = opening_end_in_txn(&mut transaction, &openings, actor.clone(), EndReason::OperatorShutOut).await?;
        let reason = SessionEndReason::OperatorShutOut;
        sessions_ended = support_session_end_in_txn(&mut transaction, &sessions, actor, reason, Duration::ZERO).await?;
        is_told = support_session_tell_in_txn(&mut transaction, &sessions_ended).await?;
    }
    let (subject, details) = (Subject::new("person", person.id), json!({"name": person.name, "active": person.active}));
    let chain = person.tenant_id.map_or(PLATFORM, TenantId::from_uuid);
    audit_append(&mut transaction, chain, &caller.actor(), "person.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    context.tell_sessions_ended(&sessions_ended);
    context.tell_outside(is_told);
    context.tell_called_back(&called_back);
    context.tell_ended(&ended);
    context.bus.send(Hint::PersonChanged(id));
    Ok(Json(person))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::audit::PLATFORM;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn keeps_somebody_out_at_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let command = scene.command(json!({})).await;
        let path = format!("/people/{}", scene.operator.id);
        let set = |active: bool| scene.patch(&path).by(&scene.admin).json(json!({"active": active})).send();
        assert_eq!(set(false).await.expect(StatusCode::OK)["active"], false);
        scene.get("/me").by(&scene.operator).send().await.expect_problem(Kind::Unauthenticated);
        let shown = scene.get(&format!("/commands/{command}")).by(&scene.admin).send().await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["code"]), (&json!("cancelled"), &json!("operator_inactive")));
        set(true).await.expect(StatusCode::OK);
        scene.get("/me").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(scene.audited(PLATFORM).await, ["person.updated", "person.updated"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn nobody_locks_itself_out(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let call = scene.patch(&format!("/people/{}", scene.admin.id)).by(&scene.admin);
        call.json(json!({"active": false})).send().await.expect_problem(Kind::Conflict);
    }
}
