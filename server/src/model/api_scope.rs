//! What an API token may be used for. Not the scopes of grants, which are about devices: docs/API.md has both.

use serde::{Deserialize, Serialize};

/// A part of the API. A token without scopes may be used for all that its person may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApiScope {
    /// Look at everything, except at what was recorded.
    Read,
    /// Change devices, and make tokens with which new ones enroll.
    Devices,
    /// Ask devices to do something, and take it back.
    Commands,
    /// Ask for access, decide about it, and take it back.
    Grants,
    /// Reach into devices, and look at what was recorded.
    Support,
    /// Drain nodes, and have them take devices again.
    Nodes,
    /// Everything else: people, tokens, tenants, settings.
    Admin,
}

impl ApiScope {
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Devices, Self::Commands, Self::Grants, Self::Support, Self::Nodes, Self::Admin];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Devices => "devices",
            Self::Commands => "commands",
            Self::Grants => "grants",
            Self::Support => "support",
            Self::Nodes => "nodes",
            Self::Admin => "admin",
        }
    }

    /// The scope of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}
