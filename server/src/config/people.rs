use std::net::{Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::section::section;
use super::value::{HostName, Seconds};

/// Any address, IPv4 and IPv6.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443);
const CONNECTIONS_MAX: u32 = 2_048;
const CONNECTIONS_PER_ADDRESS_MAX: u32 = 512;
const HANDSHAKE_TIMEOUT: Seconds = Seconds(10);
const HEADER_TIMEOUT: Seconds = Seconds(10);
const TOKEN_REQUESTS_PER_SECOND: u32 = 1_000;
const TOKEN_REQUESTS_BURST: u32 = 4_000;
const FAILURES_BURST: u32 = 20;
const STREAMS_MAX: u32 = 4_000;
const STREAMS_PER_TENANT_MAX: u32 = 500;
const STREAMS_PER_PERSON_MAX: u32 = 50;
const IDLE_TIMEOUT: Seconds = Seconds(90);

section! {
    /// The people port: the API for people and robots.
    pub struct People in "people" {
        /// Where to listen.
        listen: SocketAddr = LISTEN;
        /// Load balancers whose PROXY header (version 1 or 2) is taken for where a client is: networks or addresses. From there a
        /// connection without one is refused, and from anywhere else one with it.
        proxy_from: Vec<IpNet> = Vec::new();
        /// Names and addresses under which people reach the API. They are put into the server's certificate when it is made.
        names: Vec<HostName> = local_names();
        /// The most connections. Bounds memory and open files. Above it, new connections are closed at once.
        connections_max: u32 = CONNECTIONS_MAX, in 1..=100_000;
        /// The most of them from one IPv4 address or IPv6 /64, but for streams of support sessions. Keeps one stranger from taking
        /// them all. Whoever comes through a load balancer that `proxy_from` does not name comes from its address.
        connections_per_address_max: u32 = CONNECTIONS_PER_ADDRESS_MAX, in 1..=100_000;
        /// For the TLS handshake. Cuts slow clients.
        handshake_timeout_seconds: Seconds = HANDSHAKE_TIMEOUT, in 1..=300;
        /// For the head of each request. Cuts slow clients.
        header_timeout_seconds: Seconds = HEADER_TIMEOUT, in 1..=300;
        /// A connection on which no byte moved for this long is closed. Streams of events send a sign of life more often.
        idle_timeout_seconds: Seconds = IDLE_TIMEOUT, in 30..=3_600;
        /// Requests a second that one token may make on and on: a script gone wild is stopped. Above it, requests are
        /// answered with 429.
        token_requests_per_second: u32 = TOKEN_REQUESTS_PER_SECOND, in 1..=1_000_000;
        /// Requests that one token may make at once, before the rate applies.
        token_requests_burst: u32 = TOKEN_REQUESTS_BURST, in 1..=1_000_000;
        /// Failed authentications that one IPv4 address or IPv6 /64 may make at once; further ones are refused unread.
        failures_burst: u32 = FAILURES_BURST, in 1..=10_000;
        /// The most streams of events. Bounds memory: about 20 kB each.
        streams_max: u32 = STREAMS_MAX, in 1..=100_000;
        /// The most streams of events of all people of one tenant: none takes those of others.
        streams_per_tenant_max: u32 = STREAMS_PER_TENANT_MAX, in 1..=100_000;
        /// The most streams of events of one person. Each page of the console that is open has one.
        streams_per_person_max: u32 = STREAMS_PER_PERSON_MAX, in 1..=100_000;
    }
}

fn local_names() -> Vec<HostName> {
    ["localhost", "127.0.0.1", "::1"].map(|name| name.parse().expect("a constant name")).into()
}
