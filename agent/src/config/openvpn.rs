//! `[openvpn]`: the tunnel that the link goes through, and who runs its client.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::section::Section;
use super::{Proxy, parse_host, parse_path};
use crate::tunnel::profile;

/// Inside the tunnel, at the gateway.
const LINK_PORT_DEFAULT: u16 = 80;
/// What a stock client calls its interface when it is told `dev tun`.
const INTERFACE_BESIDE_DEFAULT: &str = "tun0";
/// The interface of a client that the agent starts.
const INTERFACE_STARTED_DEFAULT: &str = "cloudlink";
/// The longest name of an interface, in bytes (`IFNAMSIZ` with its NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// `[openvpn]`: only used where `openvpn` is among the transports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenVpn {
    /// The tunnel's interface. Default: `tun0`, or `cloudlink` if the agent starts the client.
    pub interface: String,
    /// Whom to dial inside the tunnel. Default: the first address of the interface's IPv4 network.
    pub gateway: Option<Ipv4Addr>,
    /// Default: 80.
    pub link_port: u16,
    /// Set if the agent starts the client. Default: somebody else does.
    pub started: Option<Started>,
}

/// How the agent starts the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Default: `openvpn`, from `PATH` or a directory of system programs.
    pub program: Option<PathBuf>,
    /// Default: none.
    pub wrapping: Option<Wrapping>,
    /// For the client alone. Default: as everything else, see `[proxy]`.
    pub http_proxy: Option<Proxy>,
}

/// What is around control packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapping {
    pub kind: WrappingKind,
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrappingKind {
    TlsAuth,
    TlsCrypt,
    TlsCryptV2,
}

impl WrappingKind {
    /// As OpenVPN calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TlsAuth => "tls-auth",
            Self::TlsCrypt => "tls-crypt",
            Self::TlsCryptV2 => "tls-crypt-v2",
        }
    }

    fn parse(text: &str) -> Result<Option<Self>, (String, String)> {
        let known = [Self::TlsAuth, Self::TlsCrypt, Self::TlsCryptV2];
        match known.into_iter().find(|kind| kind.name() == text) {
            Some(kind) => Ok(Some(kind)),
            None if text == "none" => Ok(None),
            None => {
                Err((format!("is {text:?}"), "\"none\", \"tls-auth\", \"tls-crypt\" or \"tls-crypt-v2\"".to_owned()))
            }
        }
    }
}

/// What is faulty gets its default, and a fault.
pub(super) fn read(section: &Section<'_>) -> OpenVpn {
    let is_started = section.boolean("start").unwrap_or(false);
    let interface_default = if is_started { INTERFACE_STARTED_DEFAULT } else { INTERFACE_BESIDE_DEFAULT };
    let interface = section.optional("interface", parse_interface).unwrap_or_else(|| interface_default.to_owned());
    let gateway = section.optional("gateway", |text| {
        text.parse().map_err(|_| ("is not an IPv4 address".to_owned(), "such as \"100.64.0.1\"".to_owned()))
    });
    let link_port = section.port("link_port").unwrap_or(LINK_PORT_DEFAULT);
    let started = read_started(section);
    if !is_started {
        for key in ["program", "wrapping", "wrapping_key", "http_proxy"] {
            if section.has(key) {
                section.fault(
                    key,
                    "has no effect, because the agent does not start the client",
                    "set start = true, or configure the client that is started by somebody else",
                );
            }
        }
    }
    section.finish();
    OpenVpn { interface, gateway, link_port, started: is_started.then_some(started) }
}

fn read_started(section: &Section<'_>) -> Started {
    let program = section.optional("program", parse_path);
    let kind = section.optional("wrapping", WrappingKind::parse).flatten();
    let key = section.optional("wrapping_key", |text| {
        let path = parse_path(text)?;
        profile::check_path(&path).map_err(|error| (error.to_string(), "a shorter, plain path".to_owned()))?;
        Ok(path)
    });
    let wrapping = match (kind, key) {
        (Some(kind), Some(key)) => Some(Wrapping { kind, key }),
        (Some(_), None) if !section.has("wrapping_key") => {
            section.fault("wrapping_key", "is missing", "the file with the key for the wrapping");
            None
        }
        (None, Some(_)) if !section.has("wrapping") => {
            section.fault("wrapping_key", "is of no use without a wrapping", "set wrapping to the key's kind");
            None
        }
        (None, Some(_)) | (_, None) => None,
    };
    Started { program, wrapping, http_proxy: section.optional("http_proxy", parse_proxy) }
}

fn parse_interface(text: &str) -> Result<String, (String, String)> {
    let fits = (1..=INTERFACE_BYTES_MAX).contains(&text.len());
    let clean = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits || !clean || text.starts_with(['.', '-']) {
        return Err((
            format!("is {text:?}, which cannot be the name of an interface"),
            "1 to 15 letters, digits, '-', '_' or '.', such as \"tun0\"".to_owned(),
        ));
    }
    Ok(text.to_owned())
}

fn parse_proxy(text: &str) -> Result<Proxy, (String, String)> {
    let hint = "name and port, without http://, such as \"proxy.example.com:3128\"";
    let parsed = text.rsplit_once(':').and_then(|(host, port)| {
        let host = parse_host(host.trim_start_matches('[').trim_end_matches(']')).ok()?;
        Some(Proxy { host, port: port.parse().ok().filter(|port| *port > 0)?, login: None })
    });
    parsed.ok_or_else(|| (format!("is {text:?}, which is not a name and a port"), hint.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Proxy, Started, Transport, Wrapping, WrappingKind};

    const BEGINNING: &str = "state_dir = \"/s\"\n[server]\nhost = \"link.example.com\"\nca_file = \"/ca\"\n\
                             transport = \"openvpn\"\n[openvpn]\n";

    fn parsed(section: &str) -> Config {
        Config::parse(&format!("{BEGINNING}{section}")).unwrap()
    }

    fn problems(section: &str) -> Vec<String> {
        let faults = Config::parse(&format!("{BEGINNING}{section}")).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn beside_a_client_nothing_needs_to_be_set() {
        let config = parsed("");
        assert_eq!(config.server.transports, [Transport::OpenVpn]);
        let openvpn = config.openvpn;
        assert_eq!((openvpn.interface.as_str(), openvpn.link_port), ("tun0", 80));
        assert_eq!((openvpn.gateway, openvpn.started), (None, None));
    }

    #[test]
    fn a_client_of_its_own_gets_an_interface_of_its_own() {
        let openvpn = parsed("start = true").openvpn;
        assert_eq!((openvpn.interface.as_str(), openvpn.started), ("cloudlink", Some(Started::default())));
    }

    #[test]
    fn every_key_is_read() {
        let openvpn = parsed(
            "start = true\ninterface = \"vpn-1\"\ngateway = \"10.8.0.1\"\nlink_port = 8080\nprogram = \"/opt/openvpn\"\n\
             wrapping = \"tls-crypt-v2\"\nwrapping_key = \"/etc/v2.key\"\nhttp_proxy = \"[2001:db8::1]:3128\"",
        )
        .openvpn;
        assert_eq!((openvpn.interface.as_str(), openvpn.link_port), ("vpn-1", 8080));
        assert_eq!(openvpn.gateway, Some("10.8.0.1".parse().unwrap()));
        let started = Started {
            program: Some("/opt/openvpn".into()),
            wrapping: Some(Wrapping { kind: WrappingKind::TlsCryptV2, key: "/etc/v2.key".into() }),
            http_proxy: Some(Proxy { host: "2001:db8::1".to_owned(), port: 3128, login: None }),
        };
        assert_eq!(openvpn.started, Some(started));
    }

    #[test]
    fn faults_have_line_and_hint() {
        let expected = [
            ("start = 1", "line 7: openvpn.start is an integer"),
            ("interface = \"../eth0\"", "line 7: openvpn.interface is \"../eth0\""),
            ("interface = \"a-name-too-long-\"", "line 7: openvpn.interface is"),
            ("gateway = \"fd00::1\"", "line 7: openvpn.gateway is not an IPv4 address"),
            ("program = \"/x\"", "line 7: openvpn.program has no effect, because the agent does not start the client"),
            ("start = true\nprogram = \"openvpn\"", "line 8: openvpn.program is \"openvpn\", which depends on"),
            ("start = true\nwrapping = \"tls-crypt\"", "openvpn.wrapping_key is missing"),
            ("start = true\nwrapping = \"xor\"", "line 8: openvpn.wrapping is \"xor\" (hint: \"none\", \"tls-auth\""),
            ("start = true\nwrapping_key = \"/k\"", "line 8: openvpn.wrapping_key is of no use without a wrapping"),
            ("start = true\nwrapping = \"tls-auth\"\nwrapping_key = \"/a\\nb\"", "line 9: openvpn.wrapping_key"),
            ("start = true\nhttp_proxy = \"http://proxy:80\"", "line 8: openvpn.http_proxy is"),
            ("start = true\nhttp_proxy = \"proxy\"", "line 8: openvpn.http_proxy is"),
            (
                "start = true\ngatway = \"10.0.0.1\"",
                "line 8: openvpn.gatway is not known (hint: did you mean gateway?)",
            ),
        ];
        for (section, expected) in expected {
            let problems = problems(section);
            assert_eq!(problems.len(), 1, "{section}: {problems:?}");
            assert!(problems[0].starts_with(expected), "{section}: {problems:?}");
        }
    }

    #[test]
    fn what_a_profile_cannot_name_is_told_before_there_is_one() {
        let long = format!("/{}", "d".repeat(230));
        let state_dir = BEGINNING.replace("\"/s\"", &format!("{long:?}"));
        let ca_file = BEGINNING.replace("\"/ca\"", "\"/c\\na\"");
        for (text, expected) in [
            (&state_dir, "line 1: state_dir is longer than OpenVPN reads it"),
            (&ca_file, "line 4: server.ca_file is not text on one line"),
        ] {
            assert!(Config::parse(text).is_ok(), "of no matter beside a client");
            let faults = Config::parse(&format!("{text}start = true\n")).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].to_string().starts_with(expected), "{faults:?}");
        }
    }

    #[test]
    fn a_transport_that_is_not_known_is_told() {
        let text = BEGINNING.replace("\"openvpn\"", "\"carrier-pigeon\"");
        let faults = Config::parse(&text).unwrap_err();
        assert_eq!(
            faults[0].to_string(),
            "line 5: server.transport is \"carrier-pigeon\" (hint: \"websocket\" or \"openvpn\" or \"polling\")"
        );
    }
}
