//! `PATCH /thresholds/{id}`: changes of a rule, of the version that was read. What fires, fires until it is clear by what the rule says
//! from then on.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::ThresholdId;
use serde::Deserialize;
use serde_json::json;

use super::create::{RouteError, audited, check};
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::etag::{IfMatch, Tag};
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::http::selector::WrittenSelector;
use crate::model::audit::Subject;
use crate::model::threshold::{AlertSeverity, Comparison, Threshold};
use crate::store::audit::audit_append;
use crate::store::threshold::{Said, threshold_lock, threshold_update_in_txn};

/// What is left out stays. Another metric is another rule.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThresholdUpdate {
    /// 1 to 63 characters, unique among the tenant's.
    name: Option<String>,
    comparison: Option<Comparison>,
    value: Option<f64>,
    clear_value: Option<f64>,
    for_seconds: Option<u32>,
    /// For which devices it is from now on. Never empty.
    selector: Option<WrittenSelector>,
    severity: Option<AlertSeverity>,
    hold_down_seconds: Option<u32>,
}

/// Change a rule
#[utoipa::path(patch, path = "/thresholds/{id}", operation_id = "threshold_update", tag = "thresholds",
    params(("id" = uuid::Uuid, Path), ("If-Match" = String, Header)), request_body = ThresholdUpdate,
    responses((status = 200, body = Threshold, headers(("ETag" = String)))))]
#[tracing::instrument(name = "http.threshold.update", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
    if_match: IfMatch,
    Json(request): Json<ThresholdUpdate>,
) -> Result<impl IntoResponse, RouteError> {
    let (tenant, id) = (caller.tenant().ok_or_else(Problem::not_found)?, ThresholdId::from_uuid(id));
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let before = threshold_lock(&mut transaction, tenant, id).await?.ok_or_else(Problem::not_found)?;
    if before.deleted_at.is_some() {
        return Err(Problem::new(Kind::Conflict, "The threshold is deleted.").into());
    }
    if_match.check(&Tag::of_version(before.version))?;
    let selector = match &request.selector {
        Some(written) => Some(written.resolve(&mut transaction, Some(tenant)).await?),
        None => None,
    };
    let said = Said {
        name: request.name.as_deref().unwrap_or(&before.name),
        comparison: request.comparison.unwrap_or(before.comparison),
        value: request.value.unwrap_or(before.value),
        clear_value: request.clear_value.unwrap_or(before.clear_value),
        for_seconds: request.for_seconds.unwrap_or(before.for_seconds),
        selector: selector.as_ref(),
        severity: request.severity.unwrap_or(before.severity),
        hold_down_seconds: request.hold_down_seconds.unwrap_or(before.hold_down_seconds),
    };
    check(&said)?;
    let threshold = threshold_update_in_txn(&mut transaction, id, said).await.map_err(RouteError::written)?;
    let details = json!({"before": audited(&before), "after": audited(&threshold)});
    let subject = Subject::new("threshold", threshold.id);
    audit_append(&mut transaction, tenant, &caller.actor(), "threshold.updated", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok((Tag::of_version(threshold.version).header(), Json(threshold)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::{Answer, Scene};

    async fn update(scene: &Scene, path: &str, if_match: &str, body: Value) -> Answer {
        scene.patch(path).by(&scene.customer).header("if-match", if_match).json(body).send().await
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_change_says_of_which_version_and_a_deleted_rule_stays_deleted(
        pool: PgPoolOptions,
        database: PgConnectOptions,
    ) {
        let scene = Scene::new(pool, database).await;
        let body = json!({
            "name": "hot", "metric": "cpu_percent", "comparison": "above", "value": 90, "clear_value": 80, "selector": "site",
        });
        let create = || scene.post("/thresholds").by(&scene.customer).json(body.clone()).send();
        let threshold = create().await.expect(StatusCode::CREATED);
        let path = format!("/thresholds/{}", threshold["id"].as_str().unwrap());
        let changes = json!({"value": 85, "selector": "site=south", "for_seconds": 60, "severity": "critical"});
        let answer = update(&scene, &path, "\"1\"", changes).await;
        let updated = answer.expect(StatusCode::OK);
        assert_eq!(answer.header("etag"), "\"2\"");
        for (member, value) in [
            ("name", json!("hot")),
            ("metric", json!("cpu_percent")),
            ("value", json!(85.0)),
            ("clear_value", json!(80.0)),
            ("for_seconds", json!(60)),
            ("selector", json!("site=south")),
            ("severity", json!("critical")),
        ] {
            assert_eq!(updated[member], value, "{member}");
        }
        update(&scene, &path, "\"1\"", json!({"value": 86})).await.expect_problem(Kind::VersionMismatch);
        // The clear value of before is on the wrong side of this one.
        for body in [json!({"value": 79}), json!({"selector": ""}), json!({"name": ""})] {
            update(&scene, &path, "*", body).await.expect_problem(Kind::Unprocessable);
        }
        update(&scene, &path, "*", json!({"metric": "load_1m"})).await.expect_problem(Kind::BadRequest);
        let delete = |somebody| scene.post(&format!("{path}/delete")).by(somebody).send();
        delete(&scene.other_customer).await.expect_problem(Kind::NotFound);
        let deleted = delete(&scene.customer).await.expect(StatusCode::OK);
        assert!(deleted["deleted_at"].is_string());
        assert_eq!(delete(&scene.customer).await.expect(StatusCode::OK), deleted);
        update(&scene, &path, "*", json!({"value": 99})).await.expect_problem(Kind::Conflict);
        create().await.expect(StatusCode::CREATED);
        assert_eq!(
            scene.audited(scene.tenant).await,
            ["threshold.created", "threshold.updated", "threshold.deleted", "threshold.created"]
        );
    }
}
