//! Loopback ports that nobody uses, and no other test is about to.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;
use nix::unistd::Uid;

/// Below what the kernel gives to outgoing connections, so that none of those takes a port between being found free and
/// being used.
const FIRST: u16 = 27_000;
const COUNT: u16 = 1_000;

/// How far this process has got.
static NEXT: AtomicU16 = AtomicU16::new(0);
/// Of ports that were given out: a lock for as long as this process lives, since who asked for a port may listen there late, or stop
/// listening for a while.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// An address that nobody listens at, and that no other process of tests gets as long as this one lives.
pub fn free() -> anyhow::Result<SocketAddr> {
    let locks = std::env::temp_dir().join(format!("cloudlink-ports-{}", Uid::effective()));
    std::fs::create_dir_all(&locks)?;
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let lock = File::options().create(true).append(true).open(locks.join(port.to_string()))?;
        if lock.try_lock().is_ok() && is_free(address) {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return Ok(address);
        }
    }
    bail!("no port from {FIRST} on is free");
}

/// Whether a server could listen there now.
#[must_use]
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}
