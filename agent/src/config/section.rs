//! Reads one table of a TOML file key by key, and remembers every fault instead of stopping at the first.

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Fault;

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    /// In the order of the lines; what has no line last.
    pub(super) fn into_sorted(self) -> Vec<Fault> {
        let mut faults = self.0.into_inner();
        faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        faults
    }
}

/// One table, or one that is missing and so has no keys.
#[derive(Debug)]
pub(super) struct Section<'t> {
    text: &'t str,
    /// With a dot at the end; empty for the root.
    prefix: String,
    table: Option<&'t DeTable<'t>>,
    faults: &'t Faults,
    asked_for: RefCell<Vec<&'static str>>,
}

impl<'t> Section<'t> {
    pub(super) fn root(text: &'t str, table: &'t DeTable<'t>, faults: &'t Faults) -> Self {
        Self { text, prefix: String::new(), table: Some(table), faults, asked_for: RefCell::default() }
    }

    /// The table of this name.
    pub(super) fn section(&self, key: &'static str) -> Self {
        let table = self.value(key).and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.fault(key, &format!("is {}", described(value.get_ref())), &format!("a table: [{key}]"));
            }
            table
        });
        let prefix = format!("{}{key}.", self.prefix);
        Self { text: self.text, prefix, table, faults: self.faults, asked_for: RefCell::default() }
    }

    /// A string that must be there. `parse` answers what is wrong and a hint.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, (String, String)>,
    ) -> Option<T> {
        if self.value(key).is_none() {
            self.fault(key, "is missing", &format!("such as {example}"));
        }
        self.optional(key, parse)
    }

    /// A string that may be there.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, (String, String)>,
    ) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let Some(text) = value.as_str() else {
            self.fault(key, &format!("is {}", described(value)), "a string, in quotation marks");
            return None;
        };
        parse(text).map_err(|(problem, hint)| self.fault(key, &problem, &hint)).ok()
    }

    /// Whether something stands there, right or wrong.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// True or false.
    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?.get_ref();
        let boolean = value.as_bool();
        if boolean.is_none() {
            self.fault(key, &format!("is {}", described(value)), "true or false");
        }
        boolean
    }

    /// A TCP port.
    pub(super) fn port(&self, key: &'static str) -> Option<u16> {
        let value = self.value(key)?.get_ref();
        let port = value.as_integer().and_then(|integer| u16::from_str_radix(integer.as_str(), integer.radix()).ok());
        let port = port.filter(|port| *port > 0);
        if port.is_none() {
            self.fault(key, "is not a port", "a number from 1 to 65535");
        }
        port
    }

    /// A whole number from 1 to `max`.
    pub(super) fn number(&self, key: &'static str, max: u64) -> Option<u64> {
        let value = self.value(key)?.get_ref();
        let number = value.as_integer().and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
        let number = number.filter(|number| (1..=max).contains(number));
        if number.is_none() {
            self.fault(key, "is out of range", &format!("a whole number from 1 to {max}"));
        }
        number
    }

    /// An array of strings.
    pub(super) fn strings(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?.get_ref();
        let strings = value.as_array().and_then(|array| {
            array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect::<Option<_>>()
        });
        if strings.is_none() {
            self.fault(key, "is not an array of strings", &format!("such as {key} = [\"…\", \"…\"]"));
        }
        strings
    }

    /// Remembers what is wrong with a key.
    pub(super) fn fault(&self, key: &'static str, problem: &str, hint: &str) {
        let line = self.value(key).map(|value| line_at(self.text, value.span().start));
        let problem = format!("{}{key} {problem}", self.prefix);
        self.faults.0.borrow_mut().push(Fault { line, problem, hint: hint.to_owned() });
    }

    /// Every key that was not asked for is a fault.
    pub(super) fn finish(&self) {
        let asked_for = self.asked_for.borrow();
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if asked_for.contains(&name) {
                continue;
            }
            let hint = match asked_for.iter().min_by_key(|known| distance(known, name)) {
                Some(near) if distance(near, name) <= 2 => format!("did you mean {near}?"),
                _ => format!("known here: {}", asked_for.join(", ")),
            };
            self.faults.0.borrow_mut().push(Fault {
                line: Some(line_at(self.text, key.span().start)),
                problem: format!("{}{} is not known", self.prefix, name.escape_debug()),
                hint,
            });
        }
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        let mut asked_for = self.asked_for.borrow_mut();
        if !asked_for.contains(&key) {
            asked_for.push(key);
        }
        self.table?.get(key)
    }
}

/// What the TOML parser did not understand.
pub(super) fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    Fault {
        line: error.span().map(|span| line_at(text, span.start)),
        problem: format!("this is not TOML: {}", error.message()),
        hint: "keys are written as key = \"value\", sections as [name]".to_owned(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn described(value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// How many letters must be added, removed or changed to make one name of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *candidate);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
