//! The rules that the kernel has against those that are declared, in words.
//!
//! What `nft` shows of a rule depends on its version. So what is declared is compared in the same words: loaded into a table
//! without hooks, which no packet passes, and listed from there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::delete;
use super::element::{Element, Live};
use super::kernel::{Kernel, KernelError};
use super::policy::{Policy, Reason, Set, TABLE};

/// The table for what is declared, with the process' number behind.
const SCRATCH: &str = "cloudlink_declared_";
/// Differences that are told one by one.
const DIFFERENCES_MAX: usize = 32;
/// Characters of what somebody else wrote into a rule.
const WORDS_CHARS_MAX: usize = 120;

/// A table as it was listed, without what changes by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// The table is asleep, or somebody's.
    has_flags: bool,
    /// With the hook of those that have one.
    chains: BTreeMap<String, Value>,
    /// In order, by chain.
    rules: BTreeMap<String, Vec<Rule>>,
    sets: BTreeMap<String, Value>,
    counters: BTreeSet<String>,
    /// Kinds of things that we never make.
    others: BTreeSet<String>,
}

impl Table {
    /// With the hook of those that have one.
    pub(super) fn chains(&self) -> &BTreeMap<String, Value> {
        &self.chains
    }

    pub(super) fn rules_of(&self, chain: &str) -> &[Rule] {
        self.rules.get(chain).map(Vec::as_slice).unwrap_or_default()
    }
}

/// One rule of a chain.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) words: String,
    pub(super) expressions: Value,
    pub(super) packets: Option<u64>,
}

/// How often it matched is no part of it.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (&self.words, &self.expressions) == (&other.words, &other.expressions)
    }
}

impl Eq for Rule {}

/// A listing, with what changes by itself.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) table: Table,
    pub(super) elements: Vec<Live>,
    /// Packets of each reason's counter.
    pub(super) dropped: Vec<(Reason, u64)>,
    /// Elements that are not in a form that we make.
    pub(super) strange: Vec<String>,
}

impl Listing {
    pub(super) fn read(objects: &[Value]) -> Self {
        let mut listing = Self::default();
        for object in objects {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
            listing.take(kind, body);
        }
        listing
    }

    fn take(&mut self, kind: &str, body: &Value) {
        let named = || body["name"].as_str().unwrap_or_default().to_owned();
        let table = &mut self.table;
        match kind {
            "metainfo" => {}
            // The value is not to be trusted: nft 1.0.6 prints whatever is in its memory there.
            "table" => table.has_flags = body.get("flags").is_some(),
            "chain" => {
                table.chains.insert(named(), without(body, &["family", "table", "handle", "name"]));
            }
            "rule" => {
                let chain = body["chain"].as_str().unwrap_or_default().to_owned();
                table.rules.entry(chain).or_default().push(Rule::read(body));
            }
            "set" => {
                self.take_elements(body);
                self.table.sets.insert(named(), without(body, &["family", "table", "handle", "name", "elem"]));
            }
            "counter" => {
                if let (Some(reason), Some(packets)) = (Reason::of_counter(&named()), body["packets"].as_u64()) {
                    self.dropped.push((reason, packets));
                }
                table.counters.insert(named());
            }
            other => {
                table.others.insert(other.to_owned());
            }
        }
    }

    fn take_elements(&mut self, set: &Value) {
        let name = set["name"].as_str().unwrap_or_default();
        let Some(kind) = Set::of_name(name) else { return };
        for element in set["elem"].as_array().into_iter().flatten() {
            match Element::read(kind, element) {
                Some(live) => self.elements.push(live),
                None => self.strange.push(format!("set {name}: nobody asked for {}", cut(&element.to_string()))),
            }
        }
    }
}

impl Rule {
    fn read(body: &Value) -> Self {
        let expressions = body["expr"].as_array().into_iter().flatten();
        let packets = expressions.clone().find_map(|expression| expression["counter"]["packets"].as_u64());
        let expressions = expressions.map(|expression| {
            let is_own = expression["counter"].is_object();
            if is_own { json!({"counter": null}) } else { expression.clone() }
        });
        Self {
            words: body["comment"].as_str().map(cut).unwrap_or_default(),
            expressions: expressions.collect(),
            packets,
        }
    }

    /// As it is told of: by its words, or what it does if it has none.
    fn told(&self) -> String {
        if self.words.is_empty() { cut(&self.expressions.to_string()) } else { format!("{:?}", self.words) }
    }
}

/// What is declared, in the words of the `nft` that is here.
pub(super) async fn declared(kernel: &Kernel, policy: &Policy) -> Result<Table, KernelError> {
    let scratch = format!("{SCRATCH}{}", std::process::id());
    let mut commands = delete(&scratch);
    commands.extend(policy.ruleset(&scratch, false));
    kernel.apply(&commands).await?;
    let listed = kernel.list(&scratch).await;
    kernel.apply(&delete(&scratch)).await?;
    let mut table = Listing::read(&listed?.unwrap_or_default()).table;
    for command in policy.ruleset(TABLE, true) {
        let chain = &command["add"]["chain"];
        if let Some(name) = chain["name"].as_str() {
            table.chains.insert(name.to_owned(), without(chain, &["family", "table", "name"]));
        }
    }
    Ok(table)
}

/// The interface that the rules in force are about, if there are any of a node.
pub(super) async fn interface_in_force(kernel: &Kernel) -> Result<Option<String>, KernelError> {
    let objects = kernel.list(TABLE).await?.unwrap_or_default();
    let expressions = objects.iter().filter_map(|object| object["rule"]["expr"].as_array()).flatten();
    let matches = expressions.map(|expression| &expression["match"]);
    let mut interfaces = matches.filter(|of| of["left"]["meta"]["key"] == "iifname" && of["op"] == "==");
    Ok(interfaces.find_map(|of| Some(of["right"].as_str()?.to_owned())))
}

/// Takes away what [`declared`] of an earlier process could not.
pub(super) async fn forget_earlier(kernel: &Kernel) -> Result<(), KernelError> {
    let scratches = kernel.tables().await?.into_iter().filter(|name| name.starts_with(SCRATCH));
    let commands: Vec<_> = scratches.flat_map(|name| delete(&name)).collect();
    if commands.is_empty() { Ok(()) } else { kernel.apply(&commands).await }
}

/// What is different, in words; nothing if the two are the same. `live`: `None` if there is no table.
pub(super) fn differences(declared: &Table, live: Option<&Table>) -> Vec<String> {
    let Some(live) = live else { return vec!["the table is missing".to_owned()] };
    let mut differences = Vec::new();
    if live.has_flags {
        differences.push("the table has flags: it may be asleep".to_owned());
    }
    maps(&mut differences, "chain", &declared.chains, &live.chains);
    maps(&mut differences, "set", &declared.sets, &live.sets);
    differences.extend(declared.counters.difference(&live.counters).map(|name| format!("counter {name} is missing")));
    let more = live.counters.difference(&declared.counters);
    differences.extend(more.map(|name| format!("counter {:?} is not declared", cut(name))));
    differences.extend(live.others.iter().map(|kind| format!("there is a {:?}, and none is declared", cut(kind))));
    let chains: BTreeSet<_> = declared.rules.keys().chain(live.rules.keys()).collect();
    for chain in chains {
        rules_differ(&mut differences, chain, declared.rules_of(chain), live.rules_of(chain));
    }
    shorten(differences)
}

/// At most [`DIFFERENCES_MAX`].
pub(super) fn shorten(mut differences: Vec<String>) -> Vec<String> {
    if differences.len() > DIFFERENCES_MAX {
        let more = differences.len() - (DIFFERENCES_MAX - 1);
        differences.truncate(DIFFERENCES_MAX - 1);
        differences.push(format!("and {more} more"));
    }
    differences
}

fn maps(differences: &mut Vec<String>, kind: &str, declared: &BTreeMap<String, Value>, live: &BTreeMap<String, Value>) {
    for (name, value) in declared {
        match live.get(name) {
            None => differences.push(format!("{kind} {name} is missing")),
            Some(found) if found != value => {
                differences.push(format!("{kind} {name} is {} and not {value}", cut(&found.to_string())));
            }
            Some(_) => {}
        }
    }
    let more = live.keys().filter(|name| !declared.contains_key(*name));
    differences.extend(more.map(|name| format!("{kind} {:?} is not declared", cut(name))));
}

fn rules_differ(differences: &mut Vec<String>, chain: &str, declared: &[Rule], live: &[Rule]) {
    if declared == live {
        return;
    }
    let before = differences.len();
    for rule in missing(declared, live) {
        differences.push(format!("chain {chain}: the rule {} is missing", rule.told()));
    }
    for rule in missing(live, declared) {
        differences.push(format!("chain {chain:?}: the rule {} is not declared", rule.told()));
    }
    if differences.len() == before {
        differences.push(format!("chain {chain}: the rules are in another order"));
    }
}

/// Those of the one that are not in the other, as often as they are there.
fn missing<'a>(these: &'a [Rule], those: &[Rule]) -> Vec<&'a Rule> {
    let mut left: Vec<_> = those.iter().collect();
    let mut missing = Vec::new();
    for rule in these {
        match left.iter().position(|other| *other == rule) {
            Some(place) => {
                left.swap_remove(place);
            }
            None => missing.push(rule),
        }
    }
    missing
}

fn without(object: &Value, keys: &[&str]) -> Value {
    let mut object = object.clone();
    if let Some(object) = object.as_object_mut() {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
    object
}

/// What others wrote, short enough for a log.
fn cut(words: &str) -> String {
    words.chars().take(WORDS_CHARS_MAX).collect()
}
