//! A node, as the API shows it.

use serde::Serialize;
use time::OffsetDateTime;

use super::status::Condition;

/// What a node is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = NodeState)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It takes devices.
    Serving,
    /// It sends its devices to other nodes.
    Draining,
    /// It is drained, and has none left.
    Drained,
    /// It has no lease: it was stopped, or it has died.
    Gone,
}

/// A node of the cluster.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Node {
    pub name: String,
    pub state: State,
    pub version: String,
    /// Live links of devices, those in tunnels included.
    pub links: i64,
    /// Live tunnels.
    pub tunnels: i64,
    /// Support sessions that it serves, also those of devices that have moved to other nodes since.
    pub support_sessions: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub renewed_at: OffsetDateTime,
    /// The same, as long ago as the database's clock says.
    pub renewed_ago_seconds: f64,
    #[serde(with = "time::serde::rfc3339")]
    pub leased_until: OffsetDateTime,
    /// When what it had was closed, by itself or by others.
    #[serde(with = "time::serde::rfc3339::option")]
    pub gone_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub draining_since: Option<OffsetDateTime>,
    /// When the last device is to be gone.
    #[serde(with = "time::serde::rfc3339::option")]
    pub drain_by: Option<OffsetDateTime>,
    /// Processor time of one handshake, as the node has measured it.
    pub handshake_us: Option<i32>,
    /// New links that it takes, at most.
    pub handshakes_per_second: Option<f32>,
    /// What it says of itself. Null: nothing, as nodes of older versions do.
    pub condition: Option<Condition>,
    /// Whether it is the one that answers this request.
    pub is_asked: bool,
}
