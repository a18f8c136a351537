//! Whether a policy's hours are what the clocks on the wall show, on the days on which they change as well.

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Row};

/// Zones that change by an hour, by half an hour, at midnight, and never.
const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Africa/Cairo",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "Pacific/Apia",
    "UTC",
];
const CASES: usize = 600;

#[derive(Clone, Debug)]
struct Case {
    zone: &'static str,
    days: Vec<i8>,
    from_minute: i32,
    to_minute: i32,
    from: Timestamp,
    until: Timestamp,
}

impl Case {
    fn policy(&self) -> Value {
        json!({"days": self.days, "from_minute": self.from_minute, "to_minute": self.to_minute, "time_zone": self.zone})
    }

    /// What is expected, by asking at each moment at which something could change.
    fn is_within(&self) -> bool {
        let zone = TimeZone::get(self.zone).unwrap();
        let mut at = self.from;
        while at < self.until {
            let shown = at.to_zoned(zone.clone());
            let minute = i32::from(shown.hour()) * 60 + i32::from(shown.minute());
            let is_allowed = self.days.contains(&shown.weekday().to_monday_one_offset())
                && (self.from_minute..self.to_minute).contains(&minute);
            if !is_allowed {
                return false;
            }
            let next = (at.as_second().div_euclid(60) + 1) * 60;
            at = Timestamp::from_second(next).unwrap();
        }
        true
    }
}

/// The moments in 2026 and 2027 at which the clocks of a zone change.
fn changes(zone: &str) -> Vec<Timestamp> {
    let (start, end): (Timestamp, Timestamp) =
        ("2026-01-01T00:00:00Z".parse().unwrap(), "2028-01-01T00:00:00Z".parse().unwrap());
    let zone = TimeZone::get(zone).unwrap();
    zone.following(start).map(|change| change.timestamp()).take_while(|at| *at < end).collect()
}

fn case() -> impl Strategy<Value = Case> {
    let days = prop_oneof![Just(vec![1, 2, 3, 4, 5, 6, 7]), prop::collection::vec(1_i8..=7, 3..7)];
    let hours = prop_oneof![
        Just((0, 1440)),
        (0_i32..240, 1200_i32..=1440),
        (0_i32..1440).prop_flat_map(|from| (Just(from), from + 1..=1440)),
    ];
    let length = prop_oneof![1_i64..7200, 1_i64..90_000, 1_i64..900_000];
    let whole = prop::bool::ANY;
    (0..ZONES.len(), any::<prop::sample::Index>(), -100_000_i64..50_000, length, days, hours, whole).prop_map(
        |(zone, change, offset, length, days, (from_minute, to_minute), whole)| {
            let zone = ZONES[zone];
            let changes = changes(zone);
            let base = if changes.is_empty() {
                "2026-03-29T01:00:00Z".parse().unwrap()
            } else {
                changes[change.index(changes.len())]
            };
            // Often at a whole quarter of an hour, where the edges are.
            let round = |seconds: i64| if whole { seconds.div_euclid(900) * 900 } else { seconds };
            let from = base + SignedDuration::from_secs(round(offset));
            let until = from + SignedDuration::from_secs(round(length).max(1));
            Case { zone, days, from_minute, to_minute, from, until }
        },
    )
}

async fn holds(pool: &PgPool, policies: &[Value], spans: &[(Timestamp, Timestamp)]) -> Vec<bool> {
    let rows = sqlx::query(
        "select access_policy_holds(jsonb_populate_record(null::access_policies, p), f::timestamptz, u::timestamptz) as holds
           from unnest($1::jsonb[], $2::text[], $3::text[]) with ordinality as c (p, f, u, n) order by n",
    )
    .bind(policies)
    .bind(spans.iter().map(|(from, _)| from.to_string()).collect::<Vec<_>>())
    .bind(spans.iter().map(|(_, until)| until.to_string()).collect::<Vec<_>>())
    .fetch_all(pool)
    .await
    .unwrap();
    rows.iter().map(|row| row.get("holds")).collect()
}

async fn connect(pool: PgPoolOptions, database: PgConnectOptions) -> PgPool {
    pool.connect_with(database).await.unwrap()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn hours_are_what_the_clocks_show(pool: PgPoolOptions, database: PgConnectOptions) {
    let pool = connect(pool, database).await;
    let mut runner = TestRunner::deterministic();
    let strategy = case();
    let cases: Vec<Case> = (0..CASES).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    let policies: Vec<_> = cases.iter().map(Case::policy).collect();
    let spans: Vec<_> = cases.iter().map(|case| (case.from, case.until)).collect();
    let said = holds(&pool, &policies, &spans).await;
    let mut within = 0;
    for (case, said) in cases.iter().zip(said) {
        assert_eq!(said, case.is_within(), "{case:?}");
        within += usize::from(said);
    }
    assert!((CASES / 10..CASES * 9 / 10).contains(&within), "{within} of {CASES} are within: they show little");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_days_on_which_clocks_change(pool: PgPoolOptions, database: PgConnectOptions) {
    let pool = connect(pool, database).await;
    for (from_minute, to_minute, from, until, expected) in [
        // Spring in Berlin: 02:00 to 03:00 are skipped. 01:00 to 02:30 ends at 02:00, which is 03:00.
        (60, 150, "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z", true),
        (60, 150, "2026-03-29T00:00:00Z", "2026-03-29T01:00:01Z", false),
        (120, 180, "2026-03-29T00:59:59Z", "2026-03-29T01:00:01Z", false),
        (60, 240, "2026-03-29T00:00:00Z", "2026-03-29T02:00:00Z", true),
        (60, 240, "2026-03-29T00:00:00Z", "2026-03-29T02:00:01Z", false),
        // Autumn: 02:00 to 03:00 come twice, and 01:00 to 02:30 is over at the first 02:30 until the second 02:00.
        (60, 150, "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z", true),
        (60, 150, "2026-10-24T23:00:00Z", "2026-10-25T00:30:01Z", false),
        (60, 150, "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", true),
        (120, 180, "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z", true),
        (120, 180, "2026-10-25T00:00:00Z", "2026-10-25T02:00:01Z", false),
        // Whole days follow one another without a gap, hours over midnight do not.
        (0, 1440, "2026-10-20T00:00:00Z", "2026-10-30T00:00:00Z", true),
        (1, 1440, "2026-10-20T20:00:00Z", "2026-10-20T22:00:00Z", true),
        (1, 1440, "2026-10-20T20:00:00Z", "2026-10-20T22:00:01Z", false),
        (0, 1439, "2026-10-20T20:00:00Z", "2026-10-20T21:59:01Z", false),
    ] {
        let (from, until) = (from.parse().unwrap(), until.parse().unwrap());
        let case = Case { zone: "Europe/Berlin", days: (1..=7).collect(), from_minute, to_minute, from, until };
        assert_eq!(case.is_within(), expected, "what is compared with is wrong: {case:?}");
        assert_eq!(holds(&pool, &[case.policy()], &[(from, until)]).await, [expected], "{case:?}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_policy_that_cannot_be_read_allows_nothing(pool: PgPoolOptions, database: PgConnectOptions) {
    let pool = connect(pool, database).await;
    let (from, until): (Timestamp, Timestamp) =
        ("2026-11-23T10:00:00Z".parse().unwrap(), "2026-11-23T11:00:00Z".parse().unwrap());
    assert_eq!(from.to_zoned(TimeZone::UTC).weekday(), Weekday::Monday);
    let policy =
        |zone: &str, days: Value| json!({"days": days, "from_minute": 0, "to_minute": 1440, "time_zone": zone});
    let policies = [
        policy("UTC", json!([1])),
        policy("UTC", json!([2, 3, 4, 5, 6, 7])),
        policy("Europe/Gone", json!([1])),
        policy("UTC", json!([1])),
    ];
    let spans = [(from, until), (from, until), (from, until), (until, from)];
    assert_eq!(holds(&pool, &policies, &spans).await, [true, false, false, false]);
}
