//! `GET /devices/{id}/link-tests`: how fast the way to a device was. To an operator only under a grant, and with an entry in the
//! audit log, as its samples.

use axum::extract::State;
use cloudlink_proto::ids::DeviceId;
use serde::Deserialize;

use super::metrics::{SCOPE, refusal};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::model::link_test::LinkTest;
use crate::model::person::Role;
use crate::store::device::device_count;
use crate::store::link_test::{link_test_list, link_test_read_under_grant_in_txn};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LinkTestQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// How fast the way to a device was
///
/// Its tests, newest first; each direction is one.
#[utoipa::path(get, path = "/devices/{id}/link-tests", operation_id = "device_link_tests", tag = "devices",
    params(("id" = uuid::Uuid, Path), LinkTestQuery), responses((status = 200, body = Page<LinkTest>)))]
#[tracing::instrument(name = "http.device.link_test", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<LinkTestQuery>,
) -> Result<Json<Page<LinkTest>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let device = DeviceId::from_uuid(id);
    let store = &context.store;
    let mut transaction = store.begin(caller.visibility()).await?;
    let tests = link_test_list(&mut transaction, device, window.after, window.fetch_limit()).await?;
    match caller.role() {
        Role::Operator => {
            let (actor, person) = (caller.actor().to_json(), caller.person());
            if !link_test_read_under_grant_in_txn(&mut transaction, device, person, actor, SCOPE).await? {
                drop(transaction);
                return Err(refusal(&context, person, device).await?.into());
            }
            store.commit(transaction).await?;
        }
        Role::Tenant | Role::Admin => {
            if device_count(&mut transaction, &[id]).await? == 0 {
                return Err(Problem::not_found());
            }
        }
    }
    Ok(Json(window.page(tests, |test| (test.started_at, test.id))))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    const TESTS: &str = "insert into link_tests (id, device_id, tenant_id, direction, started_at, node, remote_address, client_name,
                client_version, outcome, seconds, bytes, bits_per_second, min_rtt_us)
         select gen_random_uuid(), d.id, d.tenant_id, 'upload', now() - n * interval '1 minute', 'node-1', '192.0.2.7', 'c', '1', 'done',
                10, n, 8 * n, 900
           from devices d, generate_series(1, 3) n where d.id = $1";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_reads_its_own_page_by_page(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for device in [scene.device, scene.other_device] {
            scene.sql(TESTS, device.as_uuid()).await;
        }
        let path = format!("/devices/{}/link-tests?limit=2", scene.device);
        let first = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        let cursor = first["next_cursor"].as_str().unwrap();
        let next = scene.get(&format!("{path}&cursor={cursor}")).by(&scene.customer).send().await;
        let next = next.expect(StatusCode::OK);
        let items = first["items"].as_array().unwrap().iter().chain(next["items"].as_array().unwrap());
        let shown: Vec<_> = items.map(|test| test["bits_per_second"].clone()).collect();
        assert_eq!(shown, [json!(8), json!(16), json!(24)]);
        let test = &first["items"][0];
        assert_eq!((&test["remote_address"], &test["retransmitted_bytes"]), (&json!("192.0.2.7"), &json!(null)));
        assert_eq!((&test["outcome"], &test["direction"]), (&json!("done"), &json!("upload")));
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::Forbidden);
        scene.get(&format!("{path}&every=5")).by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        assert!(scene.audited(scene.tenant).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_operator_reads_under_a_grant_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        scene.sql(TESTS, scene.device.as_uuid()).await;
        let path = format!("/devices/{}/link-tests", scene.device);
        scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::GrantRequired);
        scene.grant(json!({"scopes": ["metrics:read"], "operator_ids": [scene.operator.id.to_string()]})).await;
        let read = scene.get(&path).by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(read["items"].as_array().unwrap().len(), 3);
        scene.get(&path).by(&scene.colleague).send().await.expect_problem(Kind::GrantRequired);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "link_tests.read"]);
    }
}
