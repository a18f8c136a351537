//! What a firewall must let out, and what is known to get through.

use serde::Serialize;
use time::OffsetDateTime;

/// Where devices dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePort {
    pub name: String,
    pub enroll_name: String,
    pub port: u16,
}

impl Default for DevicePort {
    fn default() -> Self {
        Self { name: "localhost".to_owned(), enroll_name: "enroll.localhost".to_owned(), port: 443 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The first certificate of a device.
    Enrollment,
    /// A link over a WebSocket, in TLS.
    Websocket,
    /// A link or a tunnel of an OpenVPN client, which is not TLS from its first byte.
    Openvpn,
    /// An HTTPS request now and then, where no link comes about.
    Polling,
}

/// TCP connections that devices open, and nobody else: nothing has to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct NetworkRow {
    pub purpose: Purpose,
    pub host: String,
    pub port: u16,
    /// Devices that are known to have got through in the last seven days.
    pub devices: i64,
    /// When one of them last did.
    #[serde(with = "time::serde::rfc3339::option")]
    pub proven_at: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Network {
    pub rows: Vec<NetworkRow>,
}
