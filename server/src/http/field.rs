//! Checks of fields that several requests share. Control characters are refused everywhere: texts end up in terminals and
//! logs, and the database cannot store all of them.

use std::time::Duration;

use super::problem::Problem;

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 128;
/// The longest reason, in characters. Devices take at most 1,024 bytes of it.
const REASON_CHARS_MAX: usize = 1024;

pub(crate) fn check_name(field: &str, value: &str) -> Result<(), Problem> {
    check_text(field, value, NAME_CHARS_MAX)
}

pub(crate) fn check_reason(value: &str) -> Result<(), Problem> {
    check_text("reason", value, REASON_CHARS_MAX)
}

fn check_text(field: &str, value: &str, chars_max: usize) -> Result<(), Problem> {
    let is_fine = (1..=chars_max).contains(&value.chars().count())
        && !value.trim().is_empty()
        && !value.chars().any(char::is_control);
    if is_fine {
        return Ok(());
    }
    let detail =
        format!("`{field}` must have 1 to {chars_max} characters, not only blanks, and no control characters.");
    Err(Problem::unprocessable(detail))
}

/// Whole seconds from one to `max`.
pub(crate) fn check_seconds(field: &str, seconds: u64, max: Duration) -> Result<Duration, Problem> {
    if (1..=max.as_secs()).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Problem::unprocessable(format!("`{field}` must be 1 to {} seconds.", max.as_secs())))
}
