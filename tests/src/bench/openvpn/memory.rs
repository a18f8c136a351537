//! What thousands of idle tunnels cost a server.

use std::sync::Arc;

use anyhow::Result;

use super::handshake::MEMORY_RATIO_MAX;
use super::progress;
use super::server::Server;
use crate::bench::connect::{self, Cost};
use crate::bench::report::{Bound, Line, Report};
use crate::load::{Fleet, Protocol};

pub(super) async fn measure(servers: [&Server; 2], fleet: &Arc<Fleet>, report: &mut Report) -> Result<()> {
    let [cloudlink, stock] = servers;
    let (cost, stock_cost) = (cost(cloudlink, fleet).await?, cost(stock, fleet).await?);
    let kb = |cost: Cost| cost.memory_bytes / 1000.0;
    let memory = Line::new("openvpn", "memory_per_tunnel_10000_simulated", kb(cost), "kB");
    report.add(&memory.beside(stock.name, kb(stock_cost)).with_ratio_goal(Bound::AtMost(MEMORY_RATIO_MAX)))?;
    // Without a goal: stock clients say what a handshake costs.
    let ms = |cost: Cost| cost.cpu.as_secs_f64() * 1000.0;
    let cpu = Line::new("openvpn", "cpu_per_handshake_10000_simulated", ms(cost), "ms");
    report.add(&cpu.beside(stock.name, ms(stock_cost)))
}

async fn cost(server: &Server, fleet: &Arc<Fleet>) -> Result<Cost> {
    progress(&format!("{} simulated clients connect to {}", fleet.devices.len(), server.name));
    let (cost, swarm) = connect::measure(server.process, &server.target()?, fleet, Protocol::OpenVpn).await?;
    swarm.stop().await;
    Ok(cost)
}
