//! Every metric of the server, in one place. Names are `cloudlink_<area>_<thing>_<unit>`. Labels come from closed sets: never
//! an id, a name or anything else that a peer chooses.
//!
//! The registry is this struct's own, so that tests and several nodes in one process do not share figures.

use std::cell::RefCell;
use std::fmt::Write as _;

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::admission::metrics::AdmissionMetrics;
use crate::drain::metrics::DrainMetrics;
use crate::isolation::{DriftKind, policy};
use crate::link::sample::metrics::TelemetryMetrics;
use crate::model::notice::Event;
use crate::trace::figure::Figures as TraceFigures;

/// Handshakes and enrollments: from a tenth of a millisecond to the time limit.
const HANDSHAKE_BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// A command: from the next millisecond to a slow reboot.
const COMMAND_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 900.0];
/// An HTTP request or a query.
const REQUEST_BUCKETS_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

const REFERENCE_HEAD: &str = "\
# Metrics of cloudlinkd

<!-- Made by `cloudlinkd metrics`; a test compares. -->

`GET /metrics` on the operations port, in Prometheus' text format. Labels come from closed sets: none ever holds an id, a name,
or anything else that a peer chooses. What is worth an alert is in [OPERATIONS.md](OPERATIONS.md). The process itself is under
`process_*` (memory, processor time, open files).

| name | kind | labels | what it is |
|---|---|---|---|
";

/// Why a connection to the device port did not become a link. The values of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Too many unauthenticated connections, from this address or in total, or too many links.
    Overload,
    /// Too slow before it was authenticated.
    Timeout,
    /// A PROXY header from an address that `proxy_from` does not name.
    ProxyUntrusted,
    /// None that can be used, from an address that it names.
    ProxyHeader,
    /// It does not speak TLS 1.3, or broke the handshake otherwise.
    Tls,
    /// No client certificate, on the link's name.
    CertificateMissing,
    /// A certificate that is not ours, expired, not yet valid, or not a device's.
    CertificateInvalid,
    /// A certificate that was revoked or superseded, or whose device was revoked.
    Revoked,
    /// A certificate of ours that the database does not know, or knows otherwise; a connection to the link port inside of
    /// tunnels that no tunnel has the address of.
    Unknown,
    /// An OpenVPN client, where tunnels are off.
    OpenvpnOff,
    /// An OpenVPN client, while the node's isolation is not in force.
    Isolation,
    /// An OpenVPN client under another key than the server's, or a key of another device.
    Wrapping,
    /// A malformed or oversize request.
    Http,
    /// A broken rule of the link protocol, or of OpenVPN's.
    Protocol,
    /// An enrollment token that is unknown, used or expired.
    Token,
    /// A certificate request that cannot be signed.
    Csr,
    /// The database cannot be reached.
    Unavailable,
    /// This node is drained, or stops.
    Draining,
    /// It went away.
    Closed,
}

impl Failure {
    /// Every reason there is.
    pub const ALL: [Self; 19] = [
        Self::Overload,
        Self::Timeout,
        Self::ProxyUntrusted,
        Self::ProxyHeader,
        Self::Tls,
        Self::CertificateMissing,
        Self::CertificateInvalid,
        Self::Revoked,
        Self::Unknown,
        Self::OpenvpnOff,
        Self::Isolation,
        Self::Wrapping,
        Self::Http,
        Self::Protocol,
        Self::Token,
        Self::Csr,
        Self::Unavailable,
        Self::Draining,
        Self::Closed,
    ];

    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::Timeout => "timeout",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyHeader => "proxy_header",
            Self::Tls => "tls",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateInvalid => "certificate_invalid",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
            Self::OpenvpnOff => "openvpn_off",
            Self::Isolation => "isolation",
            Self::Wrapping => "wrapping",
            Self::Http => "http",
            Self::Protocol => "protocol",
            Self::Token => "token",
            Self::Csr => "csr",
            Self::Unavailable => "unavailable",
            Self::Draining => "draining",
            Self::Closed => "closed",
        }
    }
}

/// Why a packet in a tunnel goes no further. The values of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelDrop {
    /// Out of a tunnel: from an address that is not the tunnel's.
    Source,
    /// Out of a tunnel: from a link-local address, as every Linux client sends by itself.
    LinkLocal,
    /// Out of a tunnel: not for the node.
    Destination,
    /// Out of a tunnel: for a multicast group.
    Multicast,
    /// Out of a tunnel: for everybody.
    Broadcast,
    /// Out of a tunnel: not a whole packet, or too large.
    Malformed,
    /// Out of a tunnel: a fragment.
    Fragment,
    /// Out of a tunnel: with IPv4 options or IPv6 extension headers, source routes among them.
    Options,
    /// Out of a tunnel: neither TCP nor a ping.
    Protocol,
    /// Out of a tunnel: for a port of the node that devices may not reach, or from one of the device that was never open.
    Port,
    /// Out of a tunnel: the device is in quarantine, or else it would have passed.
    Quarantine,
    /// Out of a tunnel: under a key that is not in use.
    Key,
    /// Either way: the device's port is not open for support, or not any more.
    Closed,
    /// To a tunnel: nobody has the address.
    NoTunnel,
    /// To a tunnel: not from the node, which forwards nothing. Its system may.
    Forwarded,
    /// To a tunnel: its client does not read fast enough.
    QueueFull,
    /// To a tunnel: larger than the tunnel's MTU.
    TooLarge,
    /// To a tunnel: it cannot be sent to, as it is about to end.
    Unsealed,
    /// The interface did not take it, or gave it in a shape that it must not have.
    Interface,
}

impl TunnelDrop {
    /// Every reason there is.
    pub const ALL: [Self; 19] = [
        Self::Source,
        Self::LinkLocal,
        Self::Destination,
        Self::Multicast,
        Self::Broadcast,
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::Protocol,
        Self::Port,
        Self::Quarantine,
        Self::Key,
        Self::Closed,
        Self::NoTunnel,
        Self::Forwarded,
        Self::QueueFull,
        Self::TooLarge,
        Self::Unsealed,
        Self::Interface,
    ];

    /// Those that say that the device tried what it may not: counted for each device.
    pub const ATTEMPTS: [Self; 10] = [
        Self::Source,
        Self::Destination,
        Self::Multicast,
        Self::Broadcast,
        Self::Malformed,
        Self::Fragment,
        Self::Options,
        Self::Protocol,
        Self::Port,
        Self::Quarantine,
    ];

    /// The label's value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::LinkLocal => "link_local",
            Self::Destination => "destination",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::Protocol => "protocol",
            Self::Port => "port",
            Self::Quarantine => "quarantine",
            Self::Key => "key",
            Self::Closed => "closed",
            Self::NoTunnel => "no_tunnel",
            Self::Forwarded => "forwarded",
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Unsealed => "unsealed",
            Self::Interface => "interface",
        }
    }
}

/// The figures of one node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,

    /// `transport`: links that are live now.
    pub links_live: IntGaugeVec,
    /// `transport`: links that became live since the start.
    pub links_opened: IntCounterVec,
    /// `transport`, `reason`: links that ended since the start.
    pub links_closed: IntCounterVec,
    /// Connections to the device port that are not authenticated yet.
    pub connections_unauthenticated: IntGauge,
    /// `kind` (`full`, `resumed`, `openvpn`): handshakes that succeeded on the device port.
    pub handshakes: IntCounterVec,
    /// From accepting a connection to the end of its handshake, with the wait for its turn.
    pub handshake_seconds: Histogram,
    /// `reason`: see [`Failure`].
    pub handshake_failures: IntCounterVec,
    /// How fast new connections to the device port are let in.
    pub admission: AdmissionMetrics,
    /// Devices that were enrolled.
    pub enrollments: IntCounter,
    /// `reason`: see [`Failure`].
    pub enrollment_failures: IntCounterVec,
    /// Device certificates that were renewed.
    pub certificate_renewals: IntCounter,
    /// When the server's own certificate ends, in Unix time.
    pub server_certificate_expiry: IntGauge,
    /// `direction` (`in`, `out`): link messages.
    pub link_messages: IntCounterVec,
    /// Link messages of a kind that this server does not know.
    pub link_messages_unknown: IntCounter,
    /// Polls that were answered.
    pub polls: IntCounter,

    /// Tunnels that are live now.
    pub tunnels_live: IntGauge,
    /// Tunnels in which an agent answers.
    pub tunnel_agents_live: IntGauge,
    /// Tunnels that came up since the start.
    pub tunnels_opened: IntCounter,
    /// `reason`: tunnels that ended since the start.
    pub tunnels_closed: IntCounterVec,
    /// `direction` (`in`: from devices, `out`): bytes of the packets inside tunnels.
    pub tunnel_bytes: IntCounterVec,
    /// `direction`: packets inside tunnels.
    pub tunnel_packets: IntCounterVec,
    /// `reason`: see [`TunnelDrop`].
    pub tunnel_dropped: IntCounterVec,

    /// Ports of devices that are open for support on this node.
    pub openings_live: IntGauge,
    /// `kind` (`terminal`, `forward`, `file`): support sessions that go on.
    pub support_sessions_live: IntGaugeVec,
    /// `kind`, `end` (the session's `end_reason`): support sessions that have ended.
    pub support_sessions: IntCounterVec,
    /// From the moment at which access was over to the close of the session's last connection.
    pub support_cut_off_seconds: Histogram,
    /// `direction` (`to_device`, `from_device`): bytes that support sessions moved.
    pub support_bytes: IntCounterVec,
    /// 1 while the kernel has the rules that isolate tunnels, exactly as declared, and nothing got through them.
    pub isolation_enforced: IntGauge,
    /// `kind` (`rules`, `setting`, `interface`): how often something of them was found to be otherwise.
    pub isolation_drifts: IntCounterVec,
    /// Attempts to put that right that failed.
    pub isolation_repairs_failed: IntCounter,
    /// `reason`: packets that the kernel's rules dropped.
    pub isolation_kernel_dropped: IntCounterVec,
    /// Devices in quarantine, of all nodes.
    pub devices_quarantined: IntGauge,

    /// `outcome` (`proven`, `failed`, `leak`): rounds of attempts of the node's own devices to get around its isolation.
    pub isolation_proofs: IntCounterVec,
    /// Rounds in which something got through that must not.
    pub isolation_leaks: IntCounter,
    /// When isolation was proven last, in Unix time. 0: not yet.
    pub isolation_proven_timestamp_seconds: IntGauge,

    /// Devices whose certificate two machines seem to use.
    pub clones_suspected: IntCounter,
    /// `reason` (`foreign`, `stale`, `illegal`, `unknown`): reports of commands that changed nothing.
    pub reports_refused: IntCounterVec,

    /// `kind`, `state`: commands that entered the state.
    pub commands: IntCounterVec,
    /// `kind`: from the insert to the final state.
    pub command_seconds: HistogramVec,

    /// Recordings that could not be written, so that their sessions were closed.
    pub recordings_failed: IntCounter,
    /// Bytes of recordings that were written, before encryption.
    pub recording_bytes: IntCounter,
    /// From a byte of a recording to the commit of the chunk that it is in.
    pub recording_lag: Histogram,

    /// `outcome` (`delivered`, `retried`, `given_up`): attempts to tell people outside of something.
    pub notices: IntCounterVec,

    /// `outcome` (`succeeded`, `failed`, `refused`, `locked_out`, `provider_unavailable`): sign-ins with the OpenID provider, and
    /// with the first administrator's token.
    pub sign_ins: IntCounterVec,

    /// `route`, `status` (its class, `2xx`): requests to the people port. The route is its template, never the path.
    pub requests: IntCounterVec,
    /// `route`: from the request's head to the answer's.
    pub request_seconds: HistogramVec,
    /// Connections to the people port.
    pub people_connections: IntGauge,
    /// Connections to the people port that were refused because there were too many.
    pub people_connections_refused: IntCounter,
    /// `reason` (`proxy_untrusted`, `proxy_header`): connections to the people port that were refused for their PROXY header, or for
    /// want of one.
    pub people_proxy_refused: IntCounterVec,

    /// Connections to the database that the pool holds.
    pub pool_connections: IntGauge,
    /// Those that nobody uses.
    pub pool_connections_idle: IntGauge,
    /// The most that the pool may hold.
    pub pool_connections_max: IntGauge,
    /// 1 while the database answers.
    pub database_up: IntGauge,
    /// 1 while NATS is connected. 0 without, for a node alone as well.
    pub cluster_bus_up: IntGauge,
    /// `direction`: hints to (`out`) and from (`in`) other nodes.
    pub cluster_hints: IntCounterVec,
    /// `outcome`: requests and streams that this node has passed on to another.
    pub cluster_passed_on: IntCounterVec,
    pub traces: TraceFigures,
    /// 1 while this node has lost its place among nodes, and serves nobody.
    pub node_fenced: IntGauge,
    pub drain: DrainMetrics,
    pub telemetry: TelemetryMetrics,
    pub thresholds: ThresholdMetrics,
    /// `direction`, `outcome`: tests of links that have ended.
    pub link_tests: IntCounterVec,
    pub link_tests_running: IntGauge,
    /// `reason`: tests of links that were refused.
    pub link_tests_refused: IntCounterVec,
    /// How often the embedded Postgres had to be started again.
    pub postgres_restarts: IntCounter,
    /// `task`: runs of a background task that failed.
    pub task_failures: IntCounterVec,
    /// Seconds since the start.
    pub uptime_seconds: Gauge,
    /// `version`: always 1.
    build_info: IntGaugeVec,
}

/// Of rules over what devices measure.
#[derive(Clone, Debug)]
pub struct ThresholdMetrics {
    /// `event`: those that were told of a site.
    pub events: IntCounterVec,
    pub step_seconds: Histogram,
    pub late_seconds: Gauge,
}

impl ThresholdMetrics {
    fn new(registry: &Registering) -> Self {
        let events = counters(
            registry,
            "cloudlink_threshold_events_total",
            "Times that something was told of a rule and a site: metric.threshold_crossed or metric.threshold_cleared.",
            &["event"],
        );
        for event in [Event::ThresholdCrossed, Event::ThresholdCleared] {
            events.with_label_values(&[event.name()]);
        }
        Self {
            events,
            step_seconds: histogram(
                registry,
                "cloudlink_threshold_step_seconds",
                "For looking at up to 500 devices by one rule.",
                REQUEST_BUCKETS_SECONDS,
            ),
            late_seconds: register(
                registry,
                "gauge",
                Gauge::new(
                    "cloudlink_threshold_late_seconds",
                    "How long the rule that this node has looked at last had been due.",
                ),
            ),
        }
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let registry = Registering::default();
        let metrics = Self {
            links_live: gauges(&registry, "cloudlink_links_live", "Links that are live now.", &["transport"]),
            links_opened: counters(
                &registry,
                "cloudlink_links_opened_total",
                "Links that became live.",
                &["transport"],
            ),
            links_closed: counters(
                &registry,
                "cloudlink_links_closed_total",
                "Links that ended.",
                &["transport", "reason"],
            ),
            connections_unauthenticated: gauge(
                &registry,
                "cloudlink_device_connections_unauthenticated",
                "Connections to the device port that are not authenticated yet.",
            ),
            handshakes: counters(
                &registry,
                "cloudlink_device_handshakes_total",
                "Handshakes that succeeded on the device port: TLS, full or resumed, and OpenVPN.",
                &["kind"],
            ),
            handshake_seconds: histogram(
                &registry,
                "cloudlink_device_handshake_seconds",
                "From accepting a connection to the end of its handshake, with the wait for its turn.",
                HANDSHAKE_BUCKETS_SECONDS,
            ),
            handshake_failures: counters(
                &registry,
                "cloudlink_device_handshake_failures_total",
                "Connections to the device port that did not become a link.",
                &["reason"],
            ),
            admission: AdmissionMetrics::new(&registry),
            enrollments: counter(&registry, "cloudlink_enrollments_total", "Devices that were enrolled."),
            enrollment_failures: counters(
                &registry,
                "cloudlink_enrollment_failures_total",
                "Enrollments that were refused.",
                &["reason"],
            ),
            certificate_renewals: counter(
                &registry,
                "cloudlink_certificate_renewals_total",
                "Device certificates that were renewed.",
            ),
            server_certificate_expiry: gauge(
                &registry,
                "cloudlink_server_certificate_expiry_timestamp_seconds",
                "When the server's own certificate ends.",
            ),
            link_messages: counters(&registry, "cloudlink_link_messages_total", "Link messages.", &["direction"]),
            polls: counter(&registry, "cloudlink_polls_total", "Polls of devices without a link that were answered."),
            link_messages_unknown: counter(
                &registry,
                "cloudlink_link_messages_unknown_total",
                "Link messages of a kind that this server does not know.",
            ),
            tunnels_live: gauge(&registry, "cloudlink_tunnels_live", "Tunnels that are live now."),
            tunnel_agents_live: gauge(&registry, "cloudlink_tunnel_agents_live", "Tunnels in which an agent answers."),
            tunnels_opened: counter(&registry, "cloudlink_tunnels_opened_total", "Tunnels that came up."),
            tunnels_closed: counters(&registry, "cloudlink_tunnels_closed_total", "Tunnels that ended.", &["reason"]),
            tunnel_bytes: counters(
                &registry,
                "cloudlink_tunnel_bytes_total",
                "Bytes of the packets inside tunnels; in: from devices.",
                &["direction"],
            ),
            tunnel_packets: counters(
                &registry,
                "cloudlink_tunnel_packets_total",
                "Packets inside tunnels; in: from devices.",
                &["direction"],
            ),
            tunnel_dropped: counters(
                &registry,
                "cloudlink_tunnel_dropped_total",
                "Packets inside tunnels, or to them, that went no further.",
                &["reason"],
            ),
            openings_live: gauge(
                &registry,
                "cloudlink_openings_live",
                "Ports of devices that are open for support on this node.",
            ),
            support_sessions_live: gauges(
                &registry,
                "cloudlink_support_sessions_live",
                "Support sessions that go on.",
                &["kind"],
            ),
            support_sessions: counters(
                &registry,
                "cloudlink_support_sessions_total",
                "Support sessions that have ended.",
                &["kind", "end"],
            ),
            support_cut_off_seconds: histogram(
                &registry,
                "cloudlink_support_cut_off_seconds",
                "From the moment at which access was over to the close of the session's last connection.",
                REQUEST_BUCKETS_SECONDS,
            ),
            support_bytes: counters(
                &registry,
                "cloudlink_support_bytes_total",
                "Bytes that support sessions moved.",
                &["direction"],
            ),
            isolation_enforced: gauge(
                &registry,
                "cloudlink_isolation_enforced",
                "1 while the rules that isolate tunnels are in force as declared, and nothing got through.",
            ),
            isolation_drifts: counters(
                &registry,
                "cloudlink_isolation_drifts_total",
                "How often isolation was found to be otherwise than declared.",
                &["kind"],
            ),
            isolation_repairs_failed: counter(
                &registry,
                "cloudlink_isolation_repairs_failed_total",
                "Attempts to put isolation right that failed.",
            ),
            isolation_kernel_dropped: counters(
                &registry,
                "cloudlink_isolation_kernel_dropped_total",
                "Packets from tunnels, to them, or forwarded, that the kernel's rules dropped.",
                &["reason"],
            ),
            devices_quarantined: gauge(
                &registry,
                "cloudlink_devices_quarantined",
                "Devices in quarantine, of all nodes. Known where tunnels are served.",
            ),
            isolation_proofs: counters(
                &registry,
                "cloudlink_isolation_proofs_total",
                "Rounds of attempts of the node's own devices to get around its isolation, by outcome: proven, failed (it could not \
                 be proven), leak (something got through).",
                &["outcome"],
            ),
            isolation_leaks: counter(
                &registry,
                "cloudlink_isolation_leaks_total",
                "Rounds in which something got through that must not.",
            ),
            isolation_proven_timestamp_seconds: gauge(
                &registry,
                "cloudlink_isolation_proven_timestamp_seconds",
                "When isolation was proven last, in Unix time. 0: not yet.",
            ),
            clones_suspected: counter(
                &registry,
                "cloudlink_link_clones_suspected_total",
                "Devices whose certificate two machines seem to use.",
            ),
            reports_refused: counters(
                &registry,
                "cloudlink_link_reports_refused_total",
                "Reports of commands that changed nothing.",
                &["reason"],
            ),
            commands: counters(
                &registry,
                "cloudlink_commands_total",
                "Commands that entered the state.",
                &["kind", "state"],
            ),
            command_seconds: histograms(
                &registry,
                "cloudlink_command_seconds",
                "From a command's insert to its final state.",
                COMMAND_BUCKETS_SECONDS,
                &["kind"],
            ),
            recordings_failed: counter(
                &registry,
                "cloudlink_recordings_failed_total",
                "Recordings that could not be written, so that their sessions were closed.",
            ),
            recording_bytes: counter(
                &registry,
                "cloudlink_recording_bytes_total",
                "Bytes of recordings that were written, before encryption.",
            ),
            recording_lag: histogram(
                &registry,
                "cloudlink_recording_lag_seconds",
                "From the first byte of a chunk of a recording to the commit of that chunk. Chunks wait for a second, or until they are full.",
                REQUEST_BUCKETS_SECONDS,
            ),
            notices: counters(
                &registry,
                "cloudlink_notices_total",
                "Attempts to tell people outside of something, by webhook or mail, by what came of them.",
                &["outcome"],
            ),
            sign_ins: counters(
                &registry,
                "cloudlink_sign_ins_total",
                "Sign-ins with the OpenID provider, and with the first administrator's token.",
                &["outcome"],
            ),
            requests: counters(
                &registry,
                "cloudlink_http_requests_total",
                "Requests to the people port.",
                &["route", "status"],
            ),
            request_seconds: histograms(
                &registry,
                "cloudlink_http_request_seconds",
                "From a request's head to its answer's.",
                REQUEST_BUCKETS_SECONDS,
                &["route"],
            ),
            people_connections: gauge(&registry, "cloudlink_people_connections", "Connections to the people port."),
            people_connections_refused: counter(
                &registry,
                "cloudlink_people_connections_refused_total",
                "Connections to the people port that were refused because there were too many.",
            ),
            people_proxy_refused: counters(
                &registry,
                "cloudlink_people_proxy_refused_total",
                "Connections to the people port that were refused for their PROXY header, or for want of one.",
                &["reason"],
            ),
            pool_connections: gauge(
                &registry,
                "cloudlink_pool_connections",
                "Connections to the database that the pool holds.",
            ),
            pool_connections_idle: gauge(
                &registry,
                "cloudlink_pool_connections_idle",
                "Connections of the pool that nobody uses.",
            ),
            pool_connections_max: gauge(
                &registry,
                "cloudlink_pool_connections_max",
                "The most connections that the pool may hold.",
            ),
            database_up: gauge(&registry, "cloudlink_database_up", "1 while the database answers."),
            cluster_bus_up: gauge(
                &registry,
                "cloudlink_cluster_bus_up",
                "1 while NATS is connected. 0 without, for a node alone as well.",
            ),
            cluster_hints: counters(
                &registry,
                "cloudlink_cluster_hints_total",
                "Hints to (out) and from (in) other nodes.",
                &["direction"],
            ),
            cluster_passed_on: counters(
                &registry,
                "cloudlink_cluster_passed_on_total",
                "Requests and streams that this node has passed on to another, by what came of it: answered, no_node, full, silent, unreachable or broken.",
                &["outcome"],
            ),
            traces: TraceFigures::new(&registry),
            node_fenced: gauge(
                &registry,
                "cloudlink_node_fenced",
                "1 while this node has lost its place among nodes, and serves nobody.",
            ),
            drain: DrainMetrics::new(&registry),
            telemetry: TelemetryMetrics::new(&registry),
            thresholds: ThresholdMetrics::new(&registry),
            link_tests: counters(
                &registry,
                "cloudlink_link_tests_total",
                "Tests of how fast the way to a device is that have ended, by how: done, left, time, bytes, protocol or lost.",
                &["direction", "outcome"],
            ),
            link_tests_running: gauge(&registry, "cloudlink_link_tests_running", "Such tests that run now."),
            link_tests_refused: counters(
                &registry,
                "cloudlink_link_tests_refused_total",
                "Such tests that were refused: there were enough on the node, of the tenant, of the device or within an hour, or they are disabled.",
                &["reason"],
            ),
            postgres_restarts: counter(
                &registry,
                "cloudlink_postgres_restarts_total",
                "How often the embedded Postgres had to be started again.",
            ),
            task_failures: counters(
                &registry,
                "cloudlink_task_failures_total",
                "Runs of a background task that failed.",
                &["task"],
            ),
            uptime_seconds: register(
                &registry,
                "gauge",
                Gauge::new("cloudlink_uptime_seconds", "Seconds since the start."),
            ),
            build_info: gauges(&registry, "cloudlink_build_info", "1; the labels say what runs.", &["version"]),
            descriptions: registry.descriptions.into_inner(),
            registry: registry.registry,
        };
        // Where there are no tunnels, nothing is wrong with their isolation.
        metrics.isolation_enforced.set(1);
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.begin_at_zero();
        metrics.register_process();
        metrics
    }

    /// Counts a connection to the device port that did not become a link.
    pub fn handshake_failed(&self, reason: Failure) {
        self.handshake_failures.with_label_values(&[reason.label()]).inc();
    }

    /// Counts a link that came up. One inside a tunnel is counted apart: the tunnel is its device's link already.
    pub fn link_opened(&self, is_inside: bool) {
        if is_inside {
            self.tunnel_agents_live.inc();
        } else {
            self.links_live.with_label_values(&["websocket"]).inc();
            self.links_opened.with_label_values(&["websocket"]).inc();
        }
    }

    /// Counts a link that ended.
    pub fn link_closed(&self, is_inside: bool, reason: &str) {
        if is_inside {
            self.tunnel_agents_live.dec();
        } else {
            self.links_live.with_label_values(&["websocket"]).dec();
            self.links_closed.with_label_values(&["websocket", reason]).inc();
        }
    }

    /// Counts an enrollment that was refused.
    pub fn enrollment_failed(&self, reason: Failure) {
        self.enrollment_failures.with_label_values(&[reason.label()]).inc();
    }

    /// All figures in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The text of docs/METRICS.md.
    #[must_use]
    pub fn reference(&self) -> String {
        let mut text = REFERENCE_HEAD.to_owned();
        for Description { name, kind, labels, help } in &self.descriptions {
            let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
        }
        text
    }

    /// A rate over a series that appears with its first failure misses that failure.
    fn begin_at_zero(&self) {
        for reason in Failure::ALL {
            self.handshake_failures.with_label_values(&[reason.label()]);
            self.enrollment_failures.with_label_values(&[reason.label()]);
        }
        for reason in TunnelDrop::ALL {
            self.tunnel_dropped.with_label_values(&[reason.label()]);
        }
        for reason in policy::Reason::ALL {
            self.isolation_kernel_dropped.with_label_values(&[reason.label()]);
        }
        for kind in DriftKind::ALL {
            self.isolation_drifts.with_label_values(&[kind.label()]);
        }
        for outcome in ["delivered", "retried", "given_up"] {
            self.notices.with_label_values(&[outcome]);
        }
        for direction in ["in", "out"] {
            self.tunnel_bytes.with_label_values(&[direction]);
            self.tunnel_packets.with_label_values(&[direction]);
        }
        for transport in ["websocket", "openvpn"] {
            self.links_live.with_label_values(&[transport]);
            self.links_opened.with_label_values(&[transport]);
        }
        for kind in ["full", "resumed", "openvpn"] {
            self.handshakes.with_label_values(&[kind]);
        }
    }

    fn register_process(&self) {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(process)).expect("nothing else is named process_*");
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// One metric, as the documentation shows it.
#[derive(Debug)]
struct Description {
    name: String,
    kind: &'static str,
    labels: Vec<String>,
    help: String,
}

/// A registry that remembers what was registered: a family without a series yet is not in what it gathers.
#[derive(Default)]
pub(crate) struct Registering {
    registry: Registry,
    descriptions: RefCell<Vec<Description>>,
}

pub(crate) fn counter(registry: &Registering, name: &str, help: &str) -> IntCounter {
    register(registry, "counter", IntCounter::new(name, help))
}

pub(crate) fn counters(registry: &Registering, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, "counter", IntCounterVec::new(Opts::new(name, help), labels))
}

pub(crate) fn gauge(registry: &Registering, name: &str, help: &str) -> IntGauge {
    register(registry, "gauge", IntGauge::new(name, help))
}

pub(crate) fn gauges(registry: &Registering, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, "gauge", IntGaugeVec::new(Opts::new(name, help), labels))
}

pub(crate) fn histogram(registry: &Registering, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, "histogram", Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn histograms(registry: &Registering, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, "histogram", HistogramVec::new(options, labels))
}

pub(crate) fn register<C: Collector + Clone + 'static>(
    registering: &Registering,
    kind: &'static str,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("names and labels are constants of the right form");
    registering.registry.register(Box::new(collector.clone())).expect("each name is registered once");
    registering.descriptions.borrow_mut().extend(collector.desc().into_iter().map(|described| Description {
        name: described.fq_name.clone(),
        kind,
        labels: described.variable_labels.clone(),
        help: described.help.clone(),
    }));
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_in_one_process_count_apart() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.enrollments.inc();
        assert!(one.render().unwrap().contains("cloudlink_enrollments_total 1\n"));
        assert!(other.render().unwrap().contains("cloudlink_enrollments_total 0\n"));
    }

    #[test]
    fn the_reference_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let committed = std::fs::read_to_string(path).unwrap();
        let current = Metrics::new().reference();
        assert!(committed == current, "run `cargo run -p cloudlink-server -- metrics > docs/METRICS.md`");
    }

    #[test]
    fn failures_are_there_from_the_start_each_under_its_own_name() {
        let text = Metrics::new().render().unwrap();
        for reason in Failure::ALL {
            let series = format!("cloudlink_device_handshake_failures_total{{reason=\"{}\"}} 0\n", reason.label());
            assert_eq!(text.matches(&series).count(), 1, "{series}");
        }
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
