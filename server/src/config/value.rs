//! The kinds of value that a key can take: how each is read from TOML and from text, and how it is shown.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lettre::address::AddressError;
use lettre::message::Mailbox;
use rustls_pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use toml::de::DeValue;

use super::isolation::Scope;
use super::notice::MailTls;
use super::trace::Collector;
use super::tunnel::Wrapping;

/// The most bytes of a string in the configuration.
const TEXT_BYTES_MAX: usize = 4096;

/// A kind of value.
pub(in crate::config) trait Value: Sized {
    /// In words, with an example, as in "expected …".
    const EXPECTED: &'static str;

    /// From the environment, a flag, or a TOML string.
    fn from_text(text: &str) -> Option<Self>;

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX).and_then(Self::from_text)
    }

    /// As TOML, secrets redacted.
    fn show(&self) -> Option<String>;

    /// What a range is compared with.
    fn amount(&self) -> Option<u64> {
        None
    }
}

/// A whole number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

impl Seconds {
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        seconds.duration()
    }
}

/// How long before something ends people are told of it, the longest time first. None: they are not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warnings(Vec<Seconds>);

impl Warnings {
    /// One for each: people who are told all the time do not listen.
    const COUNT_MAX: usize = 4;
    const SECONDS_MAX: u32 = 86_400;

    pub(in crate::config) fn new(before: impl IntoIterator<Item = u32>) -> Option<Self> {
        let before: Vec<_> = before.into_iter().map(Seconds).collect();
        let falls = before.is_sorted_by(|one, next| one > next);
        let is_fit = |seconds: &Seconds| (1..=Self::SECONDS_MAX).contains(&seconds.0);
        (before.len() <= Self::COUNT_MAX && falls && before.iter().all(is_fit)).then_some(Self(before))
    }

    /// The longest first.
    pub fn before(&self) -> impl Iterator<Item = Duration> {
        self.0.iter().map(|seconds| seconds.duration())
    }
}

/// A DNS name or an IP address, as it stands in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(ServerName<'static>);

impl HostName {
    /// Whether a client can ask for it in its TLS greeting: addresses cannot be asked for.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        matches!(self.0, ServerName::DnsName(_))
    }

    #[must_use]
    pub fn server_name(&self) -> &ServerName<'static> {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_str())
    }
}

impl std::str::FromStr for HostName {
    type Err = rustls_pki_types::InvalidDnsNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ServerName::try_from(text.to_ascii_lowercase()).map(Self)
    }
}

/// The name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

/// Not a name that the kernel takes (`dev_valid_name`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an interface name has 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct InterfaceNameError;

impl InterfaceName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let is_name = (1..=15).contains(&text.len()) && text.bytes().all(is_fit) && !matches!(text, "." | "..");
        if is_name { Ok(Self(text.to_owned())) } else { Err(InterfaceNameError) }
    }
}

/// Whom mail is from: an address, perhaps with a name before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailFrom(Mailbox);

impl MailFrom {
    #[must_use]
    pub fn mailbox(&self) -> &Mailbox {
        &self.0
    }
}

impl std::str::FromStr for MailFrom {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A secret. Neither `Debug` nor `config show` tells it.
#[derive(Clone, Debug)]
pub struct Secret(SecretString);

impl Secret {
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a text that is not empty";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.to_owned())
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "an absolute path";

    fn from_text(text: &str) -> Option<Self> {
        Path::new(text).is_absolute().then(|| text.into())
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address with a port, as \"0.0.0.0:443\" or \"[::]:443\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for MailFrom {
    const EXPECTED: &'static str = "a mail address, as \"Cloudlink <cloudlink@example.com>\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.0.to_string()))
    }
}

impl Value for Collector {
    const EXPECTED: &'static str = "an address of HTTP, as \"http://collector:4318\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for InterfaceName {
    const EXPECTED: &'static str = "the name of a network interface: 1 to 15 letters, digits, '-', '_' or '.'";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self.as_str()))
    }
}

impl Value for Ipv4Net {
    const EXPECTED: &'static str = "an IPv4 network, as \"100.64.0.0/10\"";

    fn from_text(text: &str) -> Option<Self> {
        // An address with bits behind the prefix is a slip.
        text.parse().ok().filter(|network: &Self| network.trunc() == *network)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for Ipv6Net {
    const EXPECTED: &'static str = "an IPv6 network of 48 bits, as \"fd12:3456:789a::/48\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|network: &Self| network.prefix_len() == 48 && network.trunc() == *network)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for IpNet {
    const EXPECTED: &'static str = "a network or an address, as \"10.0.0.0/24\" or \"2001:db8::5\"";

    fn from_text(text: &str) -> Option<Self> {
        let network: Self = text.parse().or_else(|_| text.parse::<IpAddr>().map(Self::from)).ok()?;
        // Bits behind the prefix are a slip, and connections from an IPv4 address never count as IPv6.
        let is_mapped = matches!(network, Self::V6(network) if network.addr().to_ipv4_mapped().is_some());
        (network.trunc() == network && !is_mapped).then_some(network)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for Wrapping {
    const EXPECTED: &'static str = "none, tls-auth, tls-crypt or tls-crypt-v2";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wrapping| wrapping.name() == text)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self.name()))
    }
}

impl Value for Scope {
    const EXPECTED: &'static str = "host or interface";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == text)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self.name()))
    }
}

impl Value for MailTls {
    const EXPECTED: &'static str = "starttls, tls or none";

    fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tls| tls.name() == text)
    }

    fn show(&self) -> Option<String> {
        Some(quoted(self.name()))
    }
}

impl Value for HostName {
    const EXPECTED: &'static str = "a host name or IP address, as \"link.example.com\"";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Value for Secret {
    const EXPECTED: &'static str = "a text that is not empty";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.to_owned().into())
    }

    fn show(&self) -> Option<String> {
        Some("\"(redacted)\"".to_owned())
    }
}

impl Value for u32 {
    const EXPECTED: &'static str = "a whole number";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        let integer = value.as_integer()?;
        Self::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn amount(&self) -> Option<u64> {
        Some((*self).into())
    }
}

impl Value for Seconds {
    const EXPECTED: &'static str = "a whole number of seconds";

    fn from_text(text: &str) -> Option<Self> {
        u32::from_text(text).map(Self)
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        u32::from_toml(value).map(Self)
    }

    fn show(&self) -> Option<String> {
        self.0.show()
    }

    fn amount(&self) -> Option<u64> {
        self.0.amount()
    }
}

impl Value for Warnings {
    const EXPECTED: &'static str =
        "a list of at most 4 whole numbers of seconds, from 1 to 86400, each less than the one before, as [600, 120]";

    fn from_text(text: &str) -> Option<Self> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Self::new(entries.map(u32::from_text).collect::<Option<Vec<_>>>()?)
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        let entries = value.as_array()?.iter().map(|entry| u32::from_toml(entry.get_ref()));
        Self::new(entries.collect::<Option<Vec<_>>>()?)
    }

    fn show(&self) -> Option<String> {
        let entries: Vec<_> = self.0.iter().filter_map(Value::show).collect();
        Some(format!("[{}]", entries.join(", ")))
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Not set by default.
impl<T: Value> Value for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        T::from_text(text).map(Some)
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        T::from_toml(value).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }

    fn amount(&self) -> Option<u64> {
        self.as_ref().and_then(T::amount)
    }
}

/// What there may be a list of. In the environment and in flags: separated by commas.
trait Entry: Value {
    const EXPECTED: &'static str;
}

impl Entry for HostName {
    const EXPECTED: &'static str = "a list of host names or IP addresses, as [\"link.example.com\", \"10.0.0.5\"]";
}

impl Entry for IpNet {
    const EXPECTED: &'static str = "a list of networks or addresses, as [\"10.0.0.0/24\", \"2001:db8::5\"]";
}

impl Entry for String {
    const EXPECTED: &'static str = "a list of strings, as [\"one\", \"two\"]";
}

impl<T: Entry> Value for Vec<T> {
    const EXPECTED: &'static str = <T as Entry>::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(T::from_text).collect()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_array()?.iter().map(|entry| T::from_toml(entry.get_ref())).collect()
    }

    fn show(&self) -> Option<String> {
        let entries: Vec<_> = self.iter().filter_map(Value::show).collect();
        Some(format!("[{}]", entries.join(", ")))
    }
}

pub(in crate::config) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
