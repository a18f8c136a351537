//! `GET /audit`: newest first.

use axum::extract::State;
use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{NumberWindow, Page};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::audit::AuditEntry;
use crate::store::audit::audit_before;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Whose log. Left out: a tenant's user sees its own, an administrator the platform's.
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// The audit log
#[utoipa::path(get, path = "/audit", operation_id = "audit_list", tag = "audit", params(AuditQuery),
    responses((status = 200, body = Page<AuditEntry>)))]
#[tracing::instrument(name = "http.audit.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Page<AuditEntry>>, Problem> {
    let window = NumberWindow::new(query.limit, query.cursor.as_deref())?;
    let tenant = chain_for(&caller, query.tenant_id)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let entries = audit_before(&mut transaction, tenant, window.before, window.fetch_limit()).await?;
    Ok(Json(window.page(entries, |entry| entry.seq)))
}

/// The chain that is asked for, if the caller may read it.
pub(super) fn chain_for(caller: &Caller, asked: Option<Uuid>) -> Result<TenantId, Problem> {
    let asked = asked.map_or(caller.chain(), TenantId::from_uuid);
    match caller.tenant() {
        Some(own) if own != asked => Err(Problem::not_found()),
        Some(_) | None => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn pages_through_ones_own_log(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for _ in 0..3 {
            scene.grant(json!({})).await;
        }
        let page = scene.get("/audit?limit=2").by(&scene.customer).send().await.expect(StatusCode::OK);
        let seqs: Vec<_> = page["items"].as_array().unwrap().iter().map(|entry| entry["seq"].clone()).collect();
        assert_eq!(seqs, [3, 2]);
        let entry: Value = serde_json::from_str(page["items"][0]["entry"].as_str().unwrap()).unwrap();
        assert_eq!((&entry["action"], &entry["actor"]["name"]), (&json!("grant.created"), &json!("tina")));
        let path = format!("/audit?limit=2&cursor={}", page["next_cursor"].as_str().unwrap());
        let page = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((&page["items"][0]["seq"], &page["next_cursor"]), (&json!(1), &Value::Null));
        let path = format!("/audit?tenant_id={}", scene.tenant);
        assert_eq!(
            scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK)["items"].as_array().unwrap().len(),
            3
        );
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        assert_eq!(scene.get("/audit").by(&scene.admin).send().await.expect(StatusCode::OK)["items"], json!([]));
    }
}
