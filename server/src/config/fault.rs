//! What can be wrong with a configuration. All of it is reported at once.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    File { line: Option<usize> },
    Environment { name: String },
    Flag { name: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { line: Some(line) } => write!(f, "line {line}"),
            Self::File { line: None } => f.write_str("file"),
            Self::Environment { name } => write!(f, "environment {name}"),
            Self::Flag { name } => write!(f, "--set {name}"),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub origin: Origin,
    /// As `table.key`, when one key is to blame.
    pub key: Option<String>,
    pub problem: Problem,
}

/// What is wrong. The texts end with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("this is not TOML: {0}")]
    Syntax(String),
    #[error("cannot be read: {0:?}. Name an existing file with --config")]
    Unreadable(std::io::ErrorKind),
    #[error("there is no such key{}", near.as_ref().map(|near| format!(". Did you mean {near}?")).unwrap_or_default())]
    Unknown { near: Option<String> },
    #[error("expected {expected}")]
    Value { expected: &'static str },
    #[error("out of range: from {least} to {most}")]
    Range { least: u64, most: u64 },
    #[error("--set takes key=value, as --set device.listen=0.0.0.0:443")]
    Flag,
    #[error("is not UTF-8")]
    NotText,
    #[error("excludes {other}: set one of the two")]
    Excludes { other: &'static str },
    #[error("needs {other} as well")]
    Needs { other: &'static str },
    #[error("is the same as {other}: each needs its own")]
    Same { other: &'static str },
    #[error("the secret in {} cannot be read: {kind:?}. It must exist and be readable by this user", path.display())]
    SecretFile { path: PathBuf, kind: std::io::ErrorKind },
    #[error("{0}")]
    Rule(&'static str),
}

/// Every fault that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    faults: Vec<Fault>,
    /// The file that lines refer to.
    pub(in crate::config) path: Option<PathBuf>,
}

impl Faults {
    pub(in crate::config) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut faults: Vec<_> = self.faults.iter().collect();
        faults.sort_by_key(|fault| &fault.origin);
        for (i, fault) in faults.into_iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match (&self.path, &fault.origin) {
                (Some(path), Origin::File { line: Some(line) }) => write!(f, "{}:{line}: ", path.display())?,
                (Some(path), Origin::File { line: None }) => write!(f, "{}: ", path.display())?,
                (_, origin) => write!(f, "{origin}: ")?,
            }
            if let Some(key) = &fault.key {
                write!(f, "{key}: ")?;
            }
            write!(f, "{}", fault.problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
