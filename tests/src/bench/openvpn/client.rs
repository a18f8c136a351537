//! Many stock clients at one site.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::interval;

use super::server::Server;
use crate::netns::Site;
use crate::openvpn::{Client, Tunnel};

/// Clients that run until they are dropped.
#[derive(Debug)]
pub(super) struct Clients {
    clients: Vec<Client>,
    /// How often each has had a tunnel.
    connects: usize,
    _directory: TempDir,
}

impl Clients {
    /// Starts clients of the first so many devices, one after each pause. Their tunnels have interfaces, but no addresses: all of them
    /// are on one host, which could not route for so many.
    pub(super) async fn start(site: &Arc<Site>, server: &Server, count: usize, pause: Duration) -> Result<Self> {
        let directory = tempfile::tempdir().context("no directory for the clients")?;
        let mut clients = Vec::with_capacity(count);
        let mut pace = interval(pause);
        for device in 0..count {
            pace.tick().await;
            let profile = ["ifconfig-noexec", "route-noexec", "persist-tun", "persist-key", "connect-retry 1 1"]
                .into_iter()
                .fold(server.profile(device)?, crate::openvpn::Profile::with);
            clients.push(Client::start(site, directory.path(), &format!("{}-{device}", server.name), &profile)?);
        }
        let mut started = Self { clients, connects: 1, _directory: directory };
        started.are_up().await?;
        Ok(started)
    }

    /// Lets all of them cut their connections, one after each pause, and come again a second later.
    pub(super) async fn reconnect(&mut self, pause: Duration) -> Result<()> {
        let mut pace = interval(pause);
        for client in &mut self.clients {
            pace.tick().await;
            client.program().signal(Signal::SIGUSR1)?;
        }
        self.connects += 1;
        self.are_up().await
    }

    async fn are_up(&mut self) -> Result<()> {
        for client in &mut self.clients {
            let _: Tunnel = client.is_up(self.connects).await?;
        }
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // All at once: each is waited for when it is dropped itself.
        for client in &mut self.clients {
            let _ = client.program().signal(Signal::SIGTERM);
        }
    }
}
