//! The API's shapes, as docs/API.md gives them. Unknown fields and unknown names of states are accepted, so that this
//! program works with newer servers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// Labels of a device, or the selector of a grant.
pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tenant {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) grant_max_seconds: u64,
    /// Servers of before access requests do not name it.
    #[serde(default = "one")]
    pub(crate) approvals_needed: u32,
    #[serde(default)]
    pub(crate) fewer_approvals: Option<FewerApprovals>,
    #[serde(default)]
    pub(crate) signed_grants: bool,
    /// For how many days its recordings are kept.
    pub(crate) recording_keep_days: u32,
    pub(crate) created_at: Timestamp,
}

/// How to sign in, if there is an OpenID provider.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SignInConfig {
    pub(crate) issuer: Option<String>,
    pub(crate) cli_client_id: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) ca_pem: Option<String>,
}

fn one() -> u32 {
    1
}

/// One person's proposal that fewer approvals be enough.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FewerApprovals {
    pub(crate) proposed_by: Uuid,
    pub(crate) until: Timestamp,
}

/// Who a token belongs to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Me {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) tenant_id: Option<Uuid>,
    pub(crate) token_kind: String,
    pub(crate) token_scopes: Option<Vec<String>>,
    pub(crate) token_id: Uuid,
    pub(crate) token_expires_at: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Person {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) tenant_id: Option<Uuid>,
    /// `human`, or `service`.
    pub(crate) kind: String,
    pub(crate) email: Option<String>,
    pub(crate) active: bool,
    pub(crate) created_at: Timestamp,
    pub(crate) signed_in_at: Option<Timestamp>,
}

/// Where a person is mailed to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Email {
    pub(crate) email: Option<String>,
}

/// A selector with a name.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Group {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Option<Uuid>,
    pub(crate) name: String,
    pub(crate) selector: String,
    pub(crate) created_at: Timestamp,
    pub(crate) deleted_at: Option<Timestamp>,
}

/// A rule over what devices measure.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Threshold {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) metric: String,
    pub(crate) comparison: String,
    pub(crate) value: f64,
    pub(crate) clear_value: f64,
    pub(crate) for_seconds: u32,
    pub(crate) selector: String,
    pub(crate) severity: String,
    pub(crate) hold_down_seconds: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) deleted_at: Option<Timestamp>,
}

/// A device that is across a threshold.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Alert {
    pub(crate) threshold_name: String,
    pub(crate) severity: String,
    pub(crate) device_name: String,
    pub(crate) site: Option<String>,
    pub(crate) state: String,
    pub(crate) since: Timestamp,
    pub(crate) value: Option<f64>,
    pub(crate) is_told: bool,
}

/// The same command to many devices. In lists without `totals` and `out`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rollout {
    pub(crate) id: Uuid,
    pub(crate) grant_id: Uuid,
    pub(crate) kind: String,
    pub(crate) reason: String,
    pub(crate) selector: String,
    pub(crate) state: String,
    pub(crate) hash: String,
    #[serde(default)]
    pub(crate) drift_max: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) ends_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) totals: RolloutTotals,
    #[serde(default)]
    pub(crate) out: BTreeMap<String, u64>,
}

/// Of the devices that are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct RolloutTotals {
    pub(crate) waiting: u64,
    pub(crate) under_way: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// One device of a rollout.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Execution {
    pub(crate) device_name: String,
    pub(crate) state: Option<String>,
    pub(crate) why: Option<String>,
    pub(crate) command_id: Option<Uuid>,
    pub(crate) code: Option<String>,
}

/// Where another system is told of events. `secret` is there only when it was just made.
#[derive(Clone, Deserialize)]
pub(crate) struct Webhook {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Option<Uuid>,
    pub(crate) url: String,
    pub(crate) events: Vec<String>,
    pub(crate) created_at: Timestamp,
    pub(crate) disabled_at: Option<Timestamp>,
    pub(crate) failing_since: Option<Timestamp>,
    pub(crate) previous_secret_until: Option<Timestamp>,
    pub(crate) secret: Option<String>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One event on its way to one webhook.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Delivery {
    pub(crate) id: Uuid,
    pub(crate) event: String,
    pub(crate) state: String,
    pub(crate) created_at: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) next_at: Option<Timestamp>,
    pub(crate) last_result: Option<String>,
}

/// An API token. `token` is the secret, there only when it was just made.
#[derive(Clone, Deserialize)]
pub(crate) struct Token {
    pub(crate) id: Uuid,
    pub(crate) person_id: Uuid,
    pub(crate) name: String,
    pub(crate) kind: String,
    /// `None`: all that its person may do.
    pub(crate) scopes: Option<Vec<String>>,
    pub(crate) expires_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
    pub(crate) last_used_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) token: Option<String>,
}

/// A token that one device may enroll with. `token` is the secret, there only when it was just made.
#[derive(Clone, Deserialize)]
pub(crate) struct EnrollmentToken {
    pub(crate) id: Uuid,
    pub(crate) device_name: String,
    pub(crate) labels: Labels,
    pub(crate) expires_at: Timestamp,
    pub(crate) used_at: Option<Timestamp>,
    pub(crate) device_id: Option<Uuid>,
    #[serde(default)]
    pub(crate) token: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) state: String,
    pub(crate) enrolled_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
    /// Servers of before quarantine do not name it.
    #[serde(default)]
    pub(crate) quarantine: Option<Quarantine>,
    pub(crate) certificate: Option<Certificate>,
    pub(crate) link: Option<Link>,
    /// There while it carries the live link. Servers of before tunnels do not name it.
    #[serde(default)]
    pub(crate) tunnel: Option<Tunnel>,
    /// Servers of before polling do not name it.
    #[serde(default)]
    pub(crate) poll: Option<Poll>,
    /// Servers of before busy locks do not name it.
    #[serde(default)]
    pub(crate) busy_lock: Option<BusyLock>,
    /// Servers of before do not name it.
    #[serde(default)]
    pub(crate) configuration: Option<ConfigurationStanding>,
    /// Servers of before do not name them.
    #[serde(default)]
    pub(crate) transport_failures: Vec<TransportFailure>,
}

/// How a device stands with what it is to have.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigurationStanding {
    pub(crate) desired_version: i64,
    pub(crate) applied_version: i64,
    pub(crate) state: String,
    pub(crate) error: Option<String>,
    pub(crate) since: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceConfiguration {
    #[serde(flatten)]
    pub(crate) standing: ConfigurationStanding,
    pub(crate) content: serde_json::Value,
    pub(crate) documents: Vec<ConfigurationSource>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigurationSource {
    pub(crate) id: Uuid,
    pub(crate) name: Option<String>,
    pub(crate) version: i64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigurationDrift {
    pub(crate) device_name: String,
    #[serde(flatten)]
    pub(crate) standing: ConfigurationStanding,
}

/// A version of a document of desired configuration.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigurationDocument {
    pub(crate) id: Uuid,
    pub(crate) device_id: Option<Uuid>,
    pub(crate) name: Option<String>,
    pub(crate) version: i64,
    pub(crate) selector: Option<String>,
    pub(crate) priority: i32,
    pub(crate) content: Option<serde_json::Value>,
    pub(crate) reason: String,
    pub(crate) created_by: Uuid,
    pub(crate) created_at: Timestamp,
    pub(crate) restores: Option<i64>,
}

/// "Not now", said by the device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct BusyLock {
    pub(crate) reason: String,
    pub(crate) until: Timestamp,
}

/// A kind of failure that the device met on its way to the server.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TransportFailure {
    pub(crate) transport: String,
    pub(crate) stage: String,
    pub(crate) code: String,
    pub(crate) count: u64,
    pub(crate) last_at: Timestamp,
}

/// A kind of failure, over all devices with the same label.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TransportReportItem {
    /// `None`: of devices without the label, or of all.
    pub(crate) value: Option<String>,
    pub(crate) devices: u64,
    #[serde(flatten)]
    pub(crate) failure: TransportFailure,
}

/// Which transports failed and how, summed by the values of a label.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TransportReport {
    pub(crate) by: Option<String>,
    pub(crate) items: Vec<TransportReportItem>,
    pub(crate) is_cut: bool,
}

impl Device {
    #[must_use]
    pub(crate) fn is_linked(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_live)
    }

    /// When it polls again at the latest, if it does.
    #[must_use]
    pub(crate) fn next_poll_by(&self) -> Option<Timestamp> {
        self.poll.as_ref().and_then(|poll| poll.next_poll_by)
    }

    /// Whether it would take a command now.
    #[must_use]
    pub(crate) fn has_agent(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_live() && link.has_agent)
    }
}

/// Of a device that has its link and nothing else.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Quarantine {
    pub(crate) since: Timestamp,
    /// `None`: the server itself.
    pub(crate) by: Option<Uuid>,
    pub(crate) reason: String,
}

/// What a device tried and may not.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceDrops {
    pub(crate) items: Vec<DeviceDrop>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceDrop {
    pub(crate) day: String,
    pub(crate) reason: String,
    pub(crate) packets: u64,
    pub(crate) first_at: Timestamp,
    pub(crate) last_at: Timestamp,
}

/// When a device booted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceBoots {
    pub(crate) boots: Vec<Boot>,
    pub(crate) missing: Option<MissingBoot>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Boot {
    pub(crate) boot_id: String,
    pub(crate) seen_at: Timestamp,
    pub(crate) cause: String,
    pub(crate) command_id: Option<Uuid>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MissingBoot {
    pub(crate) command_id: Uuid,
    pub(crate) ordered_at: Timestamp,
}

/// What a device measured over time.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LinkTest {
    pub(crate) direction: String,
    pub(crate) started_at: Timestamp,
    pub(crate) node: String,
    pub(crate) client_name: String,
    pub(crate) client_version: String,
    pub(crate) outcome: Option<String>,
    pub(crate) bytes: Option<f64>,
    pub(crate) bits_per_second: Option<f64>,
    pub(crate) min_rtt_us: Option<f64>,
    pub(crate) retransmitted_bytes: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceSamples {
    pub(crate) series: Vec<Series>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Series {
    pub(crate) metric: String,
    pub(crate) points: Vec<Point>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Point {
    pub(crate) at: Timestamp,
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) avg: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) serial: String,
    pub(crate) not_after: Timestamp,
}

/// The newest link of a device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Link {
    pub(crate) transport: String,
    pub(crate) state: String,
    pub(crate) node: String,
    pub(crate) epoch: i64,
    pub(crate) remote_address: String,
    pub(crate) boot_id: String,
    pub(crate) agent: String,
    pub(crate) os: String,
    pub(crate) hostname: String,
    pub(crate) clock_offset_ms: i64,
    pub(crate) capabilities: Vec<String>,
    pub(crate) connected_at: Timestamp,
    pub(crate) proven_at: Timestamp,
    pub(crate) closed_at: Option<Timestamp>,
    pub(crate) close_reason: Option<String>,
    /// Servers of before tunnels knew no other links.
    #[serde(default = "yes")]
    pub(crate) has_agent: bool,
}

/// The newest poll of a device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Poll {
    pub(crate) last_poll_at: Timestamp,
    /// `None`: it does not poll any more.
    pub(crate) next_poll_by: Option<Timestamp>,
    pub(crate) interval_seconds: i64,
    pub(crate) remote_address: String,
    pub(crate) boot_id: String,
    pub(crate) agent: String,
    pub(crate) os: String,
    pub(crate) hostname: String,
    pub(crate) clock_offset_ms: i64,
    pub(crate) running: Vec<Running>,
}

/// A service or container of a device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) state: String,
}

fn yes() -> bool {
    true
}

/// The tunnel of an OpenVPN client. In: from the device.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tunnel {
    pub(crate) ipv4: IpAddr,
    pub(crate) ipv6: IpAddr,
    pub(crate) client: String,
    pub(crate) platform: String,
    pub(crate) cipher: String,
    pub(crate) opened_at: Timestamp,
    pub(crate) packets_in: u64,
    pub(crate) packets_out: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) dropped: u64,
}

impl Link {
    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.state == "live"
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Grant {
    pub(crate) id: Uuid,
    pub(crate) created_by: Uuid,
    pub(crate) reason: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) operator_ids: Option<Vec<Uuid>>,
    pub(crate) device_ids: Option<Vec<Uuid>>,
    pub(crate) selector: Option<Labels>,
    #[serde(default)]
    pub(crate) selector_text: Option<String>,
    pub(crate) starts_at: Timestamp,
    pub(crate) ends_at: Timestamp,
    pub(crate) created_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
    /// As the tenant signed it.
    #[serde(default)]
    pub(crate) statement: Option<String>,
    pub(crate) state: String,
}

/// A key with which a tenant signs grants.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SigningKey {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) algorithm: String,
    pub(crate) key_id: String,
    pub(crate) created_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
}

/// What somebody asks a tenant's people for.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AccessRequest {
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) requested_by: Uuid,
    pub(crate) operator_ids: Option<Vec<Uuid>>,
    pub(crate) scopes: Vec<String>,
    pub(crate) device_ids: Option<Vec<Uuid>>,
    pub(crate) selector: Option<Labels>,
    #[serde(default)]
    pub(crate) selector_text: Option<String>,
    pub(crate) reason: String,
    pub(crate) ticket: Option<String>,
    pub(crate) state: String,
    pub(crate) created_at: Timestamp,
    pub(crate) starts_at: Option<Timestamp>,
    pub(crate) answer_by: Timestamp,
    pub(crate) access_until: Timestamp,
    pub(crate) approvals_needed: u32,
    pub(crate) decisions: Vec<AccessDecision>,
    pub(crate) closed_at: Option<Timestamp>,
    pub(crate) grant_id: Option<Uuid>,
    pub(crate) extends_grant_id: Option<Uuid>,
    pub(crate) policy_id: Option<Uuid>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AccessDecision {
    pub(crate) person_id: Uuid,
    pub(crate) decision: String,
    pub(crate) scopes: Option<Vec<String>>,
    pub(crate) device_ids: Option<Vec<Uuid>>,
    pub(crate) access_until: Option<Timestamp>,
    pub(crate) comment: Option<String>,
    pub(crate) at: Timestamp,
}

/// A grant, or the request that it is where a second person must approve.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Granted {
    /// The only one of the two that has this much to say.
    Request(Box<AccessRequest>),
    Grant(Box<Grant>),
}

/// What a tenant allows without being asked each time.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AccessPolicy {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) device_ids: Option<Vec<Uuid>>,
    pub(crate) selector: Option<Labels>,
    #[serde(default)]
    pub(crate) selector_text: Option<String>,
    pub(crate) operator_ids: Option<Vec<Uuid>>,
    pub(crate) days: Vec<u8>,
    pub(crate) from_minute: u32,
    pub(crate) to_minute: u32,
    pub(crate) time_zone: String,
    pub(crate) max_seconds: u64,
    pub(crate) state: String,
    pub(crate) created_by: Uuid,
    pub(crate) created_at: Timestamp,
    pub(crate) approved_by: Option<Uuid>,
    pub(crate) approved_at: Option<Timestamp>,
    pub(crate) revoked_by: Option<Uuid>,
    pub(crate) revoked_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Command {
    pub(crate) id: Uuid,
    pub(crate) device_id: Uuid,
    pub(crate) grant_id: Uuid,
    pub(crate) requested_by: Uuid,
    pub(crate) kind: String,
    pub(crate) arguments: Value,
    pub(crate) reason: String,
    pub(crate) state: String,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) sent_at: Option<Timestamp>,
    pub(crate) accepted_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) percent: Option<u8>,
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) data: Option<Value>,
    pub(crate) proof: Option<Value>,
    /// While it waits for a poll. Servers of before polling do not name it.
    #[serde(default)]
    pub(crate) runs_by: Option<Timestamp>,
}

impl Command {
    /// Whether nothing more will happen to it. Not told by the state's name: a newer server may have more of them.
    #[must_use]
    pub(crate) fn is_final(&self) -> bool {
        self.finished_at.is_some()
    }

    #[must_use]
    pub(crate) fn has_succeeded(&self) -> bool {
        self.state == "succeeded"
    }
}

/// A port of a device that is open for support, or was.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Opening {
    pub(crate) id: Uuid,
    pub(crate) device_id: Uuid,
    pub(crate) grant_id: Uuid,
    pub(crate) opened_by: Uuid,
    pub(crate) port: u16,
    pub(crate) reason: String,
    pub(crate) state: String,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) opened_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) end_reason: Option<String>,
    pub(crate) endpoint: Option<Endpoint>,
}

/// Where a port is reached from the node that has the device's tunnel.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) node: String,
    pub(crate) ipv4: IpAddr,
    pub(crate) ipv6: IpAddr,
}

/// A live stream to a device under a grant, or one that has been.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SupportSession {
    pub(crate) id: Uuid,
    pub(crate) device_id: Uuid,
    pub(crate) grant_id: Uuid,
    pub(crate) opened_by: Uuid,
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) target: Value,
    pub(crate) reason: String,
    pub(crate) state: String,
    pub(crate) created_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) expires_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) end_reason: Option<String>,
    /// From when it had to be over to its last byte.
    pub(crate) cut_off_ms: Option<u64>,
    #[serde(default)]
    pub(crate) bytes_to_device: u64,
    #[serde(default)]
    pub(crate) bytes_from_device: u64,
    #[serde(default)]
    pub(crate) result: Value,
    /// Who else was there.
    #[serde(default)]
    pub(crate) guests: Vec<Guest>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Guest {
    pub(crate) person_id: Uuid,
    pub(crate) joined_at: Timestamp,
    pub(crate) left_at: Option<Timestamp>,
}

/// What was recorded of a support session.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Recording {
    pub(crate) session_id: Uuid,
    pub(crate) device_id: Uuid,
    pub(crate) grant_id: Uuid,
    pub(crate) opened_by: Uuid,
    pub(crate) kind: String,
    pub(crate) reason: String,
    pub(crate) format: String,
    pub(crate) state: String,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) bytes: Option<u64>,
    pub(crate) digest: Option<String>,
    pub(crate) keep_until: Timestamp,
    pub(crate) deleted_at: Option<Timestamp>,
}

/// One line of an audit chain. `entry` is the text that was hashed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AuditEntry {
    pub(crate) tenant_id: Uuid,
    pub(crate) seq: u64,
    pub(crate) entry: String,
    pub(crate) hash: String,
}

/// A node of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) version: String,
    pub(crate) links: u64,
    pub(crate) tunnels: u64,
    pub(crate) support_sessions: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) renewed_ago_seconds: f64,
    pub(crate) draining_since: Option<Timestamp>,
    pub(crate) drain_by: Option<Timestamp>,
    pub(crate) handshake_us: Option<u32>,
    pub(crate) handshakes_per_second: Option<f64>,
    #[serde(default)]
    pub(crate) condition: Option<Condition>,
    pub(crate) is_asked: bool,
}

/// How long it takes until a whole fleet is back.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StormPlan {
    pub(crate) devices: u32,
    pub(crate) nodes: u32,
    pub(crate) costs: StormCosts,
    pub(crate) per_node_per_second: f64,
    pub(crate) bottleneck: String,
    pub(crate) half_back_seconds: f64,
    pub(crate) nine_tenths_back_seconds: f64,
    pub(crate) most_back_seconds: f64,
    pub(crate) all_back_seconds: f64,
    pub(crate) attempts_per_device: f64,
    pub(crate) cpu_seconds_per_node: f64,
}

/// What one new connection costs a node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StormCosts {
    pub(crate) connections_measured: u64,
    pub(crate) connection_cpu_ms: f64,
    pub(crate) full_cpu_ms: Option<f64>,
    pub(crate) resumed_cpu_ms: Option<f64>,
    pub(crate) openvpn_cpu_ms: Option<f64>,
    pub(crate) database_ms: Option<f64>,
}

/// The cluster, and what is wrong with it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) problems: Vec<Trouble>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) devices: DeviceFigures,
    pub(crate) commands: CommandFigures,
    pub(crate) support_sessions: u64,
    pub(crate) notices: NoticeFigures,
    pub(crate) database: Database,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) severity: String,
    pub(crate) node: Option<String>,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Trouble {
    /// Whether it is more than good to know.
    #[must_use]
    pub(crate) fn is_wrong(&self) -> bool {
        self.severity != "info"
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Condition {
    pub(crate) bus: Option<bool>,
    pub(crate) isolation: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeviceFigures {
    pub(crate) active: u64,
    pub(crate) linked_by_websocket: u64,
    pub(crate) linked_by_openvpn: u64,
    pub(crate) agents_in_tunnels: u64,
    pub(crate) quarantined: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CommandFigures {
    pub(crate) queued: u64,
    pub(crate) under_way: u64,
    pub(crate) sendable_seconds: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NoticeFigures {
    pub(crate) waiting: u64,
    pub(crate) due_seconds: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Database {
    pub(crate) version: String,
    pub(crate) size_bytes: u64,
    pub(crate) connections: u64,
    pub(crate) connections_max: u64,
}

/// A round of attempts of a node's own devices to get around its isolation. Of one that is not over there is nothing but the id.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Proof {
    pub(crate) id: Uuid,
    #[serde(default)]
    pub(crate) node: Option<String>,
    #[serde(default)]
    pub(crate) trigger: Option<String>,
    #[serde(default)]
    pub(crate) outcome: Option<String>,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) finished_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) policy_hash: Option<String>,
    #[serde(default)]
    pub(crate) attempts: u64,
    #[serde(default)]
    pub(crate) results: Vec<ProofResult>,
}

/// What came of its attempts of one kind.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ProofResult {
    pub(crate) kind: String,
    pub(crate) must: String,
    pub(crate) attempts: u64,
    pub(crate) wrong: u64,
    #[serde(default)]
    pub(crate) seen: Vec<String>,
}

/// A statement as the API gives it: signed, and in plain.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SignedStatement {
    pub(crate) statement: String,
    pub(crate) content: IsolationStatement,
}

/// A receipt as the API gives it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SignedReceipt {
    pub(crate) statement: String,
}

/// What a statement about the isolation of a tenant's devices says. docs/ISOLATION.md has its fields.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct IsolationStatement {
    pub(crate) version: u32,
    pub(crate) trust_domain: String,
    pub(crate) tenant: TenantName,
    pub(crate) day: String,
    pub(crate) complete: bool,
    pub(crate) made_at: Timestamp,
    pub(crate) conclusion: String,
    pub(crate) reasons: Vec<String>,
    pub(crate) nodes: Vec<NodeDay>,
    pub(crate) drops: Vec<DropDay>,
    pub(crate) quarantines: Vec<QuarantineDay>,
    pub(crate) openings: Vec<OpeningDay>,
    pub(crate) truncated: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TenantName {
    pub(crate) id: Uuid,
    pub(crate) name: String,
}

/// What was measured on one node that carried tunnels of the tenant.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NodeDay {
    pub(crate) node: String,
    pub(crate) proofs: BTreeMap<String, u64>,
    pub(crate) attempts: u64,
    pub(crate) first_proven_at: Option<Timestamp>,
    pub(crate) last_proven_at: Option<Timestamp>,
    pub(crate) longest_gap_seconds: u64,
    pub(crate) policies: Vec<String>,
    pub(crate) drifts: Vec<Drift>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Drift {
    pub(crate) kind: String,
    pub(crate) found_at: Timestamp,
    pub(crate) repaired_at: Option<Timestamp>,
    pub(crate) differences: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DropDay {
    pub(crate) device_name: String,
    pub(crate) reason: String,
    pub(crate) packets: u64,
    pub(crate) last_at: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct QuarantineDay {
    pub(crate) device_name: String,
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct OpeningDay {
    pub(crate) device_name: String,
    pub(crate) port: u16,
    pub(crate) grant_id: Uuid,
    pub(crate) opened_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) end_reason: Option<String>,
    pub(crate) reason: String,
}
