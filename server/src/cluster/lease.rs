//! The node's place among others: a lease in the database, by the database's clock.
//!
//! A node that cannot renew it gives up its links before others may take them to be gone. Only when every other node says that it
//! does not reach the database either are they kept: then nobody can take over anything.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::Relay;
use crate::config::Config;
use crate::file;
use crate::store::node::{
    Joined, NewNode, Peer, Renewed, node_expire, node_join, node_leave, node_list_others, node_renew,
};
use crate::store::{Store, StoreError};

/// How many times a lease is renewed while one lasts. One renewal's time before its end the node gives up what it has.
const RENEWALS: u32 = 5;
/// What part of a lease other nodes have for saying whether they reach the database.
const ASKS: u32 = 10;
/// Before the name is asked for again that another node has.
const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// For giving the lease back when the node stops.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// What tells this data directory from another one of the same name.
const INSTANCE: &str = "node.id";

/// Whether this node may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has its place.
    Held,
    /// It has not reached the database for so long that others may have taken over.
    Fenced,
}

/// What one attempt to renew came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// For another while.
    Yes,
    /// Again, after others had closed what this node had.
    Again,
    /// Not now. It lasts still, or nobody can take it.
    NotYet,
    /// Too late: what this node has may be somebody else's.
    Fenced,
    /// Another life of this node has it, for good.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Lease {
    node: NewNode,
    store: Store,
    relay: Option<Relay>,
    standing: watch::Sender<Standing>,
    others: ArcSwap<Vec<Peer>>,
    started: Instant,
    /// When the last renewal that succeeded was asked for, in milliseconds from the start.
    renewed_ms: AtomicU64,
}

impl Lease {
    /// Takes the node's name, and waits while another data directory has it.
    pub(crate) async fn take(config: &Config, store: Store, relay: Option<Relay>) -> anyhow::Result<Arc<Self>> {
        let node = NewNode {
            name: config.node.clone(),
            instance: instance(&config.data_dir)?,
            life: Uuid::new_v4(),
            version: env!("CARGO_PKG_VERSION"),
            address: config.cluster.nats.is_some().then(|| address(config)),
            lease: config.cluster.lease_seconds.duration(),
        };
        let started = Instant::now();
        let mut told = None;
        let asked_at = loop {
            let asked_at = Instant::now();
            match store.within(async { node_join(&mut *store.connection().await?, &node).await }).await {
                Ok(Joined::Yes) => break asked_at,
                Ok(Joined::Taken { until }) => wait_for_name(&node.name, until, &mut told),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot take the node's place yet");
                }
                Err(error) => return Err(error).context("cannot take the node's place"),
            }
            sleep(JOIN_AGAIN_AFTER).await;
        };
        let renewed_ms = AtomicU64::new(since_ms(started, asked_at));
        let standing = watch::Sender::new(Standing::Held);
        Ok(Arc::new(Self { node, store, relay, standing, others: ArcSwap::default(), started, renewed_ms }))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The other nodes, as of the last renewal.
    pub(crate) fn others(&self) -> Arc<Vec<Peer>> {
        self.others.load_full()
    }

    /// One of the other nodes. One that is not known yet may have come since the last renewal.
    pub(crate) async fn other(&self, is_it: impl Fn(&str) -> bool) -> Option<Peer> {
        let among = |others: &[Peer]| others.iter().find(|other| is_it(&other.name)).cloned();
        if let Some(other) = among(&self.others()) {
            return Some(other);
        }
        let listed = async { node_list_others(&mut *self.store.connection().await?, &self.node.name).await };
        let others = self.store.within(listed).await.ok()?;
        let other = among(&others);
        self.others.store(Arc::new(others));
        other
    }

    /// How long to wait before the next attempt to renew: to the next turn, or to the moment of giving up.
    pub(crate) fn pause(&self) -> Duration {
        let turn = self.node.lease / RENEWALS;
        match self.before_fence() {
            Some(left) => left.min(turn),
            None => turn,
        }
    }

    /// How long it can be waited still before it has to be decided whether others could take over.
    fn before_fence(&self) -> Option<Duration> {
        (self.node.lease / RENEWALS * (RENEWALS - 1)).checked_sub(self.since_renewed()).filter(|left| !left.is_zero())
    }

    /// Renews the lease, or finds out that it cannot be.
    pub(crate) async fn renew(&self) -> Kept {
        let asked_at = Instant::now();
        let renewal = async { node_renew(&mut *self.store.connection().await?, &self.node).await };
        match timeout(self.pause(), renewal).await {
            Ok(Ok(Some(renewed))) => self.renewed(asked_at, renewed),
            Ok(Ok(None)) => {
                self.standing.send_replace(Standing::Fenced);
                Kept::Lost
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot renew the node's lease");
                self.hold_or_fence().await
            }
            Err(_) => self.hold_or_fence().await,
        }
    }

    fn renewed(&self, asked_at: Instant, renewed: Renewed) -> Kept {
        self.renewed_ms.store(since_ms(self.started, asked_at), Ordering::Relaxed);
        self.others.store(Arc::new(renewed.others));
        let was_fenced = self.standing.send_replace(Standing::Held) == Standing::Fenced;
        if was_fenced {
            tracing::info!("the node has its place again");
        }
        if renewed.was_gone { Kept::Again } else { Kept::Yes }
    }

    /// Before the lease ends: whether others could take over.
    async fn hold_or_fence(&self) -> Kept {
        if self.before_fence().is_some() {
            return Kept::NotYet;
        }
        let Some(relay) = &self.relay else { return Kept::NotYet };
        if relay.are_all_cut_off(&self.others(), self.node.lease / ASKS).await {
            return Kept::NotYet;
        }
        self.standing.send_replace(Standing::Fenced);
        Kept::Fenced
    }

    /// Says which other nodes are gone.
    pub(crate) async fn expire(&self) -> Result<Vec<String>, StoreError> {
        node_expire(&mut *self.store.connection().await?, &self.node).await
    }

    /// Whether this node has reached the database lately.
    fn reaches_database(&self) -> bool {
        self.since_renewed() < self.node.lease / RENEWALS * 2
    }

    fn since_renewed(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.renewed_ms.load(Ordering::Relaxed)))
    }

    /// Tells other nodes that ask whether this one reaches the database.
    pub(crate) async fn answer(&self) {
        match &self.relay {
            Some(relay) => relay.answer(&self.node.name, || self.reaches_database()).await,
            None => std::future::pending().await,
        }
    }

    /// Gives the lease back. What cannot be written now, ends by itself.
    pub(crate) async fn leave(&self) {
        let left = async { node_leave(&mut *self.store.connection().await?, &self.node).await };
        if !matches!(timeout(LEAVE_WITHIN, left).await, Ok(Ok(()))) {
            tracing::warn!("the node's lease is not given back: it ends by itself");
        }
    }
}

/// What other nodes dial.
fn address(config: &Config) -> String {
    config.cluster.address.clone().unwrap_or_else(|| format!("{}:{}", config.node, config.cluster.listen.port()))
}

/// Once a lease: somebody may have given two machines one name.
fn wait_for_name(name: &str, until: OffsetDateTime, told: &mut Option<OffsetDateTime>) {
    if *told != Some(until) {
        tracing::warn!(node = name, %until, "another machine serves under this node's name: waiting for its lease to end");
        *told = Some(until);
    }
}

/// The identity of the data directory, made at its first use.
fn instance(data_dir: &Path) -> anyhow::Result<Uuid> {
    let path = data_dir.join(INSTANCE);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} does not hold a UUID", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            file::replace(&path, id.to_string().as_bytes(), file::PUBLIC)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn since_ms(started: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(started).as_millis()).unwrap_or(u64::MAX)
}
