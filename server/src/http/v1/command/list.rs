//! `GET /commands`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, GrantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::command::{Command, State as CommandState};
use crate::store::command::{CommandFilter, command_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandQuery {
    device_id: Option<Uuid>,
    grant_id: Option<Uuid>,
    state: Option<CommandState>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Commands
#[utoipa::path(get, path = "/commands", operation_id = "command_list", tag = "commands", params(CommandQuery),
    responses((status = 200, body = Page<Command>)))]
#[tracing::instrument(name = "http.command.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<CommandQuery>,
) -> Result<Json<Page<Command>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = CommandFilter {
        device: query.device_id.map(DeviceId::from_uuid),
        grant: query.grant_id.map(GrantId::from_uuid),
        state: query.state,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let commands = command_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(commands, |command| (command.created_at, command.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};

    async fn count(scene: &Scene, somebody: &Somebody, query: &str) -> usize {
        let page = scene.get(&format!("/commands{query}")).by(somebody).send().await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().len()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn filters_by_device_grant_and_state(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let grant = scene.grant(json!({})).await;
        let first = scene.command(json!({})).await;
        scene.command(json!({})).await;
        scene.post(&format!("/commands/{first}/cancel")).by(&scene.operator).send().await.expect(StatusCode::OK);
        for (query, expected) in [
            (String::new(), 2),
            (format!("?device_id={}", scene.device), 2),
            (format!("?device_id={}", scene.other_device), 0),
            (format!("?grant_id={grant}&state=queued"), 1),
            ("?state=cancelled".to_owned(), 1),
            ("?limit=1".to_owned(), 1),
        ] {
            assert_eq!(count(&scene, &scene.customer, &query).await, expected, "{query}");
        }
        assert_eq!(count(&scene, &scene.other_customer, "").await, 0);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_queries_that_it_does_not_know(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for query in [
            "?state=melted",
            "?limit=0",
            "?limit=201",
            "?limit=-1",
            "?cursor=x",
            "?who=me",
            "?device_id=1",
            "?state=%ff",
            "?limit=1&limit=2",
        ] {
            let answer = scene.get(&format!("/commands{query}")).by(&scene.operator).send().await;
            answer.expect_problem(Kind::BadRequest);
        }
    }
}
