//! Checks of fields that several requests share. Control characters are refused everywhere: texts end up in terminals and
//! logs, and the database cannot store all of them.

use std::time::Duration;

use uuid::Uuid;

use super::problem::Problem;
use crate::model::grant::{NAMED_MAX, is_known_scope};

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 128;
/// The longest reason, in characters. Devices take at most 1,024 bytes of it.
const REASON_CHARS_MAX: usize = 1024;

/// The longest number or address of a ticket, in characters.
const TICKET_CHARS_MAX: usize = 256;

pub(crate) fn check_name(field: &str, value: &str) -> Result<(), Problem> {
    check_text(field, value, NAME_CHARS_MAX)
}

pub(crate) fn check_reason(value: &str) -> Result<(), Problem> {
    check_text("reason", value, REASON_CHARS_MAX)
}

pub(crate) fn check_ticket(value: &str) -> Result<(), Problem> {
    check_text("ticket", value, TICKET_CHARS_MAX)
}

pub(crate) fn check_comment(value: &str) -> Result<(), Problem> {
    check_text("comment", value, REASON_CHARS_MAX)
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

/// Scopes that there are, at least one. Takes double entries out.
pub(crate) fn check_scopes(scopes: &mut Vec<String>) -> Result<(), Problem> {
    scopes.sort_unstable();
    scopes.dedup();
    if !scopes.is_empty() && scopes.iter().all(|scope| is_known_scope(scope)) {
        return Ok(());
    }
    Err(Problem::unprocessable(
        "`scopes` must name at least one of metrics:read, service:restart, device:reboot, device:shutdown, os:update, \
         agent:update, container:update, tcp:open, shell:open, file:read, file:write, and nothing else.",
    ))
}

/// Ids, if any are given: at least one. Takes double entries out.
pub(crate) fn check_ids(field: &str, ids: Option<&mut Vec<Uuid>>) -> Result<(), Problem> {
    let Some(ids) = ids else { return Ok(()) };
    ids.sort_unstable();
    ids.dedup();
    if (1..=NAMED_MAX).contains(&ids.len()) {
        return Ok(());
    }
    Err(Problem::unprocessable(format!(
        "`{field}` must not be empty, and names at most {NAMED_MAX}. An empty list never means everything."
    )))
}
