//! Links through a tunnel that somebody else keeps up: real TUN interfaces in network namespaces of the test's own, and a
//! cable between them in place of an OpenVPN session.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_agent::config::Config;
use cloudlink_agent::stream::forward::allow::AllowList;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    Command as Instruction, CommandReceipt, RestartService, StreamRequest, command, command_status,
};
use cloudlink_proto::stream::Control;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tun_rs::{AsyncDevice, DeviceBuilder, SyncDevice};
use uuid::Uuid;

use crate::namespace::{Gateway, in_namespace, ip};
use crate::server::{Device, Fleet, SOON, ServerLink, TestServer};
use crate::session::Running;
use crate::stream::{Said, forward};

const INTERFACE: &str = "cla0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const DEVICE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 9);
const PREFIX: u8 = 16;
const PORT: u16 = 8080;
/// A tunnel that comes up is used within this: far less than the back-off can be, or missed pings take.
const NOTICED_WITHIN: Duration = Duration::from_secs(6);

/// What carries packets between the device's interface and the gateway's.
struct Tunnel {
    gateway: Arc<AsyncDevice>,
    cable: Option<JoinHandle<()>>,
}

impl Tunnel {
    fn new(gateway: &Gateway) -> Self {
        let device = gateway.run(|| interface("clagw", GATEWAY));
        Self { gateway: Arc::new(AsyncDevice::new(device).unwrap()), cable: None }
    }

    fn plug(&mut self, address: Ipv4Addr) {
        let (gateway, device) = (Arc::clone(&self.gateway), AsyncDevice::new(interface(INTERFACE, address)).unwrap());
        self.cable = Some(tokio::spawn(async move {
            let (mut down, mut up) = (vec![0; 2000], vec![0; 2000]);
            loop {
                tokio::select! {
                    count = gateway.recv(&mut down) => { let _ = device.send(&down[..count.unwrap()]).await; }
                    count = device.recv(&mut up) => { let _ = gateway.send(&up[..count.unwrap()]).await; }
                }
            }
        }));
    }

    /// The client ends, and its interface with it.
    async fn unplug(&mut self) {
        let cable = self.cable.take().unwrap();
        cable.abort();
        let _ = cable.await;
    }
}

fn interface(name: &str, address: Ipv4Addr) -> SyncDevice {
    DeviceBuilder::new().name(name).ipv4(address, PREFIX, None).build_sync().unwrap()
}

fn server(gateway: &Gateway) -> TestServer {
    let listener = gateway.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
    TestServer::start_inside(Arc::new(Fleet::new()), listener)
}

/// A device that was never enrolled: its client was.
fn device_beside_a_client(server: &TestServer) -> Device {
    let mut device = Device::new(server);
    let path = device.path("agent.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("[server]\n", "[server]\ntransport = \"openvpn\"\n")
        + &format!("[openvpn]\ninterface = \"{INTERFACE}\"\nlink_port = {PORT}\n");
    std::fs::write(&path, text).unwrap();
    device.config = Config::load(&path).unwrap();
    device
}

fn restart(number: u128) -> Instruction {
    let bytes = |number| Uuid::from_u128(number).as_bytes().to_vec().into();
    Instruction {
        id: bytes(number),
        grant_id: bytes(99),
        start_within_ms: 60_000,
        kind: Some(command::Kind::RestartService(RestartService { service: "web".to_owned() })),
        ..Instruction::default()
    }
}

async fn succeeds(link: &mut ServerLink) {
    use command_status::State::{Accepted, Running as Begun, Succeeded};
    for state in [Accepted, Begun, Succeeded] {
        let status = link.status().await;
        assert_eq!(status.state(), state, "{status:?}");
    }
}

#[test]
fn beside_a_client_the_link_goes_through_its_tunnel_whenever_there_is_one() {
    in_namespace(|| async {
        let gateway = Gateway::new();
        let mut tunnel = Tunnel::new(&gateway);
        let mut server = server(&gateway);
        let device = device_beside_a_client(&server);
        let agent = Running::start(&device);
        // Long enough for the back-off to have grown: it is not what decides when the tunnel is used.
        server.no_link_within(Duration::from_secs(5)).await;

        tunnel.plug(DEVICE);
        let mut link = timeout(NOTICED_WITHIN, server.link()).await.expect("the tunnel is noticed");
        assert_eq!(server.dialled_from()[0].ip(), IpAddr::from(DEVICE));
        assert_eq!(link.hello.boot_id, "boot-1");
        link.send(restart(1)).await;
        succeeds(&mut link).await;

        // The client comes back with another address, and the old link is not waited for.
        tunnel.unplug().await;
        let elsewhere = Ipv4Addr::new(100, 64, 7, 7);
        tunnel.plug(elsewhere);
        let mut link = timeout(NOTICED_WITHIN, server.link()).await.expect("the new tunnel is noticed");
        assert_eq!(server.dialled_from().last().unwrap().ip(), IpAddr::from(elsewhere));
        let told = link.status().await;
        assert_eq!(told.state(), command_status::State::Succeeded, "no receipt: told again");
        link.send(restart(1)).await;
        assert_eq!(link.status().await, told, "a duplicate is answered");
        link.send(CommandReceipt { id: told.id }).await;
        assert_eq!(std::fs::read_to_string(device.path("restarts")).unwrap(), "web\n");

        agent.stop().await;
        assert_eq!(link.closed().await.code, Code::ShuttingDown);
    });
}

#[test]
fn a_stream_goes_the_way_of_the_link_and_ends_with_the_tunnel() {
    in_namespace(|| async {
        let gateway = Gateway::new();
        let mut tunnel = Tunnel::new(&gateway);
        let mut server = server(&gateway);
        let mut device = device_beside_a_client(&server);
        ip("link set lo up");
        let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = target.local_addr().unwrap().port();
        device.config.forward.allow = AllowList::new(vec![format!("localhost:{port}").parse().unwrap()]);
        let agent = Running::start(&device);
        tunnel.plug(DEVICE);
        let link = timeout(SOON, server.link()).await.unwrap();
        let bytes = |number| Uuid::from_u128(number).as_bytes().to_vec().into();
        link.send(StreamRequest {
            id: bytes(1),
            session_id: bytes(2),
            grant_id: bytes(3),
            token: vec![7; 32].into(),
            open_within_ms: 30_000,
            ends_after_ms: 600_000,
            kind: Some(forward("localhost", port)),
            ..StreamRequest::default()
        })
        .await;
        let mut stream = server.stream().await;
        assert_eq!(server.dialled_from().last().unwrap().ip(), IpAddr::from(DEVICE));
        assert!(stream.authorization.starts_with("Bearer "));
        let (mut target, _) = timeout(SOON, target.accept()).await.unwrap().unwrap();
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        target.write_all(b"through").await.unwrap();
        assert_eq!(stream.said().await, Said::Bytes("through".into()));

        // Nothing comes through any more, not even the end of the connection.
        tunnel.unplug().await;
        let mut rest = [0; 8];
        assert_eq!(
            timeout(NOTICED_WITHIN, target.read(&mut rest)).await.expect("the target is let go").unwrap_or(0),
            0
        );
        agent.stop().await;
    });
}

#[test]
fn an_interface_that_is_made_again_with_the_same_address_is_another_tunnel() {
    in_namespace(|| async {
        let gateway = Gateway::new();
        let mut tunnel = Tunnel::new(&gateway);
        let mut server = server(&gateway);
        let agent = Running::start(&device_beside_a_client(&server));
        tunnel.plug(DEVICE);
        let _old = timeout(SOON, server.link()).await.unwrap();
        tunnel.unplug().await;
        tunnel.plug(DEVICE);
        timeout(NOTICED_WITHIN, server.link()).await.expect("the new tunnel is noticed");
        agent.stop().await;
    });
}

/// The system would rather send it over a network where anybody could be the gateway.
#[test]
fn nothing_of_a_link_leaves_the_tunnel_wherever_routes_lead() {
    in_namespace(|| async {
        let gateway = Gateway::new();
        let mut tunnel = Tunnel::new(&gateway);
        let mut server = server(&gateway);
        ip("link add claother type veth peer name claend");
        ip("addr add 192.0.2.1/24 dev claother");
        ip("link set claother up");
        tunnel.plug(DEVICE);
        ip(&format!("route add {GATEWAY}/32 dev claother"));
        let agent = Running::start(&device_beside_a_client(&server));
        timeout(SOON, server.link()).await.unwrap();
        agent.stop().await;
    });
}

#[test]
fn a_network_that_is_no_tunnel_is_not_dialled_through() {
    in_namespace(|| async {
        ip("link set lo up");
        ip(&format!("link add {INTERFACE} type veth peer name claend"));
        ip(&format!("addr add {DEVICE}/{PREFIX} dev {INTERFACE}"));
        ip(&format!("addr add {GATEWAY}/32 dev {INTERFACE}"));
        ip(&format!("link set {INTERFACE} up"));
        let listener = TcpListener::bind((GATEWAY, PORT)).unwrap();
        let mut server = TestServer::start_inside(Arc::new(Fleet::new()), listener);
        let device = device_beside_a_client(&server);
        let agent = Running::start(&device);
        server.no_link_within(Duration::from_secs(4)).await;
        assert_eq!(server.dialled_from(), []);
        agent.stop().await;

        let said = doctor(&device).await;
        assert!(said.contains("BAD   tunnel") && said.contains("cla0 is not a tunnel"), "{said}");
    });
}

#[test]
fn doctor_looks_through_the_tunnel() {
    in_namespace(|| async {
        let gateway = Gateway::new();
        let mut tunnel = Tunnel::new(&gateway);
        let server = server(&gateway);
        let device = device_beside_a_client(&server);
        let said = doctor(&device).await;
        assert!(said.contains("BAD   tunnel       no tunnel yet: interface cla0 has no address"), "{said}");
        assert!(said.contains("start the OpenVPN client"), "{said}");

        tunnel.plug(DEVICE);
        let said = doctor(&device).await;
        for found in [
            "ok    client       started by somebody else, who also renews its certificate",
            "ok    certificate  none: the OpenVPN client proves who the device is",
            "ok    tunnel       cla0 has 100.64.0.9",
            "ok    gateway      100.64.0.1:8080 connects",
            "ok    link         the server lets this device in",
        ] {
            assert!(said.contains(found), "{said} lacks {found}");
        }
        assert!(!said.contains("BAD   name"), "the server's name is not this device's business: {said}");

        tunnel.unplug().await;
        gateway.run(|| drop(TcpListener::bind((GATEWAY, PORT + 1)).unwrap()));
        let mut config = std::fs::read_to_string(device.path("agent.toml")).unwrap();
        config = config.replace("link_port = 8080", "link_port = 8081");
        std::fs::write(device.path("agent.toml"), config).unwrap();
        tunnel.plug(DEVICE);
        let said = doctor(&device).await;
        assert!(said.contains("BAD   gateway") && said.contains("check openvpn.gateway"), "{said}");
    });
}

async fn doctor(device: &Device) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
    command.arg("doctor").arg("--config").arg(device.path("agent.toml"));
    // Its thread is started by this one, and so is in the same namespace.
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}
