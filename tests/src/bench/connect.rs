//! What a connection costs a server: memory while it idles, processor time to make it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustls_pki_types::ServerName;
use time::OffsetDateTime;
use tokio::time::sleep;

use super::peer::Peer;
use super::usage::Process;
use crate::load::fleet::SERVER_NAME;
use crate::load::{Fleet, Pace, Protocol, Swarm, Target};

/// How many devices dial at the same time.
pub const DIALLING: Pace = Pace::AtOnce(64);
/// Connections that are made and closed first, so that what is made once (pools, caches, code pages) is not counted.
const WARM_UP: usize = 50;
/// How long a server may tidy up before its memory is read.
pub const SETTLE: Duration = Duration::from_secs(5);

/// What one connection costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Memory of the server that no file is behind, while all are idle: pages of programs count in parts, and so less whenever
    /// another one of the same server starts.
    pub memory_bytes: f64,
    /// Processor time of the server, user and kernel, to connect one.
    pub cpu: Duration,
    /// Processor time of what the server started (its database), to connect one.
    pub descendants_cpu: Duration,
}

/// Connects all devices of the fleet, and keeps them for the caller.
pub async fn measure(
    process: Process,
    target: &Target,
    fleet: &Arc<Fleet>,
    protocol: Protocol,
) -> Result<(Cost, Swarm)> {
    let count = fleet.devices.len();
    // Few of a small fleet: what they leave is used again by those that are measured.
    Swarm::connect(target, fleet, protocol, 0..WARM_UP.min(count / 8), DIALLING).await?.stop().await;
    sleep(SETTLE).await;

    let memory = process.anonymous_bytes()?;
    let (cpu, descendants_cpu) = (process.cpu()?, process.descendants_cpu()?);
    let swarm = Swarm::connect(target, fleet, protocol, 0..count, DIALLING).await?;
    let (cpu, descendants_cpu) = (process.cpu()? - cpu, process.descendants_cpu()?.saturating_sub(descendants_cpu));
    sleep(SETTLE).await;
    let grown = process.anonymous_bytes()?.saturating_sub(memory);

    let each = u32::try_from(count)?;
    #[expect(clippy::cast_precision_loss, reason = "a count of bytes, to be shown with three digits")]
    let memory_bytes = grown as f64 / f64::from(each);
    Ok((Cost { memory_bytes, cpu: cpu / each, descendants_cpu: descendants_cpu / each }, swarm))
}

/// What a connection costs another server, with the same certificates.
pub async fn measure_peer(peer: Peer, fleet: &Arc<Fleet>, now: OffsetDateTime) -> Result<Cost> {
    let server = peer.start(fleet, now).await?;
    let target = target(server.address(), fleet)?;
    let (cost, swarm) = measure(server.process(), &target, fleet, peer.protocol()).await?;
    swarm.stop().await;
    Ok(cost)
}

/// Where to dial a server on this machine.
pub fn target(address: std::net::SocketAddr, fleet: &Fleet) -> Result<Target> {
    Ok(Target { address, server_name: ServerName::try_from(SERVER_NAME)?, roots: fleet.roots.clone() })
}
