//! Makes the receipts of grants that are over.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_certs::StatementKind;
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::audit::{Actor, Subject};
use crate::model::notice::Event;
use crate::pki::StatementSigner;
use crate::store::audit::audit_append;
use crate::store::notice::notice_emit;
use crate::store::receipt::{Draft, DueReceipt, receipt_list_due};
use crate::store::{StoreError, single};

const EVERY: Duration = Duration::from_secs(2);
/// Grants that are looked at in one go: the rest follows.
const BATCH: i64 = 50;
/// For the metrics of failed tasks.
const NAME: &str = "receipt";

/// Until the soft stop.
pub(super) async fn run(links: Links, signer: Arc<StatementSigner>, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        let due = async { single!(shared.store, |connection| receipt_list_due(connection, BATCH)) };
        let due = match shared.store.within(due).await {
            Ok(due) => due,
            Err(error) => {
                fail(&shared, &error, "cannot tell which grants are to have a receipt");
                continue;
            }
        };
        for due in due {
            if let Err(error) = shared.store.within(make(&shared, &signer, due)).await {
                fail(&shared, &error, "a receipt could not be made");
            }
        }
    }
}

async fn make(shared: &Shared, signer: &StatementSigner, due: DueReceipt) -> Result<(), StoreError> {
    let Some(mut draft) = Draft::begin(&shared.store, due).await? else { return Ok(()) };
    let receipt = draft.content(signer.trust_domain().to_string()).await?;
    let statement = match signer.sign(StatementKind::Receipt, &receipt) {
        Ok(statement) => statement,
        Err(error) => {
            fail(shared, &error, "a receipt could not be signed");
            return Ok(());
        }
    };
    let mut transaction = draft.keep(receipt.made_at, &statement).await?;
    let told = json!({
        "grant_id": due.grant.as_uuid(), "revoked": receipt.grant.revoked_at.is_some(), "commands": receipt.commands.len(), "sessions": receipt.sessions.len(),
        "cut_off_ms_max": receipt.cut_off_ms_max, "sha256": HEXLOWER.encode(digest(&SHA256, statement.as_bytes()).as_ref()),
    });
    let is_told = notice_emit(&mut transaction, due.tenant, Event::ReceiptMade, told.clone()).await?;
    let (actor, subject) = (Actor::Server { name: shared.node.clone() }, Subject::new("grant", due.grant.as_uuid()));
    audit_append(&mut transaction, due.tenant, &actor, "receipt.made", subject, told).await?;
    shared.store.commit(transaction).await?;
    if is_told {
        shared.bus.send(Hint::NoticesDue);
    }
    Ok(())
}

fn fail(shared: &Shared, error: &(dyn std::error::Error + 'static), message: &'static str) {
    shared.metrics.task_failures.with_label_values(&[NAME]).inc();
    tracing::warn!(error, "{message}");
}
