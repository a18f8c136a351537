//! The node stops.

use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::ndt::{SUBPROTOCOL, UPLOAD_PATH};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fleet::Fleet;
use super::peer::{Peer, dial_tls};
use super::{PATIENCE, Port, SERVER_NAME};
use crate::config::Seconds;
use crate::drain::finished;

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn devices_are_sent_away_spread_over_time_and_their_links_are_closed(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start_with(database, |settings| settings.link.reconnect_spread_seconds = Seconds(90)).await;
    let fleet = Fleet::new(&port).await;
    let mut links = Vec::new();
    for _ in 0..3 {
        links.push(Peer::dial(&port, &fleet.device(&port).await.credentials, "boot-1").await.unwrap());
    }
    let stopping = port.shutdown.clone();
    let stopped = tokio::spawn(async move {
        stopping.run(Duration::from_secs(15), Duration::from_secs(1), std::future::pending()).await
    });
    let mut retries = Vec::new();
    for link in &mut links {
        assert_eq!(link.ended().await, Code::ShuttingDown);
        retries.push(link.session.close().unwrap().retry_after.as_secs());
    }
    drop(links);
    retries.sort_unstable();
    assert_eq!(retries, [0, 30, 60]);
    assert!(timeout(PATIENCE, stopped).await.unwrap().unwrap(), "every task has ended");
    assert!(TcpStream::connect(port.address).await.is_err(), "nobody listens any more");
    let reasons = "select string_agg(distinct close_reason, ' ') from links";
    assert_eq!(port.ask(reasons).await.as_deref(), Some("shutting_down"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_hard_stop_waits_for_no_device(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    // It does not read, so it never closes.
    let _deaf = Peer::dial(&port, &fleet.device(&port).await.credentials, "boot-1").await.unwrap();
    let (soft, hard) = (Duration::from_millis(200), PATIENCE);
    assert!(timeout(PATIENCE, port.shutdown.run(soft, hard, std::future::pending())).await.unwrap());
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_drained_node_waits_for_the_test_of_a_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut test = dial_tls(&port, &device.credentials, SERVER_NAME).await.unwrap();
    let request = format!(
        "GET {UPLOAD_PATH} HTTP/1.1\r\nhost: {SERVER_NAME}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    test.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    test.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");

    let shared = &port.links.0;
    shared.drain.begin(10 * PATIENCE);
    let at_once = timeout(Duration::from_millis(300), finished(shared, Duration::ZERO)).await;
    assert!(at_once.is_err(), "it is empty of devices, and one of them tests");
    drop(test);
    timeout(PATIENCE, finished(shared, Duration::ZERO)).await.expect("nobody is left");
}
