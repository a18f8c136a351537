//! `PATCH /tenants/{id}`: the policy, of the version that was read. By the tenant itself, or by an administrator.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use serde_json::json;

use super::create::check_grant_max;
use super::show::tag;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::IfMatch;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::tenant::Tenant;
use crate::store::audit::audit_append;
use crate::store::tenant::{tenant_lock, tenant_set_grant_max};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantUpdate {
    /// The longest that one grant may run: 60 to 31,622,400. Grants that are there already keep their end.
    grant_max_seconds: i32,
}

/// Set a tenant's policy
#[utoipa::path(patch, path = "/tenants/{id}", operation_id = "tenant_update", tag = "tenants",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = TenantUpdate,
    responses((status = 200, body = Tenant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.tenant.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<TenantUpdate>,
) -> Result<impl IntoResponse, Problem> {
    check_grant_max(request.grant_max_seconds)?;
    let id = TenantId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = tenant_lock(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    if_match.check(&tag(&before))?;
    let tenant = tenant_set_grant_max(&mut transaction, id, request.grant_max_seconds).await?;
    let details = json!({"before": {"grant_max_seconds": before.grant_max_seconds},
                         "after": {"grant_max_seconds": tenant.grant_max_seconds}});
    let subject = Subject::new("tenant", tenant.id);
    audit_append(&mut transaction, id, &caller.actor(), "tenant.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((tag(&tenant).header(), Json(tenant)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn changes_the_policy_that_was_read(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/tenants/{}", scene.tenant);
        let shown = scene.get(&path).by(&scene.customer).send().await;
        let tag = shown.header("etag");
        let update = |seconds: i32| {
            scene
                .patch(&path)
                .by(&scene.customer)
                .header("if-match", tag)
                .json(json!({"grant_max_seconds": seconds}))
                .send()
        };
        let answer = update(900).await;
        assert_eq!(answer.expect(StatusCode::OK)["grant_max_seconds"], 900);
        assert_ne!(answer.header("etag"), tag);
        update(800).await.expect_problem(Kind::VersionMismatch);
        update(1).await.expect_problem(Kind::Unprocessable);
        assert_eq!(scene.audited(scene.tenant).await, ["tenant.updated"]);
    }
}
