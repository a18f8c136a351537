//! The stand-ins of the Internet and of another node: interfaces of our own at which ends what the kernel sends there. A probe's
//! packet that is read here got out; no answer has to come for it to be seen.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::lookout::{Lookout, Place};
use crate::tunnel::slice::{Addresses, HOST_FIRST, Slice};

/// Networks that no host on the Internet has (RFC 5737, RFC 3849), and where in them this node and the other end are.
const NODE: Addresses = Addresses { ipv4: Ipv4Addr::new(192, 0, 2, 1), ipv6: documentation(1) };
pub(super) const INTERNET: Addresses = Addresses { ipv4: Ipv4Addr::new(192, 0, 2, 66), ipv6: documentation(0x66) };
const IPV4_PREFIX: u8 = 24;
const IPV6_PREFIX: u8 = 64;
/// Two addresses: one for this node, the other for what stands for another node's device.
const PAIR_PREFIX_V4: u8 = 31;
const PAIR_PREFIX_V6: u8 = 127;
const POOL_PREFIX_V6: u8 = 48;
/// What is added to the name of the tunnels' interface, for the Internet's and for the other node's.
const INTERNET_SUFFIX: &str = "-x";
const OTHER_NODE_SUFFIX: &str = "-y";
/// The kernel's limit, without the zero at the end.
const NAME_BYTES_MAX: usize = 15;
const READ_BYTES: usize = 2_048;
const MTU: u16 = 1_500;

const fn documentation(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0x0db8, 0xc10d, 0, 0, 0, 0, host)
}

/// The interfaces, gone when this is dropped.
#[derive(Debug)]
pub(super) struct Outside {
    internet: End,
    other_node: Option<End>,
}

impl Outside {
    /// Makes them. To be called in a runtime.
    pub(super) fn open(tunnels: &str, other_node: Option<OtherNode>, lookout: &Arc<Lookout>) -> io::Result<Self> {
        let internet = End::open(&name(tunnels, INTERNET_SUFFIX), NODE, (IPV4_PREFIX, IPV6_PREFIX), lookout)?;
        let open = |OtherNode { here, .. }| {
            End::open(&name(tunnels, OTHER_NODE_SUFFIX), here, (PAIR_PREFIX_V4, PAIR_PREFIX_V6), lookout)
        };
        Ok(Self { internet, other_node: other_node.map(open).transpose()? })
    }

    /// Whether they are still there: somebody may have removed them.
    pub(super) fn is_there(&self) -> bool {
        [Some(&self.internet), self.other_node.as_ref()].into_iter().flatten().all(|end| !end.hearing.is_finished())
    }

    /// Lets a packet come in from the Internet. Says whether the kernel took it.
    pub(super) fn send(&self, packet: &[u8]) -> bool {
        self.internet.device.0.try_send(packet).is_ok()
    }
}

/// An interface whose other end is here.
#[derive(Debug)]
struct End {
    device: Arc<Device>,
    hearing: JoinHandle<()>,
    _stop: DropGuard,
}

struct Device(AsyncDevice);

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

impl End {
    fn open(name: &str, here: Addresses, prefixes: (u8, u8), lookout: &Arc<Lookout>) -> io::Result<Self> {
        let (ipv4_prefix, ipv6_prefix) = prefixes;
        let builder = DeviceBuilder::new().name(name).mtu(MTU).ipv4(here.ipv4, ipv4_prefix, None).enable(false);
        let device = builder.build_async()?;
        set(name);
        device.add_address_v6(here.ipv6, ipv6_prefix)?;
        device.enabled(true)?;
        let (device, stop) = (Arc::new(Device(device)), CancellationToken::new());
        let hearing = tokio::spawn(hear(Arc::clone(&device), Arc::clone(lookout), stop.clone()));
        Ok(Self { device, hearing, _stop: stop.drop_guard() })
    }
}

/// As open as an interface to the outside can be: what holds is to be the rules, and no setting of this host. Nobody but the probes
/// can send anything in here. A system that does not let them be set leaves it as open as its others are.
fn set(name: &str) {
    const SETTINGS: [(&str, &str, &str); 5] = [
        ("ipv4", "forwarding", "1"),
        ("ipv4", "rp_filter", "0"),
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "addr_gen_mode", "1"),
        ("ipv6", "router_solicitations", "0"),
    ];
    for (family, setting, value) in SETTINGS {
        let key = format!("/proc/sys/net/{family}/conf/{name}/{setting}");
        if let Err(error) = fs::write(&key, value) {
            tracing::debug!(key, %error, "a setting of the stand-in stays as it is");
        }
    }
}

async fn hear(device: Arc<Device>, lookout: Arc<Lookout>, stop: CancellationToken) {
    let mut buffer = [0; READ_BYTES];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            read = device.0.recv(&mut buffer) => match read {
                Ok(bytes) => {
                    lookout.see(Place::Outside, &buffer[..bytes]);
                }
                // Somebody has removed it: the next round says that it cannot be made.
                Err(error) => return tracing::warn!(%error, "the stand-in of the Internet cannot be read"),
            },
        }
    }
}

/// Made of the name of the tunnels' interface, so that two nodes in one network do not meet.
fn name(tunnels: &str, suffix: &str) -> String {
    let kept = tunnels.len().min(NAME_BYTES_MAX - suffix.len());
    format!("{}{suffix}", &tunnels[..tunnels.floor_char_boundary(kept)])
}

/// A piece of another node's slice, of two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherNode {
    here: Addresses,
    /// The one that is tried.
    pub(super) there: Addresses,
}

impl OtherNode {
    /// Of the slice that is the last to be leased, so that no node of this host has it. `None`: there is no other slice.
    pub(super) fn find(pool_ipv4: Ipv4Net, own: &Slice, own_number: u32) -> Option<Self> {
        let prefix = own.ipv4().prefix_len();
        // Slices differ in the bits behind the first 48.
        let pool_ipv6 = Ipv6Net::new(own.ipv6().addr(), POOL_PREFIX_V6).ok()?.trunc();
        let last = Slice::count(pool_ipv4, prefix).checked_sub(1)?;
        let number = if last == own_number { last.checked_sub(1)? } else { last };
        let slice = Slice::new(pool_ipv4, prefix, pool_ipv6, number)?;
        Some(Self { here: slice.addresses(HOST_FIRST)?, there: slice.addresses(HOST_FIRST + 1)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_fits_whatever_the_tunnels_interface_is_called() {
        assert_eq!(name("cloudlink0", "-x"), "cloudlink0-x");
        assert_eq!(name("abcdefghijklmno", "-x"), "abcdefghijklm-x");
    }

    #[test]
    fn another_nodes_range_is_never_the_own_one() {
        let find = |pool: &str, prefix, own| {
            let pool = pool.parse().unwrap();
            let slice = Slice::new(pool, prefix, "fd12:3456:789a::/48".parse().unwrap(), own).unwrap();
            OtherNode::find(pool, &slice, own)
        };
        let there = |own| find("100.64.0.0/10", 16, own).unwrap().there;
        let text = |Addresses { ipv4, ipv6 }| format!("{ipv4} {ipv6}");
        assert_eq!(text(there(0)), "100.127.0.3 fd12:3456:789a:3f::3");
        assert_eq!(text(there(63)), "100.126.0.3 fd12:3456:789a:3e::3");
        assert_eq!(find("10.9.0.0/24", 24, 0), None);
        // Both addresses of the pair lie in one network of that size.
        let OtherNode { here, there } = find("100.64.0.0/10", 16, 0).unwrap();
        assert_eq!(here.ipv4.to_bits() | 1, there.ipv4.to_bits());
        assert_eq!(here.ipv6.to_bits() | 1, there.ipv6.to_bits());
    }
}
