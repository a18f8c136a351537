//! What is open and who is in quarantine, as it was asked for: the kernel's sets are filled from it, and compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::policy::{FAMILY, Set, TABLE};
use crate::tunnel::slice::Addresses;

/// Openings of one node at once.
pub(super) const OPENINGS_MAX: usize = 16_384;
/// What a call of the kernel may take on top, so that an element is gone before its deadline and never after.
pub(super) const CALL_ALLOWANCE: Duration = Duration::from_millis(250);
/// The command that first adds an element that is about to be deleted needs a lifetime, which is never in force.
const PLACEHOLDER_SECONDS: u64 = 1;

/// An address and port of a device, or its address alone, in one of the sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub(super) set: Set,
    pub(super) address: IpAddr,
    /// 0 for a set of addresses alone.
    pub(super) port: u16,
}

impl Element {
    pub(super) fn opening(device: Addresses, port: u16) -> [Self; 2] {
        Self::both(device, |address| Self { set: Set::Openings, address, port })
    }

    pub(super) fn quarantine(device: Addresses) -> [Self; 2] {
        Self::both(device, |address| Self { set: Set::Quarantined, address, port: 0 })
    }

    fn both(device: Addresses, make: impl Fn(IpAddr) -> Self) -> [Self; 2] {
        [make(device.ipv4.into()), make(device.ipv6.into())]
    }

    /// Adds it for this long; nothing happens if it is there.
    pub(super) fn add(self, seconds: Option<u64>) -> Value {
        json!({"add": {"element": self.command(seconds)}})
    }

    /// Puts it in, in place of one that may be there with another lifetime.
    pub(super) fn put(self, seconds: Option<u64>) -> [Value; 3] {
        let [add, delete] = self.take();
        [add, delete, self.add(seconds)]
    }

    /// Takes it out, whether it is there or not: what was added in the same transaction can be deleted.
    pub(super) fn take(self) -> [Value; 2] {
        let placeholder = (self.set == Set::Openings).then_some(PLACEHOLDER_SECONDS);
        [self.add(placeholder), json!({"delete": {"element": self.command(None)}})]
    }

    fn command(self, seconds: Option<u64>) -> Value {
        let value = match self.set {
            Set::Openings => json!({"concat": [self.address, self.port]}),
            Set::Quarantined => json!(self.address),
        };
        let element = match seconds {
            Some(seconds) => json!({"elem": {"val": value, "timeout": seconds}}),
            None => value,
        };
        json!({"family": FAMILY, "table": TABLE, "name": self.set.name(self.address), "elem": [element]})
    }

    /// Reads an element of a listing.
    pub(super) fn read(set: Set, element: &Value) -> Option<Live> {
        let (value, expires) = match element.get("elem") {
            Some(element) => (&element["val"], element["expires"].as_u64()),
            None => (element, None),
        };
        let (address, port) = match set {
            Set::Openings => {
                let port = value["concat"].get(1)?;
                // A name, if the service has one.
                let port = port.as_u64().or_else(|| port.as_str()?.parse().ok())?;
                (value["concat"].get(0)?, u16::try_from(port).ok()?)
            }
            Set::Quarantined => (value, 0),
        };
        Some(Live { element: Self { set, address: address.as_str()?.parse().ok()?, port }, expires_seconds: expires })
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.set {
            Set::Openings if self.address.is_ipv6() => write!(f, "opening [{}]:{}", self.address, self.port),
            Set::Openings => write!(f, "opening {}:{}", self.address, self.port),
            Set::Quarantined => write!(f, "quarantine of {}", self.address),
        }
    }
}

/// An element as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) element: Element,
    /// Rounded by `nft`. Never, for an element without a lifetime.
    pub(super) expires_seconds: Option<u64>,
}

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Elements {
    openings: BTreeMap<Element, Instant>,
    quarantined: BTreeSet<Element>,
}

impl Elements {
    /// Until when; `None` for an element that stays.
    pub(super) fn remember(&mut self, element: Element, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => {
                self.openings.insert(element, deadline);
            }
            None => {
                self.quarantined.insert(element);
            }
        }
    }

    pub(super) fn forget(&mut self, element: Element) {
        self.openings.remove(&element);
        self.quarantined.remove(&element);
    }

    /// Forgets what is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.openings.retain(|_, deadline| *deadline > now);
    }

    pub(super) fn is_full(&self) -> bool {
        self.openings.len() >= OPENINGS_MAX
    }

    /// The commands that put everything into sets that are empty.
    pub(super) fn restore(&self, now: Instant) -> Vec<Value> {
        let openings = self.openings.iter().filter_map(|(element, deadline)| {
            let seconds = lifetime_seconds(*deadline, now)?;
            Some(element.add(Some(seconds)))
        });
        openings.chain(self.quarantined.iter().map(|element| element.add(None))).collect()
    }

    /// Compares with what the kernel had at some time between `before` and `after`, in words.
    pub(super) fn differences(&self, live: &[Live], before: Instant, after: Instant) -> Vec<String> {
        let mut differences = Vec::new();
        let mut seen = BTreeSet::new();
        for Live { element, expires_seconds } in live {
            seen.insert(*element);
            let is_right = match element.set {
                Set::Quarantined => self.quarantined.contains(element),
                Set::Openings => self.openings.get(element).is_some_and(|deadline| {
                    // Rounded up, as it may be there.
                    let left = deadline.saturating_duration_since(before).as_secs() + 1;
                    expires_seconds.is_some_and(|seconds| seconds <= left)
                }),
            };
            if !is_right {
                differences.push(format!("{element}: nobody asked for that, or for that long"));
            }
        }
        let lasting = |deadline: &Instant| lifetime_seconds(*deadline, after).is_some_and(|seconds| seconds > 1);
        let openings = self.openings.iter().filter(|(_, deadline)| lasting(deadline)).map(|(element, _)| element);
        let missing = openings.chain(&self.quarantined).filter(|element| !seen.contains(element));
        differences.extend(missing.map(|element| format!("{element}: missing")));
        differences
    }
}

/// What is left for an element of the kernel, in whole seconds; `None` if that is none. Less than what is left really, by as much
/// as it takes to tell the kernel.
pub(super) fn lifetime_seconds(deadline: Instant, now: Instant) -> Option<u64> {
    let seconds = deadline.saturating_duration_since(now).saturating_sub(CALL_ALLOWANCE).as_secs();
    (seconds > 0).then_some(seconds)
}
