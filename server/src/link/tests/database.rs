//! The database goes away and comes back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::link::message::MetricsReport;
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::goodbye::Code;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Port;
use super::fleet::Fleet;
use super::peer::{DialError, Peer, dial_socket};
use crate::config::Seconds;
use crate::tasks::presence::Orphans;

/// Stands between the port and the database, and can be cut.
pub(super) struct Relay {
    address: SocketAddr,
    is_up: Arc<watch::Sender<bool>>,
    is_stalled: Arc<watch::Sender<bool>>,
}

impl Relay {
    pub(super) async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_up = Arc::new(watch::Sender::new(true));
        let is_stalled = Arc::new(watch::Sender::new(false));
        let (host, port) = (database.get_host().to_owned(), database.get_port());
        let state = Arc::clone(&is_up);
        let stalled = Arc::clone(&is_stalled);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut down = state.subscribe();
                if !*down.borrow() {
                    continue;
                }
                let Ok(mut far) = TcpStream::connect((host.as_str(), port)).await else { continue };
                let mut stall = stalled.subscribe();
                let was_stalled = *stall.borrow_and_update();
                tokio::spawn(async move {
                    let is_stalled = tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => false,
                        _ = down.wait_for(|is_up| !is_up) => false,
                        is_stalled = async { stall.wait_for(|is| *is && !was_stalled).await.is_ok() } => is_stalled,
                    };
                    if is_stalled {
                        // It stays as it is, whatever comes later.
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, is_up, is_stalled }
    }

    /// How the database is reached through it.
    pub(super) fn options(&self, database: &PgConnectOptions) -> PgConnectOptions {
        database.clone().host("127.0.0.1").port(self.address.port())
    }

    pub(super) fn cut(&self) {
        self.is_up.send_replace(false);
    }

    /// Keeps connections open, and lets nothing through: as a host that is gone, or a firewall that forgot.
    fn stall(&self) {
        self.is_stalled.send_replace(true);
    }

    pub(super) fn mend(&self) {
        self.is_up.send_replace(true);
    }
}

async fn start(database: PgConnectOptions) -> (Port, Relay) {
    let relay = Relay::start(&database).await;
    let port = Port::start_with(database.clone(), |settings| {
        settings.database = relay.options(&database);
        settings.link.reconcile_interval_seconds = Seconds(1);
    })
    .await;
    (port, relay)
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn links_stay_up_and_what_they_report_is_stored_once_when_it_is_back(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let (port, relay) = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    relay.cut();
    for state in [State::Accepted, State::Running, State::Succeeded] {
        link.report(id, state).await;
    }
    link.send(MetricsReport { uptime_seconds: Some(7), ..MetricsReport::default() }).await;
    // Nothing is receipted that is not stored.
    link.hears_nothing_for(Duration::from_secs(1)).await;
    let state = format!("select state from commands where id = '{id}'");
    assert_eq!(port.ask(&state).await.as_deref(), Some("sent"));
    relay.mend();
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&state).await.as_deref(), Some("succeeded"));
    let finished = "select count(*)::text from audit where action = 'command.finished'";
    assert_eq!(port.ask(finished).await.as_deref(), Some("1"));
    port.until("select report::text from device_metrics", r#"{"uptime_seconds": 7}"#).await;
    assert_eq!(port.links.live(), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_link_comes_up_without_it_and_the_device_is_told_when_to_try_again(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let (port, relay) = start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    drop(Peer::dial(&port, &device.credentials, "boot-1").await.unwrap());
    let waiting = dial_socket(&port, &device.credentials).await.unwrap();
    relay.cut();
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (503, "unavailable"));
    let DialError::Http { headers, .. } = refused else { panic!() };
    assert_eq!(headers["retry-after"], "5");
    // It was admitted, and there is nobody to give it an epoch.
    let refused = Peer::say_hello(waiting, "boot-1").await.err().unwrap();
    let DialError::Goodbye(close) = refused else { panic!("{refused:?}") };
    assert_eq!((close.code, close.retry_after), (Code::Overloaded, Duration::from_secs(5)));
    relay.mend();
    port.until_metric("cloudlink_links_live{transport=\"websocket\"}", 0).await;
    let link = async {
        loop {
            if let Ok(link) = Peer::dial(&port, &device.credentials, "boot-1").await {
                return link;
            }
        }
    };
    tokio::time::timeout(super::PATIENCE, link).await.expect("links come up again");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_link_that_ends_without_it_is_closed_when_it_is_back(_: PgPoolOptions, database: PgConnectOptions) {
    let (port, relay) = start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    relay.cut();
    drop(link);
    port.until_metric("cloudlink_links_live{transport=\"websocket\"}", 0).await;
    let reason = format!("select coalesce(close_reason, 'live') from links where device_id = '{}'", device.id);
    assert_eq!(port.ask(&reason).await.as_deref(), Some("live"));
    relay.mend();
    port.until(&reason, "lost").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_became_due_without_it_is_sent_when_it_is_back(_: PgPoolOptions, database: PgConnectOptions) {
    let (port, relay) = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    relay.cut();
    // As another node would: this one's hint leads nowhere.
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.hears_nothing_for(Duration::from_millis(500)).await;
    relay.mend();
    assert_eq!(link.command().await.0, id);
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revocation_that_was_made_without_it_is_acted_on_when_it_is_back(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let (port, relay) = start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    relay.cut();
    port.run("update devices set state = 'revoked', revoked_at = clock_timestamp()").await;
    link.hears_nothing_for(Duration::from_secs(1)).await;
    relay.mend();
    assert_eq!(link.ended().await, Code::Revoked);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_reports_without_end_is_sent_away(_: PgPoolOptions, database: PgConnectOptions) {
    let (port, relay) = start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    relay.cut();
    for _ in 0..66 {
        let id = cloudlink_proto::ids::CommandId::from_uuid(uuid::Uuid::now_v7());
        link.report(id, State::Failed).await;
    }
    assert_eq!(link.ended().await, Code::Overloaded);
}

/// New connections work again while the old ones are dead: what a failover looks like from here.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn connections_that_went_dead_hold_up_nothing_for_long(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = Relay::start(&database).await;
    let port = Port::start_with(database.clone(), |settings| {
        settings.database = relay.options(&database);
        settings.link.reconcile_interval_seconds = Seconds(1);
        settings.statement_within = Duration::from_secs(1);
    })
    .await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    relay.stall();
    port.links.0.store.doubt(true);
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    let next = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, next);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_loss_that_is_noted_late_proves_no_shutdown(_: PgPoolOptions, database: PgConnectOptions) {
    let (port, relay) = start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    link.command().await;
    link.report(id, State::Running).await;
    let state = format!("select state from commands where id = '{id}'");
    port.until(&state, "running").await;
    // The device may be knocking all the while.
    relay.cut();
    drop(link);
    port.until_metric("cloudlink_links_live{transport=\"websocket\"}", 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    relay.mend();
    port.until("select close_reason from links", "lost").await;
    let lost = format!("select (link_lost_at is null)::text from commands where id = '{id}'");
    assert_eq!(port.ask(&lost).await.as_deref(), Some("true"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_link_that_is_live_in_the_database_only_is_closed_and_proves_nothing(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    fleet.grant(&port, device.id, 600).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let _bystander = Peer::dial(&port, &other.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    link.command().await;
    link.report(id, State::Running).await;
    port.until(&format!("select state from commands where id = '{id}'"), "running").await;

    // As if its task had died: nobody will write its end.
    let shared = &port.links.0;
    let handle = shared.registry.find(device.device_id()).unwrap();
    shared.registry.leave(&handle);
    let closed = "select count(*)::text from links where closed_at is not null";
    let mut orphans = Orphans::default();
    orphans.close(shared, Duration::from_secs(600)).await.unwrap();
    orphans.close(shared, Duration::from_secs(600)).await.unwrap();
    assert_eq!(port.ask(closed).await.as_deref(), Some("0"), "a link in the making was cut");
    orphans.close(shared, Duration::ZERO).await.unwrap();
    assert_eq!(port.ask(closed).await.as_deref(), Some("0"), "it may write its end itself");
    orphans.close(shared, Duration::ZERO).await.unwrap();
    let row = format!("select close_reason from links where device_id = '{}'", device.id);
    assert_eq!(port.ask(&row).await.as_deref(), Some("orphaned"));
    assert_eq!(port.ask(closed).await.as_deref(), Some("1"), "a live link was closed");
    let lost = format!("select (link_lost_at is not null)::text from commands where id = '{id}'");
    assert_eq!(port.ask(&lost).await.as_deref(), Some("false"));
}
