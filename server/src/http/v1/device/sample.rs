//! `GET /devices/{id}/samples`: what a device measured over time. To an operator only under a grant, and with an entry in the
//! audit log, as its last report.

use std::collections::BTreeSet;

use axum::extract::State;
use cloudlink_proto::ids::DeviceId;
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::metrics::{SCOPE, refusal};
use crate::config::Telemetry;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::model::person::Role;
use crate::model::sample::{DeviceSamples, Metric};
use crate::store::device::device_count;
use crate::store::sample::{Range, sample_list, sample_progress_show, sample_read_under_grant_in_txn};
use crate::store::single;

/// Points of one metric in one answer.
const POINTS_MAX: u64 = 1500;
/// What one answer has if nobody says more.
const POINTS_DEFAULT: u64 = 300;
const RANGE_DEFAULT: Duration = Duration::HOUR;
const FIVE_MINUTES: u64 = 300;
const HOUR: u64 = 3600;
/// No answer covers more, whatever the step.
const RANGE_MAX: Duration = Duration::days(36_500);

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SampleQuery {
    /// Names as in a report, separated by commas. Left out: all.
    metric: Option<String>,
    /// As 2026-11-21T14:00:00Z. Left out: an hour before `until`.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// Left out: now.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
    /// Seconds from one point to the next. Beyond 300 it is rounded up to whole five minutes, beyond 3600 to whole hours. Left out: so
    /// many that there are about 300 points.
    #[param(minimum = 1)]
    step: Option<u32>,
}

/// What a device measured over time
///
/// For each metric a point a step: how many samples, the least, the most and the mean. Steps begin at whole multiples of
/// themselves; at most 1,500 points a metric. The step is larger than what was asked for where samples of that time are not
/// kept any more.
#[utoipa::path(get, path = "/devices/{id}/samples", operation_id = "device_samples", tag = "devices",
    params(("id" = uuid::Uuid, Path), SampleQuery), responses((status = 200, body = DeviceSamples)))]
#[tracing::instrument(name = "http.device.sample", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<SampleQuery>,
) -> Result<Json<DeviceSamples>, Problem> {
    let range = query.range(&context.telemetry, crate::clock::now())?;
    let device = DeviceId::from_uuid(id);
    let store = &context.store;
    let progress = single!(store, |connection| sample_progress_show(connection))?;
    let mut transaction = store.begin(caller.visibility()).await?;
    let series = sample_list(&mut transaction, device, &range, progress).await?;
    match caller.role() {
        Role::Operator => {
            let actor = caller.actor().to_json();
            let person = caller.person();
            let is_allowed =
                sample_read_under_grant_in_txn(&mut transaction, device, person, actor, SCOPE, &range).await?;
            if !is_allowed {
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
    let Range { from, until, step_seconds, .. } = range;
    Ok(Json(DeviceSamples { device_id: id, from, until, step_seconds, series }))
}

impl SampleQuery {
    fn range(&self, kept: &Telemetry, now: OffsetDateTime) -> Result<Range, Problem> {
        let until = self.until.as_deref().map_or(Ok(now), |text| time("until", text))?;
        let from = self.from.as_deref().map_or(Ok(until.saturating_sub(RANGE_DEFAULT)), |text| time("from", text))?;
        let length = until - from;
        if !(Duration::ZERO < length && length <= RANGE_MAX) {
            return Err(Problem::bad_request("`until` must be after `from`, by at most 36,500 days."));
        }
        let seconds = length.whole_seconds().unsigned_abs();
        let wanted = match self.step {
            Some(0) => return Err(Problem::bad_request("`step` must be at least 1 second.")),
            Some(step) => step.into(),
            None => seconds.div_ceil(POINTS_DEFAULT).max(1),
        };
        let step = kept_step(wanted, now - from, kept);
        let points = seconds.div_ceil(step);
        if points > POINTS_MAX {
            let least = seconds.div_ceil(POINTS_MAX);
            return Err(Problem::bad_request(format!(
                "That would be {points} points a metric, and {POINTS_MAX} are the most: ask for less time, or with a `step` \
                 of at least {least}."
            )));
        }
        let step_seconds = u32::try_from(step).map_err(|_| Problem::bad_request("`step` is too large."))?;
        Ok(Range { metrics: self.metrics()?, from, until, step_seconds })
    }

    fn metrics(&self) -> Result<Vec<Metric>, Problem> {
        let Some(names) = &self.metric else { return Ok(Metric::ALL.to_vec()) };
        let known = names.split(',').map(Metric::named).collect::<Option<Vec<_>>>();
        known
            .filter(|metrics| {
                metrics.iter().map(|metric| metric.name()).collect::<BTreeSet<_>>().len() == metrics.len()
            })
            .ok_or_else(|| {
                let all = Metric::ALL.map(Metric::name).join(", ");
                Problem::bad_request(format!("`metric` must be some of these, separated by commas, each once: {all}."))
            })
    }
}

/// A step of what is still kept of so long ago, as it was added up.
fn kept_step(wanted: u64, age: Duration, kept: &Telemetry) -> u64 {
    let is_kept = |days: u32| age <= Duration::days(days.into());
    let wanted = match wanted {
        ..FIVE_MINUTES if is_kept(kept.raw_keep_days) => return wanted,
        ..HOUR if is_kept(kept.five_minutes_keep_days) => return wanted.div_ceil(FIVE_MINUTES) * FIVE_MINUTES,
        wanted => wanted,
    };
    wanted.div_ceil(HOUR) * HOUR
}

fn time(parameter: &str, text: &str) -> Result<OffsetDateTime, Problem> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|at| at.checked_to_offset(UtcOffset::UTC));
    at.filter(|at| (1970..9999).contains(&at.year()))
        .ok_or_else(|| Problem::bad_request(format!("The parameter `{parameter}` is no time as 2026-11-21T14:00:00Z.")))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use time::macros::datetime;

    use super::*;
    use crate::http::problem::Kind;
    use crate::http::testing::{Scene, Somebody};

    const NOW: OffsetDateTime = datetime!(2026-11-21 14:00 UTC);

    fn step(query: &SampleQuery) -> Result<u32, Problem> {
        query.range(&Telemetry::default(), NOW).map(|range| range.step_seconds)
    }

    #[test]
    fn a_step_fits_to_what_is_kept_and_to_how_many_points_there_may_be() {
        let ask = |from: &str, step| SampleQuery { from: Some(from.to_owned()), step, ..SampleQuery::default() };
        assert_eq!(step(&SampleQuery::default()).unwrap(), 12);
        assert_eq!(step(&ask("2026-11-21T13:59:59.5Z", None)).unwrap(), 1);
        assert_eq!(step(&ask("2026-11-21T13:00:00Z", Some(7))).unwrap(), 7);
        assert_eq!(step(&ask("2026-11-21T13:00:00Z", Some(301))).unwrap(), 600);
        assert_eq!(step(&ask("2026-11-21T00:00:00Z", Some(3601))).unwrap(), 7200);
        assert_eq!(step(&ask("2026-11-20T14:00:00Z", None)).unwrap(), 288);
        // Ten days ago there are five minutes only, and last year hours.
        assert_eq!(step(&ask("2026-11-11T14:00:00Z", None)).unwrap(), 3000);
        assert_eq!(step(&ask("2026-11-20T14:00:00Z", Some(60))).unwrap(), 60);
        assert_eq!(step(&ask("2026-11-17T14:00:00Z", Some(299))).unwrap(), 299);
        assert!(step(&ask("2026-11-17T14:00:00Z", Some(60))).is_err(), "too many points");
        assert_eq!(step(&ask("2026-10-21T00:00:00Z", Some(3000))).unwrap(), 3600);
        assert_eq!(step(&ask("2025-11-21T14:00:00Z", None)).unwrap(), 108_000);
    }

    async fn samples(scene: &Scene, somebody: &Somebody, query: &str) -> Value {
        let path = format!("/devices/{}/samples{query}", scene.device);
        scene.get(&path).by(somebody).send().await.expect(StatusCode::OK)
    }

    async fn insert(scene: &Scene) {
        let sql = "insert into samples (device_id, tenant_id, at, cpu_percent, memory_used_bytes)
                   select id, tenant_id, now() - n * interval '1 second', 10 * n, case when n = 1 then 1000000000000 end
                     from devices, generate_series(1, 3) n where id = $1";
        scene.sql(sql, scene.device.as_uuid()).await;
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_tenant_reads_its_own_and_what_is_asked_for(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        insert(&scene).await;
        let all = samples(&scene, &scene.customer, "").await;
        let names: Vec<_> = all["series"].as_array().unwrap().iter().map(|series| series["metric"].clone()).collect();
        assert_eq!(names, Metric::ALL.map(|metric| json!(metric.name())));
        assert_eq!(all["step_seconds"], 12);
        let some = samples(&scene, &scene.customer, "?metric=memory_used_bytes,cpu_percent&step=3600").await;
        let series = some["series"].as_array().unwrap();
        // Where an hour begins in between, it is two points.
        let total = |series: &Value, member: &str| -> f64 {
            series["points"].as_array().unwrap().iter().map(|point| point[member].as_f64().unwrap()).sum()
        };
        assert_eq!((series.len(), &series[0]["metric"]), (2, &json!("memory_used_bytes")));
        assert_eq!((total(&series[0], "count"), total(&series[0], "max")), (1.0, 1e12));
        assert_eq!(total(&series[1], "count"), 3.0);
        let path = format!("/devices/{}/samples", scene.device);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.admin).send().await.expect_problem(Kind::Forbidden);
        assert!(scene.audited(scene.tenant).await.is_empty());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn an_operator_reads_under_a_grant_only(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        insert(&scene).await;
        let path = format!("/devices/{}/samples", scene.device);
        let refused = scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::GrantRequired);
        assert_eq!(refused["reason"], "none");
        scene.grant(json!({"scopes": ["metrics:read"], "operator_ids": [scene.operator.id.to_string()]})).await;
        let read = samples(&scene, &scene.operator, "?metric=cpu_percent").await;
        assert!(!read["series"][0]["points"].as_array().unwrap().is_empty());
        scene.get(&path).by(&scene.colleague).send().await.expect_problem(Kind::GrantRequired);
        let nowhere = format!("/devices/{}/samples", scene.operator.id);
        scene.get(&nowhere).by(&scene.operator).send().await.expect_problem(Kind::NotFound);
        assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "metrics.read"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_cannot_be_asked_is_told(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for query in [
            "?metric=",
            "?metric=cpu",
            "?metric=cpu_percent,cpu_percent",
            "?from=today",
            "?until=2026-13-01T00:00:00Z",
            "?step=0",
            "?step=-1",
            "?from=2026-11-21T14:00:00Z&until=2026-11-21T14:00:00Z",
            "?from=0001-01-01T00:00:00Z",
            "?until=9999-12-31T23:59:59-20:00",
            "?every=5",
        ] {
            let path = format!("/devices/{}/samples{query}", scene.device);
            scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        }
        samples(
            &scene,
            &scene.customer,
            "?from=2026-11-21T14:00:00%2B02:00&until=2026-11-21T14:00:00Z&step=4000000000",
        )
        .await;
    }
}
