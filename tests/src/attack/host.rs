//! A host without any care: as far as Linux can be opened.

use std::path::PathBuf;
use std::process::Command;

use crate::netns::done;

const OF_ALL: [(&str, &str); 13] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/icmp_echo_ignore_broadcasts", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv4/icmp_echo_enable_probe", "1"),
    ("net/ipv4/ipfrag_time", "1"),
    ("net/ipv4/tcp_invalid_ratelimit", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv6/ip6frag_time", "1"),
    ("net/ipv6/icmp/echo_ignore_multicast", "0"),
];

const OF_INTERFACES: [(&str, &str, &str); 18] = [
    ("ipv4", "forwarding", "1"),
    ("ipv4", "accept_redirects", "1"),
    ("ipv4", "secure_redirects", "0"),
    ("ipv4", "send_redirects", "1"),
    ("ipv4", "shared_media", "1"),
    ("ipv4", "accept_source_route", "1"),
    ("ipv4", "rp_filter", "0"),
    ("ipv4", "accept_local", "1"),
    ("ipv4", "route_localnet", "1"),
    ("ipv4", "bc_forwarding", "0"),
    ("ipv4", "src_valid_mark", "0"),
    ("ipv4", "drop_unicast_in_l2_multicast", "0"),
    ("ipv6", "forwarding", "1"),
    ("ipv6", "accept_ra", "2"),
    ("ipv6", "accept_redirects", "1"),
    ("ipv6", "accept_source_route", "1"),
    ("ipv6", "seg6_enabled", "1"),
    ("ipv6", "rpl_seg_enabled", "1"),
];

/// Lets the host that the caller is on forward, believe and answer everything.
pub(super) fn open_host(interface: &str) -> anyhow::Result<()> {
    for (key, value) in settings(interface) {
        // Older kernels lack some, and some belong to the machine.
        let _ = std::fs::write(key, value);
    }
    let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    anyhow::ensure!(forwards.trim() == "1", "the host does not forward");
    Ok(())
}

/// Those of the host first: they change those of interfaces.
fn settings(interface: &str) -> Vec<(PathBuf, &'static str)> {
    let of_all = OF_ALL.map(|(key, value)| (format!("/proc/sys/{key}").into(), value));
    let of_interfaces = ["all", "default", interface].into_iter().flat_map(|of| {
        OF_INTERFACES
            .map(|(family, setting, value)| (format!("/proc/sys/net/{family}/conf/{of}/{setting}").into(), value))
    });
    of_all.into_iter().chain(of_interfaces).collect()
}

/// The product's host while it is open: no rules, every setting loose, and addresses for the two ends of a tunnel only. Dropped, it
/// is as it was, but for the rules.
#[derive(Debug)]
pub struct Opened {
    interface: String,
    settings: Vec<(PathBuf, String)>,
}

impl Opened {
    pub fn at(interface: &str) -> anyhow::Result<Self> {
        let before = settings(interface).into_iter();
        let before = before.filter_map(|(key, _)| Some((key.clone(), std::fs::read_to_string(key).ok()?))).collect();
        let opened = Self { interface: interface.to_owned(), settings: before };
        here("nft delete table inet cloudlink")?;
        open_host(interface)?;
        here(&format!(
            "ip addr add 169.254.0.1/24 dev {interface}; ip addr replace fe80::1/64 dev {interface} nodad
             ip link set {interface} txqueuelen 100000"
        ))?;
        Ok(opened)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for (key, value) in &self.settings {
            let _ = std::fs::write(key, value);
        }
        let interface = &self.interface;
        let _ = here(&format!("ip addr del 169.254.0.1/24 dev {interface}; ip addr del fe80::1/64 dev {interface}"));
    }
}

/// The rules that are in force, without counts, and without what comes and goes in them.
pub fn rules() -> anyhow::Result<String> {
    here("nft --stateless --terse list table inet cloudlink")
}

/// Runs something on the node's host that must succeed.
pub fn here(line: &str) -> anyhow::Result<String> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", line]);
    done(command)
}
