//! Isolation: the kernel's rules around the tunnels' interface, which are in force before the interface is there, are watched for
//! as long as the node lives, and are what tunnels depend on: while they are not as declared, no new tunnel is taken in.
//!
//! The driver (`tunnel::plane`) keeps to the same rules by itself. Each of the two is enough alone.

mod compare;
mod drift;
mod element;
mod event;
mod kernel;
pub(crate) mod policy;
pub(crate) mod proof;
pub mod report;
pub(crate) mod setting;
#[cfg(test)]
mod tests;
mod watch;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{self, Mutex};
use tokio::time::Instant;

pub(crate) use drift::{Drift, Kind as DriftKind};
pub use kernel::KernelError;

use crate::config::Config;
use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;
use crate::store::proof::proof_is_leaking;
use crate::store::{Store, StoreError, single};
use crate::tunnel::slice::{Addresses, Slice};
use drift::{Recorder, Recording, recorder};
use element::{Element, Elements, OPENINGS_MAX, lifetime_seconds};
use kernel::Kernel;
use policy::{FAMILY, Policy, TABLE};

/// How long the tunnels' interface may take to go, at the end.
const INTERFACE_GONE_WITHIN: Duration = Duration::from_secs(2);
/// What is declared, for whoever looks from outside of the server.
const DECLARED_FILE: &str = "isolation.json";
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How sure it is that nothing passes that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// What is declared is in force.
    Enforced,
    /// It is not, and is being put right: no new tunnel meanwhile.
    Wrong,
    /// It cannot be put right: no tunnel at all.
    Unrepairable,
    /// It is in force, and something got through nevertheless: no tunnel at all.
    Leaking,
}

impl State {
    /// Whether the tunnels that are there must end.
    pub(crate) fn cuts_tunnels(self) -> bool {
        match self {
            Self::Enforced | Self::Wrong => false,
            Self::Unrepairable | Self::Leaking => true,
        }
    }

    /// A fixed name, for the readiness report and the log.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Wrong => "wrong",
            Self::Unrepairable => "unrepairable",
            Self::Leaking => "leaking",
        }
    }
}

/// Why isolation is not as it was to be.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    #[error("the rules that isolate tunnels cannot be set")]
    Kernel(#[from] KernelError),
    #[error(
        "another node on this host isolates its tunnels ({interface}) by the same table: each node takes a network namespace or a \
         host of its own"
    )]
    Another { interface: String },
    #[error("cannot write {path}")]
    File { path: String, source: io::Error },
    #[error("an opening lasts less than a second")]
    Over,
    #[error("setting an opening took so long that it would have lasted too long")]
    Late,
    #[error("{OPENINGS_MAX} openings at once are the most that a node has")]
    Full,
    #[error("cannot look whether isolation was proven before")]
    Store(#[from] StoreError),
}

/// The rules of this node. Shared by everything that depends on them or changes what is open.
pub(crate) struct Isolation {
    policy: Policy,
    /// `None` in tests that have no kernel to themselves.
    kernel: Option<Kernel>,
    /// Held during each call, so that there is one at a time, and nobody sees what is half done.
    elements: Mutex<Elements>,
    standing: StdMutex<Standing>,
    metrics: Arc<Metrics>,
    drifts: Option<(Recorder, StdMutex<Option<Recording>>)>,
    /// Packets that the proof is about to give to the kernel around the driver.
    injected: AtomicU64,
    /// How often the rules were found to be otherwise than declared.
    doubts: AtomicU64,
    /// [`DECLARED_FILE`], once it is written.
    file: Option<PathBuf>,
    state: sync::watch::Sender<State>,
}

/// What the state follows from.
#[derive(Debug)]
struct Standing {
    /// Of the rules, as they were last compared.
    rules: State,
    leak: Option<String>,
}

impl Isolation {
    /// Puts the declared rules in force, in place of what an earlier life of this node may have left. To be called before the
    /// tunnels' interface is there: the rules know it by its name.
    pub(crate) async fn enforce(
        config: &Config,
        slice: &Slice,
        store: &Store,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, IsolationError> {
        let kernel = Kernel::find()?;
        kernel.check().await?;
        let own = config.tunnel.interface.as_str();
        refuse_another(&kernel, own).await?;
        compare::forget_earlier(&kernel).await?;
        let mut isolation = Self::new(Policy::new(config, slice), Some(kernel), Arc::clone(metrics));
        let (recorder, recording) = recorder(config.node.clone(), store.clone(), Arc::clone(metrics));
        isolation.drifts = Some((recorder, StdMutex::new(Some(recording))));
        let path = config.data_dir.join(DECLARED_FILE);
        isolation.policy.write(&path).map_err(|source| {
            let path = path.display().to_string();
            IsolationError::File { path, source }
        })?;
        isolation.file = Some(path);
        isolation.apply(&*isolation.elements.lock().await).await?;
        isolation.set_rules(State::Enforced);
        if config.isolation.proofs && was_leaking(store, &config.node).await? {
            isolation.leaked(Some("before this start, and nothing was proven since".to_owned()));
        }
        tracing::info!(interface = %isolation.policy.interface, scope = isolation.policy.scope.name(),
            "the kernel's rules isolate the tunnels");
        Ok(Arc::new(isolation))
    }

    /// For tests in which no packet passes.
    #[cfg(test)]
    pub(crate) fn without_kernel(slice: &Slice) -> Arc<Self> {
        let isolation = Self::new(Policy::new(&Config::default(), slice), None, Arc::new(Metrics::new()));
        isolation.set_rules(State::Enforced);
        Arc::new(isolation)
    }

    fn new(policy: Policy, kernel: Option<Kernel>, metrics: Arc<Metrics>) -> Self {
        Self {
            policy,
            kernel,
            elements: Mutex::default(),
            standing: StdMutex::new(Standing { rules: State::Wrong, leak: None }),
            metrics,
            drifts: None,
            injected: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
            file: None,
            state: sync::watch::Sender::new(State::Wrong),
        }
    }

    /// Watches until the hard stop: tunnels live on through the soft one. To be called once the interface is there.
    pub(crate) fn start(self: &Arc<Self>, shutdown: &Shutdown) {
        let stop = shutdown.hard.clone();
        shutdown.spawn_vital("isolation watch", Arc::clone(self).watch(stop.clone()));
        let recording = self
            .drifts
            .as_ref()
            .and_then(|(_, recording)| recording.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(recording) = recording {
            shutdown.spawn_vital("isolation drifts", recording.run(stop));
        }
    }

    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    pub(crate) fn subscribe(&self) -> sync::watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Waits until the rules are in force, or until time is up; says whether they are.
    pub(crate) async fn is_enforced_within(&self, wait: Duration) -> bool {
        let mut state = self.subscribe();
        let enforced = state.wait_for(|state| *state == State::Enforced);
        tokio::time::timeout(wait, enforced).await.is_ok_and(|state| state.is_ok())
    }

    /// Something got through that must not; or, with `None`, everything was tried again and nothing did.
    pub(crate) fn leaked(&self, leak: Option<String>) {
        let mut standing = self.standing();
        if let Some(leak) = &leak {
            tracing::error!(leak, "isolation leaks: tunnels are cut and refused");
        } else if standing.leak.is_some() {
            tracing::info!("isolation was proven again");
        }
        standing.leak = leak;
        self.publish(&standing);
    }

    /// The proof is about to give so many packets to the kernel around the driver: it is no wonder if they are dropped there.
    pub(crate) fn injects(&self, packets: u64) {
        self.injected.fetch_add(packets, Ordering::Relaxed);
    }

    /// How many of these packets nobody gave to the kernel on purpose.
    fn around_driver(&self, packets: u64) -> u64 {
        let expected = self.injected.load(Ordering::Relaxed).min(packets);
        self.injected.fetch_sub(expected, Ordering::Relaxed);
        packets - expected
    }

    fn record(&self, drift: Drift) {
        if let Some((recorder, _)) = &self.drifts {
            recorder.put(drift);
        }
    }

    /// The one port of the node that devices may reach.
    pub(crate) fn link_port(&self) -> u16 {
        self.policy.link_port
    }

    /// SHA-256 of the declared rules.
    pub(crate) fn policy_hash(&self) -> [u8; 32] {
        self.policy.hash()
    }

    /// Opens a port of a device for this node until the deadline, in place of an earlier one. The kernel closes it, on time if
    /// nobody here is left to do so.
    pub(crate) async fn open(
        self: &Arc<Self>,
        device: Addresses,
        port: u16,
        deadline: Instant,
    ) -> Result<(), IsolationError> {
        let isolation = Arc::clone(self);
        whole(async move { isolation.open_now(device, port, deadline).await }).await
    }

    /// Closes it, whether it is open or not.
    pub(crate) async fn close(self: &Arc<Self>, device: Addresses, port: u16) -> Result<(), IsolationError> {
        let isolation = Arc::clone(self);
        whole(async move {
            let mut elements = isolation.elements.lock().await;
            isolation.take(&mut elements, Element::opening(device, port)).await
        })
        .await
    }

    /// Leaves a device its link alone, or ends that.
    pub(crate) async fn set_quarantine(self: &Arc<Self>, device: Addresses, on: bool) -> Result<(), IsolationError> {
        let isolation = Arc::clone(self);
        whole(async move {
            let mut elements = isolation.elements.lock().await;
            let quarantine = Element::quarantine(device);
            if !on {
                return isolation.take(&mut elements, quarantine).await;
            }
            for element in quarantine {
                elements.remember(element, None);
            }
            let commands: Vec<_> = quarantine.iter().map(|element| element.add(None)).collect();
            isolation.call(&commands).await
        })
        .await
    }

    async fn open_now(&self, device: Addresses, port: u16, deadline: Instant) -> Result<(), IsolationError> {
        let mut elements = self.elements.lock().await;
        let opening = Element::opening(device, port);
        elements.expire(Instant::now());
        let Some(seconds) = lifetime_seconds(deadline, Instant::now()) else {
            self.take(&mut elements, opening).await?;
            return Err(IsolationError::Over);
        };
        if elements.is_full() {
            return Err(IsolationError::Full);
        }
        let commands: Vec<_> = opening.iter().flat_map(|element| element.put(Some(seconds))).collect();
        let done = self.call(&commands).await;
        // This process may have been stopped between the two: the kernel would count from when it was told.
        let is_late = Instant::now() + Duration::from_secs(seconds) > deadline;
        if done.is_err() || is_late {
            self.take(&mut elements, opening).await?;
            return done.and(Err(IsolationError::Late));
        }
        for element in opening {
            elements.remember(element, Some(deadline));
        }
        Ok(())
    }

    /// Forgets first: whatever comes of the call, nobody puts them back.
    async fn take(&self, elements: &mut Elements, taken: [Element; 2]) -> Result<(), IsolationError> {
        for element in taken {
            elements.forget(element);
        }
        let commands: Vec<_> = taken.iter().flat_map(|element| element.take()).collect();
        self.call(&commands).await
    }

    async fn call(&self, commands: &[Value]) -> Result<(), IsolationError> {
        match &self.kernel {
            Some(kernel) => Ok(kernel.apply(commands).await?),
            None => Ok(()),
        }
    }

    /// Puts the rules in force with everything that is remembered, in one transaction: there is no moment without.
    async fn apply(&self, elements: &Elements) -> Result<(), IsolationError> {
        let mut commands = delete(TABLE);
        commands.extend(self.policy.ruleset(TABLE, true));
        commands.extend(elements.restore(Instant::now()));
        self.call(&commands).await
    }

    /// Takes the rules away again, once there is no interface that they are about. If it stays, so do they.
    pub(crate) async fn withdraw(&self) {
        let begun = Instant::now();
        while nix::net::if_::if_nametoindex(self.policy.interface.as_str()).is_ok() {
            if begun.elapsed() > INTERFACE_GONE_WITHIN {
                tracing::warn!(interface = %self.policy.interface, "the interface is still there, so its rules stay");
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let _elements = self.elements.lock().await;
        if let Err(error) = self.call(&delete(TABLE)).await {
            let error = &error as &dyn std::error::Error;
            return tracing::warn!(error, "the kernel's rules could not be taken away: they stay");
        }
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }

    fn rules_state(&self) -> State {
        self.standing().rules
    }

    /// Changes whenever the rules are found to be otherwise than declared. `None` while they are.
    fn trust(&self) -> Option<u64> {
        let standing = self.standing();
        (standing.rules == State::Enforced).then(|| self.doubts.load(Ordering::Relaxed))
    }

    /// They are not as declared, and it was not tried yet to put them right.
    fn distrust(&self) {
        let mut standing = self.standing();
        self.doubts.fetch_add(1, Ordering::Relaxed);
        if standing.rules == State::Enforced {
            standing.rules = State::Wrong;
            self.publish(&standing);
        }
    }

    fn set_rules(&self, rules: State) {
        let mut standing = self.standing();
        standing.rules = rules;
        self.publish(&standing);
    }

    fn publish(&self, standing: &Standing) {
        let is_leaking = standing.rules == State::Enforced && standing.leak.is_some();
        let state = if is_leaking { State::Leaking } else { standing.rules };
        self.metrics.isolation_enforced.set((state == State::Enforced).into());
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Isolation").field("policy", &self.policy).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A leak is over when a round has proven that, not when the node starts again.
async fn was_leaking(store: &Store, node: &str) -> Result<bool, StoreError> {
    store.within(async { single!(store, |connection| proof_is_leaking(connection, node)) }).await
}

/// Runs to its end even if nobody waits for it any more: half of it would leave the kernel with what nobody remembers.
async fn whole(work: impl Future<Output = Result<(), IsolationError>> + Send + 'static) -> Result<(), IsolationError> {
    tokio::spawn(work).await.expect("nothing in there panics, and nobody aborts it")
}

/// The table has one name, so nodes that share a network would take it from one another for ever. What an earlier life of this
/// node left behind is about an interface that went with it.
async fn refuse_another(kernel: &Kernel, own: &str) -> Result<(), IsolationError> {
    match compare::interface_in_force(kernel).await? {
        Some(interface) if interface != own && nix::net::if_::if_nametoindex(interface.as_str()).is_ok() => {
            Err(IsolationError::Another { interface })
        }
        Some(_) | None => Ok(()),
    }
}

/// Deletes a table, whether it is there or not.
fn delete(table: &str) -> Vec<Value> {
    let table = json!({"table": {"family": FAMILY, "name": table}});
    vec![json!({"add": table}), json!({"delete": table})]
}
