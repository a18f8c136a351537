//! Webhooks: where a tenant's, or the vendor's, own systems are told of events.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::notice::Event;

/// The event of a trial. No webhook asks for it.
pub const TRIAL: &str = "webhook.test";
/// The longest address, in characters.
pub const URL_CHARS_MAX: usize = 2048;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Webhook {
    pub id: Uuid,
    /// Null: the vendor's own, which hears of all tenants.
    pub tenant_id: Option<Uuid>,
    pub url: String,
    pub events: Vec<Event>,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Nothing more is sent to it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub disabled_at: Option<OffsetDateTime>,
    /// Since when nothing has been delivered; null while it works.
    #[serde(with = "time::serde::rfc3339::option")]
    pub failing_since: Option<OffsetDateTime>,
    /// Until then the secret before the present one signs as well.
    #[serde(with = "time::serde::rfc3339::option")]
    pub previous_secret_until: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// To be tried, or tried again.
    Waiting,
    Delivered,
    /// Given up.
    Failed,
}

/// One event on its way to one webhook.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// What is sent as `webhook-id`.
    pub id: Uuid,
    /// The tenant that it is about; null for a trial of the vendor's own webhook.
    pub tenant_id: Option<Uuid>,
    pub event: String,
    pub state: DeliveryState,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    pub attempts: i32,
    /// When it is tried next; null when it is over.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub delivered_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub failed_at: Option<OffsetDateTime>,
    /// What the last attempt came to, in a word or a status code.
    pub last_result: Option<String>,
}
