//! Revocation: nobody gets in, and nobody stays in.

use std::time::Duration;

use cloudlink_certs::Validity;
use cloudlink_proto::link::message::goodbye::Code;
use rustls::HandshakeKind;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::timeout;

use super::fleet::{Fleet, Gateway, Issue};
use super::peer::{Peer, dial_tls};
use super::{Port, SERVER_NAME, clock};
use crate::bus::Hint;
use crate::tasks::revocation::cut;

/// What the product promises.
const CUT_WITHIN: Duration = Duration::from_secs(1);

async fn revoke_device(port: &Port, device: &Gateway) {
    let sql = "update devices set state = 'revoked', revoked_at = clock_timestamp()";
    port.run(&format!("{sql} where id = '{}'", device.id)).await;
}

async fn revoke_certificate(port: &Port, device: &Gateway) {
    let sql = "update certificates set state = 'revoked', revoked_at = clock_timestamp()";
    port.run(&format!("{sql} where serial = '\\x{}'", device.serial)).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_link_of_a_revoked_device_is_cut_within_a_second_without_a_hint(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let mut bystander = Peer::dial(&port, &other.credentials, "boot-1").await.unwrap();
    revoke_device(&port, &device).await;
    assert_eq!(timeout(CUT_WITHIN, link.ended()).await.expect("cut in time"), Code::Revoked);
    bystander.hears_nothing_for(Duration::from_millis(100)).await;
    port.until(&format!("select close_reason from links where device_id = '{}'", device.id), "revoked").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_first_look_finds_what_was_revoked_long_ago(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other, third) = (fleet.device(&port).await, fleet.device(&port).await, fleet.device(&port).await);
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let mut link_of_other = Peer::dial(&port, &other.credentials, "boot-1").await.unwrap();
    let mut bystander = Peer::dial(&port, &third.credentials, "boot-1").await.unwrap();
    // Further back than any later look goes: as if none had succeeded since the links came up.
    port.run(&format!(
        "update devices set state = 'revoked', revoked_at = now() - interval '1 hour' where id = '{}';
         update certificates set state = 'revoked', revoked_at = now() - interval '1 hour' where serial = '\\x{}'",
        device.id, other.serial
    ))
    .await;
    let mut seen_at = None;
    cut(&port.links.0, &mut seen_at).await.unwrap();
    assert_eq!(link.ended().await, Code::Revoked);
    assert_eq!(link_of_other.ended().await, Code::Revoked);
    bystander.hears_nothing_for(Duration::from_millis(100)).await;
    let is_now = format!("select (abs(extract(epoch from now()) - {}) < 60)::text", seen_at.unwrap().unix_timestamp());
    assert_eq!(port.ask(&is_now).await.as_deref(), Some("true"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_link_of_a_revoked_certificate_is_cut_on_a_hint(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    revoke_certificate(&port, &device).await;
    port.bus.send(Hint::DeviceChanged(device.device_id()));
    assert_eq!(timeout(CUT_WITHIN, link.ended()).await.expect("cut in time"), Code::Revoked);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn revoking_an_old_certificate_leaves_the_link_of_the_new_one(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let validity = Validity::starting_at(clock::now(), time::Duration::days(1)).unwrap();
    let issue = Issue { authority: &port.authority, validity, is_known: true };
    let (_, renewed) = fleet.certificate(&port, device.id, issue).await;
    let mut link = Peer::dial(&port, &renewed, "boot-1").await.unwrap();
    revoke_certificate(&port, &device).await;
    port.bus.send(Hint::DeviceChanged(device.device_id()));
    link.hears_nothing_for(CUT_WITHIN).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revoked_device_or_certificate_gets_no_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    revoke_device(&port, &device).await;
    revoke_certificate(&port, &other).await;
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "device_revoked"));
    let refused = Peer::dial(&port, &other.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "certificate_revoked"));
    port.until_metric(r#"cloudlink_device_handshake_failures_total{reason="revoked"}"#, 2).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_resumed_session_of_a_revoked_device_gets_no_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    revoke_device(&port, &device).await;
    assert_eq!(link.ended().await, Code::Revoked);

    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "device_revoked"));
    // The ticket was good: it is not TLS that refuses.
    assert_eq!(port.metric(r#"cloudlink_device_handshakes_total{kind="resumed"}"#), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_is_revoked_between_admission_and_hello_is_sent_away(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let socket = super::peer::dial_socket(&port, &device.credentials).await.unwrap();
    revoke_device(&port, &device).await;
    let refused = Peer::say_hello(socket, "boot-1").await.err().unwrap();
    let super::peer::DialError::Goodbye(close) = refused else { panic!("{refused:?}") };
    assert_eq!(close.code, Code::Revoked);
    assert_eq!(port.ask("select count(*)::text from links").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_superseded_certificate_gets_no_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let first = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let validity = Validity::starting_at(clock::now(), time::Duration::days(1)).unwrap();
    let issue = Issue { authority: &port.authority, validity, is_known: true };
    let (_, renewed) = fleet.certificate(&port, device.id, issue).await;
    drop(first);
    // Issued is not used: the old one is good until then.
    Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    Peer::dial(&port, &renewed, "boot-1").await.unwrap();
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "certificate_superseded"));
    let stream = dial_tls(&port, &renewed, SERVER_NAME).await.unwrap();
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}
