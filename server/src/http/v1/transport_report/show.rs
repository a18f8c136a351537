//! `GET /transport-report`: which transports failed and how, summed by the values of a label, as by site.

use axum::extract::State;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::device::LABEL_CHARS_MAX;
use crate::model::transport_failure::TransportReport;
use crate::store::transport_failure::transport_failure_report;

/// The most that one report shows.
const ITEMS_MAX: usize = 1000;
const DAYS_DEFAULT: u32 = 7;
const DAYS_MAX: u32 = 90;

#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReportQuery {
    /// The key of a label, as `site`. Without it all devices are one.
    by: Option<String>,
    /// Failures that were last met within so many days: 1 to 90. Default: 7.
    days: Option<u32>,
}

/// Which transports failed and how, by the values of a label
#[utoipa::path(get, path = "/transport-report", operation_id = "transport_report_show", tag = "devices", params(ReportQuery),
    responses((status = 200, body = TransportReport)))]
#[tracing::instrument(name = "http.transport_report.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(ReportQuery { by, days }): Query<ReportQuery>,
) -> Result<Json<TransportReport>, Problem> {
    let days = days.unwrap_or(DAYS_DEFAULT);
    let is_key =
        |key: &String| (1..=LABEL_CHARS_MAX).contains(&key.chars().count()) && !key.chars().any(char::is_control);
    if !by.as_ref().is_none_or(is_key) {
        return Err(Problem::bad_request("`by` must be the key of a label."));
    }
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(Problem::bad_request(format!("`days` must be from 1 to {DAYS_MAX}.")));
    }
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let (limit, within) = (i64::try_from(ITEMS_MAX + 1).unwrap_or(i64::MAX), i32::try_from(days).unwrap_or(i32::MAX));
    let mut items = transport_failure_report(&mut transaction, by.as_deref(), within, limit).await?;
    let is_cut = items.len() > ITEMS_MAX;
    items.truncate(ITEMS_MAX);
    Ok(Json(TransportReport { by, days, items, is_cut }))
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::ids::DeviceId;
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::new_id;

    const FAILED: &str = "insert into transport_failures
        select id, tenant_id, 'websocket', 'tls', 'connection_reset', 3, now() - interval '2 days' from devices where id = $1";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn sums_by_label_and_shows_a_tenant_its_own(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let roof = DeviceId::from_uuid(new_id());
        scene.insert_device(roof, scene.tenant, "roof", json!({"site": "north"})).await;
        let elsewhere = DeviceId::from_uuid(new_id());
        scene.insert_device(elsewhere, scene.other_tenant, "elsewhere", json!({})).await;
        for device in [scene.device, roof, elsewhere] {
            scene.sql(FAILED, device.as_uuid()).await;
        }
        let path = "/transport-report?by=site";
        let report = scene.get(path).by(&scene.operator).send().await.expect(StatusCode::OK);
        let items: Vec<_> = report["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| (&item["value"], &item["devices"], &item["count"]))
            .collect();
        assert_eq!(json!(items), json!([["north", 2, 6], [null, 1, 3]]), "{report}");
        assert_eq!((&report["items"][0]["stage"], &report["is_cut"]), (&json!("tls"), &json!(false)));
        let own = scene.get(path).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!((own["items"].as_array().unwrap().len(), &own["items"][0]["value"]), (1, &json!("north")));
        let all = scene.get("/transport-report").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(
            (&all["by"], &all["items"][0]["devices"], &all["items"][0]["count"]),
            (&json!(null), &json!(3), &json!(9))
        );
        let recent =
            scene.get("/transport-report?by=site&days=1").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!(recent["items"], json!([]));

        let shown = scene.get(&format!("/devices/{roof}")).by(&scene.customer).send().await.expect(StatusCode::OK);
        let failure = &shown["transport_failures"][0];
        assert_eq!(
            (&failure["transport"], &failure["code"], &failure["count"]),
            (&json!("websocket"), &json!("connection_reset"), &json!(3))
        );
        assert!(failure["last_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{failure}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_report_of_many_sites_is_cut(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for number in 0..=super::ITEMS_MAX {
            let device = DeviceId::from_uuid(new_id());
            scene
                .insert_device(device, scene.tenant, &format!("d{number}"), json!({"site": format!("{number}")}))
                .await;
        }
        let failed = "insert into transport_failures
            select id, tenant_id, 'websocket', 'tls', 'connection_reset', 3, now() from devices where id <> $1";
        scene.sql(failed, scene.device.as_uuid()).await;
        let report = scene.get("/transport-report?by=site").by(&scene.operator).send().await.expect(StatusCode::OK);
        assert_eq!((report["items"].as_array().unwrap().len(), &report["is_cut"]), (super::ITEMS_MAX, &json!(true)));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn asks_for_a_label_and_a_time_that_can_be(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for query in ["?by=", "?by=a%00", "?by=site&days=0", "?by=site&days=91", "?by=site&days=x", "?by=site&other=1"]
        {
            scene
                .get(&format!("/transport-report{query}"))
                .by(&scene.operator)
                .send()
                .await
                .expect_problem(Kind::BadRequest);
        }
    }
}
