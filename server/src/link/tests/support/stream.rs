//! Who gets a stream, and what flows on it.

use cloudlink_proto::link::message::{StreamRefused, stream_request};
use cloudlink_proto::stream::Signal;
use sqlx::postgres::PgPoolOptions;

use super::*;

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_terminal_flows_is_recorded_and_accounted_for(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    let grant = desk.grant("shell:open", 900.0, None).await;
    let (status, session) = desk.create(&desk.operator, json!({"kind": "terminal"})).await;
    assert_eq!((status, &session["state"]), (StatusCode::CREATED, &json!("waiting")), "{session}");
    assert_eq!((&session["grant_id"], &session["target"]), (&json!(grant.to_string()), &json!({})));
    let id: SupportSessionId = session["id"].as_str().unwrap().parse().unwrap();

    let device = async {
        let request = requested(&mut link).await;
        assert_eq!(
            (&request.session_id, &request.grant_id),
            (&id.to_wire(), &Bytes::copy_from_slice(grant.as_bytes()))
        );
        assert_eq!(request.reason, "ticket 4711");
        assert!(request.open_within_ms > 0 && (880_000..=900_000).contains(&request.ends_after_ms), "{request:?}");
        let Some(stream_request::Kind::Terminal(terminal)) = &request.kind else { panic!("{request:?}") };
        assert_eq!((terminal.columns, terminal.rows, terminal.term.as_str()), (132, 43, "xterm"));
        bring(&desk.port, &desk.device, &request.token).await.unwrap()
    };
    let (client, mut device) = tokio::join!(desk.dial(id, &desk.operator, "?columns=132&rows=43&term=xterm"), device);
    let mut client = client.unwrap();
    device.say(Control::Ready).await;
    assert_eq!(client.hears().await, Control::Ready);
    assert_eq!(desk.show(id).await["state"], "live");
    client.send(b"ls\n").await;
    assert_eq!(device.receives().await, b"ls\n");
    device.send(b"file\r\n").await;
    assert_eq!(client.receives().await, b"file\r\n");
    client.say(Control::Resize { columns: 80, rows: 24 }).await;
    assert_eq!(device.hears().await, Control::Resize { columns: 80, rows: 24 });
    assert_eq!(client.hears().await, Control::Screen { columns: 80, rows: 24 });
    client.say(Control::Signal { signal: Signal::Int }).await;
    assert_eq!(device.hears().await, Control::Signal { signal: Signal::Int });
    device.say(Control::Exit { status: Some(3), signal: None }).await;
    assert_eq!(client.hears().await, Control::Exit { status: Some(3), signal: None });
    assert!(client.next().await.is_none() && device.next().await.is_none());

    let session = desk.accounted(id).await;
    assert_eq!((&session["state"], &session["end_reason"]), (&json!("ended"), &json!("exited")));
    assert_eq!((&session["bytes_to_device"], &session["bytes_from_device"]), (&json!(3), &json!(6)));
    assert_eq!((&session["result"]["exit_status"], &session["cut_off_ms"]), (&json!(3), &json!(null)));
    let digest = session["result"]["recording_sha256"].as_str().unwrap().to_owned();
    let stored = format!("select encode(digest, 'hex') from recordings where session_id = '{id}'");
    assert_eq!(desk.port.ask(&stored).await, Some(digest));
    let audited = "select string_agg(action, ' ' order by seq) from audit where action like 'support%'";
    let expected = "support_session.opened support_session.ended support_session.accounted";
    assert_eq!(desk.port.ask(audited).await.as_deref(), Some(expected));
    assert_eq!(desk.port.metric(r#"cloudlink_support_sessions_total{end="exited",kind="terminal"}"#), 1);
    assert_eq!(desk.port.metric(r#"cloudlink_support_sessions_live{kind="terminal"}"#), 0);
    assert_eq!(desk.port.metric(r#"cloudlink_support_bytes_total{direction="to_device"}"#), 3);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn without_a_grant_for_it_there_is_no_session(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, _link) = Desk::new(database).await;
    let missing = async |kind: Value| {
        let (status, problem) = desk.create(&desk.operator, kind).await;
        assert_eq!((status, &problem["type"]), (StatusCode::FORBIDDEN, &json!("urn:cloudlink:problem:grant_required")));
        problem["reason"].as_str().unwrap().to_owned()
    };
    let terminal = json!({"kind": "terminal"});
    assert_eq!(missing(terminal.clone()).await, "none");
    desk.grant("tcp:open", 900.0, None).await;
    assert_eq!(missing(terminal.clone()).await, "scope", "a port is no shell");
    desk.grant("shell:open", 900.0, Some(&[desk.colleague.id])).await;
    assert_eq!(missing(terminal).await, "scope");
    desk.grant("file:read", 900.0, None).await;
    let put = json!({"kind": "file", "target": {"path": "/tmp/x", "direction": "to_device", "size": 1}});
    assert_eq!(missing(put).await, "scope", "who may read may not write");
    let refused = "select count(*)::text from audit where action = 'support_session.refused'";
    assert_eq!(desk.port.ask(refused).await.as_deref(), Some("4"));
    assert_eq!(desk.port.ask("select count(*)::text from support_sessions").await.as_deref(), Some("0"));
    for (body, expected) in [
        (json!({"kind": "telepathy"}), 400),
        (json!({"kind": "terminal", "target": {"port": 1}}), 422),
        (json!({"kind": "forward", "target": {"port": 0}}), 422),
        (json!({"kind": "forward", "target": {"port": 80, "via": "node"}}), 409),
        (json!({"kind": "terminal", "reason": ""}), 422),
    ] {
        assert_eq!(desk.create(&desk.operator, body.clone()).await.0.as_u16(), expected, "{body}");
    }
    assert_eq!(desk.create(&desk.customer, json!({"kind": "terminal"})).await.0, StatusCode::FORBIDDEN);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_without_such_an_agent_or_link_says_so(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    desk.port.run("update links set capabilities = '{stream.forward}'").await;
    let kind = async || {
        let (status, problem) = desk.create(&desk.operator, json!({"kind": "terminal"})).await;
        assert_eq!(status, StatusCode::CONFLICT);
        problem["type"].as_str().unwrap().strip_prefix("urn:cloudlink:problem:").unwrap().to_owned()
    };
    assert_eq!(kind().await, "no_agent");
    desk.port.run("update links set node = 'node-2'").await;
    assert_eq!(kind().await, "not_linked");
    desk.port.run("update links set node = 'node-1'").await;
    drop(link);
    desk.port.until("select (closed_at is null)::text from links", "false").await;
    assert_eq!(kind().await, "not_linked");
    assert!(desk.support.live().is_empty());
    assert_eq!(desk.port.ask("select count(*)::text from support_sessions").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_token_is_good_for_one_connection_of_its_device(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("tcp:open", 900.0, None).await;
    let other = desk.fleet.device(&desk.port).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"port": 80}})).await;
    let device = async {
        let request = requested(&mut link).await;
        let refused = bring(&desk.port, &other, &request.token).await.err().unwrap();
        assert_eq!(refused.problem(), (403, "stream_unknown"), "another device has it");
        let refused = bring(&desk.port, &desk.device, &[0; 32]).await.err().unwrap();
        assert_eq!(refused.problem(), (403, "stream_unknown"));
        let device = bring(&desk.port, &desk.device, &request.token).await.unwrap();
        let again = bring(&desk.port, &desk.device, &request.token).await.err().unwrap();
        assert_eq!(again.problem(), (403, "stream_unknown"), "it is used up");
        device
    };
    let (client, mut device) = tokio::join!(desk.dial(id, &desk.operator, ""), device);
    let mut client = client.unwrap();
    device.send(b"x").await;
    assert_eq!(client.receives().await, b"x");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_refuses_or_is_silent_ends_a_terminal(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::with(database, |config| config.open_timeout_seconds = config::Seconds(1)).await;
    desk.grant("shell:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "terminal"})).await;
    let refuses = async {
        let StreamRequest { id, .. } = requested(&mut link).await;
        let (code, message) = ("not_allowed".to_owned(), "terminals are off\u{1b}[2J".to_owned());
        link.send(StreamRefused { id, code, message }).await;
    };
    let (refused, ()) = tokio::join!(desk.dial(id, &desk.operator, ""), refuses);
    let (status, problem) = refused.err().unwrap();
    assert_eq!((status, &problem["reason"]), (StatusCode::CONFLICT, &json!("refused")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("not_allowed") && !detail.contains('\u{1b}'), "{detail}");
    assert_eq!(desk.accounted(id).await["end_reason"], "refused");

    let id = desk.opened(json!({"kind": "terminal"})).await;
    let (refused, request) = tokio::join!(desk.dial(id, &desk.operator, ""), requested(&mut link));
    assert_eq!(refused.err().unwrap().1["reason"], "silent");
    assert_eq!(desk.accounted(id).await["end_reason"], "device_gone");
    let late = bring(&desk.port, &desk.device, &request.token).await.err().unwrap();
    assert_eq!(late.problem(), (403, "stream_unknown"), "too late");
    let (status, problem) = desk.dial(id, &desk.operator, "").await.err().unwrap();
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:cloudlink:problem:session_ended")));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whatever_a_device_says_of_its_end_a_session_is_accounted_for(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    // No database takes that character.
    for nasty in [
        Control::Exit { status: None, signal: Some("SIG\u{0}".to_owned()) },
        Control::Failed { code: "not\u{0}found".to_owned(), message: String::new() },
    ] {
        let (id, mut client, mut device) = desk.terminal(&mut link).await;
        device.send(b"file").await;
        assert_eq!(client.receives().await, b"file");
        device.say(nasty).await;
        assert_eq!(client.closed().await, "device_gone");
        let session = desk.accounted(id).await;
        assert_eq!((&session["end_reason"], &session["bytes_from_device"]), (&json!("device_gone"), &json!(4)));
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_forward_carries_many_connections_each_to_its_own_end(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("tcp:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"host": "printer", "port": 631}})).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(desk.flowing(&mut link, id).await);
    }
    for (number, (client, device)) in (0..).zip(&mut streams) {
        client.send(&[number; 70]).await;
        assert_eq!(device.receives().await, [number; 70]);
        client.say(Control::Eof).await;
        assert_eq!(device.hears().await, Control::Eof);
        device.send(&[number; 60_000]).await;
        assert_eq!(client.receives().await.len(), 60_000);
    }
    let (mut client, mut device) = streams.remove(0);
    device.say(Control::Eof).await;
    assert_eq!(client.hears().await, Control::Eof);
    assert!(client.next().await.is_none(), "both have said everything");
    assert!(device.next().await.is_none());
    // The others go on, and the client's end is the device's.
    let (client, mut device) = streams.remove(0);
    drop(client);
    assert_eq!(device.closed().await, "closed");
    let (mut client, mut device) = streams.remove(0);
    device.send(b"still").await;
    assert_eq!(client.receives().await, b"still");
    let (status, session) =
        desk.call(Method::POST, &format!("/support-sessions/{id}/close"), &desk.operator, None).await;
    assert_eq!((status, &session["end_reason"]), (StatusCode::OK, &json!("closed")));
    assert_eq!((client.closed().await.as_str(), device.closed().await.as_str()), ("closed", "closed"));
    let session = desk.accounted(id).await;
    assert_eq!(session["result"]["streams"], 3);
    assert_eq!((&session["bytes_to_device"], &session["bytes_from_device"]), (&json!(210), &json!(180_005)));
    let (status, _) = desk.call(Method::POST, &format!("/support-sessions/{id}/close"), &desk.colleague, None).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_was_said_before_the_end_arrives_however_slowly_it_is_read(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("tcp:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"port": 80}})).await;
    let (mut client, mut device) = desk.flowing(&mut link, id).await;
    device.say(Control::Eof).await;
    assert_eq!(client.hears().await, Control::Eof);
    const MESSAGES: usize = 256;
    let upload = async {
        for _ in 0..MESSAGES {
            client.send(&[1; 65_536]).await;
        }
        client.say(Control::Eof).await;
        assert!(client.next().await.is_none());
    };
    let read = async {
        // Far longer than whoever is cut is waited for.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut bytes = 0;
        loop {
            match device.next().await {
                Some(Message::Binary(message)) => bytes += message.len(),
                Some(Message::Text(text)) => break assert_eq!(text.as_str(), Control::Eof.to_text()),
                other => panic!("{other:?} after {bytes} bytes"),
            }
            if bytes == MESSAGES * 65_536 - 4 * 65_536 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        assert_eq!(bytes, MESSAGES * 65_536);
        assert!(device.next().await.is_none());
    };
    tokio::join!(upload, read);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_file_is_hashed_on_its_way(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("file:write", 900.0, None).await;
    let target = json!({"path": "/tmp/x", "direction": "to_device", "size": 3});
    let id = desk.opened(json!({"kind": "file", "target": target})).await;
    let (mut client, mut device) = desk.flowing(&mut link, id).await;
    client.say(Control::File { size: 3, mode: 0o600 }).await;
    assert_eq!(device.hears().await, Control::File { size: 3, mode: 0o600 });
    client.send(b"abc").await;
    assert_eq!(device.receives().await, b"abc");
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
    client.say(Control::Done { size: 3, sha256: sha256.clone() }).await;
    assert_eq!(device.hears().await, Control::Done { size: 3, sha256: sha256.clone() });
    device.say(Control::Done { size: 3, sha256: sha256.clone() }).await;
    assert_eq!(client.hears().await, Control::Done { size: 3, sha256: sha256.clone() });
    assert!(client.next().await.is_none());
    let session = desk.accounted(id).await;
    assert_eq!((&session["end_reason"], &session["result"]["bytes"]), (&json!("exited"), &json!(3)));
    for who in ["sha256", "client_sha256", "device_sha256"] {
        assert_eq!(session["result"][who], sha256, "{who}");
    }
    // More than was said is not let through.
    let target = json!({"path": "/tmp/x", "direction": "to_device", "size": 3});
    let id = desk.opened(json!({"kind": "file", "target": target})).await;
    let (mut client, mut device) = desk.flowing(&mut link, id).await;
    client.send(b"abcd").await;
    assert_eq!((client.closed().await.as_str(), device.closed().await.as_str()), ("closed", "closed"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn there_are_no_more_than_there_may_be(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, _link) = Desk::with(database, |config| {
        config.sessions_max = 3;
        config.sessions_per_device_max = 2;
    })
    .await;
    desk.grant("shell:open", 900.0, None).await;
    desk.opened(json!({"kind": "terminal"})).await;
    let second = desk.opened(json!({"kind": "terminal"})).await;
    let full = async || {
        let (status, problem) = desk.create(&desk.operator, json!({"kind": "terminal"})).await;
        assert_eq!(
            (status, &problem["type"]),
            (StatusCode::CONFLICT, &json!("urn:cloudlink:problem:too_many_sessions"))
        );
    };
    full().await;
    desk.call(Method::POST, &format!("/support-sessions/{second}/close"), &desk.customer, None).await;
    desk.accounted(second).await;
    desk.opened(json!({"kind": "terminal"})).await;
    // Places of the node: two, one that is being made, and no more.
    let reserved = desk.support.reserve(SupportSessionId::from_uuid(Uuid::now_v7())).unwrap();
    assert!(desk.support.reserve(SupportSessionId::from_uuid(Uuid::now_v7())).is_none());
    drop(reserved);
    assert!(desk.support.reserve(SupportSessionId::from_uuid(Uuid::now_v7())).is_some());
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn only_whom_it_concerns_sees_a_session_or_gets_its_stream(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("tcp:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "forward", "target": {"port": 80}})).await;
    let (mut client, mut device) = desk.flowing(&mut link, id).await;
    for (who, expected) in [
        (&desk.stranger, StatusCode::NOT_FOUND),
        (&desk.colleague, StatusCode::FORBIDDEN),
        (&desk.customer, StatusCode::FORBIDDEN),
    ] {
        assert_eq!(desk.dial(id, who, "").await.err().unwrap().0, expected);
    }
    let close = format!("/support-sessions/{id}/close");
    assert_eq!(desk.call(Method::POST, &close, &desk.stranger, None).await.0, StatusCode::NOT_FOUND);
    let count = async |who: &Somebody, query: &str| {
        let (status, page) = desk.call(Method::GET, &format!("/support-sessions{query}"), who, None).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count(&desk.stranger, "").await, 0);
    let device_id = desk.device.id;
    for (query, expected) in [
        (String::new(), 1),
        (format!("?device_id={device_id}&live=true"), 1),
        ("?live=false".to_owned(), 0),
        (format!("?person_id={}", desk.colleague.id), 0),
        ("?from=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z".to_owned(), 0),
        ("?from=2020-01-01T00:00:00Z".to_owned(), 1),
    ] {
        assert_eq!(count(&desk.customer, &query).await, expected, "{query}");
        assert_eq!(count(&desk.colleague, &query).await, expected, "{query}");
    }
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
}
