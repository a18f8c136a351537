//! Times as people read them: how far away, in their own zone, and in UTC for whoever sits elsewhere.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Now, and where the reader is.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    pub(crate) now: Timestamp,
    pub(crate) zone: TimeZone,
}

impl Here {
    /// `in 14 min`, `3 s ago`, `now`.
    #[must_use]
    pub(crate) fn relative(&self, at: Timestamp) -> String {
        let away = at.duration_since(self.now);
        match away.as_secs() {
            0 => "now".to_owned(),
            seconds if seconds > 0 => format!("in {}", rough(away)),
            _ => format!("{} ago", rough(away)),
        }
    }

    /// `2026-11-21 15:04:05 +01:00`, or `… UTC` where that is the same: for tables.
    #[must_use]
    pub(crate) fn local(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let format = if local.offset().is_zero() { "%Y-%m-%d %H:%M:%S UTC" } else { "%Y-%m-%d %H:%M:%S %:z" };
        local.strftime(format).to_string()
    }

    /// `2026-11-21 15:04:05 +01:00 (14:04:05 UTC, in 14 min)`: where it matters.
    #[must_use]
    pub(crate) fn full(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let utc = at.to_zoned(TimeZone::UTC);
        let relative = self.relative(at);
        if local.offset().is_zero() {
            return format!("{} UTC ({relative})", utc.strftime("%Y-%m-%d %H:%M:%S"));
        }
        let format = if local.date() == utc.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
        format!("{} ({} UTC, {relative})", self.local(at), utc.strftime(format))
    }

    /// Local, UTC and relative in little space, for a column of a table: `15:04 +01:00 = 14:04 UTC, in 14 min`.
    #[must_use]
    pub(crate) fn short(&self, at: Timestamp) -> String {
        let local = at.to_zoned(self.zone.clone());
        let utc = at.to_zoned(TimeZone::UTC);
        let today = self.now.to_zoned(self.zone.clone()).date();
        let utc_today = self.now.to_zoned(TimeZone::UTC).date();
        let near = local.date() == today && utc.date() == utc_today;
        let format = if near { "%H:%M" } else { "%Y-%m-%d %H:%M" };
        let relative = self.relative(at);
        if local.offset().is_zero() {
            return format!("{} UTC, {relative}", utc.strftime(format));
        }
        let utc_format = if local.date() == utc.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
        format!("{} {} = {} UTC, {relative}", local.strftime(format), local.strftime("%:z"), utc.strftime(utc_format))
    }
}

/// The one unit that says it best, to the nearest: 15 minutes that were granted just now are `15 min`, not 14.
#[must_use]
pub(crate) fn rough(span: SignedDuration) -> String {
    let seconds = span.as_secs().saturating_abs();
    let nearest = |unit: i64| seconds.saturating_add(unit / 2) / unit;
    if seconds < MINUTE {
        format!("{seconds} s")
    } else if nearest(MINUTE) < 60 {
        format!("{} min", nearest(MINUTE))
    } else if nearest(HOUR) < 48 {
        format!("{} h", nearest(HOUR))
    } else {
        format!("{} days", nearest(DAY))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn here(zone: &str) -> Here {
        let zone = TimeZone::posix(zone).unwrap();
        Here { now: "2026-11-21T14:00:00Z".parse().unwrap(), zone }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("2026-11-21T14:00:00Z", "now")]
    #[case("2026-11-21T14:00:00.9Z", "now")]
    #[case("2026-11-21T13:59:57Z", "3 s ago")]
    #[case("2026-11-21T14:14:29Z", "in 14 min")]
    #[case("2026-11-21T14:14:59.9Z", "in 15 min")]
    #[case("2026-11-21T14:59:29Z", "in 59 min")]
    #[case("2026-11-21T14:59:59Z", "in 1 h")]
    #[case("2026-11-22T13:59:59Z", "in 24 h")]
    #[case("2026-11-21T13:00:00Z", "1 h ago")]
    #[case("2026-11-23T13:29:59Z", "in 47 h")]
    #[case("2026-11-23T13:59:59Z", "in 2 days")]
    #[case("2026-11-23T14:00:00Z", "in 2 days")]
    #[case("2027-02-19T13:59:59Z", "in 90 days")]
    #[case("2020-11-21T14:00:00Z", "2191 days ago")]
    fn tells_how_far_away_a_time_is(#[case] time: &str, #[case] expected: &str) {
        assert_eq!(here("UTC0").relative(at(time)), expected);
    }

    #[test]
    fn gives_local_time_and_utc() {
        let here = here("CET-1CEST,M3.5.0,M10.5.0/3");
        let end = at("2026-11-21T14:14:05Z");
        assert_eq!(here.full(end), "2026-11-21 15:14:05 +01:00 (14:14:05 UTC, in 14 min)");
        assert_eq!(here.short(end), "15:14 +01:00 = 14:14 UTC, in 14 min");
    }

    #[test]
    fn gives_the_offset_of_the_time_itself_when_the_clocks_change_in_between() {
        let here = here("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(here.local(at("2027-07-01T12:00:00Z")), "2027-07-01 14:00:00 +02:00");
    }

    #[test]
    fn names_the_day_where_it_differs() {
        let here = here("XXX+9");
        let end = at("2026-11-22T03:00:00Z");
        assert_eq!(here.full(end), "2026-11-21 18:00:00 -09:00 (2026-11-22 03:00:00 UTC, in 13 h)");
        assert_eq!(here.short(end), "2026-11-21 18:00 -09:00 = 2026-11-22 03:00 UTC, in 13 h");
    }

    #[test]
    fn does_not_say_utc_twice() {
        assert_eq!(here("UTC0").full(at("2026-11-21T14:14:05Z")), "2026-11-21 14:14:05 UTC (in 14 min)");
        assert_eq!(here("UTC0").short(at("2026-11-21T14:14:05Z")), "14:14 UTC, in 14 min");
        assert_eq!(here("UTC0").local(at("2026-11-21T14:14:05Z")), "2026-11-21 14:14:05 UTC");
    }
}
