//! What people and machines are shown. Data goes to standard output, everything else to standard error. All text passes
//! through [`plain()`], and all JSON through [`SafeJson`]: there is no other way to print in this program.

mod plain;
mod table;
mod when;

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub(crate) use plain::plain;
pub(crate) use table::{Cell, Table, Tone};
pub(crate) use when::{Here, rough};

use crate::clock;
use crate::failure::Failure;
use plain::SafeJson;

/// How to show things in this run.
#[derive(Debug)]
pub(crate) struct Output {
    /// For machines.
    pub(crate) json: bool,
    color: bool,
    /// Columns of the terminal; `None` when there is none.
    width: Option<u16>,
    /// Whether somebody looks at standard error, and live progress is of use.
    pub(crate) live: bool,
}

impl Output {
    #[must_use]
    pub(crate) fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let term = std::env::var_os("TERM");
        let dumb = is_dumb(term.as_deref());
        Self {
            json,
            color: terminal && wants_color(term.as_deref(), std::env::var_os("NO_COLOR").as_deref()),
            width: terminal.then(|| console::Term::stdout().size_checked()).flatten().map(|(_, columns)| columns),
            live: !json && !dumb && io::stderr().is_terminal(),
        }
    }

    /// Where and when the reader is, right now.
    #[must_use]
    pub(crate) fn here(&self) -> Here {
        Here { now: clock::now(), zone: clock::local_zone() }
    }

    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        writeln!(io::stdout().lock(), "{}", plain(text)).map_err(Failure::of_output)
    }

    /// Lines of our own making, in which nobody else's text has a line break.
    pub(crate) fn lines(&self, text: &str) -> Result<(), Failure> {
        text.lines().try_for_each(|line| self.line(line))
    }

    pub(crate) fn table(&self, table: &Table) -> Result<(), Failure> {
        writeln!(io::stdout().lock(), "{}", table.render(self.color, self.width)).map_err(Failure::of_output)
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.write_json(value, SafeJson::default())
    }

    /// One line of NDJSON.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> Result<(), Failure> {
        self.write_json(value, SafeJson::compact())
    }

    fn write_json(&self, value: &impl Serialize, formatter: SafeJson) -> Result<(), Failure> {
        let mut bytes = json_bytes(value, formatter);
        bytes.push(b'\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(Failure::of_output)
    }

    /// A message beside the data.
    pub(crate) fn note(&self, text: &str) {
        note(text);
    }
}

/// Whether a terminal of this kind shows colour to somebody who may have asked for none (<https://no-color.org>: any value
/// but the empty one asks).
fn wants_color(term: Option<&OsStr>, no_color: Option<&OsStr>) -> bool {
    !is_dumb(term) && no_color.is_none_or(OsStr::is_empty)
}

fn is_dumb(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| term == "dumb")
}

/// A message beside the data. Nobody can be told when standard error is gone.
pub(crate) fn note(text: &str) {
    let lines: Vec<_> = text.lines().map(plain).collect();
    let _ = writeln!(io::stderr().lock(), "{}", lines.join("\n"));
}

/// The value as one line of JSON.
#[must_use]
pub(crate) fn json_text(value: &serde_json::Value) -> String {
    String::from_utf8_lossy(&json_bytes(value, SafeJson::compact())).into_owned()
}

fn json_bytes(value: &impl Serialize, formatter: SafeJson) -> Vec<u8> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        .expect("values with string keys can be written to memory");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_is_shown_unless_the_terminal_or_its_user_says_no() {
        let wants =
            |term, no_color: Option<&'static str>| wants_color(Some(OsStr::new(term)), no_color.map(OsStr::new));
        assert!(wants("xterm-256color", None));
        assert!(wants("xterm-256color", Some("")), "an empty value asks for nothing");
        assert!(!wants("xterm-256color", Some("1")));
        assert!(!wants("dumb", None));
    }
}
