//! The load generator against the smallest server that the protocol allows, so that it is the generator that is tested.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail as the tests do")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, TenantId};
use cloudlink_proto::link::message::{CollectMetrics, Command, CommandReceipt, command, command_status};
use cloudlink_proto::link::{Admission, FromDevice, LINK_PATH, SUBPROTOCOL, Server, Session, Timing};
use cloudlink_tests::bench::peer::Peer;
use cloudlink_tests::bench::{connect, openvpn};
use cloudlink_tests::load::{Event, Fleet, Pace, Protocol, Swarm, fleet};
use cloudlink_tests::{clock, netns};
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use uuid::Uuid;

const DEVICES: usize = 80;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn devices_link_with_their_own_certificates_and_obey() {
    let fleet = new_fleet();
    let (address, mut seen) = serve(&fleet).await;
    let target = connect::target(address, &fleet).unwrap();
    let mut swarm = within(Swarm::connect(&target, &fleet, Protocol::Link, 0..DEVICES, Pace::AtOnce(8))).await.unwrap();

    let deadline = Instant::now() + PATIENCE;
    let (mut stored, mut certificates, mut reports, mut statuses) = (0, Vec::new(), 0, Vec::new());
    while stored < DEVICES || reports < DEVICES {
        assert!(Instant::now() < deadline, "{stored} results are stored, {reports} reports came");
        tokio::select! {
            event = within(swarm.event()) => stored += usize::from(matches!(event.unwrap(), Event::Stored { .. })),
            seen = within(seen.recv()) => match seen.unwrap() {
                Seen::Certificate(certificate) => certificates.push(certificate),
                Seen::Report => reports += 1,
                Seen::Status(state, data_json) => statuses.push((state, data_json)),
            },
        }
    }
    let issued = fleet.devices.iter().map(|device| device.certificate.clone());
    assert!(issued.into_iter().all(|certificate| certificates.contains(&certificate)), "not every device came");
    for state in [command_status::State::Accepted, command_status::State::Running, command_status::State::Succeeded] {
        assert_eq!(statuses.iter().filter(|(it, _)| *it == state).count(), DEVICES, "{state:?}");
    }
    let results = statuses.iter().filter(|(state, _)| *state == command_status::State::Succeeded);
    for (_, data_json) in results {
        let result: serde_json::Value = serde_json::from_slice(data_json).unwrap();
        assert!(result["cpu_percent"].is_number(), "{result}");
    }
    within(swarm.stop()).await;
}

#[tokio::test]
async fn lost_connection_is_an_error() {
    let fleet = new_fleet();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = connect::target(listener.local_addr().unwrap(), &fleet).unwrap();
    drop(listener);
    let error = within(Swarm::connect(&target, &fleet, Protocol::Link, 0..3, Pace::AtOnce(8))).await.unwrap_err();
    assert!(format!("{error:#}").contains("cannot connect to 127.0.0.1"), "{error:#}");
}

#[tokio::test]
async fn other_servers_are_connected_to_and_measured() {
    let fleet = new_fleet();
    for peer in Peer::ALL {
        let cost = within(connect::measure_peer(peer, &fleet, clock::now())).await.unwrap();
        assert!(cost.memory_bytes > 0.0, "{} takes no memory: {cost:?}", peer.name());
    }
}

#[tokio::test]
async fn other_servers_refuse_a_certificate_of_another_authority() {
    let (fleet, strangers) = (new_fleet(), new_fleet());
    for peer in Peer::ALL {
        let server = peer.start(&fleet, clock::now()).await.unwrap();
        let target = connect::target(server.address(), &fleet).unwrap();
        let connecting = Swarm::connect(&target, &strangers, peer.protocol(), 0..1, Pace::AtOnce(1));
        assert!(within(connecting).await.is_err(), "{} took a stranger", peer.name());
    }
}

#[test]
fn stock_openvpn_serves_simulated_clients_of_its_authority_only() -> anyhow::Result<()> {
    netns::test("stock_openvpn_serves_simulated_clients_of_its_authority_only", async || {
        let (fleet, strangers) = (new_fleet(), new_fleet());
        let server = openvpn::server::Server::stock(&fleet, clock::now()).await?;
        let target = server.target()?;
        let pace = Pace::Every(Duration::from_millis(20));
        let mut swarm = within(Swarm::connect(&target, &fleet, Protocol::OpenVpn, 0..8, pace)).await?;
        for _ in 0..8 {
            let event = within(swarm.event()).await?;
            assert!(matches!(event, Event::Live { .. }), "{event:?}");
        }
        within(swarm.stop()).await;
        let connecting = Swarm::connect(&target, &strangers, Protocol::OpenVpn, 0..1, Pace::AtOnce(1));
        assert!(within(connecting).await.is_err(), "openvpn took a stranger");
        Ok(())
    })
}

/// What the server sees of the devices.
enum Seen {
    Certificate(CertificateDer<'static>),
    Report,
    Status(command_status::State, bytes::Bytes),
}

async fn serve(fleet: &Fleet) -> (SocketAddr, mpsc::Receiver<Seen>) {
    let server = fleet.issue_server(clock::now()).unwrap();
    let certificate = CertificateDer::from_pem_slice(server.certificate_pem.as_bytes()).unwrap();
    let verifier = WebPkiClientVerifier::builder(fleet.roots.clone()).build().unwrap();
    let config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(server.key.as_pkcs8_der().clone_key()))
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel(10_000);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_link(acceptor.clone(), stream, sender.clone()));
        }
    });
    (address, receiver)
}

async fn serve_link(acceptor: TlsAcceptor, stream: TcpStream, seen: mpsc::Sender<Seen>) {
    let stream = acceptor.accept(stream).await.unwrap();
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    seen.send(Seen::Certificate(certificate)).await.unwrap();
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let subprotocol = |request: &Request, mut response: Response| {
        assert_eq!(request.uri().path(), LINK_PATH);
        assert_eq!(request.headers()[SEC_WEBSOCKET_PROTOCOL], SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, subprotocol).await.unwrap();
    let mut session = Session::server(Instant::now().into_std(), &Timing::default());
    while session.close().is_none() {
        while let Some(message) = session.poll_transmit() {
            socket.send(Message::Binary(message)).await.unwrap();
        }
        let now = Instant::now().into_std();
        tokio::select! {
            message = socket.next() => {
                let Some(Ok(Message::Binary(message))) = message else { return };
                if let Some(incoming) = session.handle_message(now, &message).unwrap() {
                    act(&mut session, incoming, &seen).await;
                }
            }
            () = sleep_until(session.poll_timeout().unwrap().into()) => session.handle_timeout(now),
        }
    }
}

async fn act(session: &mut Session<Server>, incoming: FromDevice, seen: &mpsc::Sender<Seen>) {
    let now = Instant::now().into_std();
    match incoming {
        FromDevice::Hello(_) => {
            let admission = Admission {
                device_id: DeviceId::from_uuid(Uuid::nil()),
                tenant_id: TenantId::from_uuid(Uuid::nil()),
                epoch: 1,
                clock_unix_ms: 0,
                metrics_interval: Duration::from_millis(500),
            };
            session.welcome(now, &admission).unwrap();
            let command = Command {
                id: CommandId::from_uuid(Uuid::now_v7()).to_wire(),
                grant_id: GrantId::from_uuid(Uuid::nil()).to_wire(),
                kind: Some(command::Kind::CollectMetrics(CollectMetrics {})),
                ..Command::default()
            };
            session.send(now, command).unwrap();
        }
        FromDevice::CommandStatus { id, state, status } => {
            if state == command_status::State::Succeeded {
                session.send(now, CommandReceipt { id: id.to_wire() }).unwrap();
            }
            seen.send(Seen::Status(state, status.data_json)).await.unwrap();
        }
        FromDevice::Metrics(_) => seen.send(Seen::Report).await.unwrap(),
        FromDevice::CertificateRequest(_)
        | FromDevice::BusyLock(_)
        | FromDevice::ConfigurationStatus(_)
        | FromDevice::StreamRefused { .. }
        | FromDevice::Goodbye => {}
    }
}

fn new_fleet() -> Arc<Fleet> {
    // Each test may be the first one of its process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let now = clock::now();
    let authority = fleet::new_authority(now).unwrap();
    Arc::new(
        Fleet::issue(authority, &"fleet.example".parse().unwrap(), TenantId::from_uuid(Uuid::now_v7()), DEVICES, now)
            .unwrap(),
    )
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing came of it in {PATIENCE:?}"))
}
