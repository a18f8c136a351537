//! When devices booted, and why.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// One boot of a device's operating system.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Boot {
    pub boot_id: String,
    /// When it was seen first: when its first link began.
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    pub cause: BootCause,
    /// The command that ordered it: a reboot, or a shutdown, after which somebody switched the device on.
    pub command_id: Option<Uuid>,
}

/// Why a device booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BootCause {
    /// The device had taken a command to reboot or to shut down.
    Ordered,
    /// Nobody knows: somebody on the spot, a loss of power, a watchdog.
    Unknown,
}

/// A reboot that was ordered, and after which the device has not been seen.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct MissingBoot {
    pub command_id: Uuid,
    /// When the command was sent.
    #[serde(with = "time::serde::rfc3339")]
    pub ordered_at: OffsetDateTime,
}

/// The boots of a device that are remembered.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceBoots {
    pub device_id: Uuid,
    /// Newest first, at most 256.
    pub boots: Vec<Boot>,
    /// Set while the device has not come back from a reboot that was ordered.
    pub missing: Option<MissingBoot>,
}
