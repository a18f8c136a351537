//! What becomes of a fleet that comes back at once.

use serde::Serialize;

/// What holds the devices up most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// The nodes' processors, or the share of them that new connections may have.
    Processor,
    /// `admission.handshakes_per_second`.
    FixedRate,
    /// The database.
    Database,
    /// `device.links_max`: not all devices find a place on the nodes that are left.
    Links,
}

/// What one new connection costs, as the node that answers has measured it on the last ones. Processor time is in milliseconds.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct StormCosts {
    /// How many were measured since the node's start. Of none the costs are a guess.
    pub connections_measured: u64,
    /// One connection, whatever it was, with all that the node does for it.
    pub connection_cpu_ms: f64,
    /// The same with a full TLS handshake, a resumed one, and over OpenVPN; none without one so far.
    pub full_cpu_ms: Option<f64>,
    pub resumed_cpu_ms: Option<f64>,
    pub openvpn_cpu_ms: Option<f64>,
    /// What the node takes in all for each part of its own work on a connection.
    pub overhead: f64,
    /// How long the database takes for one device when many come; none if they never came.
    pub database_ms: Option<f64>,
    /// Statements to the database for one new link, of all since the node's start.
    pub statements_per_link: f64,
}

/// How long it takes until all devices are back after they lost their links together.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct StormPlan {
    pub devices: u32,
    /// Nodes that take them.
    pub nodes: u32,
    pub costs: StormCosts,
    /// New connections a second that each node takes.
    pub per_node_per_second: f64,
    pub bottleneck: Bottleneck,
    /// Until half of them are back, nine of ten, 99 of a hundred, and the last one.
    pub half_back_seconds: f64,
    pub nine_tenths_back_seconds: f64,
    pub most_back_seconds: f64,
    pub all_back_seconds: f64,
    /// How often a device dials until it is let in, on average.
    pub attempts_per_device: f64,
    /// Processor time of each node in all, in seconds.
    pub cpu_seconds_per_node: f64,
}
