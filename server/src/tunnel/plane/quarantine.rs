//! Which devices are in quarantine, as this node knows it. The database says who is; between two looks at it, a tunnel that
//! comes up brings its own answer with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::DeviceId;

#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// How many looks have begun.
    looks: u64,
    /// Each with the look that had begun last when it was said.
    devices: HashMap<DeviceId, u64>,
}

impl Quarantine {
    /// A look at the database begins.
    pub(super) fn look(&self) -> u64 {
        let mut known = self.lock();
        known.looks += 1;
        known.looks
    }

    pub(super) fn looks(&self) -> u64 {
        self.lock().looks
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().devices.is_empty()
    }

    pub(super) fn has(&self, device: DeviceId) -> bool {
        self.lock().devices.contains_key(&device)
    }

    /// A tunnel comes up, of a device that is in quarantine or not. `enter` is told what holds, and nothing changes meanwhile.
    pub(super) fn enter(&self, device: DeviceId, is_quarantined: bool, enter: impl FnOnce(bool)) {
        let mut known = self.lock();
        let look = known.looks;
        if is_quarantined {
            known.devices.insert(device, look);
        }
        enter(is_quarantined || known.devices.contains_key(&device));
    }

    /// What a look has found. `apply` is told what is new, and nothing changes meanwhile.
    pub(super) fn replace<T: Default>(
        &self,
        look: u64,
        found: &[DeviceId],
        apply: impl FnOnce(&HashMap<DeviceId, bool>) -> T,
    ) -> T {
        let mut known = self.lock();
        let found: HashSet<DeviceId> = found.iter().copied().collect();
        let mut changed = HashMap::new();
        // What was said while this look went on is newer than it.
        known.devices.retain(|device, said_at| {
            let stays = found.contains(device) || *said_at >= look;
            if !stays {
                changed.insert(*device, false);
            }
            stays
        });
        for device in found {
            if known.devices.insert(device, look).is_none() {
                changed.insert(device, true);
            }
        }
        if changed.is_empty() { T::default() } else { apply(&changed) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Consistent after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const DEVICE: DeviceId = DeviceId::from_uuid(Uuid::from_u128(1));

    fn is_quarantined(quarantine: &Quarantine) -> bool {
        let mut told = false;
        quarantine.enter(DEVICE, false, |is_quarantined| told = is_quarantined);
        told
    }

    #[test]
    fn a_look_says_who_is_in_quarantine_and_what_is_new() {
        let quarantine = Quarantine::default();
        let look = |found: &[DeviceId]| quarantine.replace(quarantine.look(), found, Clone::clone);
        assert_eq!(look(&[]), HashMap::new());
        assert_eq!(look(&[DEVICE]), HashMap::from([(DEVICE, true)]));
        assert_eq!(look(&[DEVICE]), HashMap::new());
        assert!(is_quarantined(&quarantine));
        assert_eq!(look(&[]), HashMap::from([(DEVICE, false)]));
        assert!(!is_quarantined(&quarantine));
    }

    #[test]
    fn a_tunnel_that_comes_up_during_a_look_knows_better_than_it() {
        let quarantine = Quarantine::default();
        let look = quarantine.look();
        quarantine.enter(DEVICE, true, |is_quarantined| assert!(is_quarantined));
        assert_eq!(quarantine.replace(look, &[], Clone::clone), HashMap::new());
        assert!(is_quarantined(&quarantine));
        // The next one is newer again.
        assert_eq!(quarantine.replace(quarantine.look(), &[], Clone::clone), HashMap::from([(DEVICE, false)]));
    }
}
