//! `POST /webhooks/{id}/test`: sends a trial, `webhook.test`, once. What came of it is among the deliveries a moment later.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::{NoticeId, WebhookId};
use http::StatusCode;

use super::rotate::disabled;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::new_id;
use crate::model::webhook::Delivery;
use crate::store::webhook::{webhook_show, webhook_try};

/// Try a webhook
#[utoipa::path(post, path = "/webhooks/{id}/test", operation_id = "webhook_test", tag = "webhooks",
    params(("id" = uuid::Uuid, Path)), responses((status = 202, body = Delivery)))]
#[tracing::instrument(name = "http.webhook.test", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = webhook_show(&mut transaction, caller.tenant(), WebhookId::from_uuid(id)).await?;
    let webhook = shown.ok_or_else(Problem::not_found)?;
    if webhook.disabled_at.is_some() {
        return Err(disabled());
    }
    let delivery = webhook_try(&mut transaction, &webhook, NoticeId::from_uuid(new_id())).await?;
    context.store.commit(transaction).await?;
    context.tell_outside(true);
    Ok((StatusCode::ACCEPTED, Json(delivery)))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_trial_is_among_the_deliveries_of_its_webhook(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for somebody in [&scene.customer, &scene.admin] {
            let made = scene.post("/webhooks").by(somebody).json(json!({"url": "https://example.com/"}));
            let path = format!("/webhooks/{}", made.send().await.expect(StatusCode::CREATED)["id"].as_str().unwrap());
            scene.post(&format!("{path}/test")).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
            let trial = scene.post(&format!("{path}/test")).by(somebody).send().await.expect(StatusCode::ACCEPTED);
            assert_eq!((&trial["event"], &trial["state"]), (&json!("webhook.test"), &json!("waiting")));
            let deliveries = scene.get(&format!("{path}/deliveries")).by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!(deliveries["items"], json!([trial]));
            scene
                .get(&format!("{path}/deliveries"))
                .by(&scene.other_customer)
                .send()
                .await
                .expect_problem(Kind::NotFound);
        }
    }
}
