//! This end of a stream of a support session: a WebSocket on a connection that is made as every other call is, so that
//! authorities, proxies and TLS are the same. What is said on it is in `cloudlink_proto::stream`.

mod escape;
#[cfg(test)]
pub(crate) mod far;
pub(crate) mod screen;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::stream::{CONTROL_BYTES_MAX, Control, ControlError, DATA_BYTES_MAX, Party};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use reqwest::Upgraded;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error as WebSocketError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use uuid::Uuid;

pub(crate) use escape::Escape;

use crate::client::Client;
use crate::failure::Failure;

/// Routers forget connections that are silent for half a minute.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A server that has answered no ping for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// For the server to take note that this end has gone.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// What TLS gives out at once. A WebSocket clears as much memory as it asks for, each time.
const TLS_RECORD_BYTES: usize = 16 * 1024;

type Socket = WebSocketStream<Upgraded>;

/// Opens a stream of a session.
pub(crate) async fn open(
    client: &Client,
    session: Uuid,
    query: &[(&'static str, String)],
) -> Result<(Sender, Receiver), Failure> {
    let connection = client.support_session_stream(session, query).await?;
    let socket = WebSocketStream::from_raw_socket(connection, Role::Client, Some(config())).await;
    let (sink, stream) = socket.split();
    Ok((Sender(sink), Receiver { stream, silence_max: None }))
}

fn config() -> WebSocketConfig {
    let largest = DATA_BYTES_MAX.max(CONTROL_BYTES_MAX);
    WebSocketConfig::default()
        .read_buffer_size(TLS_RECORD_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(largest))
        .max_frame_size(Some(largest))
}

/// The way to the server. An error of it is never told: the other way tells why the stream is over.
#[derive(Debug)]
pub(crate) struct Sender(SplitSink<Socket, Message>);

impl Sender {
    /// Bytes of the stream, at most [`DATA_BYTES_MAX`]. Whether they could be sent.
    pub(crate) async fn bytes(&mut self, bytes: Bytes) -> bool {
        self.0.send(Message::Binary(bytes)).await.is_ok()
    }

    pub(crate) async fn control(&mut self, control: &Control) -> bool {
        self.0.send(Message::text(control.to_text())).await.is_ok()
    }

    pub(crate) async fn ping(&mut self) -> bool {
        self.0.send(Message::Ping(Bytes::new())).await.is_ok()
    }

    /// Takes leave. The server may be gone already.
    pub(crate) async fn close(&mut self) {
        let _ = tokio::time::timeout(FAREWELL_MAX, self.0.close()).await;
    }
}

/// What comes from the server.
#[derive(Debug)]
pub(crate) enum Heard {
    Bytes(Bytes),
    Control(Control),
    /// The connection has ended, without a word about why.
    Gone,
}

/// The way from the server.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: SplitStream<Socket>,
    silence_max: Option<Duration>,
}

impl Receiver {
    /// Believes a server gone that has not answered several pings. Not for streams whose other end may be slow to take what is
    /// sent: a server that waits for it does not answer, either.
    pub(crate) fn expect_answers(&mut self) {
        self.silence_max = Some(SILENCE_MAX);
    }

    pub(crate) async fn next(&mut self) -> Result<Heard, Failure> {
        loop {
            let message = match self.silence_max {
                None => self.stream.next().await,
                Some(limit) => match tokio::time::timeout(limit, self.stream.next()).await {
                    Ok(message) => message,
                    Err(_) => return Ok(Heard::Gone),
                },
            };
            match message {
                None | Some(Ok(Message::Close(_))) => return Ok(Heard::Gone),
                Some(Ok(Message::Binary(bytes))) => return Ok(Heard::Bytes(bytes)),
                Some(Ok(Message::Text(text))) => {
                    if let Some(control) = read(text.as_str())? {
                        return Ok(Heard::Control(control));
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return lost(error),
            }
        }
    }
}

/// What the device or the node says; `None` for what a newer one may say.
fn read(text: &str) -> Result<Option<Control>, Failure> {
    let control = match Control::read(text, Party::Device) {
        Err(ControlError::NotTheirs(_)) => Control::read(text, Party::Node),
        read => read,
    };
    match control {
        Ok(control) => Ok(Some(control)),
        Err(ControlError::Form(_)) => Ok(None),
        Err(error) => Err(anyhow::Error::new(error).context("the server does not keep to the protocol").into()),
    }
}

/// A connection that was cut is no error of anybody's.
fn lost(error: WebSocketError) -> Result<Heard, Failure> {
    let kept = match &error {
        WebSocketError::Protocol(broken) => matches!(broken, ProtocolError::ResetWithoutClosingHandshake),
        WebSocketError::Capacity(_) | WebSocketError::Utf8(_) | WebSocketError::AttackAttempt => false,
        WebSocketError::ConnectionClosed
        | WebSocketError::AlreadyClosed
        | WebSocketError::Io(_)
        | WebSocketError::Tls(_)
        | WebSocketError::WriteBufferFull(_)
        | WebSocketError::Url(_)
        | WebSocketError::Http(_)
        | WebSocketError::HttpFormat(_) => true,
    };
    if kept {
        return Ok(Heard::Gone);
    }
    Err(anyhow::Error::new(error).context("the server does not keep to the protocol").into())
}

/// Of a stream that broke without a word.
pub(crate) fn gone() -> Failure {
    Failure::Unreachable { what: "the connection to the server was lost".to_owned(), source: None }
}

/// What a warning says to people.
pub(crate) fn warning(seconds_left: u64, reason: Option<&str>) -> String {
    let left = left(seconds_left);
    match reason {
        None => format!("Access ends in {left}."),
        Some("node_lost") => format!("This server is stopping: the session ends in {left}. Connect again then."),
        // Of a newer server.
        Some(_) => format!("The session ends in {left}."),
    }
}

/// `2 minutes`, as a warning says it.
fn left(seconds: u64) -> String {
    match seconds {
        1 => "1 second".to_owned(),
        0..100 => format!("{seconds} seconds"),
        _ => format!("{} minutes", (seconds + 30) / 60),
    }
}
