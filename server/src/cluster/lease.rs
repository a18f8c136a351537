//! The node's place among others: a lease in the database, which others watch for as long as it lasts.
//!
//! A node that cannot renew it gives up its links before others may take them to be gone. Only when every other node says that it
//! does not reach the database either are they kept: then nobody can take over anything.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::Relay;
use super::tenure::{Act, Renewal, Standing, Tenure};
use crate::admission::Admission;
use crate::config::Config;
use crate::file;
use crate::model::status::Condition;
use crate::store::node::{
    Joined, NewNode, Peer, Renewed, node_drain, node_expire, node_join, node_leave, node_list_others, node_renew,
    node_tell,
};
use crate::store::{Store, StoreError, single};

/// Before the name is asked for again that another node has.
pub(crate) const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// For giving the lease back when the node stops.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// What tells this data directory from another one of the same name.
const INSTANCE: &str = "node.id";

#[derive(Debug)]
pub(crate) struct Lease {
    node: NewNode,
    store: Store,
    relay: Option<Relay>,
    standing: watch::Sender<Standing>,
    others: ArcSwap<Vec<Peer>>,
    /// What this node tells others that it can take.
    admission: OnceLock<Arc<Admission>>,
    tenure: Mutex<Tenure>,
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
        let mut told = None;
        let (asked_at, others) = loop {
            let asked_at = Instant::now();
            match store.within(join(&store, &node)).await {
                Ok((Joined::Yes, others)) => break (asked_at, others),
                Ok((Joined::Taken { until }, _)) => wait_for_name(&node.name, until, &mut told),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot take the node's place yet");
                }
                Err(error) => return Err(error).context("cannot take the node's place"),
            }
            sleep(JOIN_AGAIN_AFTER).await;
        };
        let tenure = Tenure::new(node.lease, asked_at);
        let standing = watch::Sender::new(tenure.standing());
        let (others, admission, tenure) = (ArcSwap::from_pointee(others), OnceLock::new(), Mutex::new(tenure));
        Ok(Arc::new(Self { node, store, relay, standing, others, admission, tenure }))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// From now on other nodes are told what this one can take. Once.
    pub(crate) fn offer(&self, admission: Arc<Admission>) {
        let _ = self.admission.set(admission);
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
        let listed = async { single!(self.store, |connection| node_list_others(connection, &self.node.name)) };
        let others = self.store.within(listed).await.ok()?;
        let other = among(&others);
        self.others.store(Arc::new(others));
        other
    }

    /// How long to wait before the next attempt to renew.
    pub(crate) fn pause(&self) -> Duration {
        self.tenure().pause(Instant::now())
    }

    /// Renews the lease, or finds out that it cannot be. What is to be done then is not [`Act::Ask`]: that is done here.
    pub(crate) async fn renew(&self) -> Act {
        let asked_at = Instant::now();
        let answer = self.attempt().await;
        let renewal = match &answer {
            Some(Some(renewed)) => Renewal::Done { asked_at, gone_at: renewed.gone_at, others: &renewed.others },
            Some(None) => Renewal::Refused,
            None => Renewal::Unanswered,
        };
        let mut act = self.tenure().renewal(renewal, Instant::now());
        if let Some(Some(renewed)) = answer {
            self.others.store(Arc::new(renewed.others));
        }
        if act == Act::Ask {
            let asked_at = Instant::now();
            let are_all_cut_off = self.are_all_cut_off().await;
            act = self.tenure().asked(are_all_cut_off, asked_at);
        }
        self.tell();
        act
    }

    /// `None`: no answer. `Some(None)`: another life has the name.
    async fn attempt(&self) -> Option<Option<Renewed>> {
        let (within, missed_at) = {
            let tenure = self.tenure();
            (tenure.attempt_within(Instant::now()), tenure.missed_at())
        };
        let offer = self.admission.get().map(|admission| admission.offer());
        let renewal = async { single!(self.store, |connection| node_renew(connection, &self.node, offer, missed_at)) };
        match timeout(within, renewal).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot renew the node's lease");
                None
            }
            Err(_) => None,
        }
    }

    /// Whether nobody could take over. A node alone has nobody who could.
    async fn are_all_cut_off(&self) -> bool {
        let Some(relay) = &self.relay else { return true };
        let within = self.tenure().ask_within();
        relay.are_all_cut_off(&self.others(), within).await
    }

    fn tell(&self) {
        let standing = self.tenure().standing();
        let before = self.standing.send_replace(standing);
        if (before, standing) == (Standing::Fenced, Standing::Held) {
            tracing::info!("the node has its place again");
        }
    }

    /// Whether there is a way to other nodes. None: there are none.
    pub(crate) fn is_bus_up(&self) -> Option<bool> {
        self.relay.as_ref().map(Relay::is_connected)
    }

    /// Tells whoever asks for nodes how this one is.
    pub(crate) async fn tell_condition(&self, condition: Condition) -> Result<(), StoreError> {
        single!(self.store, |connection| node_tell(connection, &self.node, condition))
    }

    /// Says which other nodes are gone.
    pub(crate) async fn expire(&self) -> Result<Vec<String>, StoreError> {
        let suspects = self.tenure().suspects(Instant::now());
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        single!(self.store, |connection| node_expire(connection, &self.node, &suspects))
    }

    /// Tells other nodes that ask whether this one reaches the database.
    pub(crate) async fn answer(&self) {
        match &self.relay {
            Some(relay) => relay.answer(&self.node.name, || self.tenure().reaches_database(Instant::now())).await,
            None => std::future::pending().await,
        }
    }

    /// Says in the database that this node sends its devices away. What cannot be written now, others do not learn: they share the
    /// devices of a node that they think stays, and those go on.
    pub(crate) async fn announce_drain(&self, within: Duration) {
        let said = async { single!(self.store, |connection| node_drain(connection, &self.node.name, within)) };
        if !matches!(timeout(LEAVE_WITHIN, said).await, Ok(Ok(Some(_)))) {
            tracing::warn!("other nodes are not told that this one is drained");
        }
    }

    /// Gives the lease back. What cannot be written now, ends by itself.
    pub(crate) async fn leave(&self) {
        let left = async { single!(self.store, |connection| node_leave(connection, &self.node)) };
        if !matches!(timeout(LEAVE_WITHIN, left).await, Ok(Ok(()))) {
            tracing::warn!("the node's lease is not given back: it ends by itself");
        }
    }

    fn tenure(&self) -> MutexGuard<'_, Tenure> {
        // Consistent after each statement.
        self.tenure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node that does not know the others could not ask them whether they reach the database.
async fn join(store: &Store, node: &NewNode) -> Result<(Joined, Vec<Peer>), StoreError> {
    let joined = single!(store, |connection| node_join(connection, node))?;
    let others = single!(store, |connection| node_list_others(connection, &node.name))?;
    Ok((joined, others))
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
