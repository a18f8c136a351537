//! Every way in which a session ends, each within a second, whatever its peers do.

use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;

use super::*;
use crate::bus::Hint;

/// Both ends hear why, in time, and the delay is measured.
async fn cut(desk: &Desk, id: SupportSessionId, mut client: Side<TcpStream>, mut device: DeviceSide, reason: &str) {
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(CUT_WITHIN, both).await.expect("cut in time");
    assert_eq!((one.as_str(), other.as_str()), (reason, reason));
    measured(desk, id, reason).await;
}

async fn measured(desk: &Desk, id: SupportSessionId, reason: &str) -> i64 {
    let session = desk.accounted(id).await;
    assert_eq!(session["end_reason"], reason);
    let cut_off_ms = session["cut_off_ms"].as_i64().unwrap_or_else(|| panic!("{session}"));
    assert!(cut_off_ms <= 1000, "{cut_off_ms} ms");
    assert_eq!(desk.port.metric("cloudlink_support_cut_off_seconds_count"), 1);
    cut_off_ms
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn at_the_grants_end(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 6.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    let ends_at = format!("select (ends_at > clock_timestamp())::text from grants where id = '{grant}'");
    desk.port.until(&ends_at, "false").await;
    cut(&desk, id, client, device, "grant_ended").await;
    let late = format!("select (ended_at - expires_at < interval '1 s')::text from support_sessions where id = '{id}'");
    assert_eq!(desk.port.ask(&late).await.as_deref(), Some("true"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn by_the_owner_who_revokes_the_grant(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    let (status, _) = desk.call(Method::POST, &format!("/grants/{grant}/revoke"), &desk.customer, None).await;
    assert_eq!(status, StatusCode::OK);
    cut(&desk, id, client, device, "grant_revoked").await;
    let audited = "select string_agg(action, ' ' order by seq) from audit";
    let expected =
        "support_session.opened grant.revoked support_session.ended recording.finished support_session.accounted";
    assert_eq!(desk.port.ask(audited).await.as_deref(), Some(expected));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn by_the_owner_who_takes_away_the_label_that_the_grant_is_for(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    desk.port.run(r#"update grants set device_ids = null, selector = '{"": "in\tsite\tnorth\tsouth"}'"#).await;
    desk.port.run(r#"update devices set labels = '{"site": "north", "hall": "2"}'"#).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    desk.port.run(r#"update devices set labels = '{"hall": "2"}'"#).await;
    cut(&desk, id, client, device, "grant_revoked").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn by_the_owner_who_revokes_the_device(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    let path = format!("/devices/{}/revoke", desk.device.id);
    assert_eq!(desk.call(Method::POST, &path, &desk.customer, None).await.0, StatusCode::OK);
    cut(&desk, id, client, device, "device_revoked").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn by_a_quarantine(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    let path = format!("/devices/{}/quarantine", desk.device.id);
    let (status, _) = desk.call(Method::POST, &path, &desk.customer, Some(json!({"reason": "scans"}))).await;
    assert_eq!(status, StatusCode::OK);
    cut(&desk, id, client, device, "quarantined").await;
}

/// What another node, or a hint that is lost, leaves to be found.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn without_a_hint(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("tcp:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"port": 80}})).await;
    let (client, device) = desk.flowing(&mut link, id).await;
    let (mut client_2, mut device_2) = desk.flowing(&mut link, id).await;
    desk.port.run(&format!("update people set active = false where id = '{}'", desk.operator.id)).await;
    let others = async { tokio::join!(client_2.closed(), device_2.closed()) };
    let first = async {
        let (mut client, mut device) = (client, device);
        tokio::join!(client.closed(), device.closed())
    };
    let all = timeout(CUT_WITHIN, async { tokio::join!(first, others) }).await.expect("cut in time");
    let shut_out = || ("operator_shut_out".to_owned(), "operator_shut_out".to_owned());
    assert_eq!(all, (shut_out(), shut_out()));
    desk.port.until("select end_reason from support_sessions where result <> '{}'", "operator_shut_out").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn with_a_client_and_a_device_that_read_nothing(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("tcp:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"port": 80}})).await;
    let (mut client, mut device) = desk.flowing(&mut link, id).await;
    // Until neither end takes any more: both directions are full.
    let full = vec![7; 65_536];
    for side in [0, 1] {
        loop {
            let message = Message::Binary(Bytes::from(full.clone()));
            let sent =
                async { if side == 0 { client.socket.send(message).await } else { device.socket.send(message).await } };
            if timeout(Duration::from_millis(300), sent).await.is_err() {
                break;
            }
        }
    }
    let moved = format!("select bytes_to_device::text from support_sessions where id = '{id}'");
    let revoked_at = Instant::now();
    let (status, _) = desk.call(Method::POST, &format!("/grants/{grant}/revoke"), &desk.customer, None).await;
    assert_eq!(status, StatusCode::OK);
    let cut_off_ms = measured(&desk, id, "grant_revoked").await;
    assert!(cut_off_ms >= 250 && revoked_at.elapsed() < CUT_WITHIN * 3, "{cut_off_ms} ms");
    assert_ne!(desk.port.ask(&moved).await.as_deref(), Some("0"));
    // What was under way is gone with the reset: not all of it comes now.
    let mut late = 0;
    while let Some(Ok(Message::Binary(bytes))) = timeout(PATIENCE, client.socket.next()).await.expect("an end") {
        late += bytes.len();
    }
    assert!(late < 64 * 1024 * 1024);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn at_the_grants_end_while_the_database_is_away(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = super::super::database::Relay::start(&database).await;
    let port = Port::start_with(database, |settings| settings.database = relay.options(&settings.database)).await;
    let (desk, mut link) = Desk::on(port, |config| config.recording_lag_seconds = config::Seconds(60)).await;
    let grant = desk.grant("shell:open", 10.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    relay.cut();
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(Duration::from_secs(12), both).await.expect("cut by the deadline");
    assert_eq!((one.as_str(), other.as_str()), ("grant_ended", "grant_ended"));
    let late = format!("select (clock_timestamp() - ends_at < interval '1 s')::text from grants where id = '{grant}'");
    assert_eq!(desk.port.ask(&late).await.as_deref(), Some("true"));
    relay.mend();
    let cut_off_ms = measured(&desk, id, "grant_ended").await;
    let stored = format!(
        "select (ended_at - expires_at < interval '1 s')::text from support_sessions where id = '{id}' and cut_off_ms = {cut_off_ms}"
    );
    assert_eq!(desk.port.ask(&stored).await.as_deref(), Some("true"), "when it was, not when it was written");
}

/// What another node was told a moment before this one could not ask any more.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn in_time_although_nobody_can_tell_this_node(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = super::super::database::Relay::start(&database).await;
    let port = Port::start_with(database, |settings| settings.database = relay.options(&settings.database)).await;
    let (desk, mut link) = Desk::on(port, |config| config.recording_lag_seconds = config::Seconds(60)).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    client.send(b"before").await;
    assert_eq!(device.receives().await, b"before");
    relay.cut();
    desk.port
        .run(&format!("update grants set revoked_at = clock_timestamp(), revoked_by = created_by where id = '{grant}'"))
        .await;
    in_time(&desk, &relay, id, (client, device)).await;
    measured(&desk, id, "grant_revoked").await;
}

/// The same of what another node was told of the operator's token.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn in_time_although_nobody_can_tell_this_node_of_the_token(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = super::super::database::Relay::start(&database).await;
    let port = Port::start_with(database, |settings| settings.database = relay.options(&settings.database)).await;
    let (desk, mut link) = Desk::on(port, |config| config.recording_lag_seconds = config::Seconds(60)).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    relay.cut();
    let revoke = "update api_tokens set revoked_at = clock_timestamp() where person_id";
    desk.port.run(&format!("{revoke} = '{}'", desk.operator.id)).await;
    in_time(&desk, &relay, id, (client, device)).await;
    measured(&desk, id, "token_ended").await;
}

/// Access was over a moment ago, and the node knows nothing of that. Who speaks all the time is heard no longer than a second,
/// nor when the node can ask again.
async fn in_time(
    desk: &Desk,
    relay: &super::super::database::Relay,
    id: SupportSessionId,
    (mut client, mut device): (Side<TcpStream>, DeviceSide),
) {
    let over_at = Instant::now();
    let (mut heard_at, mut is_mended) = (over_at, false);
    let said = async {
        loop {
            let _ = client.socket.send(Message::Binary(Bytes::from_static(b"."))).await;
            match timeout(Duration::from_millis(10), device.socket.next()).await {
                Ok(Some(Ok(Message::Binary(_)))) => heard_at = Instant::now(),
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => return,
            }
            if !is_mended && over_at.elapsed() > 2 * CUT_WITHIN {
                assert!(desk.support.find(id).unwrap().ending().is_none(), "it waits, and does not know for what");
                relay.mend();
                is_mended = true;
            }
        }
    };
    timeout(PATIENCE, said).await.expect("it ends when the node knows");
    assert!(heard_at - over_at < CUT_WITHIN, "heard {:?} after the end", heard_at - over_at);
}

/// A pause, and no end: what was said meanwhile arrives when the database is back.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn not_by_a_database_that_is_away_for_a_while(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = super::super::database::Relay::start(&database).await;
    let port = Port::start_with(database, |settings| settings.database = relay.options(&settings.database)).await;
    let (desk, mut link) = Desk::on(port, |config| config.recording_lag_seconds = config::Seconds(60)).await;
    desk.grant("shell:open", 900.0, None).await;
    let (_, mut client, mut device) = desk.terminal(&mut link).await;
    relay.cut();
    let silent = async {
        while desk.support.freshness().silent_since(Instant::now()).is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, silent).await.expect("what was said last does not hold for ever");
    client.send(b"meanwhile").await;
    assert!(timeout(CUT_WITHIN, device.socket.next()).await.is_err(), "nobody knows whether it may");
    relay.mend();
    assert_eq!(device.receives().await, b"meanwhile");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn later_when_the_grant_is_extended_and_at_once_when_it_is_cut_short(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 8.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    desk.port
        .run(&format!("update grants set ends_at = clock_timestamp() + interval '30 minutes' where id = '{grant}'"))
        .await;
    let moved =
        format!("select (s.expires_at = g.ends_at)::text from support_sessions s, grants g where s.id = '{id}'");
    desk.port.until(&moved, "true").await;
    // The device would cut by itself: it is asked again, for longer.
    let again = requested(&mut link).await;
    assert_eq!(again.session_id, id.to_wire());
    assert!(again.ends_after_ms > 1_700_000, "{} ms", again.ends_after_ms);
    let passed = format!(
        "select (created_at + interval '8.5 s' < clock_timestamp())::text from support_sessions where id = '{id}'"
    );
    desk.port.until(&passed, "true").await;
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
    // Sooner: by a look, for nobody said so.
    desk.port.run(&format!("update grants set ends_at = clock_timestamp() where id = '{grant}'")).await;
    cut(&desk, id, client, device, "grant_ended").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_the_token_is_revoked_with_which_it_was_opened_or_joined(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let mut colleague = desk.dial(id, &desk.colleague, "").await.unwrap();
    assert_eq!(colleague.hears().await, Control::Ready);
    let revoke = async |who: Uuid| {
        let sql = format!("update api_tokens set revoked_at = clock_timestamp() where person_id = '{who}'");
        desk.port.run(&sql).await;
    };
    revoke(desk.colleague.id).await;
    assert_eq!(timeout(CUT_WITHIN, colleague.closed()).await.expect("in time"), "not_allowed");
    client.send(b"still").await;
    assert!(matches!(device.hears().await, Control::Joined { .. }));
    revoke(desk.operator.id).await;
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(CUT_WITHIN, both).await.expect("cut in time");
    assert_eq!((one.as_str(), other.as_str()), ("token_ended", "token_ended"));
    measured(&desk, id, "token_ended").await;
}

/// The answer takes longer than it holds. Nothing passes meanwhile, and the end seems no earlier than it was.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn measured_from_when_it_was_over_though_the_database_stood_still(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    let (id, client, device) = desk.terminal(&mut link).await;
    // Each look at the session waits for this lock.
    let stands_still = format!(
        "do $$ begin
             lock table devices in access exclusive mode;
             update grants set revoked_at = clock_timestamp(), revoked_by = created_by where id = '{grant}';
             perform pg_sleep(1.5);
         end $$"
    );
    desk.port.run(&stands_still).await;
    cut(&desk, id, client, device, "grant_revoked").await;
}

/// The operator's token ends while nobody can be asked.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_the_token_expires_while_the_database_is_away(_: PgPoolOptions, database: PgConnectOptions) {
    let relay = super::super::database::Relay::start(&database).await;
    let port = Port::start_with(database, |settings| settings.database = relay.options(&settings.database)).await;
    let (desk, mut link) = Desk::on(port, |config| config.recording_lag_seconds = config::Seconds(60)).await;
    desk.grant("shell:open", 900.0, None).await;
    let expires = "update api_tokens set expires_at = clock_timestamp() + interval '3 s' where person_id";
    desk.port.run(&format!("{expires} = '{}'", desk.operator.id)).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let expired = format!(
        "select (expires_at < clock_timestamp())::text from api_tokens where person_id = '{}'",
        desk.operator.id
    );
    relay.cut();
    desk.port.until(&expired, "true").await;
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(CUT_WITHIN, both).await.expect("cut by this node's clock");
    assert_eq!((one.as_str(), other.as_str()), ("token_ended", "token_ended"));
    relay.mend();
    measured(&desk, id, "token_ended").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn with_a_warning_before(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 130.0, None).await;
    let (_id, mut client, mut device) = desk.terminal(&mut link).await;
    let warning = Control::Warning { seconds_left: 120, reason: None };
    assert_eq!((client.hears().await, device.hears().await), (warning.clone(), warning));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_the_node_stops_and_not_without_a_word(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let shutdown = desk.port.shutdown.clone();
    let stop = async move { shutdown.run(Duration::from_secs(2), PATIENCE, std::future::pending()).await };
    let stopped = tokio::spawn(stop);
    let warning = Control::Warning { seconds_left: 2, reason: Some("node_lost".to_owned()) };
    assert_eq!((client.hears().await, device.hears().await), (warning.clone(), warning));
    // It goes on until then.
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(PATIENCE, both).await.expect("an end");
    assert_eq!((one.as_str(), other.as_str()), ("node_lost", "node_lost"));
    assert!(timeout(PATIENCE, stopped).await.unwrap().unwrap(), "every task has ended");
    let accounted = format!("select end_reason from support_sessions where id = '{id}' and result <> '{{}}'");
    assert_eq!(desk.port.ask(&accounted).await.as_deref(), Some("node_lost"));
}

/// The shell has ended, and the client neither reads nor closes: it may take its time, but not beyond the end of access.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn with_a_client_that_never_closes(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    device.say(Control::Exit { status: Some(0), signal: None }).await;
    // The device is let go at once.
    assert!(timeout(CUT_WITHIN, device.next()).await.expect("closed").is_none());
    client.send(b"after the end").await;
    assert_eq!(desk.show(id).await["end_reason"], json!(null), "the client may still read what was said last");
    let (status, _) = desk.call(Method::POST, &format!("/grants/{grant}/revoke"), &desk.customer, None).await;
    assert_eq!(status, StatusCode::OK);
    measured(&desk, id, "grant_revoked").await;
    assert_eq!(desk.accounted(id).await["bytes_to_device"], 0, "nobody is there to read it");
    // Not closed, but reset: whatever waits is gone.
    let reset = async {
        loop {
            client.socket.get_ref().readable().await.unwrap();
            match client.socket.get_ref().try_read(&mut [0; 4096]) {
                Ok(0) => panic!("it was closed as if all had been said"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return error.kind(),
            }
        }
    };
    let reset = timeout(PATIENCE, reset).await.expect("the end of the connection");
    assert_eq!(reset, std::io::ErrorKind::ConnectionReset);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_nothing_happens_for_too_long(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::with(database, |config| config.idle_timeout_seconds = config::Seconds(1)).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    assert_eq!((client.closed().await.as_str(), device.closed().await.as_str()), ("idle", "idle"));
    assert_eq!(desk.accounted(id).await["cut_off_ms"], json!(null), "nobody's access was over");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_the_device_is_gone(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, device) = desk.terminal(&mut link).await;
    drop(device);
    assert_eq!(client.closed().await, "device_gone");
    assert_eq!(desk.accounted(id).await["end_reason"], "device_gone");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_somebody_breaks_the_protocol(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (_, mut client, mut device) = desk.terminal(&mut link).await;
    client.say(Control::Exit { status: Some(0), signal: None }).await;
    assert_eq!((client.closed().await.as_str(), device.closed().await.as_str()), ("closed", "closed"));
    let (_, mut client, mut device) = desk.terminal(&mut link).await;
    device.say(Control::Closed { reason: "x".to_owned(), message: String::new() }).await;
    assert_eq!((client.closed().await.as_str(), device.closed().await.as_str()), ("device_gone", "device_gone"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_the_node_stops(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (_, mut client, mut device) = desk.terminal(&mut link).await;
    desk.port.shutdown.soft.cancel();
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
    assert!(desk.support.reserve(SupportSessionId::from_uuid(Uuid::now_v7())).is_none(), "nothing new");
    desk.port.shutdown.hard.cancel();
    let both = async { tokio::join!(client.closed(), device.closed()) };
    let (one, other) = timeout(CUT_WITHIN, both).await.expect("cut in time");
    assert_eq!((one.as_str(), other.as_str()), ("node_lost", "node_lost"));
    desk.port.until("select end_reason from support_sessions", "node_lost").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn when_its_node_has_died(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, _link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    // Of an earlier life of this node, and of another node.
    let (tenant, device, operator) = (desk.fleet.tenant, desk.device.id, desk.operator.id);
    desk.port
        .run(&format!(
            "insert into support_sessions (id, tenant_id, device_id, grant_id, opened_by, kind, target, reason, node, expires_at)
             select gen_random_uuid(), '{tenant}', '{device}', '{grant}', '{operator}', 'terminal', '{{}}', 'r', node,
                    now() + interval '1 hour' from unnest(array['node-1', 'node-2']) node"
        ))
        .await;
    desk.port.bus.send(Hint::SupportDue(desk.device.device_id()));
    desk.port.until("select end_reason from support_sessions where node = 'node-1'", "node_lost").await;
    assert_eq!(desk.port.ask("select end_reason from support_sessions where node = 'node-2'").await, None);
    // What another node cannot write any more, this one does once access is over.
    desk.port.run(&format!("update grants set ends_at = clock_timestamp() where id = '{grant}'")).await;
    desk.port.until("select end_reason from support_sessions where node = 'node-2'", "grant_ended").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn before_it_began_when_nothing_can_be_recorded(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, _link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    desk.port.run("alter table recordings add check (false) not valid").await;
    let id = desk.opened(json!({"kind": "terminal"})).await;
    let (status, problem) = desk.dial(id, &desk.operator, "").await.err().unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(problem["type"], "urn:cloudlink:problem:recording_unavailable");
    assert_eq!(desk.accounted(id).await["end_reason"], "recording_failed");
}
