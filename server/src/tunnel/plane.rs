//! The packets' plane: the TUN interface, its queues, and which tunnel has which address.
//!
//! ```text
//! kernel ── queue (one a core) ── directory: destination → Line ── wall, doors ── room for waiting packets ── the tunnel's task
//! kernel <── the tunnel's queue <── segments put together <── wall, doors <── the tunnel's task
//! ```
//!
//! A packet from the kernel goes to the tunnel whose address it is for, or nowhere, and only if it is from the node itself. A
//! packet from a tunnel goes to the kernel, and only if it is for the node itself: no packet ever goes from tunnel to tunnel
//! here, and none is forwarded, not even where the system around this forwards packets. Of the node, a device reaches its link
//! port; of a device, the node reaches the ports that are open for support.

mod directory;
mod door;
mod interface;
mod meter;
pub(super) mod offload;
mod port;
mod quarantine;
mod queue;
mod tally;
mod wall;

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TunnelId};
use tokio::time::Instant;
use tun_rs::AsyncDevice;

use directory::Directory;
pub use interface::PlaneError;
use meter::Meters;
use port::Line;
pub(crate) use port::{Counts, Owner, Port};
use quarantine::Quarantine;
pub(crate) use tally::Drops;
use tally::Ended;
use wall::Wall;

use super::slice::{Addresses, Slice};
use crate::config;
use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;

/// Is shown what the kernel sends to devices and the plane does not let through.
type Witness = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The interface, its queues, and the tunnels that are attached to it.
pub(crate) struct Plane {
    slice: Slice,
    gateway: Addresses,
    queues: Box<[AsyncDevice]>,
    directory: Directory,
    wall: Wall,
    quarantine: Quarantine,
    ended: Ended,
    waiting_bytes_max: usize,
    deaf_after: Duration,
    meters: Meters,
    witness: OnceLock<Witness>,
}

impl Plane {
    /// Makes the interface, which is gone with the plane. To be called in a runtime.
    pub(crate) fn open(config: &config::Tunnel, slice: Slice, metrics: &Metrics) -> Result<Arc<Self>, PlaneError> {
        let link_port = u16::try_from(config.link_port).expect("the configuration allows ports only");
        let queues = interface::make(config, &slice)?;
        let has_offload = queues[0].tcp_gso();
        tracing::info!(interface = %config.interface.as_str(), network = %slice.ipv4(), network_ipv6 = %slice.ipv6(),
            queues = queues.len(), has_offload, "the tunnels' interface is up");
        Ok(Arc::new(Self {
            slice,
            gateway: slice.gateway(),
            queues: queues.into(),
            directory: Directory::new(slice),
            wall: Wall::new(slice, link_port),
            quarantine: Quarantine::default(),
            ended: Ended::default(),
            waiting_bytes_max: usize::try_from(config.queue_bytes_max).unwrap_or(usize::MAX),
            deaf_after: config.dead_after_seconds.duration(),
            meters: Meters::new(metrics),
            witness: OnceLock::new(),
        }))
    }

    /// A plane for tests in which no packet passes: it needs no root.
    #[cfg(test)]
    pub(crate) fn without_interface(slice: Slice, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            slice,
            gateway: slice.gateway(),
            queues: Box::default(),
            directory: Directory::new(slice),
            wall: Wall::new(slice, 80),
            quarantine: Quarantine::default(),
            ended: Ended::default(),
            waiting_bytes_max: 0,
            deaf_after: Duration::from_secs(3600),
            meters: Meters::new(metrics),
            witness: OnceLock::new(),
        })
    }

    /// Reads the queues until the hard stop: tunnels live on through the soft one.
    pub(crate) fn start(self: &Arc<Self>, shutdown: &Shutdown) {
        for number in 0..self.queues.len() {
            let (plane, hard) = (Arc::clone(self), shutdown.hard.clone());
            shutdown.spawn_vital("tunnel queue", async move {
                tokio::select! {
                    () = hard.cancelled() => {}
                    () = queue::read(&plane, number) => {}
                }
            });
        }
    }

    /// Gives a tunnel its place: the packets to the host's addresses are its own from now on, and an older tunnel's no more.
    /// `is_quarantined`: whether its device was in quarantine when the tunnel came up.
    pub(crate) fn attach(
        self: &Arc<Self>,
        host: u32,
        tunnel: TunnelId,
        device: DeviceId,
        is_quarantined: bool,
    ) -> Port {
        let line = Arc::new(Line::new(Owner { tunnel, device }, self.waiting_bytes_max));
        self.quarantine.enter(device, is_quarantined, |is_quarantined| {
            line.doors.set_quarantine(is_quarantined);
            self.directory.enter(host, Arc::clone(&line));
        });
        Port::new(Arc::clone(self), host, line)
    }

    /// Whose tunnel has this address now.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<Owner> {
        self.directory.find(ip)?.as_ref().map(|line| line.owner)
    }

    /// Shows somebody from now on what the kernel sends to devices and the plane does not let through. There is one, for good.
    pub(crate) fn set_witness(&self, witness: impl Fn(&[u8]) + Send + Sync + 'static) {
        let _ = self.witness.set(Box::new(witness));
    }

    /// What went through each tunnel that is attached now.
    pub(crate) fn traffic(&self) -> Vec<(Owner, Counts)> {
        self.directory.lines().iter().map(|line| (line.owner, line.traffic.counts())).collect()
    }

    /// What devices tried since the last time that they may not, also those whose tunnels have ended meanwhile.
    pub(crate) fn drops(&self) -> Vec<(DeviceId, Drops)> {
        let mut drops = self.ended.take();
        for line in self.directory.lines() {
            if let Some(taken) = line.tally.take() {
                drops.entry(line.owner.device).or_default().add(&taken);
            }
        }
        drops.into_iter().collect()
    }

    /// The ports of a device that are open for support from now on, each until its time, and no others. Says whether the tunnel
    /// is there.
    pub(crate) fn set_openings(&self, host: u32, tunnel: TunnelId, openings: &[(u16, Instant)]) -> bool {
        let found = self.directory.at(host);
        let line = found.as_ref().and_then(|found| found.as_ref()).filter(|line| line.owner.tunnel == tunnel);
        line.inspect(|line| line.doors.set_openings(openings, Instant::now())).is_some()
    }

    /// Begins a look at who is in quarantine; its number is for [`Self::set_quarantine`].
    pub(crate) fn look_at_quarantine(&self) -> u64 {
        self.quarantine.look()
    }

    /// These devices are in quarantine from now on, and no others, but for those that came up as such after the look had begun.
    /// Gives the tunnels for which that is new, with what they are now.
    pub(crate) fn set_quarantine(&self, look: u64, devices: &[DeviceId]) -> Vec<(Owner, bool)> {
        self.quarantine.replace(look, devices, |changed| {
            let mut tunnels = Vec::new();
            for line in self.directory.lines() {
                if let Some(is_quarantined) = changed.get(&line.owner.device) {
                    line.doors.set_quarantine(*is_quarantined);
                    tunnels.push((line.owner, *is_quarantined));
                }
            }
            tunnels
        })
    }

    /// How many looks have begun.
    pub(crate) fn looks_at_quarantine(&self) -> u64 {
        self.quarantine.looks()
    }

    /// Whether this node holds a device for quarantined.
    pub(crate) fn is_quarantined(&self, device: DeviceId) -> bool {
        self.quarantine.has(device)
    }

    /// The hosts whose tunnels are in quarantine now.
    pub(crate) fn quarantined_hosts(&self) -> HashSet<u32> {
        if self.quarantine.is_empty() {
            HashSet::new()
        } else {
            self.directory.hosts(|line| line.doors.is_quarantined())
        }
    }

    /// Gives a packet to the kernel as if it came out of a tunnel, past everything that would stop it here: what stops it then is
    /// the kernel. Says whether the interface took it.
    pub(crate) fn inject(&self, packet: &[u8]) -> bool {
        let whole = 0..packet.len();
        self.send_in(0, packet, std::slice::from_ref(&whole)) == 0
    }

    /// Whether this is the node itself.
    fn is_gateway(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip == self.gateway.ipv4,
            IpAddr::V6(ip) => ip == self.gateway.ipv6,
        }
    }

    /// Gives packets to the kernel; says how many it did not take.
    fn send_in(&self, host: u32, bytes: &[u8], packets: &[Range<usize>]) -> u64 {
        let number = usize::try_from(host).unwrap_or(0) % self.queues.len();
        let queue = &self.queues[number];
        let mut lost = 0;
        if queue.tcp_gso() {
            offload::merge(bytes, packets, |parts, count| {
                if queue.try_send_vectored(parts).is_err() {
                    lost += u64::try_from(count).unwrap_or(0);
                }
            });
        } else {
            for packet in packets {
                lost += u64::from(queue.try_send(&bytes[packet.clone()]).is_err());
            }
        }
        lost
    }

    pub(crate) fn slice(&self) -> &Slice {
        &self.slice
    }
}

/// What the plane keeps of each tunnel.
#[cfg(test)]
pub(crate) const fn line_bytes() -> usize {
    size_of::<Line>()
}

/// Where a packet comes from.
fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

/// Where a packet goes.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("slice", &self.slice).field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}
