//! Forwarded connections: real sockets on both sides.

use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::server::{SOON, ServerStream, eventually};
use crate::stream::{Said, Scene, forward};

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A device that may connect to this target, and a connection to it.
async fn connected() -> (Scene, ServerStream, TcpStream) {
    let (listener, port) = listener().await;
    let mut scene = Scene::new(&format!("[forward]\nallow = [\"localhost:{port}\"]\n")).await;
    let mut stream = scene.open(forward("localhost", port)).await;
    let (target, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    (scene, stream, target)
}

async fn failure(stream: &mut ServerStream) -> String {
    match stream.said().await {
        Said::Control(Control::Failed { code, .. }) => code,
        other @ (Said::Bytes(_) | Said::Control(_) | Said::Gone) => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let (scene, mut stream, mut target) = connected().await;
    stream.pass("question").await;
    stream.say(&Control::Eof).await;
    let mut heard = Vec::new();
    timeout(SOON, target.read_to_end(&mut heard)).await.expect("the end comes through").unwrap();
    assert_eq!(heard, b"question");
    target.write_all(b"answer").await.unwrap();
    drop(target);
    assert_eq!(stream.said().await, Said::Bytes(Bytes::from_static(b"answer")));
    assert_eq!(stream.said().await, Said::Control(Control::Eof));
    assert_eq!(stream.said().await, Said::Gone);
    scene.stop().await;
}

#[tokio::test]
async fn a_target_that_ends_first_still_hears_the_client() {
    let (scene, mut stream, mut target) = connected().await;
    target.shutdown().await.unwrap();
    assert_eq!(stream.said().await, Said::Control(Control::Eof));
    stream.pass("late").await;
    stream.say(&Control::Eof).await;
    let mut heard = Vec::new();
    timeout(SOON, target.read_to_end(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, b"late");
    scene.stop().await;
}

#[tokio::test]
async fn a_target_that_breaks_off_is_no_end_of_file() {
    let (scene, mut stream, target) = connected().await;
    target.set_zero_linger().unwrap();
    drop(target);
    assert_eq!(failure(&mut stream).await, "connection_reset");
    scene.stop().await;
}

#[tokio::test]
async fn a_cut_stream_leaves_no_connection_to_the_target() {
    let (scene, stream, mut target) = connected().await;
    drop(stream);
    let mut rest = Vec::new();
    let _ = timeout(SOON, target.read_to_end(&mut rest)).await.expect("the target is let go");
    assert_eq!(rest, b"");
    scene.stop().await;
}

#[tokio::test]
async fn a_cut_is_seen_while_the_target_takes_nothing() {
    let (scene, mut stream, target) = connected().await;
    let fill = Bytes::from(vec![b'x'; DATA_BYTES_MAX]);
    while timeout(Duration::from_millis(300), stream.pass(fill.clone())).await.is_ok() {}
    let before = scene.descriptors();
    stream.reset();
    eventually("the connection is gone", || scene.descriptors() < before).await;
    drop(target);
    scene.stop().await;
}

#[tokio::test]
async fn a_hundred_megabytes_go_through_each_way_as_they_were() {
    const BYTES: usize = 100 * 1024 * 1024;
    let (scene, stream, target) = connected().await;
    let (mut from_device, mut to_device) = target.into_split();
    let pattern: Vec<u8> = (0..DATA_BYTES_MAX * 4 + 1).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    let sent: Vec<u8> = pattern.iter().copied().cycle().take(BYTES).collect();
    let begun = Instant::now();
    let echo = tokio::spawn(async move {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        loop {
            match from_device.read(&mut buffer).await.unwrap() {
                0 => return,
                count => to_device.write_all(&buffer[..count]).await.unwrap(),
            }
        }
    });
    let expected = sent.clone();
    let (mut sink, mut source) = futures_util::StreamExt::split(stream.socket);
    let upload = tokio::spawn(async move {
        use futures_util::SinkExt as _;
        use tokio_tungstenite::tungstenite::Message;
        let sent = Bytes::from(sent);
        for at in (0..BYTES).step_by(DATA_BYTES_MAX) {
            sink.send(Message::Binary(sent.slice(at..(at + DATA_BYTES_MAX).min(BYTES)))).await.unwrap();
        }
        sink.send(Message::Text(Control::Eof.to_text().into())).await.unwrap();
        sink
    });
    let mut at = 0;
    while at < BYTES {
        use futures_util::StreamExt as _;
        let message = timeout(SOON, source.next()).await.expect("more in time").unwrap().unwrap();
        if let tokio_tungstenite::tungstenite::Message::Binary(bytes) = message {
            assert!(bytes == expected[at..at + bytes.len()], "other bytes at {at}");
            at += bytes.len();
        }
    }
    let _sink = upload.await.unwrap();
    echo.await.unwrap();
    // Not a measurement, only a sign of life.
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    scene.stop().await;
}

#[tokio::test]
async fn only_what_is_on_the_list_is_connected_to() {
    let (listener, port) = listener().await;
    let mut scene = Scene::new(&format!("[forward]\nallow = [\"localhost:{port}\", \"127.0.0.2:{port}\"]\n")).await;
    for (host, port) in [
        ("127.0.0.1", port),
        ("::ffff:127.0.0.1", port),
        ("[::1]", port),
        ("localhost", port.wrapping_add(1).max(1)),
        ("192.0.2.1", port),
    ] {
        let request = scene.request(forward(host, port));
        assert_eq!(scene.refused(request).await.code, "not_allowed", "{host}:{port}");
    }
    // A name that is not on the list stands for an address that is not, either.
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut stream = scene.open(forward(hostname.trim(), port)).await;
    assert!(["not_allowed", "no_address"].contains(&failure(&mut stream).await.as_str()));
    let nobody = timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(nobody.is_err(), "the target was connected to");
    let mut stream = scene.open(forward("LOCALHOST.", port)).await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    scene.stop().await;
}

/// Whoever answers for a name could let it point to the device itself.
#[tokio::test]
async fn a_name_on_the_list_does_not_stand_for_the_device_itself() {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let hostname = hostname.trim();
    let (listener, port) = listener().await;
    let mut scene = Scene::new(&format!("[forward]\nallow = [\"{hostname}:{port}\"]\n")).await;
    let resolves = tokio::net::lookup_host((hostname, port)).await.is_ok_and(|mut found| found.next().is_some());
    let mut stream = scene.open(forward(hostname, port)).await;
    assert_eq!(failure(&mut stream).await, if resolves { "not_allowed" } else { "no_address" });
    assert!(timeout(Duration::from_millis(200), listener.accept()).await.is_err());
    scene.stop().await;
}

#[tokio::test]
async fn a_target_that_is_not_there_is_told_on_the_stream() {
    let (listener, port) = listener().await;
    drop(listener);
    let mut scene = Scene::new(&format!("[forward]\nallow = [\"localhost:{port}\"]\n")).await;
    let mut stream = scene.open(forward("localhost", port)).await;
    assert_eq!(failure(&mut stream).await, "connection_refused");
    assert_eq!(stream.said().await, Said::Gone);
    scene.stop().await;
}
