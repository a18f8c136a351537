//! The words of the kernel's rules, as libnftables reads them in JSON (libnftables-json(5)).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// IPv4 or IPv6, with everything that is named differently in the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) protocol_field: &'static str,
    pub(super) icmp: &'static str,
    pub(super) icmp_protocol: u8,
    pub(super) digit: char,
}

impl Family {
    pub(super) const V4: Self =
        Self { name: "ipv4", protocol_field: "protocol", icmp: "icmp", icmp_protocol: 1, digit: '4' };
    pub(super) const V6: Self =
        Self { name: "ipv6", protocol_field: "nexthdr", icmp: "icmpv6", icmp_protocol: 58, digit: '6' };
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn header(self) -> &'static str {
        if self.digit == '4' { "ip" } else { "ip6" }
    }

    /// The name of what there is once for each family.
    pub(super) fn named(self, stem: &str) -> String {
        format!("{stem}{}", self.digit)
    }

    pub(super) fn field(self, field: &str) -> Value {
        payload(self.header(), field)
    }

    pub(super) fn source(self, address: IpAddr) -> Value {
        equal(&self.field("saddr"), &json!(address))
    }

    pub(super) fn source_not(self, address: IpAddr) -> Value {
        unequal(&self.field("saddr"), &json!(address))
    }

    pub(super) fn destination(self, address: IpAddr) -> Value {
        equal(&self.field("daddr"), &json!(address))
    }

    pub(super) fn destination_not(self, address: IpAddr) -> Value {
        unequal(&self.field("daddr"), &json!(address))
    }

    pub(super) fn source_in(self, net: IpNet) -> Value {
        equal(&self.field("saddr"), &prefix(net))
    }

    pub(super) fn source_outside(self, net: IpNet) -> Value {
        unequal(&self.field("saddr"), &prefix(net))
    }

    pub(super) fn destination_in(self, net: IpNet) -> Value {
        equal(&self.field("daddr"), &prefix(net))
    }

    pub(super) fn source_among(self, set: &str) -> Value {
        equal(&self.field("saddr"), &json!(format!("@{set}")))
    }

    pub(super) fn destination_among(self, set: &str) -> Value {
        equal(&self.field("daddr"), &json!(format!("@{set}")))
    }

    /// In the header itself: in IPv6, nothing stands between the two. By number: names are in a file that may be missing.
    pub(super) fn protocol(self, protocol: u8) -> Value {
        equal(&self.field(self.protocol_field), &json!(protocol))
    }

    pub(super) fn icmp_type(self, name: &str) -> [Value; 2] {
        [self.protocol(self.icmp_protocol), equal(&payload(self.icmp, "type"), &json!(name))]
    }

    pub(super) fn tcp_source(self, port: u16) -> [Value; 2] {
        [self.protocol(TCP), equal(&payload("tcp", "sport"), &json!(port))]
    }

    pub(super) fn tcp_destination(self, port: u16) -> [Value; 2] {
        [self.protocol(TCP), equal(&payload("tcp", "dport"), &json!(port))]
    }

    /// From an address and port in the set.
    pub(super) fn opening_source(self, set: &str) -> [Value; 2] {
        [self.protocol(TCP), self.in_openings(set, "saddr", "sport")]
    }

    /// To an address and port in the set.
    pub(super) fn opening_destination(self, set: &str) -> [Value; 2] {
        [self.protocol(TCP), self.in_openings(set, "daddr", "dport")]
    }

    fn in_openings(self, set: &str, address: &str, port: &str) -> Value {
        let key = json!({"concat": [self.field(address), payload("tcp", port)]});
        equal(&key, &json!(format!("@{set}")))
    }

    /// More than so many a second from one address.
    pub(super) fn each_over(self, set: &str, per_second: u32, burst: u32) -> Value {
        let limit = over(per_second, burst);
        json!({"set": {"op": "update", "elem": self.field("saddr"), "set": format!("@{set}"), "stmt": [limit]}})
    }
}

pub(super) fn in_from(interface: &str) -> Value {
    equal(&meta("iifname"), &json!(interface))
}

pub(super) fn not_in_from(interface: &str) -> Value {
    unequal(&meta("iifname"), &json!(interface))
}

pub(super) fn out_to(interface: &str) -> Value {
    equal(&meta("oifname"), &json!(interface))
}

pub(super) fn is_family(family: Family) -> Value {
    equal(&meta("nfproto"), &json!(family.name))
}

/// For a socket with an address of its own, as one has that this node has begun a connection with.
pub(super) fn has_connection() -> Value {
    equal(&json!({"socket": {"key": "wildcard"}}), &json!(0))
}

/// Anything but the first packet of a connection.
pub(super) fn not_first() -> Value {
    let flags = json!({"&": [payload("tcp", "flags"), {"|": ["syn", "ack"]}]});
    unequal(&flags, &json!("syn"))
}

/// A fragment, the first or a later one.
pub(super) fn fragment() -> Value {
    unequal(&fragmented(), &json!(0))
}

pub(super) fn whole() -> Value {
    equal(&fragmented(), &json!(0))
}

fn fragmented() -> Value {
    json!({"&": [payload("ip", "frag-off"), 0x3fff]})
}

/// An IPv4 header with options: longer than five words.
pub(super) fn with_options() -> Value {
    unequal(&payload("ip", "hdrlength"), &json!(5))
}

pub(super) fn without_options() -> Value {
    equal(&payload("ip", "hdrlength"), &json!(5))
}

/// More than so many a second in all.
pub(super) fn over(per_second: u32, burst: u32) -> Value {
    json!({"limit": {"rate": per_second, "burst": burst, "per": "second", "inv": true}})
}

pub(super) fn equal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn unequal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn prefix(net: IpNet) -> Value {
    json!({"prefix": {"addr": net.network(), "len": net.prefix_len()}})
}
