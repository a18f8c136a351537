//! Access requests: what somebody asks a tenant's people for, and what they answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::device::Labels;

/// How long people have to answer if nobody says how long. Never longer than the access that is asked for.
pub const ANSWER_WITHIN_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The longest that they may be given.
pub const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Requests of one operator that are open.
pub const OPEN_REQUESTS_MAX: i32 = 100;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessRequestKind {
    /// An operator asks for access, for itself.
    Access,
    /// One of the tenant's people proposes a grant that a second one must approve.
    Grant,
    /// The same, of a later end of a grant.
    Extension,
}

impl AccessRequestKind {
    const ALL: [Self; 3] = [Self::Access, Self::Grant, Self::Extension];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Grant => "grant",
            Self::Extension => "extension",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessRequestState {
    Open,
    Approved,
    Denied,
    Withdrawn,
    /// Nobody answered in time.
    Expired,
}

impl AccessRequestState {
    pub const ALL: [Self; 5] = [Self::Open, Self::Approved, Self::Denied, Self::Withdrawn, Self::Expired];

    /// Name in the API, and what the database's `access_request_state()` says.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// One person's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Approve,
    Deny,
}

impl Decision {
    /// Name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AccessRequest {
    pub id: Uuid,
    pub kind: AccessRequestKind,
    pub tenant_id: Uuid,
    pub requested_by: Uuid,
    /// For whom the grant will be; null: every operator.
    pub operator_ids: Option<Vec<Uuid>>,
    pub scopes: Vec<String>,
    /// On which devices; null when a selector says so, which only a proposed grant has.
    pub device_ids: Option<Vec<Uuid>>,
    pub selector: Option<Labels>,
    /// The same in the grammar of selectors, whatever it says (docs/ACCESS.md).
    pub selector_text: Option<String>,
    pub reason: String,
    /// Number or address of the ticket that it is about.
    pub ticket: Option<String>,
    pub state: AccessRequestState,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Of a proposed grant that begins later; null: with the last approval.
    #[serde(with = "time::serde::rfc3339::option")]
    pub starts_at: Option<OffsetDateTime>,
    /// Until when it can be answered. Apart from `access_until`, and never later.
    #[serde(with = "time::serde::rfc3339")]
    pub answer_by: OffsetDateTime,
    /// Until when access is asked for, whenever it is answered.
    #[serde(with = "time::serde::rfc3339")]
    pub access_until: OffsetDateTime,
    /// How many different people of the tenant must approve.
    pub approvals_needed: i32,
    pub decisions: Vec<AccessDecision>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub closed_at: Option<OffsetDateTime>,
    /// What came of it: a new grant, or the one that was extended.
    pub grant_id: Option<Uuid>,
    /// Of an extension: the grant whose end is to be moved.
    pub extends_grant_id: Option<Uuid>,
    /// The policy that approved it, where no person had to.
    pub policy_id: Option<Uuid>,
    /// Grows with each change.
    pub version: i64,
}

/// What one of the tenant's people answered. What is null is as it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccessDecision {
    pub person_id: Uuid,
    pub decision: Decision,
    pub scopes: Option<Vec<String>>,
    pub device_ids: Option<Vec<Uuid>>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub access_until: Option<OffsetDateTime>,
    pub comment: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}
