//! Background tasks of a node. Each is idempotent, takes no input, and runs by a timer; some are woken by a hint as well.
//! Several nodes may run them at once.

pub(crate) mod access;
mod deadline;
mod drop;
mod isolation;
mod link_test;
mod node;
pub(crate) mod notice;
mod opening;
pub(crate) mod presence;
mod quarantine;
mod receipt;
pub(crate) mod recording;
mod retention;
pub(crate) mod revocation;
pub(crate) mod rollout;
pub(crate) mod superseded;
pub(crate) mod support;
mod telemetry;
mod threshold;
mod ticket;
mod tunnel;

use std::sync::Arc;

use crate::cluster::Lease;
use crate::lifecycle::Shutdown;
use crate::link::{Links, configuration, dispatch};
use crate::pki::StatementSigner;
use crate::support::Support;

/// Starts every task; each ends by itself at the soft stop.
pub fn start(links: &Links, shutdown: &Shutdown) {
    shutdown.spawn_vital("dispatch", dispatch::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("configuration", configuration::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("access ends", access::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("deadline", deadline::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("presence", presence::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("superseded links", superseded::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("revocation", revocation::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("samples", telemetry::store(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("telemetry", telemetry::keep(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("thresholds", threshold::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("rollouts", rollout::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("link tests", link_test::run(links.clone(), shutdown.clone()));
    shutdown.spawn_vital("opening ends", opening::sweep(links.clone(), shutdown.clone()));
    if let Some(tickets) = links.0.tls.tickets() {
        shutdown.spawn_vital("session tickets", ticket::run(links.clone(), Arc::clone(tickets), shutdown.clone()));
    }
    if let Some(tunnels) = &links.0.tunnels {
        shutdown.spawn_vital("openings", opening::keep(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("quarantine", quarantine::run(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("device drops", drop::run(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("tunnel lease", tunnel::lease(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("tunnel cut", isolation::cut(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("tunnel traffic", tunnel::traffic(links.clone(), Arc::clone(tunnels), shutdown.clone()));
        shutdown.spawn_vital("retention", retention::run(links.clone(), tunnels.keep_days, shutdown.clone()));
        shutdown.spawn_vital("tunnel days", tunnel::days(links.clone(), Arc::clone(tunnels), shutdown.clone()));
    }
}

/// Starts the one that signs.
pub fn start_receipts(links: &Links, signer: &Arc<StatementSigner>, shutdown: &Shutdown) {
    shutdown.spawn_vital("receipts", receipt::run(links.clone(), Arc::clone(signer), shutdown.clone()));
}

/// Starts what keeps the node's place among others.
pub(crate) fn start_node(links: &Links, support: &Support, lease: &Arc<Lease>, shutdown: &Shutdown) {
    let keep = node::keep(links.clone(), support.clone(), Arc::clone(lease), shutdown.clone());
    shutdown.spawn_vital("place among nodes", keep);
}

/// Starts what watches over support sessions; it goes on until the last of them has ended.
pub fn start_support(support: &Support, shutdown: &Shutdown) {
    shutdown.spawn_vital("support sessions", support::run(support.clone()));
}
