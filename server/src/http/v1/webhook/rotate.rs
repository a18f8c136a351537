//! `POST /webhooks/{id}/rotate`: another secret, shown once. The one before signs as well for a day, so that the receiver has time
//! to learn the new one.

use std::time::Duration;

use axum::extract::State;
use cloudlink_proto::ids::WebhookId;

use super::create::WebhookSecret;
use super::show::audited;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Id, Json, NoQuery};
use crate::model::audit::Subject;
use crate::notice::webhook::Secret;
use crate::store::audit::audit_append;
use crate::store::webhook::{webhook_rotate, webhook_show};

/// How long the secret before signs as well.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Give a webhook another secret
#[utoipa::path(post, path = "/webhooks/{id}/rotate", operation_id = "webhook_rotate", tag = "webhooks",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = WebhookSecret)))]
#[tracing::instrument(name = "http.webhook.rotate", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<WebhookSecret>, Problem> {
    let notices = context.notices.as_ref().ok_or_else(Problem::unavailable)?;
    let (owner, id, secret) = (caller.tenant(), WebhookId::from_uuid(id), Secret::generate());
    let mut transaction = context.store.begin(caller.visibility()).await?;
    webhook_show(&mut transaction, owner, id).await?.ok_or_else(Problem::not_found)?;
    if !webhook_rotate(&mut transaction, id, &secret.seal(notices.key(), id), KEEP).await? {
        return Err(disabled());
    }
    let webhook = webhook_show(&mut transaction, owner, id).await?.ok_or_else(Problem::not_found)?;
    let (subject, details) = (Subject::new("webhook", webhook.id), audited(&webhook));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "webhook.rotated", subject, details).await?;
    context.store.commit(transaction).await?;
    Ok(Json(WebhookSecret { webhook, secret: secret.expose() }))
}

pub(super) fn disabled() -> Problem {
    Problem::new(Kind::Conflict, "The webhook is disabled. Make a new one.")
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn only_its_owner_gives_it_another_secret(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        for (owner, strangers) in [
            (&scene.customer, [&scene.other_customer, &scene.admin]),
            (&scene.admin, [&scene.customer, &scene.other_customer]),
        ] {
            let made = scene.post("/webhooks").by(owner).json(json!({"url": "https://example.com/"}));
            let made = made.send().await.expect(StatusCode::CREATED);
            let path = format!("/webhooks/{}/rotate", made["id"].as_str().unwrap());
            for stranger in strangers {
                scene.post(&path).by(stranger).send().await.expect_problem(Kind::NotFound);
            }
            let rotated = scene.post(&path).by(owner).send().await.expect(StatusCode::OK);
            assert_ne!(rotated["secret"], made["secret"]);
            assert!(made["previous_secret_until"].is_null() && rotated["previous_secret_until"].is_string());
        }
        assert_eq!(scene.audited(scene.tenant).await, ["webhook.created", "webhook.rotated"]);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn on_behalf_of_a_tenant_no_other_secret_is_changed(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let made = scene.post("/webhooks").by(&scene.admin).json(json!({"url": "https://example.com/"}));
        let id: uuid::Uuid = made.send().await.expect(StatusCode::CREATED)["id"].as_str().unwrap().parse().unwrap();
        let visibility = crate::store::Visibility::Tenant(scene.tenant);
        let mut transaction = scene.store.begin(visibility).await.unwrap();
        let id = cloudlink_proto::ids::WebhookId::from_uuid(id);
        let keep = std::time::Duration::from_secs(1);
        assert!(!crate::store::webhook::webhook_rotate(&mut transaction, id, &[0; 68], keep).await.unwrap());
    }
}
