//! The operator's end of a stream: something is said on it all the time, and what comes is noted.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use cloudlink_proto::stream::{Control, SUBPROTOCOL};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use crate::dial::{client_config, tls};
use crate::server::SERVER_NAME;

/// Between two words of either end.
pub const TICK: Duration = Duration::from_millis(200);
/// What a file is said to have: more than is ever sent of it.
pub const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// For the device to come, and for the first byte to go through.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// What is said of each end, all the time.
pub(super) const WORD: &[u8] = b".";

/// What one end of a stream has received.
#[derive(Debug, Default)]
pub struct Side {
    last: Mutex<Option<Instant>>,
    bytes: AtomicU64,
}

impl Side {
    pub(super) fn note(&self, count: usize) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// When something came last.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What both ends of one stream have seen.
#[derive(Debug, Default)]
pub struct Observed {
    pub operator: Side,
    pub device: Side,
    /// What is being written on the device: its last change is the kernel's to tell.
    pub file: Mutex<Option<File>>,
    /// The server's last word.
    pub closed: Mutex<Option<String>>,
}

/// The connection of an operator's client.
#[derive(Debug)]
pub struct Client(WebSocketStream<TlsStream<TcpStream>>);

impl Client {
    /// Asks a node for the stream of a session.
    pub async fn open(people: SocketAddr, ca_file: &Path, token: &str, session: &str) -> anyhow::Result<Self> {
        let stream = tls(people, SERVER_NAME, client_config(ca_file, None, &[&TLS13])?).await?;
        stream.get_ref().0.set_nodelay(true)?;
        let uri = format!("wss://{SERVER_NAME}/api/v1/support-sessions/{session}/stream");
        let mut request = uri.into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
        headers.insert("authorization", format!("Bearer {token}").parse()?);
        let opened = timeout(OPEN_LIMIT, tokio_tungstenite::client_async(request, stream));
        match opened.await.context("no answer in time")? {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(WebSocketError::Http(answer)) => {
                let (status, body) = (answer.status(), answer.into_body().unwrap_or_default());
                bail!("{status}: {}", String::from_utf8_lossy(&body))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the other end is there, and says which stream this is.
    pub async fn greet(&mut self, number: usize, is_file: bool) -> anyhow::Result<()> {
        if is_file {
            let file = Control::File { size: FILE_BYTES, mode: 0o600 };
            self.0.send(Message::Text(file.to_text().into())).await?;
        }
        let there = async {
            loop {
                match self.0.next().await.context("it is over")?? {
                    Message::Binary(_) => return anyhow::Ok(()),
                    Message::Text(text) if is_file && text.as_str() == Control::Ready.to_text() => return Ok(()),
                    Message::Close(frame) => bail!("closed: {frame:?}"),
                    Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                }
            }
        };
        timeout(OPEN_LIMIT, there).await.context("nobody is there")??;
        Ok(self.0.send(Message::Binary(Bytes::from(format!("{number}\n")))).await?)
    }

    /// Speaks and listens until the connection is gone.
    pub async fn converse(self, observed: Arc<Observed>) {
        let (mut sink, mut stream) = self.0.split();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut may_speak = true;
        loop {
            tokio::select! {
                _ = ticks.tick(), if may_speak => {
                    may_speak = sink.send(Message::Binary(Bytes::from_static(WORD))).await.is_ok();
                }
                message = stream.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => observed.operator.note(bytes.len()),
                    Some(Ok(Message::Text(text))) => {
                        if let Ok(Control::Closed { reason, .. }) = serde_json::from_str(&text) {
                            *observed.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                        }
                    }
                    Some(Ok(Message::Close(_))) => may_speak = false,
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Err(_)) | None => return,
                },
            }
        }
    }
}

/// The same of a connection that a program of ours has made, which says nothing of its own.
pub async fn converse(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    number: usize,
    observed: Arc<Observed>,
) -> anyhow::Result<()> {
    let mut bytes = [0; 4096];
    timeout(OPEN_LIMIT, reader.read_exact(&mut bytes[..WORD.len()])).await.context("nobody is there")??;
    writer.write_all(format!("{number}\n").as_bytes()).await?;
    writer.flush().await?;
    speak(reader, writer, &observed.operator).await;
    Ok(())
}

/// Speaks and listens until the connection is gone.
pub(super) async fn speak(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, side: &Side) {
    let mut bytes = [0; 4096];
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut may_speak = true;
    loop {
        tokio::select! {
            _ = ticks.tick(), if may_speak => {
                let said = async {
                    writer.write_all(WORD).await?;
                    writer.flush().await
                };
                may_speak = said.await.is_ok();
            }
            read = reader.read(&mut bytes) => match read {
                Ok(count @ 1..) => side.note(count),
                Ok(0) | Err(_) => return,
            },
        }
    }
}
