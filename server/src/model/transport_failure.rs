//! Ways to the server that did not work, as devices tell it.

use cloudlink_proto::link::message::transport_failure::{Stage, Transport};
use cloudlink_proto::link::{is_failure_code, message};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// A failure that is told to be older was met by another clock.
const AGE_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// What this version has no word for.
const CODE_OTHER: &str = "other";

/// As a device tells it, in words of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewTransportFailure {
    pub transport: &'static str,
    pub stage: &'static str,
    pub code: String,
    pub count: u32,
    /// By the device's clock, which may be wrong by years, but not between the two.
    pub ms_ago: u64,
}

/// A kind of failure of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TransportFailure {
    /// `websocket`, `openvpn` or `polling`.
    pub transport: String,
    /// How far it got: `name`, `proxy`, `tcp`, `tls`, `http`, `welcome`, `tunnel`, `link` or `device`.
    pub stage: String,
    /// What went wrong there, as the device calls it; `other`: it calls it by a name that is not known here.
    pub code: String,
    pub count: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
}

/// A kind of failure, over all devices with the same label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TransportReportItem {
    /// The label's value. Null: of devices without it, or of all where no label was asked for.
    pub value: Option<String>,
    pub transport: String,
    pub stage: String,
    pub code: String,
    /// How many devices have met it.
    pub devices: i64,
    pub count: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
}

/// Which transports failed and how, summed by the values of a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TransportReport {
    /// The label's key, if one was asked for.
    pub by: Option<String>,
    pub days: u32,
    /// What most devices have met comes first.
    pub items: Vec<TransportReportItem>,
    /// There is more than is shown.
    pub is_cut: bool,
}

/// What a device tells by its clock, without what this version has no word for. The limits of the protocol hold.
#[must_use]
pub fn told(failures: &[message::TransportFailure], clock_unix_ms: u64) -> Vec<NewTransportFailure> {
    let mut told: Vec<NewTransportFailure> = Vec::new();
    for failure in failures.iter().filter_map(|failure| read(failure, clock_unix_ms)) {
        let is_same = |known: &&mut NewTransportFailure| {
            (known.transport, known.stage, &known.code) == (failure.transport, failure.stage, &failure.code)
        };
        match told.iter_mut().find(is_same) {
            Some(known) => {
                known.count = known.count.saturating_add(failure.count);
                known.ms_ago = known.ms_ago.min(failure.ms_ago);
            }
            None => told.push(failure),
        }
    }
    told
}

fn read(failure: &message::TransportFailure, clock_unix_ms: u64) -> Option<NewTransportFailure> {
    Some(NewTransportFailure {
        transport: transport_name(Transport::try_from(failure.transport).ok()?)?,
        stage: stage_name(Stage::try_from(failure.stage).ok()?)?,
        // A device that invents codes fills neither a table nor a report.
        code: if is_failure_code(&failure.code) { failure.code.clone() } else { CODE_OTHER.to_owned() },
        count: failure.count,
        ms_ago: clock_unix_ms.saturating_sub(failure.last_unix_ms).min(AGE_MS_MAX),
    })
}

fn transport_name(transport: Transport) -> Option<&'static str> {
    match transport {
        Transport::Unspecified => None,
        Transport::Websocket => Some("websocket"),
        Transport::Openvpn => Some("openvpn"),
        Transport::Polling => Some("polling"),
    }
}

fn stage_name(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Unspecified => None,
        Stage::Name => Some("name"),
        Stage::Proxy => Some("proxy"),
        Stage::Tcp => Some("tcp"),
        Stage::Tls => Some("tls"),
        Stage::Http => Some("http"),
        Stage::Welcome => Some("welcome"),
        Stage::Tunnel => Some("tunnel"),
        Stage::Link => Some("link"),
        Stage::Device => Some("device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(transport: i32, stage: i32, last_unix_ms: u64) -> message::TransportFailure {
        message::TransportFailure { transport, stage, code: "timed_out".to_owned(), count: 3, last_unix_ms }
    }

    #[test]
    fn what_is_told_is_put_into_words_of_ours_and_the_rest_is_left_out() {
        let transport_failures =
            vec![failure(1, 4, 900), failure(0, 4, 900), failure(1, 0, 900), failure(99, 4, 0), failure(1, -1, 0)];
        let expected = NewTransportFailure {
            transport: "websocket",
            stage: "tls",
            code: "timed_out".to_owned(),
            count: 3,
            ms_ago: 100,
        };
        assert_eq!(told(&transport_failures, 1000), [expected]);
    }

    #[test]
    fn codes_that_are_not_known_are_one() {
        let called = |code: &str, last_unix_ms| message::TransportFailure {
            code: code.to_owned(),
            ..failure(1, 4, last_unix_ms)
        };
        let told = told(&[called("invented_1", 400), called("invented_2", 900), called("status_403", 400)], 1000);
        let told: Vec<_> = told.iter().map(|told| (told.code.as_str(), told.count, told.ms_ago)).collect();
        assert_eq!(told, [("other", 6, 100), ("status_403", 3, 600)]);
    }

    #[test]
    fn a_kind_counts_once_and_its_age_is_bounded_whatever_the_clock() {
        let transport_failures = vec![failure(2, 7, 0), failure(2, 7, 5), failure(3, 2, u64::MAX)];
        let told: Vec<_> =
            told(&transport_failures, u64::MAX).iter().map(|told| (told.transport, told.count, told.ms_ago)).collect();
        assert_eq!(told, [("openvpn", 6, AGE_MS_MAX), ("polling", 3, 0)]);
    }
}
