//! The device's leg of a stream: bytes and words over a WebSocket, and the end of it, however it comes.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX, Mode, Party};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::end::End;
use crate::dial::Socket;
use crate::problem::shown;

/// How long a polite end may take: what was said last is to arrive before the connection is reset.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How long what was sent before the other side went away may lie there without being taken.
const BROKEN_GRACE: Duration = Duration::from_millis(250);

/// Both directions of a leg.
pub(super) struct Leg {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) line: Line,
}

/// Towards the node.
pub(super) struct Sender {
    sink: SplitSink<Socket, Message>,
    pub(super) bytes: u64,
}

/// From the node.
pub(super) struct Receiver {
    stream: SplitStream<Socket>,
    bytes: Arc<AtomicU64>,
}

/// The connection below, to be watched while nothing is read from it.
pub(super) struct Line {
    connection: TcpStream,
    /// How much was read.
    bytes: Arc<AtomicU64>,
}

/// What comes from the node.
#[derive(Debug)]
pub(super) enum Heard {
    Bytes(Bytes),
    Control(Control),
}

impl Leg {
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let connection = socket.get_ref().tcp().as_fd().try_clone_to_owned()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let line = Line { connection: TcpStream::from_std(connection.into())?, bytes: Arc::clone(&bytes) };
        let (sink, stream) = socket.split();
        Ok(Self { sender: Sender { sink, bytes: 0 }, receiver: Receiver { stream, bytes }, line })
    }

    /// Says goodbye and waits, for a short time, until the other side has heard all.
    pub(super) async fn close(&mut self) {
        let closed = async {
            if self.sender.sink.send(Message::Close(None)).await.is_ok() {
                while let Some(Ok(_)) = self.receiver.stream.next().await {}
            }
        };
        let _ = timeout(CLOSE_WITHIN, closed).await;
    }
}

impl Sender {
    /// Passes bytes on; waits while the other side does not take them. At most [`DATA_BYTES_MAX`].
    pub(super) async fn pass(&mut self, bytes: Bytes) -> Result<(), End> {
        debug_assert!(bytes.len() <= DATA_BYTES_MAX);
        self.bytes += bytes.len() as u64;
        self.send(Message::Binary(bytes)).await
    }

    pub(super) async fn say(&mut self, control: &Control) -> Result<(), End> {
        self.send(Message::Text(control.to_text().into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        self.sink.send(message).await.map_err(|error| End::Lost(crate::chain(&error)))
    }
}

impl Receiver {
    /// How many have come.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The next thing that is the client's. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Heard, End> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(Heard::Bytes(bytes));
                }
                Some(Ok(Message::Text(text))) => {
                    let control = Control::read_passed_on(&text, Party::Device)
                        .map_err(|error| End::Protocol(crate::chain(&error)))?;
                    if let Some(control) = note(control)? {
                        return Ok(Heard::Control(control));
                    }
                }
                Some(Ok(Message::Close(_))) | None => return Err(End::Left),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(End::Lost(crate::chain(&error))),
            }
        }
    }
}

/// Keeps what the node says for the device's log; what is left is the client's.
fn note(control: Control) -> Result<Option<Control>, End> {
    match control {
        Control::Warning { seconds_left, reason: None } => tracing::info!(seconds_left, "access ends soon"),
        Control::Warning { seconds_left, reason: Some(reason) } => {
            tracing::info!(seconds_left, reason = ?shown(&reason), "the session ends soon");
        }
        Control::Joined { name, mode } => {
            let mode = match mode {
                Mode::Operate => "operate",
                Mode::Watch => "watch",
            };
            tracing::info!(name = ?shown(&name), mode, "somebody has joined");
        }
        Control::Left { name } => tracing::info!(name = ?shown(&name), "somebody has left"),
        Control::Closed { reason, message } => {
            tracing::info!(reason = ?shown(&reason), message = ?shown(&message), "the server cuts the stream");
            return Err(End::Closed(shown(&reason)));
        }
        theirs @ (Control::Ready
        | Control::Failed { .. }
        | Control::Resize { .. }
        | Control::Screen { .. }
        | Control::Signal { .. }
        | Control::Eof
        | Control::Exit { .. }
        | Control::File { .. }
        | Control::Done { .. }) => return Ok(Some(theirs)),
    }
    Ok(None)
}

impl Line {
    /// Waits until the other side has gone, and nothing of what it said last is taken any more. While the device's target takes
    /// nothing, nothing is read from the leg, and nobody else would notice.
    pub(super) async fn broken(&self) -> End {
        if let Err(error) = self.read_closed().await {
            return End::Lost(error.to_string());
        }
        loop {
            let before = self.bytes.load(Ordering::Relaxed);
            sleep(BROKEN_GRACE).await;
            let is_reset = self.connection.peer_addr().is_err();
            if is_reset || self.bytes.load(Ordering::Relaxed) == before {
                return End::Lost("the other side has gone".to_owned());
            }
        }
    }

    async fn read_closed(&self) -> io::Result<()> {
        while !self.connection.ready(Interest::READABLE).await?.is_read_closed() {
            // There is something to read, which is not read here: waits for the next change.
            let _ = self.connection.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        Ok(())
    }
}
