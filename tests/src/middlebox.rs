//! A box between a device and its server that lets no link through: as filters do that pass on an answer when it is whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

/// What it holds back of one answer.
const HELD_BYTES_MAX: usize = 1024 * 1024;

/// By so much what a device says is late where it passes slowly. It speaks about four times until there is a link.
const LATE: Duration = Duration::from_secs(1);

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    Everything,
    /// The same, and what the device says a second late: what the server says by itself is under way before it has heard more.
    Slowly,
    /// A TLS handshake; what the server says after it once the server has closed the connection. A link waits for that for ever.
    WholeAnswers,
    /// The same of one connection in ten; the others are cut.
    OneInTen,
    Nothing,
}

/// Stands in front of a server. Gone when it is dropped.
#[derive(Debug)]
pub struct Middlebox {
    pub address: SocketAddr,
    passes: watch::Sender<Passes>,
    let_through: Arc<AtomicUsize>,
}

impl Middlebox {
    pub async fn start(address: SocketAddr, server: SocketAddr, passes: Passes) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (passes, let_through) = (watch::Sender::new(passes), Arc::new(AtomicUsize::new(0)));
        let (changes, count) = (passes.subscribe(), Arc::clone(&let_through));
        tokio::spawn(async move {
            let mut connections = 0_usize;
            while let Ok((near, _)) = listener.accept().await {
                let mut changes = changes.clone();
                let passes = *changes.borrow_and_update();
                connections += 1;
                if passes == Passes::Nothing || passes == Passes::OneInTen && !connections.is_multiple_of(10) {
                    continue;
                }
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    tokio::select! {
                        () = pass(near, server, passes) => {}
                        // Whatever was let through before is cut.
                        _ = changes.changed() => {}
                    }
                });
            }
        });
        Ok(Self { address, passes, let_through })
    }

    /// From now on this passes. Connections of before are cut.
    pub fn set(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }

    /// Connections that were not cut at once.
    #[must_use]
    pub fn let_through(&self) -> usize {
        self.let_through.load(Ordering::Relaxed)
    }
}

async fn pass(near: TcpStream, server: SocketAddr, passes: Passes) {
    let Ok(far) = TcpStream::connect(server).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((from_device, to_device), (from_server, to_server)) = (near.into_split(), far.into_split());
    // How often the device has spoken: first its greeting, and then, when it has heard the server's, all the rest.
    let spoken = watch::Sender::new(0_u32);
    let hears = spoken.subscribe();
    let late = if passes == Passes::Slowly { LATE } else { Duration::ZERO };
    let is_held = !matches!(passes, Passes::Everything | Passes::Slowly);
    tokio::join!(upstream(from_device, to_server, spoken, late), downstream(from_server, to_device, hears, is_held));
}

async fn upstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoken: watch::Sender<u32>, late: Duration) {
    let mut buffer = vec![0; 16 * 1024];
    // The greeting is one record of TLS, which may come in two segments.
    let mut greeting_left = None;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let left = greeting_left.unwrap_or_else(|| 5 + usize::from(u16::from_be_bytes([buffer[3], buffer[4]])));
        if greeting_left.is_none() || left == 0 {
            spoken.send_modify(|spoken| *spoken += 1);
        }
        greeting_left = Some(left.saturating_sub(count));
        tokio::time::sleep(late).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn downstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoken: watch::Receiver<u32>, is_held: bool) {
    let (mut buffer, mut held) = (vec![0; 16 * 1024], Vec::new());
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if is_held && *spoken.borrow() > 1 {
            held.extend_from_slice(&buffer[..count]);
            if held.len() > HELD_BYTES_MAX {
                return;
            }
        } else if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.write_all(&held).await;
    let _ = to.shutdown().await;
}
