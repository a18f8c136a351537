//! Which network the device is on: its way out, as far as the system tells without asking anybody.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::problem::shown;

/// The largest file of the system that is read, in bytes. One with more is not looked at.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// The longest name of a domain or interface that is kept, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Of the default route. `None`: there is none, or only one of IPv6.
    pub gateway: Option<Ipv4Addr>,
    /// The gateway's, where it is known: at a start it may not be yet.
    pub mac: Option<String>,
    /// Where the default route leads.
    pub interface: String,
    /// What names are searched in.
    pub domain: String,
}

impl Network {
    /// Looks at the system below `root`, which is `/`.
    #[must_use]
    pub fn look(root: &Path) -> Self {
        let text = |path: &str| {
            let content = disk::read_if_there(&root.join(path), FILE_BYTES_MAX).ok().flatten().unwrap_or_default();
            String::from_utf8_lossy(&content).into_owned()
        };
        let (interface, gateway) = default_route(&text("proc/net/route")).unzip();
        let (interface, gateway) = (interface.unwrap_or_default(), gateway.filter(|gateway| !gateway.is_unspecified()));
        let arp = text("proc/net/arp");
        Self {
            mac: gateway.and_then(|gateway| mac(&arp, gateway, &interface)),
            gateway,
            interface,
            domain: domain(&text("etc/resolv.conf")),
        }
    }

    /// Whether it is the same, as far as both are known.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let is_other_gateway = self.mac.is_some() && other.mac.is_some() && self.mac != other.mac;
        (self.gateway, &self.interface, &self.domain) == (other.gateway, &other.interface, &other.domain)
            && !is_other_gateway
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.gateway, self.interface.is_empty()) {
            (Some(gateway), _) => write!(f, "gateway {gateway}")?,
            (None, false) => write!(f, "interface {}", shown(&self.interface))?,
            (None, true) => f.write_str("no default route")?,
        }
        if !self.domain.is_empty() {
            write!(f, ", domain {}", shown(&self.domain))?;
        }
        Ok(())
    }
}

/// Interface and gateway of the default route with the smallest metric.
fn default_route(text: &str) -> Option<(String, Ipv4Addr)> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, gateway, _, _, _, metric, mask, ..] = fields[..] else { return None };
        if (destination, mask) != ("00000000", "00000000") {
            return None;
        }
        // In the byte order of the machine, which the kernel has printed as a number.
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        Some((metric.parse::<u32>().ok()?, name(interface), gateway))
    });
    routes.min_by_key(|(metric, ..)| *metric).map(|(_, interface, gateway)| (interface, gateway))
}

fn mac(text: &str, gateway: Ipv4Addr, interface: &str) -> Option<String> {
    text.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, mac, _, device] = fields[..] else { return None };
        let is_known = mac.len() == 17 && mac != "00:00:00:00:00:00";
        (address.parse() == Ok(gateway) && device == interface && is_known).then(|| mac.to_ascii_lowercase())
    })
}

/// The first domain that is searched; the last line that has one counts.
fn domain(text: &str) -> String {
    let domain = text.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.next()).flatten()
    });
    name(domain.unwrap_or_default())
}

fn name(text: &str) -> String {
    text[..text.floor_char_boundary(NAME_BYTES_MAX)].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        wlan0\t00000000\tFE01A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
    const ARP: &str = "IP address       HW type     Flags       HW address            Mask     Device\n\
        192.168.1.1      0x1         0x2         AA:bb:cc:dd:ee:ff     *        eth0\n";

    fn look(files: &[(&str, &str)]) -> Network {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Network::look(root.path())
    }

    #[test]
    fn a_network_is_known_by_its_way_out() {
        let resolver = "nameserver 192.168.1.1\nsearch Site7.example other.example\n";
        let network = look(&[("proc/net/route", ROUTES), ("proc/net/arp", ARP), ("etc/resolv.conf", resolver)]);
        let expected = Network {
            gateway: Some(Ipv4Addr::new(192, 168, 1, 1)),
            mac: Some("aa:bb:cc:dd:ee:ff".to_owned()),
            interface: "eth0".to_owned(),
            domain: "site7.example".to_owned(),
        };
        assert_eq!(network, expected);
        assert_eq!(network.to_string(), "gateway 192.168.1.1, domain site7.example");
        let just_started = look(&[("proc/net/route", ROUTES), ("etc/resolv.conf", resolver)]);
        assert!(just_started.is(&network) && just_started.mac.is_none());
        let elsewhere = Network { mac: Some("00:00:00:00:00:01".to_owned()), ..network.clone() };
        assert!(!elsewhere.is(&network) && just_started.is(&elsewhere));
        assert!(!look(&[("proc/net/route", ROUTES)]).is(&network));
    }

    #[test]
    fn a_system_that_tells_nothing_or_nonsense_is_a_network_too() {
        let nothing = look(&[]);
        assert_eq!((&nothing, nothing.to_string().as_str()), (&Network::default(), "no default route"));
        let modem = "h\nwwan0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(look(&[("proc/net/route", modem)]).to_string(), "interface wwan0");
        for spoilt in ["h\nx\n", "h\na b c d e f g h i\n", "h\neth0 00000000 zz 0 0 0 0 00000000\n", "\u{fffd}\0"] {
            assert_eq!(look(&[("proc/net/route", spoilt), ("proc/net/arp", spoilt)]), Network::default());
        }
    }

    #[test]
    fn this_system_can_be_looked_at() {
        let network = Network::look(Path::new("/"));
        assert!(network.is(&network.clone()));
    }
}
