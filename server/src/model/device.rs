//! Devices: gateways in customers' buildings.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest;
use cloudlink_proto::ids::DeviceId;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::busy_lock::BusyLock;
use super::configuration::ConfigurationStanding;
use super::transport_failure::TransportFailure;

/// The most labels of one device.
pub const LABELS_MAX: usize = 64;
/// The longest key or value of a label, in characters.
pub const LABEL_CHARS_MAX: usize = 63;

/// Whether this is one of the two devices with which a node proves its isolation: nobody is shown them, and none is a customer's.
/// Their ids are of another version than those that enrollment gives.
#[must_use]
pub fn is_probe(device: DeviceId) -> bool {
    device.as_uuid().get_version_num() == PROBE_ID_VERSION
}

/// The id of a node's probe of this number. It follows from the node's name: a node has the same ones whenever it starts.
#[must_use]
pub fn probe_id(node: &str, number: u8) -> DeviceId {
    let name = [b"cloudlink probe".as_slice(), &[number], node.as_bytes()].concat();
    let hash = digest::digest(&digest::SHA256, &name);
    let bytes = hash.as_ref().first_chunk().expect("a SHA-256 has more than 16 bytes");
    DeviceId::from_uuid(uuid::Builder::from_custom_bytes(*bytes).into_uuid())
}

/// Of UUIDs whose bytes have a meaning of their own (RFC 9562, version 8).
const PROBE_ID_VERSION: usize = 8;

/// Labels of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

/// Why labels are not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    #[error("there are more than {LABELS_MAX} labels")]
    TooMany,
    #[error("keys and values of labels have 1 to {LABEL_CHARS_MAX} characters, none of them a control character")]
    Malformed,
}

impl Labels {
    /// Checks the limits that the database does not know.
    pub fn check(&self) -> Result<(), LabelsError> {
        if self.0.len() > LABELS_MAX {
            return Err(LabelsError::TooMany);
        }
        if self.0.iter().all(|(key, value)| Self::is_text(key) && Self::is_text(value)) {
            Ok(())
        } else {
            Err(LabelsError::Malformed)
        }
    }

    /// Whether this may be the key, or the value, of a label.
    #[must_use]
    pub fn is_text(text: &str) -> bool {
        (1..=LABEL_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    Active,
    Revoked,
}

impl DeviceState {
    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "active" => Some(Self::Active),
            "revoked" => Some(Self::Revoked),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Device {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub name: String,
    pub labels: Labels,
    pub state: DeviceState,
    /// Grows with each change: the `ETag`.
    pub version: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub enrolled_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Null when it is in none.
    pub quarantine: Option<Quarantine>,
    /// The certificate that it uses, or will use first.
    pub certificate: Option<Certificate>,
    /// Its newest link, live or closed.
    pub link: Option<Link>,
    /// The tunnel that carries its live link. Null when it has no live link, or one of another transport.
    pub tunnel: Option<Tunnel>,
    /// How the device reaches the server now: `websocket`, `openvpn` or, without a live link, `polling`. Null: not at all.
    pub transport: Option<String>,
    /// Its newest poll.
    pub poll: Option<Poll>,
    /// The lock that it holds: what would disturb it is refused. Null: none.
    pub busy_lock: Option<BusyLock>,
    /// How it stands with its desired configuration. Null: there was never any.
    pub configuration: Option<ConfigurationStanding>,
    /// How its attempts to reach the server went wrong, as it told: what it met last comes first.
    pub transport_failures: Vec<TransportFailure>,
}

/// The device keeps its link, and nothing else of it is let through, in either direction.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Quarantine {
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The person who put it there; null: the server itself.
    pub by: Option<Uuid>,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Certificate {
    /// Hex.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Live,
    Closed,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Link {
    /// `websocket`, `openvpn` or `polling`.
    pub transport: String,
    pub state: LinkState,
    /// Name of the node that serves it.
    pub node: String,
    /// Grows with every link of this device.
    pub epoch: i64,
    pub remote_address: String,
    pub boot_id: String,
    pub agent: String,
    pub os: String,
    pub hostname: String,
    /// Device clock minus server clock at the start of the link.
    pub clock_offset_ms: i64,
    pub capabilities: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub connected_at: OffsetDateTime,
    /// When the device was last heard of; lags by some seconds.
    #[serde(with = "time::serde::rfc3339")]
    pub proven_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub closed_at: Option<OffsetDateTime>,
    pub close_reason: Option<String>,
    /// Whether an agent answers on it. Only a tunnel may have none: the device then takes no commands, and has neither boot
    /// id, agent, os, hostname nor capabilities.
    pub has_agent: bool,
}

/// A live tunnel of an OpenVPN client.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Tunnel {
    /// The device's addresses inside.
    #[schema(value_type = String)]
    pub ipv4: Ipv4Addr,
    #[schema(value_type = String)]
    pub ipv6: Ipv6Addr,
    /// What the client says about itself: its version and its platform.
    pub client: String,
    pub platform: String,
    pub cipher: String,
    #[serde(with = "time::serde::rfc3339")]
    pub opened_at: OffsetDateTime,
    /// What went through the tunnel; lags by some seconds. In: from the device.
    pub packets_in: i64,
    pub packets_out: i64,
    pub bytes_in: i64,
    pub bytes_out: i64,
    /// Packets that were not let through, in either direction.
    pub dropped: i64,
}

/// The newest poll of a device, and what it told with it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Poll {
    #[serde(with = "time::serde::rfc3339")]
    pub last_poll_at: OffsetDateTime,
    /// The next one comes by then. Null when the device does not poll any more: it has a live link, or is silent.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_poll_by: Option<OffsetDateTime>,
    pub interval_seconds: i32,
    /// Name of the node that answered.
    pub node: String,
    pub remote_address: String,
    pub boot_id: String,
    pub agent: String,
    pub os: String,
    pub hostname: String,
    /// Device clock minus server clock.
    pub clock_offset_ms: i64,
    pub capabilities: Vec<String>,
    pub running: Vec<Running>,
}

/// A service or container of a device.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Running {
    pub name: String,
    /// As whoever runs it says: `active`, `failed`, `exited`, …
    pub state: String,
    /// `service`, `container` or `other`.
    pub kind: String,
}

/// The newest report of a device about itself.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceMetrics {
    pub device_id: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    /// The JSON form of a `MetricsReport` of the link protocol: what could not be measured is absent.
    #[schema(value_type = Object)]
    pub report: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: usize, key: &str, value: &str) -> Labels {
        Labels((0..count).map(|n| (format!("{key}{n}"), value.to_owned())).collect())
    }

    #[test]
    fn labels_up_to_the_limits_are_accepted() {
        assert_eq!(labels(LABELS_MAX, "k", &"ü".repeat(LABEL_CHARS_MAX)).check(), Ok(()));
        assert_eq!(Labels::default().check(), Ok(()));
    }

    #[test]
    fn labels_beyond_the_limits_are_refused() {
        assert_eq!(labels(LABELS_MAX + 1, "k", "v").check(), Err(LabelsError::TooMany));
        for value in ["", "a\0b", "a\nb", &"x".repeat(LABEL_CHARS_MAX + 1)] {
            assert_eq!(labels(1, "k", value).check(), Err(LabelsError::Malformed), "{value:?}");
        }
        assert_eq!(labels(1, &"x".repeat(LABEL_CHARS_MAX), "v").check(), Err(LabelsError::Malformed));
    }
}
