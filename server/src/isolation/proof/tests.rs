//! Rounds against a real kernel, in a network namespace for each test: with the rules in force, and without them, where what the
//! probes try must be seen to get through.

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::net::IpAddr;
use std::process::Command;
use std::task::Poll;

use cloudlink_proto::ids::{DeviceId, TunnelId};
use cloudlink_proto::openvpn::HEADROOM;
use tokio_util::task::AbortOnDropHandle;

use super::probe::{Standing, Up};
use super::*;
use crate::config::Config;
use crate::isolation::kernel::Kernel;
use crate::isolation::policy::Policy;
use crate::model::device::probe_id;
use crate::tunnel::conn::tests::isolated::isolated_in;
use crate::tunnel::inside;
use crate::tunnel::slice::{Addresses, Slice};

const MODULE: &str = "isolation::proof::tests";
const INTERFACE: &str = "pf0";
const LINK_PORT: u16 = 80;

fn config() -> Config {
    let mut config = Config::default();
    config.tunnel.interface = INTERFACE.parse().unwrap();
    config.tunnel.queues = 2;
    config.tunnel.pool_ipv4 = "10.9.0.0/16".parse().unwrap();
    config.tunnel.slice_prefix = 24;
    config
}

fn slice() -> Slice {
    Slice::new(config().tunnel.pool_ipv4, 24, "fd12:3456:789a::/48".parse().unwrap(), 3).unwrap()
}

/// Sets what a system may be set to, whatever the tunnels' interface was set to.
fn set(settings: &[(&str, &str)]) {
    for (key, value) in settings {
        fs::write(format!("/proc/sys/net/{key}"), value).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
}

/// A node with two devices, as far as a round needs them.
struct World {
    plane: Arc<Plane>,
    isolation: Arc<Isolation>,
    lookout: Arc<Lookout>,
    probes: [Probe; 2],
    standings: [watch::Sender<Standing>; 2],
    outside: Outside,
    listener: Listener,
    other_node: Option<OtherNode>,
    /// Nobody listens there any more when they are dropped.
    link_ports: Option<[AbortOnDropHandle<()>; 2]>,
    shutdown: Shutdown,
}

impl World {
    /// With the kernel's rules in force, or without any.
    async fn new(is_enforced: bool) -> Self {
        let (config, slice) = (config(), slice());
        let isolation = if is_enforced {
            let isolation =
                Isolation::new(Policy::new(&config, &slice), Some(Kernel::find().unwrap()), Arc::new(Metrics::new()));
            isolation.apply(&*isolation.elements.lock().await).await.unwrap();
            isolation.set_rules(State::Enforced);
            Arc::new(isolation)
        } else {
            Isolation::without_kernel(&slice)
        };
        let shutdown = Shutdown::new();
        let plane = Plane::open(&config.tunnel, slice, &Metrics::new()).unwrap();
        plane.start(&shutdown);
        let gateway = slice.gateway();
        let link_ports = [IpAddr::from(gateway.ipv4), gateway.ipv6.into()].map(|address| {
            let listener = inside::listen(INTERFACE, (address, LINK_PORT).into()).unwrap();
            let serve = async move {
                loop {
                    let _ = listener.accept().await;
                }
            };
            AbortOnDropHandle::new(tokio::spawn(serve))
        });
        let lookout = Arc::new(Lookout::default());
        let witness = Arc::clone(&lookout);
        plane.set_witness(move |packet| {
            witness.see(Place::Wall, packet);
        });
        let other_node = OtherNode::find(config.tunnel.pool_ipv4, &slice, 3);
        let outside = Outside::open(INTERFACE, other_node, &lookout).unwrap();
        let listener = Listener::open(INTERFACE, &lookout).unwrap();
        let [(one, its_standing), (other, others_standing)] = [0, 1].map(|number| device(number, &plane, &lookout));
        let (probes, standings) = ([one, other], [its_standing, others_standing]);
        Self {
            plane,
            isolation,
            lookout,
            probes,
            standings,
            outside,
            listener,
            other_node,
            link_ports: Some(link_ports),
            shutdown,
        }
    }

    async fn round(&self, scope: Scope) -> Verdict {
        let stage = Stage {
            plane: &self.plane,
            isolation: &self.isolation,
            lookout: &self.lookout,
            probes: &self.probes,
            outside: &self.outside,
            listener: &self.listener,
            other_node: self.other_node,
            link_port: LINK_PORT,
        };
        round::run(&stage, scope).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.soft.cancel();
        self.shutdown.hard.cancel();
    }
}

/// A device whose tunnel ends in the plane: the session of its client is tested elsewhere. Of what it sends the driver lets pass
/// what it must, and nothing else; straight into the kernel goes what the round sends there.
fn device(number: usize, plane: &Arc<Plane>, lookout: &Arc<Lookout>) -> (Probe, watch::Sender<Standing>) {
    let host = u32::try_from(number).unwrap() + 2;
    let addresses = plane.slice().addresses(host).unwrap();
    let id: DeviceId = probe_id("node", u8::try_from(number).unwrap());
    let port = plane.attach(host, TunnelId::from_uuid(new_id()), id, false);
    let (probe, standing, mut orders) = Probe::attached(addresses);
    let (plane, lookout, gateway) = (Arc::clone(plane), Arc::clone(lookout), plane.slice().gateway());
    tokio::spawn(async move {
        let mut spare = Vec::new();
        loop {
            let packets = poll_fn(|context| {
                port.wake(context.waker());
                port.take(&mut spare).map_or(Poll::Pending, Poll::Ready)
            });
            tokio::select! {
                waiting = packets => {
                    waiting.seal(|slot, bytes| {
                        lookout.see(Place::Device(number), &slot[HEADROOM..HEADROOM + bytes]);
                        None
                    });
                }
                order = orders.recv() => {
                    let Some(packets) = order else { return };
                    for packet in packets.iter().filter(|packet| is_let_through(packet, addresses, gateway)) {
                        assert!(plane.inject(packet));
                    }
                }
            }
        }
    });
    (probe, standing)
}

/// What the driver's wall lets through, in short.
fn is_let_through(packet: &[u8], own: Addresses, gateway: Addresses) -> bool {
    let (source, destination, protocol, transport) = match packet[0] {
        0x45 if packet[6..8] == [0x40, 0] => {
            let (ours, theirs) = (packet[12..16] == own.ipv4.octets(), packet[16..20] == gateway.ipv4.octets());
            (ours, theirs, packet[9], &packet[20..])
        }
        0x60 => {
            let (ours, theirs) = (packet[8..24] == own.ipv6.octets(), packet[24..40] == gateway.ipv6.octets());
            (ours, theirs, packet[6], &packet[40..])
        }
        _ => return false,
    };
    let passes = match protocol {
        6 => transport[2..4] == LINK_PORT.to_be_bytes(),
        1 => transport[0] == 8,
        58 => transport[0] == 128,
        _ => false,
    };
    source && destination && passes
}

fn wrong(verdict: &Verdict) -> BTreeMap<&str, &crate::model::proof::KindResult> {
    verdict.results.iter().filter(|result| result.wrong > 0).map(|result| (result.kind.as_str(), result)).collect()
}

#[test]
fn with_the_rules_in_force_every_attempt_is_refused() {
    isolated_in(MODULE, "with_the_rules_in_force_every_attempt_is_refused", async {
        let world = World::new(true).await;
        for scope in [Scope::Part(0), Scope::Part(15)] {
            let verdict = world.round(scope).await;
            assert_eq!(verdict.outcome, Outcome::Proven, "{:#?}", verdict.wrong());
            let kinds: Vec<_> = verdict.results.iter().map(|result| result.kind.as_str()).collect();
            assert_eq!(kinds, attempt::Kind::ALL.map(attempt::Kind::name), "each kind was tried");
            assert!(verdict.attempts > 8 * 4_000, "{}", verdict.attempts);
        }
    });
}

#[test]
fn a_round_in_which_a_device_changed_its_tunnel_proves_nothing() {
    isolated_in(MODULE, "a_round_in_which_a_device_changed_its_tunnel_proves_nothing", async {
        let world = World::new(true).await;
        let addresses = world.plane.slice().addresses(2).unwrap();
        for is_back in [true, false] {
            let changed = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                world.standings[0].send_replace(Standing::Down("the test says so".to_owned()));
                if is_back {
                    // At the same address, and so soon that nobody may have noticed.
                    world.standings[0].send_replace(Standing::Up(Up::now(addresses)));
                }
            };
            let (verdict, ()) = tokio::join!(world.round(Scope::Part(0)), changed);
            assert_eq!(verdict.outcome, Outcome::Failed);
            let wrong = verdict.wrong().join(" ");
            assert!(wrong.contains("a device lost its tunnel in the middle of the round"), "{wrong}");
        }
    });
}

#[test]
fn what_gets_past_rules_that_somebody_took_away_in_the_middle_is_a_drift_and_no_leak() {
    let name = "what_gets_past_rules_that_somebody_took_away_in_the_middle_is_a_drift_and_no_leak";
    isolated_in(MODULE, name, async {
        let world = World::new(true).await;
        let isolation = &world.isolation;
        for (is_found, outcome) in [(true, Outcome::Failed), (false, Outcome::Leak)] {
            let taken_away = async {
                // The round has opened its port by then.
                tokio::time::sleep(Duration::from_millis(600)).await;
                isolation.call(&crate::isolation::delete(crate::isolation::TABLE)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                if is_found {
                    isolation.distrust();
                }
                isolation.apply(&*isolation.elements.lock().await).await.unwrap();
                isolation.set_rules(State::Enforced);
            };
            let (verdict, ()) = tokio::join!(world.round(Scope::Part(0)), taken_away);
            assert_eq!(verdict.outcome, outcome, "{:#?}", verdict.wrong());
            assert!(wrong(&verdict).contains_key("ports"), "{:#?}", verdict.wrong());
            assert_eq!(wrong(&verdict).contains_key("round"), is_found);
        }
    });
}

/// A system that forwards, believes every source, and obeys whatever a packet asks of it.
const OPEN: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/pf0/rp_filter", "0"),
    ("ipv4/conf/all/accept_source_route", "1"),
    ("ipv4/conf/pf0/accept_source_route", "1"),
    ("ipv4/icmp_echo_ignore_broadcasts", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

#[test]
fn without_rules_each_kind_is_seen_to_get_through() {
    isolated_in(MODULE, "without_rules_each_kind_is_seen_to_get_through", async {
        let world = World::new(false).await;
        set(OPEN);
        let verdict = world.round(Scope::Part(0)).await;
        assert_eq!(verdict.outcome, Outcome::Leak);
        let wrong = wrong(&verdict);
        let refused: Vec<_> = attempt::Kind::ALL.into_iter().filter(|kind| !kind.must_work()).collect();
        let unseen: Vec<_> = refused.iter().filter(|kind| !wrong.contains_key(kind.name())).collect();
        assert!(unseen.is_empty(), "not seen: {unseen:?}");
    });
}

/// Runs a program of the system, in the test's network.
fn system(command: &str) {
    let mut words = command.split_whitespace();
    let done = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_hole_in_one_rule_is_seen_for_what_it_is() {
    isolated_in(MODULE, "a_hole_in_one_rule_is_seen_for_what_it_is", async {
        let world = World::new(true).await;
        let holes: [(&[&str], &str); 3] = [
            // A port of the node at which nobody listens, and so says no more than that.
            (
                &["cl_tunnel4 udp dport 53", "cl_local udp dport 53", "cl_out icmp type destination-unreachable"],
                "ports",
            ),
            (
                &["cl_tunnel4 icmp type timestamp-request", "cl_local", "cl_out icmp type timestamp-reply"],
                "icmp_control",
            ),
            // What nobody answers is heard all the same.
            (&["cl_tunnel6 ip6 daddr ff00::/8", "cl_local"], "multicast"),
        ];
        for (rules, kind) in holes {
            for rule in rules {
                system(&format!("nft insert rule inet cloudlink {rule} accept"));
            }
            let verdict = world.round(Scope::Part(0)).await;
            assert_eq!(verdict.outcome, Outcome::Leak);
            assert_eq!(wrong(&verdict).keys().collect::<Vec<_>>(), [&kind], "{:#?}", verdict.wrong());
            world.isolation.apply(&*world.isolation.elements.lock().await).await.unwrap();
        }
        let verdict = world.round(Scope::Part(0)).await;
        assert_eq!(verdict.outcome, Outcome::Proven, "{:#?}", verdict.wrong());
    });
}

#[test]
fn what_must_work_and_does_not_is_no_leak_and_no_proof() {
    isolated_in(MODULE, "what_must_work_and_does_not_is_no_leak_and_no_proof", async {
        let mut world = World::new(true).await;
        // The way to the stand-in leads elsewhere: a leak would not be seen there.
        system("ip route add blackhole 192.0.2.66/32");
        let verdict = world.round(Scope::Part(0)).await;
        assert_eq!(verdict.outcome, Outcome::Failed, "{:#?}", verdict.wrong());
        assert_eq!(wrong(&verdict).keys().collect::<Vec<_>>(), [&"stand_in"]);
        system("ip route del blackhole 192.0.2.66/32");
        // Nobody listens where the agent would dial.
        world.link_ports = None;
        let verdict = world.round(Scope::Part(0)).await;
        assert_eq!(verdict.outcome, Outcome::Failed, "{:#?}", verdict.wrong());
        assert_eq!(wrong(&verdict).keys().collect::<Vec<_>>(), [&"link_port"]);
        // Nothing can be opened without the table.
        system("nft delete table inet cloudlink");
        let verdict = world.round(Scope::Part(0)).await;
        assert_eq!((verdict.outcome, verdict.attempts), (Outcome::Failed, 0), "{:#?}", verdict.wrong());
    });
}
