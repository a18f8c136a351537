//! What a peer may do wrong, and what it is told.

use bytes::Bytes;
use cloudlink_proto::link::message::{
    Artifact, CertificateIssued, CertificateRequest, Command, CommandStatus, Configuration, ConfigurationStatus,
    ContainerUpdate, Hello, MetricsReport, RestartService, TransportFailure, Update, Welcome, command, command_status,
    device_message, server_message,
};
use cloudlink_proto::link::{
    CONFIGURATION_BYTES_MAX, CONFIGURATION_VERSION_MAX, FromServer, MESSAGE_BYTES_MAX, Session, State, Timing,
    Violation,
};
use rstest::rstest;

use crate::example::{
    UNKNOWN_KIND, command as any_command, configuration, configuration_status, device_in, device_message, failure,
    hello, report, server_in, server_message, start, status, welcome,
};

fn reporting(failure: TransportFailure) -> Hello {
    Hello { transport_failures: vec![failure], ..hello() }
}

#[rstest]
#[case::versions(Hello { versions: vec![1; 17], ..hello() }, "Hello.versions has more than 16 entries")]
#[case::capabilities(Hello { capabilities: vec!["a".into(); 65], ..hello() }, "Hello.capabilities has more than 64 entries")]
#[case::capability(Hello { capabilities: vec!["a".repeat(257)], ..hello() }, "Hello.capabilities is longer than 256 bytes")]
#[case::no_capability(Hello { capabilities: vec![String::new()], ..hello() }, "Hello.capabilities is empty")]
#[case::no_boot_id(Hello { boot_id: String::new(), ..hello() }, "Hello.boot_id is empty")]
#[case::boot_id(Hello { boot_id: "a".repeat(257), ..hello() }, "Hello.boot_id is longer than 256 bytes")]
#[case::agent(Hello { agent: "a".repeat(257), ..hello() }, "Hello.agent is longer than 256 bytes")]
#[case::os(Hello { os: "a".repeat(257), ..hello() }, "Hello.os is longer than 256 bytes")]
#[case::hostname(Hello { hostname: "a".repeat(257), ..hello() }, "Hello.hostname is longer than 256 bytes")]
#[case::failures(Hello { transport_failures: vec![failure(); 33], ..hello() }, "Hello.transport_failures has more than 32 entries")]
#[case::no_code(reporting(TransportFailure { code: String::new(), ..failure() }), "TransportFailure.code is empty")]
#[case::code(reporting(TransportFailure { code: "a".repeat(33), ..failure() }), "TransportFailure.code is longer than 32 bytes")]
#[case::words(reporting(TransportFailure { code: "it broke".to_owned(), ..failure() }), "TransportFailure.code is out of range")]
#[case::never(reporting(TransportFailure { count: 0, ..failure() }), "TransportFailure.count is out of range")]
fn hello_over_a_limit_is_refused(#[case] hello: Hello, #[case] fault: &str) {
    let mut server = server_in(State::AwaitHello);
    let violation = server.handle_message(start(), &device_message(device_message::Kind::Hello(hello))).unwrap_err();
    assert_eq!(violation.to_string(), format!("a message breaks a limit: {fault}"));
    assert_eq!(server.close().map(|close| close.close_code()), Some(4004));
}

#[rstest]
#[case::versions(Hello { versions: vec![1; 16], ..hello() })]
#[case::failures(Hello { transport_failures: vec![failure(); 32], ..hello() })]
#[case::unknown_failure(reporting(TransportFailure { transport: 99, stage: 99, code: "a_0".to_owned(), ..failure() }))]
#[case::capabilities(Hello { capabilities: vec!["a".repeat(256); 64], ..hello() })]
#[case::strings(Hello { boot_id: "a".repeat(256), agent: "a".repeat(256), os: "a".repeat(256), hostname: "a".repeat(256), ..hello() })]
#[case::clock_years_off(Hello { clock_unix_ms: u64::MAX, ..hello() })]
#[case::newer_first(Hello { versions: vec![9, 1], ..hello() })]
#[case::little_known(Hello { capabilities: Vec::new(), agent: String::new(), os: String::new(), hostname: String::new(), ..hello() })]
fn hello_at_its_limits_is_taken(#[case] hello: Hello) {
    let mut server = server_in(State::AwaitHello);
    server.handle_message(start(), &device_message(device_message::Kind::Hello(hello))).unwrap();
    assert_eq!(server.state(), State::AwaitWelcome);
}

#[rstest]
#[case::id(CommandStatus { id: Bytes::from_static(b"short"), ..failed() }, "CommandStatus.id is not an identifier")]
#[case::no_state(CommandStatus { state: 0, ..failed() }, "CommandStatus.state is out of range")]
#[case::future_state(CommandStatus { state: 8, ..failed() }, "CommandStatus.state is out of range")]
#[case::code(CommandStatus { code: "a".repeat(257), ..failed() }, "CommandStatus.code is longer than 256 bytes")]
#[case::message(CommandStatus { message: "a".repeat(1025), ..failed() }, "CommandStatus.message is longer than 1024 bytes")]
#[case::percent(CommandStatus { percent: Some(101), ..failed() }, "CommandStatus.percent is out of range")]
#[case::data(CommandStatus { data_json: vec![b' '; 32_769].into(), ..failed() }, "CommandStatus.data_json is longer than 32768 bytes")]
fn status_over_a_limit_is_refused(#[case] status: CommandStatus, #[case] fault: &str) {
    assert_refused_by_server(device_message::Kind::CommandStatus(status), fault);
}

#[rstest]
#[case::cpu(MetricsReport { cpu_percent: Some(100.5), ..report() }, "MetricsReport.cpu_percent is out of range")]
#[case::cpu_nan(MetricsReport { cpu_percent: Some(f64::NAN), ..report() }, "MetricsReport.cpu_percent is out of range")]
#[case::hot(MetricsReport { temperature_celsius: Some(f64::INFINITY), ..report() }, "MetricsReport.temperature_celsius is out of range")]
#[case::load(MetricsReport { load_1m: Some(f64::NAN), ..report() }, "MetricsReport.load_1m is out of range")]
fn report_that_json_cannot_hold_is_refused(#[case] report: MetricsReport, #[case] fault: &str) {
    assert_refused_by_server(device_message::Kind::Metrics(report), fault);
}

#[rstest]
#[case::empty(Bytes::new(), "CertificateRequest.csr_der is empty")]
#[case::long(vec![0; 4097].into(), "CertificateRequest.csr_der is longer than 4096 bytes")]
fn certificate_request_over_a_limit_is_refused(#[case] csr_der: Bytes, #[case] fault: &str) {
    assert_refused_by_server(device_message::Kind::CertificateRequest(CertificateRequest { csr_der }), fault);
}

#[rstest]
#[case::id(Command { id: Bytes::new(), ..any_command(None) }, "Command.id is not an identifier")]
#[case::grant(Command { grant_id: vec![0; 17].into(), ..any_command(None) }, "Command.grant_id is not an identifier")]
#[case::requested_by(Command { requested_by: "a".repeat(257), ..any_command(None) }, "Command.requested_by is longer than 256 bytes")]
#[case::reason(Command { reason: "a".repeat(1025), ..any_command(None) }, "Command.reason is longer than 1024 bytes")]
#[case::trace_parent(Command { trace_parent: "0".repeat(257), ..any_command(None) }, "Command.trace_parent is longer than 256 bytes")]
#[case::service(any_command(Some(restart("a".repeat(129)))), "RestartService.service is longer than 128 bytes")]
#[case::no_service(any_command(Some(restart(String::new()))), "RestartService.service is empty")]
#[case::no_artifact(any_command(Some(update(None, "2"))), "Update.artifact is empty")]
#[case::no_url(any_command(Some(update(Some(artifact(0, 32, 1)), "2"))), "Artifact.url is empty")]
#[case::url(any_command(Some(update(Some(artifact(2049, 32, 1)), "2"))), "Artifact.url is longer than 2048 bytes")]
#[case::digest(any_command(Some(update(Some(artifact(9, 31, 1)), "2"))), "Artifact.sha256 is out of range")]
#[case::no_size(any_command(Some(update(Some(artifact(9, 32, 0)), "2"))), "Artifact.size is out of range")]
#[case::no_version(any_command(Some(update(Some(artifact(9, 32, 1)), ""))), "Update.version is empty")]
#[case::option(any_command(Some(update(Some(artifact(9, 32, 1)), "--no-verify"))), "Update.version is out of range")]
#[case::version(any_command(Some(update(Some(artifact(9, 32, 1)), "a b"))), "Update.version is out of range")]
#[case::no_container(any_command(Some(container("", IMAGE))), "ContainerUpdate.container is empty")]
#[case::container(any_command(Some(container(&"a".repeat(129), IMAGE))), "ContainerUpdate.container is longer than 128 bytes")]
#[case::container_name(
    any_command(Some(container("--privileged", IMAGE))),
    "ContainerUpdate.container is out of range"
)]
#[case::no_image(any_command(Some(container("app", ""))), "ContainerUpdate.image is empty")]
#[case::tag(any_command(Some(container("app", "vendor/app:latest"))), "ContainerUpdate.image is out of range")]
#[case::image(any_command(Some(container("app", &"a".repeat(328)))), "ContainerUpdate.image is longer than 327 bytes")]
fn command_over_a_limit_is_refused(#[case] command: Command, #[case] fault: &str) {
    assert_refused_by_device(State::Live, server_message::Kind::Command(command), fault);
}

#[rstest]
#[case::none(Vec::new(), "CertificateIssued.chain_der is empty")]
#[case::many(vec![Bytes::from_static(&[0x30]); 9], "CertificateIssued.chain_der has more than 8 entries")]
#[case::long(vec![vec![0; 8193].into()], "CertificateIssued.chain_der is longer than 8192 bytes")]
fn chain_over_a_limit_is_refused(#[case] chain_der: Vec<Bytes>, #[case] fault: &str) {
    assert_refused_by_device(
        State::Live,
        server_message::Kind::CertificateIssued(CertificateIssued { chain_der }),
        fault,
    );
}

#[rstest]
#[case::no_version(Configuration { version: 0, ..configuration() }, "Configuration.version is out of range")]
#[case::version(Configuration { version: 1 << 53, ..configuration() }, "Configuration.version is out of range")]
#[case::no_document(Configuration { document_json: Bytes::new(), ..configuration() }, "Configuration.document_json is empty")]
#[case::document(Configuration { document_json: vec![b' '; 61_441].into(), ..configuration() }, "Configuration.document_json is longer than 61440 bytes")]
#[case::hash(Configuration { sha256: Bytes::from_static(b"short"), ..configuration() }, "Configuration.sha256 is out of range")]
fn configuration_over_a_limit_is_refused(#[case] configuration: Configuration, #[case] fault: &str) {
    assert_refused_by_device(State::Live, server_message::Kind::Configuration(configuration), fault);
}

#[test]
fn the_largest_configuration_fits_into_a_message() {
    let mut server = server_in(State::Live);
    let largest = Configuration {
        version: CONFIGURATION_VERSION_MAX,
        document_json: vec![b' '; CONFIGURATION_BYTES_MAX].into(),
        ..configuration()
    };
    server.send(start(), largest.clone()).unwrap();
    let heard = device_in(State::Live).unwrap().handle_message(start(), &server.poll_transmit().unwrap());
    assert_eq!(heard, Ok(Some(FromServer::Configuration(largest))));
}

#[rstest]
#[case::held(ConfigurationStatus { held_version: 1 << 53, ..configuration_status() }, "held_version is out of range")]
#[case::hash(ConfigurationStatus { held_sha256: Bytes::new(), ..configuration_status() }, "held_sha256 is out of range")]
#[case::hash_of_none(ConfigurationStatus { held_version: 0, ..configuration_status() }, "held_sha256 is out of range")]
#[case::reported(ConfigurationStatus { reported_version: 1 << 53, ..configuration_status() }, "reported_version is out of range")]
#[case::applied(ConfigurationStatus { applied_version: 4, ..configuration_status() }, "applied_version is out of range")]
#[case::no_error(ConfigurationStatus { error: String::new(), ..configuration_status() }, "error is out of range")]
#[case::needless(ConfigurationStatus { applied_version: 3, ..configuration_status() }, "error is out of range")]
#[case::error(ConfigurationStatus { error: "a".repeat(1025), ..configuration_status() }, "error is longer than 1024 bytes")]
fn configuration_status_over_a_limit_is_refused(#[case] status: ConfigurationStatus, #[case] fault: &str) {
    let fault = format!("ConfigurationStatus.{fault}");
    assert_refused_by_server(device_message::Kind::ConfigurationStatus(status.clone()), &fault);
    let hello = Hello { configuration: Some(status), ..hello() };
    let violation =
        server_in(State::AwaitHello).handle_message(start(), &device_message(device_message::Kind::Hello(hello)));
    assert_eq!(violation.unwrap_err().to_string(), format!("a message breaks a limit: {fault}"));
}

#[rstest]
#[case::epoch(Welcome { epoch: 0, ..welcome() }, "Welcome.epoch is out of range")]
#[case::device(Welcome { device_id: "me".into(), ..welcome() }, "Welcome.device_id is not an identifier")]
#[case::tenant(Welcome { tenant_id: String::new(), ..welcome() }, "Welcome.tenant_id is not an identifier")]
#[case::interval_short(Welcome { ping_interval_ms: 99, ..welcome() }, "Welcome.ping_interval_ms is out of range")]
#[case::interval_long(Welcome { ping_interval_ms: 600_001, ..welcome() }, "Welcome.ping_interval_ms is out of range")]
#[case::missed_none(Welcome { max_missed_pings: 0, ..welcome() }, "Welcome.max_missed_pings is out of range")]
#[case::missed_many(Welcome { max_missed_pings: 101, ..welcome() }, "Welcome.max_missed_pings is out of range")]
fn welcome_over_a_limit_is_refused(#[case] welcome: Welcome, #[case] fault: &str) {
    assert_refused_by_device(State::AwaitWelcome, server_message::Kind::Welcome(welcome), fault);
}

#[rstest]
#[case::none(&[])]
#[case::future(&[2, 3])]
fn hello_without_a_common_version_is_refused(#[case] versions: &[u32]) {
    let mut server = server_in(State::AwaitHello);
    let hello = Hello { versions: versions.to_vec(), ..hello() };
    let violation = server.handle_message(start(), &device_message(device_message::Kind::Hello(hello))).unwrap_err();
    assert_eq!(violation.close_code(), 4006);
    assert_eq!(violation.to_string(), "no protocol version in common; this side speaks [1]");
}

#[test]
fn welcome_in_a_version_that_was_not_offered_is_refused() {
    let mut device = device_in(State::AwaitWelcome).unwrap();
    let welcome = Welcome { version: 2, ..welcome() };
    let violation = device.handle_message(start(), &server_message(server_message::Kind::Welcome(welcome)));
    assert_eq!(violation, Err(Violation::NoCommonVersion));
}

#[test]
fn oversize_message_is_refused_unread() {
    let mut server = server_in(State::Live);
    assert_eq!(server.handle_message(start(), &vec![0; MESSAGE_BYTES_MAX + 1]), Err(Violation::TooLarge));
    assert_eq!(server.close().map(|close| close.close_code()), Some(4004));
}

#[rstest]
#[case::cut_short(&[0x0a, 0x05, 0x01])]
#[case::not_utf8(&[0x0a, 0x04, 0x1a, 0x02, 0xff, 0xfe])]
#[case::group_without_end(&[0x0b])]
#[case::varint_without_end(&[0xff; 11])]
fn malformed_message_is_refused(#[case] message: &[u8]) {
    let mut server = server_in(State::AwaitHello);
    let violation = server.handle_message(start(), message).unwrap_err();
    assert!(matches!(violation, Violation::Undecodable(_)), "{violation:?}");
    assert_eq!(violation.to_string(), "a message cannot be decoded");
}

#[test]
fn text_is_refused() {
    let mut server = server_in(State::Live);
    server.violated(start(), &Violation::Text);
    assert_eq!(
        server.close().map(|close| close.close_text()),
        Some("a text message came; this protocol uses binary messages")
    );
}

#[test]
fn unknown_kinds_are_counted_and_change_nothing() {
    let mut server = server_in(State::Live);
    for _ in 0..3 {
        assert_eq!(server.handle_message(start(), UNKNOWN_KIND), Ok(None));
    }
    assert_eq!((server.unknown_messages(), server.state(), server.poll_transmit()), (3, State::Live, None));
}

#[test]
fn unknown_fields_change_nothing() {
    let mut message = device_message(device_message::Kind::Hello(hello())).to_vec();
    message.extend_from_slice(UNKNOWN_KIND);
    let mut server = server_in(State::AwaitHello);
    server.handle_message(start(), &message).unwrap();
    assert_eq!(server.state(), State::AwaitWelcome);
}

#[test]
fn command_of_an_unknown_kind_reaches_the_agent_that_refuses_it() {
    let mut device = device_in(State::Live).unwrap();
    let message = server_message(server_message::Kind::Command(any_command(None)));
    assert!(device.handle_message(start(), &message).unwrap().is_some());
}

#[test]
fn welcome_without_a_hello_is_the_callers_mistake() {
    let mut server = Session::server(start(), &Timing::default());
    assert!(server.welcome(start(), &crate::example::admission()).is_err());
    assert_eq!(server.poll_transmit(), None);
}

#[test]
fn refusal_is_said_once_and_nothing_queued_goes_out_before_it() {
    let mut server = server_in(State::Live);
    server.send(start(), any_command(None)).unwrap();
    server.handle_message(start(), b"\xff").unwrap_err();
    let mut device = device_in(State::Live).unwrap();
    let goodbye = server.poll_transmit().unwrap();
    device.handle_message(start(), &goodbye).unwrap();
    assert_eq!(device.close().map(|close| close.message.as_str()), Some("a message cannot be decoded"));
    assert_eq!(server.poll_transmit(), None);
}

fn failed() -> CommandStatus {
    status(command_status::State::Failed)
}

fn restart(service: String) -> command::Kind {
    command::Kind::RestartService(RestartService { service })
}

fn update(artifact: Option<Artifact>, version: &str) -> command::Kind {
    command::Kind::OsUpdate(Box::new(Update { artifact, version: version.to_owned() }))
}

const IMAGE: &str = "vendor/app@sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn container(container: &str, image: &str) -> command::Kind {
    let update = ContainerUpdate { container: container.to_owned(), image: image.to_owned() };
    command::Kind::ContainerUpdate(Box::new(update))
}

fn artifact(url_bytes: usize, sha256_bytes: usize, size: u64) -> Artifact {
    Artifact { url: "u".repeat(url_bytes), sha256: vec![0; sha256_bytes].into(), size }
}

fn assert_refused_by_server(kind: device_message::Kind, fault: &str) {
    let mut server = server_in(State::Live);
    let violation = server.handle_message(start(), &device_message(kind)).unwrap_err();
    assert_eq!(violation.to_string(), format!("a message breaks a limit: {fault}"));
    assert_eq!((server.state(), violation.close_code()), (State::Closing, 4004));
}

fn assert_refused_by_device(state: State, kind: server_message::Kind, fault: &str) {
    let mut device = device_in(state).unwrap();
    let violation = device.handle_message(start(), &server_message(kind)).unwrap_err();
    assert_eq!(violation.to_string(), format!("a message breaks a limit: {fault}"));
    assert_eq!((device.state(), violation.close_code()), (State::Closing, 4004));
}
