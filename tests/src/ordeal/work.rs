//! Work for the cluster: commands at a steady rate, under grants that end and are taken back meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Answer, Api};
use crate::chaos::seed::Seed;
use crate::history::{ASKED, Asked, Book, now_us};

/// Who asks at the same time. Each waits for its answer.
const ASKING: usize = 64;
/// Who calls gives up on a node that does not answer, and comes again, to another one.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const ATTEMPTS_MAX: usize = 8;
const PAUSE: Duration = Duration::from_millis(300);
/// Grants at the same time.
const GRANTS: usize = 6;
const GRANT_SECONDS: (u64, u64) = (6, 40);
/// A grant that is over is tried for so long.
const TRIED_AFTER: Duration = Duration::from_secs(2);
/// One command of so many is of each sort.
const RESTARTS_OF: usize = 5;
const QUEUED_OF: usize = 3;
const QUEUE_SECONDS: (u64, u64) = (5, 30);

/// Who asks, for what, and where.
#[derive(Clone, Debug)]
pub struct Work {
    /// Of the people port, before all nodes.
    pub people: SocketAddr,
    pub ca_file: PathBuf,
    pub operator_token: String,
    pub operator_id: String,
    pub tenant_token: String,
    /// The label that all devices have.
    pub selector: Value,
    pub devices: Vec<Uuid>,
    pub per_second: u32,
    pub seed: u64,
}

/// How often calls were answered how.
pub type Answers = BTreeMap<String, usize>;

/// Grants that commands are asked for under.
type Grants = Arc<Mutex<Vec<(String, Instant)>>>;

impl Work {
    /// Asks until `stop`. Gives back how the API answered.
    pub async fn run(self, directory: &Path, stop: CancellationToken) -> anyhow::Result<Answers> {
        let book = Arc::new(Book::open(&directory.join(ASKED))?);
        let (grants, answers) = (Grants::default(), Arc::<Mutex<Answers>>::default());
        let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
        for number in 0..GRANTS {
            tasks.spawn(self.clone().grant(number as u64, Arc::clone(&grants), Arc::clone(&answers), stop.clone()));
        }
        let (requests, waiting) = mpsc::channel(ASKING);
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        for _ in 0..ASKING {
            let (waiting, book, answers) = (Arc::clone(&waiting), Arc::clone(&book), Arc::clone(&answers));
            tasks.spawn(self.clone().ask(waiting, book, answers));
        }
        self.draw(&grants, &requests, &stop).await;
        drop(requests);
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Draws what is to be asked for, at its rate.
    async fn draw(&self, grants: &Grants, requests: &mpsc::Sender<Request>, stop: &CancellationToken) {
        let mut seed = Seed::new(self.seed);
        let mut ticks = interval(Duration::from_secs(1) / self.per_second.max(1));
        // What could not be asked for meanwhile is made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let Some(grant) = some_grant(grants, &mut seed) else { continue };
            let device = self.devices[seed.one_of(self.devices.len())];
            let (kind, arguments) = if seed.one_of(RESTARTS_OF) == 0 {
                ("service.restart", json!({ "service": "product" }))
            } else {
                ("metrics.collect", json!({}))
            };
            let mut body = json!({ "kind": kind, "arguments": arguments, "reason": "an ordeal", "grant_id": grant });
            if seed.one_of(QUEUED_OF) == 0 {
                body["queue_for_seconds"] = json!(seed.within(QUEUE_SECONDS.0, QUEUE_SECONDS.1));
            }
            if requests.send(Request { device, body }).await.is_err() {
                return;
            }
        }
    }

    /// Asks for commands, one after another. Each is asked for until there is an answer, under one key.
    async fn ask(
        self,
        waiting: Arc<tokio::sync::Mutex<mpsc::Receiver<Request>>>,
        book: Arc<Book>,
        answers: Arc<Mutex<Answers>>,
    ) -> anyhow::Result<()> {
        let mut caller = Caller::new(&self, self.operator_token.clone())?;
        loop {
            let request = waiting.lock().await.recv().await;
            let Some(Request { device, body }) = request else { return Ok(()) };
            let key = Uuid::new_v4().to_string();
            let path = format!("/devices/{device}/commands");
            let answer = caller.insist(&path, &[("Idempotency-Key", &key)], &body).await?;
            if let Some(answer) = &answer
                && answer.status.is_success()
                && let Some(command) = answer.body["id"].as_str().and_then(|id| id.parse().ok())
            {
                book.write(&Asked { at_us: now_us(), command, device })?;
            }
            count(&answers, "command", answer.as_ref());
        }
    }

    /// Makes grants one after another. Half of them are taken back.
    async fn grant(
        self,
        number: u64,
        grants: Grants,
        answers: Arc<Mutex<Answers>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut seed = Seed::new(self.seed ^ (number + 1).wrapping_mul(0x9e6c_63d0_876a_3f6b));
        let mut caller = Caller::new(&self, self.tenant_token.clone())?;
        while !stop.is_cancelled() {
            let seconds = seed.within(GRANT_SECONDS.0, GRANT_SECONDS.1);
            let body = json!({
                "reason": "an ordeal", "scopes": ["metrics:read", "service:restart"], "operator_ids": [self.operator_id],
                "selector": self.selector, "duration_seconds": seconds,
            });
            let made = caller.insist("/grants", &[], &body).await?;
            count(&answers, "grant", made.as_ref());
            let Some(id) = made.and_then(|made| Some(made.body["id"].as_str()?.to_owned())) else { continue };
            let is_revoked = seed.one_of(2) == 0;
            let lasts = if is_revoked { seed.within(1_000, seconds * 1_000) } else { seconds * 1_000 };
            let over = Instant::now() + Duration::from_millis(lasts);
            lock(&grants).push((id.clone(), over + TRIED_AFTER));
            tokio::select! {
                () = sleep_until(over) => {}
                () = stop.cancelled() => return Ok(()),
            }
            if is_revoked {
                let revoked = caller.insist(&format!("/grants/{id}/revoke"), &[], &json!({})).await?;
                count(&answers, "revocation", revoked.as_ref());
            }
        }
        Ok(())
    }
}

/// A command to be asked for.
struct Request {
    device: Uuid,
    body: Value,
}

/// Somebody who does not give up at the first node that says nothing.
struct Caller {
    api: Api,
    url: String,
    ca_file: PathBuf,
}

impl Caller {
    fn new(work: &Work, token: String) -> anyhow::Result<Self> {
        let url = format!("https://{}", work.people);
        Ok(Self { api: Api::new(&url, &work.ca_file, &token)?, url, ca_file: work.ca_file.clone() })
    }

    /// Calls until there is an answer that is not about the server's own trouble. `None`: there was none.
    async fn insist(&mut self, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<Option<Answer>> {
        for _ in 0..ATTEMPTS_MAX {
            match timeout(CALL_LIMIT, self.api.call(Method::POST, path, headers, Some(body))).await {
                Ok(Ok(answer)) if is_final(answer.status) => return Ok(Some(answer)),
                Ok(Ok(_)) => {}
                // The connection may lead to a node that stands still.
                Ok(Err(_)) | Err(_) => self.api = Api::new(&self.url, &self.ca_file, self.api.token())?,
            }
            sleep(PAUSE).await;
        }
        Ok(None)
    }
}

fn is_final(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS
}

fn some_grant(grants: &Grants, seed: &mut Seed) -> Option<String> {
    let mut grants = lock(grants);
    grants.retain(|(_, until)| *until > Instant::now());
    let place = seed.one_of(grants.len());
    grants.get(place).map(|(id, _)| id.clone())
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(answers: &Mutex<Answers>, what: &str, answer: Option<&Answer>) {
    let how = answer
        .map_or_else(|| "no answer".to_owned(), |answer| format!("{} {}", answer.status.as_u16(), answer.problem()));
    *lock(answers).entry(format!("{what}: {}", how.trim())).or_default() += 1;
}
