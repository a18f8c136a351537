//! Isolation, proven all the time: two devices of the node's own try what must not be possible, and what must.
//!
//! ```text
//! probe ── device port ── tunnel ── driver's wall ── TUN ── kernel's wall ── node: its ports, the listener
//!   ▲                                  ▲    ▲                    │
//!   └──────────── lookout ─────────────┘    └── inject           └── forwards? ── stand-in of the Internet and of another node
//! ```
//!
//! The probes are clients like any other: they dial the node's own device port, with certificates of the fleet's authority, and
//! have rows in the database, of a tenant that nobody is shown. Each attempt of the list in `attempt` goes through their tunnels,
//! past both walls, and straight into the kernel, past its wall alone. What carries the round's mark and is seen where it must not
//! be, or is answered, is a leak: the node is not ready, and has no tunnels but the probes' own, until a round of every port is
//! proven again.

mod attempt;
mod credential;
mod lookout;
mod mark;
mod node;
mod opening;
mod outside;
mod packet;
mod probe;
mod round;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_certs::{Authority, TrustDomain};
use cloudlink_proto::openvpn::ServerWrapping;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Isolation, State};
use crate::clock;
use crate::config;
use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::new_id;
use crate::model::proof::{Outcome, Trigger};
use crate::proxy::Proxies;
use crate::store::audit::audit_append;
use crate::store::proof::{NewProof, proof_insert};
use crate::store::{Store, StoreError, Visibility, single};
use crate::tunnel::plane::Plane;
use credential::Issuer;
use lookout::{Lookout, Place};
use node::Listener;
use outside::{OtherNode, Outside};
use probe::Probe;
use round::{PARTS, Scope, Stage, Verdict};

/// Who asks for a round at the same time. Others are told to come again.
const ASKS_MAX: usize = 16;
/// Rounds that wait for the database. Beyond that the oldest proven ones are lost, and what is not proven last.
const PENDING_MAX: usize = 256;
/// How long until the next round when one was not proven, unless the interval is shorter.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Between two rounds that drifts make, however many there are.
const DRIFTS_APART: Duration = Duration::from_secs(3);

/// Asks for rounds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Prover {
    asks: mpsc::Sender<Ask>,
}

/// Somebody who wants a round.
#[derive(Debug)]
struct Ask {
    id: Uuid,
    all_ports: bool,
    answer: oneshot::Sender<NewProof>,
}

/// Where rounds are asked for.
#[derive(Debug)]
pub(crate) struct Asks(mpsc::Receiver<Ask>);

impl Prover {
    pub(crate) fn new() -> (Self, Asks) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        (Self { asks }, Asks(asked))
    }

    /// Asks for a round, and says which it will be. `None`: too many others ask, or the node stops.
    pub(crate) fn ask(&self, all_ports: bool) -> Option<(Uuid, oneshot::Receiver<NewProof>)> {
        let (answer, answered) = oneshot::channel();
        let id = new_id();
        self.asks.try_send(Ask { id, all_ports, answer }).ok()?;
        Some((id, answered))
    }
}

/// What rounds are made with.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) node: String,
    pub(crate) config: &'a config::Isolation,
    pub(crate) tunnel: &'a config::Tunnel,
    /// Where the device port listens.
    pub(crate) port: SocketAddr,
    /// The load balancers in front of it. The node's own address may count as one.
    pub(crate) proxies: Proxies,
    pub(crate) server_name: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) authority: Arc<Authority>,
    pub(crate) wrapping: ServerWrapping,
    pub(crate) plane: Arc<Plane>,
    /// The number of the node's own slice, and the network of all.
    pub(crate) slice_number: u32,
    pub(crate) isolation: Arc<Isolation>,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
}

/// Makes rounds.
#[derive(Debug)]
pub(crate) struct Proving {
    node: String,
    interval: Duration,
    interface: String,
    link_port: u16,
    other_node: Option<OtherNode>,
    plane: Arc<Plane>,
    isolation: Arc<Isolation>,
    store: Store,
    metrics: Arc<Metrics>,
    lookout: Arc<Lookout>,
    probes: [Probe; 2],
    outside: Option<Outside>,
    listener: Option<Listener>,
    state: watch::Receiver<State>,
    /// The next part of all ports.
    part: u32,
    is_leaking: bool,
    pending: VecDeque<Record>,
}

/// A round that is to be stored, with what it changed.
#[derive(Debug)]
struct Record {
    proof: NewProof,
    action: Option<&'static str>,
}

impl Proving {
    /// Starts the probes. To be called in a runtime.
    pub(crate) fn start(parts: Parts<'_>) -> Self {
        let Parts { node, config, tunnel, port, proxies, plane, isolation, store, metrics, slice_number, .. } = parts;
        let lookout = Arc::new(Lookout::default());
        // A leak of the node's life before goes on until every port was tried.
        let is_leaking = isolation.state() == State::Leaking;
        let issuer = Arc::new(Issuer {
            node: node.clone(),
            trust_domain: parts.trust_domain,
            authority: parts.authority,
            store: store.clone(),
            wrapping: parts.wrapping,
            server_name: parts.server_name,
        });
        let witness = Arc::clone(&lookout);
        plane.set_witness(move |packet| {
            witness.see(Place::Wall, packet);
        });
        let other_node = OtherNode::find(tunnel.pool_ipv4, plane.slice(), slice_number);
        let probe = |number| Probe::start(number, Arc::clone(&issuer), port, proxies.clone(), Arc::clone(&lookout));
        Self {
            node,
            interval: config.proof_interval_seconds.duration(),
            interface: tunnel.interface.as_str().to_owned(),
            link_port: u16::try_from(tunnel.link_port).expect("the configuration allows ports only"),
            other_node,
            state: isolation.subscribe(),
            probes: [probe(0), probe(1)],
            plane,
            isolation,
            store,
            metrics,
            lookout,
            outside: None,
            listener: None,
            part: 0,
            is_leaking,
            pending: VecDeque::new(),
        }
    }

    /// Makes rounds until the soft stop.
    pub(crate) async fn run(mut self, asks: Asks, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.soft.cancelled() => {}
            () = Box::pin(self.go_on(asks)) => {}
        }
    }

    async fn go_on(&mut self, Asks(mut asks): Asks) {
        let (mut trigger, mut asked) = (Trigger::Start, None);
        loop {
            let begun = Instant::now();
            let proof = self.round(trigger, asked.as_ref()).await;
            let pause = if proof.outcome == Outcome::Proven { self.interval } else { AGAIN_AFTER.min(self.interval) };
            self.store().await;
            if let Some(Ask { answer, .. }) = asked.take() {
                // Whoever asked may not wait any more.
                let _ = answer.send(proof);
            }
            (trigger, asked) = self.next(&mut asks, begun, pause).await;
        }
    }

    /// Waits for a reason for the next round.
    async fn next(
        &mut self,
        asks: &mut mpsc::Receiver<Ask>,
        begun: Instant,
        pause: Duration,
    ) -> (Trigger, Option<Ask>) {
        let mut due = (begun + pause, Trigger::Timer);
        loop {
            tokio::select! {
                () = sleep_until(due.0) => return (due.1, None),
                Ok(()) = self.state.changed() => {
                    if *self.state.borrow_and_update() == State::Enforced {
                        let soon = Instant::now().max(begun + DRIFTS_APART);
                        if soon < due.0 {
                            due = (soon, Trigger::Drift);
                        }
                    }
                }
                Some(ask) = asks.recv() => return (Trigger::Demand, Some(ask)),
            }
        }
    }

    /// Makes a round, and draws the consequences.
    async fn round(&mut self, trigger: Trigger, ask: Option<&Ask>) -> NewProof {
        let all_ports = self.is_leaking || ask.is_some_and(|ask| ask.all_ports);
        let scope = if all_ports { Scope::All } else { Scope::Part(self.part) };
        self.part = (self.part + 1) % PARTS;
        let started_at = stored_time();
        let verdict = self.attempt(scope).await;
        let action = self.conclude(&verdict, scope);
        // What this round has changed is no drift.
        self.state.borrow_and_update();
        let proof = NewProof {
            id: ask.map_or_else(new_id, |ask| ask.id),
            node: self.node.clone(),
            trigger,
            started_at,
            finished_at: stored_time(),
            outcome: verdict.outcome,
            policy_hash: self.isolation.policy_hash(),
            attempts: i32::try_from(verdict.attempts).unwrap_or(i32::MAX),
            results: json!(verdict.results),
        };
        self.keep(Record { proof: proof.clone(), action });
        proof
    }

    async fn attempt(&mut self, scope: Scope) -> Verdict {
        if self.outside.as_ref().is_some_and(|outside| !outside.is_there()) {
            self.outside = None;
        }
        if self.outside.is_none() {
            match Outside::open(&self.interface, self.other_node, &self.lookout) {
                Ok(outside) => self.outside = Some(outside),
                Err(error) => {
                    return Verdict::impossible(format!("the stand-in of the Internet cannot be made: {error}"));
                }
            }
        }
        if self.listener.is_none() {
            match Listener::open(&self.interface, &self.lookout) {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => return Verdict::impossible(format!("the listener cannot be made: {error}")),
            }
        }
        let (Some(outside), Some(listener)) = (&self.outside, &self.listener) else {
            return Verdict::impossible("there is no stand-in".to_owned());
        };
        let stage = Stage {
            plane: &self.plane,
            isolation: &self.isolation,
            lookout: &self.lookout,
            probes: &self.probes,
            outside,
            listener,
            other_node: self.other_node,
            link_port: self.link_port,
        };
        round::run(&stage, scope).await
    }

    /// What follows from a round. Gives the word for the audit log, if it changed something.
    fn conclude(&mut self, verdict: &Verdict, scope: Scope) -> Option<&'static str> {
        self.metrics.isolation_proofs.with_label_values(&[verdict.outcome.name()]).inc();
        match verdict.outcome {
            Outcome::Proven => {
                self.metrics.isolation_proven_timestamp_seconds.set(clock::now().unix_timestamp());
                tracing::debug!(attempts = verdict.attempts, "isolation is proven");
                if self.is_leaking && scope == Scope::All {
                    self.is_leaking = false;
                    self.isolation.leaked(None);
                    return Some("isolation.leak_ended");
                }
                None
            }
            Outcome::Failed => {
                tracing::warn!(wrong = ?verdict.wrong(), "isolation could not be proven");
                None
            }
            Outcome::Leak => {
                self.metrics.isolation_leaks.inc();
                tracing::error!(wrong = ?verdict.wrong(), "a device reached what it must not");
                let is_new = !std::mem::replace(&mut self.is_leaking, true);
                self.isolation.leaked(Some(verdict.wrong().join("; ")));
                is_new.then_some("isolation.leak")
            }
        }
    }

    fn keep(&mut self, record: Record) {
        if self.pending.len() >= PENDING_MAX {
            let lost = self.pending.iter().position(|record| record.proof.outcome == Outcome::Proven).unwrap_or(0);
            self.pending.remove(lost);
            tracing::warn!("a result of the proof of isolation is lost: the database was away for too long");
        }
        self.pending.push_back(record);
    }

    /// Stores what waits. Without the database it goes on waiting.
    async fn store(&mut self) {
        while let Some(record) = self.pending.front() {
            match self.store.within(insert(&self.store, record)).await {
                Ok(()) => {
                    self.pending.pop_front();
                }
                Err(error) => return self.note(&error, "cannot store the proof of isolation"),
            }
        }
    }

    fn note(&self, error: &StoreError, message: &'static str) {
        self.metrics.task_failures.with_label_values(&["proof"]).inc();
        tracing::warn!(error = error as &dyn std::error::Error, "{message}");
    }
}

/// As exact as the database keeps it.
fn stored_time() -> OffsetDateTime {
    let now = clock::now();
    now.replace_nanosecond(now.microsecond() * 1_000).unwrap_or(now)
}

async fn insert(store: &Store, record: &Record) -> Result<(), StoreError> {
    let Record { proof, action } = record;
    let Some(action) = action else {
        return single!(store, |connection| proof_insert(connection, proof));
    };
    let mut transaction = store.begin(Visibility::All).await?;
    proof_insert(&mut transaction, proof).await?;
    let actor = Actor::Server { name: proof.node.clone() };
    let subject = Subject::new("proof", proof.id);
    let wrong: Vec<_> = proof.results.as_array().into_iter().flatten().filter(|result| result["wrong"] != 0).collect();
    let details = json!({"node": proof.node, "wrong": wrong});
    audit_append(&mut transaction, PLATFORM, &actor, action, subject, details).await?;
    store.commit(transaction).await
}
