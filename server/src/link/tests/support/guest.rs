//! Those who join a terminal, and those who watch.

use cloudlink_proto::stream::Mode;
use sqlx::postgres::PgPoolOptions;

use super::*;

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_colleague_types_as_well_and_the_owner_watches(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let id = desk.opened(json!({"kind": "terminal"})).await;
    assert_eq!(desk.dial(id, &desk.customer, "?mode=watch").await.err().unwrap().0, StatusCode::CONFLICT, "not yet");
    let (mut client, mut device) = desk.flowing_with(&mut link, id, "?columns=120&rows=40").await;
    device.send(b"$ uptime\r\n").await;
    assert_eq!(client.receives().await, b"$ uptime\r\n");

    let mut colleague = desk.dial(id, &desk.colleague, "?columns=100&rows=50").await.unwrap();
    assert_eq!(colleague.hears().await, Control::Ready);
    assert_eq!(colleague.hears().await, Control::Screen { columns: 120, rows: 40 }, "what follows was written for");
    assert_eq!(colleague.receives().await, b"$ uptime\r\n", "what was there before");
    let joined = Control::Joined { name: "colleague".to_owned(), mode: Mode::Operate };
    assert_eq!((client.hears().await, device.hears().await), (joined.clone(), joined.clone()));
    assert_eq!(colleague.hears().await, joined);
    assert_eq!(device.hears().await, Control::Resize { columns: 100, rows: 40 }, "the smallest of both");
    let smallest = Control::Screen { columns: 100, rows: 40 };
    assert_eq!((client.hears().await, colleague.hears().await), (smallest.clone(), smallest.clone()));

    let mut owner = desk.dial(id, &desk.customer, "?mode=watch&columns=10&rows=10").await.unwrap();
    assert_eq!((owner.hears().await, owner.hears().await), (Control::Ready, smallest));
    assert_eq!(owner.receives().await, b"$ uptime\r\n");
    assert!(matches!(device.hears().await, Control::Joined { mode: Mode::Watch, .. }), "and no other size");
    for somebody in [&mut client, &mut colleague, &mut owner] {
        assert!(matches!(somebody.hears().await, Control::Joined { .. }));
    }
    colleague.send(b"w\n").await;
    assert_eq!(device.receives().await, b"w\n");
    device.send(b"load\r\n").await;
    for somebody in [&mut client, &mut colleague, &mut owner] {
        assert_eq!(somebody.receives().await, b"load\r\n");
    }
    // Who watches and types is sent away, and types nothing.
    owner.send(b"reboot\n").await;
    assert_eq!(owner.closed().await, "not_allowed");
    assert!(matches!(device.hears().await, Control::Left { .. }));
    assert!(matches!(client.hears().await, Control::Left { .. }));
    drop(colleague);
    assert_eq!(device.hears().await, Control::Left { name: "colleague".to_owned() });
    assert_eq!(device.hears().await, Control::Resize { columns: 120, rows: 40 });
    assert_eq!(client.hears().await, Control::Left { name: "colleague".to_owned() });
    assert_eq!(client.hears().await, Control::Screen { columns: 120, rows: 40 });
    desk.port.until("select count(*)::text from support_guests where left_at is not null", "2").await;
    let guests = desk.show(id).await["guests"].as_array().unwrap().clone();
    assert_eq!(guests.len(), 2);
    assert_eq!(guests[0]["person_id"], json!(desk.colleague.id));

    client.socket.close(None).await.unwrap();
    assert_eq!(device.closed().await, "closed");
    assert_eq!(desk.accounted(id).await["end_reason"], "closed");
    let joins = "select count(*)::text from audit where action = 'support_session.joined'";
    assert_eq!(desk.port.ask(joins).await.as_deref(), Some("2"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nobody_joins_who_may_not(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, Some(&[desk.operator.id])).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let (status, problem) = desk.dial(id, &desk.colleague, "").await.err().unwrap();
    assert_eq!((status, &problem["reason"]), (StatusCode::FORBIDDEN, &json!("not_named")));
    let watching = desk.dial(id, &desk.colleague, "?mode=watch").await.err().unwrap();
    assert_eq!(watching.0, StatusCode::FORBIDDEN, "to see takes a grant as well");
    assert_eq!(desk.dial(id, &desk.customer, "?mode=operate").await.err().unwrap().0, StatusCode::FORBIDDEN);
    assert_eq!(desk.dial(id, &desk.stranger, "?mode=watch").await.err().unwrap().0, StatusCode::NOT_FOUND);
    assert_eq!(desk.dial(id, &desk.customer, "?mode=rule").await.err().unwrap().0, StatusCode::BAD_REQUEST);
    client.send(b"x").await;
    assert_eq!(device.receives().await, b"x");
    assert_eq!(desk.port.ask("select count(*)::text from support_guests").await.as_deref(), Some("0"));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn guests_whose_access_is_over_go_and_the_session_stays(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, Some(&[desk.operator.id])).await;
    let grant = desk.grant("shell:open", 900.0, Some(&[desk.colleague.id])).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let mut colleague = desk.dial(id, &desk.colleague, "").await.unwrap();
    let mut owner = desk.dial(id, &desk.customer, "").await.unwrap();
    assert_eq!((colleague.hears().await, owner.hears().await), (Control::Ready, Control::Ready));
    let (user, customer) = (desk.fleet.user, desk.customer.id);
    desk.port
        .run(&format!(
            "update grants set revoked_at = clock_timestamp(), revoked_by = '{user}' where id = '{grant}';
         update people set active = false where id = '{customer}'"
        ))
        .await;
    let gone = async { tokio::join!(colleague.closed(), owner.closed()) };
    let (one, other) = timeout(CUT_WITHIN + Duration::from_millis(500), gone).await.expect("sent away in time");
    assert_eq!((one.as_str(), other.as_str()), ("not_allowed", "not_allowed"));
    for _ in 0..4 {
        assert!(matches!(device.hears().await, Control::Joined { .. } | Control::Left { .. }));
    }
    client.send(b"still").await;
    assert_eq!(device.receives().await, b"still");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_guest_who_does_not_read_holds_up_nobody_and_is_sent_away(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, mut client, mut device) = desk.terminal(&mut link).await;
    let owner = desk.dial(id, &desk.customer, "").await.unwrap();
    assert!(matches!(device.hears().await, Control::Joined { .. }));
    assert!(matches!(client.hears().await, Control::Joined { .. }));
    // More than the kernels of both ends hold.
    let line = vec![b'x'; 32 * 1024];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let left = loop {
        device.send(&line).await;
        match client.next().await {
            Some(Message::Binary(bytes)) => assert_eq!(bytes.len(), line.len()),
            Some(Message::Text(text)) => break text,
            other => panic!("{other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "the guest is still there");
    };
    assert!(left.contains("left"), "{left}");
    desk.port.until("select count(*)::text from support_guests where left_at is not null", "1").await;
    drop(owner);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn there_are_no_more_guests_than_there_may_be(_: PgPoolOptions, database: PgConnectOptions) {
    let (desk, mut link) = Desk::new(database).await;
    desk.grant("shell:open", 900.0, None).await;
    let (id, _client, _device) = desk.terminal(&mut link).await;
    let mut guests = Vec::new();
    for _ in 0..crate::support::session::GUESTS_MAX {
        let mut guest = desk.dial(id, &desk.customer, "").await.unwrap();
        assert_eq!(guest.hears().await, Control::Ready);
        guests.push(guest);
    }
    let (status, problem) = desk.dial(id, &desk.customer, "").await.err().unwrap();
    assert_eq!((status, &problem["type"]), (StatusCode::CONFLICT, &json!("urn:cloudlink:problem:too_many_sessions")));
    drop(guests.pop());
    desk.port.until("select count(*)::text from support_guests where left_at is not null", "1").await;
    desk.dial(id, &desk.customer, "").await.unwrap();
}
