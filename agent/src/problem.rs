//! What the server says when it refuses an HTTP request: problem details (RFC 9457), and when to come back.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

/// The largest answer that is looked at, in bytes.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// How much of the server's words is shown.
const SHOWN_CHARS_MAX: usize = 300;
/// The longest wait that a server may ask for. A device that stays away for longer would be as good as lost.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// The last part of the problem's type: `device_revoked`.
    pub kind: Option<String>,
    detail: Option<String>,
    request_id: Option<String>,
    pub retry_after: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    r#type: Option<String>,
    title: Option<String>,
    detail: Option<String>,
    request_id: Option<String>,
}

impl Problem {
    /// Reads an answer; what is not problem details is only its status.
    #[must_use]
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let details: Details = serde_json::from_slice(&body[..body.len().min(BODY_BYTES_MAX)]).unwrap_or_default();
        let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Self {
            status,
            kind: details.r#type.map(|kind| kind.rsplit(':').next().unwrap_or_default().to_owned()),
            detail: details.detail.or(details.title),
            request_id: details.request_id,
            retry_after: retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX)),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {}", shown(detail))?;
        }
        if let Some(kind) = &self.kind {
            write!(f, " [{}]", shown(kind))?;
        }
        if let Some(request_id) = &self.request_id {
            write!(f, " (request {})", shown(request_id))?;
        }
        Ok(())
    }
}

/// Somebody else's words, safe to be logged: on one line, and not too many of them.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(|c| if c.is_control() { c.escape_debug().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_details_read_as_a_sentence() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        let body = br#"{"type":"urn:cloudlink:problem:device_revoked","title":"T","detail":"it is\nrevoked","request_id":"r1"}"#;
        let problem = Problem::read(StatusCode::FORBIDDEN, &headers, body);
        assert_eq!(
            problem.to_string(),
            r"the server answered 403 Forbidden: it is\nrevoked [device_revoked] (request r1)"
        );
        assert_eq!(
            (problem.kind.as_deref(), problem.retry_after),
            (Some("device_revoked"), Some(Duration::from_secs(7)))
        );
    }

    #[test]
    fn anything_else_is_only_a_status() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "99999999999".parse().unwrap());
        for body in [&b""[..], b"<html>", b"{\"type\":1}", b"\xff", b"[]"] {
            let problem = Problem::read(StatusCode::BAD_GATEWAY, &headers, body);
            assert_eq!(problem.to_string(), "the server answered 502 Bad Gateway");
            assert_eq!(problem.retry_after, Some(RETRY_AFTER_MAX));
        }
    }
}
