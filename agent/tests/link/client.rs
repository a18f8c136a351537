//! Links through the tunnel of a client that the agent starts: the real program, on both sides.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cloudlink_agent::identity::new_key;
use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_certs::{DeviceCertificate, Validity};
use cloudlink_proto::link::FromDevice;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    CertificateIssued, CollectMetrics, Command as Instruction, CommandReceipt, Reconnect, command, command_status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;
use uuid::Uuid;

use crate::namespace::{Gateway, in_namespace, ip};
use crate::proxy::{PASSWORD, PORT, Proxy, USER};
use crate::server::{Device, Fleet, Incoming, NEVER, ServerLink, TestServer, YOUNG, eventually, in_days, serial_in};

/// Of the network between the device and the server.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OPENVPN_PORT: u16 = 24_443;
const LINK_PORT: u16 = 8080;
const DUE: (time::Duration, time::Duration) = (time::Duration::days(81), time::Duration::days(90));

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A stock server with a link inside of its tunnels, and a device that can reach it. Dropped in this order.
struct Scene {
    server: TestServer,
    openvpn: Process,
    device: Device,
    _gateway: Gateway,
}

impl Scene {
    fn new(age_and_life: (time::Duration, time::Duration)) -> Self {
        Self::with(age_and_life, |_| (String::new(), Vec::new()))
    }

    /// `wrapping` makes keys in the device's directory, and gives more of the configuration and of the server's arguments.
    fn with(
        (age, life): (time::Duration, time::Duration),
        wrapping: impl FnOnce(&Device) -> (String, Vec<String>),
    ) -> Self {
        let gateway = Gateway::new();
        let there = gateway.run(nix::unistd::gettid);
        ip(&format!("link add clawan type veth peer name clagw netns {there}"));
        ip(&format!("addr add {DEVICE}/24 dev clawan"));
        ip("link set clawan up");
        ip("link set lo up");
        gateway.run(|| {
            ip(&format!("addr add {SERVER}/24 dev clagw"));
            ip("link set clagw up");
        });
        let listener = gateway.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, LINK_PORT)).unwrap());
        let server = TestServer::start_inside(Arc::new(Fleet::new()), listener);
        let device = Device::enrolled(&server, age, life);
        let (more, arguments) = wrapping(&device);
        configure(&device, &more);
        let openvpn = start_openvpn(&gateway, &server.fleet, &device, &arguments);
        Self { server, openvpn, device, _gateway: gateway }
    }

    fn start_agent(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
        command.arg("run").arg("--config").arg(self.device.path("agent.toml"));
        Process::start(&mut command, &self.device.path("agent.log"))
    }

    /// The process id of the client that was started last.
    fn client(&self) -> Pid {
        let log = self.log();
        let (_, pid) = log.rsplit_once("pid=").unwrap();
        Pid::from_raw(pid.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.device.path("agent.log")).unwrap()
    }

    fn refuse_serial(&self, serial: &[u8]) {
        std::fs::write(self.device.path("refused"), hex(serial)).unwrap();
    }

    async fn link(&mut self) -> ServerLink {
        self.server.link().await
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = |name| std::fs::read_to_string(self.device.path(name)).unwrap_or_default();
            println!("--- agent\n{}\n--- server\n{}", said("agent.log"), said("openvpn.log"));
        }
    }
}

fn configure(device: &Device, more: &str) {
    let path = device.path("agent.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, after) = text.split_once("address = ").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    let text = format!(
        "{before}transport = \"openvpn\"\naddress = \"{SERVER}:{OPENVPN_PORT}\"\n{after}\n[openvpn]\nstart = true\n\
         interface = \"clatun\"\nlink_port = {LINK_PORT}\n{more}\n[log]\nfilter = \"info,cloudlink_agent=debug\"\n",
    );
    std::fs::write(path, text).unwrap();
}

/// It looks at the serial of each certificate that it may have to refuse.
const VERIFY: &str = "[ \"$1\" != 0 ] || ! echo \"$tls_serial_hex_0\" | grep -qixFf \"$(dirname \"$0\")/refused\"\n";

fn start_openvpn(gateway: &Gateway, fleet: &Fleet, device: &Device, arguments: &[String]) -> Process {
    let key = new_key().unwrap();
    let certificate = fleet.server_certificate(&key, Validity::new(in_days(-1), in_days(30)).unwrap());
    let write = |name: &str, content: &str| {
        std::fs::write(device.path(name), content).unwrap();
        device.path(name).display().to_string()
    };
    let server = write("server.pem", &format!("{}{}", key.to_pem().as_str(), certificate_to_pem(&certificate)));
    let verify = write("verify.sh", VERIFY);
    write("refused", "none");
    let mut command = Command::new("openvpn");
    command
        .args(["--server", "100.64.0.0", "255.255.0.0", "--topology", "subnet", "--dev", "clasrv", "--dev-type", "tun"])
        .args(["--proto", "tcp-server", "--local", &SERVER.to_string(), "--port", &OPENVPN_PORT.to_string()])
        .args(["--dh", "none", "--keepalive", "5", "20", "--verb", "3", "--tls-version-min", "1.3"])
        .args(["--ca", &device.path("ca.pem").display().to_string(), "--cert", &server, "--key", &server])
        .args(["--script-security", "2", "--tls-verify", &format!("/bin/sh {verify}")])
        .args(arguments);
    let log: PathBuf = device.path("openvpn.log");
    gateway.run(move || Process::start(&mut command, &log))
}

fn hex(serial: &[u8]) -> String {
    serial.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn is_running(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn works(link: &mut ServerLink, number: u128) {
    use command_status::State::{Accepted, Running as Begun, Succeeded};
    let bytes = |number| bytes::Bytes::from(Uuid::from_u128(number).as_bytes().to_vec());
    link.send(Instruction {
        id: bytes(number),
        grant_id: bytes(99),
        start_within_ms: 60_000,
        kind: Some(command::Kind::CollectMetrics(CollectMetrics {})),
        ..Instruction::default()
    })
    .await;
    let mut states = Vec::new();
    while !states.contains(&Succeeded) {
        let status = link.status().await;
        // What an earlier command came to is told again: its receipt may have been lost with a tunnel.
        if status.id == bytes(number) {
            states.push(status.state());
        }
    }
    assert_eq!(states, [Accepted, Begun, Succeeded]);
    link.send(CommandReceipt { id: bytes(number) }).await;
}

/// Answers the device's request. Gives the serial of the new certificate.
async fn issue(scene: &Scene, link: &mut ServerLink, prepare: impl FnOnce(&[u8])) -> Vec<u8> {
    let incoming = link.next().await;
    let Incoming::Message(FromDevice::CertificateRequest(request)) = incoming else {
        panic!("expected a request, got {incoming:?}");
    };
    let certificate = scene.server.fleet.device_certificate(&request.csr_der, YOUNG.0, YOUNG.1);
    let serial = DeviceCertificate::parse(&certificate).unwrap().serial;
    prepare(&serial);
    link.send(CertificateIssued { chain_der: vec![certificate.to_vec().into()] }).await;
    serial
}

#[test]
fn a_client_of_its_own_makes_the_tunnel_and_ends_with_the_agent() {
    in_namespace(|| async {
        let mut scene = Scene::new(YOUNG);
        let mut agent = scene.start_agent();
        let mut link = scene.link().await;
        works(&mut link, 1).await;
        let profile = scene.device.config.state_dir.join("openvpn.conf");
        assert_eq!(std::fs::metadata(profile).unwrap().permissions().mode() & 0o777, 0o600);

        // It is started again when it is killed, and the link is made again.
        let first = scene.client();
        kill(first, Signal::SIGKILL).unwrap();
        let mut link = scene.link().await;
        works(&mut link, 2).await;
        let second = scene.client();
        assert_ne!(first, second);

        // An agent that is killed leaves none behind.
        agent.signal(Signal::SIGKILL);
        agent.0.wait().unwrap();
        eventually("the client ends with the agent", || !is_running(second)).await;

        let mut agent = scene.start_agent();
        let mut link = scene.link().await;
        works(&mut link, 3).await;
        let third = scene.client();
        agent.signal(Signal::SIGTERM);
        assert_eq!(link.closed().await.code, Code::ShuttingDown);
        assert!(agent.0.wait().unwrap().success());
        assert!(!is_running(third), "the client is left");
    });
}

#[test]
fn a_renewed_certificate_is_tried_out_in_a_tunnel_of_its_own() {
    in_namespace(|| async {
        let mut scene = Scene::new(DUE);
        let _agent = scene.start_agent();
        let mut link = scene.link().await;
        let renewed = issue(&scene, &mut link, |_| {}).await;
        let mut link = scene.link().await;
        let (current, next) = (scene.device.slot("current"), scene.device.slot("next"));
        eventually("it is the current one", || !next.exists() && serial_in(&current) == renewed).await;
        works(&mut link, 1).await;

        // The file that the client has read its key from is gone: it must not miss it.
        scene.openvpn.signal(Signal::SIGUSR1);
        let mut link = scene.link().await;
        works(&mut link, 2).await;
        kill(scene.client(), Signal::SIGKILL).unwrap();
        let mut link = scene.link().await;
        works(&mut link, 3).await;
    });
}

#[test]
fn a_renewed_certificate_that_makes_no_tunnel_is_given_up() {
    in_namespace(|| async {
        let mut scene = Scene::new(DUE);
        let _agent = scene.start_agent();
        let mut link = scene.link().await;
        let before = serial_in(&scene.device.slot("current"));
        issue(&scene, &mut link, |serial| scene.refuse_serial(serial)).await;
        let mut link = scene.link().await;
        let next = scene.device.slot("next");
        eventually("the refused one is gone", || !next.exists()).await;
        assert_eq!(serial_in(&scene.device.slot("current")), before);

        // And another one is asked for.
        let renewed = issue(&scene, &mut link, |_| {}).await;
        scene.link().await;
        eventually("it is the current one", || serial_in(&scene.device.slot("current")) == renewed).await;
    });
}

#[rstest]
#[case::tls_auth("tls-auth")]
#[case::tls_crypt("tls-crypt")]
#[case::tls_crypt_v2("tls-crypt-v2")]
fn each_wrapping_is_one_that_the_program_understands(#[case] wrapping: &'static str) {
    in_namespace(move || async move {
        let mut scene = Scene::with(YOUNG, |device| {
            let path = |name: &str| device.path(name).display().to_string();
            let generate = |arguments: &[&str]| {
                let output = Command::new("openvpn").args(arguments).output().unwrap();
                assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
            };
            let (own, theirs) = (path("own.key"), path("their.key"));
            if wrapping == "tls-crypt-v2" {
                generate(&["--genkey", "tls-crypt-v2-server", &theirs]);
                generate(&["--tls-crypt-v2", &theirs, "--genkey", "tls-crypt-v2-client", &own]);
            } else {
                generate(&["--genkey", "secret", &theirs]);
                std::fs::copy(&theirs, &own).unwrap();
            }
            let mut arguments = vec![format!("--{wrapping}"), theirs];
            if wrapping == "tls-auth" {
                arguments.push("0".to_owned());
            }
            (format!("wrapping = \"{wrapping}\"\nwrapping_key = \"{own}\""), arguments)
        });
        let _agent = scene.start_agent();
        let mut link = scene.link().await;
        works(&mut link, 1).await;
    });
}

#[test]
fn a_password_of_a_proxy_that_was_corrected_is_used_by_the_next_attempt() {
    in_namespace(|| async {
        let Some(proxy) = Proxy::start().await else { return };
        let file = proxy.password_file("not-it");
        let section = format!("[proxy]\nurl = \"http://{USER}@127.0.0.1:{PORT}\"\npassword_file = {file:?}\n");
        let mut scene = Scene::with(YOUNG, |_| (section, Vec::new()));
        let _agent = scene.start_agent();
        eventually("an attempt fails", || scene.log().contains("no link transport=\"openvpn\"")).await;
        proxy.password_file(PASSWORD);
        let mut link = scene.link().await;
        works(&mut link, 1).await;
    });
}

#[tokio::test]
async fn a_time_to_dial_that_is_given_while_something_better_is_tried_is_kept() {
    let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
    let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
    let (program, tried) = (device.path("client"), device.path("tried"));
    std::fs::write(&program, format!("#!/bin/sh\necho >> {}\nexec sleep 3\n", tried.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = device.path("agent.toml");
    let keys = "[server]\ntransports = [\"openvpn\", \"websocket\"]\nbetter_after_seconds = 1\n";
    let text = std::fs::read_to_string(&path).unwrap().replace("[server]\n", keys);
    std::fs::write(&path, format!("{text}[openvpn]\nstart = true\nprogram = {program:?}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
    let _agent = Process::start(command.arg("run").arg("--config").arg(&path), &device.path("agent.log"));
    let mut old = server.link().await;
    let attempts = || std::fs::read_to_string(&tried).unwrap_or_default().len();
    let before = attempts();
    eventually("something better is tried", || attempts() > before).await;
    old.send(Reconnect { after_ms: 10, reason: "drain".to_owned() }).await;
    server.link().await;
    assert_eq!(old.closed().await.code, Code::Replaced);
}

#[test]
fn what_the_client_says_is_told_by_doctor() {
    in_namespace(|| async {
        let scene = Scene::new(YOUNG);
        let doctor = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
            let output = command.arg("doctor").arg("--config").arg(scene.device.path("agent.toml")).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let said = doctor();
        assert!(said.contains("ok    openvpn      ") && said.contains(": OpenVPN 2."), "{said}");
        assert!(said.contains("ok    tun device   /dev/net/tun"), "{said}");
        assert!(said.contains("warn  tunnel") && said.contains("is that running?"), "{said}");

        scene.refuse_serial(&serial_in(&scene.device.slot("current")));
        let mut agent = scene.start_agent();
        eventually("the agent tells", || scene.log().contains("it said last: ")).await;
        let said = doctor();
        assert!(said.contains("BAD   tunnel") && said.contains("The client said last:"), "{said}");
        assert!(said.contains(" | SIGUSR1["), "{said}");

        agent.signal(Signal::SIGTERM);
        assert!(agent.0.wait().unwrap().success());
        let path = scene.device.path("agent.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("start = true\n", "start = true\nprogram = \"/bin/false\"\n")).unwrap();
        let _agent = scene.start_agent();
        eventually("the agent tells", || scene.log().contains("the OpenVPN client ended with exit status: 1")).await;
        let said = doctor();
        assert!(said.contains("BAD   openvpn      /bin/false does not tell its version"), "{said}");
        assert!(said.contains("the OpenVPN client ended with exit status: 1"), "{said}");
    });
}
