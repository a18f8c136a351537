//! OpenVPN clients on the device port: who gets a tunnel, and what becomes of it. No packet passes here, so no root is needed.

mod attempt;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_certs::Validity;
use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::LINK_PATH;
use cloudlink_proto::link::SUBPROTOCOL;
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::openvpn::{
    ClientConfig, ClientEvent, ClientWrapping, CloseReason, Event, HEADROOM, KeyMetadata, Output, Pushed,
    ServerWrapping, Session, Start, StaticKey, TAILROOM, V2ServerKey, tls_client_config,
};
use http::HeaderValue;
use rustls::pki_types::ServerName;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::fleet::{Fleet, Gateway, Issue};
use super::peer::{Credentials, DialError, Peer};
use super::{PATIENCE, Port, SERVER_NAME, Settings, clock, new_authority};
use crate::bus::Hint;
use crate::config::Seconds;
use crate::tunnel::inside;

/// What the product promises.
const CUT_WITHIN: Duration = Duration::from_secs(1);
/// A client's first packet, which is all that some strangers say.
const RESET: &[u8] = b"\x00\x0e\x38\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00";

/// A stock client, as far as the server can tell.
struct Client {
    session: Session,
    stream: TcpStream,
    pushed: Option<Box<Pushed>>,
    closed: Option<CloseReason>,
}

impl Client {
    async fn dial(port: &Port, credentials: &Credentials) -> Self {
        Self::dial_with(port, credentials, ClientWrapping::None).await
    }

    async fn dial_with(port: &Port, credentials: &Credentials, wrapping: ClientWrapping) -> Self {
        Self::dial_from([127, 0, 0, 1], port, credentials, wrapping).await
    }

    /// From one of this host's many addresses.
    async fn dial_from(source: [u8; 4], port: &Port, credentials: &Credentials, wrapping: ClientWrapping) -> Self {
        let mut tls = (*credentials.config).clone();
        tls_client_config(&mut tls);
        let mut config = ClientConfig::new(Arc::new(tls), ServerName::try_from(SERVER_NAME).unwrap());
        config.wrapping = wrapping;
        let start = Start { seed: rand_seed(), unix_seconds: 1_790_000_000 };
        let session = Session::client(Instant::now().into_std(), Arc::new(config), start);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(source), 0).into()).unwrap();
        let stream = socket.connect(port.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { session, stream, pushed: None, closed: None }
    }

    /// Goes on until the tunnel is up.
    async fn up(mut self) -> Result<(Self, Box<Pushed>), CloseReason> {
        self.go_on(PATIENCE, |client| client.pushed.is_some()).await;
        match self.pushed.take() {
            Some(pushed) => Ok((self, pushed)),
            None => Err(self.closed.expect("it is up, or it is not")),
        }
    }

    /// Goes on until the tunnel is up on both sides.
    async fn live(port: &Port, credentials: &Credentials) -> (Self, Box<Pushed>) {
        let (client, pushed) = Self::dial(port, credentials).await.up().await.unwrap();
        let plane = &port.links.0.tunnels.as_ref().unwrap().plane;
        let deadline = Instant::now() + PATIENCE;
        while plane.owner(address(&pushed).into()).is_none() {
            assert!(Instant::now() < deadline, "the client is up, and nobody has its address");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (client, pushed)
    }

    /// Sends IP packets into the tunnel.
    async fn send(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            let mut buffer = [&[0; HEADROOM], packet.as_slice(), &[0; TAILROOM]].concat();
            let frame = self.session.seal(Instant::now().into_std(), &mut buffer, packet.len()).unwrap();
            self.stream.write_all(&buffer[frame]).await.unwrap();
        }
    }

    /// Goes on until the end.
    async fn ended(&mut self, within: Duration) -> CloseReason {
        self.go_on(within, |_| false).await;
        self.closed.clone().expect("the session has ended")
    }

    async fn go_on(&mut self, within: Duration, is_done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + within;
        loop {
            while let Some(output) = self.session.poll_output() {
                match output {
                    // If the server is gone, reading will tell.
                    Output::Transmit(bytes) => drop(self.stream.write_all(&bytes).await),
                    Output::Event(Event::Client(ClientEvent::Connected(pushed))) => self.pushed = Some(pushed),
                    Output::Event(_) => {}
                    Output::Closed(reason) => self.closed = Some(reason),
                }
            }
            if is_done(self) || self.closed.is_some() {
                return;
            }
            let mut bytes = [0; 4096];
            let due = self.session.poll_timeout().map_or(deadline, |(due, _)| deadline.min(due.into()));
            match timeout_at(due, self.stream.read(&mut bytes)).await {
                Ok(Ok(read)) if read > 0 => {
                    let mut rest = &mut bytes[..read];
                    while !rest.is_empty() {
                        let consumed = self.session.handle_input(Instant::now().into_std(), rest).consumed;
                        rest = &mut rest[consumed..];
                    }
                }
                Ok(_) => self.session.handle_end_of_stream(Instant::now().into_std()),
                Err(_) => {
                    assert!(Instant::now() < deadline, "nothing happens: {:?}", self.session);
                    self.session.handle_timeout(Instant::now().into_std());
                }
            }
        }
    }
}

fn rand_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).unwrap();
    seed
}

async fn start(database: PgConnectOptions) -> Port {
    start_with(database, |_| {}).await
}

async fn start_with(database: PgConnectOptions, change: impl FnOnce(&mut Settings)) -> Port {
    Port::start_with(database, |settings| {
        settings.tunnel.enabled = true;
        change(settings);
    })
    .await
}

fn address(pushed: &Pushed) -> Ipv4Addr {
    pushed.ipv4.expect("an address was pushed").0
}

async fn failed(port: &Port, reason: &str, times: u64) {
    port.until_metric(&format!("cloudlink_device_handshake_failures_total{{reason=\"{reason}\"}}"), times).await;
}

/// Dials the link port out of a tunnel.
async fn dial_inside(port: &Port, from: Ipv4Addr, boot_id: &str) -> Result<Peer<TcpStream>, DialError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let shared = &port.links.0;
    inside::admit(shared, shared.tunnels.as_ref().unwrap(), far.unwrap().0, IpAddr::from(from), &port.shutdown);
    let mut request = format!("ws://{SERVER_NAME}{LINK_PATH}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
    let upgraded = timeout(PATIENCE, tokio_tungstenite::client_async(request, near.unwrap())).await.expect("an answer");
    match upgraded {
        Ok((socket, _)) => Peer::say_hello(socket, boot_id).await,
        Err(error) => Err(DialError::Tls(std::io::Error::other(error))),
    }
}

fn link_of(device: &Gateway, what: &str) -> String {
    format!("select ({what})::text from links where device_id = '{}'", device.id)
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_tunnel_is_its_devices_link_and_the_device_keeps_its_address(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let (client, first) = Client::live(&port, &device.credentials).await;
    let (_client, second) = Client::live(&port, &other.credentials).await;
    assert_eq!((address(&first), address(&second)), ([100, 64, 0, 2].into(), [100, 64, 0, 3].into()));
    assert_eq!(first.gateway, Some([100, 64, 0, 1].into()));
    assert_eq!(first.ipv6.unwrap().0.segments()[7], 2);

    let row = "transport || ' ' || has_agent || ' ' || epoch || ' ' || (closed_at is null)";
    port.until(&link_of(&device, row), "openvpn false 1 true").await;
    // Written at once, not by the timer.
    let days = "select string_agg(node || ' ' || (now() <@ spans), ', ') from tunnel_days";
    port.until(days, "node-1 true").await;
    let tunnel = format!(
        "select host(t.ipv4) || ' ' || client || ' ' || (t.id = l.tunnel_id) from tunnels t join links l using (device_id)
          where device_id = '{}'",
        device.id
    );
    assert_eq!(port.ask(&tunnel).await.as_deref(), Some("100.64.0.2 cloudlink true"));
    assert_eq!(port.ask("select count(*)::text from device_boots").await.as_deref(), Some("0"));
    port.until_metric("cloudlink_tunnels_live", 2).await;
    assert_eq!(port.metric("cloudlink_links_live{transport=\"openvpn\"}"), 2);
    assert_eq!(port.metric("cloudlink_device_handshakes_total{kind=\"openvpn\"}"), 2);

    drop(client);
    port.until(&link_of(&device, "close_reason"), "lost").await;
    port.until_metric("cloudlink_tunnels_live", 1).await;
    let (_client, again) = Client::live(&port, &device.credentials).await;
    assert_eq!(address(&again), address(&first));
    port.until(&link_of(&device, row), "openvpn false 2 true").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whoever_may_not_link_gets_no_tunnel_and_no_word_that_ends_a_client(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let authority = new_authority();
    let validity = Validity::starting_at(clock::now(), time::Duration::days(90)).unwrap();
    let expired =
        Validity::new(clock::now() - time::Duration::days(9), clock::now() - time::Duration::days(1)).unwrap();
    let foreign = fleet.device_with(&port, Issue { authority: &authority, validity, is_known: true }).await;
    let expired =
        fleet.device_with(&port, Issue { authority: &port.authority, validity: expired, is_known: true }).await;
    let unknown = fleet.device_with(&port, Issue { authority: &port.authority, validity, is_known: false }).await;
    let revoked = fleet.device(&port).await;
    let superseded = fleet.device(&port).await;
    port.run(&format!(
        "update devices set state = 'revoked', revoked_at = clock_timestamp() where id = '{}';
         update certificates set state = 'superseded' where device_id = '{}'",
        revoked.id, superseded.id
    ))
    .await;

    let in_tls = [
        (Credentials::none(&port), "certificate_missing", 1),
        (foreign.credentials, "certificate_invalid", 1),
        (expired.credentials, "certificate_invalid", 2),
    ];
    for (number, (credentials, reason, times)) in (1..).zip(in_tls) {
        let client = Client::dial_from([127, 0, 1, number], &port, &credentials, ClientWrapping::None).await;
        let refused = client.up().await.err().unwrap();
        assert!(!matches!(refused, CloseReason::AuthFailed(_)), "{refused:?}");
        failed(&port, reason, times).await;
    }
    let told = [
        (unknown, "unknown", 1, "no record"),
        (revoked, "revoked", 1, "the device was revoked"),
        (superseded, "revoked", 2, "newer certificate"),
    ];
    for (number, (device, reason, times, words)) in (1..).zip(told) {
        let client = Client::dial_from([127, 0, 2, number], &port, &device.credentials, ClientWrapping::None).await;
        let refused = client.up().await.err().unwrap();
        let CloseReason::AuthFailed(text) = &refused else { panic!("{refused:?}") };
        // A stock client that hears this comes again; without the TEMP it would end for good.
        assert!(text.as_str().starts_with("TEMP[backoff 300]:") && text.as_str().contains(words), "{text}");
        failed(&port, reason, times).await;
    }
    assert_eq!(port.ask("select count(*)::text from links").await.as_deref(), Some("0"));
    assert_eq!(port.metric("cloudlink_tunnels_opened_total"), 0);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_client_that_comes_with_too_many_others_is_told_when_to_come_back(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start_with(database, |settings| settings.admission.registrations_max = 1).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let registration = port.links.0.admission.register(TenantId::from_uuid(fleet.tenant)).unwrap();
    let refused = Client::dial(&port, &device.credentials).await.up().await.err().unwrap();
    let CloseReason::AuthFailed(text) = &refused else { panic!("{refused:?}") };
    assert!(text.as_str().starts_with("TEMP[backoff 5]:too many devices"), "{text}");
    failed(&port, "overload", 1).await;
    assert_eq!(port.ask("select count(*)::text from links").await.as_deref(), Some("0"));

    drop(registration);
    // Not only one of them: each makes room again.
    for device in [&device, &other] {
        Client::live(&port, &device.credentials).await;
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_is_neither_tls_nor_openvpn_is_closed_and_who_says_nothing_is_not_waited_for_long(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start_with(database, |settings| {
        settings.device.handshake_timeout_seconds = Seconds(1);
        settings.device.request_timeout_seconds = Seconds(1);
    })
    .await;
    let says = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        for byte in bytes.chunks(1) {
            let _ = stream.write_all(byte).await;
        }
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        answer
    };
    for (number, junk) in (1..).zip([b"\r\n\r\n".as_slice(), b"\x00\x0e\x20junk", b"\x05\x00", b"\xff\xff\xff"]) {
        assert_eq!(says(junk).await, b"", "{junk:?}");
        failed(&port, "tls", number).await;
    }
    assert!(says(b"GET / HTTP/1.1\r\n\r\n").await.starts_with(b"HTTP/1.1 400"));
    failed(&port, "tls", 5).await;
    for (number, little) in (1..).zip([b"".as_slice(), b"\x00", b"\x00\x0e", RESET]) {
        says(little).await;
        failed(&port, "timeout", number).await;
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn where_tunnels_are_off_their_clients_are_closed_and_counted(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    assert!(Client::dial(&port, &device.credentials).await.up().await.is_err());
    failed(&port, "openvpn_off", 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_client_that_stalls_holds_up_nobody(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start_with(database, |settings| settings.tunnel.handshakes_max = 1).await;
    let fleet = Fleet::new(&port).await;
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(RESET).await.unwrap();
        stalled.push(stream);
    }
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(fleet.device(&port).await.credentials);
    }
    let up = clients.iter().map(async |credentials| Client::dial(&port, credentials).await.up().await.unwrap());
    let clients = timeout(Duration::from_secs(8), futures_util::future::join_all(up)).await.expect("their turn");
    assert_eq!(clients.len(), 10);
    port.until_metric("cloudlink_tunnels_live", 10).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whoever_comes_from_where_somebody_was_refused_waits_and_others_do_not(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    for (number, wait) in [(1, Duration::ZERO), (2, Duration::from_secs(1))] {
        let begun = Instant::now();
        assert!(Client::dial(&port, &Credentials::none(&port)).await.up().await.is_err());
        assert!(begun.elapsed() >= wait.mul_f64(0.8), "{:?}", begun.elapsed());
        failed(&port, "certificate_missing", number).await;
    }
    let begun = Instant::now();
    let here = Client::dial(&port, &device.credentials).await;
    let elsewhere = Client::dial_from([127, 0, 3, 1], &port, &other.credentials, ClientWrapping::None).await;
    let here = async { here.up().await.map(|up| (up, begun.elapsed())).unwrap() };
    let elsewhere = async { elsewhere.up().await.map(|up| (up, begun.elapsed())).unwrap() };
    let ((_here, waited), (_elsewhere, at_once)) = tokio::join!(here, elsewhere);
    assert!(waited >= Duration::from_millis(1600) && at_once < Duration::from_millis(1600), "{waited:?} {at_once:?}");
    // One of its devices was let in: the next one does not wait.
    let begun = Instant::now();
    Client::dial(&port, &device.credentials).await.up().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(1600), "{:?}", begun.elapsed());
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_client_key_is_good_for_its_device_only(_: PgPoolOptions, database: PgConnectOptions) {
    let server_key = V2ServerKey::from_bytes([7; 128]);
    let wrapping = ServerWrapping::TlsCryptV2(server_key.clone());
    let port = start_with(database, |settings| settings.wrapping = wrapping).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let key_of = |key: &V2ServerKey, device: &Gateway| {
        let metadata = KeyMetadata::Issuer(device.id.as_bytes()).to_bytes();
        ClientWrapping::TlsCryptV2(key.issue(StaticKey::from_bytes([3; 256]), &metadata).unwrap())
    };
    let own = key_of(&server_key, &device);
    let (_client, _) = Client::dial_with(&port, &device.credentials, own.clone()).await.up().await.unwrap();
    let refused = Client::dial_with(&port, &other.credentials, own).await.up().await.err().unwrap();
    assert!(matches!(refused, CloseReason::AuthFailed(_)), "{refused:?}");
    failed(&port, "wrapping", 1).await;
    // Under another server's key, and under none, nobody hears anything at all.
    let foreign = key_of(&V2ServerKey::from_bytes([8; 128]), &device);
    for (number, wrapping) in (2..).zip([foreign, ClientWrapping::None]) {
        let mut client = Client::dial_with(&port, &device.credentials, wrapping).await;
        assert_eq!(client.ended(PATIENCE).await, CloseReason::PeerClosed);
        failed(&port, if number == 2 { "wrapping" } else { "protocol" }, if number == 2 { 2 } else { 1 }).await;
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_newest_wins_whatever_its_transport(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let (mut tunnel, _) = Client::live(&port, &device.credentials).await;
    assert_eq!(link.ended().await, Code::Replaced);
    let row = "transport || ' ' || has_agent || ' ' || epoch || ' ' || (closed_at is null)";
    port.until(&link_of(&device, row), "openvpn false 2 true").await;

    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(tunnel.ended(PATIENCE).await, CloseReason::PeerClosed);
    port.until(&link_of(&device, row), "websocket true 3 true").await;

    let (mut older, pushed) = Client::live(&port, &device.credentials).await;
    assert_eq!(link.ended().await, Code::Replaced);
    let mut inside = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    let (_newer, pushed) = Client::live(&port, &device.credentials).await;
    assert_eq!(older.ended(PATIENCE).await, CloseReason::PeerClosed);
    assert_eq!(inside.ended().await, Code::Replaced);
    let inside = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    assert_eq!(inside.admission.epoch, 7);
    port.until(&link_of(&device, row), "openvpn true 7 true").await;
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 0, "it is one machine with one boot");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn revoking_cuts_a_tunnel_and_the_link_inside_without_a_word_that_ends_the_client(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let (mut client, pushed) = Client::live(&port, &device.credentials).await;
    let mut inside = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    let (mut bystander, _) = Client::live(&port, &other.credentials).await;
    port.run(&format!(
        "update certificates set state = 'revoked', revoked_at = clock_timestamp() where serial = '\\x{}'",
        device.serial
    ))
    .await;
    port.bus.send(Hint::DeviceChanged(DeviceId::from_uuid(device.id)));
    assert_eq!(client.ended(CUT_WITHIN).await, CloseReason::PeerClosed);
    assert_eq!(inside.ended().await, Code::Revoked);
    port.until(&link_of(&device, "close_reason"), "revoked").await;
    assert!(timeout(Duration::from_millis(100), bystander.go_on(PATIENCE, |_| false)).await.is_err());

    // Put back, as from a backup, by whoever did it by mistake: the database itself knows no way back.
    port.run(&format!(
        "alter table certificates disable trigger revocation_is_final;
         update certificates set state = 'active', revoked_at = null where serial = '\\x{}'",
        device.serial
    ))
    .await;
    Client::live(&port, &device.credentials).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_agent_takes_the_link_over_and_leaves_it_to_the_tunnel(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let (client, pushed) = Client::live(&port, &device.credentials).await;
    fleet.grant(&port, device.id, 600).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    let state = |id| format!("select state from commands where id = '{id}'");

    let mut agent = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    assert_eq!((agent.admission.epoch, agent.admission.device_id), (2, device.device_id()));
    let row = "transport || ' ' || has_agent || ' ' || epoch || ' ' || boot_id || ' ' || (closed_at is null)";
    port.until(&link_of(&device, row), "openvpn true 2 boot-1 true").await;
    assert_eq!(agent.command().await.0, id, "what waited while nobody answered");
    agent.report(id, State::Succeeded).await;
    assert_eq!(agent.receipt().await, id);
    assert_eq!(port.metric("cloudlink_tunnel_agents_live"), 1);
    assert_eq!(port.metric("cloudlink_links_live{transport=\"openvpn\"}"), 1);

    // A shutdown kills the agent first; that alone proves nothing.
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    agent.command().await;
    agent.report(id, State::Running).await;
    port.until(&state(id), "running").await;
    drop(agent);
    port.until(&link_of(&device, "has_agent || ' ' || epoch || ' ' || (closed_at is null)"), "false 2 true").await;
    port.until_metric("cloudlink_tunnel_agents_live", 0).await;
    let lost = format!("select (link_lost_at is not null)::text from commands where id = '{id}'");
    assert_eq!(port.ask(&lost).await.as_deref(), Some("false"));
    let waiting = fleet.command(&port, device.id, "metrics.collect", json!({})).await;

    drop(client);
    port.until(&link_of(&device, "close_reason"), "lost").await;
    assert_eq!(port.ask(&lost).await.as_deref(), Some("true"), "the loss of the tunnel does");
    assert_eq!(port.ask(&state(waiting)).await.as_deref(), Some("queued"), "nobody answered");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_link_inside_is_lost_with_its_tunnel_and_what_it_said_before_is_stored(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let (client, pushed) = Client::live(&port, &device.credentials).await;
    let mut agent = dial_inside(&port, address(&pushed), "boot-1").await.unwrap();
    fleet.grant(&port, device.id, 600).await;
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    agent.command().await;
    agent.report(id, State::Running).await;
    port.until_metric("cloudlink_link_messages_total{direction=\"in\"}", 2).await;
    drop(client);
    assert_eq!(agent.ended().await, Code::Unspecified);
    port.until(&link_of(&device, "close_reason"), "lost").await;
    let proof = format!("select state || ' ' || (link_lost_at is not null) from commands where id = '{id}'");
    assert_eq!(port.ask(&proof).await.as_deref(), Some("running true"));
    // Nobody is there any more who could dial from that address.
    assert!(dial_inside(&port, address(&pushed), "boot-1").await.is_err());

    // It was not the end of the device. Which boot this is, only its agent could tell.
    let (client, _) = Client::live(&port, &device.credentials).await;
    assert_eq!(port.ask(&proof).await.as_deref(), Some("running false"));
    drop(client);
    port.until(&proof, "running true").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn revoking_cuts_a_tunnel_that_waits_for_its_turn_to_be_sent_away(_: PgPoolOptions, database: PgConnectOptions) {
    let port = start(database).await;
    let fleet = Fleet::new(&port).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::live(&port, &fleet.device(&port).await.credentials).await.0);
    }
    let stopping = port.shutdown.clone();
    let stopped = tokio::spawn(async move { stopping.run(PATIENCE, PATIENCE, std::future::pending()).await });
    let [first, second] = clients.as_mut_slice() else { panic!("there are two") };
    // Whoever has the lower id is asked first; the other's turn is seconds later.
    let waiting = tokio::select! {
        _ = first.ended(PATIENCE) => second,
        _ = second.ended(PATIENCE) => first,
    };
    port.run("update devices set state = 'revoked', revoked_at = clock_timestamp()").await;
    assert_eq!(waiting.ended(CUT_WITHIN).await, CloseReason::PeerClosed);
    assert!(timeout(PATIENCE, stopped).await.unwrap().unwrap(), "every task has ended");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn clients_of_a_node_that_stops_are_asked_to_come_back_one_after_another(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = start_with(database, |settings| settings.link.reconnect_spread_seconds = Seconds(2)).await;
    let fleet = Fleet::new(&port).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::live(&port, &fleet.device(&port).await.credentials).await.0);
    }
    port.until_metric("cloudlink_tunnels_live", 2).await;
    let stopping = port.shutdown.clone();
    let begun = Instant::now();
    let stopped = tokio::spawn(async move { stopping.run(PATIENCE, PATIENCE, std::future::pending()).await });
    let ends = clients.iter_mut().map(|client| async move { (client.ended(PATIENCE).await, Instant::now()) });
    let mut ends = futures_util::future::join_all(ends).await;
    ends.sort_by_key(|(_, at)| *at);
    for (reason, _) in &ends {
        assert!(matches!(reason, CloseReason::Restart(_)), "{reason:?}");
    }
    assert!(ends[0].1 - begun < Duration::from_millis(900) && ends[1].1 - begun > Duration::from_millis(900));
    assert!(timeout(PATIENCE, stopped).await.unwrap().unwrap(), "every task has ended");
    let reasons = "select string_agg(distinct close_reason, ' ') from links";
    assert_eq!(port.ask(reasons).await.as_deref(), Some("shutting_down"));
}
