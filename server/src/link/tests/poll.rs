//! Polls of devices that cannot link.

use bytes::Bytes;
use cloudlink_certs::create_request;
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::{
    BootHint, BusyLock, CertificateRequest, ConfigurationStatus, Hello, MetricsReport, TransportFailure, command,
    transport_failure,
};
use cloudlink_proto::poll::message::{PollRequest, PollResponse, Running};
use cloudlink_proto::poll::{self, COMMANDS_MAX, CONTENT_TYPE, POLL_PATH, REQUEST_BYTES_MAX};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::database::Relay;
use super::fleet::{Fleet, Gateway};
use super::peer::{Credentials, Peer, dial_tls, new_key, request, status};
use super::{PATIENCE, Port, SERVER_NAME};
use crate::config::Seconds;

/// A device without a link, and a grant for it.
async fn unlinked(port: &Port) -> (Fleet, Gateway) {
    let fleet = Fleet::new(port).await;
    let device = fleet.device(port).await;
    fleet.grant(port, device.id, 600).await;
    (fleet, device)
}

fn says(boot_id: &str) -> PollRequest {
    PollRequest { boot_id: boot_id.to_owned(), agent: "test/1".to_owned(), ..poll::request() }
}

/// Posts a body, and gives status and answer.
async fn post(port: &Port, credentials: &Credentials, body: Bytes) -> (u16, Bytes) {
    let stream = dial_tls(port, credentials, SERVER_NAME).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(POLL_PATH)
        .header("host", SERVER_NAME)
        .header("content-type", CONTENT_TYPE)
        .body(Full::new(body))
        .unwrap();
    let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("an answer").unwrap();
    let status = answer.status().as_u16();
    (status, timeout(PATIENCE, answer.into_body().collect()).await.expect("a body").unwrap().to_bytes())
}

async fn poll(port: &Port, device: &Gateway, request: PollRequest) -> PollResponse {
    let (status, body) = post(port, &device.credentials, poll::write_request(&request).unwrap()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    poll::read_response(&body).unwrap()
}

fn problem(answer: &(u16, Bytes)) -> (u16, String) {
    let problem: serde_json::Value = serde_json::from_slice(&answer.1).unwrap();
    (answer.0, problem["type"].as_str().unwrap().strip_prefix("urn:cloudlink:problem:").unwrap().to_owned())
}

fn commands(response: &PollResponse) -> Vec<CommandId> {
    response.commands.iter().map(|command| CommandId::from_wire(&command.id).unwrap()).collect()
}

fn receipts(response: &PollResponse) -> Vec<CommandId> {
    response.receipts.iter().map(|receipt| CommandId::from_wire(&receipt.id).unwrap()).collect()
}

fn column(command: CommandId, column: &str) -> String {
    format!("select ({column})::text from commands where id = '{command}'")
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_poll_tells_the_lock_that_the_device_holds(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let held = format!("select coalesce((select reason from busy_locks where device_id = '{}'), 'none')", device.id);
    let busy_lock = Some(BusyLock { reason: "results".to_owned(), left_ms: 60_000 });
    poll(&port, &device, PollRequest { busy_lock, ..says("boot-1") }).await;
    assert_eq!(port.ask(&held).await.as_deref(), Some("results"));
    poll(&port, &device, says("boot-1")).await;
    assert_eq!(port.ask(&held).await.as_deref(), Some("none"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_poll_gives_what_the_device_is_to_have_until_it_has_that(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let desire = format!(
        "with content as (insert into configuration_contents (tenant_id, sha256, content)
                          select tenant_id, sha256('{{}}'), '{{}}' from devices where id = '{0}' returning *)
         insert into device_configurations as f (device_id, tenant_id, version, sha256)
         select '{0}', tenant_id, 4, sha256 from content
             on conflict (device_id) do update set version = 4, sha256 = excluded.sha256 returning version::text",
        device.id
    );
    port.ask(&desire).await.unwrap();
    let says = |status| PollRequest {
        capabilities: vec!["configuration".to_owned()],
        configuration: status,
        ..says("boot-1")
    };
    assert_eq!(
        poll(&port, &device, PollRequest { configuration: None, ..super::poll::says("boot-1") }).await.configuration,
        None
    );
    let given = poll(&port, &device, says(None)).await.configuration.unwrap();
    assert_eq!((given.version, &given.document_json[..]), (4, &b"{}"[..]));
    let held = ConfigurationStatus { held_version: 4, held_sha256: given.sha256, ..ConfigurationStatus::default() };
    assert_eq!(poll(&port, &device, says(Some(held.clone()))).await.configuration, None);
    let failed = ConfigurationStatus { reported_version: 4, error: "not today".to_owned(), ..held };
    assert_eq!(poll(&port, &device, says(Some(failed))).await.configuration, None);
    let standing = "select configuration_state(f) || ' ' || error from device_configurations f where version > 0";
    assert_eq!(port.ask(standing).await.as_deref(), Some("failed not today"));

    // While somebody changes documents for long, polls are answered all the same.
    port.ask(
        "select pg_advisory_lock(hashtextextended('configuration ' || tenant_id, 0))::text from device_configurations",
    )
    .await;
    port.ask("update device_configurations set is_stale = true").await;
    assert_eq!(poll(&port, &device, says(None)).await.configuration, None);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_poll_says_who_is_there_and_is_told_when_to_come_back(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start_with(database, |settings| settings.poll.interval_seconds = Seconds(120)).await;
    let (_, device) = unlinked(&port).await;
    let request = PollRequest {
        hostname: "gate\0way".to_owned(),
        metrics: Some(MetricsReport { uptime_seconds: Some(7), ..MetricsReport::default() }),
        running: vec![Running { name: "nginx".to_owned(), state: "active".to_owned(), kind: 1 }],
        ..says("boot-1")
    };
    let response = poll(&port, &device, request).await;
    assert_eq!((response.version, response.next_poll_ms), (1, 120_000));
    assert_eq!(response.device_id, device.id.to_string());
    assert!(response.clock_unix_ms > 1_700_000_000_000 && response.commands.is_empty() && !response.more);
    let row = port
        .ask("select concat_ws(' ', interval_seconds, boot_id, agent, hostname, host(remote_address), node, running) from polls")
        .await;
    let expected =
        r#"120 boot-1 test/1 gate�way 127.0.0.1 node-1 [{"kind": "service", "name": "nginx", "state": "active"}]"#;
    assert_eq!(row.as_deref(), Some(expected));
    port.until("select (report ->> 'uptime_seconds') from device_metrics", "7").await;
    let next = "select (device_next_poll_by(device_id, clock_timestamp()) between polled_at + '120 s' and polled_at + '180 s')::text from polls";
    assert_eq!(port.ask(next).await.as_deref(), Some("true"));
    assert_eq!(port.ask("select count(*)::text from links").await.as_deref(), Some("0"), "a poll is no link");
    assert_eq!(port.metric("cloudlink_polls_total"), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_only_ever_polls_tells_why_no_link_comes_about(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let failure = |code: &str| TransportFailure {
        transport: transport_failure::Transport::Websocket.into(),
        stage: transport_failure::Stage::Http.into(),
        code: code.to_owned(),
        count: 2,
        last_unix_ms: 1000,
    };
    for _ in 0..2 {
        let transport_failures = vec![failure("status_403"), failure("invented_1"), failure("invented_2")];
        let request = PollRequest { clock_unix_ms: 61_000, transport_failures, ..says("boot-1") };
        poll(&port, &device, request).await;
    }
    let told = "select string_agg(concat_ws(' ', transport, stage, code, count, round(extract(epoch from now() - last_at) / 60)),
                                  '|' order by code) from transport_failures";
    let expected = "websocket http other 8 1|websocket http status_403 4 1";
    assert_eq!(port.ask(told).await.as_deref(), Some(expected));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_command_that_may_run_by_polling_runs_at_most_once(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    // Made while it did not poll yet: it waits for a link.
    let restart = fleet.command(&port, device.id, "service.restart", json!({"service": "nginx"})).await;

    let response = poll(&port, &device, says("boot-1")).await;
    assert_eq!(commands(&response), [id]);
    let command = &response.commands[0];
    assert!(matches!(command.kind, Some(command::Kind::CollectMetrics(_))));
    assert!((560_000..=600_000).contains(&command.start_within_ms), "{}", command.start_within_ms);
    let sent = port.ask(&column(id, "concat_ws(' ', state, sent_epoch, boot_id)")).await;
    assert_eq!(sent.as_deref(), Some("sent 0 boot-1"));
    // It tells with a later poll: the time for that is given.
    let late = column(id, "deadline_at > expires_at + interval '1 hour' and run_seconds > 3600");
    assert_eq!(port.ask(&late).await.as_deref(), Some("true"));

    // The answer was lost: it comes again. The device knows it if it was not.
    assert_eq!(commands(&poll(&port, &device, says("boot-1")).await), [id]);
    let told = |state| PollRequest { statuses: vec![status(id, state)], ..says("boot-1") };
    let response = poll(&port, &device, told(State::Running)).await;
    assert!(commands(&response).is_empty() && receipts(&response).is_empty());
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("running"));
    for _ in 0..2 {
        let response = poll(&port, &device, told(State::Succeeded)).await;
        assert_eq!((receipts(&response), commands(&response)), (vec![id], vec![]));
    }
    let ended = "select count(*)::text from audit where action = 'command.finished'";
    assert_eq!(port.ask(ended).await.as_deref(), Some("1"));
    assert_eq!(port.ask(&column(restart, "state")).await.as_deref(), Some("queued"));
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.command().await.0, restart);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_was_sent_over_one_transport_is_known_over_the_other(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(commands(&poll(&port, &device, says("boot-1")).await), [id]);
    // Not accepted by what the server knows, so it goes out again; the ledger of the device decides.
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    assert_eq!(link.admission.epoch, 1);
    assert_eq!(link.command().await.0, id);
    drop(link);
    port.until("select (closed_at is not null)::text from links", "true").await;
    assert_eq!(commands(&poll(&port, &device, says("boot-1")).await), [id]);
    let told = PollRequest { statuses: vec![status(id, State::Succeeded)], ..says("boot-1") };
    assert_eq!(receipts(&poll(&port, &device, told).await), [id]);
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    link.report(id, State::Succeeded).await;
    assert_eq!(link.receipt().await, id);
    let ended = "select count(*)::text from audit where action = 'command.finished'";
    assert_eq!(port.ask(ended).await.as_deref(), Some("1"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_live_link_wins_and_hears_nothing_of_a_poll(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let row = "select concat_ws(' ', epoch, transport, boot_id, connected_at, closed_at) from links";
    let before = port.ask(row).await;
    let id = fleet.command_without_hint(&port, device.id, "metrics.collect", json!({})).await;
    let response = poll(&port, &device, says("boot-1")).await;
    assert!(commands(&response).is_empty(), "it is the link's");
    assert_eq!(port.ask(row).await, before);
    assert_eq!(port.ask("select device_next_poll_by(device_id, now())::text from polls").await, None);
    port.bus.send(crate::bus::Hint::CommandsDue(device.device_id()));
    assert_eq!(link.command().await.0, id);
    // What it says by a poll meanwhile is as good.
    let told = PollRequest { statuses: vec![status(id, State::Succeeded)], ..says("boot-1") };
    assert_eq!(receipts(&poll(&port, &device, told).await), [id]);
    assert_eq!(port.ask(row).await, before);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_poll_proves_a_reboot_and_no_clone(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    let id = fleet.command(&port, device.id, "device.reboot", json!({})).await;
    assert_eq!(link.command().await.0, id);
    link.report(id, State::Running).await;
    port.until(&column(id, "state"), "running").await;
    drop(link);
    port.until("select (closed_at is not null)::text from links", "true").await;
    poll(&port, &device, says("boot-2")).await;
    let row = port.ask(&column(id, "concat_ws(' ', state, proof)")).await;
    assert_eq!(row.as_deref(), Some(r#"succeeded {"kind": "boot_id", "after": "boot-2", "before": "boot-1"}"#));
    let told = PollRequest { statuses: vec![status(id, State::Succeeded)], ..says("boot-2") };
    assert_eq!(receipts(&poll(&port, &device, told).await), [id]);

    // It was seen before this link, but as the device's last boot.
    let _link = Peer::dial(&port, &device.credentials, "boot-2").await.unwrap();
    port.until("select (closed_at is null)::text from links", "true").await;
    let _other = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
    port.until_metric("cloudlink_link_clones_suspected_total", 1).await;
    let suspected = "select string_agg((entry::jsonb -> 'details' ->> 'boot_ids'), ' ') from audit where action = 'link.clone_suspected'";
    assert_eq!(port.ask(suspected).await.as_deref(), Some(r#"["boot-2", "boot-1"]"#));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn two_machines_that_take_turns_at_polling_are_suspected(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    for boot in ["boot-1", "boot-1", "boot-2"] {
        poll(&port, &device, says(boot)).await;
    }
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 0, "it has booted");
    poll(&port, &device, says("boot-1")).await;
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 1);
    let suspected =
        "select (entry::jsonb -> 'details' ->> 'boot_ids') from audit where action = 'link.clone_suspected'";
    assert_eq!(port.ask(suspected).await.as_deref(), Some(r#"["boot-2", "boot-1"]"#));

    // One polls while the other is linked.
    let (_, other) = unlinked(&port).await;
    poll(&port, &other, says("boot-1")).await;
    let _link = Peer::dial(&port, &other.credentials, "boot-2").await.unwrap();
    poll(&port, &other, says("boot-2")).await;
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 1);
    poll(&port, &other, says("boot-1")).await;
    assert_eq!(port.metric("cloudlink_link_clones_suspected_total"), 2);
    let was_live = "select string_agg(entry::jsonb -> 'details' ->> 'was_live', ' ' order by entry::jsonb -> 'details' ->> 'was_live') from audit
                     where action = 'link.clone_suspected'";
    assert_eq!(port.ask(was_live).await.as_deref(), Some("false true"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_a_device_says_of_a_boot_first_is_kept(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let hinted = |boot, hint: BootHint| PollRequest { boot_hint: hint.into(), ..says(boot) };
    poll(&port, &device, hinted("boot-1", BootHint::Watchdog)).await;
    poll(&port, &device, hinted("boot-1", BootHint::Local)).await;
    poll(&port, &device, PollRequest { boot_hint: 77, ..says("boot-2") }).await;
    let hello = Hello {
        boot_id: "boot-3".to_owned(),
        boot_hint: BootHint::PowerLoss.into(),
        capabilities: vec!["metrics.collect".to_owned()],
        ..Hello::default()
    };
    let _link = Peer::dial_with(&port, &device.credentials, hello).await.unwrap();
    let hints = "select string_agg(boot_id || ' ' || coalesce(hint, '-'), ', ' order by seen_at) from device_boots";
    assert_eq!(port.ask(hints).await.as_deref(), Some("boot-1 watchdog, boot-2 -, boot-3 power_loss"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_polls_or_links_more_often_is_not_sampled_more_often(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let port = Port::start_with(database, |settings| settings.link.metrics_interval_seconds = Seconds(7200)).await;
    let (_, device) = unlinked(&port).await;
    let measured = |uptime| MetricsReport { uptime_seconds: Some(uptime), ..MetricsReport::default() };
    for uptime in 1..=3 {
        poll(&port, &device, PollRequest { metrics: Some(measured(uptime)), ..says("boot-1") }).await;
    }
    let too_often = r#"cloudlink_telemetry_dropped_total{reason="too_often"}"#;
    assert_eq!(port.metric(too_often), 2);
    // The last link of each is another one.
    for (uptime, dropped) in [(4, 3), (5, 4)] {
        let mut link = Peer::dial(&port, &device.credentials, "boot-1").await.unwrap();
        link.send(measured(uptime)).await;
        port.until_metric(too_often, dropped).await;
    }
    // What another node has heard is known by the database alone.
    let other = unlinked(&port).await.1;
    poll(&port, &other, says("boot-1")).await;
    poll(&port, &other, PollRequest { metrics: Some(measured(6)), ..says("boot-1") }).await;
    assert_eq!(port.metric(too_often), 5);
    port.until("select string_agg(report ->> 'uptime_seconds', ' ' order by 1) from device_metrics", "5 6").await;
    port.until("select string_agg(uptime_seconds::text, ' ') from samples", "1").await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_has_one_poll_at_a_time(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let body = poll::write_request(&says("boot-1")).unwrap();
    let first = {
        // Its body is yet to come.
        let head = format!(
            "POST {POLL_PATH} HTTP/1.1\r\nhost: {SERVER_NAME}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = dial_tls(&port, &device.credentials, SERVER_NAME).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let begun = tokio::time::Instant::now();
    while port.links.0.polling.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it is not begun");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let refused = problem(&post(&port, &device.credentials, body.clone()).await);
    assert_eq!(refused, (429, "too_many_requests".to_owned()));
    let (_, other) = unlinked(&port).await;
    poll(&port, &other, says("boot-1")).await;
    drop(first);
    while !port.links.0.polling.lock().unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it goes on");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    poll(&port, &device, says("boot-1")).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_is_called_back_or_has_no_grant_any_more_is_not_begun(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(commands(&poll(&port, &device, says("boot-1")).await), [id]);
    port.run("update grants set revoked_at = clock_timestamp(), revoked_by = created_by").await;
    let response = poll(&port, &device, says("boot-1")).await;
    assert!(commands(&response).is_empty());
    assert_eq!(CommandId::from_wire(&response.cancels[0].id), Some(id));
    let told = PollRequest { statuses: vec![status(id, State::Cancelled)], ..says("boot-1") };
    assert_eq!(receipts(&poll(&port, &device, told).await), [id]);
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("cancelled"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn more_than_fits_comes_with_the_next_poll(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let mut made = Vec::new();
    for _ in 0..=COMMANDS_MAX {
        made.push(fleet.command(&port, device.id, "metrics.collect", json!({})).await);
    }
    let response = poll(&port, &device, says("boot-1")).await;
    assert_eq!((commands(&response), response.more), (made[..COMMANDS_MAX].to_vec(), true));
    let statuses = made[..COMMANDS_MAX].iter().map(|id| status(*id, State::Succeeded)).collect();
    let response = poll(&port, &device, PollRequest { statuses, ..says("boot-1") }).await;
    assert_eq!((commands(&response), response.more), (made[COMMANDS_MAX..].to_vec(), false));
    let mut stored = receipts(&response);
    stored.sort();
    assert_eq!(stored, made[..COMMANDS_MAX]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn who_may_not_link_may_not_poll(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let body = poll::write_request(&says("boot-1")).unwrap();
    let other = fleet.device(&port).await;
    port.run(&format!(
        "update devices set state = 'revoked', revoked_at = now() where id = '{}';
         update certificates set state = 'revoked', revoked_at = now() where serial = '\\x{}'",
        device.id, other.serial
    ))
    .await;
    let refused = async |credentials: &Credentials| problem(&post(&port, credentials, body.clone()).await);
    assert_eq!(refused(&device.credentials).await, (403, "device_revoked".to_owned()));
    assert_eq!(refused(&other.credentials).await, (403, "certificate_revoked".to_owned()));
    assert_eq!(port.ask("select count(*)::text from polls").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_certificate_is_renewed_by_polls_alone(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, mut device) = unlinked(&port).await;
    let states =
        format!("select string_agg(state, ' ' order by issued_at) from certificates where device_id = '{}'", device.id);
    let key = new_key();
    let asking = |csr_der: Vec<u8>| PollRequest {
        certificate_request: Some(CertificateRequest { csr_der: csr_der.into() }),
        ..says("boot-1")
    };
    let csr_der = create_request(&key).unwrap();
    let issued = poll(&port, &device, asking(csr_der.clone())).await.certificate_issued.unwrap();
    // Whatever becomes of the answer, the old one is good.
    assert_eq!(port.ask(&states).await.as_deref(), Some("active issued"));
    let old = device.credentials.clone();
    assert_eq!(post(&port, &old, poll::write_request(&says("boot-1")).unwrap()).await.0, 200);

    let certificate = CertificateDer::from(issued.chain_der[0].to_vec());
    device.credentials = Credentials::new(&port, &certificate, &key);
    poll(&port, &device, says("boot-1")).await;
    assert_eq!(port.ask(&states).await.as_deref(), Some("superseded active"));
    let refused = problem(&post(&port, &old, poll::write_request(&says("boot-1")).unwrap()).await);
    assert_eq!(refused, (403, "certificate_superseded".to_owned()));

    let refused = poll(&port, &device, asking(vec![0x30, 0x00])).await.certificate_refused.unwrap();
    assert_eq!((refused.code.as_str(), refused.retry_after_ms), ("csr_invalid", 0));
    for _ in 0..4 {
        assert!(poll(&port, &device, asking(csr_der.clone())).await.certificate_issued.is_some());
    }
    let answer = poll(&port, &device, asking(csr_der)).await;
    assert_eq!(answer.certificate_refused.unwrap().code, "too_many_requests");
    assert_eq!(answer.certificate_issued, None);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_body_that_is_none_is_refused_and_stores_nothing(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (_, device) = unlinked(&port).await;
    let newer = PollRequest { versions: vec![9], ..says("boot-1") };
    for (body, expected) in [
        (Bytes::from_static(b"\xff\xff\xff"), (400, "bad_request")),
        (Bytes::new(), (400, "bad_request")),
        (poll::write_request(&newer).unwrap(), (400, "bad_request")),
        (vec![0; REQUEST_BYTES_MAX + 1].into(), (413, "too_large")),
    ] {
        let (status, kind) = problem(&post(&port, &device.credentials, body).await);
        assert_eq!((status, kind.as_str()), expected);
    }
    let get = format!("GET {POLL_PATH} HTTP/1.1\r\nhost: {SERVER_NAME}\r\nconnection: close\r\n\r\n");
    let (status, headers, _) = request(&port, &device.credentials, SERVER_NAME, get.as_bytes()).await.unwrap();
    assert_eq!((status, headers["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(port.ask("select count(*)::text from polls").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn another_devices_command_is_not_moved_by_a_poll(_: PgPoolOptions, database: PgConnectOptions) {
    let port = Port::start(database).await;
    let (fleet, device) = unlinked(&port).await;
    let other = fleet.device(&port).await;
    let id = fleet.command(&port, device.id, "metrics.collect", json!({})).await;
    assert_eq!(commands(&poll(&port, &device, says("boot-1")).await), [id]);
    let told = PollRequest { statuses: vec![status(id, State::Succeeded)], ..says("boot-1") };
    assert!(receipts(&poll(&port, &other, told).await).is_empty());
    assert_eq!(port.ask(&column(id, "state")).await.as_deref(), Some("sent"));
    assert_eq!(port.metric(r#"cloudlink_link_reports_refused_total{reason="foreign"}"#), 1);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nobody_polls_at_a_node_that_cannot_ask_or_sends_its_devices_away(
    _: PgPoolOptions,
    database: PgConnectOptions,
) {
    let relay = Relay::start(&database).await;
    let port = Port::start_with(database.clone(), |settings| settings.database = relay.options(&database)).await;
    let (_, device) = unlinked(&port).await;
    let body = poll::write_request(&says("boot-1")).unwrap();
    // It takes nobody in before it has closed what an earlier life has left.
    assert_eq!(post(&port, &device.credentials, Bytes::from_static(b"?")).await.0, 400);
    relay.cut();
    let refused = problem(&post(&port, &device.credentials, body.clone()).await);
    assert_eq!(refused, (503, "unavailable".to_owned()));
    relay.mend();
    port.links.0.registry.close_doors();
    let refused = problem(&post(&port, &device.credentials, body).await);
    assert_eq!(refused, (503, "draining".to_owned()));
    assert_eq!(port.ask("select count(*)::text from polls").await.as_deref(), Some("0"));
}
