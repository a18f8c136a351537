//! The cluster at a glance, and what is wrong with it.

use serde::{Deserialize, Serialize};

use super::node::{Node, State};

/// A lease is renewed five times while it lasts.
const RENEWALS_LATE: f64 = 3.0;
/// What an end of a command's time, or a command that could be sent, may wait.
const WAITS_SECONDS_MAX: f64 = 15.0;
/// What a notice that is due may wait.
const NOTICE_SECONDS_MAX: f64 = 600.0;
/// Of the connections that Postgres allows, how many may be in use.
const CONNECTIONS_PERCENT_MAX: i64 = 90;

/// What a node says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
pub struct Condition {
    /// Whether it is connected to NATS. Null: it needs none.
    pub bus: Option<bool>,
    /// Whether the rules that isolate its tunnels are in force. Null: it has no tunnels.
    pub isolation: Option<bool>,
}

/// The cluster.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Status {
    /// The worst first. Empty: nothing is wrong that is known of.
    pub problems: Vec<Trouble>,
    pub nodes: Vec<Node>,
    pub devices: Devices,
    pub commands: Commands,
    /// Support sessions that go on.
    pub support_sessions: i64,
    pub notices: Notices,
    pub database: Database,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Trouble {
    pub severity: Severity,
    /// Stable, for machines.
    pub kind: &'static str,
    /// Which node it is about, if about one.
    pub node: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Devices or people are not served, or not safely.
    Critical,
    /// Somebody should look.
    Warning,
    /// Good to know.
    Info,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Devices {
    /// Not revoked.
    pub active: i64,
    /// Over a WebSocket of their own.
    pub linked_by_websocket: i64,
    /// In a tunnel.
    pub linked_by_openvpn: i64,
    /// Of those in a tunnel, where an agent answers.
    pub agents_in_tunnels: i64,
    pub quarantined: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Commands {
    /// Not sent yet.
    pub queued: i64,
    /// Sent, and not ended.
    pub under_way: i64,
    /// Those that are queued though their device is linked: the time that the oldest has waited since it could be sent.
    pub sendable_seconds: Option<f64>,
    /// Whose time is up, and that have not ended: for how long, at most.
    pub overdue_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Notices {
    /// Not delivered yet.
    pub waiting: i64,
    /// How long the first of those has been due that could be tried now.
    pub due_seconds: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Database {
    pub version: String,
    pub size_bytes: i64,
    /// In use, of all programs.
    pub connections: i64,
    pub connections_max: i64,
}

impl Status {
    /// Finds out what is wrong.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let mut problems = Vec::new();
        self.judge_nodes(&mut problems);
        for node in &self.nodes {
            judge_node(node, &mut problems);
        }
        self.judge_work(&mut problems);
        problems.sort_by(|one, other| (one.severity, &one.node).cmp(&(other.severity, &other.node)));
        self.problems = problems;
        self
    }

    fn judge_nodes(&self, problems: &mut Vec<Trouble>) {
        if !self.nodes.iter().any(|node| node.state == State::Serving) {
            problems.push(Trouble {
                severity: Severity::Critical,
                kind: "nobody_serves",
                node: None,
                what: "no node takes devices: all are drained or gone".to_owned(),
                remedy: "start a node, or undo a drain: cloudlink node resume",
            });
        }
        let mut versions: Vec<_> = self.leased().map(|node| node.version.as_str()).collect();
        versions.sort_unstable();
        versions.dedup();
        if versions.len() > 1 {
            problems.push(Trouble {
                severity: Severity::Info,
                kind: "versions_differ",
                node: None,
                what: format!("nodes of several versions work side by side: {}", versions.join(", ")),
                remedy: "go on with the upgrade, one node after the other",
            });
        }
    }

    fn judge_work(&self, problems: &mut Vec<Trouble>) {
        let mut add = |severity, kind, what: String, remedy| {
            problems.push(Trouble { severity, kind, node: None, what, remedy });
        };
        if let Some(seconds) = self.commands.overdue_seconds.filter(|seconds| *seconds > WAITS_SECONDS_MAX) {
            let what = format!("commands have not ended {seconds:.0} s after their time was up");
            add(Severity::Critical, "commands_overdue", what, "no node ends them: look for \"deadline\" in the logs");
        }
        if let Some(seconds) = self.commands.sendable_seconds.filter(|seconds| *seconds > WAITS_SECONDS_MAX) {
            let what = format!("commands wait for {seconds:.0} s though their devices are linked");
            add(Severity::Warning, "commands_not_sent", what, "look for \"dispatch\" in the log of the devices' node");
        }
        if let Some(seconds) = self.notices.due_seconds.filter(|seconds| *seconds > NOTICE_SECONDS_MAX) {
            let what = format!("webhooks or mail wait for {:.0} min", seconds / 60.0);
            add(Severity::Warning, "notices_wait", what, "look for \"notices\" in the logs of the nodes");
        }
        let Database { connections, connections_max, .. } = self.database;
        if connections * 100 > connections_max * CONNECTIONS_PERCENT_MAX {
            let what = format!("{connections} of the database's {connections_max} connections are in use");
            let remedy = "raise max_connections of Postgres, or lower database.connections_max of the nodes";
            add(Severity::Warning, "database_connections", what, remedy);
        }
        if self.devices.quarantined > 0 {
            let what = format!("{} devices are in quarantine", self.devices.quarantined);
            add(Severity::Info, "quarantined", what, "cloudlink devices --quarantined");
        }
    }

    fn leased(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.state != State::Gone)
    }
}

fn judge_node(node: &Node, problems: &mut Vec<Trouble>) {
    let mut add = |severity, kind, what: String, remedy| {
        problems.push(Trouble { severity, kind, node: Some(node.name.clone()), what, remedy });
    };
    if node.state == State::Gone {
        // A node that is stopped gives its lease back at that moment; one that died is found to be gone later.
        if node.gone_at.is_none_or(|gone_at| gone_at > node.leased_until) {
            let what =
                format!("it has died, or does not reach the database: no lease for {:.0} s", node.renewed_ago_seconds);
            add(
                Severity::Warning,
                "node_gone",
                what,
                "look at the machine and at the end of the node's log, and start it again",
            );
        }
        if node.links + node.support_sessions > 0 {
            let what = format!("{} links and {} sessions of it are not closed", node.links, node.support_sessions);
            add(
                Severity::Warning,
                "node_unsettled",
                what,
                "another node does that within a lease; if not, its log says why",
            );
        }
        return;
    }
    let lease_seconds = (node.leased_until - node.renewed_at).as_seconds_f64();
    if node.renewed_ago_seconds > lease_seconds / 5.0 * RENEWALS_LATE {
        let what = format!("it has not renewed its lease for {:.0} of {lease_seconds:.0} s", node.renewed_ago_seconds);
        add(Severity::Warning, "lease_late", what, "its way to the database is slow, or the machine stands still");
    }
    let condition = node.condition.unwrap_or_default();
    if condition.isolation == Some(false) {
        let what = "the isolation of its tunnels is not in force: it takes in no tunnels".to_owned();
        add(Severity::Critical, "isolation_not_in_force", what, "on the node: cloudlinkd isolation verify");
    }
    if condition.bus == Some(false) {
        let what = "it has no connection to NATS, and hears of changes by its timers only".to_owned();
        add(Severity::Warning, "bus_away", what, "is NATS up, and does cluster.nats name it?");
    }
    if node.state == State::Draining && node.drain_by.is_some_and(|by| by < node.renewed_at) {
        let what = format!("it was to be drained by now, and has {} links left", node.links);
        add(Severity::Warning, "drain_late", what, "those devices found no other node: can they reach one?");
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn node(name: &str) -> Node {
        let renewed_at = datetime!(2026-11-22 12:00:00 UTC);
        Node {
            name: name.to_owned(),
            state: State::Serving,
            version: "1".to_owned(),
            links: 10,
            tunnels: 0,
            support_sessions: 0,
            started_at: datetime!(2026-11-21 12:00:00 UTC),
            renewed_at,
            renewed_ago_seconds: 2.0,
            leased_until: renewed_at + time::Duration::seconds(15),
            gone_at: None,
            draining_since: None,
            drain_by: None,
            handshake_us: None,
            handshakes_per_second: None,
            condition: Some(Condition { bus: Some(true), isolation: Some(true) }),
            is_asked: false,
        }
    }

    fn kinds(change: impl FnOnce(&mut Status)) -> Vec<&'static str> {
        let mut status = Status {
            problems: Vec::new(),
            nodes: vec![node("a"), node("b")],
            devices: Devices {
                active: 20,
                linked_by_websocket: 20,
                linked_by_openvpn: 0,
                agents_in_tunnels: 0,
                quarantined: 0,
            },
            commands: Commands { queued: 3, under_way: 1, sendable_seconds: Some(0.1), overdue_seconds: Some(0.4) },
            support_sessions: 0,
            notices: Notices { waiting: 2, due_seconds: Some(3.0) },
            database: Database { version: "15".to_owned(), size_bytes: 1, connections: 20, connections_max: 100 },
        };
        change(&mut status);
        status.judged().problems.iter().map(|problem| problem.kind).collect()
    }

    #[test]
    fn a_cluster_that_is_well_has_no_problems() {
        assert_eq!(kinds(|_| {}), [""; 0]);
        // An older node says nothing of itself; a node alone has neither NATS nor tunnels.
        assert_eq!(kinds(|status| status.nodes[0].condition = None), [""; 0]);
        assert_eq!(kinds(|status| status.nodes[0].condition = Some(Condition::default())), [""; 0]);
    }

    #[test]
    fn a_node_that_was_stopped_is_not_one_that_died() {
        let gone = |status: &mut Status, after: i64| {
            let node = &mut status.nodes[1];
            (node.state, node.links) = (State::Gone, 0);
            node.gone_at = Some(node.leased_until + time::Duration::seconds(after));
        };
        assert_eq!(kinds(|status| gone(status, 0)), [""; 0]);
        assert_eq!(kinds(|status| gone(status, 4)), ["node_gone"]);
        assert_eq!(kinds(|status| (status.nodes[1].state, status.nodes[1].links) = (State::Gone, 0)), ["node_gone"]);
        assert_eq!(kinds(|status| status.nodes[1].state = State::Gone), ["node_gone", "node_unsettled"]);
    }

    #[test]
    fn each_trouble_is_found_and_the_worst_comes_first() {
        assert_eq!(kinds(|status| status.nodes[0].renewed_ago_seconds = 10.0), ["lease_late"]);
        let all = kinds(|status| {
            status.nodes[0].condition = Some(Condition { bus: Some(false), isolation: Some(false) });
            status.nodes[0].version = "2".to_owned();
            for node in &mut status.nodes {
                (node.state, node.drain_by) = (State::Draining, Some(datetime!(2026-11-22 11:00:00 UTC)));
            }
            status.commands.overdue_seconds = Some(20.0);
            status.commands.sendable_seconds = Some(20.0);
            status.notices.due_seconds = Some(700.0);
            status.database.connections = 95;
            status.devices.quarantined = 1;
        });
        let expected = [
            "nobody_serves",
            "commands_overdue",
            "isolation_not_in_force",
            "commands_not_sent",
            "notices_wait",
            "database_connections",
            "bus_away",
            "drain_late",
            "drain_late",
            "versions_differ",
            "quarantined",
        ];
        assert_eq!(all, expected);
    }
}
