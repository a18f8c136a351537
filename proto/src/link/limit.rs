//! Every limit of `link.proto`, and the checks of both directions.

use uuid::Uuid;

use super::image::{REPOSITORY_BYTES_MAX, SEPARATOR, image_repository, is_container_name};
use super::message::{
    BusyLock, CertificateIssued, CertificateRefused, CertificateRequest, Command, CommandCancel, CommandReceipt,
    CommandStatus, Configuration, ConfigurationStatus, ContainerUpdate, Goodbye, Hello, MetricsReport, Reconnect,
    StreamRefused, StreamRequest, TransportFailure, Update, Welcome, command, command_status, stream_request,
};

/// A string without a limit of its own.
pub const STRING_BYTES_MAX: usize = 256;
/// `Hello.versions`.
pub const VERSIONS_MAX: usize = 16;
/// `Hello.capabilities`.
pub const CAPABILITIES_MAX: usize = 64;
/// `Hello.transport_failures`.
pub const TRANSPORT_FAILURES_MAX: usize = 32;
/// `TransportFailure.code`.
pub const FAILURE_CODE_BYTES_MAX: usize = 32;
/// `Command.reason`.
pub const REASON_BYTES_MAX: usize = 1024;
/// `RestartService.service`.
pub const SERVICE_BYTES_MAX: usize = 128;
/// `Artifact.url`.
pub const URL_BYTES_MAX: usize = 2048;
/// `Artifact.sha256`, exactly.
pub const SHA256_BYTES: usize = 32;
/// `Update.version`.
pub const VERSION_BYTES_MAX: usize = 128;
/// `ContainerUpdate.container`.
pub const CONTAINER_BYTES_MAX: usize = 128;
/// `ContainerUpdate.image`.
pub const IMAGE_BYTES_MAX: usize = REPOSITORY_BYTES_MAX + SEPARATOR.len() + 2 * SHA256_BYTES;
/// `CommandStatus.message`.
pub const STATUS_MESSAGE_BYTES_MAX: usize = 1024;
/// `CommandStatus.data_json`.
pub const DATA_JSON_BYTES_MAX: usize = 32_768;
/// `CommandStatus.percent`.
pub const PERCENT_MAX: u32 = 100;
/// `CertificateRequest.csr_der`.
pub const CSR_BYTES_MAX: usize = 4096;
/// `CertificateIssued.chain_der`, certificates.
pub const CHAIN_MAX: usize = 8;
/// `CertificateIssued.chain_der`, bytes of one certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 8192;
/// `Welcome.ping_interval_ms`, at least.
pub const PING_INTERVAL_MS_MIN: u32 = 100;
/// `Welcome.ping_interval_ms`, at most.
pub const PING_INTERVAL_MS_MAX: u32 = 600_000;
/// `Welcome.max_missed_pings`, at most; at least 1.
pub const MISSED_PINGS_MAX: u32 = 100;
/// `Command.grant_statement` and `StreamRequest.grant_statement`.
pub const GRANT_STATEMENT_BYTES_MAX: usize = 32_768;
/// `StreamRequest.token`, exactly.
pub const STREAM_TOKEN_BYTES: usize = 32;
/// `Terminal.columns` and `Terminal.rows`, at most; at least 1.
pub const TERMINAL_CELLS_MAX: u32 = 1000;
/// `Terminal.term`.
pub const TERM_BYTES_MAX: usize = 64;
/// `Forward.host`.
pub const HOST_BYTES_MAX: usize = 253;
/// `BusyLock.left_ms`, at most.
pub const BUSY_LEFT_MS_MAX: u64 = 8 * 24 * 3600 * 1000;
/// `Configuration.version`, and those of `ConfigurationStatus`: what every JSON parser can tell apart.
pub const CONFIGURATION_VERSION_MAX: u64 = (1 << 53) - 1;
/// `Configuration.document_json`: with all around it, there is room for it in a message.
pub const CONFIGURATION_BYTES_MAX: usize = 61_440;
/// `ConfigurationStatus.error`.
pub const CONFIGURATION_ERROR_BYTES_MAX: usize = 1024;
/// `FilePut.path` and `FileGet.path`.
pub const PATH_BYTES_MAX: usize = 4096;

/// A field that breaks its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {fault}")]
pub struct FieldError {
    /// As `link.proto` names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: FieldFault,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldFault {
    /// More than this many bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// More than this many entries.
    #[error("has more than {0} entries")]
    TooMany(usize),
    /// It must say something.
    #[error("is empty")]
    Empty,
    /// It must be an identifier.
    #[error("is not an identifier")]
    NotAnId,
    /// Outside of what it may be.
    #[error("is out of range")]
    OutOfRange,
}

/// A message that knows its limits.
pub(crate) trait Check {
    fn check(&self) -> Result<(), FieldError>;
}

impl Check for Hello {
    fn check(&self) -> Result<(), FieldError> {
        count("Hello.versions", self.versions.len(), VERSIONS_MAX)?;
        count("Hello.capabilities", self.capabilities.len(), CAPABILITIES_MAX)?;
        for capability in &self.capabilities {
            filled("Hello.capabilities", capability.as_bytes(), STRING_BYTES_MAX)?;
        }
        filled("Hello.boot_id", self.boot_id.as_bytes(), STRING_BYTES_MAX)?;
        text("Hello.agent", &self.agent)?;
        text("Hello.os", &self.os)?;
        text("Hello.hostname", &self.hostname)?;
        count("Hello.transport_failures", self.transport_failures.len(), TRANSPORT_FAILURES_MAX)?;
        self.transport_failures.iter().try_for_each(Check::check)?;
        self.busy_lock.iter().try_for_each(Check::check)?;
        self.configuration.iter().try_for_each(Check::check)
    }
}

impl Check for Configuration {
    fn check(&self) -> Result<(), FieldError> {
        within("Configuration.version", (1..=CONFIGURATION_VERSION_MAX).contains(&self.version))?;
        filled("Configuration.document_json", &self.document_json, CONFIGURATION_BYTES_MAX)?;
        within("Configuration.sha256", self.sha256.len() == SHA256_BYTES)
    }
}

impl Check for ConfigurationStatus {
    fn check(&self) -> Result<(), FieldError> {
        within("ConfigurationStatus.held_version", self.held_version <= CONFIGURATION_VERSION_MAX)?;
        let hash_bytes = if self.held_version == 0 { 0 } else { SHA256_BYTES };
        within("ConfigurationStatus.held_sha256", self.held_sha256.len() == hash_bytes)?;
        within("ConfigurationStatus.reported_version", self.reported_version <= CONFIGURATION_VERSION_MAX)?;
        within(
            "ConfigurationStatus.applied_version",
            self.applied_version <= self.held_version.min(self.reported_version),
        )?;
        let is_applied = self.applied_version == self.reported_version;
        within("ConfigurationStatus.error", self.error.is_empty() == is_applied)?;
        length("ConfigurationStatus.error", self.error.len(), CONFIGURATION_ERROR_BYTES_MAX)
    }
}

impl Check for BusyLock {
    fn check(&self) -> Result<(), FieldError> {
        within("BusyLock.left_ms", self.left_ms <= BUSY_LEFT_MS_MAX)?;
        match self.left_ms {
            0 => text("BusyLock.reason", &self.reason),
            _ => filled("BusyLock.reason", self.reason.as_bytes(), STRING_BYTES_MAX),
        }
    }
}

impl Check for TransportFailure {
    fn check(&self) -> Result<(), FieldError> {
        filled("TransportFailure.code", self.code.as_bytes(), FAILURE_CODE_BYTES_MAX)?;
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        within("TransportFailure.code", self.code.bytes().all(is_plain))?;
        within("TransportFailure.count", self.count > 0)
    }
}

impl Check for Welcome {
    fn check(&self) -> Result<(), FieldError> {
        text("Welcome.device_id", &self.device_id)?;
        text("Welcome.tenant_id", &self.tenant_id)?;
        within("Welcome.epoch", self.epoch > 0)?;
        within(
            "Welcome.ping_interval_ms",
            (PING_INTERVAL_MS_MIN..=PING_INTERVAL_MS_MAX).contains(&self.ping_interval_ms),
        )?;
        within("Welcome.max_missed_pings", (1..=MISSED_PINGS_MAX).contains(&self.max_missed_pings))
    }
}

impl Check for MetricsReport {
    fn check(&self) -> Result<(), FieldError> {
        within("MetricsReport.cpu_percent", self.cpu_percent.is_none_or(|value| (0.0..=100.0).contains(&value)))?;
        within("MetricsReport.temperature_celsius", self.temperature_celsius.is_none_or(f64::is_finite))?;
        within("MetricsReport.load_1m", self.load_1m.is_none_or(f64::is_finite))?;
        within("MetricsReport.load_5m", self.load_5m.is_none_or(f64::is_finite))?;
        within("MetricsReport.load_15m", self.load_15m.is_none_or(f64::is_finite))
    }
}

impl Check for Command {
    fn check(&self) -> Result<(), FieldError> {
        id("Command.id", &self.id)?;
        id("Command.grant_id", &self.grant_id)?;
        text("Command.requested_by", &self.requested_by)?;
        length("Command.reason", self.reason.len(), REASON_BYTES_MAX)?;
        length("Command.grant_statement", self.grant_statement.len(), GRANT_STATEMENT_BYTES_MAX)?;
        text("Command.trace_parent", &self.trace_parent)?;
        match &self.kind {
            Some(command::Kind::RestartService(restart)) => {
                filled("RestartService.service", restart.service.as_bytes(), SERVICE_BYTES_MAX)
            }
            Some(command::Kind::OsUpdate(update) | command::Kind::AgentUpdate(update)) => update.check(),
            Some(command::Kind::ContainerUpdate(update)) => update.check(),
            Some(command::Kind::LinkTest(test)) => {
                within("LinkTest.seconds", (1..=crate::ndt::SECONDS_MAX).contains(&test.seconds))
            }
            Some(command::Kind::CollectMetrics(_) | command::Kind::Reboot(_) | command::Kind::Shutdown(_)) | None => {
                Ok(())
            }
        }
    }
}

impl Check for Update {
    fn check(&self) -> Result<(), FieldError> {
        let artifact =
            self.artifact.as_ref().ok_or(FieldError { field: "Update.artifact", fault: FieldFault::Empty })?;
        filled("Artifact.url", artifact.url.as_bytes(), URL_BYTES_MAX)?;
        within("Artifact.sha256", artifact.sha256.len() == SHA256_BYTES)?;
        within("Artifact.size", artifact.size > 0)?;
        filled("Update.version", self.version.as_bytes(), VERSION_BYTES_MAX)?;
        // A leading dash could be taken for an option by the programs that are given it.
        let is_plain = self.version.bytes().all(|byte| byte.is_ascii_graphic()) && !self.version.starts_with('-');
        within("Update.version", is_plain)
    }
}

impl Check for ContainerUpdate {
    fn check(&self) -> Result<(), FieldError> {
        filled("ContainerUpdate.container", self.container.as_bytes(), CONTAINER_BYTES_MAX)?;
        within("ContainerUpdate.container", is_container_name(&self.container))?;
        filled("ContainerUpdate.image", self.image.as_bytes(), IMAGE_BYTES_MAX)?;
        within("ContainerUpdate.image", image_repository(&self.image).is_some())
    }
}

impl Check for CommandCancel {
    fn check(&self) -> Result<(), FieldError> {
        id("CommandCancel.id", &self.id)?;
        text("CommandCancel.reason", &self.reason)
    }
}

impl Check for CommandReceipt {
    fn check(&self) -> Result<(), FieldError> {
        id("CommandReceipt.id", &self.id)
    }
}

impl Check for CommandStatus {
    fn check(&self) -> Result<(), FieldError> {
        id("CommandStatus.id", &self.id)?;
        // Not `self.state()`, which reads a state that this version does not know as the unspecified one.
        let known = command_status::State::try_from(self.state);
        within("CommandStatus.state", known.is_ok_and(|state| state != command_status::State::Unspecified))?;
        text("CommandStatus.code", &self.code)?;
        length("CommandStatus.message", self.message.len(), STATUS_MESSAGE_BYTES_MAX)?;
        within("CommandStatus.percent", self.percent.is_none_or(|percent| percent <= PERCENT_MAX))?;
        length("CommandStatus.data_json", self.data_json.len(), DATA_JSON_BYTES_MAX)
    }
}

impl Check for CertificateRequest {
    fn check(&self) -> Result<(), FieldError> {
        filled("CertificateRequest.csr_der", &self.csr_der, CSR_BYTES_MAX)
    }
}

impl Check for CertificateIssued {
    fn check(&self) -> Result<(), FieldError> {
        count("CertificateIssued.chain_der", self.chain_der.len(), CHAIN_MAX)?;
        if self.chain_der.is_empty() {
            return Err(FieldError { field: "CertificateIssued.chain_der", fault: FieldFault::Empty });
        }
        self.chain_der
            .iter()
            .try_for_each(|certificate| filled("CertificateIssued.chain_der", certificate, CERTIFICATE_BYTES_MAX))
    }
}

impl Check for CertificateRefused {
    fn check(&self) -> Result<(), FieldError> {
        text("CertificateRefused.code", &self.code)?;
        text("CertificateRefused.message", &self.message)
    }
}

impl Check for Reconnect {
    fn check(&self) -> Result<(), FieldError> {
        text("Reconnect.reason", &self.reason)
    }
}

impl Check for StreamRequest {
    fn check(&self) -> Result<(), FieldError> {
        id("StreamRequest.id", &self.id)?;
        id("StreamRequest.session_id", &self.session_id)?;
        id("StreamRequest.grant_id", &self.grant_id)?;
        within("StreamRequest.token", self.token.len() == STREAM_TOKEN_BYTES)?;
        text("StreamRequest.requested_by", &self.requested_by)?;
        length("StreamRequest.reason", self.reason.len(), REASON_BYTES_MAX)?;
        length("StreamRequest.grant_statement", self.grant_statement.len(), GRANT_STATEMENT_BYTES_MAX)?;
        match &self.kind {
            Some(stream_request::Kind::Terminal(terminal)) => {
                within("Terminal.columns", (1..=TERMINAL_CELLS_MAX).contains(&terminal.columns))?;
                within("Terminal.rows", (1..=TERMINAL_CELLS_MAX).contains(&terminal.rows))?;
                filled("Terminal.term", terminal.term.as_bytes(), TERM_BYTES_MAX)?;
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
                within("Terminal.term", terminal.term.bytes().all(is_plain))
            }
            Some(stream_request::Kind::Forward(forward)) => {
                filled("Forward.host", forward.host.as_bytes(), HOST_BYTES_MAX)?;
                within("Forward.port", u16::try_from(forward.port).is_ok_and(|port| port > 0))
            }
            Some(stream_request::Kind::FilePut(put)) => path("FilePut.path", &put.path),
            Some(stream_request::Kind::FileGet(get)) => path("FileGet.path", &get.path),
            None => Ok(()),
        }
    }
}

impl Check for StreamRefused {
    fn check(&self) -> Result<(), FieldError> {
        id("StreamRefused.id", &self.id)?;
        text("StreamRefused.code", &self.code)?;
        length("StreamRefused.message", self.message.len(), STATUS_MESSAGE_BYTES_MAX)
    }
}

impl Check for Goodbye {
    fn check(&self) -> Result<(), FieldError> {
        text("Goodbye.message", &self.message)
    }
}

pub(crate) fn text(field: &'static str, value: &str) -> Result<(), FieldError> {
    length(field, value.len(), STRING_BYTES_MAX)
}

fn path(field: &'static str, value: &str) -> Result<(), FieldError> {
    filled(field, value.as_bytes(), PATH_BYTES_MAX)?;
    within(field, value.starts_with('/') && !value.contains('\0'))
}

pub(crate) fn filled(field: &'static str, value: &[u8], max: usize) -> Result<(), FieldError> {
    if value.is_empty() { Err(FieldError { field, fault: FieldFault::Empty }) } else { length(field, value.len(), max) }
}

pub(crate) fn length(field: &'static str, bytes: usize, max: usize) -> Result<(), FieldError> {
    if bytes > max { Err(FieldError { field, fault: FieldFault::TooLong(max) }) } else { Ok(()) }
}

pub(crate) fn count(field: &'static str, entries: usize, max: usize) -> Result<(), FieldError> {
    if entries > max { Err(FieldError { field, fault: FieldFault::TooMany(max) }) } else { Ok(()) }
}

fn id(field: &'static str, value: &[u8]) -> Result<(), FieldError> {
    read_id(field, value).map(|_| ())
}

/// Reads the 16 bytes of an identifier.
pub(super) fn read_id(field: &'static str, value: &[u8]) -> Result<Uuid, FieldError> {
    Uuid::from_slice(value).map_err(|_| FieldError { field, fault: FieldFault::NotAnId })
}

pub(crate) fn within(field: &'static str, holds: bool) -> Result<(), FieldError> {
    if holds { Ok(()) } else { Err(FieldError { field, fault: FieldFault::OutOfRange }) }
}
