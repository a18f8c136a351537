//! `GET /status`: the cluster at a glance, with what is wrong first.

use axum::extract::State;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Json, NoQuery};
use crate::http::v1::node::list::nodes;
use crate::model::status::Status;
use crate::store::status::status_show;

/// The cluster at a glance
///
/// Counted when it is asked for. What is wrong comes first, the worst before the rest, each with what to do.
#[utoipa::path(get, path = "/status", operation_id = "status_show", tag = "nodes",
    responses((status = 200, body = Status)))]
#[tracing::instrument(name = "http.status.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<Status>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let nodes = nodes(&context, &mut transaction).await?;
    Ok(Json(status_show(&mut transaction, nodes).await?.judged()))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn counts_what_there_is_and_says_what_is_wrong(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for somebody in [&scene.operator, &scene.customer] {
            scene.get("/status").by(somebody).send().await.expect_problem(Kind::Forbidden);
        }
        let status = scene.get("/status").by(&scene.admin).send().await.expect(StatusCode::OK);
        assert_eq!(status["problems"][0]["kind"], "nobody_serves", "{status}");

        let insert = "insert into nodes (name, instance, life, version, lease, leased_until, condition)
             values ('a', gen_random_uuid(), gen_random_uuid(), '1', '1 hour', now() + interval '1 hour', $1)";
        let condition = json!({"bus": false, "isolation": null});
        sqlx::query(insert).bind(condition).execute(&scene.root).await.unwrap();
        scene.link(scene.device).await;
        scene.grant(json!({})).await;
        scene.command(json!({})).await;
        let status = scene.get("/status").by(&scene.admin).send().await.expect(StatusCode::OK);
        let problems: Vec<_> = status["problems"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
        assert_eq!(json!(problems), json!(["bus_away"]));
        assert_eq!(status["nodes"][0]["condition"], json!({"bus": false, "isolation": null}));
        assert_eq!((&status["devices"]["linked_by_websocket"], &status["commands"]["queued"]), (&json!(1), &json!(1)));
        assert!(status["commands"]["sendable_seconds"].is_number() && status["commands"]["overdue_seconds"].is_null());

        scene
            .sql(
                "update commands set created_at = now() - interval '1 minute', deadline_at = now() - interval '20 s'
             where device_id = $1",
                scene.device.as_uuid(),
            )
            .await;
        let status = scene.get("/status").by(&scene.admin).send().await.expect(StatusCode::OK);
        assert_eq!(status["problems"][0]["kind"], "commands_overdue", "{status}");
    }
}
