//! What a device tried and may not.

use serde::Serialize;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::isolation_statement::iso_date;

/// The packets of one day that were not let through for one reason.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceDrop {
    /// In UTC.
    #[serde(serialize_with = "iso_date")]
    #[schema(value_type = String, format = Date)]
    pub day: Date,
    /// Why: `source`, `destination`, `multicast`, `broadcast`, `malformed`, `fragment`, `options`, `protocol`, `port` or
    /// `quarantine`.
    pub reason: String,
    pub packets: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub first_at: OffsetDateTime,
    /// Lags by some seconds.
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
}

/// What a device tried from one day to another, both included.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceDrops {
    pub device_id: Uuid,
    #[serde(serialize_with = "iso_date")]
    #[schema(value_type = String, format = Date)]
    pub from: Date,
    #[serde(serialize_with = "iso_date")]
    #[schema(value_type = String, format = Date)]
    pub until: Date,
    /// Newest day first.
    pub items: Vec<DeviceDrop>,
}
