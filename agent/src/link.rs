//! One link: a WebSocket that drives the device's end of `proto::link`.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{
    Admission, Close, Device, FromServer, Party, SendError, Session, State, ToServer, Violation,
};
use futures_util::{Sink, Stream};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::dial::{DialError, Route, Socket, Traffic};
use crate::tunnel::interface::Interface;

/// How long is waited for what was sent to be handed to the network, before something is done that ends the network.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// How long a polite end may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(6);

/// A link that the server has welcomed.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    /// What the server said in its welcome.
    pub admission: Admission,
    /// When the certificate ends that the server proved itself with; `None` if it did that to somebody else.
    pub server_certificate_ends: Option<OffsetDateTime>,
    /// What it goes through.
    pub tunnel: Option<Interface>,
    opened_at: Instant,
    /// The ping that was sent for somebody who wants to know, and when.
    asked: Option<(u32, Instant)>,
}

/// What comes out of a link.
#[derive(Debug)]
pub enum Event {
    Message(FromServer),
    /// A sign of life, and nothing else.
    Heard,
    /// It is over.
    Closed(Close),
}

impl Link {
    /// Dials, proves both sides, says hello and waits for the welcome.
    ///
    /// # Errors
    /// Of any of these steps.
    pub async fn open(route: Route, hello: Hello) -> Result<Self, DialError> {
        let mut way = route.go(Traffic::Sparse).await?;
        let (tunnel, server_certificate_ends) = (way.tunnel.take(), way.server_certificate_ends);
        let socket = way.open_link().await?;
        Ok(Self { tunnel, server_certificate_ends, ..Self::welcomed(socket, hello).await? })
    }

    async fn welcomed(socket: Socket, hello: Hello) -> Result<Self, DialError> {
        let opened_at = Instant::now();
        let session = Session::device(opened_at.into_std(), hello).map_err(DialError::Hello)?;
        let mut connection = Connection { socket, session, close_frame_sent: false, failure: None };
        loop {
            return match connection.next().await {
                Event::Message(FromServer::Welcome(admission)) => Ok(Self {
                    connection,
                    admission,
                    server_certificate_ends: None,
                    tunnel: None,
                    opened_at,
                    asked: None,
                }),
                Event::Message(_) => Err(DialError::NoWelcome),
                Event::Heard => continue,
                Event::Closed(close) => Err(connection.failure.map_or(DialError::Closed(close), DialError::WebSocket)),
            };
        }
    }

    /// The next thing that happens. May be dropped and called again.
    pub async fn next(&mut self) -> Event {
        self.connection.next().await
    }

    /// Queues a message; it goes out with the next call of [`Self::next`] or [`Self::flush`].
    ///
    /// # Errors
    /// When the link is ending, or too much waits already.
    pub fn send(&mut self, message: impl Into<ToServer>) -> Result<(), SendError> {
        self.connection.session.send(Instant::now().into_std(), message)
    }

    /// Waits, for a short time, until what was queued is handed to the network.
    pub async fn flush(&mut self) {
        let flushed = timeout(FLUSH_WITHIN, poll_fn(|cx| self.connection.poll_write(cx))).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the server may not have heard the last messages");
        }
    }

    /// Asks the server for a sign of life now, for [`Self::answered`].
    pub fn ask(&mut self) {
        let now = Instant::now();
        self.asked = Some((self.connection.session.ping(now.into_std()), now));
    }

    /// When the server was asked last that has answered it; at the latest when the link began.
    #[must_use]
    pub fn answered(&self) -> Instant {
        let asked = self.asked.filter(|(ping, _)| self.connection.session.has_answered(*ping));
        asked.map_or(self.opened_at, |(_, at)| at)
    }

    /// For how long since its beginning the server was heard of.
    #[must_use]
    pub fn proven_for(&self) -> Duration {
        self.connection.session.last_proven().saturating_duration_since(self.opened_at.into_std())
    }

    /// Says goodbye, after all that is queued, and waits a little for the server to close.
    pub async fn close(mut self, code: Code, message: &str) {
        self.connection.session.goodbye(Instant::now().into_std(), code, message, Duration::ZERO);
        let closed = async { while !matches!(self.connection.next().await, Event::Closed(_)) {} };
        let _ = timeout(CLOSE_WITHIN, closed).await;
    }
}

/// A WebSocket and the session that it carries.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    session: Session<Device>,
    close_frame_sent: bool,
    /// What broke the WebSocket.
    failure: Option<tungstenite::Error>,
}

impl Connection {
    async fn next(&mut self) -> Event {
        loop {
            let deadline = self.session.poll_timeout().map(Instant::from_std);
            // What the socket holds comes first: a device that was held up must not blame the server for its silence.
            tokio::select! {
                biased;
                event = poll_fn(|cx| self.poll_event(cx)) => return event,
                () = until(deadline) => self.session.handle_timeout(Instant::now().into_std()),
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                self.broke(error);
            }
            if self.session.state() == State::Closed {
                return Poll::Ready(Event::Closed(self.closed()));
            }
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(message)) => {
                    if let Some(event) = self.handle(message) {
                        return Poll::Ready(event);
                    }
                }
                Some(Err(tungstenite::Error::Capacity(_))) => self.violated(&Violation::TooLarge),
                Some(Err(error)) => self.broke(error),
                None => self.session.transport_lost(None),
            }
        }
    }

    /// Hands over all that the session has to say, as far as the network takes it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        loop {
            ready!(Pin::new(&mut self.socket).poll_ready(cx))?;
            let Some(message) = self.next_outgoing() else { break };
            Pin::new(&mut self.socket).start_send(message)?;
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn next_outgoing(&mut self) -> Option<Message> {
        if let Some(message) = self.session.poll_transmit() {
            return Some(Message::Binary(message));
        }
        let close = self.session.close().filter(|close| close.by == Party::Us && !self.close_frame_sent)?;
        self.close_frame_sent = true;
        Some(Message::Close(Some(CloseFrame { code: close.close_code().into(), reason: close.close_text().into() })))
    }

    fn handle(&mut self, message: Message) -> Option<Event> {
        match message {
            Message::Binary(bytes) => match self.session.handle_message(Instant::now().into_std(), &bytes) {
                // Its reason is in the session, which is closed.
                Ok(Some(FromServer::Goodbye)) => None,
                Ok(Some(message)) => Some(Event::Message(message)),
                Ok(None) => Some(Event::Heard),
                Err(violation) => {
                    tracing::warn!(%violation, "the server broke the protocol");
                    None
                }
            },
            Message::Text(_) => {
                self.violated(&Violation::Text);
                None
            }
            Message::Close(frame) => {
                self.session.transport_lost(frame.map(|frame| frame.code.into()));
                None
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
        }
    }

    fn violated(&mut self, violation: &Violation) {
        tracing::warn!(%violation, "the server broke the protocol");
        self.session.violated(Instant::now().into_std(), violation);
    }

    fn broke(&mut self, error: tungstenite::Error) {
        self.session.transport_lost(None);
        self.failure.get_or_insert(error);
    }

    fn closed(&self) -> Close {
        self.session.close().cloned().unwrap_or(Close {
            by: Party::Transport,
            code: Code::Unspecified,
            message: String::new(),
            retry_after: Duration::ZERO,
        })
    }
}

/// Sleeps until then; for ever without a time.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
