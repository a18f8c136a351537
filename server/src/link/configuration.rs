//! Gives linked devices what they are to have. Woken by hints when that has changed, and by a timer, so that a lost hint costs no more
//! than that. Before, it looks at what the documents come to of devices whose labels have changed.

use std::collections::HashSet;
use std::time::Duration;

use cloudlink_proto::ids::TenantId;
use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::dispatch::STORE_RETRY;
use super::{Links, Order, Shared};
use crate::bus::{Heard, Hint, Listener};
use crate::lifecycle::Shutdown;
use crate::store::configuration::{
    Affected, DUE_MAX, configuration_due, configuration_lock_soon_in_txn, configuration_settle_in_txn,
    configuration_stale,
};
use crate::store::{StoreError, Visibility, single};

/// Between one lot of devices and the next: what a whole fleet is given is not in memory at once.
const PAUSE: Duration = Duration::from_millis(50);
/// Between the beginnings of two looks. Each is at all devices of the node, and each device that tells how far it is asks for one.
const LOOKS_APART: Duration = Duration::from_millis(200);
/// Tenants that one look fails for before it gives up: with the database away each of them takes its time to fail.
const FAILURES_MAX: usize = 3;
/// For the metrics of failed tasks.
const NAME: &str = "configuration";

/// Runs until the soft stop.
pub(crate) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    tokio::select! {
        () = shutdown.soft.cancelled() => {}
        () = watch(&shared, &mut listener) => {}
    }
}

async fn watch(shared: &Shared, listener: &mut Listener) {
    let mut due = Due::default();
    let mut reconciled_at = Instant::now();
    loop {
        let next = reconciled_at + shared.reconcile_interval();
        if due.is_empty() {
            tokio::select! {
                heard = listener.hear() => if !due.note(heard) { return },
                () = sleep_until(next) => due.everything = true,
            }
        }
        while let Some(heard) = listener.hear().now_or_never() {
            if !due.note(heard) {
                return;
            }
        }
        let begun_at = Instant::now();
        let Due { tenants, everything } = std::mem::take(&mut due);
        if everything {
            reconciled_at = begun_at;
        }
        let tenants: Vec<Uuid> = tenants.into_iter().map(TenantId::as_uuid).collect();
        let tenants = (!everything).then_some(&tenants[..]);
        if let Err(error) = serve(shared, tenants).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot give devices their configuration");
            due.everything = true;
            sleep(STORE_RETRY).await;
        }
        sleep_until(begun_at + LOOKS_APART).await;
    }
}

/// What is to be looked at.
#[derive(Debug, Default)]
struct Due {
    tenants: HashSet<TenantId>,
    everything: bool,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.tenants.is_empty() && !self.everything
    }

    /// False when the node stops.
    fn note(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Hint(Hint::ConfigurationDue(tenant)) => {
                self.tenants.insert(tenant);
            }
            Heard::Hint(
                Hint::CommandsDue(_)
                | Hint::CommandChanged(_)
                | Hint::DeviceChanged(_)
                | Hint::DeviceLinked(_)
                | Hint::OpeningsDue(_)
                | Hint::SupportDue(_)
                | Hint::PersonChanged(_)
                | Hint::NoticesDue,
            ) => {}
            Heard::Everything => self.everything = true,
            Heard::Closed => return false,
        }
        true
    }
}

/// `tenants`: only theirs.
async fn serve(shared: &Shared, tenants: Option<&[Uuid]>) -> Result<(), StoreError> {
    // One tenant's labels keep nobody else from what is to be theirs already.
    let settled = settle(shared, tenants).await;
    give(shared, tenants).await?;
    settled
}

async fn give(shared: &Shared, tenants: Option<&[Uuid]>) -> Result<(), StoreError> {
    let mut after = Uuid::nil();
    loop {
        let store = &shared.store;
        let due = async { single!(store, |connection| configuration_due(connection, &shared.node, tenants, after)) };
        let due = store.within(due).await?;
        let is_last = i64::try_from(due.len()).is_ok_and(|count| count < DUE_MAX);
        let Some(last) = due.last() else { return Ok(()) };
        after = last.link.device_id.as_uuid();
        for due in due {
            if let Some(handle) = shared.registry.find_exactly(due.link) {
                handle.order(Order::Configuration(Box::new(due.configuration)));
            }
        }
        if is_last {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Looks at what the documents come to of devices whose labels have changed. One tenant's failure, as while somebody changes its documents
/// for long, keeps nobody from the others.
///
/// # Errors
/// The first that may not be one the next time.
pub(super) async fn settle(shared: &Shared, tenants: Option<&[Uuid]>) -> Result<(), StoreError> {
    let store = &shared.store;
    let (mut failed, mut again) = (HashSet::new(), None);
    while failed.len() < FAILURES_MAX {
        let stale = async { single!(store, |connection| configuration_stale(connection, tenants)) };
        let stale = store.within(stale).await?;
        let Some(tenant) = stale.into_iter().find(|tenant| !failed.contains(tenant)) else { break };
        let settled = async {
            let mut transaction = store.begin(Visibility::All).await?;
            configuration_lock_soon_in_txn(&mut transaction, tenant).await?;
            // What a device cannot have is written down with it.
            let _ = configuration_settle_in_txn(&mut transaction, tenant, &Affected::Stale).await?;
            store.commit(transaction).await
        };
        if let Err(error) = store.within(settled).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "cannot look at new labels");
            failed.insert(tenant);
            again = again.or(error.is_retryable().then_some(error));
        }
    }
    again.map_or(Ok(()), Err)
}
