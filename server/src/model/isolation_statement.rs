//! What is said about how a tenant's devices were kept apart on one day: what was measured, and no word more. The fields and the
//! rules of the conclusion are in docs/ISOLATION.md.

use serde::Serialize;
use time::{Date, Duration, OffsetDateTime, Time};
use uuid::Uuid;

use super::proof::Outcome;

/// Grows when a field changes its meaning or goes; that fields are added is no reason.
pub const VERSION: u32 = 1;
/// The longest that a node may carry tunnels without a proof, and all is still said to be proven. The same for every fleet,
/// however often its nodes try.
pub const GAP_MAX: Duration = Duration::minutes(5);
/// When a day has been over for so long, every node has written what it knows of it, if it can.
pub const COMPLETE_AFTER: Duration = Duration::minutes(5);
/// Lines of one list in a statement.
pub const LINES_MAX: usize = 10_000;
/// Leaks of one node that are told in full.
pub const LEAKS_MAX: usize = 100;

/// A day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day(Date);

impl Day {
    #[must_use]
    pub const fn new(date: Date) -> Self {
        Self(date)
    }

    #[must_use]
    pub fn of(at: OffsetDateTime) -> Self {
        Self(at.to_offset(time::UtcOffset::UTC).date())
    }

    #[must_use]
    pub const fn date(self) -> Date {
        self.0
    }

    #[must_use]
    pub fn start(self) -> OffsetDateTime {
        self.0.with_time(Time::MIDNIGHT).assume_utc()
    }

    /// The first moment after it.
    #[must_use]
    pub fn end(self) -> OffsetDateTime {
        self.start().saturating_add(Duration::DAY)
    }
}

/// What all that was measured comes to. Of several, the first in this order holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = IsolationConclusion)]
pub enum Conclusion {
    /// No node carried a tunnel of the tenant: its devices had no IP path to any node.
    NoTunnels,
    /// On a node that carried tunnels of the tenant, something was possible that must not be.
    Leak,
    /// A node carried tunnels of the tenant, and nothing at all was proven on it.
    NotProven,
    /// Each node has proofs, but one carried tunnels for longer than `gap_seconds_max` without, or its rules differed for a time.
    ProvenWithGaps,
    /// None of that.
    Proven,
}

/// The content of a statement.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct IsolationStatement {
    pub version: u32,
    pub trust_domain: String,
    pub tenant: TenantName,
    /// In UTC, as `2026-11-21`.
    #[schema(value_type = String, format = Date)]
    #[serde(serialize_with = "iso_date")]
    pub day: Date,
    /// False: the day is not over, or has only just ended.
    pub complete: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    pub conclusion: Conclusion,
    /// Why it is no better, in words.
    pub reasons: Vec<String>,
    /// What a gap may last for the conclusion `proven`.
    pub gap_seconds_max: i64,
    /// The nodes that carried tunnels of the tenant that day.
    pub nodes: Vec<NodeDay>,
    /// What devices of the tenant sent that is not let through.
    pub drops: Vec<DropDay>,
    /// Devices of the tenant that were put into quarantine that day.
    pub quarantines: Vec<QuarantineDay>,
    /// Ports of devices that were open for support at any time of that day.
    pub openings: Vec<OpeningDay>,
    /// True: a list was longer than 10,000 lines, and has only the first of them.
    pub truncated: bool,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationTenant)]
pub struct TenantName {
    pub id: Uuid,
    pub name: String,
}

/// What was measured on one node that day.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationNodeDay)]
pub struct NodeDay {
    pub node: String,
    /// When it carried tunnels of the tenant, in whole minutes.
    pub carried: Vec<Span>,
    pub proofs: ProofCounts,
    /// How many attempts all those proofs made.
    pub attempts: i64,
    #[serde(with = "time::serde::rfc3339::option")]
    pub first_proven_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_proven_at: Option<OffsetDateTime>,
    /// The longest piece of `carried` in which no round of attempts began that proved the isolation.
    pub longest_gap_seconds: i64,
    /// SHA-256 of each policy that was declared when it was tried, in hex, in the order of their use. What differed is in `drifts`.
    pub policies: Vec<String>,
    /// When what was in force was not what is declared.
    pub drifts: Vec<Drift>,
    /// What was possible and must not be.
    pub leaks: Vec<Leak>,
}

/// From a moment on, and before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationSpan)]
pub struct Span {
    #[serde(with = "time::serde::rfc3339")]
    pub from: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// How many proofs came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationProofCounts)]
pub struct ProofCounts {
    pub proven: u32,
    pub failed: u32,
    pub leak: u32,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationDayDrift)]
pub struct Drift {
    /// `rules`, `setting` or `interface`.
    pub kind: String,
    #[serde(with = "time::serde::rfc3339")]
    pub found_at: OffsetDateTime,
    /// Null: it was not, until the statement was made.
    #[serde(with = "time::serde::rfc3339::option")]
    pub repaired_at: Option<OffsetDateTime>,
    /// In how many points. Which they were is in the platform's audit log: they may name devices of others.
    pub differences: i32,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationDayLeak)]
pub struct Leak {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Each kind of attempt with its numbers.
    #[schema(value_type = Vec<super::proof::KindResult>)]
    pub results: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationDayDrop)]
pub struct DropDay {
    pub device_id: Uuid,
    pub device_name: String,
    /// Why it was not let through.
    pub reason: String,
    pub packets: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub first_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationDayQuarantine)]
pub struct QuarantineDay {
    pub device_id: Uuid,
    pub device_name: String,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = IsolationDayOpening)]
pub struct OpeningDay {
    pub id: Uuid,
    pub device_id: Uuid,
    pub device_name: String,
    pub port: i32,
    pub grant_id: Uuid,
    /// Who asked for it.
    pub opened_by: Uuid,
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the kernel of the device's node had it. Null: never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub opened_at: Option<OffsetDateTime>,
    /// The latest that the kernel closes it.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Null: it had not when the statement was made.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
}

/// A statement as it is handed out.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SignedIsolationStatement {
    /// A JSON Web Signature in its compact form: what to keep. docs/ISOLATION.md shows how to check it.
    pub statement: String,
    pub content: IsolationStatement,
}

/// What the database knows of one node and day.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    pub node: String,
    /// In their order, apart from one another.
    pub carried: Vec<Span>,
    /// In the order in which they began.
    pub rounds: Vec<Round>,
    pub drifts: Vec<Drift>,
}

/// One round of attempts.
#[derive(Clone, Debug)]
pub struct Round {
    pub at: OffsetDateTime,
    pub outcome: Outcome,
    pub policy: String,
    pub attempts: i32,
    /// Only of a leak.
    pub results: Option<serde_json::Value>,
}

impl NodeDay {
    /// `now`: what is after it has not happened, even if a minute of it was written.
    #[must_use]
    pub fn new(record: NodeRecord, now: OffsetDateTime) -> Self {
        let NodeRecord { node, carried, rounds, drifts } = record;
        let proven: Vec<_> =
            rounds.iter().filter(|round| round.outcome == Outcome::Proven).map(|round| round.at).collect();
        let mut proofs = ProofCounts::default();
        let mut policies: Vec<String> = Vec::new();
        for round in &rounds {
            match round.outcome {
                Outcome::Proven => proofs.proven += 1,
                Outcome::Failed => proofs.failed += 1,
                Outcome::Leak => proofs.leak += 1,
            }
            if !policies.contains(&round.policy) {
                policies.push(round.policy.clone());
            }
        }
        let attempts = rounds.iter().map(|round| i64::from(round.attempts)).sum();
        let leaks = rounds.into_iter().filter(|round| round.outcome == Outcome::Leak);
        let leaks = leaks.map(|round| Leak { at: round.at, results: round.results.unwrap_or_default() });
        Self {
            node,
            longest_gap_seconds: longest_gap(&carried, &proven, now).whole_seconds(),
            carried,
            proofs,
            attempts,
            first_proven_at: proven.first().copied(),
            last_proven_at: proven.last().copied(),
            policies,
            drifts,
            leaks: leaks.take(LEAKS_MAX).collect(),
        }
    }

    /// What is to be concluded from this node alone, and why.
    fn conclusion(&self) -> (Conclusion, Vec<String>) {
        let node = &self.node;
        let (count, gap) = (self.proofs.leak, self.longest_gap_seconds);
        let mut reasons = Vec::new();
        if count > 0 {
            reasons.push(format!("{node}: something was possible that must not be, in {count} of the proofs"));
        }
        if self.proofs.proven == 0 {
            reasons.push(format!("{node}: nothing was proven"));
        } else if gap > GAP_MAX.whole_seconds() {
            reasons.push(format!("{node}: {gap} s passed without a proof"));
        }
        if !self.drifts.is_empty() {
            reasons.push(format!("{node}: what was in force differed from the policy, {} times", self.drifts.len()));
        }
        let conclusion = if count > 0 {
            Conclusion::Leak
        } else if self.proofs.proven == 0 {
            Conclusion::NotProven
        } else if reasons.is_empty() {
            Conclusion::Proven
        } else {
            Conclusion::ProvenWithGaps
        };
        (conclusion, reasons)
    }
}

/// What all nodes come to: the worst of them.
#[must_use]
pub fn conclude(nodes: &[NodeDay]) -> (Conclusion, Vec<String>) {
    let all: Vec<_> = nodes.iter().map(NodeDay::conclusion).collect();
    let is_any = |conclusion| all.iter().any(|(of_node, _)| *of_node == conclusion);
    let worst = [Conclusion::Leak, Conclusion::NotProven, Conclusion::ProvenWithGaps, Conclusion::Proven];
    let conclusion = worst.into_iter().find(|conclusion| is_any(*conclusion)).unwrap_or(Conclusion::NoTunnels);
    (conclusion, all.into_iter().flat_map(|(_, reasons)| reasons).collect())
}

/// The longest piece of the spans with none of the moments inside. Both are in their order.
fn longest_gap(spans: &[Span], moments: &[OffsetDateTime], now: OffsetDateTime) -> Duration {
    let mut longest = Duration::ZERO;
    for span in spans {
        let until = span.until.min(now);
        let mut since = span.from;
        for moment in moments.iter().filter(|moment| (span.from..until).contains(*moment)) {
            longest = longest.max(*moment - since);
            since = *moment;
        }
        longest = longest.max(until - since);
    }
    longest
}

pub(super) fn iso_date<S: serde::Serializer>(date: &Date, serializer: S) -> Result<S::Ok, S::Error> {
    // `Display` writes years of more than four digits with a sign; days have been checked to lie within four.
    serializer.collect_str(date)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use time::macros::{date, datetime};

    use super::*;

    const DAY: Day = Day::new(date!(2026 - 11 - 21));

    fn at(minutes: i64) -> OffsetDateTime {
        DAY.start() + Duration::minutes(minutes)
    }

    fn span(from: i64, until: i64) -> Span {
        Span { from: at(from), until: at(until) }
    }

    fn round(minute: i64, outcome: Outcome) -> Round {
        Round { at: at(minute), outcome, policy: "ab".to_owned(), attempts: 7, results: None }
    }

    fn node(carried: &[Span], rounds: Vec<Round>) -> NodeDay {
        let record = NodeRecord { node: "a".to_owned(), carried: carried.to_vec(), rounds, drifts: Vec::new() };
        NodeDay::new(record, DAY.end() + Duration::HOUR)
    }

    fn every_minute(minutes: std::ops::Range<i64>) -> Vec<Round> {
        minutes.map(|minute| round(minute, Outcome::Proven)).collect()
    }

    #[test]
    fn a_day_is_one_of_utc() {
        assert_eq!(Day::of(datetime!(2026-11-22 01:30 +02:00)), DAY);
        assert_eq!((DAY.start(), DAY.end()), (datetime!(2026-11-21 00:00 UTC), datetime!(2026-11-22 00:00 UTC)));
    }

    #[rstest]
    #[case::none_at_all(&[], &[], 0)]
    #[case::without_tunnels(&[], &[5, 6], 0)]
    #[case::without_proofs(&[(0, 10)], &[], 10)]
    #[case::before_the_first(&[(0, 10)], &[7], 7)]
    #[case::after_the_last(&[(0, 10)], &[2], 8)]
    #[case::between(&[(0, 10)], &[1, 7, 9], 6)]
    #[case::times_without_tunnels_do_not_count(&[(0, 10), (60, 70)], &[1, 9, 61, 69], 8)]
    #[case::proofs_without_tunnels_do_not_count(&[(0, 10), (60, 70)], &[5, 30, 65], 5)]
    #[case::at_the_edges(&[(0, 10)], &[0, 10], 10)]
    #[case::cut_off_by_the_present(&[(0, 10), (20, 100)], &[5, 25], 15)]
    fn a_gap_is_the_longest_time_with_tunnels_and_without_a_proof(
        #[case] spans: &[(i64, i64)],
        #[case] moments: &[i64],
        #[case] expected: i64,
    ) {
        let spans: Vec<_> = spans.iter().map(|(from, until)| span(*from, *until)).collect();
        let moments: Vec<_> = moments.iter().map(|minute| at(*minute)).collect();
        assert_eq!(longest_gap(&spans, &moments, at(40)), Duration::minutes(expected));
    }

    #[test]
    fn what_failed_proves_nothing() {
        let mut rounds = every_minute(0..5);
        rounds.extend((5..20).map(|minute| round(minute, Outcome::Failed)));
        let node = node(&[span(0, 20)], rounds);
        assert_eq!(node.longest_gap_seconds, 16 * 60);
        assert_eq!(node.proofs, ProofCounts { proven: 5, failed: 15, leak: 0 });
        assert_eq!((node.first_proven_at, node.last_proven_at), (Some(at(0)), Some(at(4))));
        assert_eq!((node.attempts, node.policies.as_slice()), (140, &["ab".to_owned()][..]));
    }

    fn drifted(mut node: NodeDay) -> NodeDay {
        let kind = "rules".to_owned();
        node.drifts.push(Drift { kind, found_at: at(1), repaired_at: Some(at(1)), differences: 1 });
        node
    }

    #[test]
    fn each_conclusion_has_its_rule_and_the_worst_node_decides() {
        let proven = || node(&[span(0, 30)], every_minute(0..30));
        let with_gap = || node(&[span(0, 30)], every_minute(6..30));
        let without_proof = || node(&[span(0, 30)], vec![round(1, Outcome::Failed)]);
        let leaking = || node(&[span(0, 30)], vec![round(1, Outcome::Proven), round(2, Outcome::Leak)]);
        let conclusion = |nodes: &[NodeDay]| conclude(nodes).0;
        assert_eq!(conclude(&[]), (Conclusion::NoTunnels, vec![]));
        assert_eq!(conclude(&[proven()]), (Conclusion::Proven, vec![]));
        assert_eq!(
            conclusion(&[node(&[span(0, 30)], every_minute(5..30))]),
            Conclusion::Proven,
            "exactly five minutes"
        );
        assert_eq!(conclude(&[with_gap()]).1, ["a: 360 s passed without a proof"]);
        assert_eq!(conclusion(&[with_gap()]), Conclusion::ProvenWithGaps);
        assert_eq!(conclusion(&[drifted(proven())]), Conclusion::ProvenWithGaps);
        assert_eq!(conclusion(&[without_proof()]), Conclusion::NotProven);
        assert_eq!(conclusion(&[leaking()]), Conclusion::Leak);
        assert_eq!(conclusion(&[proven(), with_gap()]), Conclusion::ProvenWithGaps);
        assert_eq!(conclusion(&[with_gap(), without_proof(), proven()]), Conclusion::NotProven);
        assert_eq!(conclusion(&[without_proof(), leaking(), proven()]), Conclusion::Leak);
        let all = conclude(&[drifted(leaking())]);
        assert_eq!(all.0, Conclusion::Leak);
        assert_eq!(all.1.len(), 3, "{all:?}");
    }

    #[test]
    fn of_many_leaks_some_are_told_and_all_are_counted() {
        let rounds = (0..300).map(|minute| round(minute, Outcome::Leak)).collect();
        let node = node(&[span(0, 300)], rounds);
        assert_eq!((node.leaks.len(), node.proofs.leak), (LEAKS_MAX, 300));
    }
}
