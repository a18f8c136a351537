//! One TCP connection, on one stream.

use std::net::SocketAddr;
use std::pin::pin;

use bytes::{BufMut, BytesMut};
use cloudlink_proto::stream::{CHUNK_BYTES, Control};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::client::Client;
use crate::failure::Failure;
use crate::stream::{self, Heard, PING_INTERVAL, Receiver, Sender};

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides had said all.
    Closed { sent: u64, received: u64 },
    /// It was broken off.
    Broken(Failure),
}

/// What is to be said of connections.
#[derive(Debug)]
pub(super) enum Told {
    Opened { session: Uuid, peer: SocketAddr },
    Closed { session: Uuid, peer: SocketAddr, sent: u64, received: u64 },
    Failed { session: Uuid, peer: SocketAddr, failure: Failure },
    Warning { session: Uuid, seconds_left: u64, reason: Option<String> },
}

/// Whose it is, and to whom to tell what happens to it.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) session: Uuid,
    pub(super) peer: SocketAddr,
    pub(super) tell: mpsc::Sender<Told>,
}

/// Carries bytes both ways until both sides have said that nothing more comes.
pub(super) async fn run(client: &Client, tcp: TcpStream, name: &Name) -> End {
    // Whatever is small is somebody's keystroke.
    let _ = tcp.set_nodelay(true);
    let (mut sender, mut receiver) = match stream::open(client, name.session, &[]).await {
        Ok(stream) => stream,
        Err(failure) => return End::Broken(failure),
    };
    let (mut read, mut write) = tcp.into_split();
    let end = carry((&mut sender, &mut receiver), (&mut read, &mut write), name).await;
    sender.close().await;
    match end {
        Ok((sent, received)) => End::Closed { sent, received },
        Err(failure) => {
            // The peer is to see that this was no proper end.
            if let Ok(tcp) = read.reunite(write) {
                let _ = tcp.set_zero_linger();
            }
            End::Broken(failure)
        }
    }
}

async fn carry(
    (sender, receiver): (&mut Sender, &mut Receiver),
    (read, write): (&mut OwnedReadHalf, &mut OwnedWriteHalf),
    name: &Name,
) -> Result<(u64, u64), Failure> {
    let (tell_received, received) = oneshot::channel();
    let mut whole = pin!(async {
        let sent = send(sender, read).await?;
        match received.await {
            Ok(received) => Ok((sent, received)),
            // The other direction tells why.
            Err(_) => std::future::pending().await,
        }
    });
    tokio::select! {
        biased;
        end = &mut whole => end,
        failure = receive(receiver, write, name, tell_received) => {
            // The last word may have been heard just before.
            whole.now_or_never().unwrap_or(Err(failure))
        }
    }
}

/// What the peer here says, to its end. A stream that is over is for the other direction to tell.
async fn send(sender: &mut Sender, read: &mut OwnedReadHalf) -> Result<u64, Failure> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    let mut bytes = BytesMut::new();
    loop {
        // What was sent is free again, so that this takes no new memory.
        bytes.reserve(CHUNK_BYTES);
        let mut room = (&mut bytes).limit(CHUNK_BYTES);
        let is_sent = tokio::select! {
            count = read.read_buf(&mut room) => match count {
                Ok(0) => {
                    if sender.control(&Control::Eof).await {
                        return Ok(sent);
                    }
                    false
                }
                Ok(count) => {
                    sent += count as u64;
                    sender.bytes(bytes.split().freeze()).await
                }
                Err(error) => return Err(broken(error)),
            },
            _ = pings.tick() => sender.ping().await,
        };
        if !is_sent {
            return std::future::pending().await;
        }
    }
}

/// What the far end says. Listens to the stream beyond that, for there may be more to hear while the peer here goes on.
async fn receive(
    receiver: &mut Receiver,
    write: &mut OwnedWriteHalf,
    name: &Name,
    tell_received: oneshot::Sender<u64>,
) -> Failure {
    let Name { session, peer, tell } = name;
    let mut tell_received = Some(tell_received);
    let mut received = 0;
    loop {
        let heard = match receiver.next().await {
            Ok(heard) => heard,
            Err(failure) => return failure,
        };
        match heard {
            Heard::Bytes(bytes) => {
                received += bytes.len() as u64;
                if let Err(error) = write.write_all(&bytes).await {
                    return broken(error);
                }
            }
            Heard::Control(Control::Eof) => {
                // A peer that has gone needs no end.
                let _ = write.shutdown().await;
                if let Some(tell) = tell_received.take() {
                    let _ = tell.send(received);
                }
            }
            Heard::Control(Control::Ready) => {
                let _ = tell.send(Told::Opened { session: *session, peer: *peer }).await;
            }
            Heard::Control(Control::Warning { seconds_left, reason }) => {
                let _ = tell.send(Told::Warning { session: *session, seconds_left, reason }).await;
            }
            Heard::Control(Control::Failed { code, message }) => return Failure::Device { code, message },
            Heard::Control(Control::Closed { reason, message }) => return Failure::Closed { reason, message },
            Heard::Gone => return stream::gone(),
            Heard::Control(
                Control::Resize { .. }
                | Control::Screen { .. }
                | Control::Signal { .. }
                | Control::Exit { .. }
                | Control::File { .. }
                | Control::Done { .. }
                | Control::Joined { .. }
                | Control::Left { .. },
            ) => {}
        }
    }
}

fn broken(error: std::io::Error) -> Failure {
    anyhow::Error::new(error).context("the connection here broke").into()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::stream::far::{Far, SESSION};

    /// What is carried, and the program here that uses it.
    async fn carried(far: &Far) -> (impl Future<Output = End>, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let program = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        let client = far.client();
        let (tell, _told) = mpsc::channel(1);
        let name = Name { session: SESSION, peer, tell };
        (async move { run(&client, tcp, &name).await }, program)
    }

    fn failure(end: End) -> Failure {
        match end {
            End::Broken(failure) => failure,
            End::Closed { .. } => panic!("{end:?}"),
        }
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let far = Far::start(async |mut leg| {
            leg.say(&Control::Ready).await;
            let (question, end) = leg.bytes().await;
            assert_eq!(question, b"question");
            assert_eq!(end, Some(Message::text(Control::Eof.to_text())));
            leg.send(b"answer").await;
            leg.say(&Control::Eof).await;
            assert_eq!(leg.next().await, None);
        })
        .await;
        let (run, mut program) = carried(&far).await;
        let asking = async {
            program.write_all(b"question").await.unwrap();
            program.shutdown().await.unwrap();
            let mut answer = Vec::new();
            program.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let (end, answer) = tokio::join!(run, asking);
        assert!(matches!(end, End::Closed { sent: 8, received: 6 }), "{end:?}");
        assert_eq!(answer, b"answer");
        far.end().await;
    }

    #[tokio::test]
    async fn a_far_end_that_has_said_all_still_hears_the_rest() {
        let far = Far::start(async |mut leg| {
            leg.say(&Control::Eof).await;
            let (bytes, end) = leg.bytes().await;
            assert_eq!(bytes.len(), 1_000_000);
            assert_eq!(end, Some(Message::text(Control::Eof.to_text())));
        })
        .await;
        let (run, mut program) = carried(&far).await;
        let telling = async {
            assert_eq!(program.read(&mut [0]).await.unwrap(), 0);
            program.write_all(&vec![1; 1_000_000]).await.unwrap();
            program.shutdown().await.unwrap();
        };
        let (end, ()) = tokio::join!(run, telling);
        assert!(matches!(end, End::Closed { sent: 1_000_000, received: 0 }), "{end:?}");
        far.end().await;
    }

    #[tokio::test]
    async fn a_cut_is_told_and_looks_like_no_proper_end() {
        for half_closed in [false, true] {
            let far = Far::start(async move |mut leg| {
                leg.send(b"a").await;
                if half_closed {
                    leg.say(&Control::Eof).await;
                }
                leg.say(&Control::Closed { reason: "grant_ended".to_owned(), message: "over".to_owned() }).await;
            })
            .await;
            let (run, mut program) = carried(&far).await;
            let reading = async {
                let mut bytes = Vec::new();
                let end = program.read_to_end(&mut bytes).await;
                (bytes, end.map_err(|error| error.kind()))
            };
            let (end, (bytes, read)) = tokio::join!(run, reading);
            assert!(matches!(failure(end), Failure::Closed { reason, .. } if reason == "grant_ended"));
            // A reset may overtake what came before it.
            assert!(bytes == b"a" || read.is_err(), "{bytes:?}");
            let expected = if half_closed { Ok(1) } else { Err(ErrorKind::ConnectionReset) };
            assert!(read == expected || half_closed && read == Err(ErrorKind::ConnectionReset), "{read:?}");
            far.end().await;
        }
    }

    #[tokio::test]
    async fn a_target_that_refuses_is_told() {
        let refused = || Control::Failed { code: "connection_refused".to_owned(), message: String::new() };
        let far = Far::start(async move |mut leg| leg.say(&refused()).await).await;
        let (run, _program) = carried(&far).await;
        assert_eq!(failure(run.await).exit_code(), 6);
        far.end().await;
    }
}
