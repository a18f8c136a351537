//! Spans of time as people write them: `90s`, `15m`, `1h30m`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Far above whatever the server allows: keeps the arithmetic with times from overflowing.
const SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;

const UNITS: [(char, u64); 5] = [('w', 7 * 24 * 3600), ('d', 24 * 3600), ('h', 3600), ('m', 60), ('s', 1)];

/// A positive number of whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(u64);

impl Span {
    #[must_use]
    pub(crate) const fn as_seconds(self) -> u64 {
        self.0
    }

    #[must_use]
    pub(crate) const fn as_duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// For a number of seconds that the server gave; `None` shows that it is out of range.
    #[must_use]
    pub(crate) fn of_seconds(seconds: u64) -> Option<Self> {
        (1..=SECONDS_MAX).contains(&seconds).then_some(Self(seconds))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseSpanError {
    #[error("expected a number and a unit (w, d, h, m, s), as in 15m or 1h30m")]
    Malformed,
    #[error("units go from large to small, each once, as in 1h30m")]
    Order,
    #[error("must be longer than 0 s")]
    Zero,
    #[error("is too long")]
    TooLong,
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text;
        let mut seconds = 0_u64;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(ParseSpanError::Malformed)?;
            let (number, tail) = rest.split_at(digits);
            if number.is_empty() {
                return Err(ParseSpanError::Malformed);
            }
            let number: u64 = number.parse().map_err(|_| ParseSpanError::TooLong)?;
            let mut tail = tail.chars();
            let unit = tail.next().ok_or(ParseSpanError::Malformed)?;
            let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or(ParseSpanError::Malformed)?;
            if unit >= smallest {
                return Err(ParseSpanError::Order);
            }
            smallest = unit;
            seconds = number
                .checked_mul(unit)
                .and_then(|part| seconds.checked_add(part))
                .filter(|seconds| *seconds <= SECONDS_MAX)
                .ok_or(ParseSpanError::TooLong)?;
            rest = tail.as_str();
        }
        match (seconds, text.is_empty()) {
            (_, true) => Err(ParseSpanError::Malformed),
            (0, false) => Err(ParseSpanError::Zero),
            (seconds, false) => Ok(Self(seconds)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        // No weeks: limits are thought of in days.
        for (name, unit) in UNITS.into_iter().filter(|(name, _)| *name != 'w') {
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("90s", 90)]
    #[case("15m", 900)]
    #[case("1h30m", 5400)]
    #[case("7d", 604_800)]
    #[case("1w", 604_800)]
    #[case("1w1d1h1m1s", 694_861)]
    #[case("0h5m", 300)]
    fn reads_what_people_write(#[case] text: &str, #[case] seconds: u64) {
        assert_eq!(text.parse(), Ok(Span(seconds)));
    }

    #[rstest]
    #[case("", ParseSpanError::Malformed)]
    #[case("15", ParseSpanError::Malformed)]
    #[case("m", ParseSpanError::Malformed)]
    #[case("-5m", ParseSpanError::Malformed)]
    #[case("1.5h", ParseSpanError::Malformed)]
    #[case("5 m", ParseSpanError::Malformed)]
    #[case("5µ", ParseSpanError::Malformed)]
    #[case("٣m", ParseSpanError::Malformed)]
    #[case("30m1h", ParseSpanError::Order)]
    #[case("1m1m", ParseSpanError::Order)]
    #[case("0s", ParseSpanError::Zero)]
    #[case("11111d", ParseSpanError::TooLong)]
    #[case("99999999999999999999s", ParseSpanError::TooLong)]
    #[case("18446744073709551615w", ParseSpanError::TooLong)]
    fn refuses_what_cannot_be_meant(#[case] text: &str, #[case] error: ParseSpanError) {
        assert_eq!(text.parse::<Span>(), Err(error));
    }

    #[test]
    fn writes_days_rather_than_weeks() {
        assert_eq!("30d".parse::<Span>().unwrap().to_string(), "30d");
        assert_eq!("90m".parse::<Span>().unwrap().to_string(), "1h30m");
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(seconds in 1..=SECONDS_MAX) {
            let span = Span::of_seconds(seconds).unwrap();
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Span>();
        }
    }
}
