//! `POST /commands/{id}/cancel`: calls back what has not begun. A queued command is cancelled here and now (200). One that was
//! sent may have begun: its device is told, and has the last word (202).

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::CommandId;
use http::StatusCode;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::command::{Command, State as CommandState};
use crate::store::StoreError;
use crate::store::command::{Cancellation, command_cancel_in_txn, command_lock_in_txn, command_show};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such command")]
    Unknown,
    #[error("the command is {}", .0.name())]
    Begun(CommandState),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Begun(state) => {
                let detail = format!("The command is {} already, and cannot be called back.", state.name());
                Self::new(Kind::Conflict, detail)
            }
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Call a command back
#[utoipa::path(post, path = "/commands/{id}/cancel", operation_id = "command_cancel", tag = "commands",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Command, description = "Cancelled"),
    (status = 202, body = Command, description = "The device is told not to begin")))]
#[tracing::instrument(name = "http.command.cancel", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, RouteError> {
    let id = CommandId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let open = command_lock_in_txn(&mut transaction, Cancellation::One(id)).await?;
    let (actor, message) = (caller.actor().to_json(), format!("called back by {}", caller.session().name));
    let called_back = command_cancel_in_txn(&mut transaction, &open, actor, "called_back", &message).await?;
    let command = command_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    context.store.commit(transaction).await?;
    context.tell_called_back(&called_back);
    if command.state == CommandState::Cancelled {
        Ok((StatusCode::OK, Json(command)))
    } else if called_back.is_empty() {
        Err(RouteError::Begun(command.state))
    } else {
        Ok((StatusCode::ACCEPTED, Json(command)))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::bus::{Heard, Hint};
    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_queued_command_is_cancelled_at_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let path = format!("/commands/{}/cancel", scene.command(json!({})).await);
        scene.post(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        let command = scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&command["state"], &command["code"]), (&json!("cancelled"), &json!("called_back")));
        assert_eq!(command["message"], "called back by tina");
        assert_eq!(scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::OK), command);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "command.created", "command.finished"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn of_a_sent_command_the_device_is_told(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let id = scene.command(json!({})).await;
        scene.sql("update commands set state = 'sent', sent_at = now() where id = $1", id).await;
        let mut hints = scene.bus.listen();
        let path = format!("/commands/{id}/cancel");
        let command = scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::ACCEPTED);
        assert_eq!(command["state"], "sent");
        assert!(command["cancel_requested_at"].is_string());
        assert_eq!(hints.hear().await, Heard::Hint(Hint::CommandsDue(scene.device)));
        let again = scene.post(&path).by(&scene.operator).send().await.expect(StatusCode::ACCEPTED);
        assert_eq!(again["cancel_requested_at"], command["cancel_requested_at"]);
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited, ["grant.created", "command.created", "command.cancel_requested"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_has_begun_goes_on(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let id = scene.command(json!({})).await;
        let path = format!("/commands/{id}/cancel");
        scene.sql("update commands set state = 'running', sent_at = now() where id = $1", id).await;
        scene.post(&path).by(&scene.operator).send().await.expect_problem(Kind::Conflict);
        let done = "update commands set state = 'succeeded', deadline_at = null, finished_at = now() where id = $1";
        scene.sql(done, id).await;
        scene.post(&path).by(&scene.operator).send().await.expect_problem(Kind::Conflict);
    }
}
