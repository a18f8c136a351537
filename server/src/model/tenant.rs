//! Tenants: customers, who own devices.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// Shortest and longest that a tenant may let one grant run.
pub const GRANT_MAX_SECONDS_RANGE: std::ops::RangeInclusive<i32> = 60..=31_622_400;

/// How many of a tenant's people can be needed to let somebody in.
pub const APPROVALS_NEEDED_RANGE: std::ops::RangeInclusive<i32> = 1..=2;
/// For how many days recordings may be kept.
pub const RECORDING_KEEP_DAYS_RANGE: std::ops::RangeInclusive<i32> = 1..=3650;
/// Where two must approve, one person alone does not change that: how long a second one has to agree.
pub const AGREE_WITHIN: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Tenant {
    pub id: Uuid,
    pub name: String,
    /// The longest that one grant may run, from its start to its end.
    pub grant_max_seconds: i32,
    /// How many of its people must approve whatever lets somebody in.
    pub approvals_needed: i32,
    /// Somebody has proposed that one approval be enough again.
    pub fewer_approvals: Option<FewerApprovals>,
    /// Whether each of its grants must be signed with one of its keys.
    pub signed_grants: bool,
    /// For how many days recordings of its support sessions are kept.
    pub recording_keep_days: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A proposal to need fewer approvals. It is done when another one of the tenant's people asks for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FewerApprovals {
    pub proposed_by: Uuid,
    /// Nobody can agree after that.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// What came of asking for another number of approvals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalsVerdict {
    Set,
    /// A second person must ask for it, too.
    Proposed,
    /// Whoever asks is no person of the tenant who may act.
    Person,
    /// A service account counts for nobody.
    Robot,
    /// The tenant has fewer people who could approve.
    TooFew,
}
