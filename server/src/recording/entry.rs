//! What is written of sessions besides a terminal's output. In a recording of a terminal it becomes a marker; the recordings of
//! forwards and files (`events-v1`) are nothing else: a JSON object, then one a line.

use std::time::Duration;

use cloudlink_proto::ids::SupportSessionId;
use serde::Serialize;
use serde_json::Value;

use super::asciicast::write_json;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Entry {
    /// A connection of a forward: to `host:port`.
    ConnectionOpened {
        connection: u32,
        host: String,
        port: u16,
    },
    /// Its end, with what it carried.
    ConnectionClosed {
        connection: u32,
        bytes_to_device: u64,
        bytes_from_device: u64,
        /// SHA-256, in hex.
        sha256_to_device: String,
        sha256_from_device: String,
    },
    /// The file whose bytes follow. `direction`: `to_device` or `from_device`.
    FileBegun {
        direction: String,
        path: String,
        size: u64,
        mode: u32,
    },
    /// All of it has arrived.
    FileDone {
        bytes: u64,
        /// SHA-256, in hex.
        sha256: String,
    },
    /// The device could not do what was asked for.
    Failed {
        code: String,
        message: String,
    },
    /// `mode`: `operate` or `watch`.
    Joined {
        name: String,
        mode: String,
    },
    Left {
        name: String,
    },
    /// Both sides were told that access ends soon; with a reason, that the session does.
    Warned {
        seconds_left: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A terminal's shell has ended.
    Exited {
        status: Option<u8>,
        signal: Option<String>,
    },
    /// The session's end. `reason` as in the API.
    Closed {
        reason: String,
    },
}

impl Entry {
    /// As a marker in a recording of a terminal.
    pub(super) fn label(&self) -> String {
        match self {
            Self::ConnectionOpened { connection, host, port } => format!("connection {connection} to {host}:{port}"),
            Self::ConnectionClosed { connection, .. } => format!("connection {connection} closed"),
            Self::FileBegun { direction, path, .. } => format!("file {direction}: {path}"),
            Self::FileDone { bytes, .. } => format!("file done: {bytes} bytes"),
            Self::Failed { code, message } => format!("failed: {code}: {message}"),
            Self::Joined { name, mode } => format!("joined: {name} ({mode})"),
            Self::Left { name } => format!("left: {name}"),
            Self::Warned { seconds_left, reason: None } => format!("access ends in {seconds_left} s"),
            Self::Warned { seconds_left, reason: Some(reason) } => format!("ends in {seconds_left} s: {reason}"),
            Self::Exited { status, signal } => match (status, signal) {
                (_, Some(signal)) => format!("exited: {signal}"),
                (Some(status), None) => format!("exited: {status}"),
                (None, None) => "exited".to_owned(),
            },
            Self::Closed { reason } => format!("closed: {reason}"),
        }
    }
}

#[derive(Serialize)]
struct Header<'a> {
    format: &'static str,
    version: u8,
    timestamp: i64,
    session_id: uuid::Uuid,
    kind: &'a str,
    target: &'a Value,
}

/// The first line of `events-v1`.
pub(super) fn write_header(session: SupportSessionId, kind: &str, target: &Value, timestamp: i64, into: &mut Vec<u8>) {
    let header =
        Header { format: "cloudlink.events", version: 1, timestamp, session_id: session.as_uuid(), kind, target };
    write_json(&header, into);
    into.push(b'\n');
}

/// One of the others: the entry, and the seconds since the beginning.
pub(super) fn write_entry(elapsed: Duration, entry: &Entry, into: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Line<'a> {
        at: f64,
        #[serde(flatten)]
        entry: &'a Entry,
    }
    // Whole microseconds, which a double holds exactly enough for centuries.
    let at = (elapsed.as_secs_f64() * 1e6).round() / 1e6;
    write_json(&Line { at, entry }, into);
    into.push(b'\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn is_one_object_a_line() {
        let mut text = Vec::new();
        let target = json!({"host": "localhost", "port": 80, "via": "agent"});
        write_header(SupportSessionId::from_uuid(Uuid::nil()), "forward", &target, 1_800_000_000, &mut text);
        let entry = Entry::ConnectionOpened { connection: 1, host: "localhost".into(), port: 80 };
        write_entry(Duration::from_micros(1_500_001), &entry, &mut text);
        let lines: Vec<Value> =
            std::str::from_utf8(&text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines,
            [
                json!({"format": "cloudlink.events", "version": 1, "timestamp": 1_800_000_000, "session_id": Uuid::nil(),
                       "kind": "forward", "target": target}),
                json!({"at": 1.500_001, "event": "connection_opened", "connection": 1, "host": "localhost", "port": 80}),
            ]
        );
    }
}
