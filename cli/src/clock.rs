//! The one place that reads the wall clock and the local time zone.

use jiff::Timestamp;
use jiff::tz::TimeZone;

#[must_use]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// The zone of `TZ`, else of `/etc/localtime`, else UTC. A zone and no offset: a grant may end after the clocks change.
#[must_use]
pub(crate) fn local_zone() -> TimeZone {
    TimeZone::system()
}
