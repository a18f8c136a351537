//! More come at once than the node can take.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::fleet::Fleet;
use super::peer::{Peer, dial_socket};
use super::{PATIENCE, Port};
use crate::config::Seconds;

/// How a ClientHello begins; the rest never comes.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc";
const WAITING: &str = "cloudlink_admission_waiting";
const FULL: &str = r#"cloudlink_admission_turned_away_total{reason="full"}"#;
const LONG: &str = r#"cloudlink_admission_turned_away_total{reason="long"}"#;
const DISPLACED: &str = r#"cloudlink_admission_turned_away_total{reason="displaced"}"#;
const REGISTRATIONS: &str = r#"cloudlink_admission_turned_away_total{reason="registrations"}"#;

/// Somebody who begins a handshake, and lets the server wait.
async fn stranger(port: &Port, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
    let mut stream = socket.connect(port.address).await.unwrap();
    stream.write_all(HALF_A_HELLO).await.unwrap();
    stream
}

/// Has strangers come until so many wait.
async fn fill(port: &Port, crowd: &mut Vec<TcpStream>, waiting: u64) {
    while port.metric(WAITING) < waiting {
        crowd.push(stranger(port, [127, 0, 0, 2]).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for the end, before which nothing is said.
async fn closed(stream: &mut TcpStream) {
    let mut said = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("an end") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    assert!(said.is_empty(), "{said:?}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_is_too_many_is_closed_before_tls_and_existing_links_go_on(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.admission.handshakes_per_second = Some(1);
        settings.admission.waiting_max = 2;
        settings.device.handshake_timeout_seconds = Seconds(300);
    })
    .await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    // Three of the four that begin at once are left, and two may wait.
    let mut let_in = Vec::new();
    fill(&port, &mut let_in, 2).await;
    let begun = Instant::now();
    for times in 1..=2 {
        let mut stream = stranger(&port, [127, 0, 0, 3]).await;
        closed(&mut stream).await;
        assert!(port.metric(FULL) >= times, "{}", port.metric(FULL));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits to be turned away");
    link.hears_nothing_for(Duration::from_millis(100)).await;
    assert_eq!(port.links.live(), 1);
    drop(let_in);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn where_a_device_came_from_goes_before_a_crowd_from_elsewhere(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.admission.handshakes_per_second = Some(2);
        settings.admission.wait_seconds = Seconds(20);
        settings.admission.waiting_max = 24;
        settings.device.handshake_timeout_seconds = Seconds(300);
    })
    .await;
    let device = Fleet::new(&port).await.device(&port).await;
    Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let mut crowd = Vec::new();
    fill(&port, &mut crowd, 24).await;
    // Right after somebody's turn, when the next one's is half a second away.
    while port.metric(WAITING) == 24 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fill(&port, &mut crowd, 24).await;
    // The queue is full, and its newest gives way.
    let dialling = Peer::dial(&port, &device.credentials, "boot-1");
    let link = timeout(Duration::from_secs(8), dialling).await.expect("not after the crowd, which takes 12 s").unwrap();
    assert_eq!(link.admission.epoch, 2);
    assert!(port.metric(WAITING) > 8, "{} wait", port.metric(WAITING));
    assert_eq!(port.metric(DISPLACED), 1);
    closed(crowd.last_mut().unwrap()).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_would_wait_in_vain_is_closed_at_once(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.admission.handshakes_per_second = Some(1);
        settings.admission.wait_seconds = Seconds(3);
    })
    .await;
    let mut crowd = Vec::new();
    while port.metric(LONG) == 0 {
        crowd.push(stranger(&port, [127, 0, 0, 2]).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(crowd.len() < 100, "nobody is turned away");
    }
    // Four at once, three within the time that one may wait, and one for each second that this takes on a busy machine.
    assert!((7..=20).contains(&crowd.len()), "{}", crowd.len());
    closed(crowd.last_mut().unwrap()).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_too_many_is_told_when_to_come_back_before_the_database_is_asked(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start_with(database, |settings| settings.admission.registrations_max = 1).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    // Admitted, without a hello so far.
    let socket = dial_socket(&port, &device.credentials).await.unwrap();
    // Nobody asks whether it is revoked.
    port.run(&format!("update devices set state = 'revoked', revoked_at = now() where id = '{}'", other.id)).await;
    let refused = Peer::dial(&port, &other.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (503, "overloaded"));
    let super::peer::DialError::Http { headers, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(headers["retry-after"], "5");
    assert_eq!(port.metric(REGISTRATIONS), 1);

    Peer::say_hello(socket, "boot-1").await.unwrap();
    port.until_metric("cloudlink_admission_registering", 0).await;
    let refused = Peer::dial(&port, &other.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "device_revoked"));
    assert_eq!(port.metric("cloudlink_admission_registering"), 0, "whoever is refused makes room");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_a_link_costs_is_measured_and_makes_the_rate(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| settings.admission.cpu_share_percent = 100).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let rate = || {
        let text = port.metrics.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("cloudlink_admission_rate ")).unwrap().to_owned();
        line.parse::<f64>().unwrap()
    };
    let guessed = rate();
    Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    port.until_metric("cloudlink_admission_registering", 0).await;
    let deadline = Instant::now() + PATIENCE;
    while (rate() - guessed).abs() < 1e-9 {
        assert!(Instant::now() < deadline, "the rate stays what was guessed");
        tokio::task::yield_now().await;
    }
    let class = port.links.0.admission.class_of(Ipv4Addr::LOCALHOST.into());
    assert_eq!(class, crate::admission::turnstile::Class::Tenant(TenantId::from_uuid(fleet.tenant)));
}
