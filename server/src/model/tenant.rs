//! Tenants: customers, who own devices.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// Shortest and longest that a tenant may let one grant run.
pub const GRANT_MAX_SECONDS_RANGE: std::ops::RangeInclusive<i32> = 60..=31_622_400;

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Tenant {
    pub id: Uuid,
    pub name: String,
    /// The longest that one grant may run, from its start to its end.
    pub grant_max_seconds: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}
