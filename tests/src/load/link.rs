//! The device's end of a link: our own session on a WebSocket.

use std::time::Duration;

use anyhow::Result;
use cloudlink_proto::link::message::Hello;
use cloudlink_proto::link::{
    Close, Device, FromServer, LINK_PATH, MESSAGE_BYTES_MAX, SUBPROTOCOL, Session, State, ToServer, Violation,
};
use futures_util::{SinkExt, StreamExt};
use http::header::{RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::fleet::SERVER_NAME;

/// Ten thousand of them have to fit into one process.
const READ_BUFFER_BYTES: usize = 1024;

/// The server does not take the link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server refuses the link with {status}")]
pub struct Refused {
    pub status: u16,
    pub retry_after: Option<Duration>,
}

/// From the WebSocket handshake to the end.
#[derive(Debug)]
pub struct Link<S> {
    socket: WebSocketStream<S>,
    session: Session<Device>,
}

/// What happened on a link, or beside it.
#[derive(Debug)]
pub enum Next<T> {
    Said(Box<FromServer>),
    Woken(T),
    /// Of concern to nobody but the session.
    Nothing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Opens a link. It is live when the server has said [`FromServer::Welcome`].
    pub async fn open(stream: S, hello: Hello) -> Result<Self> {
        let mut request = format!("wss://{SERVER_NAME}{LINK_PATH}").into_client_request()?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL.parse()?);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        // The session measures from here how long what the server says was under way.
        let session = Session::device(now(), hello)?;
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.map_err(refused)?;
        Ok(Self { socket, session })
    }

    #[must_use]
    pub const fn state(&self) -> State {
        self.session.state()
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn close(&self) -> Option<&Close> {
        self.session.close()
    }

    /// Queues something; the next [`Self::next`] sends it.
    pub fn send(&mut self, message: impl Into<ToServer>) -> Result<()> {
        Ok(self.session.send(now(), message)?)
    }

    /// Queues a goodbye, which ends the link.
    pub fn goodbye(&mut self, code: cloudlink_proto::link::message::goodbye::Code, message: &str) {
        self.session.goodbye(now(), code, message, Duration::ZERO);
    }

    /// Sends what is due, then waits for one thing and deals with it. To be cancelled only when the link is to end; `wake` is
    /// what else may interrupt the waiting.
    pub async fn next<T>(&mut self, wake: impl Future<Output = T>) -> Result<Next<T>> {
        self.transmit().await?;
        let timeout = self.session.poll_timeout().map(Instant::from_std);
        tokio::select! {
            message = self.socket.next() => self.receive(message),
            () = sleep_until(timeout) => {
                self.session.handle_timeout(now());
                Ok(Next::Nothing)
            }
            woken = wake => Ok(Next::Woken(woken)),
        }
    }

    async fn transmit(&mut self) -> Result<(), SocketError> {
        while let Some(message) = self.session.poll_transmit() {
            self.socket.feed(Message::Binary(message)).await?;
        }
        self.socket.flush().await?;
        if self.session.state() == State::Closing
            && let Some(close) = self.session.close()
        {
            let frame =
                CloseFrame { code: CloseCode::from(close.close_code()), reason: close.close_text().to_owned().into() };
            self.socket.close(Some(frame)).await?;
        }
        Ok(())
    }

    fn receive<T>(&mut self, message: Option<Result<Message, SocketError>>) -> Result<Next<T>> {
        match message {
            Some(Ok(Message::Binary(message))) => {
                if let Some(said) = self.session.handle_message(now(), &message)? {
                    return Ok(Next::Said(Box::new(said)));
                }
            }
            Some(Ok(Message::Text(_))) => self.session.violated(now(), &Violation::Text),
            Some(Ok(Message::Close(frame))) => self.session.transport_lost(frame.map(|frame| frame.code.into())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(error.into()),
            None => self.session.transport_lost(None),
        }
        Ok(Next::Nothing)
    }
}

fn refused(error: SocketError) -> anyhow::Error {
    let SocketError::Http(answer) = &error else { return error.into() };
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Refused { status: answer.status().as_u16(), retry_after: retry_after.map(Duration::from_secs) }.into()
}

pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}

pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
