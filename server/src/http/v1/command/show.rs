//! `GET /commands/{id}`.

use axum::extract::State;
use cloudlink_proto::ids::CommandId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::command::Command;
use crate::store::command::command_show;

/// One command
#[utoipa::path(get, path = "/commands/{id}", operation_id = "command_show", tag = "commands",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Command)))]
#[tracing::instrument(name = "http.command.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Command>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let command = command_show(&mut transaction, CommandId::from_uuid(id)).await?;
    Ok(Json(command.ok_or_else(Problem::not_found)?))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_it_to_its_tenant_and_to_operators(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.grant(json!({})).await;
        let id = scene.command(json!({})).await;
        let path = format!("/commands/{id}");
        for somebody in [&scene.operator, &scene.colleague, &scene.customer, &scene.admin] {
            let command = scene.get(&path).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!((&command["id"], &command["state"]), (&json!(id), &json!("queued")));
        }
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
    }
}
