//! Support sessions: what an operator does on a device while somebody's grant lasts, live.

use std::net::IpAddr;

use cloudlink_proto::link::{HOST_BYTES_MAX, PATH_BYTES_MAX};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

/// Permission bits of a file that nobody said any for.
const FILE_MODE_DEFAULT: u32 = 0o644;
/// All of them.
const FILE_MODE_MAX: u32 = 0o7777;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Terminal,
    Forward,
    File,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Terminal, Self::Forward, Self::File];

    /// Name in the API, the database and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Forward => "forward",
            Self::File => "file",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What an agent that can do it says among its capabilities.
    #[must_use]
    pub const fn capability(self) -> &'static str {
        match self {
            Self::Terminal => "stream.terminal",
            Self::Forward => "stream.forward",
            Self::File => "stream.file",
        }
    }
}

/// What a session is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Terminal,
    Forward(ForwardTarget),
    File(FileTarget),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardTarget {
    /// A name or address as the device sees it.
    #[serde(default = "localhost")]
    pub host: String,
    pub port: u16,
    #[serde(default)]
    pub via: Via,
}

/// Who connects to the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The device's agent, to what its allow-list has.
    #[default]
    Agent,
    /// The node of the device's tunnel, to a port of the device that is opened for it.
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// Absolute, on the device.
    pub path: String,
    pub direction: Direction,
    /// Of a file for the device, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Permission bits of a file for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

impl FileTarget {
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode.unwrap_or(FILE_MODE_DEFAULT)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    ToDevice,
    FromDevice,
}

fn localhost() -> String {
    "localhost".to_owned()
}

/// Why something is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the target does not fit the kind")]
    Form(#[source] serde_json::Error),
    #[error("a terminal has no target")]
    Terminal,
    #[error("`host` must be a name or an address of 1 to {HOST_BYTES_MAX} bytes")]
    Host,
    #[error("`port` must be 1 to 65535")]
    Port,
    #[error("over `via` = `node` only the device itself can be reached: leave `host` out")]
    HostViaNode,
    #[error("`path` must be absolute, with 1 to {PATH_BYTES_MAX} bytes and no control characters")]
    Path,
    #[error("a file for the device needs its `size`; one from the device has neither `size` nor `mode`")]
    Size,
    #[error("`mode` must be permission bits, 0 to 4095")]
    Mode,
}

impl Target {
    /// Reads what somebody asks for.
    pub fn read(kind: Kind, value: Value) -> Result<Self, TargetError> {
        let value = if value.is_null() { json!({}) } else { value };
        match kind {
            Kind::Terminal if value == json!({}) => Ok(Self::Terminal),
            Kind::Terminal => Err(TargetError::Terminal),
            Kind::Forward => {
                let target: ForwardTarget = serde_json::from_value(value).map_err(TargetError::Form)?;
                target.check()?;
                Ok(Self::Forward(target))
            }
            Kind::File => {
                let target: FileTarget = serde_json::from_value(value).map_err(TargetError::Form)?;
                target.check()?;
                Ok(Self::File(target))
            }
        }
    }

    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Terminal => json!({}),
            Self::Forward(ForwardTarget { host, port, via }) => json!({"host": host, "port": port, "via": via}),
            Self::File(FileTarget { path, direction: direction @ Direction::FromDevice, .. }) => {
                json!({"path": path, "direction": direction})
            }
            Self::File(target) => json!({
                "path": target.path, "direction": target.direction, "size": target.size, "mode": target.mode(),
            }),
        }
    }

    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Terminal => Kind::Terminal,
            Self::Forward(_) => Kind::Forward,
            Self::File(_) => Kind::File,
        }
    }

    /// The scope that a grant must give.
    #[must_use]
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Terminal => "shell:open",
            Self::Forward(_) => super::opening::SCOPE,
            Self::File(FileTarget { direction: Direction::FromDevice, .. }) => "file:read",
            Self::File(FileTarget { direction: Direction::ToDevice, .. }) => "file:write",
        }
    }

    /// The port that the node itself connects to.
    #[must_use]
    pub const fn port_via_node(&self) -> Option<u16> {
        match self {
            Self::Forward(ForwardTarget { port, via: Via::Node, .. }) => Some(*port),
            Self::Terminal | Self::Forward(_) | Self::File(_) => None,
        }
    }
}

/// The scopes that support sessions ask for, `tcp:open` aside.
pub const SCOPES: [&str; 3] = ["shell:open", "file:read", "file:write"];

impl ForwardTarget {
    fn check(&self) -> Result<(), TargetError> {
        let is_plain = |byte: u8| byte.is_ascii_graphic();
        if self.host.is_empty() || self.host.len() > HOST_BYTES_MAX || !self.host.bytes().all(is_plain) {
            return Err(TargetError::Host);
        }
        if self.port == 0 {
            return Err(TargetError::Port);
        }
        let is_itself =
            self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if self.via == Via::Node && !is_itself {
            return Err(TargetError::HostViaNode);
        }
        Ok(())
    }
}

impl FileTarget {
    fn check(&self) -> Result<(), TargetError> {
        let is_fine =
            self.path.starts_with('/') && self.path.len() <= PATH_BYTES_MAX && !self.path.chars().any(char::is_control);
        if !is_fine {
            return Err(TargetError::Path);
        }
        let has_what_it_needs = match self.direction {
            // What Postgres' jsonb and every JavaScript can count.
            Direction::ToDevice => self.size.is_some_and(|size| size < 1 << 53),
            Direction::FromDevice => self.size.is_none() && self.mode.is_none(),
        };
        if !has_what_it_needs {
            return Err(TargetError::Size);
        }
        if self.mode() > FILE_MODE_MAX { Err(TargetError::Mode) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Nobody has come for it yet.
    Waiting,
    Live,
    Ended,
}

impl SessionState {
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Live, Self::Ended];

    /// Name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Live => "live",
            Self::Ended => "ended",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Whoever opened it has left, or somebody has closed it.
    Closed,
    /// It has come to its own end: the shell has ended, the file is there.
    Exited,
    GrantEnded,
    GrantRevoked,
    DeviceRevoked,
    /// The operator who opened it is no longer active.
    OperatorShutOut,
    /// The token with which it was opened was revoked, or has expired.
    TokenEnded,
    /// The device is in quarantine.
    Quarantined,
    /// The device's connection was lost.
    DeviceGone,
    /// The device would not, or could not.
    Refused,
    /// What happens could not be recorded any more.
    RecordingFailed,
    /// Its node has stopped, or died.
    NodeLost,
    /// No byte moved for too long, or nobody came for it.
    Idle,
}

impl EndReason {
    pub const ALL: [Self; 13] = [
        Self::Closed,
        Self::Exited,
        Self::GrantEnded,
        Self::GrantRevoked,
        Self::DeviceRevoked,
        Self::OperatorShutOut,
        Self::TokenEnded,
        Self::Quarantined,
        Self::DeviceGone,
        Self::Refused,
        Self::RecordingFailed,
        Self::NodeLost,
        Self::Idle,
    ];

    /// Name in the API, the database and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Exited => "exited",
            Self::GrantEnded => "grant_ended",
            Self::GrantRevoked => "grant_revoked",
            Self::DeviceRevoked => "device_revoked",
            Self::OperatorShutOut => "operator_shut_out",
            Self::TokenEnded => "token_ended",
            Self::Quarantined => "quarantined",
            Self::DeviceGone => "device_gone",
            Self::Refused => "refused",
            Self::RecordingFailed => "recording_failed",
            Self::NodeLost => "node_lost",
            Self::Idle => "idle",
        }
    }

    /// The reason of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// For people, on their terminal.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Closed => "the session was closed",
            Self::Exited => "the session is over",
            Self::GrantEnded => "access has ended: the grant's time is up",
            Self::GrantRevoked => "access has ended: the device's owner has revoked the grant",
            Self::DeviceRevoked => "access has ended: the device was revoked",
            Self::OperatorShutOut => "access has ended: the operator is no longer active",
            Self::TokenEnded => "access has ended: the operator's token was revoked, or has expired",
            Self::Quarantined => "access has ended: the device is in quarantine",
            Self::DeviceGone => "the connection to the device is lost",
            Self::Refused => "the device has refused",
            Self::RecordingFailed => "the session cannot be recorded any more, so it may not go on",
            Self::NodeLost => "the server stops",
            Self::Idle => "nothing has happened for too long",
        }
    }

    /// Whether somebody's access was over, so that every further byte would be one too many. Of these the delay is measured.
    #[must_use]
    pub const fn is_cut(self) -> bool {
        match self {
            Self::GrantEnded
            | Self::GrantRevoked
            | Self::DeviceRevoked
            | Self::OperatorShutOut
            | Self::TokenEnded
            | Self::Quarantined => true,
            Self::Closed
            | Self::Exited
            | Self::DeviceGone
            | Self::Refused
            | Self::RecordingFailed
            | Self::NodeLost
            | Self::Idle => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct SupportSession {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub device_id: Uuid,
    pub grant_id: Uuid,
    pub opened_by: Uuid,
    pub kind: Kind,
    /// `{}` for a terminal; `{"host", "port", "via"}` for a forward; `{"path", "direction"}` for a file, with `size` and `mode` if
    /// it is for the device.
    #[schema(value_type = Object)]
    pub target: Value,
    pub reason: String,
    pub state: SessionState,
    /// The node that serves it.
    pub node: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When its first stream was there.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// The end of its grant. Moves when that is extended.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// `closed`, `exited`, `grant_ended`, `grant_revoked`, `device_revoked`, `operator_shut_out`, `token_ended`, `quarantined`,
    /// `device_gone`, `refused`, `recording_failed`, `node_lost` or `idle`.
    pub end_reason: Option<String>,
    /// From the moment at which access was over to the close of the last connection. Null unless access was over. Written with
    /// `result`.
    pub cut_off_ms: Option<i32>,
    /// Written with `result`; zero until then.
    pub bytes_to_device: i64,
    /// Written with `result`; zero until then.
    pub bytes_from_device: i64,
    /// What came of it, by kind. `{}` while it goes on, and for a moment after its end: figures are written when everything of it
    /// is closed. Of a node that died, none come.
    #[schema(value_type = Object)]
    pub result: Value,
    /// Who else was there.
    pub guests: Vec<Guest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Guest {
    pub person_id: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub left_at: Option<OffsetDateTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_back_as_it_is_stored() {
        let local = json!({"port": 80});
        let forward = Target::read(Kind::Forward, local).unwrap();
        assert_eq!(forward.to_json(), json!({"host": "localhost", "port": 80, "via": "agent"}));
        let get = json!({"path": "/var/log/syslog", "direction": "from_device"});
        let put = json!({"path": "/tmp/x", "direction": "to_device", "size": 9});
        for (kind, value, scope) in [
            (Kind::Terminal, Value::Null, "shell:open"),
            (Kind::Forward, forward.to_json(), "tcp:open"),
            (Kind::File, get, "file:read"),
            (Kind::File, put, "file:write"),
        ] {
            let target = Target::read(kind, value).unwrap();
            assert_eq!((target.kind(), target.scope()), (kind, scope));
            assert_eq!(Target::read(kind, target.to_json()).unwrap().to_json(), target.to_json());
        }
    }

    #[test]
    fn what_fits_no_kind_is_refused() {
        for (kind, value) in [
            (Kind::Terminal, json!({"host": "a"})),
            (Kind::Terminal, json!([])),
            (Kind::Forward, Value::Null),
            (Kind::Forward, json!({"port": 0})),
            (Kind::Forward, json!({"port": 65_536})),
            (Kind::Forward, json!({"port": 80, "host": ""})),
            (Kind::Forward, json!({"port": 80, "host": "a b"})),
            (Kind::Forward, json!({"port": 80, "host": "a\n"})),
            (Kind::Forward, json!({"port": 80, "host": "printer", "via": "node"})),
            (Kind::Forward, json!({"port": 80, "via": "pigeon"})),
            (Kind::File, json!({"path": "relative", "direction": "from_device"})),
            (Kind::File, json!({"path": "/a\u{0}", "direction": "from_device"})),
            (Kind::File, json!({"path": "/a", "direction": "to_device"})),
            (Kind::File, json!({"path": "/a", "direction": "from_device", "size": 1})),
            (Kind::File, json!({"path": "/a", "direction": "to_device", "size": 1, "mode": 0o10000})),
        ] {
            assert!(Target::read(kind, value.clone()).is_err(), "{kind:?} {value}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for reason in EndReason::ALL {
            assert_eq!(EndReason::named(reason.name()), Some(reason));
            assert!(!reason.sentence().is_empty());
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
    }
}
