use std::path::PathBuf;

use http::Uri;

use super::database::read_secret;
use super::section::{Given, section};
use super::value::Secret;

/// Where collectors take traces, unless somebody says otherwise.
const TRACES_PATH: &str = "/v1/traces";

section! {
    /// Traces of requests and commands, across nodes, for a collector of OpenTelemetry. Without one nothing is recorded.
    pub struct Trace in "trace" {
        /// The collector's address for OTLP over HTTP, as `http://collector:4318`. Spans go to `/v1/traces` there, or to the
        /// path that is given.
        collector: Option<Collector> = None;
        /// What the header `Authorization` says to the collector.
        authorization: Option<Secret> = None;
        /// A file that holds `authorization`, instead of `authorization`.
        authorization_file: Option<PathBuf> = None;
        /// The certificates, PEM, that the collector's certificate must go back to. By default those that the system trusts.
        ca_file: Option<PathBuf> = None;
        /// Of a hundred requests that bring no trace of their own, how many begin one. A request that brings one is in it if
        /// its sender keeps it.
        sample_percent: u32 = 100, in 0..=100;
    }
}

impl Trace {
    /// Replaces `authorization_file` by what it holds.
    pub(in crate::config) fn read_secrets(&mut self, given: &mut Given<'_>) {
        let keys = ("authorization", "authorization_file");
        read_secret(&mut self.authorization, self.authorization_file.as_deref(), "trace", keys, given);
    }
}

/// Where spans are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

/// Not where spans could be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address of HTTP has a scheme and a host, and no password")]
pub struct CollectorError;

impl Collector {
    /// The whole address.
    #[must_use]
    pub(crate) fn traces(&self) -> String {
        match self.0.path() {
            "" | "/" => format!("{}{TRACES_PATH}", self.to_string().trim_end_matches('/')),
            _ => self.to_string(),
        }
    }
}

impl std::fmt::Display for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Collector {
    type Err = CollectorError;

    fn from_str(text: &str) -> Result<Self, CollectorError> {
        let uri: Uri = text.parse().map_err(|_| CollectorError)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        // A password would be shown; `authorization` is not.
        let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if is_http && is_plain && uri.query().is_none() { Ok(Self(uri)) } else { Err(CollectorError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_where_collectors_take_them_unless_told_otherwise() {
        for (given, traces) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://[2001:db8::1]:4318/", "https://[2001:db8::1]:4318/v1/traces"),
            ("https://example.com/otlp/v1/traces", "https://example.com/otlp/v1/traces"),
        ] {
            assert_eq!(given.parse::<Collector>().unwrap().traces(), traces);
        }
    }

    #[test]
    fn what_is_no_address_of_a_collector_is_refused() {
        for none in ["", "collector:4318", "grpc://collector", "http://", "/v1/traces", "http://a:b@c", "http://c/?q"] {
            assert!(none.parse::<Collector>().is_err(), "{none}");
        }
    }
}
