//! Which transports failed and how, until a server has heard of it.

use std::borrow::Cow;
use std::error::Error as _;
use std::io;

use cloudlink_proto::link::TRANSPORT_FAILURES_MAX;
use cloudlink_proto::link::message::TransportFailure;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::transport_failure::{self, Stage};

use tokio_tungstenite::tungstenite;

use crate::config::Transport;
use crate::dial::{DialError, ProxyError, Step};
use crate::exchange::ExchangeError;
use crate::poll::PollError;
use crate::tunnel::TunnelError;

/// What went wrong, without words of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub stage: Stage,
    pub code: Cow<'static, str>,
}

/// The kinds of failures that the server has not heard of, the one that was met last at the end.
#[derive(Debug, Default)]
pub struct Report {
    failures: Vec<TransportFailure>,
}

impl Report {
    pub fn add(&mut self, transport: Transport, fault: &Fault, now_unix_ms: u64) {
        let transport = match transport {
            Transport::WebSocket => transport_failure::Transport::Websocket,
            Transport::OpenVpn => transport_failure::Transport::Openvpn,
            Transport::Polling => transport_failure::Transport::Polling,
        };
        let is_known = |known: &TransportFailure| {
            (known.transport(), known.stage(), known.code.as_str()) == (transport, fault.stage, &fault.code)
        };
        let before = self.failures.iter().position(is_known).map_or(0, |index| self.failures.remove(index).count);
        if self.failures.len() == TRANSPORT_FAILURES_MAX {
            self.failures.remove(0);
        }
        self.failures.push(TransportFailure {
            transport: transport.into(),
            stage: fault.stage.into(),
            code: fault.code.clone().into_owned(),
            count: before.saturating_add(1),
            last_unix_ms: now_unix_ms,
        });
    }

    /// What is to be told.
    #[must_use]
    pub fn failures(&self) -> &[TransportFailure] {
        &self.failures
    }

    /// The server has heard of these. What came to them meanwhile it has not.
    pub fn told(&mut self, told: &[TransportFailure]) {
        let is_same = |one: &TransportFailure, other: &TransportFailure| {
            (one.transport, one.stage, &one.code) == (other.transport, other.stage, &other.code)
        };
        for failure in &mut self.failures {
            let heard = told.iter().find(|told| is_same(told, failure)).map_or(0, |told| told.count);
            failure.count = failure.count.saturating_sub(heard);
        }
        self.failures.retain(|failure| failure.count > 0);
    }
}

impl From<&DialError> for Fault {
    fn from(error: &DialError) -> Self {
        let (stage, code) = match error {
            DialError::Through { source, .. } => return (&**source).into(),
            DialError::Resolve { .. } => (Stage::Name, "not_resolved"),
            DialError::NoAddress { .. } => (Stage::Name, "no_address"),
            DialError::Connect { source, .. } => (Stage::Tcp, io_code(source)),
            DialError::Proxy { source, .. } => return source.into(),
            DialError::TimedOut { step, .. } => (stage_of(*step), "timed_out"),
            DialError::Tls { source, .. } => (Stage::Tls, tls_code(source)),
            DialError::Http(problem) => {
                return Self { stage: Stage::Http, code: format!("status_{}", problem.status.as_u16()).into() };
            }
            DialError::WebSocket(tungstenite::Error::Io(source)) => (Stage::Http, tls_code(source)),
            DialError::WebSocket(_) => (Stage::Http, "not_a_websocket"),
            DialError::Closed(close) => (Stage::Welcome, close_code(close.code)),
            DialError::NoWelcome => (Stage::Welcome, "no_welcome"),
            DialError::Setup(_) => (Stage::Device, "no_tls"),
            DialError::Hello(_) => (Stage::Device, "no_hello"),
            DialError::NotEnrolled => (Stage::Device, "not_enrolled"),
            DialError::Tunnel(error) => (Stage::Tunnel, tunnel_code(error)),
        };
        Self { stage, code: code.into() }
    }
}

impl From<&PollError> for Fault {
    fn from(error: &PollError) -> Self {
        let (stage, code) = match error {
            PollError::Dial(error) => return error.into(),
            PollError::Refused(problem) => {
                return Self { stage: Stage::Http, code: format!("status_{}", problem.status.as_u16()).into() };
            }
            PollError::Exchange(ExchangeError::Request(error)) => {
                let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
                (Stage::Http, source.map_or("closed", tls_code))
            }
            PollError::Exchange(ExchangeError::Answer) | PollError::Answer(_) => (Stage::Http, "not_an_answer"),
            PollError::TimedOut => (Stage::Http, "timed_out"),
            PollError::Request(_) => (Stage::Device, "no_request"),
        };
        Self { stage, code: code.into() }
    }
}

impl From<&ProxyError> for Fault {
    fn from(error: &ProxyError) -> Self {
        let code = match error {
            ProxyError::Reach(_) => "unreachable",
            ProxyError::Password { .. } => "no_password",
            ProxyError::TimedOut => "timed_out",
            ProxyError::Broke(_) | ProxyError::Closed => "closed",
            ProxyError::NotHttp | ProxyError::TooLong | ProxyError::Early => "not_a_proxy",
            ProxyError::NoLogin { .. } => "no_login",
            ProxyError::Login { .. } => "wrong_login",
            ProxyError::Scheme { .. } => "no_basic_login",
            ProxyError::Forbidden { .. } => "forbidden",
            ProxyError::Status { status, .. } => {
                return Self { stage: Stage::Proxy, code: format!("status_{status}").into() };
            }
        };
        Self { stage: Stage::Proxy, code: code.into() }
    }
}

/// A link that broke.
#[must_use]
pub fn lost(code: Code) -> Fault {
    Fault { stage: Stage::Link, code: close_code(code).into() }
}

fn stage_of(step: Step) -> Stage {
    match step {
        Step::Resolve => Stage::Name,
        Step::Connect => Stage::Tcp,
        Step::Tls => Stage::Tls,
        Step::WebSocket => Stage::Http,
        Step::ConnectInside => Stage::Tunnel,
    }
}

fn io_code(error: &io::Error) -> &'static str {
    use io::ErrorKind;
    #[expect(clippy::wildcard_enum_match_arm, reason = "new kinds come with the standard library")]
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection_refused",
        ErrorKind::ConnectionReset => "connection_reset",
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => "closed",
        ErrorKind::TimedOut => "timed_out",
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => "unreachable",
        ErrorKind::PermissionDenied => "permission_denied",
        _ => "io_error",
    }
}

fn tls_code(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        // Nobody but somebody on the way shows another certificate than the fleet's.
        Some(rustls::Error::InvalidCertificate(_)) => "other_certificate",
        Some(rustls::Error::AlertReceived(_)) => "alert",
        Some(_) => "not_tls",
        None => io_code(error),
    }
}

fn tunnel_code(error: &TunnelError) -> &'static str {
    match error {
        TunnelError::Interfaces(_) | TunnelError::Bind { .. } | TunnelError::Write { .. } => "io_error",
        TunnelError::NoAddress { .. } => "no_tunnel",
        TunnelError::Gone { .. } => "gone",
        TunnelError::NotATunnel { .. } | TunnelError::NoGateway { .. } => "wrong_interface",
        TunnelError::NoProgram => "no_program",
        TunnelError::Profile { .. } => "no_profile",
        TunnelError::Client { is_refusal: true, .. } => "refused",
        TunnelError::Client { .. } => "client_failed",
        TunnelError::TimedOut { .. } => "timed_out",
    }
}

fn close_code(code: Code) -> &'static str {
    match code {
        Code::Unspecified => "broken",
        Code::ShuttingDown => "shutting_down",
        Code::Replaced => "replaced",
        Code::Revoked => "revoked",
        Code::CertificateExpired => "certificate_expired",
        Code::ProtocolError => "protocol_error",
        Code::TimedOut => "timed_out",
        Code::Overloaded => "overloaded",
        Code::Version => "version",
    }
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::link::is_failure_code;

    use super::*;

    fn fault(number: usize) -> Fault {
        Fault { stage: Stage::Proxy, code: format!("status_{}", 100 + number).into() }
    }

    #[test]
    fn each_kind_is_told_once_with_how_often_and_when() {
        let mut report = Report::default();
        let reset = Fault { stage: Stage::Tls, code: "connection_reset".into() };
        report.add(Transport::WebSocket, &reset, 1);
        report.add(Transport::OpenVpn, &reset, 2);
        report.add(Transport::WebSocket, &reset, 3);
        let told: Vec<_> =
            report.failures().iter().map(|told| (told.transport, told.count, told.last_unix_ms)).collect();
        assert_eq!(told, [(2, 1, 2), (1, 2, 3)]);
        let telling = report.failures().to_vec();
        report.add(Transport::OpenVpn, &reset, 4);
        report.told(&telling);
        let left: Vec<_> = report.failures().iter().map(|left| (left.transport, left.count)).collect();
        assert_eq!(left, [(2, 1)], "what came while it was told is told with the next");
    }

    #[test]
    fn those_that_were_met_last_are_kept() {
        let mut report = Report::default();
        for number in 0..100 {
            report.add(Transport::WebSocket, &fault(number), number as u64);
            report.add(Transport::WebSocket, &fault(0), number as u64);
        }
        let failures = report.failures();
        assert_eq!((failures.len(), failures[31].code.as_str(), failures[31].count), (32, "status_100", 101));
        assert_eq!(failures[30].code, "status_199");
    }

    #[test]
    fn every_end_of_a_link_and_failure_of_a_poll_is_in_words_that_the_server_knows() {
        for code in (0..20).filter_map(|number| Code::try_from(number).ok()) {
            assert!(is_failure_code(&lost(code).code), "{code:?}");
        }
        for error in [PollError::TimedOut, ExchangeError::Answer.into(), DialError::NoWelcome.into()] {
            assert!(is_failure_code(&Fault::from(&error).code), "{error}");
        }
    }

    #[test]
    fn a_failure_says_how_far_it_got() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let proxy = "p:1".to_owned();
        let address = "192.0.2.1:443".parse().unwrap();
        let other = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let tls = |source| DialError::Tls { name: "a".to_owned(), source };
        for (error, expected) in [
            (DialError::NoAddress { host: "a".to_owned() }, (Stage::Name, "no_address")),
            (DialError::Connect { address, source: reset() }, (Stage::Tcp, "connection_reset")),
            (tls(reset()), (Stage::Tls, "connection_reset")),
            (tls(io::Error::other(other)), (Stage::Tls, "other_certificate")),
            (
                DialError::Through { proxy: proxy.clone(), source: Box::new(tls(reset())) },
                (Stage::Tls, "connection_reset"),
            ),
            (
                DialError::Proxy { proxy, source: ProxyError::Login { user: "u".to_owned(), status: 407 } },
                (Stage::Proxy, "wrong_login"),
            ),
            (TunnelError::NoProgram.into(), (Stage::Tunnel, "no_program")),
            (DialError::NotEnrolled, (Stage::Device, "not_enrolled")),
        ] {
            let fault = Fault::from(&error);
            assert_eq!((fault.stage, fault.code.as_ref()), expected);
            assert!(is_failure_code(&fault.code), "{fault:?}");
        }
    }
}
