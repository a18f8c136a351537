//! As much MQTT 3.1.1 as a connected and silent client needs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// The keep-alive that is announced; a ping goes out well before, as often as on a Cloudlink link.
const KEEP_ALIVE_SECONDS: u16 = 75;
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// Sends CONNECT (3.1) and takes a CONNACK (3.2) without an error.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, client_id: &str) -> Result<()> {
    const CLEAN_SESSION: u8 = 0x02;
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.push(CLEAN_SESSION);
    body.extend(KEEP_ALIVE_SECONDS.to_be_bytes());
    body.extend(u16::try_from(client_id.len())?.to_be_bytes());
    body.extend(client_id.as_bytes());
    let mut packet = vec![0x10, u8::try_from(body.len()).ok().filter(|len| *len < 0x80).context("a long client id")?];
    packet.extend(body);
    stream.write_all(&packet).await?;
    stream.flush().await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.context("no CONNACK")?;
    ensure!(answer == [0x20, 2, 0, 0], "CONNACK {answer:02x?}");
    Ok(())
}

/// Keeps the connection up until `stop`.
pub(super) async fn hold<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, stop: &CancellationToken) -> Result<()> {
    const PINGREQ: [u8; 2] = [0xc0, 0];
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.reset();
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => ensure!(read? > 0, "the broker closed the connection"),
            _ = ping.tick() => {
                stream.write_all(&PINGREQ).await?;
                stream.flush().await?;
            }
            () = stop.cancelled() => return Ok(()),
        }
    }
}
