//! `GET /devices/{id}/drops`: what a device tried and may not, by day and reason.

use axum::extract::State;
use cloudlink_proto::ids::DeviceId;
use serde::Deserialize;
use time::macros::format_description;
use time::{Date, Duration};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::model::drop::DeviceDrops;
use crate::store::device::device_show;
use crate::store::drop::{DAYS_MAX, drop_list};

/// Days before the last one that are shown if nobody says more.
const DAYS_BEFORE: Duration = Duration::days(29);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DropQuery {
    /// The first day, in UTC, as 2026-11-21. Left out: 29 days before the last one.
    #[param(value_type = Option<String>, format = Date)]
    from: Option<String>,
    /// The last day. Left out: today.
    #[param(value_type = Option<String>, format = Date)]
    until: Option<String>,
}

/// What a device tried and may not
///
/// Packets that were not let through out of its tunnel, at most 366 days of them. They are known some seconds after they were
/// sent.
#[utoipa::path(get, path = "/devices/{id}/drops", operation_id = "device_drops", tag = "devices",
    params(("id" = uuid::Uuid, Path), DropQuery), responses((status = 200, body = DeviceDrops)))]
#[tracing::instrument(name = "http.device.drop", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<DropQuery>,
) -> Result<Json<DeviceDrops>, Problem> {
    let (from, until) = query.days()?;
    let id = DeviceId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    device_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let items = drop_list(&mut transaction, id, from, until).await?;
    Ok(Json(DeviceDrops { device_id: id.as_uuid(), from, until, items }))
}

impl DropQuery {
    fn days(&self) -> Result<(Date, Date), Problem> {
        let until = match &self.until {
            Some(text) => day("until", text)?,
            None => crate::clock::now().date(),
        };
        let from = match &self.from {
            Some(text) => day("from", text)?,
            None => until.saturating_sub(DAYS_BEFORE),
        };
        if !(0..DAYS_MAX).contains(&(until - from).whole_days()) {
            return Err(Problem::bad_request(format!(
                "`until` must not be before `from`, and {DAYS_MAX} days are the most that one answer covers."
            )));
        }
        Ok((from, until))
    }
}

fn day(parameter: &str, text: &str) -> Result<Date, Problem> {
    Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map_err(|_| Problem::bad_request(format!("The parameter `{parameter}` is no date as 2026-11-21.")))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};

    async fn drops(scene: &Scene, somebody: &Somebody, query: &str) -> Value {
        let path = format!("/devices/{}/drops{query}", scene.device);
        scene.get(&path).by(somebody).send().await.expect(StatusCode::OK)
    }

    async fn insert(scene: &Scene) {
        let device = scene.device.as_uuid();
        for sql in [
            "insert into device_drops (device_id, tenant_id, day, reason, packets)
             select id, tenant_id, (now() at time zone 'utc')::date, 'port', 7 from devices where id = $1",
            "insert into device_drops (device_id, tenant_id, day, reason, packets)
             select id, tenant_id, '2026-03-01', 'source', 2 from devices where id = $1",
            "insert into device_drops (device_id, tenant_id, day, reason, packets)
             select id, tenant_id, '2026-03-01', 'protocol', 3 from devices where id = $1",
        ] {
            scene.sql(sql, device).await;
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn shows_days_and_reasons(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        insert(&scene).await;
        for somebody in [&scene.admin, &scene.operator, &scene.customer] {
            let shown = drops(&scene, somebody, "").await;
            let items = shown["items"].as_array().unwrap();
            assert_eq!(items.len(), 1);
            assert_eq!((&items[0]["reason"], &items[0]["packets"]), (&json!("port"), &json!(7)));
            assert_eq!((&items[0]["day"], &shown["device_id"]), (&shown["until"], &json!(scene.device.as_uuid())));
            assert!(items[0]["first_at"].as_str().is_some_and(|at| at.ends_with('Z')));
        }
        let march = drops(&scene, &scene.customer, "?from=2026-02-27&until=2026-03-01").await;
        let reasons: Vec<_> = march["items"].as_array().unwrap().iter().map(|item| item["reason"].clone()).collect();
        assert_eq!(reasons, [json!("protocol"), json!("source")]);
        assert_eq!((&march["from"], &march["until"]), (&json!("2026-02-27"), &json!("2026-03-01")));
        assert_eq!(march["items"][0]["day"], "2026-03-01");
        assert_eq!(drops(&scene, &scene.customer, "?from=2026-03-02&until=2026-03-03").await["items"], json!([]));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn is_nobody_elses_business_and_has_bounds(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let path = format!("/devices/{}/drops", scene.device);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        for query in [
            "?from=2026-03-02&until=2026-03-01",
            "?from=2025-01-01&until=2026-03-01",
            "?from=today",
            "?until=2026-13-01",
            "?day=2026-03-01",
        ] {
            scene.get(&format!("{path}{query}")).by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        }
        drops(&scene, &scene.customer, "?from=2025-03-01&until=2026-03-01").await;
    }
}
