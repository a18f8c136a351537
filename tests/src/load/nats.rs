//! As much of the NATS client protocol as a connected and silent client needs.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// The longest line that is read, INFO included.
const LINE_BYTES_MAX: usize = 8192;
/// As often as on a Cloudlink link.
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// Reads the INFO that comes in the clear before TLS, and nothing beyond it.
pub(super) async fn greeting<S: AsyncRead + Unpin>(stream: &mut S) -> Result<()> {
    let line = line(stream).await?;
    ensure!(line.starts_with("INFO "), "the server begins with {line:?}");
    ensure!(line.contains(r#""tls_verify":true"#), "the server does not ask for client certificates");
    Ok(())
}

/// Sends CONNECT and PING, takes PONG.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, name: &str) -> Result<()> {
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"lang\":\"rust\",\"version\":\"1\",\
         \"protocol\":1,\"name\":\"{name}\"}}\r\nPING\r\n"
    );
    stream.write_all(connect.as_bytes()).await?;
    stream.flush().await?;
    loop {
        let line = line(stream).await?;
        match line.as_str() {
            "PONG" => return Ok(()),
            _ if line.starts_with("INFO ") => {}
            _ => bail!("the server answers {line:?}"),
        }
    }
}

/// Keeps the connection up until `stop`.
pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, stop: &CancellationToken) -> Result<()> {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.reset();
    let mut buffer = [0; 64];
    loop {
        let answer: &[u8] = tokio::select! {
            read = stream.read(&mut buffer) => {
                let read = read?;
                ensure!(read > 0, "the server closed the connection");
                // Its pings come alone on a connection without traffic.
                if buffer.starts_with(b"PING") { b"PONG\r\n" } else { b"" }
            }
            _ = ping.tick() => b"PING\r\n",
            () = stop.cancelled() => return Ok(()),
        };
        if !answer.is_empty() {
            stream.write_all(answer).await?;
            stream.flush().await?;
        }
    }
}

async fn line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        ensure!(line.len() < LINE_BYTES_MAX, "the server sends a line that does not end");
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
