//! Access policies: what a tenant allows without being asked each time.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::device::Labels;

/// Policies of one tenant that are not revoked.
pub const POLICIES_MAX: i64 = 100;
/// Shortest and longest that access under a policy may be allowed to last.
pub const MAX_SECONDS_RANGE: std::ops::RangeInclusive<i32> = 60..=31_622_400;
/// Days of the week: 1 is Monday (ISO 8601).
pub const DAYS: std::ops::RangeInclusive<i32> = 1..=7;
/// The minutes of a day: a whole one is from 0 to 1,440.
pub const DAY_MINUTES: i32 = 1440;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessPolicyState {
    InForce,
    /// Two people must approve in this tenant, and one has.
    Proposed,
    Revoked,
}

impl AccessPolicyState {
    pub const ALL: [Self; 3] = [Self::InForce, Self::Proposed, Self::Revoked];

    /// Name in the API and the queries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InForce => "in_force",
            Self::Proposed => "proposed",
            Self::Revoked => "revoked",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AccessPolicy {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub name: String,
    pub scopes: Vec<String>,
    /// On these devices; with neither this nor `selector`: on all of the tenant's, later ones included.
    pub device_ids: Option<Vec<Uuid>>,
    /// On devices that have these labels; as in a grant.
    pub selector: Option<Labels>,
    /// The same in the grammar of selectors, whatever it says (docs/ACCESS.md).
    pub selector_text: Option<String>,
    /// For these operators; null: every one.
    pub operator_ids: Option<Vec<Uuid>>,
    /// On these days of the week: 1 is Monday, 7 is Sunday.
    pub days: Vec<i32>,
    /// From this minute of the day (0 to 1,439), by the clocks of `time_zone`.
    pub from_minute: i32,
    /// Until this minute of the day (1 to 1,440).
    pub to_minute: i32,
    /// Name in the time zone database, as `Europe/Berlin`.
    pub time_zone: String,
    /// The longest access under it.
    pub max_seconds: i32,
    pub state: AccessPolicyState,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The second person, where two must approve.
    pub approved_by: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub approved_at: Option<OffsetDateTime>,
    pub revoked_by: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}
