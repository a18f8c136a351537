//! When devices booted, and why.

use cloudlink_proto::link::message::BootHint;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// One boot of a device's operating system.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Boot {
    pub boot_id: String,
    /// When it was seen first: when its first link began, or by its first poll.
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
    /// The device says that it was shut down in order before: by somebody on the spot, or by itself.
    Local,
    /// The device says that the boot before ended without a shutdown.
    PowerLoss,
    /// The device says that a hardware watchdog reset it.
    Watchdog,
    /// Nobody knows.
    Unknown,
}

/// What the device said of it, as it is stored.
#[must_use]
pub fn hint_told(hint: BootHint) -> Option<&'static str> {
    match hint {
        BootHint::Unspecified => None,
        BootHint::Local => Some("local"),
        BootHint::PowerLoss => Some("power_loss"),
        BootHint::Watchdog => Some("watchdog"),
    }
}

impl BootCause {
    /// What the server ordered, it knows better than the device.
    #[must_use]
    pub fn judged(is_ordered: bool, hint: Option<&str>) -> Self {
        match hint {
            _ if is_ordered => Self::Ordered,
            Some("local") => Self::Local,
            Some("power_loss") => Self::PowerLoss,
            Some("watchdog") => Self::Watchdog,
            _ => Self::Unknown,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_wins_over_what_the_device_says() {
        let judged = |is_ordered, hint| BootCause::judged(is_ordered, hint_told(hint));
        for (hint, cause) in [
            (BootHint::Unspecified, BootCause::Unknown),
            (BootHint::Local, BootCause::Local),
            (BootHint::PowerLoss, BootCause::PowerLoss),
            (BootHint::Watchdog, BootCause::Watchdog),
        ] {
            assert_eq!(judged(false, hint), cause);
            assert_eq!(judged(true, hint), BootCause::Ordered);
        }
        assert_eq!(BootCause::judged(false, Some("another")), BootCause::Unknown);
    }
}
