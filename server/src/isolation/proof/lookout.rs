//! Where probes' packets are looked out for while a round runs, and what was seen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::mark::{Mark, Recognised, What, syn_port};
use crate::tunnel::plane::destination;
use crate::tunnel::slice::Addresses;

/// What of one attempt is kept in words; all of it is counted.
const NOTES_MAX: usize = 3;

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At the probe of this number.
    Device(usize),
    /// At the stand-in of the Internet and of another node.
    Outside,
    /// On its way out of the kernel into a tunnel, where the driver's wall held it.
    Wall,
    /// At a port of the node.
    Listener,
}

impl Place {
    const fn name(self) -> &'static str {
        match self {
            Self::Device(0) => "at the first device",
            Self::Device(_) => "at the second device",
            Self::Outside => "outside",
            Self::Wall => "at the driver's wall, past the kernel's",
            Self::Listener => "at a port of the node",
        }
    }

    /// Whether this can be of an attempt, seen here. The kernel shows itself to the neighbours of a stand-in whenever it likes:
    /// when its link comes up, or when somebody has it do so.
    const fn tells_of(self, what: What) -> bool {
        !matches!((self, what), (Self::Outside | Self::Listener, What::Neighbour))
    }
}

/// What was seen of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Connections that were accepted, and echoes.
    pub(super) served: u32,
    /// Whatever else.
    pub(super) other: u32,
    pub(super) notes: Vec<String>,
}

/// When, by the opening's course, a connection of the node's own was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Before,
    Open,
    After,
}

/// A first segment of the node's own that the kernel let out to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Knock {
    pub(super) phase: Phase,
    pub(super) device: usize,
    pub(super) is_ipv4: bool,
    /// It came out of the tunnel: the driver let it through as well.
    pub(super) has_arrived: bool,
}

/// What the node's own connections mean for now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) port: u16,
    pub(super) devices: [Addresses; 2],
    pub(super) phase: Phase,
}

/// What was seen in a round.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    pub(super) seen: HashMap<u16, Seen>,
    pub(super) knocks: HashMap<Knock, u32>,
}

/// Shared by all who look out. Bounded by the number of attempts, whatever comes.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    is_watching: AtomicBool,
    watch: Mutex<Option<Watch>>,
}

#[derive(Debug)]
struct Watch {
    mark: Mark,
    attempts: usize,
    opening: Option<Expected>,
    sightings: Sightings,
}

impl Lookout {
    /// Begins a round of so many attempts.
    pub(super) fn begin(&self, mark: Mark, attempts: usize) {
        *self.watch() = Some(Watch { mark, attempts, opening: None, sightings: Sightings::default() });
        self.is_watching.store(true, Ordering::Release);
    }

    /// Says what the node's own connections to a port of devices mean from now on.
    pub(super) fn expect(&self, expected: Expected) {
        if let Some(watch) = self.watch().as_mut() {
            watch.opening = Some(expected);
        }
    }

    /// How often a device was reached in this phase so far.
    pub(super) fn knocks(&self, knock: Knock) -> u32 {
        self.watch().as_ref().and_then(|watch| watch.sightings.knocks.get(&knock).copied()).unwrap_or(0)
    }

    /// Whether something was seen of the attempt already.
    pub(super) fn has_seen(&self, attempt: u16) -> bool {
        self.watch().as_ref().is_some_and(|watch| watch.sightings.seen.contains_key(&attempt))
    }

    /// Ends the round.
    pub(super) fn end(&self) -> Sightings {
        self.is_watching.store(false, Ordering::Release);
        self.watch().take().map(|watch| watch.sightings).unwrap_or_default()
    }

    /// Looks at a packet. Says what it was, if it has to do with the round.
    pub(super) fn see(&self, place: Place, packet: &[u8]) -> Option<Recognised> {
        if !self.is_watching.load(Ordering::Acquire) {
            return None;
        }
        let mut watch = self.watch();
        let watch = watch.as_mut()?;
        let Some(found) = watch.mark.recognise(packet).filter(|found| place.tells_of(found.what)) else {
            watch.knock(place, packet);
            return None;
        };
        watch.note(place, found)
    }

    /// Looks at what a port of the node was sent: without the headers.
    pub(super) fn see_payload(&self, payload: &[u8]) {
        if !self.is_watching.load(Ordering::Acquire) {
            return;
        }
        if let Some(watch) = self.watch().as_mut()
            && let Some(found) = watch.mark.find(payload, What::Arrived)
        {
            watch.note(Place::Listener, found);
        }
    }

    fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        // Consistent after each statement.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn note(&mut self, place: Place, found: Recognised) -> Option<Recognised> {
        if usize::from(found.attempt) >= self.attempts {
            return None;
        }
        let seen = self.sightings.seen.entry(found.attempt).or_default();
        match found.what {
            What::SynAck | What::EchoReply => seen.served = seen.served.saturating_add(1),
            What::Arrived | What::Reset | What::Error | What::Neighbour | What::Answer => {
                seen.other = seen.other.saturating_add(1);
            }
        }
        if seen.notes.len() < NOTES_MAX {
            let port = found.port.map(|port| format!(" (port {port})")).unwrap_or_default();
            seen.notes.push(format!("{} {}{port}", found.what.name(), place.name()));
        }
        Some(found)
    }

    fn knock(&mut self, place: Place, packet: &[u8]) {
        let Some(Expected { port, devices, phase }) = self.opening else { return };
        if syn_port(packet) != Some(port) {
            return;
        }
        let has_arrived = matches!(place, Place::Device(_));
        let to = destination(packet);
        for (device, addresses) in devices.iter().enumerate() {
            let is_ipv4 = to == Some(addresses.ipv4.into());
            if is_ipv4 || to == Some(addresses.ipv6.into()) {
                let count = self.sightings.knocks.entry(Knock { phase, device, is_ipv4, has_arrived }).or_default();
                *count = count.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::super::packet::Datagram;
    use super::*;

    fn probe(mark: &Mark, attempt: u16) -> Vec<u8> {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        Datagram::udp(at("100.64.0.2:1"), at("100.64.0.3:2"), &mark.payload(attempt)).packet()
    }

    #[test]
    fn what_is_seen_is_counted_within_bounds() {
        let lookout = Lookout::default();
        let mark = Mark::random();
        assert_eq!(lookout.see(Place::Device(1), &probe(&mark, 0)), None, "no round runs");
        lookout.begin(mark.clone(), 2);
        for _ in 0..100 {
            lookout.see(Place::Device(1), &probe(&mark, 1));
        }
        assert_eq!(lookout.see(Place::Device(1), &probe(&mark, 2)), None, "there is no such attempt");
        lookout.see(Place::Device(1), &probe(&Mark::random(), 0));
        lookout.see_payload(&mark.payload(0));
        let sightings = lookout.end();
        assert_eq!((sightings.seen[&1].other, sightings.seen[&1].notes.len()), (100, NOTES_MAX));
        assert_eq!(sightings.seen[&0].notes, ["arrived at a port of the node"]);
        assert_eq!(sightings.seen.len(), 2);
        assert_eq!(lookout.see(Place::Device(1), &probe(&mark, 0)), None, "the round is over");
    }

    #[test]
    fn a_neighbour_that_shows_itself_outside_is_of_no_attempt() {
        let lookout = Lookout::default();
        lookout.begin(Mark::random().with_neighbour(Some(1)), 2);
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let shown = Datagram::icmp_raw(at("2001:db8::1"), at("ff02::1"), 136, [0x20, 0, 0, 0], &[0; 16]).packet();
        assert_eq!(lookout.see(Place::Outside, &shown), None);
        for place in [Place::Wall, Place::Device(0)] {
            let found = Some(Recognised { attempt: 1, what: What::Neighbour, port: None });
            assert_eq!(lookout.see(place, &shown), found, "there it is an answer");
        }
        assert_eq!(lookout.end().seen[&1].other, 2);
    }

    #[test]
    fn connections_of_the_node_are_told_by_phase_device_and_family() {
        let lookout = Lookout::default();
        lookout.begin(Mark::new([7; 12], 1, 1), 1);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let device = |ipv4: &str, ipv6: &str| Addresses { ipv4: ipv4.parse().unwrap(), ipv6: ipv6.parse().unwrap() };
        let devices = [device("100.64.0.2", "fd00::2"), device("100.64.0.3", "fd00::3")];
        let expect = |port, phase| lookout.expect(Expected { port, devices, phase });
        let syn = Datagram::syn(at("[fd00::1]:9"), at("[fd00::2]:50000"), 7).packet();
        lookout.see(Place::Device(0), &syn);
        expect(50_001, Phase::Before);
        lookout.see(Place::Device(0), &syn);
        expect(50_000, Phase::Open);
        lookout.see(Place::Device(0), &syn);
        lookout.see(Place::Wall, &Datagram::syn(at("100.64.0.1:9"), at("100.64.0.3:50000"), 7).packet());
        lookout.see(Place::Wall, &Datagram::syn(at("100.64.0.1:9"), at("100.64.0.4:50000"), 7).packet());
        let knock = Knock { phase: Phase::Open, device: 0, is_ipv4: false, has_arrived: true };
        assert_eq!(lookout.knocks(knock), 1);
        let stopped = Knock { phase: Phase::Open, device: 1, is_ipv4: true, has_arrived: false };
        assert_eq!(lookout.end().knocks, HashMap::from([(knock, 1), (stopped, 1)]));
    }
}
