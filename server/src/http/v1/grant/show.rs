//! `GET /grants/{id}`. An operator sees the grants that name it.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::GrantId;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::grant::Grant;
use crate::store::grant::grant_show;

/// One grant
#[utoipa::path(get, path = "/grants/{id}", operation_id = "grant_show", tag = "grants",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Grant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.grant.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let grant = grant_show(&mut transaction, GrantId::from_uuid(id), caller.operator()).await?;
    let grant = grant.ok_or_else(Problem::not_found)?;
    Ok((Tag::of_version(grant.version).header(), Json(grant)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_operator_sees_what_names_it(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let id = scene.grant(json!({"operator_ids": [scene.operator.id.to_string()]})).await;
        let path = format!("/grants/{id}");
        for somebody in [&scene.operator, &scene.customer, &scene.admin] {
            let answer = scene.get(&path).by(somebody).send().await;
            assert_eq!(answer.expect(StatusCode::OK)["id"], id.to_string());
            assert_eq!(answer.header("etag"), "\"1\"");
        }
        for somebody in [&scene.colleague, &scene.other_customer] {
            scene.get(&path).by(somebody).send().await.expect_problem(Kind::NotFound);
        }
    }
}
