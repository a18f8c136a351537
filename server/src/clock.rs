//! The one place that reads the wall clock. Grants, commands and tokens are judged by the database's clock; this one is for
//! what no database sees: the validity of certificates, and what is told to devices.

use time::OffsetDateTime;

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> i64 {
    i64::try_from(now().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// How far a device's clock is ahead of this one that showed so many milliseconds since 1970 just now.
#[must_use]
pub fn offset_ms(device_unix_ms: u64) -> i64 {
    i64::try_from(device_unix_ms).unwrap_or(i64::MAX).saturating_sub(unix_ms())
}

/// The time now, in UTC.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
