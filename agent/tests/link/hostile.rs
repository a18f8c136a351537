//! Crashes at any moment, and a server that means no good.

use std::collections::BTreeMap;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId};
use cloudlink_proto::link::FromDevice;
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    CertificateIssued, Command, CommandReceipt, RestartService, ServerMessage, command, server_message,
};
use prost::Message as _;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::server::{Device, Fleet, NEVER, Order, SOON, ServerLink, TestServer, YOUNG};

fn restart(number: u128, service: &str) -> Command {
    let bytes = |number| Uuid::from_u128(number).as_bytes().to_vec().into();
    let kind = command::Kind::RestartService(RestartService { service: service.to_owned() });
    Command { id: bytes(number), grant_id: bytes(99), start_within_ms: 60_000, kind: Some(kind), ..Command::default() }
}

/// A running agent that ends as with a power cut.
struct Killed(Child);

impl Killed {
    fn start(device: &Device) -> Self {
        let mut command = Process::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
        command.args(["run", "--config"]).arg(device.path("agent.toml"));
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Told = BTreeMap<CommandId, Vec<State>>;

/// Takes in what the device says next of a command.
async fn hear(link: &mut ServerLink, told: &mut Told) {
    let FromDevice::CommandStatus { id, state, .. } = link.message().await else { return };
    told.entry(id).or_default().push(state);
}

fn is_end(state: State) -> bool {
    !matches!(state, State::Accepted | State::Running)
}

fn has_ended(told: &Told, commands: u128) -> bool {
    told.len() as u128 == commands && told.values().all(|states| states.iter().any(|state| is_end(*state)))
}

#[tokio::test]
async fn killed_at_any_moment_an_agent_runs_nothing_twice_and_ends_everything_in_one_way() {
    const COMMANDS: u128 = 12;
    const KILLS: u64 = 10;
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    // Each command has a service of its own, so that what ran tells which command it was.
    let service = |number: u128| format!("s{number}");
    let allowed: Vec<String> = (1..=COMMANDS + 1).map(service).collect();
    let config = std::fs::read_to_string(device.path("agent.toml")).unwrap();
    std::fs::write(device.path("agent.toml"), config.replace(r#"["web"]"#, &format!("{allowed:?}"))).unwrap();
    let mut told = Told::new();
    for kill in 0..=KILLS {
        let agent = Killed::start(&device);
        let mut link = server.link().await;
        // The last agent gets one that none was killed over: it runs, whatever became of the others.
        let commands = if kill == KILLS { COMMANDS + 1 } else { COMMANDS };
        for number in 1..=commands {
            link.send(restart(number, &service(number))).await;
        }
        if kill == KILLS {
            let all_ended = async {
                while !has_ended(&told, commands) {
                    hear(&mut link, &mut told).await;
                }
            };
            timeout(SOON, all_ended).await.expect("everything ends");
        } else {
            // Another moment each time.
            let moment = Duration::from_millis(3 * kill * kill);
            let _ = timeout(moment, async {
                loop {
                    hear(&mut link, &mut told).await;
                }
            })
            .await;
        }
        drop(agent);
    }
    let ran = std::fs::read_to_string(device.path("restarts")).unwrap();
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    let runs = ran.len();
    ran.dedup();
    assert_eq!(ran.len(), runs, "something ran twice");
    assert!(ran.contains(&service(COMMANDS + 1).as_str()), "{ran:?}");
    for (id, states) in told {
        let mut ends: Vec<State> = states.into_iter().filter(|state| is_end(*state)).collect();
        ends.dedup();
        assert_eq!(ends.len(), 1, "{id} ended as {ends:?}");
    }
}

#[tokio::test]
async fn a_flood_of_commands_is_refused_beyond_the_bound_and_the_agent_goes_on() {
    const FLOOD: u128 = 400;
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    std::fs::write(device.path("restart"), format!("echo x >> {}; sleep 1\n", device.path("restarts").display()))
        .unwrap();
    let _agent = Killed::start(&device);
    let mut link = server.link().await;
    let mut refused = 0;
    for number in 1..=FLOOD {
        link.send(restart(number, "web")).await;
    }
    while refused < 300 {
        refused += usize::from(link.status().await.state() == State::Refused);
    }
    for number in 1..=FLOOD {
        link.send(CommandReceipt { id: Uuid::from_u128(number).as_bytes().to_vec().into() }).await;
    }
    link.send(restart(FLOOD + 1, "not allowed")).await;
    let last = Uuid::from_u128(FLOOD + 1).as_bytes().to_vec();
    let answered = async { while link.status().await.id != last {} };
    timeout(SOON, answered).await.expect("it still answers");
}

#[tokio::test]
async fn a_chain_beyond_the_limits_ends_the_link_and_is_not_stored() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let _agent = Killed::start(&device);
    for chain in [vec![vec![0x30; 9_000]], vec![vec![0x30; 64]; 9]] {
        let mut link = server.link().await;
        let chain_der = chain.into_iter().map(Into::into).collect();
        let issued = server_message::Kind::CertificateIssued(CertificateIssued { chain_der });
        let bytes = ServerMessage { kind: Some(issued) }.encode_to_vec();
        link.order(Order::Raw(Message::Binary(bytes.into()))).await;
        assert_eq!(link.closed().await.code, Code::ProtocolError);
    }
    server.link().await;
    assert!(!device.slot("next").exists());
}

#[tokio::test]
async fn a_server_that_takes_the_device_for_another_one_is_left_and_not_obeyed() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    server.mistake_for(DeviceId::from_uuid(Uuid::from_u128(4711)));
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let _agent = Killed::start(&device);
    let mut link = server.link().await;
    link.send(restart(1, "web")).await;
    let close = link.closed().await;
    assert_eq!((close.code, close.message.as_str()), (Code::ProtocolError, "that is another device"));
    server.no_link_within(Duration::from_secs(2)).await;
    assert!(!device.path("restarts").exists());
}
