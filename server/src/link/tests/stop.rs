//! The node stops.

use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fleet::Fleet;
use super::peer::Peer;
use super::{PATIENCE, Port};
use crate::config::Seconds;

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
