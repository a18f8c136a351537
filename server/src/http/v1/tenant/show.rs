//! `GET /tenants/{id}`. A tenant's user sees its own.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::TenantId;
use serde_json::{Value, json};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::tenant::Tenant;
use crate::store::tenant::tenant_show;

/// One tenant
#[utoipa::path(get, path = "/tenants/{id}", operation_id = "tenant_show", tag = "tenants",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Tenant, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.tenant.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let tenant = tenant_show(&mut transaction, TenantId::from_uuid(id)).await?.ok_or_else(Problem::not_found)?;
    Ok((tag(&tenant).header(), Json(tenant)))
}

/// Of what can change.
pub(super) fn tag(tenant: &Tenant) -> Tag {
    let all = json!({"settings": settings(tenant), "signed_grants": tenant.signed_grants});
    Tag::of_content(all.to_string().as_bytes())
}

/// What `PATCH` changes.
pub(super) fn settings(tenant: &Tenant) -> Value {
    json!({
        "grant_max_seconds": tenant.grant_max_seconds,
        "approvals_needed": tenant.approvals_needed,
        "fewer_approvals": tenant.fewer_approvals,
        "recording_keep_days": tenant.recording_keep_days,
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenants_user_sees_its_own_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/tenants/{}", scene.tenant);
        let answer = scene.get(&path).by(&scene.customer).send().await;
        let (shown, tag) = (answer.expect(StatusCode::OK), answer.header("etag").to_owned());
        assert_eq!(
            (&shown["name"], &shown["signed_grants"], &shown["recording_keep_days"]),
            (&"Hotel".into(), &false.into(), &365.into())
        );
        scene
            .sql(
                "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
                 select gen_random_uuid(), tenant_id, 'safe', 'ed25519', sha256('safe'), id from people where id = $1",
                scene.customer.id.as_uuid(),
            )
            .await;
        let require = serde_json::json!({"required": true});
        scene.post("/signing-keys/require").by(&scene.customer).json(require).send().await.expect(StatusCode::OK);
        let answer = scene.get(&path).by(&scene.customer).send().await;
        assert_eq!(answer.expect(StatusCode::OK)["signed_grants"], true);
        assert_ne!(answer.header("etag"), tag);
        scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
    }
}
