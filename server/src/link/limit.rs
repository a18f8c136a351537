//! What strangers may cost: how many connections from one address and in total are not authenticated yet, and how fast new
//! ones come. Decided before any work is done for a connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses that are remembered. One more is refused until those that have been quiet can be forgotten.
const ADDRESSES_MAX: usize = 65_536;
/// How often quiet addresses are looked for while the memory is full: a look goes over all of it.
const FORGET_EVERY: Duration = Duration::from_millis(250);

/// What a [`Gate`] lets through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// At once, from all addresses.
    pub(crate) total_max: u32,
    /// At once, from one address.
    pub(crate) per_address_max: u32,
    /// New ones a second from one address, in the long run.
    pub(crate) per_second: u32,
    /// New ones from one address before the rate applies.
    pub(crate) burst: u32,
}

/// Counts who is inside, and how fast they come.
#[derive(Debug)]
pub(crate) struct Gate {
    allowance: Allowance,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    total: u32,
    addresses: HashMap<Source, Address>,
    forgot_at: Option<Instant>,
}

#[derive(Debug)]
struct Address {
    inside: u32,
    /// What is left of the burst.
    credit: f64,
    credited_at: Instant,
}

/// Whom connections are counted for: an IPv4 address, or an IPv6 /64, of which one customer has at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    V4(Ipv4Addr),
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl Gate {
    pub(crate) fn new(allowance: Allowance) -> Arc<Self> {
        let inside = Inside { total: 0, addresses: HashMap::new(), forgot_at: None };
        Arc::new(Self { allowance, inside: Mutex::new(inside) })
    }

    /// Lets somebody in, until the pass is dropped. `None`: there are too many, or they come too fast.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Pass> {
        let source = Source::from(address);
        let mut inside = self.lock();
        if inside.total >= self.allowance.total_max || !inside.count(source, now, self.allowance) {
            return None;
        }
        inside.total += 1;
        Some(Pass { gate: Arc::clone(self), source: Some(source) })
    }

    /// Lets somebody in whose address is not known yet, and who counts among all meanwhile.
    pub(crate) fn enter_unnamed(self: &Arc<Self>) -> Option<Unnamed> {
        let mut inside = self.lock();
        if inside.total >= self.allowance.total_max {
            return None;
        }
        inside.total += 1;
        Some(Unnamed(Pass { gate: Arc::clone(self), source: None }))
    }

    /// Those inside now.
    #[cfg(test)]
    fn total(&self) -> u32 {
        self.lock().total
    }

    fn leave(&self, source: Option<Source>) {
        let mut inside = self.lock();
        inside.total = inside.total.saturating_sub(1);
        if let Some(address) = source.and_then(|source| inside.addresses.get_mut(&source)) {
            address.inside = address.inside.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Plain numbers, consistent after each statement.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Counts one more from an address, if it may have one more.
    fn count(&mut self, source: Source, now: Instant, allowance: Allowance) -> bool {
        if !self.has_room_for(source, now, allowance) {
            return false;
        }
        let full = f64::from(allowance.burst);
        let known = self.addresses.entry(source).or_insert(Address { inside: 0, credit: full, credited_at: now });
        known.credit = known.credit_at(now, allowance);
        known.credited_at = now;
        if known.inside >= allowance.per_address_max || known.credit < 1.0 {
            return false;
        }
        known.credit -= 1.0;
        known.inside += 1;
        true
    }

    fn has_room_for(&mut self, source: Source, now: Instant, allowance: Allowance) -> bool {
        if self.addresses.len() < ADDRESSES_MAX || self.addresses.contains_key(&source) {
            return true;
        }
        if self.forgot_at.is_none_or(|at| now.duration_since(at) >= FORGET_EVERY) {
            self.forgot_at = Some(now);
            let full = f64::from(allowance.burst);
            self.addresses.retain(|_, address| address.inside > 0 || address.credit_at(now, allowance) < full);
        }
        self.addresses.len() < ADDRESSES_MAX
    }
}

impl Address {
    fn credit_at(&self, now: Instant, allowance: Allowance) -> f64 {
        let earned = now.duration_since(self.credited_at).as_secs_f64() * f64::from(allowance.per_second);
        (self.credit + earned).min(f64::from(allowance.burst))
    }
}

/// A place inside.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    /// None: it counts for no address.
    source: Option<Source>,
}

/// A place inside for somebody whose address is not known yet.
#[derive(Debug)]
pub(crate) struct Unnamed(Pass);

impl Unnamed {
    /// Counts it for an address. `None`: that one has too many, or they come too fast.
    pub(crate) fn name(self, address: IpAddr, now: Instant) -> Option<Pass> {
        let (Self(mut pass), source) = (self, Source::from(address));
        let is_counted = pass.gate.lock().count(source, now, pass.gate.allowance);
        is_counted.then(|| {
            pass.source = Some(source);
            pass
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { total_max: 4, per_address_max: 2, per_second: 1, burst: 3 };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_gets_no_more_than_its_share_and_gets_it_back() {
        let (gate, now) = (Gate::new(ALLOWANCE), Instant::now());
        let one = gate.enter(address("192.0.2.1"), now).unwrap();
        let _two = gate.enter(address("192.0.2.1"), now).unwrap();
        assert!(gate.enter(address("192.0.2.1"), now).is_none());
        assert!(gate.enter(address("::ffff:192.0.2.1"), now).is_none(), "the same address, written as IPv6");
        assert!(gate.enter(address("192.0.2.2"), now).is_some(), "another address has its own share");
        drop(one);
        assert!(gate.enter(address("192.0.2.1"), now).is_some());
    }

    #[test]
    fn all_addresses_together_get_no_more_than_the_total() {
        let (gate, now) = (Gate::new(ALLOWANCE), Instant::now());
        let passes: Vec<_> = (1..=4).filter_map(|n| gate.enter(IpAddr::from([192, 0, 2, n]), now)).collect();
        assert_eq!((passes.len(), gate.total()), (4, 4));
        assert!(gate.enter(address("192.0.2.5"), now).is_none());
        drop(passes);
        assert_eq!(gate.total(), 0);
    }

    #[test]
    fn somebody_unnamed_counts_among_all_and_once_named_for_the_address() {
        let (gate, now) = (Gate::new(ALLOWANCE), Instant::now());
        let mut unnamed: Vec<_> = (0..4).filter_map(|_| gate.enter_unnamed()).collect();
        assert_eq!((unnamed.len(), gate.total()), (4, 4), "more than one address may have");
        assert!(gate.enter_unnamed().is_none() && gate.enter(address("192.0.2.9"), now).is_none());
        let named: Vec<_> = unnamed.drain(..3).filter_map(|pass| pass.name(address("192.0.2.1"), now)).collect();
        assert_eq!((named.len(), gate.total()), (2, 3), "who was refused is gone");
        assert!(gate.enter(address("192.0.2.1"), now).is_none());
        assert!(unnamed.remove(0).name(address("192.0.2.2"), now).is_some(), "another address has its own share");
        drop(named);
        assert_eq!(gate.total(), 0);
        assert!(gate.enter(address("192.0.2.1"), now).is_some());
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let (gate, now) = (Gate::new(ALLOWANCE), Instant::now());
        let _one = gate.enter(address("2001:db8::1"), now).unwrap();
        let _two = gate.enter(address("2001:db8::2"), now).unwrap();
        assert!(gate.enter(address("2001:db8:0:0:ffff::3"), now).is_none());
        assert!(gate.enter(address("2001:db8:0:1::1"), now).is_some());
    }

    #[test]
    fn who_comes_too_fast_waits_for_the_rate() {
        let (gate, now) = (Gate::new(ALLOWANCE), Instant::now());
        for _ in 0..3 {
            assert!(gate.enter(address("192.0.2.1"), now).is_some());
        }
        assert!(gate.enter(address("192.0.2.1"), now).is_none());
        assert!(gate.enter(address("192.0.2.1"), now + Duration::from_millis(1100)).is_some());
    }

    #[test]
    fn quiet_addresses_are_forgotten_when_the_memory_is_full() {
        let allowance = Allowance { total_max: u32::MAX, ..ALLOWANCE };
        let (gate, now) = (Gate::new(allowance), Instant::now());
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            assert!(gate.enter(IpAddr::from(Ipv4Addr::from_bits(n)), now).is_some());
        }
        assert!(gate.enter(address("192.0.2.1"), now).is_none());
        let later = now + Duration::from_secs(5);
        assert!(gate.enter(address("192.0.2.1"), later).is_some());
        assert_eq!(gate.lock().addresses.len(), 1);
    }
}
