//! NDT7: how fast the way between a device and a node is, measured by one WebSocket that is as full as it gets, one a direction.
//!
//! The protocol is Measurement Lab's, so that its public clients are served as well: see `docs/LINK-TEST.md`. Whoever sends sends
//! binary messages without meaning; either side tells in text, some times a second, what it has measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The subprotocol of the WebSocket.
pub const SUBPROTOCOL: &str = "net.measurementlab.ndt.v7";
/// Where the server sends.
pub const DOWNLOAD_PATH: &str = "/ndt/v7/download";
/// Where the client sends.
pub const UPLOAD_PATH: &str = "/ndt/v7/upload";
/// The longest that is sent in one direction, in seconds.
pub const SECONDS_MAX: u32 = 10;
/// How long after that whoever receives waits for the end.
pub const GRACE: Duration = Duration::from_secs(3);
/// The first binary messages.
pub const MESSAGE_BYTES_FIRST: usize = 8 * 1024;
/// The largest that is sent.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// The largest that is taken: clients in browsers send messages of that size.
pub const TAKEN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest that is taken by whoever sends: the protocol asks for so much.
pub const TAKEN_BY_SENDER_BYTES_MAX: usize = 128 * 1024;
/// Messages double when so many of their size were sent: each takes no more than that share of the time.
const MESSAGES_A_SIZE: u64 = 16;
/// How often it is told what was measured.
pub const MEASURE_EVERY: Duration = Duration::from_millis(250);
/// The longest query of a request, in bytes.
pub const QUERY_BYTES_MAX: usize = 4096;

/// Which way the bytes go, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the server.
    Download,
    /// To the server.
    Upload,
}

impl Direction {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }

    /// Where it is asked for.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Download => DOWNLOAD_PATH,
            Self::Upload => UPLOAD_PATH,
        }
    }
}

/// How large the next message is, after one of `size` when `sent` bytes were sent.
#[must_use]
pub fn next_size(size: usize, sent: u64) -> usize {
    let is_due = u64::try_from(size).is_ok_and(|size| sent >= size.saturating_mul(MESSAGES_A_SIZE));
    if is_due && size < MESSAGE_BYTES_MAX { size * 2 } else { size }
}

/// How long so many bytes take at least at so many bits a second.
#[must_use]
pub fn least_time(bytes: u64, bits_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(bits_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Bits a second.
#[must_use]
pub fn rate(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 8 * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// What one side has measured so far. Times are microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub struct Measurement {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_info: Option<AppInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_info: Option<ConnectionInfo>,
    /// `client` or `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Direction>,
    #[serde(default, rename = "TCPInfo", skip_serializing_if = "Option::is_none")]
    pub tcp_info: Option<TcpInfo>,
}

/// Of what the program has sent or received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub struct AppInfo {
    pub num_bytes: u64,
    pub elapsed_time: u64,
}

/// Which connection it is. In the server's first measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are the protocol's")]
pub struct ConnectionInfo {
    /// Address and port.
    pub client: String,
    pub server: String,
    #[serde(rename = "UUID")]
    pub uuid: String,
}

/// Of what the kernel has sent or received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names are the protocol's, and the kernel's")]
pub struct TcpInfo {
    pub busy_time: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub elapsed_time: u64,
    #[serde(rename = "MinRTT")]
    pub min_rtt: u32,
    #[serde(rename = "RTT")]
    pub rtt: u32,
    #[serde(rename = "RTTVar")]
    pub rtt_var: u32,
    #[serde(rename = "RWndLimited")]
    pub rwnd_limited: u64,
    pub snd_buf_limited: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_grow_with_what_was_sent_up_to_the_largest() {
        let (mut size, mut sent) = (MESSAGE_BYTES_FIRST, 0);
        let mut sizes = vec![size];
        while sent < 200_000_000 {
            sent += size as u64;
            let next = next_size(size, sent);
            if next != size {
                assert_eq!((next, sent), (size * 2, 16 * size as u64));
                sizes.push(next);
            }
            size = next;
        }
        assert_eq!((sizes.len(), size), (8, MESSAGE_BYTES_MAX));
        assert_eq!(next_size(MESSAGE_BYTES_MAX, u64::MAX), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn time_and_rate_are_each_others_inverse_and_nothing_overflows() {
        assert_eq!(least_time(1_250_000, 10_000_000), Duration::from_secs(1));
        assert_eq!(rate(1_250_000, Duration::from_secs(1)), 10_000_000);
        assert_eq!(least_time(u64::MAX, 0), Duration::from_nanos(u64::MAX));
        assert_eq!((rate(u64::MAX, Duration::ZERO), rate(0, Duration::ZERO)), (u64::MAX, 0));
    }

    #[test]
    fn measurements_have_the_names_of_the_protocol() {
        let measurement = Measurement {
            app_info: Some(AppInfo { num_bytes: 7, elapsed_time: 9 }),
            connection_info: Some(ConnectionInfo { uuid: "u".to_owned(), ..ConnectionInfo::default() }),
            origin: Some("server".to_owned()),
            test: Some(Direction::Download),
            tcp_info: Some(TcpInfo { min_rtt: 3, ..TcpInfo::default() }),
        };
        let json = serde_json::to_value(&measurement).unwrap();
        assert_eq!((&json["AppInfo"]["NumBytes"], &json["Test"]), (&7.into(), &"download".into()));
        assert_eq!((&json["TCPInfo"]["MinRTT"], &json["ConnectionInfo"]["UUID"]), (&3.into(), &"u".into()));
        assert!(json["TCPInfo"]["RWndLimited"].is_u64() && json["TCPInfo"]["SndBufLimited"].is_u64());
        assert_eq!(serde_json::from_value::<Measurement>(json).unwrap(), measurement);
        // Others tell more, or less.
        let other =
            r#"{"AppInfo":{"ElapsedTime":1,"NumBytes":2},"BBRInfo":{"BW":5},"TCPInfo":{"RTT":4,"SndMSS":1448}}"#;
        assert_eq!(serde_json::from_str::<Measurement>(other).unwrap().tcp_info.unwrap().rtt, 4);
    }
}
