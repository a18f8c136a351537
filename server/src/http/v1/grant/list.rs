//! `GET /grants`: newest first. An operator sees the grants that name it.

use axum::extract::State;
use cloudlink_proto::ids::{DeviceId, TenantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::grant::{Grant, GrantState};
use crate::store::grant::{GrantFilter, grant_list};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantQuery {
    state: Option<GrantState>,
    /// Only what covers this device.
    device_id: Option<Uuid>,
    tenant_id: Option<Uuid>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Grants
#[utoipa::path(get, path = "/grants", operation_id = "grant_list", tag = "grants", params(GrantQuery),
    responses((status = 200, body = Page<Grant>)))]
#[tracing::instrument(name = "http.grant.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<GrantQuery>,
) -> Result<Json<Page<Grant>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let filter = GrantFilter {
        operator: caller.operator(),
        tenant: query.tenant_id.map(TenantId::from_uuid),
        state: query.state,
        device: query.device_id.map(DeviceId::from_uuid),
    };
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let grants = grant_list(&mut transaction, filter, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(grants, |grant| (grant.created_at, grant.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::testing::{Scene, Somebody};

    async fn ids(scene: &Scene, somebody: &Somebody, path: &str) -> Vec<String> {
        let page = scene.get(path).by(somebody).send().await.expect(StatusCode::OK);
        page["items"].as_array().unwrap().iter().map(|grant| grant["id"].as_str().unwrap().to_owned()).collect()
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_everybody_what_concerns_it(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let mine = scene.grant(json!({"operator_ids": [scene.operator.id.to_string()]})).await.to_string();
        let ours = scene.grant(json!({"device_ids": null, "selector": {"site": "north"}})).await.to_string();
        let both = [ours.clone(), mine.clone()];
        assert_eq!(ids(&scene, &scene.operator, "/grants").await, both);
        assert_eq!(ids(&scene, &scene.customer, "/grants").await, both);
        assert_eq!(ids(&scene, &scene.admin, "/grants").await, both);
        assert_eq!(ids(&scene, &scene.colleague, "/grants").await, std::slice::from_ref(&ours));
        assert!(ids(&scene, &scene.other_customer, "/grants").await.is_empty());
        // The selector fits a device of another tenant: that is not covered.
        let foreign = format!("/grants?device_id={}", scene.other_device);
        assert!(ids(&scene, &scene.operator, &foreign).await.is_empty());
        assert_eq!(ids(&scene, &scene.operator, &format!("/grants?device_id={}", scene.device)).await, both);
        scene.post(&format!("/grants/{mine}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(ids(&scene, &scene.operator, "/grants?state=revoked").await, [mine]);
        assert_eq!(ids(&scene, &scene.operator, "/grants?state=in_force").await, [ours]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn pages_show_each_grant_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let mut made = Vec::new();
        for _ in 0..5 {
            made.insert(0, scene.grant(json!({})).await.to_string());
        }
        let (mut seen, mut path) = (Vec::new(), "/grants?limit=2".to_owned());
        loop {
            let page = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Value::String(cursor) = &page["next_cursor"] else { break };
            path = format!("/grants?limit=2&cursor={cursor}");
        }
        assert_eq!(seen, made);
    }
}
