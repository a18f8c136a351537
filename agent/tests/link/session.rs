//! Links: messages, commands, renewal, reconnecting.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_agent::agent::Agent;
use cloudlink_agent::config::Config;
use cloudlink_agent::disk::StateDir;
use cloudlink_agent::executor::Bus;
use cloudlink_agent::local;
use cloudlink_certs::DeviceCertificate;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::transport_failure::{Stage, Transport};
use cloudlink_proto::link::message::{
    CertificateIssued, CollectMetrics, Command, CommandReceipt, CommandStatus, Reconnect, RestartService, command,
    command_status,
};
use cloudlink_proto::link::{FromDevice, MESSAGE_BYTES_MAX};
use rstest::rstest;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::namespace::{hide_program, in_mounts};
use crate::server::{
    Device, Fleet, Incoming, NEVER, Order, Refusal, SOON, ServerLink, TestServer, YOUNG, eventually, serial_in,
};

const DUE: (time::Duration, time::Duration) = (time::Duration::days(81), time::Duration::days(90));

pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(device: &Device) -> Self {
        let state_dir = StateDir::open(&device.config.state_dir).unwrap();
        let agent = Agent::new(device.config.clone(), state_dir, Bus::System).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent.run(stop.clone()));
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.expect("it stops in time").expect("it does not panic");
    }
}

async fn linked((age, life): (time::Duration, time::Duration)) -> (TestServer, Device, Running, ServerLink) {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, age, life);
    let agent = Running::start(&device);
    let link = server.link().await;
    (server, device, agent, link)
}

fn instruct(number: u128, kind: command::Kind) -> Command {
    let bytes = |number| Uuid::from_u128(number).as_bytes().to_vec().into();
    Command { id: bytes(number), grant_id: bytes(99), start_within_ms: 60_000, kind: Some(kind), ..Command::default() }
}

fn restart() -> command::Kind {
    command::Kind::RestartService(RestartService { service: "web".to_owned() })
}

async fn receive_states(link: &mut ServerLink, expected: &[command_status::State]) -> CommandStatus {
    let mut last = CommandStatus::default();
    for state in expected {
        last = link.status().await;
        assert_eq!(last.state(), *state, "{last:?}");
    }
    last
}

use command_status::State::{Accepted, Failed, Refused, Running as Begun, Succeeded};

#[tokio::test]
async fn says_who_it_is_and_reports_metrics_at_the_servers_interval() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), Duration::from_millis(1000)).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let agent = Running::start(&device);
    let mut link = server.link().await;
    assert_eq!(link.hello.boot_id, "boot-1");
    let kinds = [
        "metrics.collect",
        "service.restart",
        "device.reboot",
        "device.shutdown",
        "os.update",
        "agent.update",
        "container.update",
        "link.test",
        "configuration",
    ];
    assert_eq!(link.hello.capabilities, kinds);
    assert!(link.hello.agent.starts_with("cloudlink-agent/"));
    for _ in 0..2 {
        assert!(link.metrics().await.memory_total_bytes.unwrap() > 0);
    }
    agent.stop().await;
    assert_eq!(link.closed().await.code, Code::ShuttingDown);
}

#[tokio::test]
async fn carries_a_command_out_once_and_tells_it_until_it_is_receipted() {
    let (mut server, device, agent, mut link) = linked(YOUNG).await;
    link.send(instruct(1, restart())).await;
    let done = receive_states(&mut link, &[Accepted, Begun, Succeeded]).await;
    link.order(Order::Cut).await;

    let mut link = server.link().await;
    assert_eq!(link.status().await, done, "no receipt: told again");
    link.send(instruct(1, restart())).await;
    assert_eq!(link.status().await, done, "a duplicate is answered");
    link.send(CommandReceipt { id: done.id.clone() }).await;
    link.send(instruct(2, command::Kind::CollectMetrics(CollectMetrics {}))).await;
    let measured = receive_states(&mut link, &[Accepted, Begun, Succeeded]).await;
    let data: serde_json::Value = serde_json::from_slice(&measured.data_json).unwrap();
    assert!(data["uptime_seconds"].as_u64().unwrap() > 0);
    link.order(Order::Cut).await;

    let mut link = server.link().await;
    assert_eq!(link.status().await, measured, "the first was receipted and is not told again");
    assert_eq!(std::fs::read_to_string(device.path("restarts")).unwrap(), "web\n");
    agent.stop().await;
}

#[tokio::test]
async fn tells_once_how_attempts_failed() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    for _ in 0..2 {
        server.refuse_next(Refusal::Http { status: "503 Service Unavailable", headers: "", body: "" });
    }
    let agent = Running::start(&device);
    let link = server.link().await;
    let told = &link.hello.transport_failures;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].transport(), told[0].stage()), (Transport::Websocket, Stage::Http));
    assert_eq!((told[0].code.as_str(), told[0].count), ("status_503", 2));
    assert!(link.hello.clock_unix_ms.abs_diff(told[0].last_unix_ms) < 60_000, "{told:?}");

    link.order(Order::Goodbye(Code::ShuttingDown, Duration::ZERO)).await;
    let link = server.link().await;
    assert_eq!(link.hello.transport_failures, [], "it is told already, and a goodbye is no failure");
    link.order(Order::Cut).await;
    let told = server.link().await.hello.transport_failures;
    assert_eq!((told.len(), told[0].stage(), told[0].code.as_str()), (1, Stage::Link, "broken"), "{told:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_busy_lock_that_is_set_while_it_dials_anew_is_told_on_the_new_link() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let mut device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    // The first connection passes, the second waits here.
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let beyond = device.config.server.address.replace(gate.local_addr().unwrap()).unwrap();
    let (waits, let_pass) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (waiting, passing) = (Arc::clone(&waits), Arc::clone(&let_pass));
    tokio::spawn(async move {
        for number in 0.. {
            let (mut near, _) = gate.accept().await.unwrap();
            if number == 1 {
                waiting.notify_one();
                passing.notified().await;
            }
            tokio::spawn(async move {
                let mut far = TcpStream::connect(beyond).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let agent = Running::start(&device);
    let mut old = server.link().await;
    old.send(Reconnect { after_ms: 10, reason: "drain".to_owned() }).await;
    timeout(SOON, waits.notified()).await.expect("it dials anew");

    let lock = serde_json::json!({ "reason": "results", "seconds": 60 });
    local::ask(&device.config.local.socket, http::Method::PUT, "/v1/busy", Some(&lock)).await.unwrap();
    let told = |said: Incoming| {
        let Incoming::Message(FromDevice::BusyLock(lock)) = said else { panic!("expected a lock, got {said:?}") };
        lock.reason
    };
    assert_eq!(told(old.next().await), "results");
    let_pass.notify_one();
    let mut link = server.link().await;
    assert_eq!(link.hello.busy_lock, None, "the hello was made before");
    assert_eq!(told(link.next().await), "results");
    agent.stop().await;
}

#[test]
fn without_an_openvpn_program_the_other_transport_has_its_turn() {
    in_mounts(|| async {
        hide_program("openvpn");
        let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
        let mut device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
        let path = device.path("agent.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("[server]\n", "[server]\ntransports = [\"openvpn\", \"websocket\"]\n");
        device.config = Config::parse(&(text + "[openvpn]\nstart = true\n")).unwrap();
        let agent = Running::start(&device);
        let told = server.link().await.hello.transport_failures;
        assert_eq!(
            (told.len(), told[0].transport(), told[0].stage()),
            (1, Transport::Openvpn, Stage::Tunnel),
            "{told:?}"
        );
        assert_eq!(told[0].code, "no_program");
        agent.stop().await;
    });
}

#[tokio::test]
async fn tells_after_a_restart_what_became_of_a_reboot() {
    let (mut server, device, agent, mut link) = linked(YOUNG).await;
    link.send(instruct(1, command::Kind::Reboot(cloudlink_proto::link::message::Reboot {}))).await;
    receive_states(&mut link, &[Accepted, Begun]).await;
    agent.stop().await;

    std::fs::write(device.path("boot_id"), "boot-2\n").unwrap();
    let agent = Running::start(&device);
    let mut link = server.link().await;
    assert_eq!(link.hello.boot_id, "boot-2");
    let told = receive_states(&mut link, &[Succeeded]).await;
    assert_eq!(told.data_json, r#"{"boot_id_after":"boot-2","boot_id_before":"boot-1"}"#);
    agent.stop().await;
}

#[tokio::test]
async fn a_stop_waits_for_what_is_under_way_and_reports_it() {
    let (_server, device, agent, mut link) = linked(YOUNG).await;
    std::fs::write(device.path("restart"), "sleep 1; exit 4\n").unwrap();
    link.send(instruct(1, restart())).await;
    receive_states(&mut link, &[Accepted, Begun]).await;
    agent.stop.cancel();
    link.send(instruct(2, restart())).await;
    assert_eq!(receive_states(&mut link, &[Refused]).await.code, "busy", "nothing is promised in the last seconds");
    agent.stop().await;
    assert_eq!(receive_states(&mut link, &[Failed]).await.code, "exit_status");
    assert_eq!(link.closed().await.code, Code::ShuttingDown);
}

#[tokio::test]
async fn opens_the_new_link_before_it_closes_the_old_one() {
    let (mut server, _device, agent, mut old) = linked(YOUNG).await;
    old.send(Reconnect { after_ms: 10, reason: "drain".to_owned() }).await;
    let mut new = server.link().await;
    let close = old.closed().await;
    assert_eq!((close.code, close.message.as_str()), (Code::Replaced, "a newer link is up"));
    new.send(instruct(1, restart())).await;
    receive_states(&mut new, &[Accepted, Begun, Succeeded]).await;
    agent.stop().await;
}

#[tokio::test]
async fn stays_away_as_long_as_a_goodbye_asks() {
    let (mut server, _device, agent, link) = linked(YOUNG).await;
    link.order(Order::Goodbye(Code::ShuttingDown, Duration::from_millis(1500))).await;
    server.link().await;
    let dialled = server.dialled();
    assert!(dialled[1] - dialled[0] >= Duration::from_millis(1500), "{:?}", dialled[1] - dialled[0]);
    agent.stop().await;
}

#[rstest]
#[case::overloaded("503 Service Unavailable")]
#[case::too_many("429 Too Many Requests")]
#[tokio::test]
async fn stays_away_as_long_as_an_http_answer_asks(#[case] status: &'static str) {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    server.refuse_next(Refusal::Http { status, headers: "retry-after: 2\r\n", body: "{}" });
    let agent = Running::start(&device);
    server.link().await;
    let dialled = server.dialled();
    assert!(dialled[1] - dialled[0] >= Duration::from_secs(2), "{:?}", dialled[1] - dialled[0]);
    agent.stop().await;
}

/// In virtual time: an hour passes at once, and whatever waits for the network may run into its time limit.
#[tokio::test(start_paused = true)]
async fn a_server_that_gives_no_link_is_not_hammered() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    for _ in 0..1000 {
        server.refuse_next(Refusal::Http { status: "500 Internal Server Error", headers: "", body: "" });
    }
    let agent = Running::start(&device);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    // Waits of up to 300 s, 150 s in the middle; without back-off it would be thousands.
    let dialled = server.dialled().len();
    assert!((5..=120).contains(&dialled), "dialled {dialled} times in an hour");
    agent.stop().await;
}

#[tokio::test]
async fn a_refused_device_goes_on_but_slowly() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let body = r#"{"type":"urn:cloudlink:problem:device_revoked","detail":"revoked"}"#;
    server.refuse_next(Refusal::Http { status: "403 Forbidden", headers: "", body });
    let agent = Running::start(&device);
    server.no_link_within(Duration::from_secs(4)).await;
    assert_eq!(server.dialled().len(), 1, "the usual back-off would have dialled again");
    assert!(!agent.task.is_finished());
    agent.stop().await;
}

#[tokio::test]
async fn a_device_that_is_revoked_while_linked_comes_back_slowly() {
    let (mut server, _device, agent, link) = linked(YOUNG).await;
    link.order(Order::Goodbye(Code::Revoked, Duration::ZERO)).await;
    server.no_link_within(Duration::from_secs(4)).await;
    agent.stop().await;
}

#[rstest]
#[case::text(Message::text("hello"))]
#[case::not_protobuf(Message::binary(vec![0xff; 32]))]
#[case::too_large(Message::binary(vec![0; MESSAGE_BYTES_MAX + 1]))]
#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_left_and_dialled_again(#[case] message: Message) {
    let (mut server, _device, agent, mut link) = linked(YOUNG).await;
    link.order(Order::Raw(message)).await;
    assert_eq!(link.closed().await.code, Code::ProtocolError);
    server.link().await;
    agent.stop().await;
}

/// Answers the device's request. Gives the serial of the new certificate.
async fn issue(server: &TestServer, link: &mut ServerLink) -> Vec<u8> {
    issue_prepared(server, link, |_| {}).await
}

/// The same for a certificate that the server is going to refuse: it knows before the device has it.
async fn issue_refused(server: &TestServer, link: &mut ServerLink) -> Vec<u8> {
    issue_prepared(server, link, |serial| server.refuse_serial(serial)).await
}

async fn issue_prepared(server: &TestServer, link: &mut ServerLink, prepare: impl FnOnce(&[u8])) -> Vec<u8> {
    let incoming = link.next().await;
    let Incoming::Message(FromDevice::CertificateRequest(request)) = incoming else {
        panic!("expected a request, got {incoming:?}");
    };
    let certificate = server.fleet.device_certificate(&request.csr_der, YOUNG.0, YOUNG.1);
    let serial = DeviceCertificate::parse(&certificate).unwrap().serial;
    prepare(&serial);
    link.send(CertificateIssued { chain_der: vec![certificate.to_vec().into()] }).await;
    serial
}

#[tokio::test]
async fn renews_in_time_and_promotes_the_new_certificate_when_it_is_welcomed() {
    let (mut server, device, agent, mut link) = linked(DUE).await;
    let renewed = issue(&server, &mut link).await;

    let new = server.link().await;
    assert_eq!(new.certificate.serial, renewed);
    let (current, next) = (device.slot("current"), device.slot("next"));
    eventually("it is the current one", || !next.exists() && serial_in(&current) == renewed).await;
    assert_eq!(std::fs::metadata(&current).unwrap().permissions().mode() & 0o777, 0o600);
    agent.stop().await;
}

#[tokio::test]
async fn falls_back_when_the_new_certificate_is_refused_and_asks_for_another() {
    let (mut server, device, agent, mut link) = linked(DUE).await;
    let before = serial_in(&device.slot("current"));
    issue_refused(&server, &mut link).await;
    let next = device.slot("next");

    let mut again = server.link().await;
    assert_eq!(again.certificate.serial, before);
    assert_eq!(serial_in(&device.slot("current")), before, "what was not welcomed is not promoted");
    eventually("the refused one is gone", || !next.exists()).await;
    issue(&server, &mut again).await;
    let third = server.link().await;
    eventually("the third is the current one", || serial_in(&device.slot("current")) == third.certificate.serial).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_server_that_refuses_each_certificate_that_it_issues_is_left_in_peace() {
    let (mut server, device, agent, mut link) = linked(DUE).await;
    let next = device.slot("next");
    for _ in 0..2 {
        issue_refused(&server, &mut link).await;
        link = server.link().await;
        eventually("the refused one is gone", || !next.exists()).await;
    }
    link.send(instruct(1, restart())).await;
    // The first thing to be heard, rather than another request.
    receive_states(&mut link, &[Accepted, Begun, Succeeded]).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_new_certificate_that_failed_without_being_refused_is_tried_again_with_the_next_link() {
    let (mut server, device, agent, mut link) = linked(DUE).await;
    let before = serial_in(&device.slot("current"));
    server.refuse_next(Refusal::Http { status: "500 Internal Server Error", headers: "", body: "" });
    issue(&server, &mut link).await;
    let again = server.link().await;
    assert_eq!(again.certificate.serial, before);
    let renewed = serial_in(&device.slot("next"));
    again.order(Order::Cut).await;
    assert_eq!(server.link().await.certificate.serial, renewed);
    eventually("it is the current one", || serial_in(&device.slot("current")) == renewed).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_key_or_device_is_not_taken() {
    let (_server, device, agent, mut link) = linked(DUE).await;
    let Incoming::Message(FromDevice::CertificateRequest(_)) = link.next().await else { panic!("expected a request") };
    let other = Fleet::new();
    let request = cloudlink_agent::identity::request(&cloudlink_agent::identity::new_key().unwrap()).unwrap();
    let foreign = other.device_certificate(&request, YOUNG.0, YOUNG.1);
    link.send(CertificateIssued { chain_der: vec![foreign.to_vec().into()] }).await;
    link.send(instruct(1, restart())).await;
    receive_states(&mut link, &[Accepted, Begun, Succeeded]).await;
    assert!(!device.slot("next").exists());
    agent.stop().await;
}
