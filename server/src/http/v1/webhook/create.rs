//! `POST /webhooks`: a tenant's, or by an administrator the vendor's own. The secret is shown once.

use axum::extract::State;
use axum::response::IntoResponse;
use cloudlink_proto::ids::WebhookId;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::show::audited;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Json, NoQuery};
use crate::model::audit::Subject;
use crate::model::new_id;
use crate::model::notice::Event;
use crate::model::webhook::Webhook;
use crate::notice::webhook::{Secret, UrlError, check_url};
use crate::store::StoreError;
use crate::store::audit::audit_append;
use crate::store::webhook::{NewWebhook, webhook_count_in_txn, webhook_create};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebhookCreate {
    /// `https://…`, at most 2,048 characters, without a user name, a password and a fragment. Its host must have an address on the
    /// Internet, unless the server's configuration says otherwise.
    url: String,
    /// Of what it is told. Left out: of everything. Never empty.
    events: Option<Vec<Event>>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct WebhookSecret {
    #[serde(flatten)]
    pub(super) webhook: Webhook,
    /// What deliveries are signed with, `whsec_…`. It is shown here and never again.
    pub(super) secret: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no webhooks here")]
    Off,
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("no events")]
    Events,
    #[error("as many as there may be")]
    TooMany(u32),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Off => Self::unavailable(),
            RouteError::Url(error) => Self::unprocessable(format!("`url` is not allowed: {error}.")),
            RouteError::Events => {
                Self::unprocessable("`events` must not be empty. Leave it out to be told of everything.")
            }
            RouteError::TooMany(max) => {
                Self::new(Kind::Conflict, format!("There are {max} webhooks already. Disable one that is not needed."))
            }
            RouteError::Store(error) => error.into(),
        }
    }
}

/// Have another system told of events
#[utoipa::path(post, path = "/webhooks", operation_id = "webhook_create", tag = "webhooks",
    request_body = WebhookCreate, responses((status = 201, body = WebhookSecret)))]
#[tracing::instrument(name = "http.webhook.create", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    _: NoQuery,
    Json(request): Json<WebhookCreate>,
) -> Result<impl IntoResponse, RouteError> {
    let notices = context.notices.as_ref().ok_or(RouteError::Off)?;
    let url = check_url(&request.url, notices.guard())?;
    let mut events = request.events.unwrap_or_else(|| Event::ALL.to_vec());
    events.sort_unstable_by_key(|event| event.name());
    events.dedup();
    if events.is_empty() {
        return Err(RouteError::Events);
    }
    let owner = caller.tenant();
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let max = notices.webhooks_max();
    if webhook_count_in_txn(&mut transaction, owner).await? >= i64::from(max) {
        return Err(RouteError::TooMany(max));
    }
    let (id, secret) = (WebhookId::from_uuid(new_id()), Secret::generate());
    let new = NewWebhook {
        id,
        owner,
        url: url.as_str(),
        events: &events,
        secret_sealed: &secret.seal(notices.key(), id),
        created_by: caller.person(),
    };
    let webhook = webhook_create(&mut transaction, new).await?;
    let (subject, details) = (Subject::new("webhook", webhook.id), audited(&webhook));
    audit_append(&mut transaction, caller.chain(), &caller.actor(), "webhook.created", subject, json!(details)).await?;
    context.store.commit(transaction).await?;
    Ok((StatusCode::CREATED, Json(WebhookSecret { webhook, secret: secret.expose() })))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use crate::http::problem::Kind;
    use crate::http::testing::Scene;
    use crate::model::audit::PLATFORM;
    use crate::model::notice::Event;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn makes_one_with_a_secret_that_is_shown_once(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let body = json!({"url": "https://example.com/hook?key=1", "events": ["grant.created", "grant.created"]});
        let made = scene.post("/webhooks").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
        assert_eq!(made["tenant_id"], json!(scene.tenant.to_string()));
        assert_eq!(made["events"], json!(["grant.created"]));
        assert_eq!(scene.audited(scene.tenant).await, ["webhook.created"]);
        let audit: String = sqlx::query_scalar("select entry from audit").fetch_one(&scene.root).await.unwrap();
        assert!(
            audit.contains("https://example.com") && !audit.contains("key=1") && !audit.contains("whsec"),
            "{audit}"
        );

        let vendors = scene.post("/webhooks").by(&scene.admin).json(json!({"url": "https://example.com/"}));
        let vendors = vendors.send().await.expect(StatusCode::CREATED);
        assert_eq!(
            (&vendors["tenant_id"], vendors["events"].as_array().unwrap().len()),
            (&json!(null), Event::ALL.len())
        );
        assert_eq!(scene.audited(PLATFORM).await, ["webhook.created"]);

        for somebody in [&scene.customer, &scene.admin] {
            let list = scene.get("/webhooks").by(somebody).send().await.expect(StatusCode::OK);
            assert_eq!(list["items"].as_array().unwrap().len(), 1, "one's own");
            assert!(list["items"][0].get("secret").is_none());
        }
        // While a newer version runs beside this one.
        sqlx::query("update webhooks set events = events || '{device.abducted}'").execute(&scene.root).await.unwrap();
        let shown = scene.get(&format!("/webhooks/{}", made["id"].as_str().unwrap())).by(&scene.customer).send().await;
        let shown = shown.expect(StatusCode::OK);
        assert!(shown.get("secret").is_none() && shown["events"] == json!(["grant.created"]), "{shown}");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn refuses_addresses_inside_and_more_than_there_may_be(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let create = |body| scene.post("/webhooks").by(&scene.customer).json(body).send();
        for url in ["http://example.com/", "https://127.0.0.1/", "https://[fe80::1]/", "https://169.254.169.254/", "x"]
        {
            let problem = create(json!({"url": url})).await.expect_problem(Kind::Unprocessable);
            assert!(problem["detail"].as_str().unwrap().contains("url"), "{problem}");
        }
        create(json!({"url": "https://example.com/", "events": []})).await.expect_problem(Kind::Unprocessable);
        create(json!({"url": "https://example.com/", "events": ["all"]})).await.expect_problem(Kind::BadRequest);
        for _ in 0..16 {
            create(json!({"url": "https://example.com/"})).await.expect(StatusCode::CREATED);
        }
        create(json!({"url": "https://example.com/"})).await.expect_problem(Kind::Conflict);
        let other = scene.post("/webhooks").by(&scene.other_customer).json(json!({"url": "https://example.com/"}));
        other.send().await.expect(StatusCode::CREATED);
    }
}
