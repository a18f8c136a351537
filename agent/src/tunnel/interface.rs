//! The tunnel's interface: its address, and the gateway that the server has inside of it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use tokio::time::sleep;

use super::TunnelError;
use crate::config::OpenVpn;

/// An interface that a link can be dialled through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    /// Another one after each making of the interface: a tunnel that went down and up is another tunnel, whatever its address.
    index: u32,
    /// The device's.
    pub address: Ipv4Addr,
    /// Where the server is.
    pub gateway: SocketAddrV4,
}

/// Looks at the interface as it is now.
///
/// # Errors
/// When there is none, it has no address, or it is no tunnel.
pub fn find(settings: &OpenVpn) -> Result<Interface, TunnelError> {
    let name = &settings.interface;
    let missing = || TunnelError::NoAddress { interface: name.clone() };
    let mut addresses = getifaddrs().map_err(TunnelError::Interfaces)?;
    let found = addresses.find_map(|address| Found::of(&address, name)).ok_or_else(missing)?;
    if !found.flags.contains(InterfaceFlags::IFF_POINTOPOINT) {
        // On anything but a tunnel the link would be in the clear, and the gateway could be anybody.
        return Err(TunnelError::NotATunnel { interface: name.clone() });
    }
    if !found.flags.contains(InterfaceFlags::IFF_UP) {
        return Err(missing());
    }
    let gateway = settings.gateway.or_else(|| first_host(found.address, found.netmask));
    let gateway = gateway.filter(|gateway| *gateway != found.address).ok_or_else(|| TunnelError::NoGateway {
        interface: name.clone(),
        address: found.address,
        prefix: u32::from(found.netmask).count_ones(),
    })?;
    Ok(Interface {
        name: name.clone(),
        // Gone since, perhaps.
        index: if_nametoindex(name.as_str()).map_err(|_| missing())?,
        address: found.address,
        gateway: SocketAddrV4::new(gateway, settings.link_port),
    })
}

/// How often the interface is looked at: a tunnel that came up is used within this, one that went away is missed within this.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Waits until this tunnel is no longer there.
pub async fn gone(settings: &OpenVpn, tunnel: &Interface) -> TunnelError {
    loop {
        match find(settings) {
            Ok(found) if found == *tunnel => {}
            // Nothing was seen, neither that it is there nor that it is gone.
            Err(TunnelError::Interfaces(_)) => {}
            Ok(_) | Err(_) => return TunnelError::Gone { interface: tunnel.name.clone() },
        }
        sleep(LOOK_EVERY).await;
    }
}

struct Found {
    flags: InterfaceFlags,
    address: Ipv4Addr,
    netmask: Ipv4Addr,
}

impl Found {
    /// The interface's IPv4 address, if this entry is one.
    fn of(entry: &InterfaceAddress, interface: &str) -> Option<Self> {
        if entry.interface_name != interface {
            return None;
        }
        let address = entry.address.as_ref()?.as_sockaddr_in()?.ip();
        let netmask = entry.netmask.as_ref()?.as_sockaddr_in()?.ip();
        Some(Self { flags: entry.flags, address, netmask })
    }
}

/// The first address of a network that has more than two: the server gives itself that one.
fn first_host(address: Ipv4Addr, netmask: Ipv4Addr) -> Option<Ipv4Addr> {
    let mask = u32::from(netmask);
    (mask.count_ones() <= 30).then(|| Ipv4Addr::from((u32::from(address) & mask) + 1))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_slice("100.64.0.9", "255.255.0.0", Some("100.64.0.1"))]
    #[case::another_slice("100.65.255.254", "255.255.0.0", Some("100.65.0.1"))]
    #[case::not_at_a_byte("10.8.19.200", "255.255.240.0", Some("10.8.16.1"))]
    #[case::the_smallest("10.0.0.6", "255.255.255.252", Some("10.0.0.5"))]
    #[case::the_last("255.255.255.255", "255.255.255.0", Some("255.255.255.1"))]
    #[case::point_to_point("10.8.0.6", "255.255.255.255", None)]
    #[case::two_addresses("10.8.0.6", "255.255.255.254", None)]
    #[case::everything("10.8.0.6", "0.0.0.0", Some("0.0.0.1"))]
    fn the_gateway_is_the_first_address_of_the_network(
        #[case] address: Ipv4Addr,
        #[case] netmask: Ipv4Addr,
        #[case] gateway: Option<&str>,
    ) {
        assert_eq!(first_host(address, netmask), gateway.map(|gateway| gateway.parse().unwrap()));
    }

    #[test]
    fn what_is_no_tunnel_is_not_dialled_through() {
        let settings =
            |interface: &str| OpenVpn { interface: interface.to_owned(), gateway: None, link_port: 80, started: None };
        assert!(matches!(find(&settings("lo")), Err(TunnelError::NotATunnel { .. })));
        let error = find(&settings("cla-none")).unwrap_err();
        assert_eq!(error.to_string(), "no tunnel yet: interface cla-none has no address");
    }
}
