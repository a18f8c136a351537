//! The configuration file: what may be set, its defaults, and everything that is wrong with one, all at once.

mod access;
mod container;
mod local;
mod openvpn;
mod poll;
mod proxy;
mod section;
mod stream;
mod update;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

pub use self::access::Access;
pub use self::container::Containers;
pub use self::local::{Busy, Local};
pub use self::openvpn::{OpenVpn, Started, Wrapping, WrappingKind};
pub use self::poll::Poll;
pub use self::proxy::{Login, Proxies, Proxy};
use self::section::Section;
pub use self::stream::{File, Forward, Terminal};
pub use self::update::{Installer, Update};
use crate::tunnel::profile;

/// The port that every device may dial.
const PORT_DEFAULT: u16 = 443;
/// Where Linux tells which boot this is.
const BOOT_ID_PATH_DEFAULT: &str = "/proc/sys/kernel/random/boot_id";
/// How often the server is dialled at most, unless configured otherwise. Back-off alone comes to about 24.
const ATTEMPTS_PER_HOUR_DEFAULT: u64 = 60;
const ATTEMPTS_PER_HOUR_MAX: u64 = 3600;
const BETTER_AFTER_SECONDS_DEFAULT: u64 = 30 * 60;
const BETTER_AFTER_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// What an argument must be to be replaced by the service's name.
pub const SERVICE_PLACEHOLDER: &str = "{service}";
/// The longest name of a service, in bytes.
pub const SERVICE_NAME_BYTES_MAX: usize = 128;
/// The most services that may be allowed.
const SERVICES_MAX: usize = 256;
/// The most services that applications restart by themselves: each may keep a connection waiting.
const BY_APPLICATION_MAX: usize = 32;
/// The largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that all this was read from.
    pub path: Option<PathBuf>,
    /// Where the agent keeps its key, certificates and ledger. Must survive a reboot. No default.
    pub state_dir: PathBuf,
    /// Where to read which boot this is. Default: `/proc/sys/kernel/random/boot_id`.
    pub boot_id_path: PathBuf,
    pub server: Server,
    pub openvpn: OpenVpn,
    pub poll: Poll,
    pub service: Service,
    pub power: Power,
    pub access: Access,
    pub terminal: Terminal,
    pub forward: Forward,
    pub file: File,
    pub local: Local,
    pub busy: Busy,
    pub update: Update,
    pub log: Log,
}

/// `[server]`: whom to dial and whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How the server is reached: the first one that works, best first. Default: `websocket` alone.
    pub transports: Vec<Transport>,
    /// How often it is dialled at most. Default: 60.
    pub attempts_per_hour: usize,
    /// How soon a better transport is tried again than the one that works, about. Default: 30 minutes.
    pub better_after: Duration,
    /// The one host name that the device dials. No default.
    pub host: String,
    /// Default: 443.
    pub port: u16,
    /// The name that the server's certificate must bear. Default: `host`.
    pub server_name: ServerName<'static>,
    /// The name under which the server enrolls devices. Default: `enroll.` and `host`.
    pub enroll_name: ServerName<'static>,
    /// Dial this instead of what `host` resolves to. Default: resolve at each attempt.
    pub address: Option<SocketAddr>,
    /// The certificates, PEM, that the server's certificate must go back to. No default.
    pub ca_file: PathBuf,
    /// `[proxy]`.
    pub proxies: Proxies,
}

/// How the link reaches the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A WebSocket over TLS.
    #[default]
    WebSocket,
    /// A WebSocket inside the tunnel of a stock OpenVPN client.
    OpenVpn,
    /// No link: requests over HTTPS, now and then.
    Polling,
}

impl Transport {
    const ALL: [Self; 3] = [Self::WebSocket, Self::OpenVpn, Self::Polling];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::OpenVpn => "openvpn",
            Self::Polling => "polling",
        }
    }

    fn parse(text: &str) -> Result<Self, (String, String)> {
        let known = Self::ALL.into_iter().find(|transport| transport.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|transport| format!("{:?}", transport.name()));
            (format!("is {text:?}"), names.join(" or "))
        })
    }
}

/// `[service]`: which services an operator may restart, and how that is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Default: none.
    pub allow: Vec<ServiceName>,
    /// Program and arguments; the argument `{service}` is replaced. Default: systemd is asked over D-Bus.
    pub restart_argv: Option<Argv>,
    /// Those of them that applications restart by themselves, when they hear of it over the local socket. Default: none.
    pub by_application: Vec<ServiceName>,
}

/// `[power]`: how the device is rebooted and shut down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Power {
    /// Default: systemd-logind is asked over D-Bus.
    pub reboot_argv: Option<Argv>,
    /// Default: systemd-logind is asked over D-Bus.
    pub shutdown_argv: Option<Argv>,
}

/// `[log]`: what is logged, to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level or a filter as of `RUST_LOG`. Default: `info`.
    pub filter: String,
    /// `human` or `json`. Default: `human`.
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

/// A program, by absolute path, and its arguments. Never given to a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argv {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// The name of a service: 1 to 128 bytes of `A-Z a-z 0-9 . _ @ : -`, not beginning with `-` or `.`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName(String);

/// Everything that is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} has {} fault(s)", path.display(), faults.len())]
    Faults { path: PathBuf, faults: Vec<Fault> },
}

/// One thing that is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1; `None` when what is missing has no line.
    pub line: Option<usize>,
    pub problem: String,
    pub hint: String,
}

impl Config {
    /// Reads and judges a file.
    ///
    /// # Errors
    /// All faults of the file at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let faulty = |faults| ConfigError::Faults { path: path.to_owned(), faults };
        let mut parsed = Self::parse(&text).map_err(faulty)?;
        parsed.server.proxies.honour(|name| std::env::var(name).ok()).map_err(|fault| faulty(vec![fault]))?;
        Ok(Self { path: Some(path.to_owned()), ..parsed })
    }

    /// What no stream may write or read: the device's key, the passwords of proxy and registries, and what makes up whom it trusts.
    #[must_use]
    pub fn withheld(&self) -> Vec<PathBuf> {
        let keys = self.access.keys.iter().flatten();
        let password = self.server.proxies.password_file();
        let logins = self.update.container.as_ref().and_then(|containers| containers.login_file.as_ref());
        [&self.state_dir, &self.server.ca_file]
            .into_iter()
            .chain(&self.path)
            .chain(keys)
            .chain(password)
            .chain(logins)
            .cloned()
            .collect()
    }

    /// Judges the text of a configuration file.
    ///
    /// # Errors
    /// All faults of the text at once.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(errors.iter().map(|error| section::syntax_fault(text, error)).collect());
        }
        let faults = section::Faults::default();
        let root = Section::root(text, table.get_ref(), &faults);
        let config = read_root(&root);
        root.finish();
        let faults = faults.into_sorted();
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(faults),
        }
    }
}

/// `None` only together with a fault.
fn read_root(root: &Section<'_>) -> Option<Config> {
    let state_dir = root.required("state_dir", "state_dir = \"/var/lib/cloudlink-agent\"", parse_path);
    let boot_id_path = root.optional("boot_id_path", parse_path);
    let proxies = proxy::read(&root.section("proxy"));
    let server = read_server(&root.section("server"), proxies);
    let openvpn = openvpn::read(&root.section("openvpn"));
    if openvpn.started.is_some() {
        check_paths_of_profile(root, state_dir.as_deref(), server.as_ref());
    } else if server.as_ref().is_some_and(|server| server.transports.len() > 1 && server.uses(Transport::OpenVpn)) {
        // A client that goes on by itself would take the link over each time that it comes back.
        let hint = "set openvpn.start = true: it must be the agent that starts and ends the client";
        root.section("server").fault("transports", "has \"openvpn\" beside another one", hint);
    }
    let poll = poll::read(&root.section("poll"));
    if !poll.enabled && server.as_ref().is_some_and(|server| server.uses(Transport::Polling)) {
        root.section("poll").fault(
            "enabled",
            "is false, with \"polling\" among server.transports",
            "leave one of them out",
        );
    }
    let service = read_service(&root.section("service"));
    let power = read_power(&root.section("power"));
    let access = access::read(&root.section("access"));
    let terminal = stream::read_terminal(&root.section("terminal"));
    let forward = stream::read_forward(&root.section("forward"));
    let file = stream::read_file(&root.section("file"));
    let local = local::read(&root.section("local"), state_dir.as_deref());
    let busy = local::read_busy(&root.section("busy"));
    let update = update::read(&root.section("update"));
    let log = read_log(&root.section("log"));
    Some(Config {
        path: None,
        state_dir: state_dir?,
        boot_id_path: boot_id_path.unwrap_or_else(|| PathBuf::from(BOOT_ID_PATH_DEFAULT)),
        server: server?,
        openvpn,
        poll,
        service,
        power,
        access,
        terminal,
        forward,
        file,
        local: local?,
        busy,
        update,
        log,
    })
}

/// What becomes part of a profile must be something that a profile can hold.
fn check_paths_of_profile(root: &Section<'_>, state_dir: Option<&Path>, server: Option<&Server>) {
    let hint = "with openvpn.start, a path that an OpenVPN profile can hold";
    if let Some(Err(error)) = state_dir.map(|path| profile::check_path(&path.join(profile::LONGEST_FILE_NAME))) {
        root.fault("state_dir", &error.to_string(), hint);
    }
    if let Some(Err(error)) = server.map(|server| profile::check_path(&server.ca_file)) {
        root.section("server").fault("ca_file", &error.to_string(), hint);
    }
}

fn read_server(server: &Section<'_>, proxies: Proxies) -> Option<Server> {
    let transports = read_transports(server);
    let attempts_per_hour = server.number("attempts_per_hour", ATTEMPTS_PER_HOUR_MAX);
    let better_after = server.number("better_after_seconds", BETTER_AFTER_SECONDS_MAX);
    let host = server.required("host", "host = \"link.example.com\"", parse_host);
    let port = server.port("port").unwrap_or(PORT_DEFAULT);
    let server_name = server.optional("server_name", parse_name);
    let enroll_name = server.optional("enroll_name", parse_name);
    let address = server.optional("address", |text| {
        text.parse().map_err(|_| {
            ("is not an address and a port".to_owned(), "such as 192.0.2.7:443 or [2001:db8::7]:443".to_owned())
        })
    });
    let ca_file = server.required("ca_file", "ca_file = \"/etc/cloudlink-agent/ca.pem\"", parse_path);
    server.finish();

    let host = host?;
    let own_name = ServerName::try_from(host.clone()).ok()?;
    let enroll_name = enroll_name.or_else(|| {
        let name = format!("enroll.{host}");
        match (&own_name, ServerName::try_from(name)) {
            (ServerName::DnsName(_), Ok(name)) => Some(name),
            _ => {
                server.fault(
                    "enroll_name",
                    "is needed, because host is not a name",
                    "the name that the server enrolls devices under",
                );
                None
            }
        }
    });
    Some(Server {
        transports,
        attempts_per_hour: usize::try_from(attempts_per_hour.unwrap_or(ATTEMPTS_PER_HOUR_DEFAULT))
            .unwrap_or(usize::MAX),
        better_after: Duration::from_secs(better_after.unwrap_or(BETTER_AFTER_SECONDS_DEFAULT)),
        server_name: server_name.unwrap_or(own_name),
        host,
        port,
        enroll_name: enroll_name?,
        address,
        ca_file: ca_file?,
        proxies,
    })
}

/// In order, each once; never empty.
fn read_transports(server: &Section<'_>) -> Vec<Transport> {
    let alone = server.optional("transport", Transport::parse);
    if server.has("transport") && server.has("transports") {
        server.fault("transport", "is of no use with transports", "name all of them there, best first");
    }
    let mut transports = Vec::new();
    for text in server.strings("transports").unwrap_or_default() {
        match Transport::parse(&text) {
            Ok(transport) if transports.contains(&transport) => {
                server.fault("transports", &format!("has {text:?} twice"), "each once, best first");
            }
            Ok(transport) => transports.push(transport),
            Err((problem, hint)) => server.fault("transports", &format!("has an entry that {problem}"), &hint),
        }
    }
    if transports.iter().rev().skip(1).any(|transport| *transport == Transport::Polling) {
        // It would be used as long as it works, which is nearly always, and no link be made.
        server.fault(
            "transports",
            "has \"polling\" before others",
            "it is what is left when no link comes about: last",
        );
    }
    if transports.is_empty() {
        if server.strings("transports").is_some_and(|texts| texts.is_empty()) {
            server.fault("transports", "is empty", "such as [\"websocket\", \"openvpn\"]");
        }
        transports.push(alone.unwrap_or_default());
    }
    transports
}

fn read_service(service: &Section<'_>) -> Service {
    let names = service.strings("allow").unwrap_or_default();
    if names.len() > SERVICES_MAX {
        service.fault("allow", &format!("has more than {SERVICES_MAX} names"), "allow fewer services");
    }
    let mut allow = Vec::new();
    for name in names {
        match ServiceName::parse(&name) {
            Some(name) => allow.push(name),
            None => service.fault(
                "allow",
                &format!("has the name {name:?}, which cannot be a service's"),
                "1 to 128 of A-Z a-z 0-9 . _ @ : - and neither - nor . at the beginning",
            ),
        }
    }
    let restart_argv = read_argv(service, "restart_argv");
    if let Some(argv) = &restart_argv {
        check_placeholder(service, argv);
    }
    let by_application = read_by_application(service, &allow);
    service.finish();
    Service { allow, restart_argv, by_application }
}

fn read_by_application(service: &Section<'_>, allow: &[ServiceName]) -> Vec<ServiceName> {
    let names = service.strings("by_application").unwrap_or_default();
    if names.len() > BY_APPLICATION_MAX {
        let problem = format!("has more than {BY_APPLICATION_MAX} names");
        service.fault("by_application", &problem, "let fewer services be restarted so");
    }
    let mut found = Vec::new();
    for name in names {
        match allow.iter().find(|allowed| allowed.as_str() == name) {
            Some(allowed) => found.push(allowed.clone()),
            None => service.fault(
                "by_application",
                &format!("has the name {name:?}, which allow has not"),
                "add it to allow",
            ),
        }
    }
    found
}

fn check_placeholder(service: &Section<'_>, argv: &Argv) {
    let hint = "[\"/usr/bin/systemctl\", \"restart\", \"{service}\"]";
    if !argv.arguments.iter().any(|argument| argument == SERVICE_PLACEHOLDER) {
        service.fault("restart_argv", "has no argument {service}", hint);
    }
    if argv.arguments.iter().any(|argument| argument != SERVICE_PLACEHOLDER && argument.contains(SERVICE_PLACEHOLDER)) {
        service.fault("restart_argv", "has {service} inside of an argument; only whole arguments are replaced", hint);
    }
}

fn read_power(power: &Section<'_>) -> Power {
    let read = Power { reboot_argv: read_argv(power, "reboot_argv"), shutdown_argv: read_argv(power, "shutdown_argv") };
    power.finish();
    read
}

fn read_log(log: &Section<'_>) -> Log {
    let filter = log.optional("filter", |text| match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err((format!("is not a filter: {error}"), "such as \"info\" or \"info,cloudlink_agent=debug\"".to_owned()))
        }
    });
    let format = log.optional("format", |text| match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err((format!("is {text:?}"), "\"human\" or \"json\"".to_owned())),
    });
    log.finish();
    Log { filter: filter.unwrap_or_else(|| "info".to_owned()), format: format.unwrap_or_default() }
}

fn read_argv(section: &Section<'_>, key: &'static str) -> Option<Argv> {
    let mut words = section.strings(key)?.into_iter();
    let hint = "an array: the program's absolute path, then each argument on its own";
    let Some(program) = words.next() else {
        section.fault(key, "is empty", hint);
        return None;
    };
    if !program.starts_with('/') {
        section.fault(key, &format!("begins with {program:?}, which is not an absolute path"), hint);
    }
    let arguments: Vec<String> = words.collect();
    if program.contains('\0') || arguments.iter().any(|argument| argument.contains('\0')) {
        section.fault(key, "has a NUL character", hint);
    }
    Some(Argv { program: PathBuf::from(program), arguments })
}

fn parse_path(text: &str) -> Result<PathBuf, (String, String)> {
    if text.is_empty() || text.contains('\0') {
        return Err(("is not a path".to_owned(), "an absolute path".to_owned()));
    }
    if !text.starts_with('/') {
        return Err((
            format!("is {text:?}, which depends on where the agent is started"),
            "an absolute path".to_owned(),
        ));
    }
    Ok(PathBuf::from(text))
}

fn parse_name(text: &str) -> Result<ServerName<'static>, (String, String)> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        (format!("is {text:?}, which is neither a name nor an IP address"), "such as \"link.example.com\"".to_owned())
    })
}

fn parse_host(text: &str) -> Result<String, (String, String)> {
    parse_name(text)
        .map(|_| text.to_owned())
        .map_err(|(problem, _)| (problem, "the name alone, without https:// and without a port".to_owned()))
}

impl Server {
    /// What is dialled: a name or an address, and a port.
    #[must_use]
    pub fn target(&self) -> (String, u16) {
        match self.address {
            Some(address) => (address.ip().to_string(), address.port()),
            None => (self.host.clone(), self.port),
        }
    }

    /// Whether the device proves itself to the server directly, with a certificate of its own.
    #[must_use]
    pub fn is_dialled_directly(&self) -> bool {
        self.uses(Transport::WebSocket) || self.uses(Transport::Polling)
    }

    /// Whether the server may be reached in this way.
    #[must_use]
    pub fn uses(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }

    /// What it is dialled through.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxies.of(self)
    }
}

impl Argv {
    /// With each argument that is `{service}` replaced.
    #[must_use]
    pub fn for_service(&self, service: &ServiceName) -> Self {
        let arguments = self
            .arguments
            .iter()
            .map(|argument| if argument == SERVICE_PLACEHOLDER { service.0.clone() } else { argument.clone() })
            .collect();
        Self { program: self.program.clone(), arguments }
    }
}

impl ServiceName {
    /// `None` for what cannot be the name of a service.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=SERVICE_NAME_BYTES_MAX).contains(&text.len());
        let clean = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@:-".contains(&byte));
        (fits && clean && !text.starts_with(['-', '.'])).then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{} (hint: {})", self.problem, self.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "state_dir = \"/var/lib/a\"\n[server]\nhost = \"link.example.com\"\nca_file = \"/etc/ca.pem\"\n";

    #[test]
    fn only_what_is_allowed_is_restarted_by_its_application_and_locks_are_bounded() {
        let with = |text: &str| format!("{SMALLEST}{text}");
        let config = Config::parse(&with(
            "[service]\nallow = [\"meter\", \"web\"]\nby_application = [\"meter\"]\n[local]\nmode = \"0660\"\n[busy]\nmax_seconds = 60\n",
        ))
        .unwrap();
        assert_eq!(config.service.by_application, [ServiceName::parse("meter").unwrap()]);
        assert_eq!((config.local.mode, config.busy.max), (0o660, Duration::from_secs(60)));
        assert_eq!(config.local.socket, Path::new("/var/lib/a/local.sock"));
        for (text, named) in [
            ("[service]\nallow = [\"web\"]\nby_application = [\"meter\"]\n", "by_application has the name \"meter\""),
            ("[local]\nmode = \"0777\"\n", "local.mode is"),
            ("[local]\ngroup = \"\"\n", "local.group is"),
            ("[busy]\nmax_seconds = 604801\n", "busy.max_seconds is out of range"),
        ] {
            let problems = problems(&with(text));
            assert!(problems.len() == 1 && problems[0].contains(named), "{problems:?}");
        }
        let socket = format!("[local]\nsocket = \"/{}\"\n", "x".repeat(107));
        assert!(problems(&with(&socket))[0].contains("longer than 107 bytes"));
    }

    fn problems(text: &str) -> Vec<String> {
        Config::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_smallest_file_gets_every_default() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!((config.server.transports, config.server.port), (vec![Transport::WebSocket], 443));
        assert_eq!(config.server.server_name, ServerName::try_from("link.example.com").unwrap());
        assert_eq!(config.server.enroll_name, ServerName::try_from("enroll.link.example.com").unwrap());
        assert_eq!(config.boot_id_path, Path::new("/proc/sys/kernel/random/boot_id"));
        assert_eq!((config.service, config.power), (Service::default(), Power::default()));
        let nothing = (Terminal::default(), Forward::default(), File::default());
        assert!(!nothing.0.enabled && nothing.1.allow.is_empty() && nothing.2.roots.is_empty());
        assert_eq!((config.terminal, config.forward, config.file), nothing, "nobody is let in unless it is configured");
        assert_eq!(config.log, Log { filter: "info".to_owned(), format: LogFormat::Human });
        assert_eq!(config.poll, Poll { enabled: true, after_seconds: 300 });
    }

    #[test]
    fn every_key_is_read() {
        let config = Config::parse(
            "state_dir = \"/s\"\nboot_id_path = \"/b\"\n\
             [server]\nhost = \"192.0.2.1\"\nport = 4443\nserver_name = \"a.test\"\nenroll_name = \"e.test\"\n\
             address = \"127.0.0.1:4443\"\nca_file = \"/ca\"\n\
             [service]\nallow = [\"nginx\", \"app@1.service\"]\nrestart_argv = [\"/bin/restart\", \"--\", \"{service}\"]\n\
             [power]\nreboot_argv = [\"/bin/reboot\"]\nshutdown_argv = [\"/bin/halt\", \"-p\"]\n\
             [poll]\nenabled = false\nafter_seconds = 60\n\
             [log]\nfilter = \"debug\"\nformat = \"json\"\n",
        )
        .unwrap();
        assert_eq!(config.poll, Poll { enabled: false, after_seconds: 60 });
        assert_eq!(config.server.address, Some("127.0.0.1:4443".parse().unwrap()));
        let restart = config.service.restart_argv.unwrap().for_service(&config.service.allow[1]);
        assert_eq!(
            restart,
            Argv { program: "/bin/restart".into(), arguments: vec!["--".into(), "app@1.service".into()] }
        );
        assert_eq!(config.power.shutdown_argv.unwrap().arguments, ["-p"]);
        assert_eq!(config.log, Log { filter: "debug".to_owned(), format: LogFormat::Json });
    }

    #[test]
    fn the_examples_of_the_manual_are_good() {
        let manual = include_str!("../../docs/AGENT.md");
        let blocks = manual.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
        let examples: Vec<_> = blocks.filter(|block| block.starts_with("state_dir")).collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            Config::parse(example).unwrap_or_else(|faults| panic!("{faults:?}"));
        }
    }

    #[test]
    fn all_faults_are_told_at_once_with_line_and_hint() {
        let problems = problems(
            "statedir = \"/var/lib/a\"\n\
             [server]\nhost = \"https://link.example.com\"\nport = 70000\nca_file = 7\naddress = \"nowhere\"\n\
             [service]\nallow = [\"a b\"]\nrestart_argv = [\"systemctl\", \"--unit={service}\"]\n\
             [power]\nreboot_argv = []\n[log]\nformat = \"xml\"\n[surprise]\n",
        );
        let expected = [
            "line 1: statedir is not known (hint: did you mean state_dir?)",
            "line 3: server.host",
            "line 4: server.port",
            "line 5: server.ca_file is an integer",
            "line 6: server.address",
            "line 8: service.allow",
            "line 9: service.restart_argv begins with \"systemctl\"",
            "line 9: service.restart_argv has no argument {service}",
            "line 9: service.restart_argv has {service} inside",
            "line 11: power.reboot_argv is empty",
            "line 13: log.format is \"xml\"",
            "line 14: surprise is not known",
            "state_dir is missing",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem:?} does not begin with {expected:?}");
        }
    }

    #[test]
    fn transports_are_an_order_of_different_ones() {
        let with = |keys: &str, more: &str| SMALLEST.replace("host = ", &format!("{keys}\nhost = ")) + more;
        let start = "[openvpn]\nstart = true\n";
        let both = "transports = [\"openvpn\", \"websocket\"]\nattempts_per_hour = 7\nbetter_after_seconds = 60";
        let server = Config::parse(&with(both, start)).unwrap().server;
        assert_eq!(server.transports, [Transport::OpenVpn, Transport::WebSocket]);
        assert_eq!((server.attempts_per_hour, server.better_after), (7, Duration::from_secs(60)));
        let with_polling = with("transports = [\"websocket\", \"polling\"]", "");
        assert_eq!(Config::parse(&with_polling).unwrap().server.transports, [Transport::WebSocket, Transport::Polling]);
        for (keys, more, expected) in [
            (both, "", "server.transports has \"openvpn\" beside another one (hint: set openvpn.start"),
            ("transports = []", "", "server.transports is empty"),
            ("transports = [\"pigeon\"]", "", "server.transports has an entry that is \"pigeon\""),
            ("transports = [\"websocket\", \"websocket\"]", "", "server.transports has \"websocket\" twice"),
            ("transports = [\"polling\", \"websocket\"]", "", "server.transports has \"polling\" before others"),
            ("transport = \"polling\"", "[poll]\nenabled = false\n", "poll.enabled is false, with \"polling\" among"),
            ("transport = \"websocket\"\ntransports = [\"websocket\"]", "", "server.transport is of no use"),
            ("attempts_per_hour = 0", "", "server.attempts_per_hour is out of range"),
            ("better_after_seconds = 0", "", "server.better_after_seconds is out of range"),
        ] {
            let problems = problems(&with(keys, more));
            assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        }
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let problems = problems("state_dir = \"/a\"\n[server\nhost = 1\n");
        assert!(problems[0].starts_with("line 2: "), "{problems:?}");
    }

    #[test]
    fn an_address_as_host_needs_a_name_to_enroll_under() {
        let problems = problems(&SMALLEST.replace("link.example.com", "192.0.2.1"));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("server.enroll_name is needed"), "{problems:?}");
    }

    #[test]
    fn names_that_could_be_options_or_paths_are_no_services() {
        for name in ["", "-h", ".", "../x", "a/b", "a b", "a;b", "ü", "a\n", "$(x)", &"a".repeat(129)] {
            assert_eq!(ServiceName::parse(name), None, "{name:?}");
        }
        for name in ["nginx", "getty@tty1.service", "a:b", "_x", "dbus-org.x", &"a".repeat(128)] {
            assert!(ServiceName::parse(name).is_some(), "{name:?}");
        }
    }
}
