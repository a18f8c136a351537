//! Proofs of isolation: rounds of attempts that a node's own devices make.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// What made a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The node came up.
    Start,
    Timer,
    /// A drift of the policy was repaired.
    Drift,
    /// Somebody asked.
    Demand,
}

impl Trigger {
    const ALL: [Self; 4] = [Self::Start, Self::Timer, Self::Drift, Self::Demand];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Timer => "timer",
            Self::Drift => "drift",
            Self::Demand => "demand",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trigger| trigger.name() == name)
    }
}

/// What came of a round. The value of the metrics' label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Whatever must not be possible was not, and whatever must be was.
    Proven,
    /// What must work did not, or the attempts could not be made: nothing is proven.
    Failed,
    /// What must not be possible was.
    Leak,
}

impl Outcome {
    pub const ALL: [Self; 3] = [Self::Proven, Self::Failed, Self::Leak];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "failed",
            Self::Leak => "leak",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// One round.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Proof {
    pub id: Uuid,
    /// Name of the node that was tried.
    pub node: String,
    pub trigger: Trigger,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub finished_at: OffsetDateTime,
    pub outcome: Outcome,
    /// SHA-256 of the rules that were in force, in hex.
    pub policy_hash: String,
    /// How many attempts there were.
    pub attempts: i32,
    /// Each kind of attempt with its numbers.
    #[schema(value_type = Vec<KindResult>)]
    pub results: serde_json::Value,
}

/// What came of the attempts of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KindResult {
    /// Its name.
    pub kind: String,
    /// What must come of them: `refused` or `possible`.
    pub must: String,
    pub attempts: u32,
    /// How many came out otherwise.
    pub wrong: u32,
    /// What was seen of those, in words; at most a few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<String>,
}
