//! What a device can be told to do. A new kind is added here, in `link.proto`, and as an executor.

use cloudlink_proto::link::message::{self, LinkTest, command};
use data_encoding::HEXLOWER;
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
    #[serde(rename = "os.update")]
    UpdateOs,
    #[serde(rename = "agent.update")]
    UpdateAgent,
    #[serde(rename = "container.update")]
    UpdateContainer,
    #[serde(rename = "link.test")]
    TestLink,
}

/// A command's kind and arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    CollectMetrics,
    RestartService(ServiceName),
    Reboot,
    Shutdown,
    UpdateOs(Update),
    UpdateAgent(Update),
    UpdateContainer(ContainerUpdate),
    TestLink(LinkTest),
}

/// What is to be fetched, checked and installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    pub url: String,
    /// Of the whole file, in hex, small letters.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// What the device says afterwards that it runs.
    pub version: String,
}

/// Which container gets which image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUpdate {
    /// Its name.
    pub container: String,
    /// By its digest.
    pub image: String,
}

impl Kind {
    /// All of them: the device's capabilities.
    pub const ALL: [Self; 8] = [
        Self::CollectMetrics,
        Self::RestartService,
        Self::Reboot,
        Self::Shutdown,
        Self::UpdateOs,
        Self::UpdateAgent,
        Self::UpdateContainer,
        Self::TestLink,
    ];

    /// Its name in the API and among the capabilities.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CollectMetrics => "metrics.collect",
            Self::RestartService => "service.restart",
            Self::Reboot => "device.reboot",
            Self::Shutdown => "device.shutdown",
            Self::UpdateOs => "os.update",
            Self::UpdateAgent => "agent.update",
            Self::UpdateContainer => "container.update",
            Self::TestLink => "link.test",
        }
    }

    /// Whether it ends everything else that runs on the device.
    #[must_use]
    pub const fn is_power(self) -> bool {
        match self {
            Self::Reboot | Self::Shutdown => true,
            Self::CollectMetrics
            | Self::RestartService
            | Self::UpdateOs
            | Self::UpdateAgent
            | Self::UpdateContainer
            | Self::TestLink => false,
        }
    }

    /// Whether it puts something else in place of what runs, and may go on after a restart of the agent.
    #[must_use]
    pub const fn is_update(self) -> bool {
        match self {
            Self::UpdateOs | Self::UpdateAgent | Self::UpdateContainer => true,
            Self::CollectMetrics | Self::RestartService | Self::Reboot | Self::Shutdown | Self::TestLink => false,
        }
    }

    /// Whether it is refused while the device is busy.
    #[must_use]
    pub const fn disturbs(self) -> bool {
        match self {
            Self::CollectMetrics | Self::TestLink => false,
            Self::RestartService
            | Self::Reboot
            | Self::Shutdown
            | Self::UpdateOs
            | Self::UpdateAgent
            | Self::UpdateContainer => true,
        }
    }
}

impl Instruction {
    /// Reads what the server asks for; `None` when the service's name cannot be one, or an artifact is missing.
    #[must_use]
    pub fn from_wire(kind: &command::Kind) -> Option<Self> {
        Some(match kind {
            command::Kind::CollectMetrics(_) => Self::CollectMetrics,
            command::Kind::RestartService(restart) => Self::RestartService(ServiceName::parse(&restart.service)?),
            command::Kind::Reboot(_) => Self::Reboot,
            command::Kind::Shutdown(_) => Self::Shutdown,
            command::Kind::OsUpdate(update) => Self::UpdateOs(Update::from_wire(update)?),
            command::Kind::AgentUpdate(update) => Self::UpdateAgent(Update::from_wire(update)?),
            command::Kind::ContainerUpdate(update) => Self::UpdateContainer(ContainerUpdate {
                container: update.container.clone(),
                image: update.image.clone(),
            }),
            command::Kind::LinkTest(test) => Self::TestLink(*test),
        })
    }

    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::CollectMetrics => Kind::CollectMetrics,
            Self::RestartService(_) => Kind::RestartService,
            Self::Reboot => Kind::Reboot,
            Self::Shutdown => Kind::Shutdown,
            Self::UpdateOs(_) => Kind::UpdateOs,
            Self::UpdateAgent(_) => Kind::UpdateAgent,
            Self::UpdateContainer(_) => Kind::UpdateContainer,
            Self::TestLink(_) => Kind::TestLink,
        }
    }
}

impl Update {
    fn from_wire(update: &message::Update) -> Option<Self> {
        let artifact = update.artifact.as_ref()?;
        Some(Self {
            url: artifact.url.clone(),
            sha256: HEXLOWER.encode(&artifact.sha256),
            size: artifact.size,
            version: update.version.clone(),
        })
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
