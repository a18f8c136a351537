//! Two acts at once. A third transaction holds a row that both come by: each goes as far as it can, and then they go on in either
//! order. What came of them must be what one of them after the other would have come to, and nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use proptest::option;
use proptest::prelude::*;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::{sleep, timeout};

use super::act::Act;
use super::op::{self, Op, Theme};
use super::world::{Done, World};
use super::{Check, Failure, Run, check, clock, config, difference, search};

/// Collisions, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 64;
/// How long an act may take that nobody holds up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it is watched for whether it goes on or waits.
const WATCHED_FOR: Duration = Duration::from_millis(300);
const WATCH_EVERY: Duration = Duration::from_millis(2);

/// What comes before, what meets, and where.
#[derive(Clone, Debug)]
pub(super) struct Collision {
    before: Vec<Op>,
    meeting: (Op, Op),
    at: Gate,
    /// What the clock does while they wait.
    meanwhile: Option<Op>,
}

/// The row that is held.
#[derive(Clone, Copy, Debug)]
enum Gate {
    /// The end of the audit log: both have done all else.
    Audit,
    Grant,
    Request,
    Device,
    Person,
    Tenant,
    /// None: as it comes.
    Nothing,
}

impl Gate {
    const fn lock(self) -> Option<&'static str> {
        match self {
            Self::Audit => Some("select from audit_chains for update"),
            Self::Grant => Some("select from grants order by id for update"),
            Self::Request => Some("select from access_requests order by id for update"),
            Self::Device => Some("select from devices order by id for update"),
            Self::Person => Some("select from people order by id for update"),
            Self::Tenant => Some("select from tenants order by id for update"),
            Self::Nothing => None,
        }
    }
}

/// What uses a grant, and what ends it.
const USE_AND_END: Theme = |op| {
    matches!(
        op,
        Op::Command { .. }
            | Op::OpenSession { .. }
            | Op::OpenPort { .. }
            | Op::Claim
            | Op::Revoke { .. }
            | Op::Activate { .. }
            | Op::RevokeDevice { .. }
            | Op::Quarantine { .. }
            | Op::Cancel { .. }
            | Op::Report { .. }
            | Op::CloseSession { .. }
            | Op::ClosePort { .. }
            | Op::Unlink { .. }
    )
};
/// What makes a grant, and what prevents it.
const GIVE_AND_KEEP: Theme = |op| {
    matches!(
        op,
        Op::Ask { .. }
            | Op::Answer { .. }
            | Op::Withdraw { .. }
            | Op::Grant { .. }
            | Op::Extend { .. }
            | Op::Revoke { .. }
            | Op::MakePolicy { .. }
            | Op::ApprovePolicy { .. }
            | Op::RevokePolicy { .. }
            | Op::Need { .. }
            | Op::Activate { .. }
            | Op::RevokeDevice { .. }
    )
};

/// Two of this theme at once.
pub(super) fn collisions(before: Theme, meeting: Theme) -> impl Strategy<Value = Collision> {
    let gate = prop_oneof![
        3 => Just(Gate::Audit), 2 => Just(Gate::Grant), 1 => Just(Gate::Request), 1 => Just(Gate::Device),
        1 => Just(Gate::Person), 1 => Just(Gate::Tenant), 1 => Just(Gate::Nothing),
    ];
    // Enough of them that there are two.
    let meeting = op::of(meeting, 24).prop_filter_map("no two of them", |ops| Some((*ops.first()?, *ops.get(1)?)));
    let meanwhile = option::weighted(0.4, op::jump().prop_map(Op::Clock));
    (op::begun(op::of(before, 8)), meeting, gate, meanwhile).prop_map(|(before, meeting, at, meanwhile)| Collision {
        before,
        meeting,
        at,
        meanwhile,
    })
}

pub(super) const CHECK: Check<Collision> = |world, collision| Box::pin(async move { collide(world, collision).await });

#[sqlx::test(migrations = false)]
async fn two_at_once_come_to_what_one_after_the_other_would(pool: PgPoolOptions, database: PgConnectOptions) {
    let world = Arc::new(World::new(pool, database).await);
    let collisions = prop_oneof![
        2 => collisions(USE_AND_END, USE_AND_END),
        2 => collisions(GIVE_AND_KEEP, GIVE_AND_KEEP),
        1 => collisions(op::ANYTHING, op::ANYTHING),
    ];
    if let Err(failure) = search(&world, config(CASES), collisions, CHECK).await {
        panic!("{failure}");
    }
}

async fn collide(world: &World, collision: Collision) -> Result<(), Failure> {
    let mut run = Run::begin(world).await;
    for op in collision.before {
        run.step(op).await?;
    }
    let named = |op| world.cast.act(op, &run.look.rows, run.model.now).filter(can_meet);
    let (Some(one), Some(other)) = (named(collision.meeting.0), named(collision.meeting.1)) else { return Ok(()) };
    let acts = (one, other);
    let now = run.model.now;
    let later = match collision.meanwhile.and_then(|op| world.cast.act(op, &run.look.rows, now)) {
        Some(Act::Clock { to }) if to > now && collision.at.lock().is_some() => to,
        _ => now,
    };
    let done = at_once(world, &run, &acts, collision.at, later).await;
    let after = world.look().await;
    let mut wrong = [done.0.wrong.clone(), done.1.wrong.clone()].concat();
    check::audit(&after, &mut wrong);
    // Each of them at a moment between its beginning and its end.
    let orders = [[(&acts.0, &done.0), (&acts.1, &done.1)], [(&acts.1, &done.1), (&acts.0, &done.0)]];
    let moments = [[now, now], [now, later], [later, later], [later, now]];
    let predicted = orders.into_iter().flat_map(|order| moments.map(|moments| (order, moments)));
    let mut predicted = predicted.map(|(order, moments)| {
        let mut model = run.model.clone();
        let contradiction = order.into_iter().zip(moments).find_map(|((act, done), moment)| {
            model.now = moment;
            model.act(act, done, &after.rows).err()
        });
        model.now = later;
        let differs = || (model.rows != after.rows).then(|| difference(&model.rows, &after.rows));
        let differs = contradiction.or_else(differs);
        (model, differs)
    });
    let mut first = None;
    let fitting = predicted.find_map(|(model, differs)| match differs {
        None => Some(model),
        Some(differs) => {
            first.get_or_insert(differs);
            None
        }
    });
    let Some(model) = fitting.filter(|_| wrong.is_empty()) else {
        return Err(run.failure(&format!(
            "at once, at {:?}, {:.6} s:\n  {:?}\n  {:?}\n{}\nas no order and moment of the two explains; as the first one: {}",
            collision.at,
            (later - now) as f64 / 1e6,
            acts.0,
            acts.1,
            wrong.join("\n"),
            first.unwrap_or_default()
        )));
    };
    (run.model, run.look) = (model, after);
    // And what follows finds nothing odd.
    for op in [Op::Claim, Op::Watch, Op::Sweep, Op::Watch] {
        run.step(op).await?;
    }
    Ok(())
}

/// Not what sets the clock, or stands for a whole node.
fn can_meet(act: &Act) -> bool {
    !matches!(act, Act::Clock { .. } | Act::Crash { .. } | Act::Watch | Act::Sweep)
}

async fn at_once(world: &World, run: &Run<'_>, acts: &(Act, Act), at: Gate, later: i64) -> (Done, Done) {
    let (rows, now) = (&run.look.rows, run.model.now);
    let mut gate = world.root().begin().await.unwrap();
    if let Some(lock) = at.lock() {
        sqlx::query(lock).execute(&mut *gate).await.unwrap();
    }
    let done = async |act| timeout(PATIENCE, world.act(act, rows, now)).await.expect("both go on once the row is free");
    let (mut one, mut other) = (Box::pin(done(&acts.0)), Box::pin(done(&acts.1)));
    let mut done = (None, None);
    if at.lock().is_some() {
        done.0 = as_far_as_it_goes(world, one.as_mut(), 1).await;
        done.1 = as_far_as_it_goes(world, other.as_mut(), if done.0.is_none() { 2 } else { 1 }).await;
    }
    if later != now {
        clock::set(world.root(), later).await;
    }
    gate.rollback().await.unwrap();
    tokio::join!(
        async {
            match done.0 {
                Some(done) => done,
                None => one.await,
            }
        },
        async {
            match done.1 {
                Some(done) => done,
                None => other.await,
            }
        }
    )
}

/// Until it is done, or so many wait for a row; or for one another within the server, which no table tells.
async fn as_far_as_it_goes(world: &World, mut act: Pin<&mut impl Future<Output = Done>>, waiting: i64) -> Option<Done> {
    let waits = async {
        while world.waiting().await < waiting {
            sleep(WATCH_EVERY).await;
        }
    };
    let waits = timeout(WATCHED_FOR, waits);
    tokio::pin!(waits);
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = act.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        waits.as_mut().poll(context).map(|_| None)
    })
    .await
}
