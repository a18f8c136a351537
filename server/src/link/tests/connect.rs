//! Who gets a link, and what becomes of the one before.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use cloudlink_certs::Validity;
use cloudlink_proto::link::FromServer;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{
    BusyLock, ConfigurationStatus, DeviceMessage, Hello, MetricsReport, TransportFailure, device_message,
    transport_failure,
};
use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use rustls::HandshakeKind;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::fleet::{Fleet, Issue};
use super::peer::{Credentials, DialError, Peer};
use super::{Port, SERVER_NAME, clock, new_authority, peer};
use crate::bus::Hint;
use crate::config::Seconds;

fn days(days: i64) -> Validity {
    Validity::starting_at(clock::now(), time::Duration::days(days)).unwrap()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_with_a_known_certificate_gets_a_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(
        (link.admission.device_id.as_uuid(), link.admission.tenant_id.as_uuid(), link.admission.epoch),
        (device.id, fleet.tenant, 1)
    );
    assert_eq!(port.links.live(), 1);
    let row = format!(
        "select concat_ws(' ', epoch, node, transport, boot_id, agent, hostname, capabilities, remote_address, closed_at)
           from links where device_id = '{}'",
        device.id
    );
    let expected = "1 node-1 websocket boot-1 test/1 gateway {metrics.collect,device.reboot} 127.0.0.1";
    assert_eq!(port.ask(&row).await.as_deref(), Some(expected));
    assert_eq!(
        port.ask(&format!("select state from certificates where device_id = '{}'", device.id)).await.as_deref(),
        Some("active")
    );

    link.socket.close(None).await.unwrap();
    port.until(&format!("select close_reason from links where device_id = '{}'", device.id), "device_closed").await;
    assert_eq!(port.links.live(), 0);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_key_exchange_is_post_quantum(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let stream = peer::dial_tls(&port, &device.credentials, SERVER_NAME).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_second_link_replaces_the_first(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut first = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let second = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(second.admission.epoch, 2);
    assert_eq!(first.ended().await, Code::Replaced);
    port.until_metric(r#"cloudlink_links_closed_total{reason="replaced",transport="websocket"}"#, 1).await;
    let open = format!("select concat_ws(' ', epoch, closed_at) from links where device_id = '{}'", device.id);
    assert_eq!(port.ask(&open).await.as_deref(), Some("2"), "the end of the first closed the second's row");
    assert_eq!(port.links.live(), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_certificate_of_another_authority_ends_in_the_handshake(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let stranger = new_authority();
    let issue = Issue { authority: &stranger, validity: days(90), is_known: true };
    let device = fleet.device_with(&port, issue).await;
    Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap().in_tls();
    port.until_metric(r#"cloudlink_device_handshake_failures_total{reason="certificate_invalid"}"#, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_expired_and_a_not_yet_valid_certificate_end_in_the_handshake(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (now, day) = (clock::now(), time::Duration::days(1));
    for validity in [Validity::new(now - day * 2, now - day), Validity::new(now + day, now + day * 2)] {
        let issue = Issue { authority: &port.authority, validity: validity.unwrap(), is_known: true };
        let device = fleet.device_with(&port, issue).await;
        Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap().in_tls();
    }
    port.until_metric(r#"cloudlink_device_handshake_failures_total{reason="certificate_invalid"}"#, 2).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_certificate_and_a_servers_certificate_end_in_the_handshake(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    Peer::dial(&port, &Credentials::none(&port), "boot-1").await.err().unwrap().in_tls();
    port.until_metric(r#"cloudlink_device_handshake_failures_total{reason="certificate_missing"}"#, 1).await;

    let key = peer::new_key();
    let names = ["somebody.test".parse().unwrap()];
    let certificate = port.authority.issue_server(&key.public_key(), &names, super::new_serial(), days(1)).unwrap();
    let credentials = Credentials::new(&port, &certificate, &key);
    Peer::dial(&port, &credentials, "boot-1").await.err().unwrap().in_tls();
    port.until_metric(r#"cloudlink_device_handshake_failures_total{reason="certificate_invalid"}"#, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_certificate_that_the_database_does_not_know_is_refused(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let issue = Issue { authority: &port.authority, validity: days(90), is_known: false };
    let device = fleet.device_with(&port, issue).await;
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "certificate_unknown"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_certificate_that_names_another_device_than_the_database_is_refused(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    port.run(&format!("update certificates set device_id = '{}' where device_id = '{}'", other.id, device.id)).await;
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (403, "certificate_unknown"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_link_ends_with_its_certificate(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let now = clock::now();
    let validity = Validity::new(now - time::Duration::hours(1), now + time::Duration::seconds(3)).unwrap();
    let device = fleet.device_with(&port, Issue { authority: &port.authority, validity, is_known: true }).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.ended().await, Code::CertificateExpired);
    // The session of that certificate cannot be resumed either.
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert!(matches!(refused, DialError::Tls(_)) || refused.problem() == (403, "certificate_expired"), "{refused:?}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_never_stops_talking_outlives_its_certificate_no_longer(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let now = clock::now();
    let validity = Validity::new(now - time::Duration::hours(1), now + time::Duration::seconds(3)).unwrap();
    let device = fleet.device_with(&port, Issue { authority: &port.authority, validity, is_known: true }).await;
    let link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    // On a thread of its own, many frames at a time: there is always one more to be read.
    let (mut writing, _reading) = link.socket.split();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            loop {
                for _ in 0..4096 {
                    if writing.feed(Message::Pong(Bytes::new())).await.is_err() {
                        return;
                    }
                }
            }
        });
    });
    port.until("select close_reason from links", "certificate_expired").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_session_is_resumed_and_gets_a_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let first = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(first.socket.get_ref().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    let second = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(second.socket.get_ref().get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(second.admission.epoch, 2);
    port.until_metric(r#"cloudlink_device_handshakes_total{kind="resumed"}"#, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_session_is_resumed_when_resumption_is_off(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| settings.device.resumption_seconds = Seconds(0)).await;
    let device = Fleet::new(&port).await.device(&port).await;
    for _ in 0..2 {
        let link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
        assert_eq!(link.socket.get_ref().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_node_without_its_place_sends_devices_away_for_a_moment_only(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    port.links.0.registry.fence();
    let refused = Peer::dial(&port, &device.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (503, "unavailable"));
    let DialError::Http { headers, .. } = refused else { panic!() };
    assert_eq!(headers["retry-after"], "5");
    port.links.0.registry.readmit();
    Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn one_device_too_many_is_told_to_come_back_later(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| settings.device.links_max = 1).await;
    let fleet = Fleet::new(&port).await;
    let (one, other) = (fleet.device(&port).await, fleet.device(&port).await);
    let _link = Peer::dial(&port, &one.credentials, "boot-1").await.unwrap();
    let refused = Peer::dial(&port, &other.credentials, "boot-1").await.err().unwrap();
    assert_eq!(refused.problem(), (503, "overloaded"));
    let DialError::Http { headers, .. } = refused else { panic!() };
    assert_eq!(headers["retry-after"], "60");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn two_machines_that_take_turns_with_one_certificate_are_suspected(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    let suspicions = format!(
        "select count(*)::text from audit where tenant_id = '{}' and action = 'link.clone_suspected'",
        fleet.tenant
    );
    for boot in ["boot-a", "boot-a", "boot-b"] {
        Peer::dial(&port, &device.credentials, boot).await.unwrap();
    }
    assert_eq!(port.ask(&suspicions).await.as_deref(), Some("0"), "a reboot is no clone");
    for boot in ["boot-a", "boot-b", "boot-a"] {
        Peer::dial(&port, &device.credentials, boot).await.unwrap();
    }
    port.until(&suspicions, "1").await;
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_clock_that_is_years_off_is_recorded_and_nothing_more(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let offset =
        format!("select (clock_offset_ms / 86400000 / 365)::text from links where device_id = '{}'", device.id);
    for (clock_unix_ms, years) in [(0, -56..=-50), (u64::MAX, 1_000_000..=i64::MAX)] {
        let hello = Hello { boot_id: "boot-1".to_owned(), clock_unix_ms, ..Hello::default() };
        Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
        let recorded: i64 = port.ask(&offset).await.unwrap().parse().unwrap();
        assert!(years.contains(&recorded), "{recorded}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn text_with_nul_is_stored_with_a_mark_in_its_place(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let hello = Hello { boot_id: "a\0b".to_owned(), hostname: "\0".to_owned(), ..Hello::default() };
    Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
    let row = format!("select concat(boot_id, '|', hostname) from links where device_id = '{}'", device.id);
    assert_eq!(port.ask(&row).await.as_deref(), Some("a\u{fffd}b|\u{fffd}"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn how_attempts_failed_is_added_up_and_does_not_grow(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let failure = |code: String, last_unix_ms| TransportFailure {
        transport: transport_failure::Transport::Websocket.into(),
        stage: transport_failure::Stage::Tls.into(),
        code,
        count: 3,
        last_unix_ms,
    };
    let tell = async |transport_failures| {
        let boot_id = "boot-1".to_owned();
        let hello = Hello { boot_id, clock_unix_ms: 7_200_000, transport_failures, ..Hello::default() };
        Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
    };
    // A device's clock may be decades off: what counts is how long ago it was.
    for _ in 0..2 {
        tell(vec![
            failure("connection_reset".to_owned(), 3_600_000),
            TransportFailure { transport: 99, ..failure("new".to_owned(), 0) },
        ])
        .await;
    }
    let row = format!(
        "select string_agg(concat_ws(' ', transport, stage, code, count, round(extract(epoch from now() - last_at) / 3600)), '|')
           from transport_failures where device_id = '{}'",
        device.id
    );
    assert_eq!(port.ask(&row).await.as_deref(), Some("websocket tls connection_reset 6 1"));

    for round in 0..4 {
        tell(
            (0..32)
                .map(|number| failure(format!("status_{}", 100 * (round + 1) + number), 7_000_000 + round))
                .collect(),
        )
        .await;
    }
    let rows = format!("select count(*)::text from transport_failures where device_id = '{}'", device.id);
    let kept: u32 = port.ask(&rows).await.unwrap().parse().unwrap();
    assert!((32..=64).contains(&kept), "{kept}");
    let newest = format!(
        "select count(*)::text from transport_failures where device_id = '{}' and code like 'status_4%'",
        device.id
    );
    assert_eq!(port.ask(&newest).await.as_deref(), Some("32"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_lock_that_a_device_holds_is_known_as_it_told_last(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let lock = |reason: &str, left_ms| BusyLock { reason: reason.to_owned(), left_ms };
    let held = format!(
        "select coalesce((select reason || ' ' || round(extract(epoch from busy_lock_in_force(device_id, now()) - now()) / 3600)
                            from busy_locks where device_id = '{}'), 'none')",
        device.id
    );
    let changes = "select coalesce(string_agg(entry::jsonb ->> 'action', ' ' order by seq), '') from audit
                    where entry::jsonb ->> 'action' like 'device.busy%'";

    let busy_lock = Some(lock("a\0b", 7_200_000));
    let hello = Hello { boot_id: "boot-1".to_owned(), busy_lock, ..Hello::default() };
    let mut link = Peer::dial_with(&port, &device.credentials, hello.clone()).await.unwrap();
    port.until(&held, "a\u{fffd}b 2").await;
    link.send(lock("results", 10_800_000)).await;
    port.until(&held, "results 3").await;
    // The same again is no change.
    link.send(lock("results", 10_790_000)).await;
    link.send(lock("", 0)).await;
    port.until(&held, "none").await;
    link.send(lock("results", 3_600_000)).await;
    port.until(&held, "results 1").await;
    let set = "device.busy_lock_set";
    let expected = format!("{set} {set} device.busy_lock_cleared {set}");
    port.until(changes, &expected).await;

    // A device that comes back without one has cleared it meanwhile.
    Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    port.until(&held, "none").await;
    port.until(changes, &format!("{expected} device.busy_lock_cleared")).await;

    // Longer than any may be: the device is sent away.
    let mut link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    link.send_raw(raw(lock("for ever", 9 * 24 * 3_600_000))).await;
    assert_eq!(link.ended().await, Code::ProtocolError);
    assert_eq!(port.ask(&held).await.as_deref(), Some("none"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_cannot_make_up_its_mind_does_not_fill_the_audit_log(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let lock = |left_ms| BusyLock { reason: "results".to_owned(), left_ms };
    for _ in 0..100 {
        link.send(lock(3_600_000)).await;
        link.send(lock(0)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    link.send(lock(3_600_000)).await;
    link.socket.close(None).await.unwrap();
    port.until(&format!("select close_reason from links where device_id = '{}'", device.id), "device_closed").await;
    let changes = "select count(*)::text from audit where entry::jsonb ->> 'action' like 'device.busy%'";
    let changes: u32 = port.ask(changes).await.unwrap().parse().unwrap();
    assert!((1..=9).contains(&changes), "{changes} entries");
    let held = "select reason from busy_locks where busy_lock_in_force(device_id, now()) is not null";
    assert_eq!(port.ask(held).await.as_deref(), Some("results"), "what it said last counts");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_is_welcome_also_when_what_failed_before_cannot_be_stored(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    port.ask("alter table transport_failures add check (false) not valid").await;
    let failure = TransportFailure {
        transport: transport_failure::Transport::Websocket.into(),
        stage: transport_failure::Stage::Tls.into(),
        code: "timed_out".to_owned(),
        count: 1,
        last_unix_ms: 0,
    };
    let hello = Hello { boot_id: "boot-1".to_owned(), transport_failures: vec![failure], ..Hello::default() };
    let link = Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
    assert_eq!(link.admission.epoch, 1, "linked once");
}

/// Has this device be as `content` says, from now on.
async fn desire(port: &Port, device: &str, content: &str) {
    let text = content.replace('\'', "''");
    port.ask(&format!(
        "with content as (insert into configuration_contents (tenant_id, sha256, content)
                          select tenant_id, sha256('{text}'), '{text}' from devices where id = '{device}' returning *)
         insert into device_configurations as f (device_id, tenant_id, version, sha256)
         select '{device}', tenant_id, 1, sha256 from content
             on conflict (device_id) do update set version = f.version + 1, sha256 = excluded.sha256, is_stale = false
         returning version::text"
    ))
    .await
    .unwrap();
    let tenant = port.ask(&format!("select tenant_id::text from devices where id = '{device}'")).await.unwrap();
    port.bus.send(Hint::ConfigurationDue(tenant.parse().unwrap()));
}

/// What a device is given next.
async fn configuration(link: &mut Peer) -> (u64, String) {
    match link.next().await {
        Some(FromServer::Configuration(given)) => {
            (given.version, String::from_utf8(given.document_json.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_is_given_what_it_is_to_have_and_tells_how_far_it_is(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let id = device.id.to_string();
    let hello = |status| Hello {
        boot_id: "boot-1".to_owned(),
        capabilities: vec!["configuration".to_owned()],
        configuration: status,
        ..Hello::default()
    };
    let standing = format!(
        "select concat_ws(' ', configuration_state(f), held_version, applied_version, error) from device_configurations f
          where device_id = '{id}'"
    );
    // What is there already, on a new link; what changes, at once.
    desire(&port, &id, r#"{"a":1}"#).await;
    let mut link = Peer::dial_with(&port, &device.credentials, hello(None)).await.unwrap();
    assert_eq!(configuration(&mut link).await, (1, r#"{"a":1}"#.to_owned()));
    desire(&port, &id, r#"{"a":2}"#).await;
    assert_eq!(configuration(&mut link).await, (2, r#"{"a":2}"#.to_owned()));
    let status = |held: u64, applied: u64, reported: u64, error: &str, content: &str| ConfigurationStatus {
        held_version: held,
        held_sha256: digest(&SHA256, content.as_bytes()).as_ref().to_vec().into(),
        applied_version: applied,
        reported_version: reported,
        error: error.to_owned(),
    };
    link.send(status(2, 0, 0, "", r#"{"a":2}"#)).await;
    port.until(&standing, "pending 2 0").await;
    link.send(status(2, 0, 2, "no\0sensor", r#"{"a":2}"#)).await;
    port.until(&standing, "failed 2 0 no\u{fffd}sensor").await;
    let done = status(2, 2, 2, "", r#"{"a":2}"#);
    link.send(done.clone()).await;
    port.until(&standing, "applied 2 2").await;

    // Who has it is not given it again: the next thing that comes is the next change.
    let mut link = Peer::dial_with(&port, &device.credentials, hello(Some(done))).await.unwrap();
    desire(&port, &id, r#"{"a":3}"#).await;
    assert_eq!(configuration(&mut link).await.0, 3);
    // Who says that it has a version that nobody knows is not left with that.
    let ahead = status(9, 9, 9, "", r#"{"b":1}"#);
    let mut link = Peer::dial_with(&port, &device.credentials, hello(Some(ahead))).await.unwrap();
    assert_eq!(configuration(&mut link).await, (10, r#"{"a":3}"#.to_owned()));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_finds_ever_other_faults_does_not_fill_the_audit_log(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let id = device.id.to_string();
    desire(&port, &id, "{}").await;
    let capabilities = vec!["configuration".to_owned()];
    let hello = Hello { boot_id: "boot-1".to_owned(), capabilities, ..Hello::default() };
    let mut link = Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
    assert_eq!(configuration(&mut link).await.0, 1);
    for fault in 0..100 {
        link.send(ConfigurationStatus { reported_version: 1, error: fault.to_string(), ..Default::default() }).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    link.socket.close(None).await.unwrap();
    port.until(&format!("select close_reason from links where device_id = '{id}'"), "device_closed").await;
    let faults = "select count(*)::text from audit where entry::jsonb ->> 'action' = 'device.configuration_failed'";
    let faults: u32 = port.ask(faults).await.unwrap().parse().unwrap();
    assert!((1..=9).contains(&faults), "{faults} entries");
    let told = "select error from device_configurations where version > 0";
    assert_eq!(port.ask(told).await.as_deref(), Some("99"), "what it said last counts");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whoever_changes_documents_for_long_holds_up_no_other_tenant(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (held_up, other) = (Fleet::new(&port).await.device(&port).await, Fleet::new(&port).await.device(&port).await);
    let tenant = format!("select tenant_id::text from devices where id = '{}'", held_up.id);
    let tenant = port.ask(&tenant).await.unwrap();
    port.ask(&format!(
        "insert into device_configurations as f (device_id, tenant_id, is_stale) values ('{}', '{tenant}', true)
             on conflict (device_id) do update set is_stale = true",
        held_up.id
    ))
    .await;
    // Until the connection ends.
    port.ask(&format!("select pg_advisory_lock(hashtextextended('configuration {tenant}', 0))::text")).await;
    let capabilities = vec!["configuration".to_owned()];
    let hello = Hello { boot_id: "boot-1".to_owned(), capabilities, ..Hello::default() };
    let mut link = Peer::dial_with(&port, &other.credentials, hello).await.unwrap();
    port.bus.send(Hint::ConfigurationDue(tenant.parse().unwrap()));
    desire(&port, &other.id.to_string(), "{}").await;
    assert_eq!(configuration(&mut link).await, (1, "{}".to_owned()));
    let stale = format!("select is_stale::text from device_configurations where device_id = '{}'", held_up.id);
    assert_eq!(port.ask(&stale).await.as_deref(), Some("true"));
}

/// As a device that knows no limits sends it.
fn raw(lock: BusyLock) -> Message {
    let kind = Some(device_message::Kind::BusyLock(lock));
    Message::binary(DeviceMessage { kind }.encode_to_vec())
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_newest_report_and_the_last_sign_of_life_are_stored(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let device = Fleet::new(&port).await.device(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    for uptime in [1, 2] {
        link.send(MetricsReport { uptime_seconds: Some(uptime), ..MetricsReport::default() }).await;
    }
    let report = format!("select report::text from device_metrics where device_id = '{}'", device.id);
    port.until(&report, r#"{"uptime_seconds": 2}"#).await;
    // The next sign of life is another one even on a clock of milliseconds.
    link.send(MetricsReport { uptime_seconds: Some(3), ..MetricsReport::default() }).await;
    let proven = format!("select (proven_at > connected_at)::text from links where device_id = '{}'", device.id);
    port.until(&proven, "true").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn links_of_an_earlier_life_of_the_node_are_closed_at_its_start(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database.clone()).await;
    let fleet = Fleet::new(&port).await;
    let (device, other) = (fleet.device(&port).await, fleet.device(&port).await);
    for gateway in [&device, &other] {
        Peer::dial(&port, &gateway.credentials, "boot-1").await.unwrap();
    }
    // As a crash would leave it: another node's row stays.
    port.run(&format!(
        "update links set closed_at = null, close_reason = null, node = 'node-1' where device_id = '{}'",
        device.id
    ))
    .await;
    port.run(&format!(
        "update links set closed_at = null, close_reason = null, node = 'node-2', epoch = 9 where device_id = '{}'",
        other.id
    ))
    .await;
    let _next = Port::start(database).await;
    let reason = |id: Uuid| format!("select coalesce(close_reason, 'live') from links where device_id = '{id}'");
    port.until(&reason(device.id), "node_restarted").await;
    assert_eq!(port.ask(&reason(other.id)).await.as_deref(), Some("live"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_silent_device_is_given_up(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.link.ping_interval_seconds = Seconds(1);
        settings.link.max_missed_pings = 2;
    })
    .await;
    let device = Fleet::new(&port).await.device(&port).await;
    let link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    // Half open: the socket is there, and nobody reads it.
    let reason = format!("select close_reason from links where device_id = '{}'", device.id);
    port.until(&reason, "timed_out").await;
    drop(link);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_storm_of_devices_gets_its_links(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Arc::new(Port::start(database).await);
    let fleet = Fleet::new(&port).await;
    let mut dialling = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let credentials = fleet.device(&port).await.credentials;
        let port = Arc::clone(&port);
        dialling.spawn(async move { Peer::dial(&port, &credentials, "boot-1").await.unwrap() });
    }
    let links = tokio::time::timeout(Duration::from_secs(60), dialling.join_all()).await.unwrap();
    assert_eq!((links.len(), port.links.live()), (40, 40));
    assert_eq!(port.ask("select count(*)::text from links where closed_at is null").await.as_deref(), Some("40"));
}
