use std::net::{Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::section::section;
use super::value::{HostName, Seconds};

/// Any address, IPv4 and IPv6.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 443);
const UNAUTHENTICATED_MAX: u32 = 2_048;
const UNAUTHENTICATED_PER_ADDRESS_MAX: u32 = 256;
const CONNECTS_PER_ADDRESS_PER_SECOND: u32 = 100;
const CONNECTS_PER_ADDRESS_BURST: u32 = 1_000;
const LINKS_MAX: u32 = 50_000;
const HANDSHAKE_TIMEOUT: Seconds = Seconds(10);
const REQUEST_TIMEOUT: Seconds = Seconds(10);
const REQUEST_BYTES_MAX: u32 = 16_384;
const RESUMPTION: Seconds = Seconds(6 * 3600);

section! {
    /// The device port: links and enrollment, told apart by the name that the client asks for.
    pub struct Device in "device" {
        /// Where to listen. Ports below 1024 need root or CAP_NET_BIND_SERVICE.
        listen: SocketAddr = LISTEN;
        /// The port that devices dial under `server_name`, where that is another one than in `listen`: behind a load balancer.
        /// It is written into the profiles of OpenVPN clients.
        public_port: Option<u32> = None, in 1..=65_535;
        /// Load balancers whose PROXY header (version 1 or 2) is taken for where a device is: networks or addresses. From there a
        /// connection without one is refused, and from anywhere else one with it.
        proxy_from: Vec<IpNet> = Vec::new();
        /// The name that linked devices dial and check. It is in the server's certificate.
        server_name: HostName = "localhost".parse().expect("a constant name");
        /// The name that devices dial to enroll, on the same port; by default `enroll.` before `server_name`. Connections
        /// under this name are not asked for a client certificate, and can do nothing but enroll.
        enroll_name: Option<HostName> = None;
        /// The most connections that are not authenticated yet, from all addresses together. Bounds what strangers cost:
        /// about 50 kB each. Above it, new connections are closed at once.
        unauthenticated_max: u32 = UNAUTHENTICATED_MAX, in 1..=100_000;
        /// The most of those from one IPv4 address or IPv6 /64. Devices behind one address translation share it.
        unauthenticated_per_address_max: u32 = UNAUTHENTICATED_PER_ADDRESS_MAX, in 1..=100_000;
        /// New connections a second from one IPv4 address or IPv6 /64, in the long run. Bounds the processor time of one
        /// stranger: a handshake costs about 1 ms.
        connects_per_address_per_second: u32 = CONNECTS_PER_ADDRESS_PER_SECOND, in 1..=1_000_000;
        /// New connections at once from one IPv4 address or IPv6 /64, before the rate applies.
        connects_per_address_burst: u32 = CONNECTS_PER_ADDRESS_BURST, in 1..=1_000_000;
        /// The most links of this node. Bounds memory (about 12 kB a link) and open files (one a link). Above it, devices
        /// are told to come back later.
        links_max: u32 = LINKS_MAX, in 1..=1_000_000;
        /// From accepting a connection to the end of its TLS handshake. Cuts slow clients.
        handshake_timeout_seconds: Seconds = HANDSHAKE_TIMEOUT, in 1..=300;
        /// From the TLS handshake to the end of the request (link or enrollment). Cuts slow clients.
        request_timeout_seconds: Seconds = REQUEST_TIMEOUT, in 1..=300;
        /// The most bytes of a request, head and body each, before a link or a certificate is given.
        request_bytes_max: u32 = REQUEST_BYTES_MAX, in 2_048..=65_536;
        /// How long a device may resume its TLS session, which costs less than a full handshake; 0: never. Resumed sessions
        /// are checked against certificates and revocations like any other.
        resumption_seconds: Seconds = RESUMPTION, in 0..=86_400;
    }
}

impl Device {
    /// The port that devices dial.
    #[must_use]
    pub fn public_port(&self) -> u32 {
        self.public_port.unwrap_or(self.listen.port().into())
    }

    /// The name that devices dial to enroll.
    #[must_use]
    pub fn enroll_name(&self) -> HostName {
        let derived = || format!("enroll.{}", self.server_name).parse().expect("checked when it was read");
        self.enroll_name.clone().unwrap_or_else(derived)
    }
}
