//! What a device may say, and what happens to one that says something else. Driven by hand: no agent would do this.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::MESSAGE_BYTES_MAX;
use cloudlink_proto::link::message::{
    CertificateRequest, CommandReceipt, CommandStatus, DeviceMessage, Hello, MetricsReport, Ping, Pong, command,
    command_status, device_message, server_message,
};
use cloudlink_tests::dial::{Heard, Link, hello};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use prost::Message as _;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const PROTOCOL_ERROR: Heard = Heard::Closed(4004);

/// Whether the link is served: a ping comes back.
async fn answers(link: &mut Link) -> bool {
    link.send(device_message::Kind::Ping(Ping { token: 7 })).await.unwrap();
    link.hear().await.unwrap() == Heard::Message(server_message::Kind::Pong(Pong { token: 7 }))
}

fn status(id: &str, state: command_status::State) -> device_message::Kind {
    let id: CommandId = id.parse().unwrap();
    device_message::Kind::CommandStatus(CommandStatus {
        id: id.to_wire(),
        state: state.into(),
        ..CommandStatus::default()
    })
}

fn binary(bytes: impl Into<Vec<u8>>) -> Message {
    Message::Binary(bytes.into().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_end_the_link_and_harm_nobody_else() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("broken").await.unwrap();
    let other = fleet.enrolled("other").await.unwrap();
    let (mut other_link, _) = fleet.live(&other).await.unwrap();

    let second_hello = DeviceMessage { kind: Some(device_message::Kind::Hello(hello("first boot"))) };
    // Field 1 of a Ping is a number, and here says that it has more bytes than there are.
    let cut_off = [0x12, 0x05, 0x08];
    // A host name that is not UTF-8.
    let not_utf8 = [0x0a, 0x04, 0x3a, 0x02, 0xff, 0xfe];
    let bad = [
        ("text", Message::text("hello")),
        ("random bytes", binary([0xff; 64])),
        ("cut off", binary(cut_off)),
        ("not UTF-8", binary(not_utf8)),
        ("second hello", binary(second_hello.encode_to_vec())),
        (
            "status of no command",
            binary(
                DeviceMessage {
                    kind: Some(device_message::Kind::CommandStatus(CommandStatus {
                        id: vec![1, 2, 3].into(),
                        ..CommandStatus::default()
                    })),
                }
                .encode_to_vec(),
            ),
        ),
    ];
    for (what, message) in bad {
        let (mut link, _) = fleet.live(&device).await.unwrap();
        link.send_raw(message).await.unwrap();
        assert_eq!(link.hear_the_end().await.unwrap(), PROTOCOL_ERROR, "{what}");
    }
    assert!(answers(&mut other_link).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_message_is_not_taken_in() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    for len in [MESSAGE_BYTES_MAX + 1, 16 * 1024 * 1024] {
        let (mut link, _) = fleet.live(&device).await.unwrap();
        // The server may cut the connection while it is still being sent.
        let _ = link.send_raw(binary(vec![0; len])).await;
        let end = link.hear_the_end().await.unwrap();
        assert!(matches!(end, PROTOCOL_ERROR | Heard::Closed(1009) | Heard::Cut), "{len} bytes: {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_device_says_is_passed_over() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("newer").await.unwrap();
    let (mut link, _) = fleet.live(&device).await.unwrap();
    // Kind 99, and a Ping with a field that nobody knows yet.
    link.send_raw(binary([0x9a, 0x06, 0x02, 0x08, 0x01])).await.unwrap();
    assert!(answers(&mut link).await);
    link.send_raw(binary([0x12, 0x05, 0x08, 0x08, 0xf8, 0x07, 0x01])).await.unwrap();
    assert_eq!(link.hear().await.unwrap(), Heard::Message(server_message::Kind::Pong(Pong { token: 8 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_begins_with_hello() {
    let settings = Settings { set: vec!["link.hello_timeout_seconds=1".to_owned()], ..Settings::default() };
    let fleet = Fleet::start_with(&settings).await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();

    let mut link = fleet.open(&device.credentials).await.unwrap();
    link.send(device_message::Kind::Ping(Ping { token: 1 })).await.unwrap();
    assert_eq!(link.hear_the_end().await.unwrap(), PROTOCOL_ERROR);

    let mut link = fleet.open(&device.credentials).await.unwrap();
    assert_eq!(link.hear_the_end().await.unwrap(), Heard::Closed(4005));

    for bad in [
        Hello { versions: vec![u32::MAX], ..hello("boot") },
        Hello { versions: Vec::new(), ..hello("boot") },
        Hello { versions: vec![1; 100_000], ..hello("boot") },
        hello(""),
        Hello { hostname: "x".repeat(60_000), ..hello("boot") },
        Hello { capabilities: vec!["metrics.collect".to_owned(); 3_000], ..hello("boot") },
    ] {
        let mut link = fleet.open(&device.credentials).await.unwrap();
        let _ = link.send(device_message::Kind::Hello(bad)).await;
        let end = link.hear_the_end().await.unwrap();
        assert!(matches!(end, PROTOCOL_ERROR | Heard::Closed(4006)), "{end:?}");
    }
    let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await.unwrap();
    assert_eq!(shown["link"], Value::Null, "none of them became a link");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_link_wins() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let (mut first, welcome) = fleet.live(&device).await.unwrap();
    assert_eq!(welcome.epoch, 1);
    let (mut second, welcome) = fleet.live(&device).await.unwrap();
    assert_eq!(welcome.epoch, 2);
    assert_eq!(first.hear_the_end().await.unwrap(), Heard::Closed(4002));
    assert!(answers(&mut second).await);
    let shown = fleet.wait_for_link(&device.id, "live").await.unwrap();
    assert_eq!(shown["link"]["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_falls_silent_is_shown_as_gone() {
    let settings = Settings {
        set: vec!["link.ping_interval_seconds=1".to_owned(), "link.max_missed_pings=2".to_owned()],
        ..Settings::default()
    };
    let fleet = Fleet::start_with(&settings).await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let (mut link, welcome) = fleet.live(&device).await.unwrap();
    assert_eq!((welcome.ping_interval_ms, welcome.max_missed_pings), (1_000, 2));
    // Listens, and does not answer.
    assert_eq!(link.hear_the_end().await.unwrap(), Heard::Closed(4005));
    fleet.wait_for_link(&device.id, "closed").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_years_off_is_shown_and_does_no_harm() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    for clock_unix_ms in [0, 1, u64::MAX, 4_102_444_800_000] {
        let mut link = fleet.open(&device.credentials).await.unwrap();
        let heard = link.hello(Hello { clock_unix_ms, ..hello("boot") }).await.unwrap();
        assert!(matches!(heard, Heard::Message(server_message::Kind::Welcome(_))), "{clock_unix_ms}: {heard:?}");
        let shown = fleet.wait_for_link(&device.id, "live").await.unwrap();
        let offset_ms = shown["link"]["clock_offset_ms"].as_i64().unwrap();
        assert!(offset_ms.unsigned_abs() > 1_000 * 3_600 * 24 * 365, "{clock_unix_ms}: {offset_ms}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_reports_on_its_own_commands_only() {
    let fleet = Fleet::start().await.unwrap();
    let victim = fleet.enrolled("victim").await.unwrap();
    let liar = fleet.enrolled("liar").await.unwrap();
    let (mut victim_link, _) = fleet.live(&victim).await.unwrap();
    let (mut liar_link, _) = fleet.live(&liar).await.unwrap();
    fleet.grant(&victim.id, &["service:restart"]).await.unwrap();
    let command = fleet.command(&victim.id, "service.restart", &json!({ "service": "web-ui" })).await.unwrap();
    let heard = victim_link.hear().await.unwrap();
    let Heard::Message(server_message::Kind::Command(sent)) = heard else { unreachable!("{heard:?}") };
    assert_eq!(sent.id, command.parse::<CommandId>().unwrap().to_wire());
    assert!(matches!(&sent.kind, Some(command::Kind::RestartService(restart)) if restart.service == "web-ui"));

    liar_link.send(status(&command, command_status::State::Accepted)).await.unwrap();
    liar_link.send(status(&command, command_status::State::Succeeded)).await.unwrap();
    // Whatever becomes of the liar: once it was heard out, nothing has changed.
    let _ = liar_link.send(device_message::Kind::Ping(Ping { token: 1 })).await;
    let _ = liar_link.hear().await;
    let shown = fleet.operator.get(&format!("/commands/{command}")).await.unwrap();
    assert_eq!(shown["state"], "sent", "{shown}");

    victim_link.send(status(&command, command_status::State::Accepted)).await.unwrap();
    victim_link.send(status(&command, command_status::State::Running)).await.unwrap();
    victim_link.send(status(&command, command_status::State::Failed)).await.unwrap();
    let done = fleet.finished(&command).await.unwrap();
    assert_eq!(done["state"], "failed", "{done}");

    // What is final stays, and is acknowledged each time it is said.
    victim_link.send(status(&command, command_status::State::Succeeded)).await.unwrap();
    loop {
        let heard = victim_link.hear().await.unwrap();
        let Heard::Message(kind) = heard else { unreachable!("{heard:?}") };
        if kind == server_message::Kind::CommandReceipt(CommandReceipt { id: sent.id.clone() }) {
            break;
        }
    }
    let shown = fleet.operator.get(&format!("/commands/{command}")).await.unwrap();
    assert_eq!(shown["state"], "failed", "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_was_not_acknowledged_is_sent_again_on_the_next_link() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let (mut link, _) = fleet.live(&device).await.unwrap();
    fleet.grant(&device.id, &["service:restart"]).await.unwrap();
    let command = fleet.command(&device.id, "service.restart", &json!({ "service": "web-ui" })).await.unwrap();
    let heard = link.hear().await.unwrap();
    assert!(matches!(heard, Heard::Message(server_message::Kind::Command(_))), "{heard:?}");
    drop(link);

    let (mut link, _) = fleet.live(&device).await.unwrap();
    let heard = link.hear().await.unwrap();
    let Heard::Message(server_message::Kind::Command(sent)) = heard else { unreachable!("{heard:?}") };
    assert_eq!(sent.id, command.parse::<CommandId>().unwrap().to_wire());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_measures_is_shown_and_nonsense_is_not() {
    let fleet = Fleet::start().await.unwrap();
    let device = fleet.enrolled("gateway").await.unwrap();
    let (mut link, _) = fleet.live(&device).await.unwrap();
    let report = MetricsReport { cpu_percent: Some(12.5), uptime_seconds: Some(3_600), ..MetricsReport::default() };
    link.send(device_message::Kind::Metrics(report)).await.unwrap();
    let path = format!("/devices/{}/metrics", device.id);
    let shown = wait_for("the report", Duration::from_secs(10), async || fleet.tenant.get(&path).await).await.unwrap();
    assert_eq!((&shown["report"]["cpu_percent"], &shown["report"]["uptime_seconds"]), (&json!(12.5), &json!(3_600)));
    assert_eq!(shown["report"]["temperature_celsius"], Value::Null);

    for cpu_percent in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
        let (mut link, _) = fleet.live(&device).await.unwrap();
        let report = MetricsReport { cpu_percent: Some(cpu_percent), ..MetricsReport::default() };
        link.send(device_message::Kind::Metrics(report)).await.unwrap();
        // Refused, or passed over: never stored.
        let _ = link.send(device_message::Kind::Ping(Ping { token: 1 })).await;
        let _ = link.hear().await;
        let shown = fleet.tenant.get(&path).await.unwrap();
        assert_eq!(shown["report"]["cpu_percent"], 12.5, "{cpu_percent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_over_the_link_and_replaces_the_old_one_once_used() {
    let fleet = Fleet::start().await.unwrap();
    let mut device = fleet.enrolled("gateway").await.unwrap();
    let old = device.clone();
    let (mut link, _) = fleet.live(&device).await.unwrap();
    let key = cloudlink_tests::enroll::new_key().unwrap();
    let csr_der = cloudlink_certs::create_request(&key).unwrap().into();
    link.send(device_message::Kind::CertificateRequest(CertificateRequest { csr_der })).await.unwrap();
    let heard = link.hear().await.unwrap();
    let Heard::Message(server_message::Kind::CertificateIssued(issued)) = heard else { unreachable!("{heard:?}") };
    let certificate = cloudlink_certs::DeviceCertificate::parse(&issued.chain_der[0]).unwrap();
    assert_eq!(certificate.identity.device.to_string(), device.id);
    assert_eq!(certificate.public_key_der, key.public_key_der());

    // Not used yet, so the old one is still good.
    drop(link);
    let (link, _) = fleet.live(&old).await.unwrap();
    drop(link);
    // Used: the old one is no longer.
    device.credentials = cloudlink_tests::dial::Credentials {
        certificate: issued.chain_der[0].to_vec().into(),
        key: std::sync::Arc::new(key),
    };
    let (mut link, _) = fleet.live(&device).await.unwrap();
    assert!(answers(&mut link).await);
    let dialled = fleet.open(&old.credentials).await;
    assert!(dialled.is_err(), "the superseded certificate still opens links");
    assert!(answers(&mut link).await);
}
