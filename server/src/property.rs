//! Whether anything gets through outside a grant: what people, devices, nodes and the clock do in any order, against the real routes,
//! tasks and SQL, with a clock that the test sets.
//!
//! Each sequence is told by [`op`], done by [`world`], and predicted by [`model`], which is written from the documents and knows
//! nothing of SQL. After every act the tables must hold what the model says, and [`check`] must find nothing in them that may not be;
//! it does not trust the model either. [`race`] does two acts at once, and [`fault`] shows that all this finds faults.
//!
//! `PROPTEST_CASES` says how many sequences (48), `PROPTEST_RNG_SEED` which. What fails is shrunk, printed, and tried first from then
//! on (`proptest-regressions/`).

mod act;
mod check;
pub(crate) mod clock;
mod fault;
mod model;
mod op;
mod race;
mod rows;
mod world;

use std::fmt::Write as _;
use std::sync::Arc;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::act::Act;
use self::clock::START;
use self::model::Model;
use self::op::Op;
use self::rows::Look;
use self::world::{Done, World};

/// Sequences, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 48;
/// The most acts of a sequence.
const OPS_MAX: usize = 40;

const STACK_BYTES: usize = 32 << 20;

/// What went wrong, with all that was done until then.
type Failure = String;

/// One sequence under way.
struct Run<'a> {
    world: &'a World,
    model: Model,
    look: Look,
    told: String,
}

impl<'a> Run<'a> {
    async fn begin(world: &'a World) -> Self {
        world.restore().await;
        let look = world.look().await;
        Self { world, model: Model::new(look.rows.clone(), START), look, told: String::new() }
    }

    /// Does it, and looks whether it came to what it must.
    async fn step(&mut self, op: Op) -> Result<(), Failure> {
        let Some(act) = self.world.cast.act(op, &self.look.rows, self.model.now) else { return Ok(()) };
        let done = self.world.act(&act, &self.look.rows, self.model.now).await;
        let after = self.world.look().await;
        let _ = writeln!(self.told, "  at {:+.6} s: {act:?}", (self.model.now - START) as f64 / 1e6);
        let contradiction = self.model.act(&act, &done, &after.rows).err();
        self.judge(&act, &done, after, contradiction)
    }

    fn judge(&mut self, act: &Act, done: &Done, after: Look, contradiction: Option<String>) -> Result<(), Failure> {
        let mut wrong = check::violations(act, done, &self.look, &after, self.model.now);
        wrong.extend(contradiction);
        if self.model.rows != after.rows {
            wrong.push(difference(&self.model.rows, &after.rows));
        }
        if let Some(going_on) = done.going_on.as_ref().filter(|going_on| *going_on != self.model.known()) {
            wrong.push(format!("the node goes on with {going_on:?} instead of {:?}", self.model.known()));
        }
        if let Some(held) = done.held.as_ref().filter(|held| **held != self.model.held()) {
            wrong.push(format!("the node holds open {held:?} instead of {:?}", self.model.held()));
        }
        self.look = after;
        if wrong.is_empty() { Ok(()) } else { Err(self.failure(&wrong.join("\n"))) }
    }

    /// In names, as far as there are any.
    fn failure(&self, wrong: &str) -> Failure {
        self.world.cast.in_names(&format!("{wrong}\nafter\n{}", self.told))
    }
}

/// The lines of one that the other does not have.
fn difference(expected: &rows::Rows, found: &rows::Rows) -> String {
    let (expected, found) = (format!("{expected:#?}"), format!("{found:#?}"));
    let lines = |one: &str, other: &str, mark: &str| {
        let other: Vec<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(|line| format!("{mark} {line}\n")).collect::<String>()
    };
    let (missing, unexpected) = (lines(&expected, &found, "-"), lines(&found, &expected, "+"));
    if missing.is_empty() && unexpected.is_empty() {
        return format!("the tables hold what the model does not: {expected}\ninstead of\n{found}");
    }
    format!("the tables (+) hold other things than the model (-):\n{missing}{unexpected}")
}

async fn run(world: &World, ops: &[Op]) -> Result<(), Failure> {
    let mut run = Run::begin(world).await;
    for op in ops {
        run.step(*op).await?;
    }
    Ok(())
}

fn config(cases: u32) -> Config {
    // What the environment says counts.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { cases };
    let persistence = FileFailurePersistence::SourceParallel("proptest-regressions");
    Config {
        cases,
        failure_persistence: Some(Box::new(persistence)),
        source_file: Some(file!()),
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

/// Tries what the strategy gives until one fails. The failure is that of the shortest one that was found.
async fn search<S>(world: &Arc<World>, config: Config, strategy: S, check: Check<S::Value>) -> Result<(), Failure>
where
    S: Strategy + Send + 'static,
    S::Value: Send,
{
    let (world, handle) = (Arc::clone(world), Handle::current());
    let (told, searched) = oneshot::channel();
    // A thread of its own, for proptest knows nothing of tasks, and futures that are not optimised need a deep stack.
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let tried = |value: S::Value| handle.block_on(check(&world, value)).map_err(TestCaseError::fail);
        let _ = told.send(TestRunner::new(config).run(&strategy, tried).map_err(|error| match error {
            TestError::Fail(reason, _) => reason.message().to_owned(),
            TestError::Abort(reason) => format!("gave up: {reason}"),
        }));
    });
    thread.unwrap();
    searched.await.expect("the search has not panicked")
}

type Check<V> = fn(&World, V) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + '_>>;

#[sqlx::test(migrations = false)]
async fn nothing_gets_through_outside_a_grant(pool: PgPoolOptions, database: PgConnectOptions) {
    let world = Arc::new(World::new(pool, database).await);
    let check: Check<Vec<Op>> = |world, ops| Box::pin(async move { run(world, &ops).await });
    if let Err(failure) = search(&world, config(CASES), op::ops(OPS_MAX), check).await {
        panic!("{failure}");
    }
    // All of that was judged by the clock that was set, and by no other.
    assert_eq!(clock::columns_of_the_present(world.root()).await, Vec::<String>::new());
}

/// What the other tests here rest on.
#[sqlx::test(migrations = false)]
async fn the_clock_that_is_set_is_the_only_one(pool: PgPoolOptions, database: PgConnectOptions) {
    let world = World::new(pool, database).await;
    assert_eq!(clock::read_otherwise(world.root()).await, Vec::<String>::new());
    let queries: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.sqlx"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(queries.len() > 100, "{} queries", queries.len());
    assert_eq!(clock::reading_otherwise(world.root(), &queries).await, Vec::<String>::new());
    let found = clock::reading_otherwise(world.root(), &["select current_timestamp".to_owned()]).await;
    assert_eq!(found.len(), 1, "nothing would be found");
    // It stands still, and goes where it is set, backwards as well, in the middle of a transaction.
    let mut transaction = world.root().begin().await.unwrap();
    let mut told = Vec::new();
    for at in [START, START - clock::DAY] {
        clock::set(world.root(), at).await;
        let now = sqlx::query_scalar::<_, i64>("select virtual.at(clock_timestamp())");
        told.push(now.fetch_one(&mut *transaction).await.unwrap());
    }
    assert_eq!(told, [START, START - clock::DAY]);
}
