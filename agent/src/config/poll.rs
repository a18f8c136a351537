//! `[poll]`: what is done when no link comes about.

use super::section::Section;

const AFTER_SECONDS_DEFAULT: u64 = 300;
const AFTER_SECONDS_MAX: u64 = 24 * 3600;

/// `[poll]`: what is done when no link comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Whether the agent polls over HTTPS then. Default: true.
    pub enabled: bool,
    /// After this long without a link. Default: 300.
    pub after_seconds: u64,
}

impl Default for Poll {
    fn default() -> Self {
        Self { enabled: true, after_seconds: AFTER_SECONDS_DEFAULT }
    }
}

pub(super) fn read(poll: &Section<'_>) -> Poll {
    let enabled = poll.boolean("enabled").unwrap_or(true);
    let after_seconds = poll.number("after_seconds", AFTER_SECONDS_MAX).unwrap_or(AFTER_SECONDS_DEFAULT);
    poll.finish();
    Poll { enabled, after_seconds }
}
