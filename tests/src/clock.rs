//! The one place that reads the wall clock: certificates are valid from now on.

use time::OffsetDateTime;

/// The time now, in UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
