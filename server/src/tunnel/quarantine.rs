//! What the kernel is told of quarantine: the addresses of the tunnels whose devices are in it. The driver's wall knows by itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::DeviceId;

use super::Tunnels;
use crate::isolation::IsolationError;

/// What the kernel was told, and who tells it.
#[derive(Debug, Default)]
pub(super) struct Told {
    hosts: Mutex<HashMap<u32, Telling>>,
    /// Held while the kernel is told of one host, so that there is one at a time. Telling takes seconds when the kernel's program
    /// hangs: whoever has nothing to tell does not wait for it.
    turn: tokio::sync::Mutex<()>,
}

/// Of a host whose addresses the kernel holds for quarantined, or may, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Telling {
    /// The look that had begun last.
    look: u64,
    is_certain: bool,
}

/// What a look has to tell, one after the other.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    begin: Vec<u32>,
    end: Vec<u32>,
}

impl Told {
    /// What is left to tell after a look, which found these hosts. From now on whoever gets one of their addresses waits for it.
    fn plan(&self, look: u64, found: &HashSet<u32>) -> Plan {
        let mut hosts = self.hosts();
        for host in found {
            hosts.entry(*host).or_insert(Telling { look, is_certain: false });
        }
        let begin = found.iter().copied().filter(|host| hosts.get(host).is_some_and(|told| !told.is_certain)).collect();
        let end = hosts.iter().filter(|(host, told)| told.is_before(look) && !found.contains(host));
        Plan { begin, end: end.map(|(host, _)| *host).collect() }
    }

    /// Something if the kernel may hold the host's addresses for quarantined, now or soon.
    fn of(&self, host: u32) -> Option<Telling> {
        self.hosts().get(&host).copied()
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<u32, Telling>> {
        // Consistent after each statement.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Telling {
    /// What was told since a look began is of a tunnel that is about to come up.
    const fn is_before(self, look: u64) -> bool {
        self.look < look
    }
}

impl Tunnels {
    /// Tells the kernel what holds for an address, before a tunnel gets it.
    pub(super) async fn announce(&self, host: u32, is_quarantined: bool) -> Result<(), IsolationError> {
        if !is_quarantined && self.told.of(host).is_none() {
            return Ok(());
        }
        let _turn = self.told.turn.lock().await;
        // If it is not in quarantine, another device had it, or it was; somebody else may have said so meanwhile.
        if is_quarantined || self.told.of(host).is_some() { self.tell(host, is_quarantined).await } else { Ok(()) }
    }

    /// Keeps to what a look at the database has found, in the driver and then in the kernel.
    pub(crate) async fn quarantine(&self, look: u64, devices: &[DeviceId]) -> Result<(), IsolationError> {
        for (owner, is_quarantined) in self.plane.set_quarantine(look, devices) {
            tracing::info!(device = %owner.device, is_quarantined, "quarantine of a device with a tunnel has changed");
        }
        let Plan { begin, end } = self.told.plan(look, &self.plane.quarantined_hosts());
        // A turn for each, so that a tunnel that comes up waits for one of them. What it has told meanwhile is newer.
        for host in begin {
            let _turn = self.told.turn.lock().await;
            if self.told.of(host).is_some_and(|told| !told.is_certain) {
                self.tell(host, true).await?;
            }
        }
        for host in end {
            let _turn = self.told.turn.lock().await;
            if self.told.of(host).is_some_and(|told| told.is_before(look)) {
                self.tell(host, false).await?;
            }
        }
        Ok(())
    }

    /// To be called with the turn held. What fails, or is given up, leaves the host as one of which nothing is certain: the next
    /// look tells it again.
    async fn tell(&self, host: u32, is_quarantined: bool) -> Result<(), IsolationError> {
        let Some(addresses) = self.plane.slice().addresses(host) else { return Ok(()) };
        let look = self.plane.looks_at_quarantine();
        self.told.hosts().insert(host, Telling { look, is_certain: false });
        self.isolation.set_quarantine(addresses, is_quarantined).await?;
        if is_quarantined {
            let look = self.plane.looks_at_quarantine();
            self.told.hosts().insert(host, Telling { look, is_certain: true });
        } else {
            self.told.hosts().remove(&host);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_an_address_of_one_in_quarantine_has_to_wait() {
        let told = Told::default();
        assert_eq!(told.plan(1, &HashSet::from([5])), Plan { begin: vec![5], end: vec![] });
        // The kernel is not told yet, and whoever gets the address from now on waits until it is, and takes it back.
        assert!(told.of(5).is_some());
        assert_eq!(told.of(6), None);
        // It could not be told: the next look tries again.
        assert_eq!(told.plan(2, &HashSet::from([5])).begin, [5]);
        told.hosts().insert(5, Telling { look: 2, is_certain: true });
        assert_eq!(told.plan(3, &HashSet::from([5])), Plan { begin: vec![], end: vec![] });
        assert_eq!(told.plan(3, &HashSet::new()), Plan { begin: vec![], end: vec![5] });
    }

    #[test]
    fn what_was_told_since_a_look_began_stays() {
        let told = Told::default();
        told.hosts().insert(5, Telling { look: 2, is_certain: true });
        assert_eq!(told.plan(2, &HashSet::new()).end, [0_u32; 0]);
        assert_eq!(told.plan(3, &HashSet::new()).end, [5]);
    }
}
