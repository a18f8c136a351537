//! The binary as people and service managers use it.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cloudlink_proto::link::message::goodbye::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;

use crate::server::{Device, Fleet, NEVER, Refusal, TOKEN, TestServer, YOUNG};

fn agent(device: &Device, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
    command.args(arguments).arg("--config").arg(device.path("agent.toml")).stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[tokio::test]
async fn a_faulty_configuration_is_told_in_full_with_exit_status_64() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::new(&server);
    let (status, said) = run(agent(&device, &["config", "check"])).await;
    assert_eq!(status, Some(0), "{said}");
    std::fs::write(device.path("agent.toml"), "[server]\nport = 0\nhots = \"a\"\n").unwrap();
    for arguments in [&["config", "check"][..], &["run"], &["doctor"]] {
        let (status, said) = run(agent(&device, arguments)).await;
        assert_eq!(status, Some(64), "{said}");
        for fault in ["server.port", "server.hots is not known", "did you mean host?", "state_dir is missing"] {
            assert!(said.contains(fault), "{said} lacks {fault}");
        }
    }
}

#[tokio::test]
async fn enrolls_runs_and_stops_on_sigterm_without_showing_the_token() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::new(&server);
    let (status, said) = run(agent(&device, &["run"])).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("not enrolled"), "{said}");

    let token_file = device.path("token");
    std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    let token_file = token_file.to_str().unwrap().to_owned();
    let mut command = agent(&device, &["run", "--token-file", &token_file]);
    command.env("RUST_LOG", "trace").stderr(Stdio::piped()).stdout(Stdio::piped());
    let process = command.spawn().unwrap();
    let mut link = server.link().await;

    let (status, said) = run(agent(&device, &["enroll", "--token-file", &token_file])).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("another agent is running"), "{said}");

    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(link.closed().await.code, Code::ShuttingDown);
    let output = spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("link open"), "{said}");
    assert!(!said.contains(TOKEN), "{said}");
}

#[tokio::test]
async fn a_refused_token_and_an_absent_server_have_exit_statuses_of_their_own() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::new(&server);
    let token_file = device.path("token");
    std::fs::write(&token_file, "cle_wrong").unwrap();
    let (status, said) = run(agent(&device, &["enroll", "--token-file", token_file.to_str().unwrap()])).await;
    assert_eq!(status, Some(77), "{said}");
    assert!(said.contains("this token will not do"), "{said}");
    assert!(!said.contains("cle_wrong"), "{said}");
}

#[tokio::test]
async fn a_spoilt_certificate_is_told_with_its_place() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    std::fs::write(device.slot("current"), "spoilt").unwrap();
    let (status, said) = run(agent(&device, &["run"])).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(device.config.state_dir.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn doctor_says_what_is_wrong_and_what_to_do() {
    let server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let (status, said) = run(agent(&device, &["doctor"])).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("TLS 1.3 with link.test"), "{said}");
    assert!(said.contains("the server lets this device in"), "{said}");

    let body = r#"{"type":"urn:cloudlink:problem:device_revoked","title":"No","detail":"it is revoked"}"#;
    server.refuse_next(Refusal::Http { status: "403 Forbidden", headers: "", body });
    let (status, said) = run(agent(&device, &["doctor"])).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("BAD   admission") && said.contains("it is revoked"), "{said}");

    std::fs::write(device.config.state_dir.join("ledger"), "spoilt\n").unwrap();
    std::fs::remove_file(device.path("boot_id")).unwrap();
    let address = server.address;
    drop(server);
    crate::server::eventually("the server is gone", || std::net::TcpStream::connect(address).is_err()).await;
    let (status, said) = run(agent(&device, &["doctor"])).await;
    assert_eq!(status, Some(1), "{said}");
    for about in ["BAD   boot id", "BAD   ledger", "BAD   tcp", "a firewall must let TCP out"] {
        assert!(said.contains(about), "{said} lacks {about}");
    }
}
