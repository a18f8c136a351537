//! Single-use tokens that new devices enroll with.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::device::Labels;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct EnrollmentToken {
    pub id: Uuid,
    pub tenant_id: Uuid,
    /// What the enrolled device will be called.
    pub device_name: String,
    pub labels: Labels,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub used_at: Option<OffsetDateTime>,
    /// The device that used it.
    pub device_id: Option<Uuid>,
}
