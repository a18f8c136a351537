//! `GET /openings/{id}`.

use axum::extract::State;
use cloudlink_proto::ids::OpeningId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::opening::Opening;
use crate::store::opening::opening_show;

/// One opening
#[utoipa::path(get, path = "/openings/{id}", operation_id = "opening_show", tag = "openings",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Opening)))]
#[tracing::instrument(name = "http.opening.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Opening>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let opening = opening_show(&mut transaction, OpeningId::from_uuid(id)).await?;
    Ok(Json(opening.ok_or_else(Problem::not_found)?))
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
        scene.tunnel(scene.device).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let id = scene.opening(json!({})).await;
        let path = format!("/openings/{id}");
        for somebody in [&scene.operator, &scene.colleague, &scene.customer, &scene.admin] {
            let opening = scene.get(&path).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!((&opening["id"], &opening["state"]), (&json!(id), &json!("requested")));
            assert_eq!(opening["endpoint"], json!({"node": "node-1", "ipv4": "100.64.0.2", "ipv6": "fd00:1:2::2"}));
        }
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tells_where_it_stands(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let id = scene.opening(json!({})).await;
        let show = async || {
            let opening = scene.get(&format!("/openings/{id}")).by(&scene.customer).send().await.expect(StatusCode::OK);
            (opening["state"].clone(), opening["end_reason"].clone(), opening["endpoint"].is_null())
        };
        scene.sql("update openings set opened_at = now() where id = $1", id).await;
        assert_eq!(show().await, (json!("open"), json!(null), false));
        scene.unlink(scene.device).await;
        assert_eq!(show().await, (json!("open"), json!(null), true), "there is nothing to reach");
        scene.tunnel(scene.device).await;
        scene.sql("update openings set expires_at = now() where id = $1", id).await;
        assert_eq!(show().await, (json!("ended"), json!("expired"), true), "also before somebody has written so");
    }
}
