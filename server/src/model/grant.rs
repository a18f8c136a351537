//! Grants: a tenant's permission.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::busy_lock;
use super::command::Instruction;
use super::device::Labels;
use super::opening;
use super::support_session;

/// The most devices, or operators, that one grant may name.
pub const NAMED_MAX: usize = 1000;
/// How far ahead a grant may be made.
pub const START_AHEAD_MAX: time::Duration = time::Duration::days(366);

/// Whether some kind of instruction, an opening or a support session asks for this scope. A grant with another would promise what nothing honours.
#[must_use]
pub fn is_known_scope(scope: &str) -> bool {
    scope == opening::SCOPE
        || support_session::SCOPES.contains(&scope)
        || scope == busy_lock::OVERRIDE_SCOPE
        || Instruction::KINDS.into_iter().any(|kind| kind.scope == scope)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    Scheduled,
    InForce,
    Ended,
    Revoked,
}

impl GrantState {
    pub const ALL: [Self; 4] = [Self::Scheduled, Self::InForce, Self::Ended, Self::Revoked];

    /// Name in the API, and what the database's `grant_state()` says.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::InForce => "in_force",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Grant {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub created_by: Uuid,
    pub reason: String,
    pub scopes: Vec<String>,
    /// Null: every operator.
    pub operator_ids: Option<Vec<Uuid>>,
    /// The devices it is for; null when a selector says so.
    pub device_ids: Option<Vec<Uuid>>,
    /// The labels of the devices it is for, those that are labelled so later included. One that says more than labels and their
    /// values has the one key "" here, which no device has: see `selector_text`.
    pub selector: Option<Labels>,
    /// The same in the grammar of selectors, whatever it says (docs/ACCESS.md).
    pub selector_text: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub starts_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub ends_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// The grant as the tenant signed it (docs/SIGNED-GRANTS.md); null when it did not.
    pub statement: Option<String>,
    /// The access request that it came of.
    pub request_id: Option<Uuid>,
    /// The policy that allowed it without anybody being asked.
    pub policy_id: Option<Uuid>,
    /// Grows with each change: the `ETag`.
    pub version: i64,
    pub state: GrantState,
}
