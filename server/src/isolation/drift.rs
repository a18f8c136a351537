//! What was found to be otherwise than declared, on its way into the database, which may be away for long.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::metrics::Metrics;
use crate::store::drift::{drift_end_all, drift_put_in_txn};
use crate::store::{Store, StoreError, Visibility};

/// Drifts that wait for the database. What is beyond is in the log and the metrics alone.
const WAITING_MAX: usize = 256;
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// For the metrics of failed tasks.
const NAME: &str = "isolation_drift";

/// What was different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The kernel's rules, or what is open.
    Rules,
    /// A setting of the tunnels' interface.
    Setting,
    /// The interface itself.
    Interface,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Rules, Self::Setting, Self::Interface];

    /// As it is in the database and in the metrics' label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Setting => "setting",
            Self::Interface => "interface",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Drift {
    pub(crate) id: Uuid,
    pub(crate) kind: Kind,
    pub(crate) found_at: OffsetDateTime,
    pub(crate) repaired_at: Option<OffsetDateTime>,
    /// In words.
    pub(crate) differences: Vec<String>,
}

impl Drift {
    pub(crate) fn found(kind: Kind, differences: Vec<String>) -> Self {
        Self { id: Uuid::now_v7(), kind, found_at: clock::now(), repaired_at: None, differences }
    }

    pub(crate) fn repaired(self) -> Self {
        Self { repaired_at: Some(clock::now()), ..self }
    }
}

/// Where drifts are put.
#[derive(Debug)]
pub(super) struct Recorder {
    waiting: mpsc::Sender<Drift>,
}

/// Where they come out.
#[derive(Debug)]
pub(super) struct Recording {
    waiting: mpsc::Receiver<Drift>,
    node: String,
    store: Store,
    metrics: Arc<Metrics>,
}

pub(super) fn recorder(node: String, store: Store, metrics: Arc<Metrics>) -> (Recorder, Recording) {
    let (send, waiting) = mpsc::channel(WAITING_MAX);
    (Recorder { waiting: send }, Recording { waiting, node, store, metrics })
}

impl Recorder {
    pub(super) fn put(&self, drift: Drift) {
        if self.waiting.try_send(drift).is_err() {
            tracing::error!("a drift of the isolation is in no record but this: too many wait for the database");
        }
    }
}

/// What is to be written.
#[derive(Debug)]
enum Entry {
    /// What an earlier life of this node could not repair, or not write any more, was put right by the start of this one.
    EarlierOver(OffsetDateTime),
    Found(Drift),
}

impl Recording {
    /// Writes them, each as often as it takes.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let stopped = stop.cancelled();
        tokio::pin!(stopped);
        let mut entry = Entry::EarlierOver(clock::now());
        loop {
            while let Err(error) = self.write(&entry).await {
                self.metrics.task_failures.with_label_values(&[NAME]).inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot store a drift of the isolation");
                if !error.is_retryable() {
                    break;
                }
                tokio::select! {
                    () = &mut stopped => return,
                    () = sleep(AGAIN_AFTER) => {}
                }
            }
            let drift = tokio::select! {
                () = &mut stopped => return,
                drift = self.waiting.recv() => drift,
            };
            let Some(drift) = drift else { return };
            entry = Entry::Found(drift);
        }
    }

    async fn write(&self, entry: &Entry) -> Result<(), StoreError> {
        let written = async {
            let mut transaction = self.store.begin(Visibility::All).await?;
            match entry {
                Entry::EarlierOver(at) => drift_end_all(&mut transaction, &self.node, *at).await?,
                Entry::Found(drift) => drift_put_in_txn(&mut transaction, &self.node, drift).await?,
            }
            self.store.commit(transaction).await
        };
        self.store.within(written).await
    }
}
