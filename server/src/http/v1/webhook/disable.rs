//! `POST /webhooks/{id}/disable`: nothing more is sent to it, what waits included. Disabling again changes nothing.

use axum::extract::State;
use cloudlink_proto::ids::WebhookId;

use super::show::audited;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::webhook::Webhook;
use crate::store::audit::audit_append;
use crate::store::webhook::{webhook_disable_in_txn, webhook_show};

/// Send nothing more to a webhook
#[utoipa::path(post, path = "/webhooks/{id}/disable", operation_id = "webhook_disable", tag = "webhooks",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Webhook)))]
#[tracing::instrument(name = "http.webhook.disable", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Webhook>, Problem> {
    let (owner, id) = (caller.tenant(), WebhookId::from_uuid(id));
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let Some(webhook) = webhook_disable_in_txn(&mut transaction, owner, id).await? else {
        let before = webhook_show(&mut transaction, owner, id).await?;
        return Ok(Json(before.ok_or_else(Problem::not_found)?));
    };
    let (subject, details) = (Subject::new("webhook", webhook.id), audited(&webhook));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "webhook.disabled", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(Json(webhook))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn calls_off_what_waits_and_hears_of_nothing_more(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let made = scene.post("/webhooks").by(&scene.customer).json(json!({"url": "https://example.com/"}));
        let made = made.send().await.expect(StatusCode::CREATED);
        let path = format!("/webhooks/{}", made["id"].as_str().unwrap());
        scene.grant(json!({})).await;
        for stranger in [&scene.other_customer, &scene.admin] {
            scene.post(&format!("{path}/disable")).by(stranger).send().await.expect_problem(Kind::NotFound);
        }
        let disabled = scene.post(&format!("{path}/disable")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert!(disabled["disabled_at"].is_string());
        let again = scene.post(&format!("{path}/disable")).by(&scene.customer).send().await.expect(StatusCode::OK);
        assert_eq!(again, disabled);
        scene.grant(json!({})).await;
        let deliveries =
            scene.get(&format!("{path}/deliveries")).by(&scene.customer).send().await.expect(StatusCode::OK);
        let deliveries = deliveries["items"].as_array().unwrap();
        assert_eq!(deliveries.len(), 1);
        assert_eq!((&deliveries[0]["state"], &deliveries[0]["event"]), (&json!("failed"), &json!("grant.created")));
        let actions = scene.audited(scene.tenant).await;
        assert_eq!(actions.iter().filter(|action| *action == "webhook.disabled").count(), 1);
        scene.post(&format!("{path}/test")).by(&scene.customer).send().await.expect_problem(Kind::Conflict);
        scene.post(&format!("{path}/rotate")).by(&scene.customer).send().await.expect_problem(Kind::Conflict);
    }
}
