//! The device's end.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::limit::{Check, FieldError, FieldFault, read_id};
use super::message::goodbye::Code;
use super::message::{
    BusyLock, CertificateIssued, CertificateRefused, CertificateRequest, Command, CommandCancel, CommandReceipt,
    CommandStatus, Configuration, ConfigurationStatus, DeviceMessage, Hello, MetricsReport, ServerMessage,
    StreamRefused, StreamRequest, Welcome, device_message, server_message,
};
use super::server::Admission;
use super::session::{Common, SendError, Session, Side, Timing};
use super::state::{Event, State};
use super::violation::Violation;
use super::{VERSIONS, WELCOME_WAIT_MAX};
use crate::ids::{CommandId, DeviceId, GrantId, StreamId, SupportSessionId, TenantId};

/// The device's end of a link.
#[derive(Clone, Copy, Debug)]
pub struct Device;

/// What a server says. Every limit of `link.proto` holds.
#[derive(Clone, Debug, PartialEq)]
pub enum FromServer {
    /// The link is live.
    Welcome(Admission),
    /// One instruction.
    Command {
        /// `command.id`, read.
        id: CommandId,
        /// `command.grant_id`, read.
        grant_id: GrantId,
        /// The whole message; `start_within_ms` counts from now. A kind that this version does not know is `None`: to be refused as `unknown_kind`.
        command: Command,
    },
    /// Do not begin this command.
    CommandCancel {
        /// The command.
        id: CommandId,
        /// For people.
        reason: String,
    },
    /// The final status of this command is stored.
    CommandReceipt {
        /// The command.
        id: CommandId,
    },
    /// The new certificate, leaf first.
    CertificateIssued(CertificateIssued),
    /// No new certificate.
    CertificateRefused(CertificateRefused),
    /// Dial again after this long, and close this link when the new one is welcomed.
    Reconnect {
        /// Wait this long first.
        after: Duration,
        /// For people.
        reason: String,
    },
    /// Open a stream.
    StreamRequest {
        /// `request.id`, read.
        id: StreamId,
        /// `request.session_id`, read.
        session_id: SupportSessionId,
        /// `request.grant_id`, read.
        grant_id: GrantId,
        /// The whole message; `open_within_ms` and `ends_after_ms` count from now. A kind that this version does not know is
        /// `None`: to be refused as `unknown_kind`.
        request: Box<StreamRequest>,
    },
    /// What the device is to be like. Whether its hash is right, who takes it finds out.
    Configuration(Configuration),
    /// It leaves; [`Session::close`] says why.
    Goodbye,
}

/// What a device may send on a live link. Each message turns into it with `into()`.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the documentation is in link.proto")]
pub enum ToServer {
    MetricsReport(MetricsReport),
    CommandStatus(CommandStatus),
    CertificateRequest(CertificateRequest),
    StreamRefused(StreamRefused),
    BusyLock(BusyLock),
    ConfigurationStatus(ConfigurationStatus),
}

impl Session<Device> {
    /// A session for a WebSocket that was just opened, in `AwaitWelcome`, with `hello` to be transmitted. The versions are
    /// filled in here.
    ///
    /// # Errors
    /// `hello` breaks a limit.
    pub fn device(now: Instant, hello: Hello) -> Result<Self, SendError> {
        let hello = Hello { versions: VERSIONS.to_vec(), ..hello };
        hello.check().map_err(SendError::Field)?;
        let mut session = Self::new(now, State::AwaitWelcome, now + WELCOME_WAIT_MAX, &Timing::default());
        session.queue(now, &DeviceMessage { kind: Some(device_message::Kind::Hello(hello)) })?;
        Ok(session)
    }

    /// Takes off what the command may have lost on its way: in a network that stood still, or in the buffer of a device that
    /// did.
    fn without_delay(&self, now: Instant, mut command: Command) -> Command {
        let delay_ms = self.delay_ms(now, command.sent_after_ms);
        command.start_within_ms = command.start_within_ms.saturating_sub(delay_ms);
        command
    }

    fn request_without_delay(&self, now: Instant, mut request: StreamRequest) -> StreamRequest {
        let delay_ms = self.delay_ms(now, request.sent_after_ms);
        request.open_within_ms = request.open_within_ms.saturating_sub(delay_ms);
        request.ends_after_ms = request.ends_after_ms.saturating_sub(delay_ms);
        request
    }

    /// How long a message was under way at most, if it says when it was sent.
    fn delay_ms(&self, now: Instant, sent_after_ms: u64) -> u64 {
        if sent_after_ms == 0 {
            return 0;
        }
        let here_after_ms = u64::try_from(now.saturating_duration_since(self.zero).as_millis()).unwrap_or(u64::MAX);
        here_after_ms.saturating_sub(sent_after_ms)
    }

    fn welcome_received(&mut self, welcome: &Welcome) -> Result<Admission, Violation> {
        welcome.check().map_err(Violation::Field)?;
        if !VERSIONS.contains(&welcome.version) {
            return Err(Violation::NoCommonVersion);
        }
        let device_id = read_uuid("Welcome.device_id", &welcome.device_id).map_err(Violation::Field)?;
        let tenant_id = read_uuid("Welcome.tenant_id", &welcome.tenant_id).map_err(Violation::Field)?;
        self.version = welcome.version;
        self.set_liveness(welcome.ping_interval_ms, welcome.max_missed_pings);
        self.enter(Event::Welcome);
        Ok(Admission {
            device_id: DeviceId::from_uuid(device_id),
            tenant_id: TenantId::from_uuid(tenant_id),
            epoch: welcome.epoch,
            clock_unix_ms: welcome.clock_unix_ms,
            metrics_interval: Duration::from_millis(welcome.metrics_interval_ms.into()),
        })
    }
}

impl Side for Device {
    type WireIn = ServerMessage;
    type WireOut = DeviceMessage;
    type Incoming = FromServer;
    type Outgoing = ToServer;

    fn wire(message: Common) -> DeviceMessage {
        let kind = match message {
            Common::Ping(ping) => device_message::Kind::Ping(ping),
            Common::Pong(pong) => device_message::Kind::Pong(pong),
            Common::Goodbye(goodbye) => device_message::Kind::Goodbye(goodbye),
        };
        DeviceMessage { kind: Some(kind) }
    }

    fn check(message: &ToServer) -> Result<(), FieldError> {
        match message {
            ToServer::MetricsReport(message) => message.check(),
            ToServer::CommandStatus(message) => message.check(),
            ToServer::CertificateRequest(message) => message.check(),
            ToServer::StreamRefused(message) => message.check(),
            ToServer::BusyLock(message) => message.check(),
            ToServer::ConfigurationStatus(message) => message.check(),
        }
    }

    fn accept(session: &mut Session<Self>, now: Instant, wire: ServerMessage) -> Result<Option<FromServer>, Violation> {
        use server_message::Kind;

        let incoming = match wire.kind {
            Some(Kind::Welcome(welcome)) if session.state() == State::AwaitWelcome => {
                FromServer::Welcome(session.welcome_received(&welcome)?)
            }
            Some(Kind::Welcome(_)) => return Err(session.unexpected("Welcome")),
            Some(Kind::Goodbye(goodbye)) => {
                session.goodbye_received(goodbye)?;
                FromServer::Goodbye
            }
            Some(Kind::Ping(ping)) => return session.ping_received(now, &ping).map(|()| None),
            Some(Kind::Pong(pong)) => return session.pong_received(&pong).map(|()| None),
            Some(Kind::Command(command)) => {
                session.only_live("Command")?;
                read_command(session.without_delay(now, command)).map_err(Violation::Field)?
            }
            Some(Kind::CommandCancel(cancel)) => {
                session.only_live("CommandCancel")?;
                read_cancel(cancel).map_err(Violation::Field)?
            }
            Some(Kind::CommandReceipt(receipt)) => {
                session.only_live("CommandReceipt")?;
                read_receipt(&receipt).map_err(Violation::Field)?
            }
            Some(Kind::CertificateIssued(issued)) => {
                session.only_live("CertificateIssued")?;
                issued.check().map_err(Violation::Field)?;
                FromServer::CertificateIssued(issued)
            }
            Some(Kind::CertificateRefused(refused)) => {
                session.only_live("CertificateRefused")?;
                refused.check().map_err(Violation::Field)?;
                FromServer::CertificateRefused(refused)
            }
            Some(Kind::Reconnect(reconnect)) => {
                session.only_live("Reconnect")?;
                reconnect.check().map_err(Violation::Field)?;
                FromServer::Reconnect { after: Duration::from_millis(reconnect.after_ms), reason: reconnect.reason }
            }
            Some(Kind::StreamRequest(request)) => {
                session.only_live("StreamRequest")?;
                read_stream_request(session.request_without_delay(now, *request)).map_err(Violation::Field)?
            }
            Some(Kind::Configuration(configuration)) => {
                session.only_live("Configuration")?;
                configuration.check().map_err(Violation::Field)?;
                FromServer::Configuration(configuration)
            }
            None => {
                session.unknown_received();
                return Ok(None);
            }
        };
        Ok(Some(incoming))
    }

    fn welcome_missing() -> (Code, &'static str) {
        (Code::TimedOut, "no Welcome came in time")
    }
}

fn read_command(command: Command) -> Result<FromServer, FieldError> {
    command.check()?;
    Ok(FromServer::Command {
        id: CommandId::from_uuid(read_id("Command.id", &command.id)?),
        grant_id: GrantId::from_uuid(read_id("Command.grant_id", &command.grant_id)?),
        command,
    })
}

fn read_cancel(cancel: CommandCancel) -> Result<FromServer, FieldError> {
    cancel.check()?;
    let id = CommandId::from_uuid(read_id("CommandCancel.id", &cancel.id)?);
    Ok(FromServer::CommandCancel { id, reason: cancel.reason })
}

fn read_receipt(receipt: &CommandReceipt) -> Result<FromServer, FieldError> {
    receipt.check()?;
    Ok(FromServer::CommandReceipt { id: CommandId::from_uuid(read_id("CommandReceipt.id", &receipt.id)?) })
}

fn read_stream_request(request: StreamRequest) -> Result<FromServer, FieldError> {
    request.check()?;
    Ok(FromServer::StreamRequest {
        id: StreamId::from_uuid(read_id("StreamRequest.id", &request.id)?),
        session_id: SupportSessionId::from_uuid(read_id("StreamRequest.session_id", &request.session_id)?),
        grant_id: GrantId::from_uuid(read_id("StreamRequest.grant_id", &request.grant_id)?),
        request: Box::new(request),
    })
}

fn read_uuid(field: &'static str, value: &str) -> Result<Uuid, FieldError> {
    value.parse().map_err(|_| FieldError { field, fault: FieldFault::NotAnId })
}

impl From<ToServer> for DeviceMessage {
    fn from(message: ToServer) -> Self {
        let kind = match message {
            ToServer::MetricsReport(message) => device_message::Kind::Metrics(message),
            ToServer::CommandStatus(message) => device_message::Kind::CommandStatus(message),
            ToServer::CertificateRequest(message) => device_message::Kind::CertificateRequest(message),
            ToServer::StreamRefused(message) => device_message::Kind::StreamRefused(message),
            ToServer::BusyLock(message) => device_message::Kind::BusyLock(message),
            ToServer::ConfigurationStatus(message) => device_message::Kind::ConfigurationStatus(message),
        };
        Self { kind: Some(kind) }
    }
}

super::session::outgoing! { ToServer: MetricsReport, CommandStatus, CertificateRequest, StreamRefused, BusyLock, ConfigurationStatus }
