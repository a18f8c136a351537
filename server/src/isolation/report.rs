//! What `cloudlinkd isolation` tells: the live rules in plain words, and whether they are those that are declared. Runs in a process
//! of its own, beside a server or after one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;
use serde::Serialize;
use serde_json::{Value, json};

use super::compare::{self, Listing, Rule, Table};
use super::kernel::{Kernel, KernelError};
use super::policy::{CHAINS, Policy, Set, TABLE};
use super::{DECLARED_FILE, DriftKind, setting};
use crate::config::Config;

/// What is shown of a verdict or an expression that is not ours.
const STRANGE_CHARS_MAX: usize = 60;

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("tunnels are off (tunnel.enabled): there is nothing to isolate")]
    Off,
    #[error(
        "no policy is in force: there is no {}, which a server leaves there while it runs with tunnels", path.display()
    )]
    NoPolicy { path: PathBuf },
    #[error("{} cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the kernel's rules cannot be read")]
    Kernel(#[from] KernelError),
}

/// The live rules.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Chain by chain, in the order in which packets meet them.
    pub rules: Vec<ShownRule>,
    pub openings: Vec<ShownElement>,
    pub quarantined: Vec<ShownElement>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShownRule {
    pub chain: String,
    pub what: String,
    pub verdict: String,
    pub packets: Option<u64>,
    /// Whether it is one of those that are declared.
    pub declared: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShownElement {
    pub address: String,
    pub port: Option<u16>,
    pub expires_seconds: Option<u64>,
}

/// Whether what is live is what is declared.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    pub equal: bool,
    pub differences: Vec<Difference>,
    /// Without the interface it has no settings. It comes and goes with the server.
    pub has_interface: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// `rules` or `setting`.
    pub kind: &'static str,
    pub what: String,
}

/// Reads the live rules.
pub async fn show(config: &Config) -> Result<Shown, ReportError> {
    let (kernel, policy) = (Kernel::find()?, declared_policy(config)?);
    kernel.check().await?;
    let declared = compare::declared(&kernel, &policy).await?;
    let listing = Listing::read(&kernel.list(TABLE).await?.unwrap_or_default());
    Ok(Shown::new(&declared, &listing))
}

/// Compares the live rules and settings with what is declared: by the configuration, in the slice that the server was leased.
pub async fn verify(config: &Config) -> Result<Verified, ReportError> {
    let (kernel, policy) = (Kernel::find()?, declared_policy(config)?);
    kernel.check().await?;
    let declared = compare::declared(&kernel, &policy).await?;
    let live = kernel.list(TABLE).await?.map(|objects| Listing::read(&objects));
    let mut rules = compare::differences(&declared, live.as_ref().map(|live| &live.table));
    if let Some(listing) = live {
        rules.extend(listing.strange);
        // Who asked for an opening only the server knows. That it ends by itself anybody can see.
        let endless = listing.elements.iter().filter(|live| live.expires_seconds.is_none());
        let endless = endless.filter(|live| live.element.set == Set::Openings);
        rules.extend(endless.map(|live| format!("{}: it never ends", live.element)));
    }
    let has_interface = if_nametoindex(policy.interface.as_str()).is_ok();
    let settings = if has_interface { setting::differences(&policy.interface) } else { Vec::new() };
    let of = |kind: DriftKind| move |what| Difference { kind: kind.label(), what };
    let differences: Vec<_> =
        rules.into_iter().map(of(DriftKind::Rules)).chain(settings.into_iter().map(of(DriftKind::Setting))).collect();
    Ok(Verified { equal: differences.is_empty(), differences, has_interface })
}

fn declared_policy(config: &Config) -> Result<Policy, ReportError> {
    if !config.tunnel.enabled {
        return Err(ReportError::Off);
    }
    let path = config.data_dir.join(DECLARED_FILE);
    match read_policy(&path) {
        Ok(policy) => Ok(policy.configured(config)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReportError::NoPolicy { path }),
        Err(source) => Err(ReportError::Unreadable { path, source }),
    }
}

fn read_policy(path: &Path) -> io::Result<Policy> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

impl Shown {
    fn new(declared: &Table, listing: &Listing) -> Self {
        let mut rules = Vec::new();
        let mut chains: Vec<_> = listing.table.chains().iter().collect();
        chains.sort_by_key(|(chain, _)| CHAINS.iter().position(|name| name == chain).unwrap_or(CHAINS.len()));
        for (chain, base) in chains {
            let mut left = declared.rules_of(chain).to_vec();
            for rule in listing.table.rules_of(chain) {
                let place = left.iter().position(|one| one == rule);
                let declared = place.map(|place| left.swap_remove(place)).is_some();
                let what = if rule.words.is_empty() { strange(&rule.expressions) } else { rule.words.clone() };
                let (chain, verdict) = (chain.clone(), verdict(rule));
                rules.push(ShownRule { chain, what, verdict, packets: rule.packets, declared });
            }
            if let Some(policy) = base["policy"].as_str() {
                let what = "whatever no rule here decides".to_owned();
                let (chain, verdict) = (chain.clone(), past(policy).to_owned());
                let declared = declared.chains().get(&chain) == Some(base);
                rules.push(ShownRule { chain, what, verdict, packets: None, declared });
            }
        }
        let of = |set| {
            let elements = listing.elements.iter().filter(move |live| live.element.set == set);
            let shown = elements.map(|live| ShownElement {
                address: live.element.address.to_string(),
                port: (live.element.port != 0).then_some(live.element.port),
                expires_seconds: live.expires_seconds,
            });
            shown.collect()
        };
        Self { rules, openings: of(Set::Openings), quarantined: of(Set::Quarantined) }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        if self.rules.is_empty() {
            return "there are no rules\n".to_owned();
        }
        let mut rows = vec![["CHAIN".to_owned(), "WHAT".to_owned(), "VERDICT".to_owned(), "PACKETS".to_owned()]];
        rows.extend(self.rules.iter().map(|rule| {
            let what = if rule.declared { rule.what.clone() } else { format!("UNKNOWN: {:?}", rule.what) };
            let packets = rule.packets.map(|packets| packets.to_string()).unwrap_or_default();
            [rule.chain.clone(), what, rule.verdict.clone(), packets]
        }));
        let mut text = aligned(&rows);
        for opening in &self.openings {
            let ShownElement { address, port, expires_seconds } = opening;
            let port = port.unwrap_or(0);
            let _ = match expires_seconds {
                Some(seconds) => writeln!(text, "open for support: {address} port {port}, {seconds} s left"),
                None => writeln!(text, "open for support: {address} port {port}, FOR EVER"),
            };
        }
        for quarantined in &self.quarantined {
            let _ = writeln!(text, "in quarantine: {}", quarantined.address);
        }
        text
    }
}

impl Verified {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Difference { kind, what } in &self.differences {
            let _ = writeln!(text, "{kind}: {what}");
        }
        if !self.has_interface {
            text.push_str("there is no interface of tunnels, so it has no settings to compare\n");
        }
        text.push_str(if self.equal {
            "what is in force is what is declared\n"
        } else {
            "what is in force is NOT what is declared\n"
        });
        text
    }
}

/// What becomes of a packet that a rule matches.
fn verdict(rule: &Rule) -> String {
    let nothing = Vec::new();
    let mut verdict = String::from("goes on");
    let mut is_untracked = false;
    for expression in rule.expressions.as_array().unwrap_or(&nothing) {
        let Some((kind, body)) = expression.as_object().and_then(|expression| expression.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "accept" | "drop" => past(kind).clone_into(&mut verdict),
            "goto" | "jump" => verdict = format!("see {}", body["target"].as_str().unwrap_or_default()),
            "notrack" => is_untracked = true,
            "match" | "counter" | "limit" | "set" => {}
            _ => verdict = strange(expression),
        }
    }
    if is_untracked { format!("{verdict}, no connection is remembered") } else { verdict }
}

fn past(verdict: &str) -> &str {
    match verdict {
        "accept" => "accepted",
        "drop" => "dropped",
        other => other,
    }
}

/// What is not ours, in its own words.
fn strange(value: &Value) -> String {
    value.to_string().chars().take(STRANGE_CHARS_MAX).collect()
}

fn aligned(rows: &[[String; 4]]) -> String {
    let mut widths = BTreeMap::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = widths.entry(column).or_insert(0);
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(line, "{cell:<width$}  ", width = widths[&column]);
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// For machines.
#[must_use]
pub fn to_json(report: &impl Serialize) -> String {
    format!("{}\n", json!(report))
}
