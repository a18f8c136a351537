use std::mem::discriminant;

use reqwest::StatusCode;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::far::{Answer, Far, SESSION};
use super::*;

async fn opened(far: &Far) -> (Sender, Receiver) {
    let query = [("mode", "operate".to_owned()), ("columns", "80".to_owned())];
    open(&far.client(), SESSION, &query).await.unwrap()
}

fn bytes(heard: Heard) -> Bytes {
    match heard {
        Heard::Bytes(bytes) => bytes,
        Heard::Control(_) | Heard::Gone => panic!("{heard:?}"),
    }
}

#[tokio::test]
async fn both_say_bytes_and_words_until_the_server_goes() {
    let far = Far::start(async |mut leg| {
        assert_eq!(leg.path, format!("/api/v1/support-sessions/{SESSION}/stream?mode=operate&columns=80"));
        leg.say(&Control::Ready).await;
        leg.send(b"$ ").await;
        assert_eq!(leg.next().await, Some(Message::binary(b"ls\r".to_vec())));
        leg.hears(&Control::Resize { columns: 100, rows: 30 }).await;
        leg.say(&Control::Closed { reason: "grant_ended".to_owned(), message: String::new() }).await;
    })
    .await;
    let (mut sender, mut receiver) = opened(&far).await;
    assert!(matches!(receiver.next().await.unwrap(), Heard::Control(Control::Ready)));
    assert_eq!(bytes(receiver.next().await.unwrap()), "$ ");
    assert!(sender.bytes(Bytes::from_static(b"ls\r")).await);
    assert!(sender.ping().await);
    assert!(sender.control(&Control::Resize { columns: 100, rows: 30 }).await);
    let closed = receiver.next().await.unwrap();
    assert!(matches!(closed, Heard::Control(Control::Closed { .. })), "{closed:?}");
    assert_eq!(discriminant(&receiver.next().await.unwrap()), discriminant(&Heard::Gone));
    far.end().await;
}

#[tokio::test]
async fn what_a_newer_server_says_is_passed_over_and_what_nobody_may_say_is_not() {
    let far = Far::start(async |mut leg| {
        leg.text(r#"{"type":"of_tomorrow"}"#).await;
        leg.send(b"a").await;
        // Only a client may say it.
        leg.say(&Control::Resize { columns: 1, rows: 1 }).await;
    })
    .await;
    let (_sender, mut receiver) = opened(&far).await;
    assert_eq!(bytes(receiver.next().await.unwrap()), "a");
    assert_eq!(receiver.next().await.unwrap_err().exit_code(), 1);
    far.end().await;
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_read_into_memory() {
    let far = Far::start(async |mut leg| leg.send(&vec![0; DATA_BYTES_MAX + 1]).await).await;
    let (_sender, mut receiver) = opened(&far).await;
    assert_eq!(receiver.next().await.unwrap_err().exit_code(), 1);
    far.end().await;
}

#[tokio::test]
async fn a_refusal_tells_why() {
    let problem = json!({ "type": "urn:cloudlink:problem:not_linked", "title": "No link", "status": 409 });
    let refusal = Answer::Refuse(StatusCode::CONFLICT, problem.to_string());
    let far = Far::start_answering(refusal, async |_| ()).await;
    let failure = open(&far.client(), SESSION, &[]).await.unwrap_err();
    assert_eq!(failure.exit_code(), 8);
    assert!(failure.report(false).unwrap().starts_with("error: No link"));
    far.end().await;
}

#[tokio::test]
async fn a_server_that_speaks_of_something_else_is_not_spoken_to() {
    let far = Far::start_answering(Answer::AnotherProtocol, async |mut leg| assert_eq!(leg.next().await, None)).await;
    assert_eq!(open(&far.client(), SESSION, &[]).await.unwrap_err().exit_code(), 1);
    far.end().await;
}

#[tokio::test]
async fn no_stream_goes_to_a_server_of_another_authority() {
    let far = Far::start(async |_| panic!("it was spoken to")).await;
    let client = far.client_of_another_authority();
    assert_eq!(open(&client, SESSION, &[]).await.unwrap_err().exit_code(), 1);
    far.end().await;
}

#[test]
fn what_is_left_is_told_in_words() {
    assert_eq!(left(1), "1 second");
    assert_eq!(left(59), "59 seconds");
    assert_eq!(left(119), "2 minutes");
    assert_eq!(left(120), "2 minutes");
    assert_eq!(left(600), "10 minutes");
}
