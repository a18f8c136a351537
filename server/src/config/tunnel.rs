use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};

use super::section::section;
use super::value::{InterfaceName, Seconds};

const SLICE_PREFIX: u32 = 16;
const LINK_PORT: u32 = 80;
const MTU: u32 = 1500;
const PING_INTERVAL: Seconds = Seconds(10);
const DEAD_AFTER: Seconds = Seconds(60);
const QUEUE_BYTES_MAX: u32 = 262_144;
const NEVER: Seconds = Seconds(0);

section! {
    /// Tunnels of stock OpenVPN clients, on the device port beside everything else.
    pub struct Tunnel in "tunnel" {
        /// Whether OpenVPN clients are served. Needs CAP_NET_ADMIN and /dev/net/tun. Without it their connections are closed.
        enabled: bool = false;
        /// The TUN interface, made at the start and removed at the end.
        interface: InterfaceName = "cloudlink0".parse().expect("a constant name");
        /// Where the IPv4 addresses of all nodes come from. Each node leases a slice of it.
        pool_ipv4: Ipv4Net = "100.64.0.0/10".parse().expect("a constant network");
        /// The prefix length of one node's slice of `pool_ipv4`: as many devices fit on one node.
        slice_prefix: u32 = SLICE_PREFIX, in 8..=29;
        /// Where the IPv6 addresses come from: a /48, of which each node gets a /64. By default a unique local one that follows
        /// from the fleet's authority, so that it is the same on all nodes, and no other fleet's.
        pool_ipv6: Option<Ipv6Net> = None;
        /// Where agents find their link inside the tunnel, on the first address of the node's slice.
        link_port: u32 = LINK_PORT, in 1..=65_535;
        /// The largest packet in the tunnel. Clients that cannot be told keep 1500.
        mtu: u32 = MTU, in 1_280..=9_000;
        /// What is around control packets: `none`, `tls-auth`, `tls-crypt` or `tls-crypt-v2`.
        wrapping: Wrapping = Wrapping::None;
        /// The key for it. By default `pki/tunnel.<wrapping>.key` under `data_dir`, made at the first start. All nodes need the
        /// same.
        wrapping_key: Option<PathBuf> = None;
        /// Whether data keys come from the TLS exporter where the client can. Off only for clients whose exporter is broken.
        key_export: bool = true;
        /// How often the server asks for new keys by itself; 0: never, clients do so hourly.
        renegotiate_seconds: Seconds = NEVER, in 0..=86_400;
        /// A side that has sent nothing for this long sends a ping.
        ping_interval_seconds: Seconds = PING_INTERVAL, in 1..=300;
        /// A client that hears nothing for this long comes again. The server gives up one that takes nothing of what waits for it
        /// for this long, and one that says nothing for twice as long.
        dead_after_seconds: Seconds = DEAD_AFTER, in 5..=3_600;
        /// TLS handshakes at the same time; others wait for their turn. 0: two for each processor.
        handshakes_max: u32 = 0, in 0..=1_024;
        /// The most bytes that wait to be sent to one client. What a slow one does not read is dropped.
        queue_bytes_max: u32 = QUEUE_BYTES_MAX, in 65_536..=16_777_216;
        /// Queues of the interface, each read by a task of its own. 0: one for each processor.
        queues: u32 = 0, in 0..=64;
    }
}

/// What is around a server's control packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    None,
    TlsAuth,
    TlsCrypt,
    TlsCryptV2,
}

impl Wrapping {
    pub(in crate::config) const ALL: [Self; 4] = [Self::None, Self::TlsAuth, Self::TlsCrypt, Self::TlsCryptV2];

    /// The name of the client's option.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::TlsAuth => "tls-auth",
            Self::TlsCrypt => "tls-crypt",
            Self::TlsCryptV2 => "tls-crypt-v2",
        }
    }
}
