//! `POST /thresholds`: a rule over what the tenant's devices measure.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::ThresholdId;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::Tag;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::audit::Subject;
use crate::model::device::{LABEL_CHARS_MAX, Labels};
use crate::model::new_id;
use crate::model::threshold::{
    AlertSeverity, Comparison, HOLD_DOWN_SECONDS, SECONDS_MAX, THRESHOLDS_MAX, Threshold, ThresholdMetric,
};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::threshold::{NAME_TAKEN, Said, threshold_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThresholdCreate {
    /// 1 to 63 characters, unique among the tenant's.
    name: String,
    /// As in `GET /devices/{id}/samples`, or `no_contact_seconds`: how long a device has been neither linked nor polling.
    metric: String,
    comparison: Comparison,
    value: f64,
    /// At this value, or beyond it on the good side, it is over. Left out: at `value`.
    clear_value: Option<f64>,
    /// How long it must last before it counts; 0 when left out, at most 86,400.
    for_seconds: Option<u32>,
    /// For which devices it is. Groups in it are taken for what they mean now. Never empty.
    selector: WrittenSelector,
    /// `warning` when left out.
    severity: Option<AlertSeverity>,
    /// How long nothing more is told of a site after something was; 300 when left out, at most 86,400.
    hold_down_seconds: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such name")]
    Name,
    #[error("no such metric")]
    Metric,
    #[error("the value to be clear at is on the wrong side")]
    ClearValue(Comparison),
    #[error("{0} is too long")]
    TooLong(&'static str),
    #[error("the name is taken")]
    NameTaken,
    #[error("too many rules")]
    TooMany,
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Name => Self::unprocessable(format!(
                "`name` must have 1 to {LABEL_CHARS_MAX} characters, not only blanks, and no control characters."
            )),
            RouteError::Metric => Self::unprocessable(format!("`metric` must be one of {}.", ThresholdMetric::names())),
            RouteError::ClearValue(Comparison::Above) => {
                Self::unprocessable("`clear_value` must not be above `value`.")
            }
            RouteError::ClearValue(Comparison::Below) => {
                Self::unprocessable("`clear_value` must not be below `value`.")
            }
            RouteError::TooLong(member) => Self::unprocessable(format!("`{member}` must be at most {SECONDS_MAX}.")),
            RouteError::NameTaken => Self::new(Kind::Conflict, "Your tenant has another threshold of this name."),
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("Your tenant has {THRESHOLDS_MAX} thresholds already. Delete one that is not needed."),
            ),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

impl RouteError {
    /// Of what could not be written.
    pub(super) fn written(error: StoreError) -> Self {
        if error.constraint() == Some(NAME_TAKEN) { Self::NameTaken } else { Self::Store(error) }
    }
}

/// Whether a rule may say so.
pub(super) fn check(said: &Said<'_>) -> Result<(), RouteError> {
    if !Labels::is_text(said.name) || said.name.trim().is_empty() {
        return Err(RouteError::Name);
    }
    let is_apart = match said.comparison {
        Comparison::Above => said.clear_value <= said.value,
        Comparison::Below => said.clear_value >= said.value,
    };
    if !is_apart {
        return Err(RouteError::ClearValue(said.comparison));
    }
    let lengths = [("for_seconds", said.for_seconds), ("hold_down_seconds", said.hold_down_seconds)];
    match lengths.into_iter().find(|(_, seconds)| *seconds > SECONDS_MAX) {
        Some((member, _)) => Err(RouteError::TooLong(member)),
        None => Ok(()),
    }
}

/// What the audit log keeps of a rule.
pub(super) fn audited(threshold: &Threshold) -> serde_json::Value {
    json!({
        "name": threshold.name, "metric": threshold.metric, "comparison": threshold.comparison, "value": threshold.value,
        "clear_value": threshold.clear_value, "for_seconds": threshold.for_seconds, "selector": threshold.selector,
        "severity": threshold.severity, "hold_down_seconds": threshold.hold_down_seconds,
    })
}

/// Watch over what devices measure
///
/// Webhooks are told when devices cross the threshold (`metric.threshold_crossed`) and when they are clear of it again
/// (`metric.threshold_cleared`), a site at a time.
#[utoipa::path(post, path = "/thresholds", operation_id = "threshold_create", tag = "thresholds",
    request_body = ThresholdCreate, responses((status = 201, body = Threshold, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.threshold.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<ThresholdCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let tenant = caller.tenant().ok_or_else(Problem::not_found)?;
    let metric = ThresholdMetric::named(&request.metric).ok_or(RouteError::Metric)?;
    let said = Said {
        name: &request.name,
        comparison: request.comparison,
        value: request.value,
        clear_value: request.clear_value.unwrap_or(request.value),
        for_seconds: request.for_seconds.unwrap_or(0),
        selector: None,
        severity: request.severity.unwrap_or(AlertSeverity::Warning),
        hold_down_seconds: request.hold_down_seconds.unwrap_or(HOLD_DOWN_SECONDS),
    };
    check(&said)?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let selector = request.selector.resolve(&mut transaction, Some(tenant)).await?;
    let (id, said) = (ThresholdId::from_uuid(new_id()), Said { selector: Some(&selector), ..said });
    let threshold = threshold_create(&mut transaction, id, tenant, caller.person(), metric, said).await;
    let threshold = threshold.map_err(RouteError::written)?.ok_or(RouteError::TooMany)?;
    let (subject, details) = (Subject::new("threshold", threshold.id), audited(&threshold));
    audit_append(&mut transaction, tenant, &caller.actor(), "threshold.created", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Tag::of_version(threshold.version).header(), Json(threshold)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene, Somebody};
    use crate::model::threshold::THRESHOLDS_MAX;

    async fn create(scene: &Scene, somebody: &Somebody, changes: Value) -> Answer {
        let mut body =
            json!({"name": "hot", "metric": "cpu_percent", "comparison": "above", "value": 90, "selector": "site"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        scene.post("/thresholds").by(somebody).json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_rule_is_its_tenants_and_says_all_that_holds(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let group = json!({"name": "g", "selector": "site=north"});
        scene.post("/groups").by(&scene.customer).json(group).send().await.expect(StatusCode::CREATED);
        let answer = create(&scene, &scene.customer, json!({"selector": "@g,!retired"})).await;
        let threshold = answer.expect(StatusCode::CREATED);
        assert_eq!(answer.header("etag"), "\"1\"");
        assert_eq!(
            (&threshold["selector"], &threshold["clear_value"], &threshold["severity"]),
            (&json!("!retired,site=north"), &json!(90.0), &json!("warning"))
        );
        assert_eq!((&threshold["for_seconds"], &threshold["hold_down_seconds"]), (&json!(0), &json!(300)));
        let path = format!("/thresholds/{}", threshold["id"].as_str().unwrap());
        assert_eq!(scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK), threshold);
        create(&scene, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        create(&scene, &scene.other_customer, json!({})).await.expect(StatusCode::CREATED);
        let second = json!({"name": "gone", "metric": "no_contact_seconds", "comparison": "below", "clear_value": 91});
        create(&scene, &scene.customer, second).await.expect(StatusCode::CREATED);
        let page = scene.get("/thresholds").by(&scene.customer).send().await.expect(StatusCode::OK);
        let names: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
        assert_eq!(names, ["gone", "hot"]);
        let page = scene.get("/thresholds?name=hot").by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(page["items"], json!([threshold]));
        // What devices measure is the vendor's people's to see under a grant only.
        for stranger in [&scene.operator, &scene.admin] {
            scene.get(&path).by(stranger).send().await.expect_problem(Kind::Forbidden);
        }
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        assert_eq!(scene.audited(scene.tenant).await, ["group.created", "threshold.created", "threshold.created"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_what_makes_no_sense_and_says_why(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        // Each with a word that the answer must say.
        for (changes, word) in [
            (json!({"metric": "cpu"}), "temperature_celsius"),
            (json!({"metric": "report"}), "no_contact_seconds"),
            (json!({"selector": ""}), "empty"),
            (json!({"selector": {}}), "empty"),
            (json!({"selector": "site="}), "at character 6"),
            (json!({"selector": "@g"}), "no group"),
            (json!({"name": " "}), "name"),
            (json!({"clear_value": 90.5}), "clear_value"),
            (json!({"comparison": "below", "clear_value": 89.5}), "clear_value"),
            (json!({"for_seconds": 86_401}), "for_seconds"),
            (json!({"hold_down_seconds": 86_401}), "hold_down_seconds"),
        ] {
            let problem = create(&scene, &scene.customer, changes.clone()).await.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains(word), "{changes}: {problem}");
        }
        for changes in [
            json!({"selector": null}),
            json!({"comparison": "equal"}),
            json!({"value": "much"}),
            json!({"severity": "bad"}),
            json!({"for_seconds": -1}),
            json!({"surprise": 1}),
        ] {
            create(&scene, &scene.customer, changes).await.expect_problem(Kind::BadRequest);
        }
        sqlx::query(
            "insert into thresholds (id, tenant_id, name, metric, comparison, value, clear_value, for_seconds, selector, severity,
                                     hold_down_seconds, created_by)
             select gen_random_uuid(), $1, n::text, 'load_1m', 'above', 1, 1, 0, '{\"a\": \"b\"}', 'info', 0, $2
               from generate_series(1, $3) as n",
        )
        .bind(scene.tenant.as_uuid())
        .bind(scene.customer.id.as_uuid())
        .bind(THRESHOLDS_MAX)
        .execute(&scene.root)
        .await
        .unwrap();
        create(&scene, &scene.customer, json!({})).await.expect_problem(Kind::Conflict);
        create(&scene, &scene.other_customer, json!({})).await.expect(StatusCode::CREATED);
        assert!(scene.audited(scene.tenant).await.is_empty());
    }
}
