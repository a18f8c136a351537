//! Label selectors: which devices something is for, those that are labelled so later included. The grammar is that of Kubernetes,
//! with quotes for words that are not plain, and `@NAME` for a saved group:
//!
//! ```text
//! selector = demand *( "," demand )                  a device must be as all of them say
//! demand   = key ( "=" | "==" ) value                has the label with this value
//!          | key "!=" value                          has the label with another value, or has no such label
//!          | key "in" "(" value *( "," value ) ")"   has the label with one of these values
//!          | key "notin" "(" … ")"                   has none of them, or has no such label
//!          | key                                     has the label
//!          | "!" key                                 does not have it
//!          | "@" name                                is in the group of this name
//! word     = 1*( letter | digit | - | _ | . | / | : | + ) | '"' characters, \" and \\ '"'
//! ```
//!
//! The database evaluates them by `labels_match()`; [`Selector::matches`] says the same, and a test that it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::Chars;

use serde::{Deserialize, Serialize};

use super::device::{LABEL_CHARS_MAX, LABELS_MAX, Labels};

/// The most labels that one selector asks about.
pub const KEYS_MAX: usize = LABELS_MAX;
/// The most values that it names, of all labels together.
pub const VALUES_MAX: usize = 128;
/// The longest text that is read, in bytes: as much as the longest words of a selector take.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// The most demands that are read of one: as many as it may have labels and values. What they ask of one label is put together each time.
const DEMANDS_MAX: usize = KEYS_MAX + VALUES_MAX;
/// The most groups that one selector names.
pub const GROUPS_MAX: usize = 16;

/// Under this key, which no label has, is stored what is more than a label and its value.
const BEYOND: &str = "";

/// What a device's labels must be like. It always asks for something: an empty one would mean everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Selector(BTreeMap<String, Demand>);

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    /// It has one of these values; there is at least one.
    OneOf(BTreeSet<String>),
    /// It has none of these values; it may be missing, unless it must be there.
    NoneOf {
        values: BTreeSet<String>,
        is_there: bool,
    },
    Absent,
}

/// A selector as somebody has written it: with groups, whose meaning is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    demands: BTreeMap<String, Demand>,
    groups: BTreeSet<String>,
}

/// Why a selector is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("it is empty, and an empty one never means everything; to mean every device with a label, name the label")]
    Empty,
    #[error("at character {at}: {what}")]
    Malformed { at: usize, what: Fault },
    #[error("no device can be as it says of the label {0:?}")]
    Contradiction(String),
    #[error("there is no group {0:?}")]
    UnknownGroup(String),
    #[error("it has more than {KEYS_MAX} labels, {VALUES_MAX} values, {GROUPS_MAX} groups, or {TEXT_BYTES_MAX} bytes")]
    TooLong,
}

/// What is wrong at a place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a label is expected, as in site=north, in !site, or after a comma")]
    Key,
    #[error("a value is expected; for devices without the label write !label")]
    Value,
    #[error("the name of a group is expected after @")]
    Group,
    #[error(
        "expected =, !=, in (…), notin (…), a comma or the end; words with other characters than letters, digits and -_./:+ take quotes"
    )]
    Operator,
    #[error("a list of values is expected, as in (north,south)")]
    List,
    #[error("a comma or ) is expected")]
    ListEnd,
    #[error("a comma or the end is expected")]
    End,
    #[error("the quotes are not closed, or a backslash stands before something else than \" or \\")]
    Quotes,
    #[error("a word has 1 to {LABEL_CHARS_MAX} characters, none of them a control character")]
    Word,
}

impl Selector {
    /// Whether a device with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, demand)| demand.is_met(labels.0.get(key)))
    }

    /// What it asks for by a label and its value alone: an index finds devices by these.
    #[must_use]
    pub fn equals(&self) -> Labels {
        let equals = self.0.iter().filter_map(|(key, demand)| Some((key.clone(), demand.equals()?.clone())));
        Labels(equals.collect())
    }

    /// As the API shows it to clients that know nothing but labels and their values. One that says more is shown as a label without
    /// a name, which no device has: nobody takes it for wider than it is.
    #[must_use]
    pub fn shown(&self) -> Labels {
        if self.is_labels() {
            return self.equals();
        }
        Labels(BTreeMap::from([(BEYOND.to_owned(), self.to_string())]))
    }

    /// Whether it asks for labels with their values, and nothing else.
    #[must_use]
    pub fn is_labels(&self) -> bool {
        self.0.values().all(|demand| demand.equals().is_some())
    }

    /// Both forms of it in the API: [`Self::shown`] and the text.
    #[must_use]
    pub fn forms(&self) -> (Labels, String) {
        (self.shown(), self.to_string())
    }

    /// What both ask for.
    pub fn and(mut self, other: &Self) -> Result<Self, SelectorError> {
        for (key, demand) in &other.0 {
            add(&mut self.0, key, demand.clone())?;
        }
        Ok(self)
    }

    fn checked(self) -> Result<Self, SelectorError> {
        if self.0.is_empty() {
            return Err(SelectorError::Empty);
        }
        let values: usize = self.0.values().map(Demand::len).sum();
        if self.0.len() > KEYS_MAX || values > VALUES_MAX { Err(SelectorError::TooLong) } else { Ok(self) }
    }
}

impl TryFrom<&Labels> for Selector {
    type Error = SelectorError;

    /// All of these labels, with these values. Whether they may be labels is checked elsewhere.
    fn try_from(labels: &Labels) -> Result<Self, SelectorError> {
        let one = |value: &String| Demand::OneOf(BTreeSet::from([value.clone()]));
        Self(labels.0.iter().map(|(key, value)| (key.clone(), one(value))).collect()).checked()
    }
}

impl Draft {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut draft = Self { demands: BTreeMap::new(), groups: BTreeSet::new() };
        let mut reader = Reader { rest: text.chars(), at: 1 };
        reader.skip_blanks();
        if reader.peek().is_none() {
            return Err(SelectorError::Empty);
        }
        for _ in 0..DEMANDS_MAX {
            reader.demand(&mut draft)?;
            reader.skip_blanks();
            match reader.next() {
                None if draft.groups.len() > GROUPS_MAX => return Err(SelectorError::TooLong),
                None => return Ok(draft),
                Some(',') => {}
                Some(_) => return Err(reader.fault_before(Fault::End)),
            }
        }
        Err(SelectorError::TooLong)
    }

    /// The names of the groups that it takes for granted.
    #[must_use]
    pub fn groups(&self) -> Vec<String> {
        self.groups.iter().cloned().collect()
    }

    /// What it says, with what these groups mean now.
    pub fn resolve(self, groups: &BTreeMap<String, Selector>) -> Result<Selector, SelectorError> {
        let mut selector = Selector(self.demands);
        for name in self.groups {
            let group = groups.get(&name).ok_or(SelectorError::UnknownGroup(name))?;
            selector = selector.and(group)?;
        }
        selector.checked()
    }
}

/// Adds a demand to those of the same label.
fn add(demands: &mut BTreeMap<String, Demand>, key: &str, demand: Demand) -> Result<(), SelectorError> {
    let both = match demands.remove(key) {
        Some(before) => before.and(demand).ok_or_else(|| SelectorError::Contradiction(key.to_owned()))?,
        None => demand,
    };
    demands.insert(key.to_owned(), both);
    Ok(())
}

impl Demand {
    fn is_met(&self, value: Option<&String>) -> bool {
        match (self, value) {
            (Self::OneOf(values), Some(value)) => values.contains(value),
            (Self::NoneOf { values, .. }, Some(value)) => !values.contains(value),
            (Self::NoneOf { is_there, .. }, None) => !is_there,
            (Self::Absent, value) => value.is_none(),
            (Self::OneOf(_), None) => false,
        }
    }

    /// What meets both; `None` if nothing does.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::OneOf(one), Self::OneOf(other)) => Self::one_of(one.intersection(&other).cloned().collect()),
            (Self::OneOf(one), Self::NoneOf { values, .. }) | (Self::NoneOf { values, .. }, Self::OneOf(one)) => {
                Self::one_of(one.difference(&values).cloned().collect())
            }
            (Self::NoneOf { values: one, is_there }, Self::NoneOf { values: other, is_there: is_there_too }) => {
                Some(Self::NoneOf { values: &one | &other, is_there: is_there || is_there_too })
            }
            (Self::Absent, Self::Absent | Self::NoneOf { is_there: false, .. })
            | (Self::NoneOf { is_there: false, .. }, Self::Absent) => Some(Self::Absent),
            (Self::Absent, Self::OneOf(_) | Self::NoneOf { .. })
            | (Self::OneOf(_) | Self::NoneOf { .. }, Self::Absent) => None,
        }
    }

    fn one_of(values: BTreeSet<String>) -> Option<Self> {
        if values.is_empty() { None } else { Some(Self::OneOf(values)) }
    }

    /// The one value that it asks for.
    fn equals(&self) -> Option<&String> {
        match self {
            Self::OneOf(values) if values.len() == 1 => values.first(),
            Self::OneOf(_) | Self::NoneOf { .. } | Self::Absent => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::OneOf(values) | Self::NoneOf { values, .. } => values.len(),
            Self::Absent => 0,
        }
    }
}

/// The form in which everybody who means the same writes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (key, demand) in &self.0 {
            f.write_str(comma)?;
            comma = ",";
            let key = Word(key);
            match demand {
                Demand::OneOf(values) => write_values(f, key, ["=", "in"], values)?,
                Demand::NoneOf { values, is_there } => {
                    if *is_there {
                        write!(f, "{key}{}", if values.is_empty() { "" } else { "," })?;
                    }
                    if !values.is_empty() {
                        write_values(f, key, ["!=", "notin"], values)?;
                    }
                }
                Demand::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn write_values(
    f: &mut fmt::Formatter<'_>,
    key: Word<'_>,
    [one, many]: [&str; 2],
    values: &BTreeSet<String>,
) -> fmt::Result {
    if let (Some(value), 1) = (values.first(), values.len()) {
        return write!(f, "{key}{one}{}", Word(value));
    }
    let values: Vec<_> = values.iter().map(|value| Word(value).to_string()).collect();
    write!(f, "{key} {many} ({})", values.join(","))
}

/// A word, in quotes where it needs them.
#[derive(Clone, Copy)]
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            return f.write_str(self.0);
        }
        write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// Whether a word with this character may stand without quotes. What other selectors have a meaning for is not among them.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '+')
}

/// Where the parser is.
struct Reader<'a> {
    rest: Chars<'a>,
    /// Which character comes next, from 1.
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.at += usize::from(next.is_some());
        next
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
            self.next();
        }
    }

    /// Takes this character, if it comes next.
    fn takes(&mut self, expected: char) -> bool {
        let is_there = self.peek() == Some(expected);
        if is_there {
            self.next();
        }
        is_there
    }

    fn fault(&self, what: Fault) -> SelectorError {
        SelectorError::Malformed { at: self.at, what }
    }

    /// About the character that was taken last.
    fn fault_before(&self, what: Fault) -> SelectorError {
        SelectorError::Malformed { at: self.at - 1, what }
    }

    fn demand(&mut self, draft: &mut Draft) -> Result<(), SelectorError> {
        self.skip_blanks();
        if self.takes('@') {
            draft.groups.insert(self.word(Fault::Group)?);
            return Ok(());
        }
        if self.takes('!') {
            self.skip_blanks();
            let key = self.word(Fault::Key)?;
            return add(&mut draft.demands, &key, Demand::Absent);
        }
        let key = self.word(Fault::Key)?;
        let demand = self.operation()?;
        add(&mut draft.demands, &key, demand)
    }

    /// What comes after a label.
    fn operation(&mut self) -> Result<Demand, SelectorError> {
        self.skip_blanks();
        match self.peek() {
            None | Some(',') => Ok(Demand::NoneOf { values: BTreeSet::new(), is_there: true }),
            Some('=') => {
                self.next();
                self.takes('=');
                Ok(Demand::OneOf(BTreeSet::from([self.value()?])))
            }
            Some('!') => {
                let fault = self.fault(Fault::Operator);
                self.next();
                if !self.takes('=') {
                    return Err(fault);
                }
                Ok(Demand::NoneOf { values: BTreeSet::from([self.value()?]), is_there: false })
            }
            Some(_) => {
                let fault = self.fault(Fault::Operator);
                match self.plain().as_str() {
                    "in" => Ok(Demand::OneOf(self.list()?)),
                    "notin" => Ok(Demand::NoneOf { values: self.list()?, is_there: false }),
                    _ => Err(fault),
                }
            }
        }
    }

    fn list(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.skip_blanks();
        if !self.takes('(') {
            return Err(self.fault(Fault::List));
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            self.skip_blanks();
            match self.peek() {
                Some(',') => self.next(),
                Some(')') => {
                    self.next();
                    return Ok(values);
                }
                Some(_) | None => return Err(self.fault(Fault::ListEnd)),
            };
        }
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        self.skip_blanks();
        self.word(Fault::Value)
    }

    /// A key, a value or a name; what is wrong if there is none.
    fn word(&mut self, missing: Fault) -> Result<String, SelectorError> {
        let (missing, wrong) = (self.fault(missing), self.fault(Fault::Word));
        let is_quoted = self.peek() == Some('"');
        let word = if is_quoted { self.quoted()? } else { self.plain() };
        if word.is_empty() && !is_quoted {
            return Err(missing);
        }
        if Labels::is_text(&word) { Ok(word) } else { Err(wrong) }
    }

    fn plain(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek().filter(|c| is_plain(*c)) {
            self.next();
            word.push(c);
        }
        word
    }

    fn quoted(&mut self) -> Result<String, SelectorError> {
        let fault = self.fault(Fault::Quotes);
        self.next();
        let mut word = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(word),
                Some('\\') => word.push(self.next().filter(|c| matches!(c, '"' | '\\')).ok_or_else(|| fault.clone())?),
                Some(c) => word.push(c),
                None => return Err(fault),
            }
        }
    }
}

/// As it is stored: what `labels_match()` in the database reads.
impl From<Selector> for BTreeMap<String, String> {
    fn from(selector: Selector) -> Self {
        let mut stored = selector.equals().0;
        let line = |operator: &str, key: &String, values: &BTreeSet<String>| {
            let words: Vec<_> = [operator, key].into_iter().chain(values.iter().map(String::as_str)).collect();
            words.join("\t")
        };
        let (mut lines, none) = (Vec::new(), BTreeSet::new());
        for (key, demand) in &selector.0 {
            match demand {
                Demand::OneOf(values) if values.len() > 1 => lines.push(line("in", key, values)),
                Demand::OneOf(_) => {}
                Demand::NoneOf { values, is_there } => {
                    if *is_there {
                        lines.push(line("present", key, &none));
                    }
                    if !values.is_empty() {
                        lines.push(line("notin", key, values));
                    }
                }
                Demand::Absent => lines.push(line("absent", key, &none)),
            }
        }
        if !lines.is_empty() {
            stored.insert(BEYOND.to_owned(), lines.join("\n"));
        }
        stored
    }
}

/// A stored selector of a newer version, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no selector of this version")]
pub struct Unreadable;

impl TryFrom<BTreeMap<String, String>> for Selector {
    type Error = Unreadable;

    fn try_from(mut stored: BTreeMap<String, String>) -> Result<Self, Unreadable> {
        let lines = stored.remove(BEYOND);
        let one = |value| Demand::OneOf(BTreeSet::from([value]));
        let mut demands: BTreeMap<_, _> = stored.into_iter().map(|(key, value)| (key, one(value))).collect();
        for line in lines.iter().flat_map(|lines| lines.split('\n')) {
            let mut words = line.split('\t');
            let (operator, key) = words.next().zip(words.next()).ok_or(Unreadable)?;
            let values: BTreeSet<_> = words.map(str::to_owned).collect();
            let demand = match (operator, values.is_empty()) {
                ("in", false) => Demand::OneOf(values),
                ("notin", false) => Demand::NoneOf { values, is_there: false },
                ("present", true) => Demand::NoneOf { values, is_there: true },
                ("absent", true) => Demand::Absent,
                _ => return Err(Unreadable),
            };
            add(&mut demands, key, demand).map_err(|_| Unreadable)?;
        }
        if demands.is_empty() { Err(Unreadable) } else { Ok(Self(demands)) }
    }
}

#[cfg(test)]
mod tests;
