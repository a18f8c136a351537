//! How a section of the configuration is declared and read. A section is declared once, by [`section!`]: from that come its
//! struct, its defaults, its reading, and its page in docs/CONFIG.md.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Faults, Origin, Problem};
use super::value::Value;

/// One key, as the documentation shows it.
#[derive(Clone, Debug)]
pub(in crate::config) struct Field {
    pub key: &'static str,
    /// What it is for, from its documentation comment.
    pub about: &'static [&'static str],
    /// What it takes.
    pub expected: &'static str,
    /// The default as TOML; `None` when there is none.
    pub default: Option<String>,
    pub range: Option<RangeInclusive<u64>>,
}

/// One table of the file, as the documentation shows it.
#[derive(Clone, Debug)]
pub(in crate::config) struct Section {
    /// Empty for the keys at the top of the file.
    pub table: &'static str,
    pub about: &'static [&'static str],
    pub fields: Vec<Field>,
}

/// The value of a key, as `config show` prints it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub table: &'static str,
    pub key: &'static str,
    /// As TOML; `None` when the key is not set and has no default.
    pub value: Option<String>,
    pub origin: Origin,
}

/// Declares a section: `key: Type = default [, in range];`.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $visibility:vis struct $Section:ident in $table:literal {
            $( $(#[doc = $doc:literal])* $key:ident: $Type:ty = $default:expr $(, in $range:expr)?; )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        $visibility struct $Section {
            $( $(#[doc = $doc])* pub $key: $Type, )*
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $Section {
            /// Takes this section out of what was given.
            pub(in crate::config) fn read(given: &mut crate::config::section::Given<'_>) -> Self {
                Self {
                    $( $key: {
                        let range: Option<std::ops::RangeInclusive<u64>> = None;
                        $( let range = range.or(Some($range)); )?
                        given.take($table, stringify!($key), || $default, range)
                    }, )*
                }
            }

            pub(in crate::config) fn describe() -> crate::config::section::Section {
                crate::config::section::Section {
                    table: $table,
                    about: &[$($about),*],
                    fields: vec![ $( {
                        let range: Option<std::ops::RangeInclusive<u64>> = None;
                        $( let range = range.or(Some($range)); )?
                        crate::config::section::Field {
                            key: stringify!($key),
                            about: &[$($doc),*],
                            expected: <$Type as crate::config::value::Value>::EXPECTED,
                            default: <$Type as crate::config::value::Value>::show(&$default),
                            range,
                        }
                    }, )* ],
                }
            }
        }
    };
}
pub(in crate::config) use section;

/// Everything that was given: the file, the environment, the flags, in growing order of precedence. Sections take their keys
/// out of it; what is left at the end is unknown.
pub(in crate::config) struct Given<'a> {
    text: &'a str,
    file: DeTable<'a>,
    environment: BTreeMap<String, String>,
    flags: BTreeMap<String, String>,
    known: Vec<(&'static str, &'static str)>,
    pub(in crate::config) shown: Vec<Shown>,
    pub(in crate::config) faults: Faults,
}

impl<'a> Given<'a> {
    pub(in crate::config) fn new(
        text: &'a str,
        environment: BTreeMap<String, String>,
        flags: BTreeMap<String, String>,
    ) -> Self {
        let (file, errors) = DeTable::parse_recoverable(text);
        let mut faults = Faults::default();
        for error in errors {
            let origin = Origin::File { line: error.span().map(|span| line_of(text, span.start)) };
            faults.add(Fault { origin, key: None, problem: Problem::Syntax(error.message().to_owned()) });
        }
        Self { text, file: file.into_inner(), environment, flags, known: Vec::new(), shown: Vec::new(), faults }
    }

    /// The value of a key, or its default when it is not given or not right.
    pub(in crate::config) fn take<T: Value>(
        &mut self,
        table: &'static str,
        key: &'static str,
        default: impl FnOnce() -> T,
        range: Option<RangeInclusive<u64>>,
    ) -> T {
        self.known.push((table, key));
        let mut origin = Origin::Default;
        let mut value = None;
        // Each source is read even when a later one wins: a fault in it is a fault.
        for (from, read) in [
            self.take_from_file::<T>(table, key),
            self.take_text::<T>(Origin::Environment { name: environment_name(table, key) }),
            self.take_text::<T>(Origin::Flag { name: dotted(table, key) }),
        ]
        .into_iter()
        .flatten()
        {
            let checked =
                read.ok_or(Problem::Value { expected: T::EXPECTED }).and_then(|read| match (&range, read.amount()) {
                    (Some(range), Some(amount)) if !range.contains(&amount) => {
                        Err(Problem::Range { least: *range.start(), most: *range.end() })
                    }
                    _ => Ok(read),
                });
            match checked {
                Ok(read) => (value, origin) = (Some(read), from),
                Err(problem) => self.faults.add(Fault { origin: from, key: Some(dotted(table, key)), problem }),
            }
        }
        let value = value.unwrap_or_else(default);
        self.shown.push(Shown { table, key, value: value.show(), origin });
        value
    }

    /// Where a key was given, for faults that show only when several are seen together.
    pub(in crate::config) fn origin(&self, table: &str, key: &str) -> Origin {
        let shown = self.shown.iter().find(|shown| shown.table == table && shown.key == key);
        shown.map_or(Origin::Default, |shown| shown.origin.clone())
    }

    /// Reports what no section took.
    pub(in crate::config) fn finish(mut self) -> (Vec<Shown>, Faults) {
        self.report_unknown_in_file();
        let tables: Vec<_> = self.tables().iter().map(|table| environment_name(table, "")).collect();
        for name in std::mem::take(&mut self.environment).into_keys() {
            // Other programs read variables that begin alike: only a name within a section can be told to be a mistake.
            if tables.iter().any(|table| name.starts_with(table.as_str())) {
                let near = self.nearest(&name, environment_name);
                self.faults.add(Fault {
                    origin: Origin::Environment { name },
                    key: None,
                    problem: Problem::Unknown { near },
                });
            }
        }
        for name in std::mem::take(&mut self.flags).into_keys() {
            let near = self.nearest(&name, dotted);
            self.faults.add(Fault { origin: Origin::Flag { name }, key: None, problem: Problem::Unknown { near } });
        }
        (self.shown, self.faults)
    }

    fn take_from_file<T: Value>(&mut self, table: &str, key: &str) -> Option<(Origin, Option<T>)> {
        let value = if table.is_empty() {
            self.file.remove(key)?
        } else {
            match self.file.get_mut(table)?.get_mut() {
                DeValue::Table(keys) => keys.remove(key)?,
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => return None,
            }
        };
        let origin = Origin::File { line: Some(line_of(self.text, value.span().start)) };
        Some((origin, T::from_toml(value.get_ref())))
    }

    fn take_text<T: Value>(&mut self, origin: Origin) -> Option<(Origin, Option<T>)> {
        let text = match &origin {
            Origin::Environment { name } => self.environment.remove(name),
            Origin::Flag { name } => self.flags.remove(name),
            Origin::File { .. } | Origin::Default => None,
        }?;
        Some((origin, T::from_text(text.trim())))
    }

    fn report_unknown_in_file(&mut self) {
        let tables = self.tables();
        for (name, value) in std::mem::take(&mut self.file) {
            let line = Some(line_of(self.text, name.span().start));
            let name = name.get_ref().to_string();
            let is_table = tables.contains(&name.as_str());
            if let (DeValue::Table(keys), true) = (value.get_ref(), is_table) {
                for (key, _) in keys {
                    let origin = Origin::File { line: Some(line_of(self.text, key.span().start)) };
                    let key = format!("{name}.{}", key.get_ref());
                    let near = self.nearest(&key, dotted);
                    self.faults.add(Fault { origin, key: Some(key), problem: Problem::Unknown { near } });
                }
                continue;
            }
            let problem = if is_table {
                Problem::Value { expected: "a table" }
            } else {
                Problem::Unknown { near: self.nearest_at_top(&name) }
            };
            self.faults.add(Fault { origin: Origin::File { line }, key: Some(name), problem });
        }
    }

    fn tables(&self) -> Vec<&'static str> {
        let mut tables: Vec<_> = self.known.iter().map(|(table, _)| *table).filter(|table| !table.is_empty()).collect();
        tables.dedup();
        tables
    }

    fn nearest(&self, given: &str, name: impl Fn(&str, &str) -> String) -> Option<String> {
        nearest_of(self.known.iter().map(|(table, key)| name(table, key)), given)
    }

    /// A key or a table.
    fn nearest_at_top(&self, given: &str) -> Option<String> {
        let keys = self.known.iter().filter(|(table, _)| table.is_empty()).map(|(_, key)| *key);
        let name = nearest_of(keys.chain(self.tables()).map(str::to_owned), given)?;
        Some(if self.tables().contains(&name.as_str()) { format!("[{name}]") } else { name })
    }
}

fn nearest_of(names: impl Iterator<Item = String>, given: &str) -> Option<String> {
    let near = 2.max(given.len() / 3);
    names.map(|name| (distance(&name, given), name)).filter(|(far, _)| *far <= near).min().map(|(_, name)| name)
}

pub(in crate::config) fn dotted(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// `CLOUDLINK_DEVICE_LISTEN` for `listen` of `[device]`.
pub(in crate::config) fn environment_name(table: &str, key: &str) -> String {
    let prefix = if table.is_empty() { String::new() } else { format!("{table}_") };
    format!("CLOUDLINK_{prefix}{key}").to_uppercase()
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// How many letters must be put in, taken out or changed to make one of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, against) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *against);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}
