//! What full handshakes of stock clients cost a server, and how much memory their tunnels take.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::client::Clients;
use super::progress;
use super::server::Server;
use crate::bench::connect::{DIALLING, SETTLE};
use crate::bench::report::{Bound, Line, Report, median};
use crate::load::{Fleet, Protocol, Swarm};
use crate::netns::Site;

const CLIENTS: usize = 200;
const ROUNDS: usize = 3;
/// Between two clients: 40 a second, well below what any server can do.
const PACE: Duration = Duration::from_millis(25);
/// The same for clients that come all at once.
const NO_PAUSE: Duration = Duration::from_millis(1);
/// Simulated devices that connect first, so that what a server makes once is not counted.
const WARM_UP: usize = 50;
/// How long a server may deal with a tunnel after its client takes it for up, or after it has gone.
const AFTERMATH: Duration = Duration::from_secs(1);

const CPU_RATIO_MAX: f64 = 0.35;
pub(super) const MEMORY_RATIO_MAX: f64 = 0.25;

pub(super) async fn measure(servers: [&Server; 2], fleet: &Arc<Fleet>, report: &mut Report) -> Result<()> {
    let site = Arc::new(Site::join()?);
    let (mut cloudlink, mut stock) = (Figures::default(), Figures::default());
    for round in 1..=ROUNDS {
        for (server, figures) in servers.into_iter().zip([&mut cloudlink, &mut stock]) {
            progress(&format!("{CLIENTS} stock clients connect to {}, round {round} of {ROUNDS}", server.name));
            figures.round(server, &site, fleet).await?;
        }
    }
    let line = |name, unit, of: fn(&Figures) -> &Vec<f64>| {
        Line::new("openvpn", name, median(of(&cloudlink).clone()), unit)
            .beside(servers[1].name, median(of(&stock).clone()))
    };
    let memory = line("memory_per_tunnel_200_stock", "kB", |figures| &figures.memory_kb);
    report.add(&memory.with_ratio_goal(Bound::AtMost(MEMORY_RATIO_MAX)))?;
    let handshake = line("cpu_per_handshake", "ms", |figures| &figures.connect.cpu_ms);
    report.add(&handshake.with_ratio_goal(Bound::AtMost(CPU_RATIO_MAX)))?;
    report.add(&line("cpu_per_reconnect", "ms", |figures| &figures.reconnect.cpu_ms))?;
    report.add(&line("cpu_per_reconnect_at_once", "ms", |figures| &figures.reconnect_at_once.cpu_ms))?;
    let database = |name, spent: Spent| Line::new("openvpn", name, median(spent.descendants_cpu_ms), "ms");
    report.add(&database("database_cpu_per_handshake", cloudlink.connect))?;
    report.add(&database("database_cpu_per_reconnect", cloudlink.reconnect))?;
    report.add(&database("database_cpu_per_reconnect_at_once", cloudlink.reconnect_at_once))
}

/// What one server showed.
#[derive(Default)]
struct Figures {
    memory_kb: Vec<f64>,
    connect: Spent,
    reconnect: Spent,
    reconnect_at_once: Spent,
}

/// Processor time for each client, one figure a round.
#[derive(Default)]
struct Spent {
    cpu_ms: Vec<f64>,
    /// Of what the server started: its database.
    descendants_cpu_ms: Vec<f64>,
}

impl Figures {
    async fn round(&mut self, server: &Server, site: &Arc<Site>, fleet: &Arc<Fleet>) -> Result<()> {
        // Memory of clients that are gone is used again, so it shows in the first round only.
        let is_first = self.memory_kb.is_empty();
        if is_first {
            let warm_up = CLIENTS..CLIENTS + WARM_UP;
            Swarm::connect(&server.target()?, fleet, Protocol::OpenVpn, warm_up, DIALLING).await?.stop().await;
            sleep(SETTLE).await;
        }
        let memory = server.process.memory_bytes()?;
        let mut clients = self.connect.spend(server, Clients::start(site, server, CLIENTS, PACE)).await?;
        if is_first {
            sleep(SETTLE).await;
            let grown = server.process.memory_bytes()?.saturating_sub(memory);
            #[expect(clippy::cast_precision_loss, reason = "a count of bytes, to be shown with three digits")]
            self.memory_kb.push(grown as f64 / CLIENTS as f64 / 1000.0);
        }
        self.reconnect.spend(server, clients.reconnect(PACE)).await?;
        self.reconnect_at_once.spend(server, clients.reconnect(NO_PAUSE)).await?;
        drop(clients);
        sleep(AFTERMATH).await;
        Ok(())
    }
}

impl Spent {
    async fn spend<T>(&mut self, server: &Server, work: impl Future<Output = Result<T>>) -> Result<T> {
        let process = server.process;
        let (cpu, descendants_cpu) = (process.cpu()?, process.descendants_cpu()?);
        let done = work.await?;
        sleep(AFTERMATH).await;
        let each = u32::try_from(CLIENTS)?;
        let ms = |spent: Duration| (spent / each).as_secs_f64() * 1000.0;
        self.cpu_ms.push(ms(process.cpu()?.saturating_sub(cpu)));
        self.descendants_cpu_ms.push(ms(process.descendants_cpu()?.saturating_sub(descendants_cpu)));
        Ok(done)
    }
}
