//! What a device can be told to do. A new kind is added here, in `link.proto`, and as an executor.

use cloudlink_proto::link::message::command;
use serde::{Deserialize, Serialize};

use crate::config::ServiceName;

/// The kinds of commands that this agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "metrics.collect")]
    CollectMetrics,
    #[serde(rename = "service.restart")]
    RestartService,
    #[serde(rename = "device.reboot")]
    Reboot,
    #[serde(rename = "device.shutdown")]
    Shutdown,
}

/// A command's kind and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    CollectMetrics,
    RestartService(ServiceName),
    Reboot,
    Shutdown,
}

impl Kind {
    /// All of them: the device's capabilities.
    pub const ALL: [Self; 4] = [Self::CollectMetrics, Self::RestartService, Self::Reboot, Self::Shutdown];

    /// Its name in the API and among the capabilities.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CollectMetrics => "metrics.collect",
            Self::RestartService => "service.restart",
            Self::Reboot => "device.reboot",
            Self::Shutdown => "device.shutdown",
        }
    }

    /// Whether it ends everything else that runs on the device.
    #[must_use]
    pub const fn is_power(self) -> bool {
        match self {
            Self::Reboot | Self::Shutdown => true,
            Self::CollectMetrics | Self::RestartService => false,
        }
    }

    /// Whether it is refused while the device is busy.
    #[must_use]
    pub const fn disturbs(self) -> bool {
        match self {
            Self::CollectMetrics => false,
            Self::RestartService | Self::Reboot | Self::Shutdown => true,
        }
    }
}

impl Instruction {
    /// Reads what the server asks for; `None` when the service's name cannot be one.
    #[must_use]
    pub fn from_wire(kind: &command::Kind) -> Option<Self> {
        Some(match kind {
            command::Kind::CollectMetrics(_) => Self::CollectMetrics,
            command::Kind::RestartService(restart) => Self::RestartService(ServiceName::parse(&restart.service)?),
            command::Kind::Reboot(_) => Self::Reboot,
            command::Kind::Shutdown(_) => Self::Shutdown,
        })
    }

    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::CollectMetrics => Kind::CollectMetrics,
            Self::RestartService(_) => Kind::RestartService,
            Self::Reboot => Kind::Reboot,
            Self::Shutdown => Kind::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_stored_under_their_names() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
