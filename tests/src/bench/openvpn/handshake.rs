//! What full handshakes of stock clients cost a server, and how much memory their tunnels take.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::client::Clients;
use super::server::Server;
use super::{median, progress};
use crate::bench::connect::{DIALLING, SETTLE};
use crate::bench::report::{Bound, Line, Report};
use crate::load::{Fleet, Protocol, Swarm};
use crate::netns::Site;

const CLIENTS: usize = 200;
/// How often all clients of a server reconnect.
const ROUNDS: usize = 4;
/// Simulated devices that connect first, so that what a server makes once is not counted.
const WARM_UP: usize = 50;
/// How long a server may deal with a tunnel after its client takes it for up.
const AFTERMATH: Duration = Duration::from_secs(1);

const CPU_RATIO_MAX: f64 = 0.35;
pub(super) const MEMORY_RATIO_MAX: f64 = 0.25;

/// A server with its clients, and what was measured.
struct Loaded<'a> {
    server: &'a Server,
    clients: Clients,
    memory_kb: f64,
    cpu_ms: Vec<f64>,
    descendants_cpu_ms: Vec<f64>,
}

pub(super) async fn measure(servers: [&Server; 2], fleet: &Arc<Fleet>, report: &mut Report) -> Result<()> {
    let sites = [Arc::new(Site::join()?), Arc::new(Site::join()?)];
    let mut cloudlink = Loaded::new(servers[0], &sites[0], fleet).await?;
    let mut stock = Loaded::new(servers[1], &sites[1], fleet).await?;
    for round in 1..=ROUNDS {
        progress(&format!("{CLIENTS} stock clients reconnect to each server, round {round} of {ROUNDS}"));
        cloudlink.reconnect().await?;
        stock.reconnect().await?;
    }
    let memory = Line::new("openvpn", "memory_per_tunnel_200_stock", cloudlink.memory_kb, "kB");
    report.add(&memory.beside(stock.server.name, stock.memory_kb).with_ratio_goal(Bound::AtMost(MEMORY_RATIO_MAX)))?;
    let cpu = Line::new("openvpn", "cpu_per_handshake", median(cloudlink.cpu_ms), "ms");
    let cpu = cpu.beside(stock.server.name, median(stock.cpu_ms));
    report.add(&cpu.with_ratio_goal(Bound::AtMost(CPU_RATIO_MAX)))?;
    let database_ms = median(cloudlink.descendants_cpu_ms);
    report.add(&Line::new("openvpn", "database_cpu_per_handshake", database_ms, "ms"))
}

impl<'a> Loaded<'a> {
    async fn new(server: &'a Server, site: &Arc<Site>, fleet: &Arc<Fleet>) -> Result<Self> {
        progress(&format!("{CLIENTS} stock clients connect to {}", server.name));
        let warm_up = CLIENTS..CLIENTS + WARM_UP;
        Swarm::connect(&server.target()?, fleet, Protocol::OpenVpn, warm_up, DIALLING).await?.stop().await;
        sleep(SETTLE).await;
        let memory = server.process.memory_bytes()?;
        let clients = Clients::start(site, server, CLIENTS).await?;
        sleep(SETTLE).await;
        let grown = server.process.memory_bytes()?.saturating_sub(memory);
        #[expect(clippy::cast_precision_loss, reason = "a count of bytes, to be shown with three digits")]
        let memory_kb = grown as f64 / CLIENTS as f64 / 1000.0;
        Ok(Self { server, clients, memory_kb, cpu_ms: Vec::new(), descendants_cpu_ms: Vec::new() })
    }

    async fn reconnect(&mut self) -> Result<()> {
        let process = self.server.process;
        let (cpu, descendants_cpu) = (process.cpu()?, process.descendants_cpu()?);
        self.clients.reconnect().await?;
        sleep(AFTERMATH).await;
        let each = u32::try_from(CLIENTS)?;
        let ms = |spent: Duration| (spent / each).as_secs_f64() * 1000.0;
        self.cpu_ms.push(ms(process.cpu()?.saturating_sub(cpu)));
        self.descendants_cpu_ms.push(ms(process.descendants_cpu()?.saturating_sub(descendants_cpu)));
        Ok(())
    }
}
