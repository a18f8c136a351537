//! The configuration: one TOML file, over it the environment (`CLOUDLINK_<TABLE>_<KEY>`), over that flags
//! (`--set table.key=value`). Everything has a default. Every fault is found and reported at once, before any port is bound.
//! docs/CONFIG.md is made from what is declared here.

mod admission;
mod certificate;
mod cluster;
mod database;
mod device;
mod fault;
mod isolation;
mod link;
mod link_test;
mod log;
mod node;
mod notice;
mod operations;
mod people;
mod poll;
mod postgres;
mod reference;
mod section;
mod shutdown;
mod sign_in;
mod support;
mod telemetry;
mod trace;
mod tunnel;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub use admission::Admission;
pub use certificate::Certificate;
pub use cluster::Cluster;
pub use database::{Database, Pooler};
pub use device::Device;
pub use fault::{Fault, Faults, Origin, Problem};
pub use isolation::{Isolation, Scope};
pub use link::Link;
pub use link_test::LinkTest;
pub use log::{Filter, Format, Log};
pub use notice::{MailTls, Notice};
pub use operations::Operations;
pub use people::People;
pub use poll::Poll;
pub use postgres::Postgres;
pub use reference::reference;
pub use section::Shown;
pub use shutdown::Shutdown;
pub use sign_in::SignIn;
pub use support::Support;
pub use telemetry::Telemetry;
pub use trace::{Collector, Trace};
pub use tunnel::{Tunnel, Wrapping};
pub use value::{HostName, InterfaceName, Seconds, Secret, Warnings};

use node::Node;
use section::Given;

/// Read when no `--config` is given, if it exists.
pub const PATH_DEFAULT: &str = "/etc/cloudlink/cloudlinkd.toml";
/// The exit code of a program that was called wrongly (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub node: String,
    pub trust_domain: String,
    pub device: Device,
    pub admission: Admission,
    pub people: People,
    pub operations: Operations,
    pub cluster: Cluster,
    pub link: Link,
    pub poll: Poll,
    pub tunnel: Tunnel,
    pub isolation: Isolation,
    pub support: Support,
    pub telemetry: Telemetry,
    pub link_test: LinkTest,
    pub sign_in: SignIn,
    pub notice: Notice,
    pub certificate: Certificate,
    pub database: Database,
    pub postgres: Postgres,
    pub log: Log,
    pub trace: Trace,
    pub shutdown: Shutdown,
}

impl Default for Config {
    fn default() -> Self {
        let node = Node::default();
        Self {
            data_dir: node.data_dir,
            node: node::host_name(),
            trust_domain: node.trust_domain,
            device: Device::default(),
            admission: Admission::default(),
            people: People::default(),
            operations: Operations::default(),
            cluster: Cluster::default(),
            link: Link::default(),
            poll: Poll::default(),
            tunnel: Tunnel::default(),
            isolation: Isolation::default(),
            support: Support::default(),
            telemetry: Telemetry::default(),
            link_test: LinkTest::default(),
            sign_in: SignIn::default(),
            notice: Notice::default(),
            certificate: Certificate::default(),
            database: Database::default(),
            postgres: Postgres::default(),
            log: Log::default(),
            trace: Trace::default(),
            shutdown: Shutdown::default(),
        }
    }
}

/// Where a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`. Without it, [`PATH_DEFAULT`] if that exists.
    pub path: Option<PathBuf>,
    /// The process' environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `--set key=value`.
    pub set: Vec<String>,
}

/// A configuration, and where each of its values came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub shown: Vec<Shown>,
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
}

impl Config {
    /// Reads and checks everything.
    pub fn load(sources: Sources) -> Result<Loaded, Faults> {
        let mut faults = Faults::default();
        let (path, text) = read_file(sources.path, &mut faults);
        let environment = environment(sources.environment, &mut faults);
        let flags = flags(sources.set, &mut faults);

        let mut given = Given::new(&text, environment, flags);
        for fault in faults.iter() {
            given.faults.add(fault.clone());
        }
        let config = Self::read(&mut given);
        let (shown, mut faults) = given.finish();
        faults.path = path.clone();
        if faults.is_empty() { Ok(Loaded { config, shown, path }) } else { Err(faults) }
    }

    fn read(given: &mut Given<'_>) -> Self {
        let node = Node::read(given);
        let mut config = Self {
            data_dir: node.data_dir,
            node: node.node.unwrap_or_else(node::host_name),
            trust_domain: node.trust_domain,
            device: Device::read(given),
            admission: Admission::read(given),
            people: People::read(given),
            operations: Operations::read(given),
            cluster: Cluster::read(given),
            link: Link::read(given),
            poll: Poll::read(given),
            tunnel: Tunnel::read(given),
            isolation: Isolation::read(given),
            support: Support::read(given),
            telemetry: Telemetry::read(given),
            link_test: LinkTest::read(given),
            sign_in: SignIn::read(given),
            notice: Notice::read(given),
            certificate: Certificate::read(given),
            database: Database::read(given),
            postgres: Postgres::read(given),
            log: Log::read(given),
            trace: Trace::read(given),
            shutdown: Shutdown::read(given),
        };
        config.database.read_secrets(given);
        config.cluster.read_secrets(given);
        config.notice.read_secrets(given);
        config.trace.read_secrets(given);
        config.check(given);
        config
    }

    /// What no single key shows.
    fn check(&self, given: &mut Given<'_>) {
        let mut require = |right: bool, table: &'static str, key: &'static str, problem: Problem| {
            if !right {
                let fault = Fault { origin: given.origin(table, key), key: Some(section::dotted(table, key)), problem };
                given.faults.add(fault);
            }
        };
        let dns = "expected a DNS name: a client cannot ask for an address in its TLS greeting";
        require(is_trust_domain(&self.trust_domain), "", "trust_domain", Problem::Rule(TRUST_DOMAIN_RULE));
        require(self.node.len() <= NODE_BYTES_MAX, "", "node", Problem::Rule("expected at most 64 bytes"));
        require(self.device.server_name.is_dns(), "device", "server_name", Problem::Rule(dns));
        if let Some(enroll) = &self.device.enroll_name {
            require(enroll.is_dns(), "device", "enroll_name", Problem::Rule(dns));
            let same = Problem::Same { other: "device.server_name" };
            require(*enroll != self.device.server_name, "device", "enroll_name", same);
        } else {
            let long = Problem::Rule("too long for `enroll.` before it: set device.enroll_name as well");
            let derived = format!("enroll.{}", self.device.server_name).parse::<HostName>();
            require(!self.device.server_name.is_dns() || derived.is_ok(), "device", "server_name", long);
        }
        let (device, people, operations) = (self.device.listen, self.people.listen, self.operations.listen);
        let apart = |one: std::net::SocketAddr, other| one != other || one.port() == 0;
        require(apart(people, device), "people", "listen", Problem::Same { other: "device.listen" });
        require(apart(operations, device), "operations", "listen", Problem::Same { other: "device.listen" });
        require(apart(operations, people), "operations", "listen", Problem::Same { other: "people.listen" });
        require(
            u32::from(self.tunnel.pool_ipv4.prefix_len()) <= self.tunnel.slice_prefix,
            "tunnel",
            "slice_prefix",
            Problem::Rule("must not be shorter than the prefix of tunnel.pool_ipv4"),
        );
        require(
            self.tunnel.ping_interval_seconds < self.tunnel.dead_after_seconds,
            "tunnel",
            "ping_interval_seconds",
            Problem::Rule("must be below tunnel.dead_after_seconds"),
        );
        let Notice { mail_user: user, mail_password: password, .. } = &self.notice;
        let needs = Problem::Needs { other: "notice.mail_password" };
        require(user.is_none() || password.is_some(), "notice", "mail_user", needs);
        let needs = Problem::Needs { other: "notice.mail_user" };
        require(password.is_none() || user.is_some(), "notice", "mail_password", needs);
        require(
            self.certificate.server_reissue_days < self.certificate.server_days,
            "certificate",
            "server_reissue_days",
            Problem::Rule("must be below certificate.server_days"),
        );
        let Telemetry { raw_keep_days: raw, five_minutes_keep_days: five_minutes, hour_keep_days: hour, .. } =
            self.telemetry;
        let longer = Problem::Rule("must not be below telemetry.raw_keep_days");
        require(raw <= five_minutes, "telemetry", "five_minutes_keep_days", longer);
        let longer = Problem::Rule("must not be below telemetry.five_minutes_keep_days");
        require(five_minutes <= hour, "telemetry", "hour_keep_days", longer);
        require(
            self.database.lock_timeout_seconds <= self.database.statement_timeout_seconds,
            "database",
            "lock_timeout_seconds",
            Problem::Rule("must not be above database.statement_timeout_seconds"),
        );
        require(
            self.database.url.is_some()
                || self.database.connections_max + POSTGRES_CONNECTIONS_SPARE <= self.postgres.connections_max,
            "database",
            "connections_max",
            Problem::Rule("must leave 5 of postgres.connections_max for maintenance"),
        );
    }

    /// The configuration as a TOML file, each key with where its value came from.
    #[must_use]
    pub fn show(shown: &[Shown]) -> String {
        let mut text = String::new();
        let mut table = "";
        for Shown { table: of, key, value, origin } in shown {
            if *of != table {
                table = of;
                let _ = writeln!(text, "\n[{table}]");
            }
            let _ = match value {
                Some(value) => writeln!(text, "{key} = {value}  # {origin}"),
                None => writeln!(text, "# {key} is not set"),
            };
        }
        text
    }
}

const NODE_BYTES_MAX: usize = 64;
const POSTGRES_CONNECTIONS_SPARE: u32 = 5;
const TRUST_DOMAIN_RULE: &str = "expected lower-case letters, digits, dots, dashes and underscores, at most 255";

fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(allowed)
}

fn read_file(path: Option<PathBuf>, faults: &mut Faults) -> (Option<PathBuf>, String) {
    let wanted = path.is_some();
    let path = path.unwrap_or_else(|| Path::new(PATH_DEFAULT).to_owned());
    match std::fs::read_to_string(&path) {
        Ok(text) => (Some(path), text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !wanted => (None, String::new()),
        Err(error) => {
            faults.path = Some(path.clone());
            let problem = Problem::Unreadable(error.kind());
            faults.add(Fault { origin: Origin::File { line: None }, key: None, problem });
            (Some(path), String::new())
        }
    }
}

fn environment(variables: Vec<(OsString, OsString)>, faults: &mut Faults) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("CLOUDLINK_")) else { continue };
        let name = name.to_owned();
        match value.into_string() {
            Ok(value) => {
                read.insert(name, value);
            }
            Err(_) => {
                faults.add(Fault { origin: Origin::Environment { name }, key: None, problem: Problem::NotText });
            }
        }
    }
    read
}

fn flags(set: Vec<String>, faults: &mut Faults) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    for flag in set {
        match flag.split_once('=') {
            Some((key, value)) => {
                read.insert(key.trim().to_owned(), value.to_owned());
            }
            None => faults.add(Fault { origin: Origin::Flag { name: flag }, key: None, problem: Problem::Flag }),
        }
    }
    read
}

#[cfg(test)]
mod tests;
