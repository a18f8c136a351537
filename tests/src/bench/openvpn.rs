//! What tunnels of OpenVPN clients cost Cloudlink, beside a stock OpenVPN server: both run at the same time, with the same
//! certificates, and are loaded in turn by the same clients.
//!
//! To be run within [`crate::netns::run`], so that everything goes with the network that it is in.

mod client;
mod handshake;
mod memory;
mod ping;
pub mod server;
mod traffic;

use anyhow::Result;

use self::server::Server;
use super::report::Report;
use crate::clock;

/// Simulated devices. The certificates of the first ones are lent to stock clients.
const DEVICES: usize = 10_000;

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Handshakes of stock clients, and the memory of their tunnels.
    Handshake,
    /// Packets through the tunnels of stock clients.
    Traffic,
    /// Ping of one client during the handshakes of others.
    Ping,
    /// Memory of idle tunnels, thousands of them.
    Memory,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Handshake, Self::Traffic, Self::Ping, Self::Memory];
}

/// Measures these parts.
pub async fn run(parts: &[Part], report: &mut Report) -> Result<()> {
    progress("starting cloudlinkd and openvpn");
    let now = clock::now();
    let (cloudlink, fleet) = Server::cloudlink(DEVICES, now).await?;
    let stock = Server::stock(&fleet, now).await?;
    let servers = [&cloudlink, &stock];
    // Memory of clients that are gone would be used again: what few take is measured before many come.
    for part in Part::ALL.into_iter().filter(|part| parts.contains(part)) {
        match part {
            Part::Handshake => handshake::measure(servers, &fleet, report).await?,
            Part::Traffic => traffic::measure(servers, report).await?,
            Part::Ping => ping::measure(servers, &fleet, report).await?,
            Part::Memory => memory::measure(servers, &fleet, report).await?,
        }
    }
    Ok(())
}

/// Tells whoever waits what is being done. Results are on standard output, alone.
#[expect(clippy::print_stderr, reason = "a benchmark of minutes says what it does")]
fn progress(what: &str) {
    eprintln!("openvpn: {what}");
}
