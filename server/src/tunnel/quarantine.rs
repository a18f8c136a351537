//! What the kernel is told of quarantine: the addresses of the tunnels whose devices are in it. The driver's wall knows by itself.

use std::collections::HashMap;

use cloudlink_proto::ids::DeviceId;
use tokio::sync::Mutex;

use super::Tunnels;
use crate::isolation::IsolationError;

/// The hosts whose addresses the kernel holds for quarantined, each with the look that had begun last when it was told. Held
/// while it is told, so that there is one at a time.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<HashMap<u32, u64>>);

impl Tunnels {
    /// Tells the kernel what holds for an address, before a tunnel gets it.
    pub(super) async fn announce(&self, host: u32, is_quarantined: bool) -> Result<(), IsolationError> {
        let mut told = self.told.0.lock().await;
        if is_quarantined {
            self.tell(&mut told, host, true).await
        } else if told.contains_key(&host) {
            // Another device had it.
            self.tell(&mut told, host, false).await
        } else {
            Ok(())
        }
    }

    /// Keeps to what a look at the database has found, in the driver and then in the kernel.
    pub(crate) async fn quarantine(&self, look: u64, devices: &[DeviceId]) -> Result<(), IsolationError> {
        for (owner, is_quarantined) in self.plane.set_quarantine(look, devices) {
            tracing::info!(device = %owner.device, is_quarantined, "quarantine of a device with a tunnel has changed");
        }
        let mut told = self.told.0.lock().await;
        let hosts = self.plane.quarantined_hosts();
        for host in &hosts {
            if !told.contains_key(host) {
                self.tell(&mut told, *host, true).await?;
            }
        }
        // What was told since this look began is of a tunnel that is about to come up.
        let over: Vec<u32> = told
            .iter()
            .filter(|(host, told_at)| **told_at < look && !hosts.contains(host))
            .map(|(host, _)| *host)
            .collect();
        for host in over {
            self.tell(&mut told, host, false).await?;
        }
        Ok(())
    }

    async fn tell(&self, told: &mut HashMap<u32, u64>, host: u32, is_quarantined: bool) -> Result<(), IsolationError> {
        let Some(addresses) = self.plane.slice().addresses(host) else { return Ok(()) };
        self.isolation.set_quarantine(addresses, is_quarantined).await?;
        if is_quarantined {
            told.insert(host, self.plane.looks_at_quarantine());
        } else {
            told.remove(&host);
        }
        Ok(())
    }
}
