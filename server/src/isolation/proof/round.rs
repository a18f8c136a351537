//! One round: the attempts are made, what is seen of them is gathered, and the outcome follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::attempt::{self, Attempt, Kind, Map, Trick, Way};
use super::lookout::{Knock, Lookout, Phase, Sightings};
use super::mark::Mark;
use super::node::{self, Listener, Listening};
use super::opening::Opening;
use super::outside::{INTERNET, OtherNode, Outside};
use super::probe::Probe;
use crate::isolation::Isolation;
use crate::model::proof::{KindResult, Outcome};
use crate::tunnel::plane::Plane;
use crate::tunnel::slice::Addresses;

/// Ports of one round, but for those that something listens on. After [`PARTS`] rounds each was tried.
const PART_PORTS: u32 = 4_096;
pub(super) const PARTS: u32 = (PORTS_ALL + 1) / PART_PORTS;
const PORTS_ALL: u32 = 65_535;
/// Packets that are sent at once, and how long to wait for the next ones: nobody is to notice. More of them when all ports are
/// tried, for which somebody waits.
const BURST_PACKETS: usize = 128;
const BURST_PACKETS_ALL: usize = 512;
const PAUSE: Duration = Duration::from_millis(2);
/// How long probes may take to have their tunnels.
const UP_WITHIN: Duration = Duration::from_secs(5);
/// How long what must work may take, after everything else.
const SERVED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// After the last answer: for those that come late.
const SETTLE: Duration = Duration::from_millis(150);
/// How long the watch has to find what is wrong with the rules, when something got past them: it finds it much sooner.
const FOUND_WITHIN: Duration = Duration::from_secs(1);
/// Ports of the opening come from here on.
const OPENING_PORT_FIRST: u16 = 32_768;
/// What of one kind is told in words.
const SEEN_MAX: usize = 5;

/// What a round is made with.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) plane: &'a Plane,
    pub(super) isolation: &'a Arc<Isolation>,
    pub(super) lookout: &'a Arc<Lookout>,
    pub(super) probes: &'a [Probe; 2],
    pub(super) outside: &'a Outside,
    pub(super) listener: &'a Listener,
    pub(super) other_node: Option<OtherNode>,
    pub(super) link_port: u16,
}

/// Which ports a round tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that something listens on, and the part of this number of all.
    Part(u32),
    All,
}

/// What came of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) attempts: u32,
    pub(super) results: Vec<KindResult>,
}

impl Verdict {
    /// The attempts could not be made.
    pub(super) fn impossible(reason: String) -> Self {
        Self { outcome: Outcome::Failed, attempts: 0, results: vec![unmade(reason)] }
    }

    /// Somebody changed the kernel's rules in the middle of the round. That is a drift, which was found and repaired; what got
    /// past those rules meanwhile, and was held by the driver's wall, says nothing of what is declared.
    fn disturbed(self) -> Self {
        let mut results = self.results;
        results.push(unmade("the kernel's rules were not as declared for a moment of the round".to_owned()));
        Self { outcome: Outcome::Failed, results, ..self }
    }

    /// What went wrong, in words.
    pub(super) fn wrong(&self) -> Vec<String> {
        let wrong = self.results.iter().filter(|result| result.wrong > 0);
        wrong
            .map(|result| {
                format!("{}: {} of {}: {}", result.kind, result.wrong, result.attempts, result.seen.join("; "))
            })
            .collect()
    }
}

/// What is told of a round that says nothing.
fn unmade(reason: String) -> KindResult {
    KindResult { kind: "round".to_owned(), must: POSSIBLE.to_owned(), attempts: 1, wrong: 1, seen: vec![reason] }
}

const LOST: &str = "a device lost its tunnel in the middle of the round";
const POSSIBLE: &str = "possible";
const REFUSED: &str = "refused";

/// Makes a round.
pub(super) async fn run(stage: &Stage<'_>, scope: Scope) -> Verdict {
    match attempt_all(stage, scope).await {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::impossible(reason),
    }
}

async fn attempt_all(stage: &Stage<'_>, scope: Scope) -> Result<Verdict, String> {
    let deadline = Instant::now() + UP_WITHIN;
    let mut tunnels = [None, None];
    for (tunnel, (probe, name)) in tunnels.iter_mut().zip(stage.probes.iter().zip(["first", "second"])) {
        let up = probe.is_up(deadline).await;
        *tunnel = Some(up.map_err(|reason| format!("the {name} device has no tunnel: {reason}"))?);
    }
    let [Some(first), Some(second)] = tunnels else { return Err("the devices have no addresses".to_owned()) };
    let devices = [first.addresses, second.addresses];

    let listening = Listening::read().map_err(|error| format!("what listens on this node cannot be read: {error}"))?;
    let map = map(stage, devices, &listening);
    let attempts = attempt::list(&map);
    let mark = Mark::random().with_neighbour(attempt::neighbour_asked_past_the_wall(&attempts));
    stage.lookout.begin(mark.clone(), attempts.len());
    let _ended = Ending(stage.lookout);

    let port = OPENING_PORT_FIRST | u16::try_from(mark.sequence & 0x7fff).expect("fifteen bits");
    let Stage { isolation, plane, lookout, .. } = *stage;
    let opening = Opening { isolation, plane, lookout, devices, port };
    let ports = Scan::new(scope, &listening, &map);
    let trust = isolation.trust();
    let [one, other] = stage.probes;
    let opened = tokio::select! {
        (opened, ()) = async { tokio::join!(opening.run(), send_all(stage, &attempts, &mark, &ports)) } => opened,
        () = one.lost(first) => return Err(LOST.to_owned()),
        () = other.lost(second) => return Err(LOST.to_owned()),
    };
    opened?;
    // What is lost in between was not tried, though nothing of it was seen.
    if !one.is_still(first) || !other.is_still(second) {
        return Err(LOST.to_owned());
    }
    let (verdict, passed) = judge(&attempts, &ports, &stage.lookout.end());
    let is_disturbed = passed == Passed::KernelsWall && has_changed(isolation, trust).await;
    Ok(if is_disturbed { verdict.disturbed() } else { verdict })
}

/// Whether the rules were found to be otherwise than declared since then.
async fn has_changed(isolation: &Isolation, trust: Option<u64>) -> bool {
    let changed = async {
        while trust.is_some() && isolation.trust() == trust {
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(FOUND_WITHIN, changed).await.is_ok()
}

/// What got through of what must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Passed {
    Nothing,
    /// It was not tried past the driver's wall, or was held there.
    KernelsWall,
    BothWalls,
}

impl Passed {
    const fn of(way: Way) -> Self {
        match way {
            Way::Tunnel(_) => Self::BothWalls,
            Way::Kernel(_) | Way::Outside | Way::Node => Self::KernelsWall,
        }
    }
}

/// However a round ends, nobody goes on looking.
struct Ending<'a>(&'a Lookout);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn map(stage: &Stage<'_>, devices: [Addresses; 2], listening: &Listening) -> Map {
    let slice = stage.plane.slice();
    let vacant = slice.addresses(slice.hosts_max()).filter(|vacant| stage.plane.owner(vacant.ipv4.into()).is_none());
    Map {
        devices,
        gateway: slice.gateway(),
        link_port: stage.link_port,
        vacant: vacant.filter(|vacant| !devices.contains(vacant)),
        broadcast: slice.ipv4().broadcast(),
        node: node::addresses(slice.gateway()),
        other_node: stage.other_node.map(|other| other.there),
        internet: INTERNET,
        listener: stage.listener.ports,
        listening: listening.tcp.iter().copied().collect(),
    }
}

/// The ports that a round tries on the gateway's address.
#[derive(Debug)]
struct Scan {
    tcp: Vec<u16>,
    udp: Vec<u16>,
    burst_packets: usize,
}

impl Scan {
    fn new(scope: Scope, listening: &Listening, map: &Map) -> Self {
        let part = part(scope);
        let with = |listening: &BTreeSet<u16>, without: Option<u16>| {
            let ports: BTreeSet<u16> = listening.iter().copied().chain(part.iter().copied()).collect();
            ports.into_iter().filter(|port| Some(*port) != without).collect()
        };
        let mut udp: Vec<u16> = with(&listening.udp, None);
        udp.extend([map.listener.ipv4, map.listener.ipv6]);
        udp.sort_unstable();
        udp.dedup();
        let burst_packets = if scope == Scope::All { BURST_PACKETS_ALL } else { BURST_PACKETS };
        Self { tcp: with(&listening.tcp, Some(map.link_port)), udp, burst_packets }
    }

    fn ports(&self, trick: Trick) -> &[u16] {
        if trick == Trick::ScanTcp {
            &self.tcp
        } else if trick == Trick::ScanUdp {
            &self.udp
        } else {
            &[]
        }
    }
}

fn part(scope: Scope) -> Vec<u16> {
    let range = match scope {
        Scope::All => 1..=PORTS_ALL,
        Scope::Part(number) => {
            let first = number % PARTS * PART_PORTS;
            first.max(1)..=(first + PART_PORTS - 1).min(PORTS_ALL)
        }
    };
    range.filter_map(|port| u16::try_from(port).ok()).collect()
}

/// Sends everything, a little at a time, and then waits for what must be answered.
async fn send_all(stage: &Stage<'_>, attempts: &[Attempt], mark: &Mark, ports: &Scan) {
    let (last, first): (Vec<_>, Vec<_>) = (0..).zip(attempts).partition(|(_, attempt)| attempt.kind.must_work());
    for (number, attempt) in first {
        let scanned = ports.ports(attempt.trick);
        if scanned.is_empty() {
            send(stage, attempt.way, attempt.packets(mark, number)).await;
            continue;
        }
        for ports in scanned.chunks(ports.burst_packets) {
            let packets = ports.iter().map(|port| attempt.scan(mark, number, *port)).collect();
            send(stage, attempt.way, packets).await;
            sleep(PAUSE).await;
        }
    }
    for (number, attempt) in &last {
        if attempt.way == Way::Node {
            say(attempt, mark, *number).await;
        } else {
            send(stage, attempt.way, attempt.packets(mark, *number)).await;
        }
    }
    let served = async {
        while !last.iter().all(|(number, _)| stage.lookout.has_seen(*number)) {
            sleep(LOOK_EVERY).await;
        }
    };
    let _ = timeout(SERVED_WITHIN, served).await;
    sleep(SETTLE).await;
}

/// What the node says by a socket of its own.
async fn say(attempt: &Attempt, mark: &Mark, number: u16) {
    let (Trick::Udp(port), to) = (attempt.trick, attempt.destination) else { return };
    let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    // What is not sent is not seen, and told as that.
    if let Ok(socket) = UdpSocket::bind(SocketAddr::new(any, 0)).await {
        let _ = socket.send_to(&mark.payload(number), SocketAddr::new(to, port)).await;
    }
}

async fn send(stage: &Stage<'_>, way: Way, packets: Vec<Vec<u8>>) {
    match way {
        Way::Tunnel(number) => stage.probes[number].send(packets).await,
        Way::Kernel(_) => packets.iter().for_each(|packet| {
            stage.isolation.injects(1);
            // What the kernel does not take arrives nowhere; what must work shows whether it takes anything.
            let _ = stage.plane.inject(packet);
        }),
        Way::Outside => packets.iter().for_each(|packet| {
            let _ = stage.outside.send(packet);
        }),
        Way::Node => {}
    }
}

/// What follows from what was seen.
fn judge(attempts: &[Attempt], ports: &Scan, sightings: &Sightings) -> (Verdict, Passed) {
    let mut kinds: BTreeMap<Kind, KindResult> = BTreeMap::new();
    let mut passed = Passed::Nothing;
    for (number, attempt) in (0_u16..).zip(attempts) {
        let seen = sightings.seen.get(&number);
        let is_right = match (attempt.kind, attempt.kind.must_work()) {
            (Kind::StandIn, _) => seen.is_some(),
            (_, true) => seen.is_some_and(|seen| seen.served > 0),
            (_, false) => seen.is_none(),
        };
        let made = u32::try_from(ports.ports(attempt.trick).len()).unwrap_or(u32::MAX).max(1);
        let wrong = match (is_right, seen) {
            (true, _) => 0,
            (false, Some(seen)) if !attempt.kind.must_work() => (seen.served + seen.other).clamp(1, made),
            (false, _) => 1,
        };
        let words = || match seen {
            Some(seen) => format!("{}: {}", attempt.describe(), seen.notes.join(", ")),
            None => format!("{}: nothing came back", attempt.describe()),
        };
        add(&mut kinds, attempt.kind, made, wrong, words);
        if wrong > 0 && !attempt.kind.must_work() {
            passed = passed.max(Passed::of(attempt.way));
        }
    }
    for is_ipv4 in [true, false] {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        let count = |phase, device, has_arrived| {
            sightings.knocks.get(&Knock { phase, device, is_ipv4, has_arrived }).copied().unwrap_or(0)
        };
        let was_reached = count(Phase::Open, 0, true) > 0;
        let is_wrong = u32::from(!was_reached);
        add(&mut kinds, Kind::Opening, 1, is_wrong, || {
            format!("{family}: the node did not reach the open port in time")
        });
        let closed = [(Phase::Before, 0), (Phase::Before, 1), (Phase::Open, 1), (Phase::After, 0)];
        // What was let out while the port was open, and did not arrive then, may still be under way: what is seen afterwards
        // can be that, and tells nothing of the closed port.
        let judged = closed.into_iter().filter(|(phase, _)| was_reached || *phase != Phase::After);
        for (phase, device) in judged {
            let (arrived, held) = (count(phase, device, true), count(phase, device, false));
            passed = passed.max(match (arrived, held) {
                (0, 0) => Passed::Nothing,
                (0, _) => Passed::KernelsWall,
                _ => Passed::BothWalls,
            });
            let is_wrong = u32::from(arrived + held > 0);
            let words = || format!("{family}: the node reached a port of device {} ({phase:?})", device + 1);
            add(&mut kinds, Kind::Closed, 1, is_wrong, words);
        }
    }
    let has_failed = kinds.iter().any(|(kind, result)| kind.must_work() && result.wrong > 0);
    let outcome = match (passed, has_failed) {
        (Passed::KernelsWall | Passed::BothWalls, _) => Outcome::Leak,
        (Passed::Nothing, true) => Outcome::Failed,
        (Passed::Nothing, false) => Outcome::Proven,
    };
    let results: Vec<_> = kinds.into_values().collect();
    (Verdict { outcome, attempts: results.iter().map(|result| result.attempts).sum(), results }, passed)
}

fn add(kinds: &mut BTreeMap<Kind, KindResult>, kind: Kind, attempts: u32, wrong: u32, words: impl FnOnce() -> String) {
    let result = kinds.entry(kind).or_insert_with(|| KindResult {
        kind: kind.name().to_owned(),
        must: if kind.must_work() { POSSIBLE } else { REFUSED }.to_owned(),
        attempts: 0,
        wrong: 0,
        seen: Vec::new(),
    });
    result.attempts += attempts;
    result.wrong += wrong;
    if wrong > 0 && result.seen.len() < SEEN_MAX {
        result.seen.push(words());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these connections alone.
    fn judged(knocks: &[Knock]) -> (Verdict, Passed) {
        let sightings = Sightings { knocks: knocks.iter().map(|knock| (*knock, 1)).collect(), ..Sightings::default() };
        judge(&[], &Scan { tcp: Vec::new(), udp: Vec::new(), burst_packets: 1 }, &sightings)
    }

    #[test]
    fn what_came_too_late_through_an_open_port_is_no_leak_of_the_closed_one() {
        let knock = |phase, is_ipv4, has_arrived| Knock { phase, device: 0, is_ipv4, has_arrived };
        let open = [true, false].map(|is_ipv4| knock(Phase::Open, is_ipv4, true));
        assert_eq!(judged(&open).0.outcome, Outcome::Proven);
        for has_arrived in [true, false] {
            let late = knock(Phase::After, true, has_arrived);
            // The first family's connection was not seen while the port was open.
            let (verdict, passed) = judged(&[open[1], late]);
            assert_eq!((verdict.outcome, passed), (Outcome::Failed, Passed::Nothing), "{verdict:#?}");
            // It was, so this is another one.
            assert_eq!(judged(&[open[0], open[1], late]).0.outcome, Outcome::Leak);
            // The other family's tells nothing of this one.
            let (verdict, _) = judged(&[open[0], late]);
            assert_eq!(verdict.outcome, Outcome::Leak, "{verdict:#?}");
        }
    }

    #[test]
    fn sixteen_rounds_have_tried_every_port_once() {
        let mut ports: Vec<u16> = (0..PARTS).flat_map(|number| part(Scope::Part(number))).collect();
        assert_eq!(PARTS, 16);
        ports.sort_unstable();
        assert_eq!(ports, (1..=u16::MAX).collect::<Vec<_>>());
        assert_eq!(part(Scope::All), ports);
        assert_eq!(part(Scope::Part(16)), part(Scope::Part(0)), "and then from the beginning");
    }
}
