//! `GET /webhooks/{id}`: one of one's own.

use axum::extract::State;
use cloudlink_proto::ids::WebhookId;
use serde_json::{Value, json};

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, NoQuery};
use crate::model::webhook::Webhook;
use crate::store::webhook::webhook_show;

/// One webhook
#[utoipa::path(get, path = "/webhooks/{id}", operation_id = "webhook_show", tag = "webhooks",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, body = Webhook)))]
#[tracing::instrument(name = "http.webhook.show", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    _: NoQuery,
) -> Result<Json<Webhook>, Problem> {
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = webhook_show(&mut transaction, caller.tenant(), WebhookId::from_uuid(id)).await?;
    Ok(Json(shown.ok_or_else(Problem::not_found)?))
}

/// What the audit log says of it. What follows the host in an address may be a secret.
pub(super) fn audited(webhook: &Webhook) -> Value {
    let host = reqwest::Url::parse(&webhook.url).ok().map(|url| url.origin().ascii_serialization());
    json!({"host": host, "events": webhook.events})
}
