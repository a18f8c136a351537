//! One connection of a stream: the device's, the client's, or a guest's. A WebSocket, or TCP to a port of the device.
//!
//! Written for a task that polls several of them: nothing here waits by itself but [`Leg::close`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use cloudlink_proto::stream::{CONTROL_BYTES_MAX, Control, DATA_BYTES_MAX, Party};
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::io::poll_read_buf;

use super::session::Session;
use crate::link::stream::Stream;

/// How long a peer may take to read the last words and close in turn. Then the connection is reset, and what it has not read is gone.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_millis(300);
/// Everything is closed so soon after the end of access, where the node learned of that in time, ...
const CLOSED_WITHIN: Duration = Duration::from_millis(800);
/// ... and so soon after it learned of it, where it learned late.
const CLOSE_LEAST: Duration = Duration::from_millis(50);
/// The same for one that has come to its own end: what was said before may still be under way.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// Words of the node itself that wait for a peer that does not read. Further ones are left out.
const WORDS_MAX: usize = 64;
/// A peer that says nothing for so long, pings notwithstanding, is gone.
const DEAD_AFTER: Duration = Duration::from_secs(75);

/// Of keystrokes.
const INTERACTIVE_READ_BYTES: usize = 4_096;
/// What TLS gives out at once.
const TLS_RECORD_BYTES: usize = 16 * 1024;
/// What is taken from a connection on which many bytes come before it is decrypted.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// What a connection takes from its socket at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gait {
    /// Keystrokes, and screens of text.
    Interactive,
    /// As fast as it goes.
    Bulk,
}

impl Gait {
    /// Prepares a connection. What a WebSocket is to ask it for at once: no more than comes, for it clears that much memory before.
    fn prepare(self, stream: &mut Stream) -> usize {
        match (self, &stream) {
            (Self::Interactive, _) => INTERACTIVE_READ_BYTES,
            (Self::Bulk, Stream::Plain(_)) => DATA_BYTES_MAX,
            (Self::Bulk, Stream::Tls(_)) => {
                stream.read_ahead(READ_AHEAD_BYTES);
                TLS_RECORD_BYTES
            }
        }
    }
}

/// What is heard on a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Bytes(Bytes),
    Control(Control),
    /// It has ended.
    Gone,
    /// It broke the protocol.
    Broken,
}

/// What is said.
#[derive(Clone, Debug)]
enum Said {
    Bytes(Bytes),
    Control(Control),
    Ping,
}

impl Said {
    fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Control(_) | Self::Ping => 0,
        }
    }
}

/// How long a stream that is cut waits for its peers.
pub(super) async fn cut() {
    sleep(CLOSE_WITHIN).await;
}

/// The same, of one that had to be over then: not so long that it would be over too late.
pub(super) async fn cut_since(over_at: Instant) {
    let at_last = (over_at + CLOSED_WITHIN).max(Instant::now() + CLOSE_LEAST);
    sleep_until(at_last.min(Instant::now() + CLOSE_WITHIN)).await;
}

/// How long one that has come to its own end waits, unless it is cut meanwhile.
pub(super) async fn drained(session: &Session) {
    let ended = async {
        let ending = session.ended().await;
        if ending.reason.is_cut() { cut_since(ending.over_at).await } else { cut().await }
    };
    tokio::select! {
        () = sleep(DRAIN_WITHIN) => {}
        () = ended => {}
    }
}

/// Nothing more can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

#[derive(Debug)]
pub(super) struct Leg {
    wire: Wire,
    party: Party,
    /// What waits until the peer reads.
    queue: VecDeque<Said>,
    queued_bytes: usize,
    needs_flush: bool,
    heard_at: Instant,
    /// Whether it was listened to since the last ping.
    is_heard: bool,
}

#[derive(Debug)]
enum Wire {
    WebSocket(Box<WebSocketStream<Stream>>),
    Tcp(Tcp),
}

#[derive(Debug)]
struct Tcp {
    stream: TcpStream,
    buffer: BytesMut,
    /// Nothing more comes.
    is_heard_out: bool,
    /// Nothing more is said.
    is_shut: bool,
}

impl Leg {
    pub(super) async fn web_socket(mut stream: Stream, read_ahead: Bytes, party: Party, gait: Gait) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(gait.prepare(&mut stream))
            .write_buffer_size(0)
            .max_write_buffer_size(4 * DATA_BYTES_MAX)
            .max_message_size(Some(DATA_BYTES_MAX))
            .max_frame_size(Some(DATA_BYTES_MAX));
        let socket = WebSocketStream::from_partially_read(stream, read_ahead.into(), Role::Server, Some(config)).await;
        Self::new(Wire::WebSocket(Box::new(socket)), party)
    }

    /// To a port of the device, in its place.
    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self::new(
            Wire::Tcp(Tcp { stream, buffer: BytesMut::new(), is_heard_out: false, is_shut: false }),
            Party::Device,
        )
    }

    fn new(wire: Wire, party: Party) -> Self {
        let queue = VecDeque::new();
        Self { wire, party, queue, queued_bytes: 0, needs_flush: false, heard_at: Instant::now(), is_heard: false }
    }

    /// To be asked for before there is something to be said of the other side: a leg has room when nothing waits.
    pub(super) fn pass(&mut self, bytes: Bytes) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Said::Bytes(bytes));
    }

    /// What the other side says.
    pub(super) fn pass_control(&mut self, control: Control) {
        self.queue.push_back(Said::Control(control));
    }

    /// A word of the node's own. It waits its turn, and is left out if too many do.
    pub(super) fn tell(&mut self, control: &Control) {
        if self.queue.len() < WORDS_MAX {
            self.queue.push_back(Said::Control(control.clone()));
        }
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Asks for a sign of life. False: none came for too long.
    pub(super) fn ping(&mut self, now: Instant) -> bool {
        if matches!(self.wire, Wire::Tcp(_)) {
            return true;
        }
        if !std::mem::take(&mut self.is_heard) {
            // Held up by the other side: nobody has listened.
            self.heard_at = now;
        }
        if self.queue.is_empty() {
            self.queue.push_back(Said::Ping);
        }
        now.duration_since(self.heard_at) < DEAD_AFTER
    }

    /// Says what waits. Ready when nothing does any more.
    pub(super) fn poll_say(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match &mut self.wire {
            Wire::WebSocket(socket) => {
                while !self.queue.is_empty() {
                    ready!(socket.poll_ready_unpin(context)).map_err(|_| Gone)?;
                    let Some(said) = self.queue.pop_front() else { break };
                    self.queued_bytes -= said.bytes();
                    let message = match said {
                        Said::Bytes(bytes) => Message::Binary(bytes),
                        Said::Control(control) => Message::Text(control.to_text().into()),
                        Said::Ping => Message::Ping(Bytes::new()),
                    };
                    socket.start_send_unpin(message).map_err(|_| Gone)?;
                    self.needs_flush = true;
                }
                if self.needs_flush {
                    ready!(socket.poll_flush_unpin(context)).map_err(|_| Gone)?;
                    self.needs_flush = false;
                }
                Poll::Ready(Ok(()))
            }
            Wire::Tcp(tcp) => {
                while let Some(said) = self.queue.front_mut() {
                    match said {
                        Said::Bytes(bytes) => {
                            while bytes.has_remaining() {
                                let written = ready!(Pin::new(&mut tcp.stream).poll_write(context, bytes));
                                let written = written.map_err(|_| Gone)?;
                                self.queued_bytes -= written;
                                bytes.advance(written);
                            }
                        }
                        Said::Control(Control::Eof) if !tcp.is_shut => {
                            ready!(Pin::new(&mut tcp.stream).poll_shutdown(context)).map_err(|_| Gone)?;
                            tcp.is_shut = true;
                        }
                        Said::Control(_) | Said::Ping => {}
                    }
                    self.queue.pop_front();
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Listens for the next that the peer says.
    pub(super) fn poll_hear(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        self.is_heard = true;
        let heard = match &mut self.wire {
            Wire::WebSocket(socket) => loop {
                let message = ready!(socket.poll_next_unpin(context));
                self.heard_at = Instant::now();
                match message {
                    Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                    Some(Ok(Message::Binary(bytes))) => break Heard::Bytes(bytes),
                    Some(Ok(Message::Text(text))) => {
                        break Control::read(&text, self.party).map_or(Heard::Broken, Heard::Control);
                    }
                    // The layer below answers pings by itself, with what is flushed next.
                    Some(Ok(Message::Ping(_))) => {
                        self.needs_flush = true;
                        context.waker().wake_by_ref();
                    }
                    Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break Heard::Gone,
                }
            },
            Wire::Tcp(tcp) if tcp.is_heard_out => return Poll::Pending,
            Wire::Tcp(tcp) => {
                tcp.buffer.reserve(DATA_BYTES_MAX);
                let read = ready!(poll_read_buf(Pin::new(&mut tcp.stream), context, &mut tcp.buffer));
                match read {
                    Ok(0) => {
                        tcp.is_heard_out = true;
                        Heard::Control(Control::Eof)
                    }
                    Ok(_) => {
                        let most = tcp.buffer.len().min(DATA_BYTES_MAX);
                        Heard::Bytes(tcp.buffer.split_to(most).freeze())
                    }
                    Err(_) => Heard::Gone,
                }
            }
        };
        Poll::Ready(heard)
    }

    /// Whether something was begun to be said that the peer has not taken yet: it would take that before a last word.
    pub(super) const fn is_held_up(&self) -> bool {
        self.needs_flush
    }

    /// Resets the connection, without a word.
    pub(super) fn abort(self) {
        match self.wire {
            Wire::WebSocket(socket) => socket.get_ref().abort(),
            // A socket that is gone needs no reset.
            Wire::Tcp(tcp) => drop(tcp.stream.set_zero_linger()),
        }
    }

    /// Says a last word instead of whatever waits, and closes. A peer that does not close in turn before `patience` is over is reset.
    pub(super) async fn close(self, last: Option<Control>, patience: impl Future<Output = ()>) {
        match self.wire {
            Wire::WebSocket(mut socket) => {
                let farewell = async {
                    let reason = match &last {
                        Some(Control::Closed { reason, .. }) => reason.clone(),
                        Some(_) | None => String::new(),
                    };
                    if let Some(last) = last {
                        debug_assert!(last.to_text().len() <= CONTROL_BYTES_MAX);
                        socket.send(Message::Text(last.to_text().into())).await?;
                    }
                    (*socket).close(Some(CloseFrame { code: CloseCode::Normal, reason: reason.into() })).await?;
                    // Whoever closes in turn has read everything before.
                    while socket.next().await.transpose()?.is_some() {}
                    Ok::<_, tokio_tungstenite::tungstenite::Error>(())
                };
                let is_closed = tokio::select! {
                    farewell = farewell => farewell.is_ok(),
                    () = patience => false,
                };
                if !is_closed {
                    socket.get_ref().abort();
                }
            }
            Wire::Tcp(tcp) => {
                if last.is_some() || !(tcp.is_shut && tcp.is_heard_out) {
                    let _ = tcp.stream.set_zero_linger();
                }
            }
        }
    }
}
