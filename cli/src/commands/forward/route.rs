//! `[bind:]port:host:port`, as ssh has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::{Value, json};

/// What the API takes.
const HOST_BYTES_MAX: usize = 253;

/// From a port here to a port there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Without one, only programs on this machine can use it.
    pub(super) bind: IpAddr,
    /// 0: any that is free.
    pub(super) port: u16,
    host: String,
    host_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected [BIND:]PORT:HOST:PORT, as in 8080:localhost:80, with brackets around IPv6 addresses")]
pub(crate) struct ParseRouteError;

impl Route {
    /// As the API wants it.
    pub(super) fn target(&self, direct: bool) -> Value {
        json!({ "host": self.host, "port": self.host_port, "via": if direct { "node" } else { "agent" } })
    }

    /// Where it leads.
    pub(super) fn far(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.host_port);
        }
        format!("{}:{}", self.host, self.host_port)
    }
}

impl FromStr for Route {
    type Err = ParseRouteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = split(text).ok_or(ParseRouteError)?;
        let (bind, [port, host, host_port]) = match parts.as_slice() {
            [port, host, host_port] => (Ipv4Addr::LOCALHOST.into(), [port, host, host_port]),
            [bind, port, host, host_port] => (address(bind)?, [port, host, host_port]),
            _ => return Err(ParseRouteError),
        };
        let host_port = host_port.parse().map_err(|_| ParseRouteError)?;
        if host_port == 0 || host.is_empty() || host.len() > HOST_BYTES_MAX {
            return Err(ParseRouteError);
        }
        let port = port.parse().map_err(|_| ParseRouteError)?;
        Ok(Self { bind, port, host: (*host).to_owned(), host_port })
    }
}

fn address(bind: &str) -> Result<IpAddr, ParseRouteError> {
    match bind {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        // Everybody, as ssh has it.
        "*" => Ok(Ipv6Addr::UNSPECIFIED.into()),
        bind => bind.parse().map_err(|_| ParseRouteError),
    }
}

/// At its colons, but for those in brackets.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (address, after) = inner.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (address, after)
            }
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        parts.push(part);
        match after.strip_prefix(':') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("8080:localhost:80", "127.0.0.1", 8080, "localhost:80")]
    #[case("0:gw.internal:502", "127.0.0.1", 0, "gw.internal:502")]
    #[case("0.0.0.0:8080:10.0.0.7:80", "0.0.0.0", 8080, "10.0.0.7:80")]
    #[case("*:8080:10.0.0.7:80", "::", 8080, "10.0.0.7:80")]
    #[case("localhost:8080:a:80", "127.0.0.1", 8080, "a:80")]
    #[case("[::1]:8080:[fe80::1]:80", "::1", 8080, "[fe80::1]:80")]
    #[case("8080:[::1]:80", "127.0.0.1", 8080, "[::1]:80")]
    fn leads_from_here_to_there(#[case] text: &str, #[case] bind: IpAddr, #[case] port: u16, #[case] far: &str) {
        let route: Route = text.parse().unwrap();
        assert_eq!((route.bind, route.port, route.far().as_str()), (bind, port, far));
    }

    #[rstest]
    #[case("")]
    #[case("80")]
    #[case("8080:80")]
    #[case("8080:localhost")]
    #[case("8080:localhost:0")]
    #[case("8080::80")]
    #[case("65536:localhost:80")]
    #[case("8080:localhost:65536")]
    #[case("8080:localhost:http")]
    #[case("name:8080:localhost:80")]
    #[case("::1:8080:localhost:80")]
    #[case("8080:[::1]80:80")]
    #[case("8080:[localhost]:80")]
    #[case("8080:[::1:80")]
    #[case("a:b:c:d:e")]
    fn what_is_none_is_refused(#[case] text: &str) {
        assert_eq!(text.parse::<Route>(), Err(ParseRouteError));
    }

    #[test]
    fn the_api_hears_who_connects() {
        let route: Route = "8080:[::1]:80".parse().unwrap();
        assert_eq!(route.target(false), json!({"host": "::1", "port": 80, "via": "agent"}));
        assert_eq!(route.target(true)["via"], "node");
    }
}
