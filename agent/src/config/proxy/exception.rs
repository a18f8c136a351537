//! Whom to dial without the proxy, as curl understands `NO_PROXY`, with ports.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    whom: Whom,
    /// Default: any.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    Everybody,
    /// This host and all below it. In small letters, without a dot at either end.
    Domain(String),
    Network(IpNet),
}

/// What is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither a name, nor an address, nor a network")]
pub(super) struct NoException;

impl FromStr for Exception {
    type Err = NoException;

    fn from_str(text: &str) -> Result<Self, NoException> {
        if let Ok(whom) = text.parse() {
            return Ok(Self { whom, port: None });
        }
        let (whom, port) = text.rsplit_once(':').ok_or(NoException)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(NoException)?;
        Ok(Self { whom: whom.parse()?, port: Some(port) })
    }
}

impl FromStr for Whom {
    type Err = NoException;

    fn from_str(text: &str) -> Result<Self, NoException> {
        if text == "*" {
            return Ok(Self::Everybody);
        }
        let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(network) = address.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        if let Ok(address) = address.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let name = text.strip_prefix("*").filter(|rest| rest.starts_with('.')).unwrap_or(text);
        let name = name.strip_prefix('.').unwrap_or(name);
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_clean = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_clean) || name.contains("..") {
            return Err(NoException);
        }
        Ok(Self::Domain(name.to_ascii_lowercase()))
    }
}

impl Exception {
    /// Whether this host, a name or an address, is dialled without the proxy.
    #[must_use]
    pub(super) fn holds(&self, host: &str, port: u16) -> bool {
        self.port.is_none_or(|own| own == port) && self.whom.holds(host)
    }
}

impl Whom {
    fn holds(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>();
        match (self, address) {
            (Self::Everybody, _) => true,
            (Self::Network(network), Ok(address)) => network.contains(&address),
            (Self::Domain(domain), Err(_)) => {
                let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
                host.strip_suffix(domain.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            (Self::Network(_), Err(_)) | (Self::Domain(_), Ok(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("example.com", "example.com", true)]
    #[case("example.com", "www.Example.COM.", true)]
    #[case("example.com", "notexample.com", false)]
    #[case("example.com", "example.com.evil.test", false)]
    #[case(".example.com", "example.com", true)]
    #[case(".example.com", "a.b.example.com", true)]
    #[case("*.example.com", "a.example.com", true)]
    #[case("Example.com.", "example.com", true)]
    #[case("example.com:443", "www.example.com", true)]
    #[case("example.com:8443", "example.com", false)]
    #[case("*", "anything.test", true)]
    #[case("*", "2001:db8::1", true)]
    #[case("192.0.2.7", "192.0.2.7", true)]
    #[case("192.0.2.7", "192.0.2.70", false)]
    #[case("192.0.2.7:443", "192.0.2.7", true)]
    #[case("192.0.2.7:80", "192.0.2.7", false)]
    #[case("10.1.2.3/8", "10.200.0.1", true)]
    #[case("10.0.0.0/8:443", "10.200.0.1", true)]
    #[case("10.0.0.0/8", "11.0.0.1", false)]
    #[case("2001:db8::/32", "2001:db8:7::1", true)]
    #[case("2001:db8::1", "2001:db8::1", true)]
    #[case("[2001:db8::1]", "2001:db8::1", true)]
    #[case("[2001:db8::1]:443", "2001:db8::1", true)]
    #[case("[2001:db8::1]:80", "2001:db8::1", false)]
    #[case("0.0.0.0/0", "example.com", false)]
    #[case("1", "1.example.com", false)]
    fn an_entry_holds_for(#[case] entry: &str, #[case] host: &str, #[case] holds: bool) {
        assert_eq!(entry.parse::<Exception>().unwrap().holds(host, 443), holds);
    }

    #[rstest]
    fn what_is_no_entry_is_refused(
        #[values("", ".", "a b", "a..b", "http://a", "a:", "a:0", "a:99999", "10.0.0.0/33", "[a]:1", "ü", "*a")] entry: &str,
    ) {
        assert_eq!(entry.parse::<Exception>(), Err(NoException));
    }
}
