use std::net::{Ipv6Addr, SocketAddr};

use super::section::section;
use super::value::{HostName, Seconds};

/// Any address, IPv4 and IPv6.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443);
const CONNECTIONS_MAX: u32 = 2_048;
const HANDSHAKE_TIMEOUT: Seconds = Seconds(10);
const HEADER_TIMEOUT: Seconds = Seconds(10);
const REQUEST_TIMEOUT: Seconds = Seconds(30);
const IDLE_TIMEOUT: Seconds = Seconds(90);

section! {
    /// The people port: the API for people and robots.
    pub struct People in "people" {
        /// Where to listen.
        listen: SocketAddr = LISTEN;
        /// Names and addresses under which people reach the API. They are put into the server's certificate when it is made.
        names: Vec<HostName> = local_names();
        /// The most connections. Bounds memory and open files. Above it, new connections are closed at once.
        connections_max: u32 = CONNECTIONS_MAX, in 1..=100_000;
        /// For the TLS handshake. Cuts slow clients.
        handshake_timeout_seconds: Seconds = HANDSHAKE_TIMEOUT, in 1..=300;
        /// For the head of each request. Cuts slow clients.
        header_timeout_seconds: Seconds = HEADER_TIMEOUT, in 1..=300;
        /// For the answer to a request. Streams of events may take as long as they like.
        request_timeout_seconds: Seconds = REQUEST_TIMEOUT, in 1..=600;
        /// A connection on which no byte moved for this long is closed. Streams of events send a sign of life more often.
        idle_timeout_seconds: Seconds = IDLE_TIMEOUT, in 30..=3_600;
    }
}

fn local_names() -> Vec<HostName> {
    ["localhost", "127.0.0.1", "::1"].map(|name| name.parse().expect("a constant name")).into()
}
