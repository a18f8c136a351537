//! Sessions that one node began and another resumes: nothing that a full handshake would find is missed.

use std::sync::Arc;

use rustls::HandshakeKind;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::fleet::{Fleet, Gateway};
use super::peer::{DialError, Peer, dial_tls};
use super::{Port, SERVER_NAME, Settings, new_authority};

const RESUMED: &str = r#"cloudlink_device_handshakes_total{kind="resumed"}"#;
const FULL: &str = r#"cloudlink_device_handshakes_total{kind="full"}"#;

/// Another node of the same fleet, with the same storage key.
async fn beside(port: &Port, database: PgConnectOptions, change: impl FnOnce(&mut Settings)) -> Port {
    let authority = Arc::clone(&port.authority);
    Port::start_with(database, |settings| {
        settings.node = "node-2".to_owned();
        settings.authority = authority;
        change(settings);
    })
    .await
}

/// A device that has a ticket of the port, and no link any more.
async fn was_linked(port: &Port) -> Gateway {
    let device = Fleet::new(port).await.device(port).await;
    let mut link = Peer::dial(port, &device.credentials, "boot-1").await.unwrap();
    link.socket.close(None).await.unwrap();
    port.until(&format!("select close_reason from links where device_id = '{}'", device.id), "device_closed").await;
    device
}

async fn refused(port: &Port, device: &Gateway) -> DialError {
    Peer::dial(port, &device.credentials, "boot-1").await.err().expect("no link")
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_session_is_resumed_on_another_node(_: PgPoolOptions, database: PgConnectOptions) {
    let one = Port::start(database.clone()).await;
    let other = beside(&one, database, |_| {}).await;
    let keys = one.ask("select concat_ws(' ', count(*), min(octet_length(sealed))) from ticket_keys").await;
    assert_eq!(keys.as_deref(), Some("2 68"), "those of this period and the next, of both nodes");
    let device = was_linked(&one).await;
    let link = Peer::dial(&other, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.socket.get_ref().get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(link.admission.epoch, 2);
    // What that gave is good on the first again.
    let stream = dial_tls(&one, &device.credentials, SERVER_NAME).await.unwrap();
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_ticket_of_another_node_lets_nobody_in_who_was_revoked(_: PgPoolOptions, database: PgConnectOptions) {
    let one = Port::start(database.clone()).await;
    let other = beside(&one, database, |_| {}).await;
    let cases = [
        ("update devices set state = 'revoked', revoked_at = clock_timestamp() where id =", "device_revoked"),
        (
            "update certificates set state = 'revoked', revoked_at = clock_timestamp() where device_id =",
            "certificate_revoked",
        ),
        ("update certificates set state = 'superseded' where device_id =", "certificate_superseded"),
    ];
    for (times, (sql, problem)) in (1..).zip(cases) {
        let device = was_linked(&one).await;
        one.run(&format!("{sql} '{}'", device.id)).await;
        assert_eq!(refused(&other, &device).await.problem(), (403, problem));
        assert_eq!(other.metric(RESUMED), times, "it is not TLS that refuses");
    }
    assert_eq!(other.links.live(), 0);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn after_the_authority_is_gone_no_ticket_of_before_is_good(_: PgPoolOptions, database: PgConnectOptions) {
    let one = Port::start(database.clone()).await;
    let root = new_authority().certificate_der().clone();
    let other = beside(&one, database.clone(), |settings| settings.device_root = Some(root.clone())).await;
    let device = was_linked(&one).await;
    refused(&other, &device).await.in_tls();
    assert_eq!(other.metric(RESUMED), 0);

    // Even if the ticket could be read: its certificate is judged anew.
    let device = was_linked(&one).await;
    let ticket_root = one.authority.certificate_der().clone();
    let third = beside(&one, database, |settings| {
        settings.node = "node-3".to_owned();
        (settings.device_root, settings.ticket_root) = (Some(root), Some(ticket_root));
    })
    .await;
    assert_eq!(refused(&third, &device).await.problem(), (403, "certificate_invalid"));
    assert_eq!(third.metric(RESUMED), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_ticket_of_another_trust_domain_is_none(_: PgPoolOptions, database: PgConnectOptions) {
    let one = Port::start(database.clone()).await;
    let other = beside(&one, database, |settings| settings.trust_domain = "other.test".parse().unwrap()).await;
    let device = was_linked(&one).await;
    assert_eq!(refused(&other, &device).await.problem(), (403, "certificate_invalid"));
    assert_eq!((other.metric(RESUMED), other.metric(FULL)), (0, 1));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_node_with_another_storage_key_makes_full_handshakes(_: PgPoolOptions, database: PgConnectOptions) {
    let one = Port::start(database.clone()).await;
    let other = beside(&one, database, |settings| settings.storage_key = [8; 32]).await;
    let device = was_linked(&one).await;
    for epoch in [2, 3] {
        let link = Peer::dial(&other, &device.credentials, "boot-1").await.unwrap();
        assert_eq!(link.admission.epoch, epoch);
    }
    assert_eq!((other.metric(RESUMED), other.metric(FULL)), (0, 2));
}
