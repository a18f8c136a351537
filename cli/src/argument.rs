//! Arguments that several commands have.

use std::str::FromStr;

use clap::Args;
use jiff::Timestamp;

use crate::model::Labels;

/// The most that `--limit` may ask for.
pub(crate) const LIMIT_MAX: u32 = 100_000;

/// How many things to list.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limit {
    /// List at most this many; a message says when there are more
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    limit: u32,
}

impl Limit {
    #[must_use]
    pub(crate) fn items(self) -> usize {
        self.limit as usize
    }
}

/// How many of the newest things to list.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct NewestLimit {
    /// List at most this many, newest first; a message says when there are more
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    limit: u32,
}

impl NewestLimit {
    #[must_use]
    pub(crate) fn items(self) -> usize {
        self.limit as usize
    }
}

/// What `--selector` takes, for its long help.
pub(crate) const SELECTOR_HELP: &str = "\
Only devices whose labels are as this says, in the grammar of Kubernetes' label selectors:

  site=north           has the label with this value
  site!=north          has it with another value, or does not have it
  site in (a,b)        has it with one of these values
  site notin (a,b)     has it with none of these values, or does not have it
  site                 has the label, whatever its value
  !site                does not have the label
  @night               is in this group now (cloudlink group)

Commas stand for `and`. A word with other characters than letters, digits and -_./:+ takes double quotes, as in \"a b\"=c; shells \
want single quotes around all of it.";

/// `key=value`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: String,
    pub(crate) value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected KEY=VALUE, as in site=north")]
pub(crate) struct ParseLabelError;

impl FromStr for Label {
    type Err = ParseLabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            Some(_) | None => Err(ParseLabelError),
        }
    }
}

#[must_use]
pub(crate) fn labels(labels: &[Label]) -> Labels {
    labels.iter().map(|label| (label.key.clone(), label.value.clone())).collect()
}

/// `2026-11-21T15:30:00Z`, with an offset always: a time without one means another moment to everybody.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "expected an RFC 3339 time with its offset, as in 2026-11-21T15:30:00+01:00".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_key_and_a_value() {
        assert_eq!("a=b=c".parse(), Ok(Label { key: "a".to_owned(), value: "b=c".to_owned() }));
        for text in ["", "a", "=", "a=", "=b"] {
            assert_eq!(text.parse::<Label>(), Err(ParseLabelError), "{text:?}");
        }
    }

    #[test]
    fn a_time_needs_its_offset() {
        assert_eq!(time("2026-11-21T15:30:00+01:00").unwrap(), "2026-11-21T14:30:00Z".parse().unwrap());
        for text in ["2026-11-21T15:30:00", "15:30", "", "tomorrow", "2026-13-01T00:00:00Z"] {
            assert!(time(text).is_err(), "{text:?}");
        }
    }
}
