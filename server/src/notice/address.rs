//! Where webhooks may lead. Whoever names an address makes this server speak to it, from inside its network: so it speaks to
//! addresses of the Internet only, unless the configuration says otherwise, and never to itself.
//!
//! A name is judged by what it resolves to when something is sent, and the connection goes to what was judged: a name that resolves
//! to something else a moment later gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why an address is not spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it is an address of a private network or of this host")]
    Private,
    #[error("it is an address that webhooks are never sent to")]
    Never,
    #[error("it is an address of devices")]
    Tunnel,
    #[error("it is a port of this server")]
    Oneself,
}

/// None of the addresses of a name may be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address is not allowed: {0}")]
pub struct AddressRefused(pub Refused);

/// Judges addresses.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Whether private networks and this host are fine.
    is_private_fine: bool,
    /// Where devices' tunnels have their addresses.
    tunnels: Vec<IpNet>,
    /// What this server listens on.
    ports: Vec<u16>,
}

impl Guard {
    #[must_use]
    pub fn new(is_private_fine: bool, tunnels: Vec<IpNet>, ports: Vec<u16>) -> Self {
        Self { is_private_fine, tunnels, ports }
    }

    #[must_use]
    pub fn is_private_fine(&self) -> bool {
        self.is_private_fine
    }

    pub(super) fn is_own_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// One of the ports that this server listens on.
    pub(super) fn own_port(&self) -> Option<u16> {
        self.ports.first().copied()
    }

    /// Judges one address, and whatever else it leads to.
    pub fn check(&self, address: SocketAddr) -> Result<(), Refused> {
        self.check_among(address, &own_addresses())
    }

    fn check_among(&self, address: SocketAddr, own: &[IpAddr]) -> Result<(), Refused> {
        let written = address.ip();
        for ip in std::iter::once(written).chain(inner(written).map(IpAddr::V4)) {
            if self.tunnels.iter().any(|net| net.contains(&ip)) {
                return Err(Refused::Tunnel);
            }
            let is_own = ip.is_loopback() || ip.is_unspecified() || own.contains(&ip);
            if is_own && self.ports.contains(&address.port()) {
                return Err(Refused::Oneself);
            }
            match reach(ip) {
                Reach::Never => return Err(Refused::Never),
                Reach::Private if !self.is_private_fine => return Err(Refused::Private),
                Reach::Internet if is_own && !self.is_private_fine => return Err(Refused::Private),
                Reach::Private | Reach::Internet => {}
            }
        }
        Ok(())
    }

    /// Those that may be spoken to; if there are none, why not.
    fn choose(&self, addresses: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, AddressRefused> {
        let own = own_addresses();
        let (mut fine, mut refused) = (Vec::new(), Refused::Never);
        for address in addresses {
            match self.check_among(address, &own) {
                Ok(()) => fine.push(address),
                Err(why) => refused = why,
            }
        }
        if fine.is_empty() { Err(AddressRefused(refused)) } else { Ok(fine) }
    }
}

/// Resolves names to addresses that may be spoken to, for one port.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    pub(super) guard: Arc<Guard>,
    /// What is spoken to on it; as the client does not say, each kind of port has a client of its own.
    pub(super) port: u16,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { guard, port } = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), port)).await?;
            let fine = guard.choose(found)?;
            // Zero: the port of the address that is asked for.
            Ok(Box::new(fine.into_iter().map(|address| SocketAddr::new(address.ip(), 0))) as Addrs)
        })
    }
}

/// The addresses of this host's interfaces.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// One's own network, or host.
    Private,
    Internet,
    /// No receiver has such an address, or it is one that tells secrets of this very host.
    Never,
}

fn reach(ip: IpAddr) -> Reach {
    match ip {
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => reach_v6(ip),
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    // The special-purpose registry of IANA (RFC 6890), and where clouds tell a machine its secrets.
    const NEVER: [(Ipv4Addr, u8); 14] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 100, 100, 200), 32),
        (Ipv4Addr::new(168, 63, 129, 16), 32),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 31, 196, 0), 24),
        (Ipv4Addr::new(192, 52, 193, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 175, 48, 0), 24),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];
    const PRIVATE: [(Ipv4Addr, u8); 6] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
    ];
    let is_in = |nets: &[(Ipv4Addr, u8)]| nets.iter().any(|(net, prefix)| v4(*net, *prefix).contains(&ip));
    match (is_in(&NEVER), is_in(&PRIVATE)) {
        (true, _) => Reach::Never,
        (false, true) => Reach::Private,
        (false, false) => Reach::Internet,
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    // Where clouds tell a machine its secrets.
    const SECRETS: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
    // Of what is otherwise the Internet: protocols, Teredo, documentation.
    const NEVER: [(Ipv6Addr, u8); 3] = [
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    ];
    if SECRETS.contains(&ip) {
        return Reach::Never;
    }
    if ip.is_loopback() || v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7).contains(&ip) {
        return Reach::Private;
    }
    // These are as the address inside, which is judged besides.
    if embeds(ip) {
        return Reach::Internet;
    }
    let is_global = v6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3).contains(&ip);
    if is_global && !NEVER.iter().any(|(net, prefix)| v6(*net, *prefix).contains(&ip)) {
        Reach::Internet
    } else {
        Reach::Never
    }
}

/// Forms of an IPv6 address outside of the Internet's own that are an IPv4 address: mapped (RFC 4291), NAT64 (RFC 6052).
fn embeds(ip: Ipv6Addr) -> bool {
    let is_nat64 = v6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96).contains(&ip);
    is_nat64 || ip.to_ipv4_mapped().is_some()
}

/// The IPv4 address to which an IPv6 address leads, if it is of a form that does: mapped, NAT64, 6to4, ISATAP.
fn inner(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [.., a, b, c, d] = ip.octets();
    if embeds(ip) {
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    match ip.segments() {
        [0x2002, high, low, ..] => Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))),
        [_, _, _, _, 0 | 0x200, 0x5efe, _, _] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

fn v4(net: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(net, prefix).expect("a constant prefix")
}

fn v6(net: Ipv6Addr, prefix: u8) -> Ipv6Net {
    Ipv6Net::new(net, prefix).expect("a constant prefix")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn guard(is_private_fine: bool) -> Guard {
        let pools = vec!["100.64.0.0/10".parse().unwrap(), "fd12:3456:789a::/48".parse().unwrap()];
        Guard::new(is_private_fine, pools, vec![8443, 9090])
    }

    fn judge(is_private_fine: bool, address: &str, port: u16) -> Result<(), Refused> {
        let own = ["203.0.114.5".parse().unwrap(), "2a00:1::5".parse().unwrap()];
        guard(is_private_fine).check_among(SocketAddr::new(address.parse().unwrap(), port), &own)
    }

    #[rstest]
    #[case("93.184.216.34")]
    #[case("1.1.1.1")]
    #[case("172.32.0.1")]
    #[case("2606:4700::1111")]
    #[case("::ffff:93.184.216.34")]
    #[case("64:ff9b::5db8:d822")]
    #[case("2002:5db8:d822::1")]
    fn the_internet_is_fine(#[case] address: &str) {
        assert_eq!(judge(false, address, 443), Ok(()));
        assert_eq!(judge(true, address, 443), Ok(()));
    }

    #[rstest]
    #[case("127.0.0.1")]
    #[case("127.255.255.254")]
    #[case("10.1.2.3")]
    #[case("172.16.0.1")]
    #[case("172.31.255.255")]
    #[case("192.168.1.1")]
    #[case("198.18.0.1")]
    #[case("::1")]
    #[case("fd00::1")]
    #[case("fc00::1")]
    #[case("::ffff:127.0.0.1")]
    #[case("::ffff:10.0.0.1")]
    #[case("64:ff9b::10.0.0.1")]
    #[case("64:ff9b::127.0.0.1")]
    #[case("2002:a00:1::1")]
    #[case("2002:7f00:1::")]
    #[case("2a00:2::5efe:10.0.0.1")]
    #[case("2a00:2::200:5efe:192.168.0.1")]
    // This host's own.
    #[case("203.0.114.5")]
    #[case("2a00:1::5")]
    #[case("::ffff:203.0.114.5")]
    fn private_networks_and_this_host_are_fine_only_where_the_configuration_says_so(#[case] address: &str) {
        assert_eq!(judge(false, address, 443), Err(Refused::Private));
        assert_eq!(judge(true, address, 443), Ok(()));
    }

    #[rstest]
    #[case("0.0.0.0")]
    #[case("0.1.2.3")]
    #[case("169.254.169.254")]
    #[case("169.254.170.2")]
    #[case("168.63.129.16")]
    #[case("192.0.0.192")]
    #[case("192.0.2.1")]
    #[case("224.0.0.1")]
    #[case("239.255.255.250")]
    #[case("240.0.0.1")]
    #[case("255.255.255.255")]
    #[case("::")]
    #[case("fe80::1")]
    #[case("fec0::1")]
    #[case("ff02::1")]
    #[case("fd00:ec2::254")]
    #[case("2001:db8::1")]
    #[case("2001:0:5ef5:79fd::1")]
    #[case("64:ff9b:1::1")]
    #[case("::93.184.216.34")]
    #[case("::ffff:169.254.169.254")]
    #[case("64:ff9b::169.254.169.254")]
    #[case("2002:a9fe:a9fe::1")]
    #[case("100::1")]
    #[case("5f00::1")]
    fn what_no_receiver_has_is_never_fine(#[case] address: &str) {
        for is_private_fine in [false, true] {
            assert_eq!(judge(is_private_fine, address, 443), Err(Refused::Never));
        }
    }

    #[rstest]
    #[case("100.64.0.1")]
    #[case("100.127.255.255")]
    #[case("fd12:3456:789a::1")]
    #[case("::ffff:100.64.0.1")]
    #[case("64:ff9b::100.64.0.1")]
    #[case("2002:6440:1::")]
    fn devices_are_never_spoken_to(#[case] address: &str) {
        for is_private_fine in [false, true] {
            assert_eq!(judge(is_private_fine, address, 443), Err(Refused::Tunnel));
        }
    }

    #[rstest]
    #[case("127.0.0.1")]
    #[case("127.8.8.8")]
    #[case("::1")]
    #[case("::ffff:127.0.0.1")]
    #[case("0.0.0.0")]
    #[case("203.0.114.5")]
    fn the_server_never_speaks_to_itself(#[case] address: &str) {
        for is_private_fine in [false, true] {
            assert_eq!(judge(is_private_fine, address, 9090), Err(Refused::Oneself));
        }
    }

    #[test]
    fn of_a_name_with_several_addresses_only_those_are_spoken_to_that_are_fine() {
        let addresses = ["10.0.0.1:443", "93.184.216.34:443", "[::1]:443"].map(|address| address.parse().unwrap());
        assert_eq!(guard(false).choose(addresses.into_iter()), Ok(vec![addresses[1]]));
        let bad = addresses.into_iter().filter(|address| *address != addresses[1]);
        assert_eq!(guard(false).choose(bad), Err(AddressRefused(Refused::Private)));
    }

    #[test]
    fn the_addresses_of_this_host_are_known() {
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
