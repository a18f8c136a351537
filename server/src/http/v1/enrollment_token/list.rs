//! `GET /enrollment-tokens`: newest first. Never a secret.

use axum::extract::State;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::enrollment_token::EnrollmentToken;
use crate::store::enrollment_token::enrollment_token_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnrollmentTokenQuery {
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Enrollment tokens
#[utoipa::path(get, path = "/enrollment-tokens", operation_id = "enrollment_token_list", tag = "devices",
    params(EnrollmentTokenQuery), responses((status = 200, body = Page<EnrollmentToken>)))]
#[tracing::instrument(name = "http.enrollment_token.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<EnrollmentTokenQuery>,
) -> Result<Json<Page<EnrollmentToken>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let tenant = query.tenant_id.map(TenantId::from_uuid);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let tokens = enrollment_token_list(&mut transaction, tenant, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(tokens, |token| (token.created_at, token.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_no_secret_and_nothing_of_others(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"device_name": "roof"});
        scene.post("/enrollment-tokens").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        let list = async |somebody| scene.get("/enrollment-tokens").by(somebody).send().await.expect(StatusCode::OK);
        let page = list(&scene.customer).await;
        assert_eq!(page["items"][0]["device_name"], "roof");
        assert_eq!(page["items"][0].get("token"), None);
        assert_eq!(list(&scene.admin).await, page);
        assert_eq!(list(&scene.other_customer).await["items"], json!([]));
    }
}
