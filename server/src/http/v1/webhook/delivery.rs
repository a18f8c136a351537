//! `GET /webhooks/{id}/deliveries`: what was and is to be sent to it, newest first.

use axum::extract::State;
use cloudlink_proto::ids::WebhookId;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::page::{Page, Window};
use crate::http::problem::Problem;
use crate::http::request::{Id, Json, Query};
use crate::model::webhook::Delivery;
use crate::store::webhook::{delivery_list, webhook_show};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryQuery {
    limit: Option<u32>,
    cursor: Option<String>,
}

/// What was sent to a webhook
#[utoipa::path(get, path = "/webhooks/{id}/deliveries", operation_id = "webhook_deliveries", tag = "webhooks",
    params(("id" = uuid::Uuid, Path), DeliveryQuery), responses((status = 200, body = Page<Delivery>)))]
#[tracing::instrument(name = "http.webhook.delivery", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<DeliveryQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let id = WebhookId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    webhook_show(&mut transaction, caller.tenant(), id).await?.ok_or_else(Problem::not_found)?;
    let deliveries = delivery_list(&mut transaction, id, window.after, window.fetch_limit()).await?;
    Ok(Json(window.page(deliveries, |delivery| (delivery.created_at, delivery.id))))
}
