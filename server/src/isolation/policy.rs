//! What the kernel is to let through, as one value, and the rules that say so. Pure: nothing here touches the kernel.
//!
//! ```text
//! tunnels' interface ─► cl_enter ─► cl_tunnel4, cl_tunnel6: from whom to whom, before anything is put together or remembered
//!                                      └► cl_services4, cl_services6: what it is
//!                       cl_input ─► cl_local: once more, where it would reach a socket
//! sockets ────────────► cl_output_early, cl_output ─► cl_out ─► tunnels' interface
//! any interface ──────► cl_forward ─► nowhere
//! ```
//!
//! What is open for support is looked up among sockets. Everything else is told by the packet alone. No rule asks for connection
//! tracking (`ct`): one would make the kernel remember every connection of the host, and strangers at the device port could fill
//! that memory.

mod expression;
mod reason;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aws_lc_rs::digest;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use reason::Reason;

use crate::config::{Config, Scope};
use crate::file;
use crate::tunnel::slice::{Addresses, Slice};
use expression::{
    Family, TCP, UDP, equal, fragment, has_connection, in_from, is_family, not_first, not_in_from, out_to, over, whole,
    with_options, without_options,
};

/// The family of the table: IPv4 and IPv6 in one.
pub(super) const FAMILY: &str = "inet";
/// The table that is in force.
pub(crate) const TABLE: &str = "cloudlink";
/// All chains, in the order in which packets meet them.
pub(super) const CHAINS: [&str; 12] = [
    "cl_enter",
    "cl_tunnel4",
    "cl_tunnel6",
    "cl_services4",
    "cl_services6",
    "cl_input",
    "cl_local",
    "cl_output_early",
    "cl_out_early",
    "cl_output",
    "cl_out",
    "cl_forward",
];
/// What devices may say, whoever they are.
const SERVICES: &str = "cl_services";
/// Addresses and ports of devices that are open for support.
const OPENINGS: &str = "cl_openings";
/// Addresses of devices in quarantine.
const QUARANTINED: &str = "cl_quarantined";
/// Who pinged lately, and how often.
const ECHO: &str = "cl_echo";
/// Addresses in [`ECHO`]: beyond, pings are limited by [`ECHO_ALL_PER_SECOND`] alone.
const ECHO_SOURCES_MAX: u32 = 4_096;
/// After this long without a ping, a device has its whole burst again.
const ECHO_FORGET_SECONDS: u32 = 5;
/// Pings of all devices in a second that are answered.
const ECHO_ALL_PER_SECOND: u32 = 10_000;
/// Elements of the set of openings: more than are ever remembered, and a bound for the kernel's memory.
const OPENINGS_SIZE: u32 = 65_536;
/// IPv6 headers that may stand before the one that says what a packet is, apart from a fragment's.
const EXTENSIONS: [u8; 7] = [0, 43, 60, 51, 135, 139, 140];
const FRAGMENT_HEADER: u8 = 44;

const LINK_LOCAL_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
const LINK_LOCAL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
const MULTICAST_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);
const MULTICAST_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);

/// What is declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub(crate) interface: String,
    pub(crate) gateway: Addresses,
    pub(crate) ipv4: Ipv4Net,
    pub(crate) ipv6: Ipv6Net,
    pub(crate) link_port: u16,
    pub(crate) echo_requests_per_second: u32,
    pub(crate) scope: Scope,
}

impl Policy {
    pub(crate) fn new(config: &Config, slice: &Slice) -> Self {
        Self {
            interface: String::new(),
            gateway: slice.gateway(),
            ipv4: slice.ipv4(),
            ipv6: slice.ipv6(),
            link_port: 0,
            echo_requests_per_second: 0,
            scope: Scope::Host,
        }
        .configured(config)
    }

    /// In the same slice, as the configuration says.
    pub(super) fn configured(self, config: &Config) -> Self {
        Self {
            interface: config.tunnel.interface.as_str().to_owned(),
            link_port: u16::try_from(config.tunnel.link_port).expect("the configuration allows no larger port"),
            echo_requests_per_second: config.isolation.echo_requests_per_second,
            scope: config.isolation.scope,
            ..self
        }
    }

    /// The rules in a table of this name: commands that add everything to a table that is not there. Without hooks no packet
    /// passes them.
    pub(super) fn ruleset(&self, table: &str, hooked: bool) -> Vec<Value> {
        let mut rules = Rules { table, hooked, commands: Vec::new() };
        rules.add("table", json!({"family": FAMILY, "name": table}));
        for reason in Reason::ALL {
            rules.add("counter", json!({"family": FAMILY, "table": table, "name": reason.counter()}));
        }
        for family in Family::ALL {
            let address = format!("{}_addr", family.name);
            rules.set(
                &family.named(OPENINGS),
                &json!([address, "inet_service"]),
                &json!({
                    "flags": ["timeout"], "size": OPENINGS_SIZE,
                }),
            );
            rules.set(&family.named(QUARANTINED), &json!(address), &json!({}));
            rules.set(
                &family.named(ECHO),
                &json!(address),
                &json!({
                    "flags": ["timeout"], "size": ECHO_SOURCES_MAX, "timeout": ECHO_FORGET_SECONDS,
                }),
            );
        }
        self.chains(&mut rules);
        self.enter(&mut rules);
        self.tunnel_v4(&mut rules);
        self.tunnel_v6(&mut rules);
        self.local(&mut rules);
        self.output(&mut rules);
        self.forward(&mut rules);
        rules.commands
    }

    /// Writes what is declared into a file.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        file::replace(path, &text, file::PUBLIC)
    }

    /// SHA-256 of the rules that are to be in force.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let rules = Value::Array(self.ruleset(TABLE, true)).to_string();
        let hash = digest::digest(&digest::SHA256, rules.as_bytes());
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn chains(&self, rules: &mut Rules<'_>) {
        let forwarding = match self.scope {
            Scope::Host => "drop",
            Scope::Interface => "accept",
        };
        // Before the kernel puts fragments together (-400) and looks at connections (-200).
        rules.base("cl_enter", "prerouting", -450, "accept");
        rules.base("cl_input", "input", 0, "accept");
        rules.base("cl_forward", "forward", 0, forwarding);
        rules.base("cl_output_early", "output", -300, "accept");
        rules.base("cl_output", "output", 0, "accept");
        for chain in ["cl_tunnel4", "cl_tunnel6", "cl_services4", "cl_services6", "cl_local", "cl_out_early", "cl_out"]
        {
            rules.chain(chain);
        }
    }

    fn enter(&self, rules: &mut Rules<'_>) {
        let chain = "cl_enter";
        for family in Family::ALL {
            let into = family.named("cl_tunnel");
            let matches = vec![in_from(&self.interface), is_family(family)];
            rules.go(chain, &format!("{} out of a tunnel is looked at there", family.name), matches, &into);
        }
        let matches = vec![in_from(&self.interface)];
        rules.drop(chain, "anything else out of a tunnel", matches, Reason::Protocol);
        for (family, net) in [(Family::V4, IpNet::from(self.ipv4)), (Family::V6, IpNet::from(self.ipv6))] {
            let name = family.name;
            let from = vec![not_in_from("lo"), family.source_in(net)];
            rules.drop(chain, &format!("{name} from an address of tunnels, but not out of one"), from, Reason::Outside);
            let to = vec![not_in_from("lo"), family.destination_in(net)];
            rules.drop(chain, &format!("{name} to an address of tunnels, but not out of one"), to, Reason::Outside);
        }
    }

    fn tunnel_v4(&self, rules: &mut Rules<'_>) {
        let (chain, family) = ("cl_tunnel4", Family::V4);
        let gateway = IpAddr::from(self.gateway.ipv4);
        let services = family.named(SERVICES);
        let plain = vec![
            whole(),
            without_options(),
            family.source_in(self.ipv4.into()),
            family.source_not(gateway),
            family.source_not(self.ipv4.network().into()),
            family.source_not(self.ipv4.broadcast().into()),
            family.destination(gateway),
        ];
        // Nearly all packets: none of the following can be about them.
        rules.go(chain, "plainly from a device to the node", plain, &services);
        let mut drop = |words, matches, reason| rules.drop(chain, words, vec![matches], reason);
        drop("a fragment", fragment(), Reason::Fragment);
        drop("IPv4 options, such as a source route", with_options(), Reason::Options);
        drop("from a link-local address", family.source_in(LINK_LOCAL_V4.into()), Reason::LinkLocal);
        drop("from the node's own address", family.source(gateway), Reason::Source);
        drop("from the network's own address", family.source(self.ipv4.network().into()), Reason::Source);
        drop("from the network's broadcast address", family.source(self.ipv4.broadcast().into()), Reason::Source);
        drop(
            "from an address that no device of this node has",
            family.source_outside(self.ipv4.into()),
            Reason::Source,
        );
        drop("to multicast", family.destination_in(MULTICAST_V4.into()), Reason::Multicast);
        drop("to broadcast", family.destination(Ipv4Addr::BROADCAST.into()), Reason::Broadcast);
        drop("to the network's broadcast address", family.destination(self.ipv4.broadcast().into()), Reason::Broadcast);
        drop("to a link-local address", family.destination_in(LINK_LOCAL_V4.into()), Reason::LinkLocal);
        drop("to anybody but the node", family.destination_not(gateway), Reason::Destination);
        rules.go(chain, "the rest is looked at there", Vec::new(), &services);
        self.services(rules, &services, family);
    }

    fn tunnel_v6(&self, rules: &mut Rules<'_>) {
        let (chain, family) = ("cl_tunnel6", Family::V6);
        let gateway = IpAddr::from(self.gateway.ipv6);
        let services = family.named(SERVICES);
        let plain = vec![
            family.protocol(TCP),
            family.source_in(self.ipv6.into()),
            family.source_not(gateway),
            family.source_not(self.ipv6.network().into()),
            family.destination(gateway),
        ];
        rules.go(chain, "TCP, plainly from a device to the node", plain, &services);
        let next_header = |number: u8| equal(&family.field("nexthdr"), &json!(number));
        let mut drop = |words: &str, matches, reason| rules.drop(chain, words, vec![matches], reason);
        drop("a fragment", next_header(FRAGMENT_HEADER), Reason::Fragment);
        for number in EXTENSIONS {
            drop(&format!("IPv6 extension header {number}"), next_header(number), Reason::Options);
        }
        drop("from a link-local address", family.source_in(LINK_LOCAL_V6.into()), Reason::LinkLocal);
        drop("from the node's own address", family.source(gateway), Reason::Source);
        drop("from the network's own address", family.source(self.ipv6.network().into()), Reason::Source);
        drop(
            "from an address that no device of this node has",
            family.source_outside(self.ipv6.into()),
            Reason::Source,
        );
        drop(
            "to multicast, such as neighbour discovery",
            family.destination_in(MULTICAST_V6.into()),
            Reason::Multicast,
        );
        drop("to a link-local address", family.destination_in(LINK_LOCAL_V6.into()), Reason::LinkLocal);
        drop("to anybody but the node", family.destination_not(gateway), Reason::Destination);
        rules.go(chain, "the rest is looked at there", Vec::new(), &services);
        self.services(rules, &services, family);
    }

    /// What a device may say to the node, once it is sure that it is from the one to the other.
    fn services(&self, rules: &mut Rules<'_>, chain: &str, family: Family) {
        let link = family.tcp_destination(self.link_port).to_vec();
        rules.accept_untracked(chain, "the link's port on the node", link);
        let quarantined = vec![family.source_among(&family.named(QUARANTINED))];
        rules.drop(chain, "anything else from a device in quarantine", quarantined, Reason::Quarantine);
        let opening = [family.opening_source(&family.named(OPENINGS)).to_vec(), vec![not_first()]].concat();
        rules.accept(chain, "from a port that is open for support, but no new connection", opening);
        let request = || family.icmp_type("echo-request").to_vec();
        let (per_second, echo) = (self.echo_requests_per_second, family.named(ECHO));
        let each = [request(), vec![family.each_over(&echo, per_second, per_second.saturating_mul(2))]].concat();
        rules.drop(chain, &format!("more than {per_second} pings a second of one device"), each, Reason::EchoRate);
        let all = [request(), vec![over(ECHO_ALL_PER_SECOND, ECHO_ALL_PER_SECOND)]].concat();
        rules.drop(chain, &format!("more than {ECHO_ALL_PER_SECOND} pings a second of all"), all, Reason::EchoRate);
        rules.accept_untracked(chain, "a ping", request());
        rules.accept_untracked(chain, "the answer to a ping", family.icmp_type("echo-reply").to_vec());
        for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
            rules.drop(chain, &format!("any other port ({name})"), vec![family.protocol(protocol)], Reason::Port);
        }
        rules.drop(chain, "anything else", Vec::new(), Reason::Protocol);
    }

    fn local(&self, rules: &mut Rules<'_>) {
        let matches = vec![in_from(&self.interface)];
        rules.go("cl_input", "what came out of a tunnel is looked at there", matches, "cl_local");
        let chain = "cl_local";
        for (family, gateway) in self.gateways() {
            let name = family.name;
            let to = |matches: &[Value]| [&[family.destination(gateway)], matches].concat();
            rules.accept(
                chain,
                &format!("the link's port on the node ({name})"),
                to(&family.tcp_destination(self.link_port)),
            );
            for (kind, words) in [("echo-request", "a ping"), ("echo-reply", "the answer to a ping")] {
                rules.accept(chain, &format!("{words} ({name})"), to(&family.icmp_type(kind)));
            }
            let opening = [family.opening_source(&family.named(OPENINGS)).as_slice(), &[has_connection()]].concat();
            let words = format!("from a port that is open for support, where this node began ({name})");
            rules.accept(chain, &words, to(&opening));
        }
        rules.drop(chain, "anything else", Vec::new(), Reason::Input);
    }

    fn output(&self, rules: &mut Rules<'_>) {
        let chain = "cl_out_early";
        let matches = || vec![out_to(&self.interface)];
        rules.go("cl_output_early", "what goes to a tunnel", matches(), chain);
        for family in Family::ALL {
            let name = family.name;
            let link = family.tcp_source(self.link_port).to_vec();
            rules.untracked(chain, &format!("the link's needs no memory of connections ({name})"), link);
            for (kind, words) in [("echo-request", "a ping"), ("echo-reply", "the answer to a ping")] {
                let ping = family.icmp_type(kind).to_vec();
                rules.untracked(chain, &format!("nor does {words} ({name})"), ping);
            }
        }
        let chain = "cl_out";
        rules.go("cl_output", "what goes to a tunnel is looked at there", matches(), chain);
        for (family, gateway) in self.gateways() {
            let name = family.name;
            let (openings, quarantined) = (family.named(OPENINGS), family.named(QUARANTINED));
            let others = vec![is_family(family), family.source_not(gateway)];
            rules.drop(
                chain,
                &format!("from any other address than the node's in tunnels ({name})"),
                others,
                Reason::Out,
            );
            let link = [family.tcp_source(self.link_port).as_slice(), &[not_first()]].concat();
            rules.accept(chain, &format!("from the link's port, but no new connection ({name})"), link);
            let words = format!("anything else to a device in quarantine ({name})");
            rules.drop(chain, &words, vec![family.destination_among(&quarantined)], Reason::Quarantine);
            for (kind, words) in [("echo-request", "a ping"), ("echo-reply", "the answer to a ping")] {
                rules.accept(chain, &format!("{words} ({name})"), family.icmp_type(kind).to_vec());
            }
            let words = format!("to a port that is open for support ({name})");
            rules.accept(chain, &words, family.opening_destination(&openings).to_vec());
        }
        rules.drop(chain, "anything else", Vec::new(), Reason::Out);
    }

    fn forward(&self, rules: &mut Rules<'_>) {
        let chain = "cl_forward";
        rules.drop(chain, "out of a tunnel to elsewhere", vec![in_from(&self.interface)], Reason::ForwardFrom);
        rules.drop(chain, "from elsewhere to a tunnel", vec![out_to(&self.interface)], Reason::ForwardTo);
        if self.scope == Scope::Host {
            rules.drop(chain, "anything at all: this host forwards nothing", Vec::new(), Reason::Forward);
        }
    }

    fn gateways(&self) -> [(Family, IpAddr); 2] {
        [(Family::V4, self.gateway.ipv4.into()), (Family::V6, self.gateway.ipv6.into())]
    }
}

/// The sets whose elements change while the table stays. Each has a name for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    Openings,
    Quarantined,
}

impl Set {
    /// Its name for addresses of the family of this one.
    pub(super) fn name(self, address: IpAddr) -> String {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        match self {
            Self::Openings => family.named(OPENINGS),
            Self::Quarantined => family.named(QUARANTINED),
        }
    }

    /// The set of this name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(['4', '6'])?;
        match stem {
            OPENINGS => Some(Self::Openings),
            QUARANTINED => Some(Self::Quarantined),
            _ => None,
        }
    }
}

/// Rules in the making.
struct Rules<'a> {
    table: &'a str,
    hooked: bool,
    commands: Vec<Value>,
}

impl Rules<'_> {
    fn add(&mut self, kind: &str, object: Value) {
        self.commands.push(json!({"add": {kind: object}}));
    }

    fn set(&mut self, name: &str, key: &Value, more: &Value) {
        let mut set = json!({"family": FAMILY, "table": self.table, "name": name, "type": key});
        if let (Some(set), Some(more)) = (set.as_object_mut(), more.as_object()) {
            set.extend(more.clone());
        }
        self.add("set", set);
    }

    fn base(&mut self, name: &str, hook: &str, priority: i32, policy: &str) {
        if self.hooked {
            let chain = json!({
                "family": FAMILY, "table": self.table, "name": name,
                "type": "filter", "hook": hook, "prio": priority, "policy": policy,
            });
            self.add("chain", chain);
        } else {
            self.chain(name);
        }
    }

    fn chain(&mut self, name: &str) {
        self.add("chain", json!({"family": FAMILY, "table": self.table, "name": name}));
    }

    fn drop(&mut self, chain: &str, words: &str, matches: Vec<Value>, reason: Reason) {
        self.rule(chain, words, matches, &[json!({"counter": reason.counter()}), json!({"drop": null})]);
    }

    fn accept(&mut self, chain: &str, words: &str, matches: Vec<Value>) {
        self.rule(chain, words, matches, &[json!({"accept": null})]);
    }

    /// Without a place in the memory of connections.
    fn accept_untracked(&mut self, chain: &str, words: &str, matches: Vec<Value>) {
        self.rule(chain, words, matches, &[json!({"notrack": null}), json!({"accept": null})]);
    }

    fn untracked(&mut self, chain: &str, words: &str, matches: Vec<Value>) {
        self.rule(chain, words, matches, &[json!({"notrack": null})]);
    }

    fn go(&mut self, chain: &str, words: &str, matches: Vec<Value>, to: &str) {
        self.rule(chain, words, matches, &[json!({"goto": {"target": to}})]);
    }

    /// Each rule counts what it is about, and says in words what that is.
    fn rule(&mut self, chain: &str, words: &str, mut expressions: Vec<Value>, ending: &[Value]) {
        expressions.push(json!({"counter": null}));
        expressions.extend_from_slice(ending);
        let rule = json!({
            "family": FAMILY, "table": self.table, "chain": chain, "comment": words, "expr": expressions,
        });
        self.add("rule", rule);
    }
}
