//! One message of each kind, as the tests use them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, TenantId};
use cloudlink_proto::link::message::{
    CertificateIssued, CertificateRefused, CertificateRequest, CollectMetrics, Command, CommandCancel, CommandReceipt,
    CommandStatus, Configuration, ConfigurationStatus, ContainerUpdate, DeviceMessage, Goodbye, Hello, LinkTest,
    MetricsReport, Ping, Pong, Reboot, Reconnect, RestartService, ServerMessage, Shutdown, TransportFailure, Welcome,
    command, command_status, device_message, goodbye, server_message, transport_failure,
};
use cloudlink_proto::link::{Admission, Device, Server, Session, Side, State, Timing};
use prost::Message;
use uuid::Uuid;

/// The start of virtual time.
#[expect(clippy::disallowed_methods, reason = "any instant serves as the start; the tests count from it")]
pub(crate) fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}

pub(crate) fn uuid(last_byte: u8) -> Uuid {
    Uuid::from_bytes([0x01, 0x93, 0x5a, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, last_byte])
}

pub(crate) fn hello() -> Hello {
    Hello {
        versions: vec![1],
        capabilities: vec!["metrics.collect".to_owned(), "device.reboot".to_owned()],
        boot_id: "b6f1c8e2-0d0b-4f3c-9a53-0d3c5e0a7a11".to_owned(),
        agent: "example-agent/1.0".to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        hostname: "gw-7".to_owned(),
        clock_unix_ms: 1_763_730_000_000,
        transport_failures: Vec::new(),
        boot_hint: 0,
        busy_lock: None,
        configuration: None,
    }
}

pub(crate) fn failure() -> TransportFailure {
    TransportFailure {
        transport: transport_failure::Transport::Websocket.into(),
        stage: transport_failure::Stage::Tls.into(),
        code: "connection_reset".to_owned(),
        count: 3,
        last_unix_ms: 1_763_729_990_000,
    }
}

pub(crate) fn admission() -> Admission {
    Admission {
        device_id: DeviceId::from_uuid(uuid(1)),
        tenant_id: TenantId::from_uuid(uuid(2)),
        epoch: 7,
        clock_unix_ms: 1_763_730_000_500,
        metrics_interval: Duration::from_secs(60),
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        version: 1,
        epoch: 7,
        device_id: uuid(1).to_string(),
        tenant_id: uuid(2).to_string(),
        clock_unix_ms: 1_763_730_000_500,
        ping_interval_ms: 25_000,
        max_missed_pings: 3,
        metrics_interval_ms: 60_000,
    }
}

pub(crate) fn report() -> MetricsReport {
    MetricsReport {
        cpu_percent: Some(12.5),
        memory_used_bytes: Some(300_000_000),
        memory_total_bytes: Some(1_000_000_000),
        disk_used_bytes: Some(2_000_000_000),
        disk_total_bytes: Some(8_000_000_000),
        temperature_celsius: Some(48.25),
        load_1m: Some(0.5),
        load_5m: Some(0.25),
        load_15m: Some(0.125),
        uptime_seconds: Some(86_400),
        clock_unix_ms: None,
    }
}

pub(crate) fn command(kind: Option<command::Kind>) -> Command {
    Command {
        id: CommandId::from_uuid(uuid(3)).to_wire(),
        start_within_ms: 30_000,
        requested_by: "Olga (support)".to_owned(),
        reason: "case 4711".to_owned(),
        grant_id: GrantId::from_uuid(uuid(4)).to_wire(),
        sent_after_ms: 0,
        grant_statement: String::new(),
        trace_parent: String::new(),
        override_busy: false,
        kind,
    }
}

pub(crate) fn status(state: command_status::State) -> CommandStatus {
    CommandStatus { id: CommandId::from_uuid(uuid(3)).to_wire(), state: state.into(), ..CommandStatus::default() }
}

/// With the hash that `printf '{"interval":60}' | sha256sum` gives.
pub(crate) fn configuration() -> Configuration {
    Configuration {
        version: 3,
        document_json: Bytes::from_static(br#"{"interval":60}"#),
        sha256: Bytes::from_static(HASH),
    }
}

pub(crate) fn configuration_status() -> ConfigurationStatus {
    ConfigurationStatus {
        held_version: 3,
        held_sha256: Bytes::from_static(HASH),
        applied_version: 2,
        reported_version: 3,
        error: "no such sensor".to_owned(),
    }
}

const HASH: &[u8; 32] = &[
    0xa4, 0x75, 0x93, 0x53, 0xbb, 0xd2, 0x71, 0x8d, 0x28, 0xa5, 0x65, 0xd2, 0x7e, 0x6d, 0xb5, 0xd4, 0x0c, 0x70, 0x13,
    0xe2, 0x31, 0x82, 0xc4, 0x21, 0x15, 0xe8, 0x7d, 0xa2, 0x9f, 0x90, 0x45, 0x60,
];

pub(crate) fn goodbye() -> Goodbye {
    Goodbye { code: goodbye::Code::ShuttingDown.into(), message: "maintenance".to_owned(), retry_after_ms: 5000 }
}

pub(crate) fn device_message(kind: device_message::Kind) -> Bytes {
    DeviceMessage { kind: Some(kind) }.encode_to_vec().into()
}

pub(crate) fn server_message(kind: server_message::Kind) -> Bytes {
    ServerMessage { kind: Some(kind) }.encode_to_vec().into()
}

/// Field 99, length-delimited, empty: a kind from the future, the same in both directions.
pub(crate) const UNKNOWN_KIND: &[u8] = &[0x9a, 0x06, 0x00];

/// Every kind that a device may send, by name.
pub(crate) fn device_kinds() -> Vec<(&'static str, device_message::Kind)> {
    use device_message::Kind;
    let failed = CommandStatus {
        code: "exit_status".to_owned(),
        message: "the service did not start: exit status 3".to_owned(),
        percent: Some(100),
        data_json: Bytes::from_static(br#"{"exit_status":3}"#),
        ..status(command_status::State::Failed)
    };
    vec![
        ("hello", Kind::Hello(hello())),
        ("ping", Kind::Ping(Ping { token: 42 })),
        ("pong", Kind::Pong(Pong { token: 42 })),
        ("metrics", Kind::Metrics(report())),
        ("command_status", Kind::CommandStatus(failed)),
        (
            "certificate_request",
            Kind::CertificateRequest(CertificateRequest { csr_der: Bytes::from_static(&[0x30, 0]) }),
        ),
        ("goodbye", Kind::Goodbye(goodbye())),
        ("configuration_status", Kind::ConfigurationStatus(configuration_status())),
    ]
}

/// Every kind that a server may send, by name.
pub(crate) fn server_kinds() -> Vec<(&'static str, server_message::Kind)> {
    use server_message::Kind;
    let restart = command::Kind::RestartService(RestartService { service: "nginx.service".to_owned() });
    vec![
        ("welcome", Kind::Welcome(welcome())),
        ("ping", Kind::Ping(Ping { token: 42 })),
        ("pong", Kind::Pong(Pong { token: 42 })),
        ("command_collect_metrics", Kind::Command(command(Some(command::Kind::CollectMetrics(CollectMetrics {}))))),
        ("command_restart_service", Kind::Command(command(Some(restart)))),
        ("command_reboot", Kind::Command(command(Some(command::Kind::Reboot(Reboot {}))))),
        ("command_shutdown", Kind::Command(command(Some(command::Kind::Shutdown(Shutdown {}))))),
        (
            "command_link_test",
            Kind::Command(command(Some(command::Kind::LinkTest(LinkTest {
                upload: true,
                seconds: 5,
                ..LinkTest::default()
            })))),
        ),
        ("command_cancel", Kind::CommandCancel(CommandCancel { id: command(None).id, reason: "revoked".to_owned() })),
        ("command_receipt", Kind::CommandReceipt(CommandReceipt { id: command(None).id })),
        (
            "certificate_issued",
            Kind::CertificateIssued(CertificateIssued {
                chain_der: vec![Bytes::from_static(&[0x30, 0]), Bytes::from_static(&[0x30, 1, 0])],
            }),
        ),
        (
            "certificate_refused",
            Kind::CertificateRefused(CertificateRefused {
                code: "too_early".to_owned(),
                message: "the present certificate is valid for long".to_owned(),
                retry_after_ms: 3_600_000,
            }),
        ),
        ("reconnect", Kind::Reconnect(Reconnect { after_ms: 12_000, reason: "the node is drained".to_owned() })),
        ("goodbye", Kind::Goodbye(goodbye())),
        ("configuration", Kind::Configuration(configuration())),
        (
            "command_container_update",
            Kind::Command(command(Some(command::Kind::ContainerUpdate(Box::new(ContainerUpdate {
                container: "app".to_owned(),
                image: format!("registry.example.com/vendor/app@sha256:{}", "9f".repeat(32)),
            }))))),
        ),
    ]
}

/// A server's end in this state.
pub(crate) fn server_in(state: State) -> Session<Server> {
    let now = start();
    let mut server = Session::server(now, &Timing::default());
    if state != State::AwaitHello {
        server.handle_message(now, &device_message(device_message::Kind::Hello(hello()))).unwrap();
    }
    if matches!(state, State::Live | State::Closing | State::Closed) {
        server.welcome(now, &admission()).unwrap();
    }
    end(&mut server, state);
    server
}

/// A device's end in this state; `None` for the one that it never has.
pub(crate) fn device_in(state: State) -> Option<Session<Device>> {
    let now = start();
    let mut device = Session::device(now, hello()).unwrap();
    if matches!(state, State::Live | State::Closing | State::Closed) {
        device.handle_message(now, &server_message(server_message::Kind::Welcome(welcome()))).unwrap();
    }
    end(&mut device, state);
    (state != State::AwaitHello).then_some(device)
}

fn end<S: Side>(session: &mut Session<S>, state: State) {
    match state {
        State::Closing => session.goodbye(start(), goodbye::Code::ShuttingDown, "maintenance", Duration::ZERO),
        State::Closed => session.transport_lost(None),
        State::AwaitHello | State::AwaitWelcome | State::Live => {}
    }
    while session.poll_transmit().is_some() {}
}
