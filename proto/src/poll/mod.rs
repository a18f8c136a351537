//! Fallback polling: one request and one answer, when no link comes about. `poll.proto` beside this file is the protocol's reference.
//!
//! Both ends come here with bytes and take out messages of which every limit holds, and the other way round.
//!
//! ```
//! use cloudlink_proto::poll::message::{PollRequest, PollResponse};
//! use cloudlink_proto::poll;
//!
//! let request = PollRequest { boot_id: "3f0c".to_owned(), ..poll::request() };
//! let heard = poll::read_request(&poll::write_request(&request)?)?;
//! assert_eq!((heard.boot_id.as_str(), poll::version(&heard)?), ("3f0c", 1));
//!
//! let response = PollResponse { version: 1, next_poll_ms: 900_000, ..PollResponse::default() };
//! assert_eq!(poll::read_response(&poll::write_response(&response)?)?.next_poll_ms, 900_000);
//! # Ok::<(), poll::PollError>(())
//! ```

use std::ops::RangeInclusive;

use bytes::Bytes;
use prost::Message;

use self::message::{PollRequest, PollResponse, Running};
use crate::link::limit::{
    CAPABILITIES_MAX, Check, SERVICE_BYTES_MAX, TRANSPORT_FAILURES_MAX, VERSIONS_MAX, count, filled, length, text,
    within,
};
use crate::link::{FieldError, message as link};

/// The messages, generated from `poll.proto`.
#[expect(missing_docs, reason = "the documentation is in poll.proto")]
pub mod message {
    include!(concat!(env!("OUT_DIR"), "/cloudlink.poll.v1.rs"));
}

/// Where a device polls.
pub const POLL_PATH: &str = "/v1/poll";
/// What the bodies of request and response are.
pub const CONTENT_TYPE: &str = "application/x-protobuf";
/// The protocol version that `poll.proto` describes.
pub const VERSION: u32 = 1;
/// The largest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 65_536;
/// The largest response, in bytes: as many commands as there may be, each with the largest grant.
pub const RESPONSE_BYTES_MAX: usize = 524_288;
/// `PollRequest.running`.
pub const RUNNING_MAX: usize = 64;
/// `Running.state`.
pub const RUNNING_STATE_BYTES_MAX: usize = 64;
/// `PollRequest.statuses`, and so `PollResponse.receipts`.
pub const STATUSES_MAX: usize = 64;
/// `PollResponse.commands`.
pub const COMMANDS_MAX: usize = 8;
/// `PollResponse.cancels`.
pub const CANCELS_MAX: usize = 64;
/// `PollResponse.next_poll_ms`.
pub const NEXT_POLL_MS: RangeInclusive<u32> = 1000..=86_400_000;

/// Why something is no message of polling, or must not be sent as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    /// Not what protobuf writes for it.
    #[error("it is not protobuf, or of another message")]
    Malformed,
    /// More bytes than it may have.
    #[error("it is longer than {0} bytes")]
    TooLarge(usize),
    /// A field breaks its limit.
    #[error("{0}")]
    Field(FieldError),
    /// The other side speaks no version that this one does.
    #[error("there is no version in common")]
    NoCommonVersion,
}

/// A request that says nothing but which versions this side speaks.
#[must_use]
pub fn request() -> PollRequest {
    PollRequest { versions: vec![VERSION], ..PollRequest::default() }
}

/// Reads a request.
///
/// # Errors
/// When it is none, or breaks a limit.
pub fn read_request(bytes: &[u8]) -> Result<PollRequest, PollError> {
    read(bytes, REQUEST_BYTES_MAX)
}

/// Writes a request.
///
/// # Errors
/// When it breaks a limit.
pub fn write_request(request: &PollRequest) -> Result<Bytes, PollError> {
    write(request, REQUEST_BYTES_MAX)
}

/// Adds as many of the statuses, in their order, as there is room for. Gives whether that were all.
#[must_use]
pub fn add_statuses(request: &mut PollRequest, statuses: impl IntoIterator<Item = link::CommandStatus>) -> bool {
    for status in statuses {
        request.statuses.push(status);
        if request.statuses.len() > STATUSES_MAX || request.encoded_len() > REQUEST_BYTES_MAX {
            request.statuses.pop();
            return false;
        }
    }
    true
}

/// The version that both sides speak.
///
/// # Errors
/// When there is none.
pub fn version(request: &PollRequest) -> Result<u32, PollError> {
    if request.versions.contains(&VERSION) { Ok(VERSION) } else { Err(PollError::NoCommonVersion) }
}

/// Reads a response.
///
/// # Errors
/// When it is none, or breaks a limit.
pub fn read_response(bytes: &[u8]) -> Result<PollResponse, PollError> {
    read(bytes, RESPONSE_BYTES_MAX)
}

/// Writes a response.
///
/// # Errors
/// When it breaks a limit.
pub fn write_response(response: &PollResponse) -> Result<Bytes, PollError> {
    write(response, RESPONSE_BYTES_MAX)
}

fn read<M: Message + Default + Check>(bytes: &[u8], bytes_max: usize) -> Result<M, PollError> {
    if bytes.len() > bytes_max {
        return Err(PollError::TooLarge(bytes_max));
    }
    let message = M::decode(bytes).map_err(|_| PollError::Malformed)?;
    message.check().map_err(PollError::Field)?;
    Ok(message)
}

fn write<M: Message + Check>(message: &M, bytes_max: usize) -> Result<Bytes, PollError> {
    message.check().map_err(PollError::Field)?;
    if message.encoded_len() > bytes_max {
        return Err(PollError::TooLarge(bytes_max));
    }
    Ok(message.encode_to_vec().into())
}

impl Check for PollRequest {
    fn check(&self) -> Result<(), FieldError> {
        count("PollRequest.versions", self.versions.len(), VERSIONS_MAX)?;
        filled("PollRequest.boot_id", self.boot_id.as_bytes(), crate::link::STRING_BYTES_MAX)?;
        text("PollRequest.agent", &self.agent)?;
        text("PollRequest.os", &self.os)?;
        text("PollRequest.hostname", &self.hostname)?;
        count("PollRequest.capabilities", self.capabilities.len(), CAPABILITIES_MAX)?;
        for capability in &self.capabilities {
            filled("PollRequest.capabilities", capability.as_bytes(), crate::link::STRING_BYTES_MAX)?;
        }
        count("PollRequest.running", self.running.len(), RUNNING_MAX)?;
        count("PollRequest.statuses", self.statuses.len(), STATUSES_MAX)?;
        count("PollRequest.transport_failures", self.transport_failures.len(), TRANSPORT_FAILURES_MAX)?;
        self.transport_failures.iter().try_for_each(Check::check)?;
        self.metrics.iter().try_for_each(Check::check)?;
        self.busy_lock.iter().try_for_each(Check::check)?;
        self.certificate_request.iter().try_for_each(Check::check)?;
        self.configuration.iter().try_for_each(Check::check)?;
        self.running.iter().try_for_each(Check::check)?;
        self.statuses.iter().try_for_each(Check::check)
    }
}

impl Check for Running {
    fn check(&self) -> Result<(), FieldError> {
        filled("Running.name", self.name.as_bytes(), SERVICE_BYTES_MAX)?;
        length("Running.state", self.state.len(), RUNNING_STATE_BYTES_MAX)
    }
}

impl Check for PollResponse {
    fn check(&self) -> Result<(), FieldError> {
        text("PollResponse.device_id", &self.device_id)?;
        text("PollResponse.tenant_id", &self.tenant_id)?;
        within("PollResponse.next_poll_ms", NEXT_POLL_MS.contains(&self.next_poll_ms))?;
        count("PollResponse.receipts", self.receipts.len(), STATUSES_MAX)?;
        count("PollResponse.commands", self.commands.len(), COMMANDS_MAX)?;
        count("PollResponse.cancels", self.cancels.len(), CANCELS_MAX)?;
        self.certificate_issued.iter().try_for_each(Check::check)?;
        self.certificate_refused.iter().try_for_each(Check::check)?;
        self.receipts.iter().try_for_each(Check::check)?;
        self.commands.iter().try_for_each(Check::check)?;
        self.cancels.iter().try_for_each(Check::check)?;
        self.configuration.iter().try_for_each(Check::check)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::{
        CERTIFICATE_BYTES_MAX, CHAIN_MAX, CONFIGURATION_BYTES_MAX, CONFIGURATION_VERSION_MAX, DATA_JSON_BYTES_MAX,
        FieldFault, GRANT_STATEMENT_BYTES_MAX, REASON_BYTES_MAX,
    };

    const ID: [u8; 16] = [7; 16];

    fn polite() -> PollRequest {
        PollRequest { boot_id: "boot".to_owned(), ..request() }
    }

    fn status(data_bytes: usize) -> link::CommandStatus {
        link::CommandStatus {
            id: ID.to_vec().into(),
            state: link::command_status::State::Succeeded.into(),
            data_json: vec![b'1'; data_bytes].into(),
            ..link::CommandStatus::default()
        }
    }

    fn command() -> link::Command {
        link::Command {
            id: ID.to_vec().into(),
            grant_id: ID.to_vec().into(),
            kind: Some(link::command::Kind::CollectMetrics(link::CollectMetrics {})),
            ..link::Command::default()
        }
    }

    fn answer() -> PollResponse {
        PollResponse { version: VERSION, next_poll_ms: 900_000, ..PollResponse::default() }
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let metrics = link::MetricsReport { cpu_percent: Some(12.5), ..link::MetricsReport::default() };
        let running = Running { name: "nginx".to_owned(), state: "active".to_owned(), kind: 1 };
        let mut request = PollRequest { metrics: Some(metrics), running: vec![running], ..polite() };
        assert!(add_statuses(&mut request, [status(3)]));
        assert_eq!(read_request(&write_request(&request).unwrap()).unwrap(), request);

        let receipts = vec![link::CommandReceipt { id: ID.to_vec().into() }];
        let response = PollResponse { commands: vec![command()], receipts, more: true, ..answer() };
        assert_eq!(read_response(&write_response(&response).unwrap()).unwrap(), response);
    }

    #[test]
    fn every_limit_is_kept_by_both_sides() {
        let running = |name: &str, state: &str| Running { name: name.to_owned(), state: state.to_owned(), kind: 0 };
        let failure = |code: &str| link::TransportFailure {
            code: code.to_owned(),
            count: 1,
            ..link::TransportFailure::default()
        };
        let too_hot = link::MetricsReport { cpu_percent: Some(101.0), ..link::MetricsReport::default() };
        for (request, field) in [
            (PollRequest { boot_id: String::new(), ..polite() }, "PollRequest.boot_id"),
            (PollRequest { versions: vec![1; VERSIONS_MAX + 1], ..polite() }, "PollRequest.versions"),
            (PollRequest { hostname: "x".repeat(257), ..polite() }, "PollRequest.hostname"),
            (PollRequest { capabilities: vec![String::new()], ..polite() }, "PollRequest.capabilities"),
            (PollRequest { running: vec![running("a", ""); RUNNING_MAX + 1], ..polite() }, "PollRequest.running"),
            (PollRequest { running: vec![running("", "active")], ..polite() }, "Running.name"),
            (PollRequest { running: vec![running("a", &"x".repeat(65))], ..polite() }, "Running.state"),
            (PollRequest { statuses: vec![status(0); STATUSES_MAX + 1], ..polite() }, "PollRequest.statuses"),
            (PollRequest { statuses: vec![status(DATA_JSON_BYTES_MAX + 1)], ..polite() }, "CommandStatus.data_json"),
            (PollRequest { metrics: Some(too_hot), ..polite() }, "MetricsReport.cpu_percent"),
            (
                PollRequest { transport_failures: vec![failure("a"); TRANSPORT_FAILURES_MAX + 1], ..polite() },
                "PollRequest.transport_failures",
            ),
            (PollRequest { transport_failures: vec![failure("no words")], ..polite() }, "TransportFailure.code"),
            (
                PollRequest { certificate_request: Some(link::CertificateRequest::default()), ..polite() },
                "CertificateRequest.csr_der",
            ),
        ] {
            let fault = |result: Result<PollRequest, PollError>| match result {
                Err(PollError::Field(error)) => error.field,
                other => panic!("{field}: {other:?}"),
            };
            assert_eq!(fault(read_request(&request.encode_to_vec())), field);
            assert_eq!(fault(write_request(&request).map(|_| PollRequest::default())), field);
        }
        for (response, field) in [
            (PollResponse { next_poll_ms: 999, ..answer() }, "PollResponse.next_poll_ms"),
            (PollResponse { commands: vec![command(); COMMANDS_MAX + 1], ..answer() }, "PollResponse.commands"),
            (PollResponse { receipts: vec![link::CommandReceipt::default()], ..answer() }, "CommandReceipt.id"),
            (
                PollResponse { certificate_issued: Some(link::CertificateIssued::default()), ..answer() },
                "CertificateIssued.chain_der",
            ),
            (PollResponse { configuration: Some(link::Configuration::default()), ..answer() }, "Configuration.version"),
        ] {
            let read = read_response(&response.encode_to_vec());
            assert!(
                matches!(read, Err(PollError::Field(FieldError { field: named, .. })) if named == field),
                "{read:?}"
            );
            assert!(write_response(&response).is_err());
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_not_read() {
        assert_eq!(read_request(&vec![0; REQUEST_BYTES_MAX + 1]), Err(PollError::TooLarge(REQUEST_BYTES_MAX)));
        assert_eq!(read_response(&vec![0; RESPONSE_BYTES_MAX + 1]), Err(PollError::TooLarge(RESPONSE_BYTES_MAX)));
    }

    #[test]
    fn the_largest_response_that_may_be_made_may_be_sent() {
        let largest = link::Command {
            reason: "x".repeat(REASON_BYTES_MAX),
            requested_by: "x".repeat(256),
            trace_parent: "x".repeat(256),
            grant_statement: "x".repeat(GRANT_STATEMENT_BYTES_MAX),
            start_within_ms: u64::MAX,
            ..command()
        };
        let cancel = link::CommandCancel { id: ID.to_vec().into(), reason: "x".repeat(256) };
        let response = PollResponse {
            device_id: "x".repeat(256),
            tenant_id: "x".repeat(256),
            receipts: vec![link::CommandReceipt { id: ID.to_vec().into() }; STATUSES_MAX],
            commands: vec![largest; COMMANDS_MAX],
            cancels: vec![cancel; CANCELS_MAX],
            certificate_issued: Some(link::CertificateIssued {
                chain_der: vec![vec![1; CERTIFICATE_BYTES_MAX].into(); CHAIN_MAX],
            }),
            configuration: Some(link::Configuration {
                version: CONFIGURATION_VERSION_MAX,
                document_json: vec![b' '; CONFIGURATION_BYTES_MAX].into(),
                sha256: vec![0; 32].into(),
            }),
            ..answer()
        };
        write_response(&response).unwrap();
    }

    #[test]
    fn statuses_are_added_as_far_as_there_is_room() {
        let mut request = polite();
        let long = DATA_JSON_BYTES_MAX;
        assert!(!add_statuses(&mut request, [status(long), status(10), status(long), status(10)]));
        assert_eq!(request.statuses.iter().map(|status| status.data_json.len()).collect::<Vec<_>>(), [long, 10]);
        write_request(&request).unwrap();
        let mut request = polite();
        assert!(!add_statuses(&mut request, vec![status(0); STATUSES_MAX + 1]));
        assert_eq!(request.statuses.len(), STATUSES_MAX);
    }

    #[test]
    fn a_request_of_later_is_read_and_answered_if_it_speaks_this_version_as_well() {
        // Field 100, of a wire type that is skipped by its length.
        let mut bytes = PollRequest { versions: vec![2, 1], ..polite() }.encode_to_vec();
        bytes.extend([0xa2, 0x06, 0x03, b'n', b'e', b'w']);
        assert_eq!(version(&read_request(&bytes).unwrap()), Ok(1));
        let newer = PollRequest { versions: vec![2], ..polite() };
        assert_eq!(version(&newer), Err(PollError::NoCommonVersion));
        let unknown = Running { name: "a".to_owned(), state: String::new(), kind: 77 };
        let request = PollRequest { running: vec![unknown], ..polite() };
        assert!(read_request(&request.encode_to_vec()).is_ok());
    }

    #[test]
    fn a_status_of_no_state_is_none() {
        let nothing = link::CommandStatus { state: 0, ..status(0) };
        let request = PollRequest { statuses: vec![nothing], ..polite() };
        let fault = FieldError { field: "CommandStatus.state", fault: FieldFault::OutOfRange };
        assert_eq!(read_request(&request.encode_to_vec()), Err(PollError::Field(fault)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(request) = read_request(&bytes) {
                prop_assert!(write_request(&request).is_ok());
            }
            if let Ok(response) = read_response(&bytes) {
                prop_assert!(write_response(&response).is_ok());
            }
        }
    }
}
