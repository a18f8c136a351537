//! Commands, from the insert to the receipt.

use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::FromServer;
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{CommandStatus, command};
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::Instant;
use uuid::Uuid;

use super::Port;
use super::fleet::{Fleet, Gateway};
use super::peer::{Peer, status};
use crate::bus::Hint;
use crate::store::deadline::{Watch, deadline_sweep_in_txn};
use crate::store::dispatch::{LinkKey, dispatch_claim};

/// A device with a link, and a grant for it.
async fn linked(port: &Port) -> (Fleet, Gateway, Peer) {
    let fleet = Fleet::new(port).await;
    let device = fleet.device(port).await;
    fleet.grant(port, device.id, 600).await;
    let link = Peer::dial(port, &device.credentials, "boot-1").await.unwrap();
    (fleet, device, link)
}

fn column(command: CommandId, column: &str) -> String {
    format!("select ({column})::text from commands where id = '{command}'")
}

fn audited(action: &str, command: CommandId) -> String {
    format!(
        "select count(*)::text from audit
          where action = '{action}' and entry::jsonb -> 'subject' = '{{\"kind\": \"command\", \"id\": \"{command}\"}}'"
    )
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_reaches_its_device_and_its_result_is_stored_before_the_receipt(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "service.restart", json!({"service": "nginx"})).await;
    let (sent, command) = link.command().await;
    assert_eq!(sent, id);
    assert_eq!(command.kind, Some(command::Kind::RestartService(super::peer::restart("nginx"))));
    assert!((590_000..=600_000).contains(&command.start_within_ms), "{}", command.start_within_ms);
    assert!((1..20_000).contains(&command.sent_after_ms), "{}", command.sent_after_ms);
    assert!(command.requested_by.starts_with("operator "), "{}", command.requested_by);
    link.report(id, State::Accepted).await;
    port.until(&column(id, "state"), "accepted").await;
    link.send(CommandStatus { percent: Some(40), ..status(id, State::Running) }).await;
    port.until(&column(id, "concat(state, percent)"), "running40").await;
    let done = CommandStatus { data_json: br#"{"pid": 7}"#.to_vec().into(), ..status(id, State::Succeeded) };
    link.send(done).await;
    assert_eq!(link.receipt().await, id);
    let row = port.ask(&column(id, "concat_ws(' ', state, data, proof, deadline_at)")).await;
    assert_eq!(row.as_deref(), Some(r#"succeeded {"pid": 7} {"kind": "device_report", "epoch": 1}"#));
    assert_eq!(port.ask(&audited("command.finished", id)).await.as_deref(), Some("1"));
    assert_eq!(port.metric(r#"cloudlink_commands_total{kind="service.restart",state="succeeded"}"#), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_queued_command_is_sent_when_its_device_links(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.command().await.0, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_whose_hint_was_lost_is_sent_by_the_timer(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.link.reconcile_interval_seconds = crate::config::Seconds(1);
    })
    .await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_was_sent_and_not_accepted_is_sent_again_over_the_next_link(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, id);
    drop(link);
    let mut link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    assert_eq!(link.command().await.0, id);
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_reboot_that_was_sent_in_an_earlier_boot_is_not_sent_again(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.reboot", json!({})).await;
    assert_eq!(link.command().await.0, id);
    drop(link);
    // The same boot: it cannot have been done.
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.command().await.0, id);
    drop(link);
    let mut link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    link.hears_nothing_for(Duration::from_millis(500)).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("sent"));
    // The device's ledger tells that it was done.
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    let proof = r#"{"kind": "boot_id", "after": "boot-2", "before": "boot-1"}"#;
    assert_eq!(port.ask(&column(id, "proof")).await.as_deref(), Some(proof));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn another_boot_proves_a_reboot_before_the_device_says_so(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.reboot", json!({})).await;
    link.command().await;
    link.report(id, State::Accepted).await;
    port.until(&column(id, "state"), "accepted").await;
    drop(link);
    let mut link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    port.until(&column(id, "state"), "succeeded").await;
    let proof = r#"{"kind": "boot_id", "after": "boot-2", "before": "boot-1"}"#;
    assert_eq!(port.ask(&column(id, "proof")).await.as_deref(), Some(proof));
    // What the ledger says later is receipted, and changes nothing.
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&audited("command.finished", id)).await.as_deref(), Some("1"));
    assert_eq!(port.ask(&audited("command.late_result", id)).await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_reboot_is_not_believed_from_the_same_boot(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.reboot", json!({})).await;
    link.command().await;
    link.report(id, State::Accepted).await;
    link.report(id, State::Succeeded).await;
    port.until(&column(id, "state"), "running").await;
    link.hears_nothing_for(Duration::from_millis(200)).await;
    drop(link);
    let _link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    port.until(&column(id, "state"), "succeeded").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_loss_of_the_link_proves_a_shutdown_unless_the_same_boot_comes_back(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    link.command().await;
    // Both come in the link's last moment, and still count before its loss.
    link.report(id, State::Accepted).await;
    link.report(id, State::Running).await;
    drop(link);
    port.until(&column(id, "concat(state, ' ', link_lost_at is not null)"), "running t").await;

    let link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    port.until(&column(id, "concat(state, ' ', link_lost_at is not null)"), "running f").await;
    drop(link);
    port.until(&column(id, "link_lost_at is not null"), "true").await;
    // The grace passes.
    let mut connection = port.database.acquire().await.unwrap();
    let watch = Watch { grace: Duration::ZERO, watched_for: Duration::from_secs(3600) };
    assert_eq!(deadline_sweep_in_txn(&mut connection, watch).await.unwrap().len(), 1);
    let row = port.ask(&column(id, "concat(state, ' ', proof ->> 'kind')")).await;
    assert_eq!(row.as_deref(), Some("succeeded link_lost"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_result_for_another_devices_command_changes_nothing_and_ends_the_link(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let other = fleet.device(&port).await;
    let mut intruder = Peer::dial(&port, &other.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    intruder.report(id, State::Succeeded).await;
    assert_eq!(intruder.ended().await, Code::ProtocolError);
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("sent"));
    assert_eq!(port.metric(r#"cloudlink_link_reports_refused_total{reason="foreign"}"#), 1);
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_result_for_a_command_that_nobody_knows_is_counted_and_receipted(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (_fleet, _device, mut link) = linked(&port).await;
    let id = CommandId::from_uuid(Uuid::now_v7());
    link.report(id, State::Failed).await;
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.metric(r#"cloudlink_link_reports_refused_total{reason="unknown"}"#), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_illegal_step_changes_nothing(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    link.report(id, State::Running).await;
    port.until(&column(id, "state"), "running").await;
    // Begun is begun: it cannot be refused any more.
    link.report(id, State::Refused).await;
    port.until_metric(r#"cloudlink_link_reports_refused_total{reason="illegal"}"#, 1).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("running"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_result_after_the_deadline_is_kept_in_the_audit_log(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    link.report(id, State::Accepted).await;
    port.until(&column(id, "state"), "accepted").await;
    port.run(&format!("update commands set deadline_at = clock_timestamp() where id = '{id}'")).await;
    port.until(&column(id, "concat(state, ' ', code)"), "unconfirmed no_report").await;
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("unconfirmed"));
    assert_eq!(port.ask(&audited("command.late_result", id)).await.as_deref(), Some("1"));
}

/// As after a switch to a standby that was behind, or with a copy of the database.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_whose_sending_is_forgotten_is_sent_again(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.link.reconcile_interval_seconds = crate::config::Seconds(1);
    })
    .await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, id);
    port.run(FORGET_SENDING).await;
    assert_eq!(link.command().await.0, id);
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_result_of_a_command_that_ended_as_never_sent_is_kept_in_the_audit_log(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, id);
    port.run(&format!("{FORGET_SENDING}, expires_at = clock_timestamp(), deadline_at = clock_timestamp()")).await;
    port.until(&column(id, "state"), "expired").await;
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&audited("command.late_result", id)).await.as_deref(), Some("1"));
}

const FORGET_SENDING: &str = "update commands set state = 'queued', sent_at = null, sent_epoch = null, boot_id = null";

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_queued_command_ends_within_a_second_of_its_grant(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 2).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    port.until(&column(id, "concat(state, ' ', code)"), "cancelled grant_ended").await;
    let late = format!(
        "select (finished_at - ends_at between interval '0' and interval '1 second')::text
           from commands c join grants g on g.id = c.grant_id where c.id = '{id}'"
    );
    assert_eq!(port.ask(&late).await.as_deref(), Some("true"));
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    link.hears_nothing_for(Duration::from_millis(300)).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_queued_command_expires(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    let id = fleet.command_within(&port, device.id, "metrics.collect", json!({}), 1).await;
    port.until(&column(id, "concat(state, ' ', code)"), "expired expired").await;
    assert_eq!(port.ask(&audited("command.finished", id)).await.as_deref(), Some("1"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revoked_grant_calls_back_what_was_sent(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    let user = fleet.user;
    port.run(&format!("update grants set revoked_at = clock_timestamp(), revoked_by = '{user}'")).await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    let called_back = link.next().await;
    assert!(matches!(&called_back, Some(FromServer::CommandCancel { id: cancelled, .. }) if *cancelled == id));
    link.report(id, State::Cancelled).await;
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("cancelled"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_that_somebody_calls_back_is_called_back(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    port.run(&format!("update commands set cancel_requested_at = clock_timestamp() where id = '{id}'")).await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    let called_back = link.next().await;
    assert!(matches!(&called_back, Some(FromServer::CommandCancel { id: cancelled, .. }) if *cancelled == id));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_report_of_a_replaced_link_changes_nothing(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    // Another node has opened a newer link: this one does not know it yet.
    port.run(&format!("update links set epoch = 7, node = 'node-2' where device_id = '{}'", device.id)).await;
    link.report(id, State::Succeeded).await;
    port.until_metric(r#"cloudlink_link_reports_refused_total{reason="stale"}"#, 1).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("sent"));
    link.socket.close(None).await.unwrap();
    port.until_metric(r#"cloudlink_links_live{transport="websocket"}"#, 0).await;
    let closed = format!("select (closed_at is null)::text from links where device_id = '{}'", device.id);
    assert_eq!(port.ask(&closed).await.as_deref(), Some("true"), "the end of an old link closed a newer one's row");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn data_that_is_no_json_or_holds_nul_is_stored_all_the_same(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let cases: [(&[u8], &str); 2] = [
        (b"\xff{", r#"{"bytes": 2, "unreadable": true}"#),
        (br#"{"a\u0000": ["\u0000"]}"#, "{\"a\u{fffd}\": [\"\u{fffd}\"]}"),
    ];
    for (data, stored) in cases {
        let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
        link.command().await;
        let status = CommandStatus {
            data_json: data.to_vec().into(),
            message: "nul \0".to_owned(),
            ..status(id, State::Failed)
        };
        link.send(status).await;
        assert_eq!(link.receipt().await, id);
        assert_eq!(port.ask(&column(id, "data")).await.as_deref(), Some(stored));
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn many_commands_at_once_each_end_once(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    for _ in 0..40 {
        fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    }
    let begun = Instant::now();
    let mut receipted = std::collections::HashSet::new();
    while receipted.len() < 40 {
        match link.next().await {
            Some(FromServer::Command { id, .. }) => {
                link.report(id, State::Accepted).await;
                link.report(id, State::Running).await;
                link.report(id, State::Succeeded).await;
            }
            Some(FromServer::CommandReceipt { id }) => assert!(receipted.insert(id)),
            other => panic!("{other:?} after {:?}", begun.elapsed()),
        }
    }
    let finished = "select count(*)::text from audit where action = 'command.finished'";
    assert_eq!(port.ask(finished).await.as_deref(), Some("40"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn of_two_claims_at_once_one_gets_the_command_and_an_older_epoch_gets_none(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    for _ in 0..2 {
        drop(Peer::dial(&port, &device.credentials, "boot-1").await.unwrap());
    }
    // Nobody but this test serves the link now.
    port.until("select (closed_at is not null)::text from links", "true").await;
    port.run("update links set closed_at = null, close_reason = null, node = 'node-2'").await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    let (store, device_id) = (port.links.0.store.clone(), device.device_id());
    let claim = |epoch| {
        let store = store.clone();
        async move {
            let link = LinkKey { device_id, epoch };
            dispatch_claim(&mut store.connection().await.unwrap(), &[link]).await.unwrap().commands
        }
    };
    assert!(claim(1).await.is_empty(), "an older epoch has nothing to send");
    let claimed = futures_util::future::join_all((0..5).map(|_| claim(2))).await.concat();
    assert_eq!(claimed.iter().map(|command| command.command_id).collect::<Vec<_>>(), [id]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nothing_is_claimed_without_a_grant_in_force_or_for_a_revoked_device(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start_with(database, |settings| {
        settings.link.reconcile_interval_seconds = crate::config::Seconds(1);
    })
    .await;
    let (fleet, device, mut link) = linked(&port).await;
    // As if its hint and the revocation had crossed.
    port.run(&format!("update grants set revoked_at = clock_timestamp(), revoked_by = '{}'", fleet.user)).await;
    let grant = fleet.grant(&port, device.id, 600).await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    let sql =
        format!("update grants set revoked_at = clock_timestamp(), revoked_by = '{}' where id = '{grant}'", fleet.user);
    port.run(&sql).await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    link.hears_nothing_for(Duration::from_millis(300)).await;
    port.until(&column(id, "concat(state, ' ', code)"), "cancelled grant_revoked").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nothing_is_sent_to_a_device_that_has_lost_the_label_of_its_grant(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let label = |labels: &str| format!("update devices set labels = '{labels}' where id = '{}'", device.id);
    let (north, none) = (label(r#"{"site": "north"}"#), label("{}"));
    port.run(r#"update grants set device_ids = null, selector = '{"site": "north"}'"#).await;
    port.run(&north).await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    port.run(&none).await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    link.hears_nothing_for(Duration::from_millis(300)).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("queued"));
    port.run(&north).await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    assert_eq!(link.command().await.0, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_invents_boots_fills_no_table(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    port.run(&format!(
        "insert into device_boots (device_id, tenant_id, boot_id, seen_at)
         select '{}', '{}', 'boot ' || n, now() - n * interval '1 hour' from generate_series(1, 1000) n",
        device.id, fleet.tenant
    ))
    .await;
    let _link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let left: u32 = port.ask("select count(*)::text from device_boots").await.unwrap().parse().unwrap();
    assert!((256..=258).contains(&left), "{left}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_people_wrote_at_length_is_cut_to_what_a_device_takes(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    // As long as the API allows, in characters.
    port.run(&format!(
        "update people set name = repeat('\u{20ac}', 128) where id = '{}';
         update commands set reason = repeat('\u{20ac}', 1024) where id = '{id}'",
        fleet.operator
    ))
    .await;
    port.bus.send(Hint::CommandsDue(device.device_id()));
    let (sent, command) = link.command().await;
    assert_eq!(sent, id);
    assert_eq!((command.requested_by.chars().count(), command.reason.chars().count()), (256 / 3, 1024 / 3));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_report_that_met_a_lock_is_stored_once_the_lock_is_gone(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| {
        settings.database = settings.database.clone().options([("lock_timeout", "100")]);
    })
    .await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    // Somebody is slow with the tenant's audit log.
    let mut slow = port.database.begin().await.unwrap();
    sqlx::query("select audit_append($1, '{}', 'slow', '{}', '{}')")
        .bind(fleet.tenant)
        .execute(&mut *slow)
        .await
        .unwrap();
    link.report(id, State::Succeeded).await;
    link.hears_nothing_for(Duration::from_millis(500)).await;
    slow.rollback().await.unwrap();
    assert_eq!(link.receipt().await, id);
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("succeeded"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_boot_that_was_there_before_proves_no_reboot(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let fleet = Fleet::new(&port).await;
    let device = fleet.device(&port).await;
    fleet.grant(&port, device.id, 600).await;
    // Two machines use one certificate.
    drop(Peer::dial(&port, &device.credentials, "clone").await.unwrap());
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "device.reboot", json!({})).await;
    link.command().await;
    link.report(id, State::Accepted).await;
    port.until(&column(id, "state"), "accepted").await;
    let mut clone = Peer::dial(&port, &device.credentials, "clone").await.unwrap();
    clone.hears_nothing_for(Duration::from_millis(300)).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("accepted"));
    clone.report(id, State::Succeeded).await;
    port.until(&column(id, "state"), "running").await;
    drop(clone);
    let _link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    port.until(&column(id, "concat(state, ' ', proof ->> 'after')"), "succeeded boot-2").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_loss_that_the_server_caused_proves_no_shutdown(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database.clone()).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    link.command().await;
    link.report(id, State::Running).await;
    port.until(&column(id, "state"), "running").await;
    port.shutdown.soft.cancel();
    assert_eq!(link.ended().await, Code::ShuttingDown);
    drop(link);
    let closed = format!("select close_reason from links where device_id = '{}'", device.id);
    port.until(&closed, "shutting_down").await;
    assert_eq!(port.ask(&column(id, "link_lost_at is null")).await.as_deref(), Some("true"));

    // As a crash would leave it.
    port.run("update links set closed_at = null, close_reason = null").await;
    let port = Port::start(database).await;
    port.until(&closed, "node_restarted").await;
    assert_eq!(port.ask(&column(id, "link_lost_at is null")).await.as_deref(), Some("true"));
    port.run(&format!("update commands set deadline_at = clock_timestamp() where id = '{id}'")).await;
    port.until(&column(id, "state"), "unconfirmed").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_loss_before_the_server_could_take_links_proves_no_shutdown(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database.clone()).await;
    let (fleet, device, mut link) = linked(&port).await;
    let id = fleet.command(&port, device.id, "device.shutdown", json!({})).await;
    link.command().await;
    link.report(id, State::Running).await;
    drop(link);
    port.until(&column(id, "link_lost_at is not null"), "true").await;
    // The server was down for an hour: the device may have knocked all the time.
    drop(port);
    let port = Port::start(database).await;
    port.run(&format!("update commands set link_lost_at = link_lost_at - interval '1 hour' where id = '{id}'")).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("running"));
    port.run(&format!("update commands set deadline_at = clock_timestamp() where id = '{id}'")).await;
    port.until(&column(id, "state"), "unconfirmed").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_report_on_a_command_that_was_never_sent_is_stale(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    // The owner of a device knows what is queued for it.
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    link.report(id, State::Succeeded).await;
    port.until_metric(r#"cloudlink_link_reports_refused_total{reason="stale"}"#, 1).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_that_nobody_here_can_read_holds_up_no_other(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let unreadable = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    let melting = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    // As a newer server would have made them.
    port.run(&format!(
        "update commands set arguments = '{{\"of\": \"tomorrow\"}}' where id = '{unreadable}';
         update commands set kind = 'device.melt' where id = '{melting}'"
    ))
    .await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(link.command().await.0, id);
    for ended in [unreadable, melting] {
        port.until(&column(ended, "concat(state, ' ', code)"), "failed unreadable").await;
        assert_eq!(port.ask(&audited("command.finished", ended)).await.as_deref(), Some("1"));
    }
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_changes_its_mind_again_and_again_gets_one_entry(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device, mut link) = linked(&port).await;
    let other = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    link.command().await;
    for (command, states) in [
        (id, [State::Failed, State::Succeeded, State::Succeeded, State::Refused, State::Failed, State::Succeeded]),
        (other, [State::Failed, State::Failed, State::Failed, State::Failed, State::Failed, State::Succeeded]),
    ] {
        for state in states {
            link.report(command, state).await;
            assert_eq!(link.receipt().await, command);
        }
        assert_eq!(port.ask(&column(command, "state")).await.as_deref(), Some("failed"));
        assert_eq!(port.ask(&audited("command.late_result", command)).await.as_deref(), Some("1"));
    }
}
