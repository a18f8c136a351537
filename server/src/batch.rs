//! What many links or requests ask of the database at the same moment becomes one statement.
//!
//! There is no delay: whatever came in while the last statement ran goes into the next one. A lone question costs what it
//! would cost anyway; a storm of them costs a fraction.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::store::{Connection, Store, StoreError};

/// Questions in one statement.
const BATCH_MAX: usize = 256;
/// Questions in one statement from which on it says what a question takes when many are asked.
const CROWD: u64 = 16;
/// Questions that wait for the statement before theirs. Whoever asks more waits for a place.
const WAITING_MAX: usize = 4096;
/// How long a connection is kept for the next questions. The pool tries each one that comes back, which costs as much again as
/// a question of little.
const KEEP: Duration = Duration::from_millis(100);
/// Statements after which a connection goes back to the pool all the same, which looks at its age.
const KEEP_STATEMENTS_MAX: u32 = 256;

/// A statement that answers many questions at once.
pub(crate) trait Statement: Send + Sync + 'static {
    type Question: Send + Sync + 'static;
    type Answer: Send + 'static;
    type Key: Eq + Hash + Send;
    /// For the log.
    const NAME: &'static str;
    /// Whether to ask although whoever wanted the answer has gone meanwhile.
    const EVEN_UNHEARD: bool = true;

    /// What two questions of one statement must not share.
    fn key(question: &Self::Question) -> Self::Key;

    /// Answers all, in order.
    fn ask(
        &self,
        connection: &mut Connection,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The database cannot be reached: ask again.
    #[error("the database is not available")]
    Unavailable,
    /// The question is at fault, or the server: asking again will not help.
    #[error("the question could not be answered")]
    Fault,
}

/// Where questions are asked.
#[derive(Debug)]
pub(crate) struct Batch<S: Statement> {
    waiting: mpsc::Sender<Waiting<S>>,
    tally: Arc<Tally>,
}

/// What was asked since the start.
#[derive(Debug, Default)]
struct Tally {
    statements: AtomicU64,
    questions: AtomicU64,
    /// Of statements with at least [`CROWD`] questions.
    crowd_questions: AtomicU64,
    crowd_micros: AtomicU64,
}

/// What a batch was asked, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tallied {
    pub(crate) statements: u64,
    pub(crate) questions: u64,
    /// How long a question takes when many are asked at once; `None`: they never were.
    pub(crate) crowded: Option<Duration>,
}

impl Tally {
    fn add(&self, questions: usize, took: Duration) {
        let questions = questions as u64;
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.questions.fetch_add(questions, Ordering::Relaxed);
        if questions >= CROWD {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.crowd_questions.fetch_add(questions, Ordering::Relaxed);
            self.crowd_micros.fetch_add(micros, Ordering::Relaxed);
        }
    }
}

type Waiting<S> = (<S as Statement>::Question, Reply<S>);
type Reply<S> = oneshot::Sender<Result<<S as Statement>::Answer, Unanswered>>;

impl<S: Statement> Batch<S> {
    /// Starts the task that asks. It ends with the last clone of what this gives.
    pub(crate) fn start(statement: S, store: Store) -> Self {
        let (waiting, questions) = mpsc::channel(WAITING_MAX);
        let tally = Arc::<Tally>::default();
        tokio::spawn(run(statement, store, questions, Arc::clone(&tally)));
        Self { waiting, tally }
    }

    pub(crate) fn tallied(&self) -> Tallied {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let crowded = of(&self.tally.crowd_micros).checked_div(of(&self.tally.crowd_questions));
        Tallied {
            statements: of(&self.tally.statements),
            questions: of(&self.tally.questions),
            crowded: crowded.map(Duration::from_micros),
        }
    }

    pub(crate) async fn ask(&self, question: S::Question) -> Result<S::Answer, Unanswered> {
        let (reply, answer) = oneshot::channel();
        self.waiting.send((question, reply)).await.map_err(|_| Unanswered::Unavailable)?;
        answer.await.map_err(|_| Unanswered::Unavailable)?
    }
}

async fn run<S: Statement>(statement: S, store: Store, mut waiting: mpsc::Receiver<Waiting<S>>, tally: Arc<Tally>) {
    let mut asker = Asker { statement, store, kept: None, tally };
    let mut next: Vec<Waiting<S>> = Vec::new();
    while !next.is_empty() || asker.wait(&mut waiting, &mut next).await {
        let mut keys = HashSet::with_capacity(next.len());
        let (now, later): (Vec<_>, Vec<_>) = next.drain(..).partition(|(question, _)| keys.insert(S::key(question)));
        next = later;
        let now: Vec<_> = now.into_iter().filter(|(_, reply)| S::EVEN_UNHEARD || !reply.is_closed()).collect();
        asker.answer(now).await;
    }
}

struct Asker<S> {
    statement: S,
    store: Store,
    kept: Option<Kept>,
    tally: Arc<Tally>,
}

/// A connection that has just done well.
struct Kept {
    connection: Connection,
    since: Instant,
    statements: u32,
}

impl<S: Statement> Asker<S> {
    /// Waits for questions. False: there will be none.
    async fn wait(&mut self, waiting: &mut mpsc::Receiver<Waiting<S>>, next: &mut Vec<Waiting<S>>) -> bool {
        if self.kept.is_some() {
            match timeout(KEEP, waiting.recv_many(next, BATCH_MAX)).await {
                Ok(questions) => return questions > 0,
                Err(_) => self.kept = None,
            }
        }
        waiting.recv_many(next, BATCH_MAX).await > 0
    }

    async fn answer(&mut self, batch: Vec<Waiting<S>>) {
        if batch.is_empty() {
            return;
        }
        let (questions, replies): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        match self.ask(&questions).await {
            Ok(answers) => {
                debug_assert_eq!(answers.len(), questions.len());
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Whoever asked may have gone.
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(error) if !error.is_retryable() && questions.len() > 1 => {
                // One question spoils the statement for all: each gets its own.
                for (question, reply) in questions.iter().zip(replies) {
                    let answer = self.ask(std::slice::from_ref(question)).await;
                    let _ = reply.send(match answer {
                        Ok(answers) => answers.into_iter().next().ok_or(Unanswered::Fault),
                        Err(error) => Err(unanswered::<S>(&error)),
                    });
                }
            }
            Err(error) => {
                let unanswered = unanswered::<S>(&error);
                for reply in replies {
                    let _ = reply.send(Err(unanswered));
                }
            }
        }
    }

    /// A connection on which something failed is not kept.
    async fn ask(&mut self, questions: &[S::Question]) -> Result<Vec<S::Answer>, StoreError> {
        let Self { statement, store, kept, tally } = self;
        let asking = async {
            let Kept { mut connection, since, statements } = match kept.take() {
                Some(kept) if !store.is_outdated(kept.since.elapsed()) => kept,
                Some(_) | None => Kept { connection: store.take().await?, since: Instant::now(), statements: 0 },
            };
            let begun = Instant::now();
            let answers = statement.ask(&mut connection, questions).await?;
            tally.add(questions.len(), begun.elapsed());
            let statements = statements + 1;
            if connection.is_for_many() && statements < KEEP_STATEMENTS_MAX && store.has_spare_connections() {
                *kept = Some(Kept { connection, since, statements });
            } else {
                connection.finish().await?;
            }
            Ok(answers)
        };
        store.within(asking).await
    }
}

fn unanswered<S: Statement>(error: &StoreError) -> Unanswered {
    if error.is_retryable() {
        tracing::debug!(statement = S::NAME, error = error as &dyn std::error::Error, "the database is not available");
        Unanswered::Unavailable
    } else {
        tracing::error!(statement = S::NAME, error = error as &dyn std::error::Error, "a statement failed");
        Unanswered::Fault
    }
}
