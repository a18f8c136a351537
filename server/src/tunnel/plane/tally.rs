//! How often each device tried what it may not, since somebody last asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::DeviceId;

use crate::metrics::TunnelDrop;

/// Devices whose tunnels have ended and whose figures nobody has fetched yet. Beyond, they are lost.
const ENDED_MAX: usize = 65_536;

/// Packets of one device, by reason, in the order of [`TunnelDrop::ATTEMPTS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops([u64; TunnelDrop::ATTEMPTS.len()]);

impl Drops {
    pub(crate) fn add(&mut self, other: &Self) {
        for (packets, more) in self.0.iter_mut().zip(other.0) {
            *packets = packets.saturating_add(more);
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, packets| sum.saturating_add(*packets))
    }

    #[cfg(test)]
    pub(crate) fn of(packets: &[(TunnelDrop, u64)]) -> Self {
        let tally = Tally::default();
        packets.iter().for_each(|(reason, packets)| tally.add(*reason, *packets));
        tally.take().unwrap_or_default()
    }

    /// The reasons for which there were any.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TunnelDrop, u64)> {
        TunnelDrop::ATTEMPTS.into_iter().zip(self.0).filter(|(_, packets)| *packets > 0)
    }
}

/// Of one tunnel.
#[derive(Debug, Default)]
pub(super) struct Tally([AtomicU32; TunnelDrop::ATTEMPTS.len()]);

impl Tally {
    /// Counts what is an attempt, and nothing else. Stops at the largest number, which nobody reaches before it is fetched.
    pub(super) fn add(&self, reason: TunnelDrop, packets: u64) {
        let Some(at) = TunnelDrop::ATTEMPTS.iter().position(|attempt| *attempt == reason) else { return };
        let packets = u32::try_from(packets).unwrap_or(u32::MAX);
        let add = |counted: u32| Some(counted.saturating_add(packets));
        let _ = self.0[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// What was counted since the last time, each packet once.
    pub(super) fn take(&self) -> Option<Drops> {
        let mut drops = Drops::default();
        for (packets, counter) in drops.0.iter_mut().zip(&self.0) {
            // A write to memory that others use is saved where nothing happened.
            if counter.load(Ordering::Relaxed) > 0 {
                *packets = counter.swap(0, Ordering::Relaxed).into();
            }
        }
        (drops.sum() > 0).then_some(drops)
    }
}

/// What was counted of tunnels that are gone.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<HashMap<DeviceId, Drops>>);

impl Ended {
    pub(super) fn add(&self, device: DeviceId, drops: &Drops) {
        let mut ended = self.lock();
        if ended.len() < ENDED_MAX || ended.contains_key(&device) {
            ended.entry(device).or_default().add(drops);
        }
    }

    pub(super) fn take(&self) -> HashMap<DeviceId, Drops> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Drops>> {
        // Consistent after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_by_reason_and_given_out_once() {
        let tally = Tally::default();
        assert_eq!(tally.take(), None);
        for (reason, packets) in
            [(TunnelDrop::Port, 2), (TunnelDrop::Source, 1), (TunnelDrop::Port, 3), (TunnelDrop::QueueFull, 9)]
        {
            tally.add(reason, packets);
        }
        let drops = tally.take().unwrap();
        assert_eq!(drops.iter().collect::<Vec<_>>(), [(TunnelDrop::Source, 1), (TunnelDrop::Port, 5)]);
        assert_eq!(drops.sum(), 6);
        assert_eq!(tally.take(), None);
        tally.add(TunnelDrop::Options, u64::MAX);
        tally.add(TunnelDrop::Options, 1);
        assert_eq!(tally.take().unwrap().sum(), u64::from(u32::MAX));
    }

    #[test]
    fn what_a_client_does_without_being_asked_is_no_attempt() {
        let tally = Tally::default();
        for reason in TunnelDrop::ALL {
            if !TunnelDrop::ATTEMPTS.contains(&reason) {
                tally.add(reason, 1);
            }
        }
        assert_eq!(tally.take(), None);
    }
}
