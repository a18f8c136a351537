//! Openings: a port of a device that the node at the other end of its tunnel may reach, for a while, under a grant.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// The scope that a grant must give. `opening_create()` in the database names it, too.
pub const SCOPE: &str = "tcp:open";
/// How long a port is open if nobody says how long. Never beyond the end of the grant.
pub const OPEN_FOR_DEFAULT: Duration = Duration::from_secs(3600);
/// The longest that one may be asked for.
pub const OPEN_FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Openings of one device that have not ended.
pub const OPENINGS_MAX: i32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OpeningState {
    /// The node of the device's tunnel has not done it yet.
    Requested,
    /// It was done, and has not ended. While the device has no tunnel, there is nothing to reach.
    Open,
    Ended,
}

impl OpeningState {
    pub const ALL: [Self; 3] = [Self::Requested, Self::Open, Self::Ended];

    /// Name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Open => "open",
            Self::Ended => "ended",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Why an opening ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Somebody has closed it.
    Closed,
    GrantRevoked,
    DeviceRevoked,
    /// The operator who opened it is no longer active.
    OperatorShutOut,
    /// The device is in quarantine.
    Quarantined,
}

impl EndReason {
    /// Name in the API and the database, where there is one more: `expired`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::GrantRevoked => "grant_revoked",
            Self::DeviceRevoked => "device_revoked",
            Self::OperatorShutOut => "operator_shut_out",
            Self::Quarantined => "quarantined",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Opening {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub device_id: Uuid,
    pub grant_id: Uuid,
    pub opened_by: Uuid,
    pub port: u16,
    pub reason: String,
    pub state: OpeningState,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Closed by the kernel then, or up to a second and a half sooner. Never later than the end of the grant.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the port was first open.
    #[serde(with = "time::serde::rfc3339::option")]
    pub opened_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// `expired`, `closed`, `grant_revoked`, `device_revoked`, `operator_shut_out` or `quarantined`.
    pub end_reason: Option<String>,
    /// Where the port is reached from the node; null once the opening has ended, and while the device has no tunnel.
    pub endpoint: Option<Endpoint>,
}

/// Where a device is reached from the node that has its tunnel, and from nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Endpoint {
    /// The node.
    pub node: String,
    #[schema(value_type = String)]
    pub ipv4: Ipv4Addr,
    #[schema(value_type = String)]
    pub ipv6: Ipv6Addr,
}
