//! The addresses of one node's tunnels: arithmetic only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The node itself.
const GATEWAY: u32 = 1;
/// The first device.
pub(crate) const HOST_FIRST: u32 = 2;
/// Of the IPv6 network of a slice.
pub(crate) const IPV6_PREFIX: u8 = 64;
/// As many as the bits between the /48 of a fleet and the /64 of a slice can tell apart.
const SLICES_MAX: u32 = 1 << 16;

/// What one end of a tunnel is reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// The part of the address pools that one node gives out. A host has the same number in both of its networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    ipv4: Ipv4Net,
    ipv6: Ipv6Net,
}

impl Slice {
    /// How many slices a pool has.
    #[must_use]
    pub fn count(pool_ipv4: Ipv4Net, slice_prefix: u8) -> u32 {
        let bits = slice_prefix.checked_sub(pool_ipv4.prefix_len()).filter(|_| slice_prefix <= 32);
        bits.map_or(0, |bits| 1_u32.checked_shl(bits.into()).unwrap_or(u32::MAX).min(SLICES_MAX))
    }

    /// The slice with this number, counted from 0. There is none beyond [`Self::count`], and none of a pool that is too small.
    #[must_use]
    pub fn new(pool_ipv4: Ipv4Net, slice_prefix: u8, pool_ipv6: Ipv6Net, number: u32) -> Option<Self> {
        let has_devices = slice_prefix <= 30;
        let is_in_ipv6 = pool_ipv6.prefix_len() <= 48;
        if number >= Self::count(pool_ipv4, slice_prefix) || !has_devices || !is_in_ipv6 {
            return None;
        }
        // In 64 bits: the slice may be the whole address space.
        let offset = u32::try_from(u64::from(number) << (32 - u32::from(slice_prefix))).ok()?;
        let ipv4 = Ipv4Addr::from_bits(pool_ipv4.network().to_bits() | offset);
        let ipv6 = Ipv6Addr::from_bits(pool_ipv6.network().to_bits() | u128::from(number) << IPV6_PREFIX);
        Some(Self { ipv4: Ipv4Net::new(ipv4, slice_prefix).ok()?, ipv6: Ipv6Net::new(ipv6, IPV6_PREFIX).ok()? })
    }

    /// The node's own addresses.
    #[must_use]
    pub fn gateway(&self) -> Addresses {
        self.at(GATEWAY)
    }

    /// The addresses of a device; none for a number that no device may have.
    #[must_use]
    pub fn addresses(&self, host: u32) -> Option<Addresses> {
        (HOST_FIRST..=self.hosts_max()).contains(&host).then(|| self.at(host))
    }

    /// The highest number that a device may have.
    #[must_use]
    pub fn hosts_max(&self) -> u32 {
        // The last address is the broadcast address.
        self.ipv4.hostmask().to_bits() - 1
    }

    /// The number of the host that has this address; none for the node's own, and for addresses that nobody can have.
    #[must_use]
    pub fn host_of(&self, ip: IpAddr) -> Option<u32> {
        let host = match ip {
            IpAddr::V4(ip) if self.ipv4.contains(&ip) => ip.to_bits() & self.ipv4.hostmask().to_bits(),
            IpAddr::V6(ip) if self.ipv6.contains(&ip) => {
                u32::try_from(ip.to_bits() & self.ipv6.hostmask().to_bits()).ok()?
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        (HOST_FIRST..=self.hosts_max()).contains(&host).then_some(host)
    }

    #[must_use]
    pub fn ipv4(&self) -> Ipv4Net {
        self.ipv4
    }

    #[must_use]
    pub fn ipv6(&self) -> Ipv6Net {
        self.ipv6
    }

    #[must_use]
    pub fn netmask(&self) -> Ipv4Addr {
        self.ipv4.netmask()
    }

    fn at(&self, host: u32) -> Addresses {
        Addresses {
            ipv4: Ipv4Addr::from_bits(self.ipv4.network().to_bits() | host),
            ipv6: Ipv6Addr::from_bits(self.ipv6.network().to_bits() | u128::from(host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(pool: &str, prefix: u8, number: u32) -> Option<Slice> {
        Slice::new(pool.parse().unwrap(), prefix, "fd12:3456:789a::/48".parse().unwrap(), number)
    }

    fn addresses(ipv4: &str, ipv6: &str) -> Addresses {
        Addresses { ipv4: ipv4.parse().unwrap(), ipv6: ipv6.parse().unwrap() }
    }

    #[test]
    fn slices_lie_side_by_side_and_fill_the_pool() {
        assert_eq!(Slice::count("100.64.0.0/10".parse().unwrap(), 16), 64);
        assert_eq!(slice("100.64.0.0/10", 16, 0).unwrap().gateway(), addresses("100.64.0.1", "fd12:3456:789a::1"));
        assert_eq!(slice("100.64.0.0/10", 16, 1).unwrap().gateway(), addresses("100.65.0.1", "fd12:3456:789a:1::1"));
        assert_eq!(slice("100.64.0.0/10", 16, 63).unwrap().gateway(), addresses("100.127.0.1", "fd12:3456:789a:3f::1"));
        assert_eq!(slice("100.64.0.0/10", 16, 64), None);
    }

    #[test]
    fn a_slice_may_be_the_whole_pool_but_not_more() {
        assert_eq!(Slice::count("10.9.0.0/24".parse().unwrap(), 24), 1);
        assert_eq!(slice("10.9.0.0/24", 24, 0).unwrap().ipv4().to_string(), "10.9.0.0/24");
        assert_eq!(Slice::count("10.9.0.0/24".parse().unwrap(), 23), 0);
        assert_eq!(slice("10.9.0.0/24", 23, 0), None);
        assert_eq!(slice("0.0.0.0/0", 0, 0).unwrap().hosts_max(), u32::MAX - 1);
        assert_eq!(Slice::count("0.0.0.0/0".parse().unwrap(), 32), SLICES_MAX);
    }

    #[test]
    fn devices_begin_behind_the_node_and_end_before_the_broadcast_address() {
        let slice = slice("10.9.0.0/16", 29, 3).unwrap();
        assert_eq!(slice.hosts_max(), 6);
        assert_eq!(slice.addresses(2), Some(addresses("10.9.0.26", "fd12:3456:789a:3::2")));
        assert_eq!(slice.addresses(6), Some(addresses("10.9.0.30", "fd12:3456:789a:3::6")));
        for host in [0, 1, 7, u32::MAX] {
            assert_eq!(slice.addresses(host), None);
        }
    }

    #[test]
    fn a_host_is_found_by_either_of_its_addresses_and_nobody_by_another() {
        let slice = slice("100.64.0.0/10", 16, 5).unwrap();
        for host in [2, 3, 255, 256, 65_534] {
            let Addresses { ipv4, ipv6 } = slice.addresses(host).unwrap();
            assert_eq!((slice.host_of(ipv4.into()), slice.host_of(ipv6.into())), (Some(host), Some(host)));
        }
        for nobody in [
            "100.69.0.0",
            "100.69.0.1",
            "100.69.255.255",
            "100.68.0.2",
            "100.70.0.2",
            "fd12:3456:789a:5::",
            "fd12:3456:789a:5::1",
            "fd12:3456:789a:5::ffff",
            "fd12:3456:789a:5:1::2",
            "fd12:3456:789a:5::1:0:2",
            "fd12:3456:789a:4::2",
            "ff02::1",
        ] {
            assert_eq!(slice.host_of(nobody.parse().unwrap()), None, "{nobody}");
        }
    }
}
