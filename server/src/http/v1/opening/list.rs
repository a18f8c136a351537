//! `GET /openings`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, GrantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::opening::Opening;
use crate::store::opening::{OpeningFilter, opening_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpeningQuery {
    device_id: Option<Uuid>,
    grant_id: Option<Uuid>,
    /// Whether it has not ended.
    open: Option<bool>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Openings
#[utoipa::path(get, path = "/openings", operation_id = "opening_list", tag = "openings", params(OpeningQuery),
    responses((status = 200, body = Page<Opening>)))]
#[tracing::instrument(name = "http.opening.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<OpeningQuery>,
) -> Result<Json<Page<Opening>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = OpeningFilter {
        device: query.device_id.map(DeviceId::from_uuid),
        grant: query.grant_id.map(GrantId::from_uuid),
        open: query.open,
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let openings = opening_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(openings, |opening| (opening.created_at, opening.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};

    async fn count(scene: &Scene, somebody: &Somebody, query: &str) -> usize {
        let page = scene.get(&format!("/openings{query}")).by(somebody).send().await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().len()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn filters_by_device_grant_and_whether_it_has_ended(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.tunnel(scene.device).await;
        let grant = scene.grant(json!({"scopes": ["tcp:open"]})).await;
        let first = scene.opening(json!({"port": 22})).await;
        let expired = scene.opening(json!({"port": 80})).await;
        scene.opening(json!({"port": 443})).await;
        scene.post(&format!("/openings/{first}/close")).by(&scene.operator).send().await.expect(StatusCode::OK);
        // Its time is up, and nobody has written so yet.
        scene.sql("update openings set expires_at = now() where id = $1", expired).await;
        for (query, expected) in [
            (String::new(), 3),
            (format!("?device_id={}", scene.device), 3),
            (format!("?device_id={}", scene.other_device), 0),
            (format!("?grant_id={grant}&open=true"), 1),
            ("?open=false".to_owned(), 2),
            ("?limit=1".to_owned(), 1),
        ] {
            assert_eq!(count(&scene, &scene.customer, &query).await, expected, "{query}");
            assert_eq!(count(&scene, &scene.colleague, &query).await, expected, "{query}");
        }
        assert_eq!(count(&scene, &scene.other_customer, "").await, 0);
        let query = scene.get("/openings?open=perhaps").by(&scene.operator).send().await;
        query.expect_problem(Kind::BadRequest);
    }
}
