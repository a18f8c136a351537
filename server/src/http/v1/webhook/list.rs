//! `GET /webhooks`: one's own, newest first. Never a secret.

use axum::extract::State;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Json, Query};
use crate::model::webhook::Webhook;
use crate::store::webhook::webhook_list;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebhookQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// Webhooks
#[utoipa::path(get, path = "/webhooks", operation_id = "webhook_list", tag = "webhooks",
    params(WebhookQuery), responses((status = 200, body = Page<Webhook>)))]
#[tracing::instrument(name = "http.webhook.list", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Query(query): Query<WebhookQuery>,
) -> Result<Json<Page<Webhook>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let webhooks = webhook_list(&mut transaction, caller.tenant(), window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(webhooks, |webhook| (webhook.created_at, webhook.id))))
}
