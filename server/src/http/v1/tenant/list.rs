//! `GET /tenants`: newest first.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::tenant::Tenant;
use crate::store::tenant::tenant_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Tenants
#[utoipa::path(get, path = "/tenants", operation_id = "tenant_list", tag = "tenants", params(TenantQuery),
    responses((status = 200, body = Page<Tenant>)))]
#[tracing::instrument(name = "http.tenant.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<TenantQuery>,
) -> Result<Json<Page<Tenant>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let tenants = tenant_list(&mut transaction, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(tenants, |tenant| (tenant.created_at, tenant.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_the_newest_first(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let page = scene.get("/tenants").by(&scene.admin).send().await.expect(StatusCode::OK);
        let names: Vec<_> = page["items"].as_array().unwrap().iter().map(|tenant| tenant["name"].clone()).collect();
        assert_eq!(names, ["Clinic", "Hotel"]);
    }
}
