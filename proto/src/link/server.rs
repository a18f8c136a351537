//! The server's end.

use std::time::{Duration, Instant};

use super::limit::{Check, FieldError, read_id};
use super::message::goodbye::Code;
use super::message::{
    BusyLock, CertificateIssued, CertificateRefused, CertificateRequest, Command, CommandCancel, CommandReceipt,
    CommandStatus, Configuration, ConfigurationStatus, DeviceMessage, Hello, MetricsReport, Reconnect, ServerMessage,
    StreamRefused, StreamRequest, Welcome, command_status, device_message, server_message,
};
use super::session::{Common, SendError, Session, Side, Timing};
use super::state::{Event, State};
use super::violation::Violation;
use super::{VERSIONS, WELCOME_WITHIN};
use crate::ids::{CommandId, DeviceId, StreamId, TenantId};

/// The server's end of a link.
#[derive(Clone, Copy, Debug)]
pub struct Server;

/// What a device says. Every limit of `link.proto` holds.
#[derive(Clone, Debug, PartialEq)]
pub enum FromDevice {
    /// The first message. To be answered with [`Session::welcome`] or [`Session::goodbye`].
    Hello(Hello),
    /// What it measures about itself.
    Metrics(MetricsReport),
    /// What became of a command.
    CommandStatus {
        /// `status.id`, read.
        id: CommandId,
        /// `status.state`, read; never unspecified.
        state: command_status::State,
        /// The whole message.
        status: CommandStatus,
    },
    /// It asks for a new certificate.
    CertificateRequest(CertificateRequest),
    /// Which lock it holds.
    BusyLock(BusyLock),
    /// How far it is with its configuration.
    ConfigurationStatus(ConfigurationStatus),
    /// It does not open a stream.
    StreamRefused {
        /// `refused.id`, read.
        id: StreamId,
        /// The whole message.
        refused: StreamRefused,
    },
    /// It leaves; [`Session::close`] says why.
    Goodbye,
}

/// What a server may send on a live link. Each message turns into it with `into()`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the documentation is in link.proto")]
pub enum ToDevice {
    Command(Command),
    CommandCancel(CommandCancel),
    CommandReceipt(CommandReceipt),
    CertificateIssued(CertificateIssued),
    CertificateRefused(CertificateRefused),
    Reconnect(Reconnect),
    StreamRequest(Box<StreamRequest>),
    Configuration(Configuration),
}

/// What a server tells the device that it welcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// From the certificate.
    pub device_id: DeviceId,
    /// From the certificate.
    pub tenant_id: TenantId,
    /// Grows with every link of this device.
    pub epoch: u64,
    /// The server's wall clock.
    pub clock_unix_ms: u64,
    /// How often the device reports what it measures. Zero: never.
    pub metrics_interval: Duration,
}

impl Session<Server> {
    /// A session for a WebSocket that was just opened, in `AwaitHello`. Values of `timing` outside of what the protocol
    /// allows are brought back into it.
    #[must_use]
    pub fn server(now: Instant, timing: &Timing) -> Self {
        Self::new(now, State::AwaitHello, now + timing.hello_within, timing)
    }

    /// Answers the `Hello`: the link is live.
    ///
    /// # Errors
    /// No welcome is awaited: there was no `Hello`, or the link has ended meanwhile.
    pub fn welcome(&mut self, now: Instant, admission: &Admission) -> Result<(), SendError> {
        let welcome = Welcome {
            version: self.version,
            epoch: admission.epoch,
            device_id: admission.device_id.to_string(),
            tenant_id: admission.tenant_id.to_string(),
            clock_unix_ms: admission.clock_unix_ms,
            ping_interval_ms: self.ping_interval_ms(),
            max_missed_pings: self.max_missed_pings(),
            metrics_interval_ms: u32::try_from(admission.metrics_interval.as_millis()).unwrap_or(u32::MAX),
        };
        welcome.check().map_err(SendError::Field)?;
        let state = self.state();
        if !self.enter(Event::Welcome) {
            return Err(SendError::State(state));
        }
        self.zero = now;
        self.queue(now, &ServerMessage { kind: Some(server_message::Kind::Welcome(welcome)) })
    }

    /// For `Command.sent_after_ms`, of a command that is sent now.
    #[must_use]
    pub fn sent_after_ms(&self, now: Instant) -> u64 {
        // Never 0, which says nothing.
        u64::try_from(now.saturating_duration_since(self.zero).as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn hello_received(&mut self, now: Instant, hello: &Hello) -> Result<(), Violation> {
        hello.check().map_err(Violation::Field)?;
        self.version =
            *hello.versions.iter().find(|version| VERSIONS.contains(version)).ok_or(Violation::NoCommonVersion)?;
        self.enter(Event::Hello);
        self.set_deadline(now + WELCOME_WITHIN);
        Ok(())
    }
}

impl Side for Server {
    type WireIn = DeviceMessage;
    type WireOut = ServerMessage;
    type Incoming = FromDevice;
    type Outgoing = ToDevice;

    fn wire(message: Common) -> ServerMessage {
        let kind = match message {
            Common::Ping(ping) => server_message::Kind::Ping(ping),
            Common::Pong(pong) => server_message::Kind::Pong(pong),
            Common::Goodbye(goodbye) => server_message::Kind::Goodbye(goodbye),
        };
        ServerMessage { kind: Some(kind) }
    }

    fn check(message: &ToDevice) -> Result<(), FieldError> {
        match message {
            ToDevice::Command(message) => message.check(),
            ToDevice::CommandCancel(message) => message.check(),
            ToDevice::CommandReceipt(message) => message.check(),
            ToDevice::CertificateIssued(message) => message.check(),
            ToDevice::CertificateRefused(message) => message.check(),
            ToDevice::Reconnect(message) => message.check(),
            ToDevice::StreamRequest(message) => message.check(),
            ToDevice::Configuration(message) => message.check(),
        }
    }

    fn accept(session: &mut Session<Self>, now: Instant, wire: DeviceMessage) -> Result<Option<FromDevice>, Violation> {
        use device_message::Kind;

        let awaits_hello = session.state() == State::AwaitHello;
        match wire.kind {
            Some(Kind::Hello(hello)) if awaits_hello => {
                session.hello_received(now, &hello)?;
                Ok(Some(FromDevice::Hello(hello)))
            }
            Some(Kind::Goodbye(goodbye)) => {
                session.goodbye_received(goodbye)?;
                Ok(Some(FromDevice::Goodbye))
            }
            _ if awaits_hello => Err(Violation::HelloExpected),
            Some(Kind::Hello(_)) => Err(session.unexpected("Hello")),
            Some(Kind::Ping(ping)) => session.ping_received(now, &ping).map(|()| None),
            Some(Kind::Pong(pong)) => session.pong_received(&pong).map(|()| None),
            Some(Kind::Metrics(report)) => {
                session.only_live("MetricsReport")?;
                report.check().map_err(Violation::Field)?;
                Ok(Some(FromDevice::Metrics(report)))
            }
            Some(Kind::CommandStatus(status)) => {
                session.only_live("CommandStatus")?;
                read_status(status).map(Some).map_err(Violation::Field)
            }
            Some(Kind::CertificateRequest(request)) => {
                session.only_live("CertificateRequest")?;
                request.check().map_err(Violation::Field)?;
                Ok(Some(FromDevice::CertificateRequest(request)))
            }
            Some(Kind::StreamRefused(refused)) => {
                session.only_live("StreamRefused")?;
                read_refused(refused).map(Some).map_err(Violation::Field)
            }
            Some(Kind::BusyLock(lock)) => {
                session.only_live("BusyLock")?;
                lock.check().map_err(Violation::Field)?;
                Ok(Some(FromDevice::BusyLock(lock)))
            }
            Some(Kind::ConfigurationStatus(status)) => {
                session.only_live("ConfigurationStatus")?;
                status.check().map_err(Violation::Field)?;
                Ok(Some(FromDevice::ConfigurationStatus(status)))
            }
            None => {
                session.unknown_received();
                Ok(None)
            }
        }
    }

    fn welcome_missing() -> (Code, &'static str) {
        (Code::Overloaded, "the server could not admit the device in time")
    }
}

fn read_refused(refused: StreamRefused) -> Result<FromDevice, FieldError> {
    refused.check()?;
    let id = StreamId::from_uuid(read_id("StreamRefused.id", &refused.id)?);
    Ok(FromDevice::StreamRefused { id, refused })
}

fn read_status(status: CommandStatus) -> Result<FromDevice, FieldError> {
    status.check()?;
    let id = read_id("CommandStatus.id", &status.id)?;
    Ok(FromDevice::CommandStatus { id: CommandId::from_uuid(id), state: status.state(), status })
}

impl From<ToDevice> for ServerMessage {
    fn from(message: ToDevice) -> Self {
        let kind = match message {
            ToDevice::Command(message) => server_message::Kind::Command(message),
            ToDevice::CommandCancel(message) => server_message::Kind::CommandCancel(message),
            ToDevice::CommandReceipt(message) => server_message::Kind::CommandReceipt(message),
            ToDevice::CertificateIssued(message) => server_message::Kind::CertificateIssued(message),
            ToDevice::CertificateRefused(message) => server_message::Kind::CertificateRefused(message),
            ToDevice::Reconnect(message) => server_message::Kind::Reconnect(message),
            ToDevice::StreamRequest(message) => server_message::Kind::StreamRequest(message),
            ToDevice::Configuration(message) => server_message::Kind::Configuration(message),
        };
        Self { kind: Some(kind) }
    }
}

super::session::outgoing! { ToDevice: Command, CommandCancel, CommandReceipt, CertificateIssued, CertificateRefused, Reconnect, Configuration }

impl From<StreamRequest> for ToDevice {
    fn from(message: StreamRequest) -> Self {
        Self::StreamRequest(Box::new(message))
    }
}
