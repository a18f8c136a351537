//! Sends what is due. Woken by hints, so that a command is on its way within a millisecond, and by a timer, so that a lost
//! hint costs no more than that.

use std::collections::HashSet;
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Links, Order, Shared, applied_to_metrics};
use crate::bus::{Heard, Hint, Listener};
use crate::lifecycle::Shutdown;
use crate::model::command::State;
use crate::store::StoreError;
use crate::store::dispatch::{CLAIM_MAX, Dispatch, LinkKey, UnreadableCommand, dispatch_claim, dispatch_list};
use crate::store::transition::{Source, Transition};

/// Links that one statement looks at.
const LINKS_PER_CLAIM: usize = 256;
/// How long to wait before the database is asked again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// For the metrics of failed tasks.
const NAME: &str = "dispatch";

/// Runs until the soft stop: a node that is leaving begins nothing new.
pub(crate) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut listener = shared.bus.listen();
    tokio::select! {
        () = shutdown.soft.cancelled() => {}
        () = dispatch(&shared, &mut listener) => {}
    }
}

async fn dispatch(shared: &Shared, listener: &mut Listener) {
    let mut due = Due::default();
    let mut reconciled_at = Instant::now();
    loop {
        let next = reconciled_at + shared.reconcile_interval();
        if due.is_empty() {
            tokio::select! {
                heard = listener.hear() => if !due.note(heard) { return },
                () = tokio::time::sleep_until(next) => due.everything = true,
            }
        }
        // Whatever else is known by now goes into the same statement.
        while let Some(heard) = listener.hear().now_or_never() {
            if !due.note(heard) {
                return;
            }
        }
        if due.everything {
            reconciled_at = Instant::now();
        }
        if let Err(error) = due.serve(shared).await {
            shared.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot dispatch commands");
            due.everything = true;
            sleep(STORE_RETRY).await;
        }
    }
}

/// What is to be looked at. At most the devices of this node, for others are not noted.
#[derive(Debug, Default)]
struct Due {
    devices: HashSet<DeviceId>,
    everything: bool,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && !self.everything
    }

    /// False when the node stops.
    fn note(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Hint(Hint::CommandsDue(device)) => {
                self.devices.insert(device);
            }
            Heard::Hint(
                Hint::CommandChanged(_)
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

    async fn serve(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let mut links: HashSet<LinkKey> =
            self.devices.drain().filter_map(|device| Some(shared.registry.find(device)?.key)).collect();
        if std::mem::take(&mut self.everything) {
            let store = &shared.store;
            let due = async { dispatch_list(&mut *store.connection().await?, &shared.node).await };
            links.extend(store.within(due).await?);
        }
        let links: Vec<LinkKey> = links.into_iter().collect();
        for links in links.chunks(LINKS_PER_CLAIM) {
            let store = &shared.store;
            let dispatch = store.within(async { dispatch_claim(&mut *store.connection().await?, links).await }).await?;
            let claimed = dispatch.commands.len() + dispatch.unreadable.len();
            if i64::try_from(claimed).is_ok_and(|claimed| claimed >= CLAIM_MAX) {
                self.devices.extend(links.iter().map(|link| link.device_id));
            }
            let unreadable = deliver(shared, dispatch);
            give_up(shared, unreadable).await;
        }
        Ok(())
    }
}

/// Hands out what was claimed, and gives what cannot be. A link that is gone by now gets nothing: the device's next one does.
fn deliver(shared: &Shared, dispatch: Dispatch) -> Vec<UnreadableCommand> {
    let find = |link: LinkKey| shared.registry.find(link.device_id).filter(|handle| handle.key == link);
    for command in dispatch.commands {
        let (link, id, kind) = (command.link, command.command_id, command.instruction.kind());
        if let Some(handle) = find(link) {
            handle.order(Order::Command(Box::new(command)));
        }
        shared.metrics.commands.with_label_values(&[kind.name, "sent"]).inc();
        shared.bus.send(Hint::CommandChanged(id));
    }
    for callback in dispatch.callbacks {
        if let Some(handle) = find(callback.link) {
            handle.order(Order::Callback(callback.command_id, callback.reason));
        }
    }
    dispatch.unreadable
}

/// Ends commands that this binary cannot read. What cannot be written now, its deadline does.
async fn give_up(shared: &Shared, unreadable: Vec<UnreadableCommand>) {
    // All at once, so that they share a statement.
    join_all(unreadable.into_iter().map(|UnreadableCommand { command_id, is_resent }| async move {
        tracing::error!(command = %command_id, "a command cannot be sent: this server cannot read it");
        let transition = Transition {
            command_id,
            // An earlier link may have delivered it; otherwise it has not left the server.
            target: if is_resent { State::Unconfirmed } else { State::Failed },
            source: Source::Server { proof: None },
            code: Some("unreadable".to_owned()),
            message: Some("this server cannot read the command; a newer one made it".to_owned()),
            percent: None,
            data: None,
        };
        if let Ok(applied) = shared.transitions.ask(transition).await {
            applied_to_metrics(shared, applied);
        }
        shared.bus.send(Hint::CommandChanged(command_id));
    }))
    .await;
}
