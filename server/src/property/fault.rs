//! Faults in the SQL of the server, one at a time, each of which must be found.

use std::sync::Arc;

use proptest::test_runner::{Config, RngSeed};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use super::op::{self, Op, Theme};
use super::world::World;
use super::{Check, race, run, search};

/// Sequences, or collisions, in which a fault must show.
const CASES: u32 = 200;

/// A function that says something else than it should.
struct Fault {
    what: &'static str,
    function: &'static str,
    says: &'static str,
    instead: &'static str,
    /// Where it shows: among all that can happen, it shows as well, but later.
    theme: Theme,
}

const fn fault(what: &'static str, [function, says, instead]: [&'static str; 3], theme: Theme) -> Fault {
    Fault { what, function, says, instead, theme }
}

const USING: Theme = |op| {
    matches!(
        op,
        Op::Link { .. }
            | Op::Grant { .. }
            | Op::Revoke { .. }
            | Op::Command { .. }
            | Op::Claim
            | Op::OpenSession { .. }
            | Op::OpenPort { .. }
            | Op::Watch
            | Op::Sweep
            | Op::Clock(_)
    )
};
const COMING_BACK: Theme =
    |op| matches!(op, Op::Grant { .. } | Op::Command { .. } | Op::OpenSession { .. } | Op::Sweep | Op::Clock(_));
const STAYING: Theme = |op| matches!(op, Op::OpenSession { .. } | Op::OpenPort { .. } | Op::Watch | Op::Clock(_));
const SHUT_OUT: Theme =
    |op| matches!(op, Op::Grant { .. } | Op::OpenSession { .. } | Op::Activate { .. } | Op::Quarantine { .. });
const ASKING: Theme = |op| matches!(op, Op::Ask { .. } | Op::Answer { .. } | Op::Withdraw { .. } | Op::Clock(_));
const TWO_PEOPLE: Theme = |op| matches!(op, Op::Need { .. } | Op::Ask { .. } | Op::Answer { .. } | Op::Grant { .. });
const BEFOREHAND: Theme = |op| matches!(op, Op::MakePolicy { .. } | Op::Ask { .. });
const COMMAND_AND_REVOKE: Theme = |op| matches!(op, Op::Command { .. } | Op::Revoke { .. });
const SESSION_AND_EXTEND: Theme = |op| matches!(op, Op::OpenSession { .. } | Op::Extend { .. });
const ANSWERING: Theme = |op| matches!(op, Op::Answer { .. });

/// What one thing after the other shows.
const IN_SEQUENCE: [Fault; 19] = [
    fault("a grant has no end", ["grant_in_force", "at < g.ends_at", "true"], USING),
    fault("a grant has no beginning", ["grant_in_force", "g.starts_at <= at", "true"], USING),
    fault("a revoked grant goes on", ["grant_in_force", "g.revoked_at is null", "true"], USING),
    fault("a clock put back opens what had ended", ["grant_in_force", "g.end_told_at is null", "true"], COMING_BACK),
    fault("a grant is for every operator", ["grant_covers", "operator_id = any (g.operator_ids)", "true"], USING),
    fault("a grant is for every scope", ["grant_covers", "scope = any (g.scopes)", "true"], USING),
    fault("sessions outlive their grant", ["support_session_over", "not grant_in_force(g, at)", "false"], STAYING),
    fault(
        "openings outlive their time",
        ["opening_over", "o.expires_at <= at or not grant_in_force(g, at)", "false"],
        STAYING,
    ),
    fault(
        "a command may begin after its grant",
        [
            "commands_create",
            "least(clock_timestamp() + make_interval(secs => a.start_within_seconds), h.ends_at)",
            "clock_timestamp() + make_interval(secs => a.start_within_seconds)",
        ],
        USING,
    ),
    fault("shut out operators open sessions", ["support_session_create", "p.active and", ""], SHUT_OUT),
    fault(
        "devices in quarantine take sessions",
        ["support_session_create", "and d.quarantined_at is null", ""],
        SHUT_OUT,
    ),
    fault(
        "one person approves twice",
        [
            "access_request_decide",
            "(select count(*) from counting)",
            "(select count(*) from counting) + (r.version > 1)::integer",
        ],
        TWO_PEOPLE,
    ),
    fault("one person alone lets somebody in", ["grants_by_tenant", "is distinct from 1", "is null"], TWO_PEOPLE),
    fault(
        "an approval says more than was asked for",
        ["access_request_decide", "or p_access_until > r.access_until", ""],
        ASKING,
    ),
    fault("operators approve", ["is_person_of", "p.role = 'tenant' and p.tenant_id = p_tenant_id", "true"], ASKING),
    fault(
        "an answer is never too late",
        ["access_request_state", "least(r.answer_by, r.access_until) <= at", "false"],
        ASKING,
    ),
    fault("anybody withdraws", ["access_request_withdraw", "requested_by = p_person_id and", ""], ASKING),
    fault(
        "a policy has no maximum",
        ["access_request_create", "and v_until - v_now <= make_interval(secs => p.max_seconds)", ""],
        BEFOREHAND,
    ),
    fault("the audit log is no chain", ["audit_append_all", "sha256(chain.hash ||", "sha256("], USING),
];

/// What only two at once show.
const AT_ONCE: [Fault; 3] = [
    fault(
        "whoever has waited looks at no clock",
        ["support_session_create", "h.starts_at <= clock_timestamp() and clock_timestamp() < h.ends_at", "true"],
        SESSION_AND_EXTEND,
    ),
    fault("commands do not hold their grant", ["commands_create", "for share of g, d, p", ""], COMMAND_AND_REVOKE),
    fault(
        "answers do not wait for one another",
        ["access_request_decide", "tenant_id = current_tenant() for no key update", "tenant_id = current_tenant()"],
        ANSWERING,
    ),
];

#[sqlx::test(migrations = false)]
async fn each_of_these_faults_is_found(pool: PgPoolOptions, database: PgConnectOptions) {
    let world = Arc::new(World::new(pool, database).await);
    let check: Check<Vec<Op>> = |world, ops| Box::pin(async move { run(world, &ops).await });
    for fault in &IN_SEQUENCE {
        let sound = fault.apply(world.root()).await;
        let found = search(&world, config(), op::begun(op::of(fault.theme, super::OPS_MAX)), check).await;
        report(fault, found);
        sqlx::raw_sql(AssertSqlSafe(sound)).execute(world.root()).await.unwrap();
    }
}

#[sqlx::test(migrations = false)]
async fn each_of_these_races_is_found(pool: PgPoolOptions, database: PgConnectOptions) {
    let world = Arc::new(World::new(pool, database).await);
    for fault in &AT_ONCE {
        let sound = fault.apply(world.root()).await;
        let found = search(&world, config(), race::collisions(TWO_PEOPLE, fault.theme), race::CHECK).await;
        report(fault, found);
        sqlx::raw_sql(AssertSqlSafe(sound)).execute(world.root()).await.unwrap();
    }
}

/// Found as it is: nobody is to read it.
fn config() -> Config {
    Config {
        cases: CASES,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    }
}

fn report(fault: &Fault, found: Result<(), String>) {
    let failure = found.expect_err(fault.what);
    println!("{}: {}", fault.what, failure.lines().next().unwrap_or_default());
}

impl Fault {
    /// Replaces the function. The sound one, to be put back.
    async fn apply(&self, root: &PgPool) -> String {
        // Of several with one name the one with the most arguments does the work.
        let definition = sqlx::query_scalar::<_, String>(
            "select pg_get_functiondef(oid) from pg_proc where proname = $1 order by pronargs desc limit 1",
        );
        let sound = definition.bind(self.function).fetch_one(root).await.unwrap();
        assert!(sound.contains(self.says), "{} does not say {:?}: {sound}", self.function, self.says);
        let faulty = sound.replace(self.says, self.instead);
        sqlx::raw_sql(AssertSqlSafe(faulty)).execute(root).await.unwrap();
        sound
    }
}
