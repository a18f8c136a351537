//! Loopback ports that nobody uses.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::bail;

/// Below what the kernel gives to outgoing connections, so that none of those takes a port between being found free and
/// being used.
const FIRST: u16 = 27_000;
const COUNT: u16 = 1_000;

/// How far this process has got. Begins at a place of its own, so that two runs at once seldom look at the same port.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// An address that nobody listens at.
pub fn free() -> anyhow::Result<SocketAddr> {
    let own = u16::try_from(std::process::id() * 37 % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let offset = (own + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + offset));
        if is_free(address) {
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
