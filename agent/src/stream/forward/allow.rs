//! Where connections may be made to: names, addresses and networks, each with its ports.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

/// The most entries of a list.
pub const ENTRIES_MAX: usize = 1024;
/// The longest name of a host, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// The device's list. What it does not name is not connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    entries: Vec<Entry>,
}

/// A host, or hosts, and ports: `localhost:80`, `192.168.1.0/24:502`, `[fd00::/8]:443`, `plc.local:*`, `10.0.0.7:8000-8099`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    host: Host,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// In small letters, without a dot at its end.
    Name(String),
    Net(IpNet),
}

/// Why something is no entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    #[error("there is no port")]
    NoPort,
    #[error("the port is none: a number from 1 to 65535, a range, or *")]
    Port,
    #[error("the host is neither a name, nor an address, nor a network")]
    Host,
}

impl AllowList {
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether this name is on the list, as a name.
    #[must_use]
    pub fn allows_name(&self, name: &str, port: u16) -> bool {
        let name = bare(name);
        self.with_port(port).any(|host| matches!(host, Host::Name(allowed) if *allowed == name))
    }

    /// Whether this address is on the list, as an address or in a network.
    #[must_use]
    pub fn allows_address(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        self.with_port(port).any(|host| matches!(host, Host::Net(net) if net.contains(&address)))
    }

    /// Whether there is any address for which a name that is not on the list could do.
    #[must_use]
    pub fn has_address(&self, port: u16) -> bool {
        self.with_port(port).any(|host| matches!(host, Host::Net(_)))
    }

    fn with_port(&self, port: u16) -> impl Iterator<Item = &Host> {
        self.entries.iter().filter(move |entry| entry.ports.contains(&port)).map(|entry| &entry.host)
    }
}

/// A name as names are compared.
pub(super) fn bare(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

impl FromStr for Entry {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let (host, ports) = text.rsplit_once(':').ok_or(EntryError::NoPort)?;
        Ok(Self { host: host.parse()?, ports: parse_ports(ports)? })
    }
}

impl FromStr for Host {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return parse_net(inner).filter(|net| matches!(net, IpNet::V6(_))).map(Self::Net).ok_or(EntryError::Host);
        }
        // Without brackets it could not be told where the address ends.
        if let Some(net) = parse_net(text).filter(|net| matches!(net, IpNet::V4(_))) {
            return Ok(Self::Net(net));
        }
        let name = bare(text);
        if is_name(&name) { Ok(Self::Name(name)) } else { Err(EntryError::Host) }
    }
}

fn parse_net(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>()).ok()
}

fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
    };
    // All digits and dots would be an address that is none, which some resolvers read as one.
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && name.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, EntryError> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or(EntryError::Port);
    match text.split_once('-') {
        _ if text == "*" => Ok(1..=u16::MAX),
        Some((first, last)) => {
            Some(port(first)?..=port(last)?).filter(|range| !range.is_empty()).ok_or(EntryError::Port)
        }
        None => port(text).map(|port| port..=port),
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name)?,
            Host::Net(net @ IpNet::V4(_)) => write!(f, "{net}")?,
            Host::Net(net @ IpNet::V6(_)) => write!(f, "[{net}]")?,
        }
        match (*self.ports.start(), *self.ports.end()) {
            (1, u16::MAX) => f.write_str(":*"),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        AllowList::new(entries.iter().map(|entry| entry.parse().unwrap()).collect())
    }

    #[rstest]
    #[case("localhost:80", "localhost:80")]
    #[case("PLC.Local.:*", "plc.local:*")]
    #[case("192.168.1.0/24:502", "192.168.1.0/24:502")]
    #[case("10.0.0.7:8000-8099", "10.0.0.7/32:8000-8099")]
    #[case("[fd00::/8]:443", "[fd00::/8]:443")]
    #[case("[::1]:22", "[::1/128]:22")]
    #[case("my_host-1:65535", "my_host-1:65535")]
    fn an_entry_is_read(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<Entry>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("localhost", EntryError::NoPort)]
    #[case("", EntryError::NoPort)]
    #[case("localhost:", EntryError::Port)]
    #[case("localhost:0", EntryError::Port)]
    #[case("localhost:65536", EntryError::Port)]
    #[case("localhost:90-80", EntryError::Port)]
    #[case("localhost:80-", EntryError::Port)]
    #[case(":80", EntryError::Host)]
    #[case("*:80", EntryError::Host)]
    #[case("*.local:80", EntryError::Host)]
    #[case("a b:80", EntryError::Host)]
    #[case("http://a:80", EntryError::Host)]
    #[case("-a:80", EntryError::Host)]
    #[case("10.0.0.0/33:80", EntryError::Host)]
    #[case("10.1:80", EntryError::Host)]
    #[case("fd00::1:80", EntryError::Host)]
    #[case("[10.0.0.1]:80", EntryError::Host)]
    #[case("[localhost]:80", EntryError::Host)]
    fn what_is_no_entry_is_refused(#[case] text: &str, #[case] error: EntryError) {
        assert_eq!(text.parse::<Entry>(), Err(error));
    }

    #[test]
    fn a_name_is_compared_as_names_are() {
        let list = list(&["plc.local:502", "localhost:*"]);
        assert!(list.allows_name("PLC.local.", 502) && list.allows_name("localhost", 1));
        for (name, port) in [("plc.local", 503), ("xplc.local", 502), ("plc.local.example.com", 502), ("plc", 502)] {
            assert!(!list.allows_name(name, port), "{name}:{port}");
        }
    }

    #[test]
    fn an_address_is_the_same_in_both_notations() {
        let list = list(&["192.168.1.0/24:502", "[fd00::/8]:443"]);
        for (address, port, allowed) in [
            ("192.168.1.1", 502, true),
            ("::ffff:192.168.1.1", 502, true),
            ("192.168.1.1", 503, false),
            ("192.168.2.1", 502, false),
            ("fd12::1", 443, true),
            ("fe80::1", 443, false),
        ] {
            assert_eq!(list.allows_address(address.parse().unwrap(), port), allowed, "{address}:{port}");
        }
        assert!(list.has_address(502) && !list.has_address(80));
    }
}
