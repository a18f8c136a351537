//! The one place that reads the wall clock. Grants, commands and tokens are judged by the database's clock; this one is for
//! what no database sees: the validity of certificates, and what is told to devices.

use time::OffsetDateTime;

/// The time now, in UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
