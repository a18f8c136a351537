//! The TUN interface: made at the start, addressed, hardened, and gone with the last of its queues.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::thread;

use ipnet::Ipv4Net;
use nix::errno::Errno;
use tun_rs::{AsyncDevice, DeviceBuilder};

use crate::config;
use crate::isolation::setting::{self, SettingError};
use crate::tunnel::slice::{IPV6_PREFIX, Slice};

/// Packets that may wait in the kernel for one queue's reader; with offload each is up to 64 KiB.
const KERNEL_QUEUE_PACKETS: u32 = 1000;

/// Why there is no interface, in words that say what to do.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    #[error(
        "/dev/net/tun cannot be opened: load the kernel's tun module, or pass the device into the container, or set \
         tunnel.enabled = false"
    )]
    NoTun(#[source] io::Error),
    #[error(
        "the interface {name} cannot be made: give the service CAP_NET_ADMIN and access to /dev/net/tun, or set \
         tunnel.enabled = false"
    )]
    NotAllowed { name: String, source: io::Error },
    #[error("there is an interface {0} already: another server runs, or tunnel.interface needs another name")]
    NameTaken(String),
    #[error(
        "the interface {interface} has addresses of {slice}: tunnel.pool_ipv4 must be a network that nobody else uses"
    )]
    AddressesTaken { slice: Ipv4Net, interface: String },
    #[error("the interface {name} does not get its addresses ({network})")]
    Address { name: String, network: String, source: io::Error },
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error("the interface {name} cannot be made")]
    Interface { name: String, source: io::Error },
    #[error("queue {queue} of the interface {name} cannot be made: tunnel.queues may be too many for this kernel")]
    Queue { name: String, queue: u32, source: io::Error },
    #[error("what interfaces there are cannot be read from {path}")]
    Proc { path: &'static str, source: io::Error },
}

/// Makes the interface with all its queues. To be called in a runtime.
pub(super) fn make(config: &config::Tunnel, slice: &Slice) -> Result<Vec<AsyncDevice>, PlaneError> {
    let name = config.interface.as_str().to_owned();
    // The kernel would let a second process join an interface with several queues.
    if names()?.contains(&name) {
        return Err(PlaneError::NameTaken(name));
    }
    if let Some(interface) = rival(slice.ipv4())? {
        return Err(PlaneError::AddressesTaken { slice: slice.ipv4(), interface });
    }
    let first = create(&name, config, slice)?;
    setting::harden(&name)?;
    setting::warn_of_loose_sources();
    let gateway = slice.gateway();
    first.add_address_v6(gateway.ipv6, IPV6_PREFIX).map_err(|source| PlaneError::Address {
        name: name.clone(),
        network: slice.ipv6().to_string(),
        source,
    })?;
    let mut queues = vec![first];
    for queue in 1..queue_count(config) {
        let next = queues[0].try_clone();
        queues.push(next.map_err(|source| PlaneError::Queue { name: name.clone(), queue, source })?);
    }
    // Last: nothing comes in before everything is as it should be.
    queues[0].enabled(true).map_err(|source| PlaneError::Interface { name, source })?;
    Ok(queues)
}

fn queue_count(config: &config::Tunnel) -> u32 {
    match config.queues {
        0 => thread::available_parallelism().map_or(1, |cores| u32::try_from(NonZero::get(cores)).unwrap_or(1)),
        queues => queues,
    }
}

fn create(name: &str, config: &config::Tunnel, slice: &Slice) -> Result<AsyncDevice, PlaneError> {
    let mtu = u16::try_from(config.mtu).expect("the configuration allows no larger MTU");
    let gateway = slice.gateway();
    let build = |has_offload| {
        DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .ipv4(gateway.ipv4, slice.ipv4().prefix_len(), None)
            .with(|builder| {
                builder.multi_queue(true).offload(has_offload).tx_queue_len(KERNEL_QUEUE_PACKETS);
            })
            .enable(false)
            .build_async()
    };
    let made = build(true).or_else(|error| match errno(&error) {
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) => {
            tracing::warn!(%error, "the kernel offers no segmentation offload on tun interfaces: tunnels cost more");
            build(false)
        }
        Some(_) | None => Err(error),
    });
    made.map_err(|source| match errno(&source) {
        Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => PlaneError::NoTun(source),
        Some(Errno::EPERM | Errno::EACCES) => PlaneError::NotAllowed { name: name.to_owned(), source },
        Some(Errno::EBUSY) => PlaneError::NameTaken(name.to_owned()),
        Some(_) | None => PlaneError::Interface { name: name.to_owned(), source },
    })
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// The interfaces in this network namespace.
fn names() -> Result<Vec<String>, PlaneError> {
    const PATH: &str = "/proc/thread-self/net/dev";
    let table = fs::read_to_string(PATH).map_err(|source| PlaneError::Proc { path: PATH, source })?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

/// Another interface that has a route into the slice: it would win over tunnels' addresses, or be cut off by them.
fn rival(slice: Ipv4Net) -> Result<Option<String>, PlaneError> {
    const PATH: &str = "/proc/thread-self/net/route";
    let table = fs::read_to_string(PATH).map_err(|source| PlaneError::Proc { path: PATH, source })?;
    let routes = table.lines().skip(1).filter_map(route);
    Ok(routes.filter(|(_, network)| slice.contains(network)).map(|(interface, _)| interface.to_owned()).next())
}

/// Reads a line of the kernel's table: interface, destination, gateway, flags, three counts, mask; addresses as hexadecimal
/// numbers in the machine's byte order.
fn route(line: &str) -> Option<(&str, Ipv4Net)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |text| Some(Ipv4Addr::from(u32::from_str_radix(text, 16).ok()?.to_ne_bytes()));
    let network = Ipv4Net::with_netmask(address(fields.get(1)?)?, address(fields.get(7)?)?).ok()?;
    Some((fields.first()?, network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_the_kernel_are_read() {
        let line = "eth0\t0000630A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        let expected = Ipv4Net::new(Ipv4Addr::new(10, 99, 0, 0), 16).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(route(line), Some(("eth0", expected)));
        }
        assert_eq!(route("eth0 0000630A"), None);
        assert_eq!(route(""), None);
    }
}
