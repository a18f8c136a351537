use std::net::{Ipv4Addr, SocketAddr};

use super::section::section;

/// Loopback: what is told here is nobody else's business.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

section! {
    /// The operations port: `/metrics`, `/healthz`, `/readyz`. Plain HTTP without authentication: never make it public.
    pub struct Operations in "operations" {
        /// Where to listen. An address of a private network lets a monitoring system in.
        listen: SocketAddr = LISTEN;
    }
}
