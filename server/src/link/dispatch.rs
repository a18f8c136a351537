//! Sends what is due. Woken by hints, so that a command is on its way within a millisecond, and by a timer, so that a lost
//! hint costs no more than that.

use std::collections::HashSet;
use std::time::Duration;

use cloudlink_proto::ids::DeviceId;
use futures_util::FutureExt;
use futures_util::future::join_all;
use opentelemetry::trace::SpanKind;
use tokio::time::{Instant, sleep};

use super::{Links, Order, Shared, account};
use crate::bus::{Heard, Hint, Listener};
use crate::lifecycle::Shutdown;
use crate::model::command::State;
use crate::store::dispatch::{
    CLAIM_MAX, ClaimedCommand, Dispatch, LinkKey, UnreadableCommand, dispatch_claim, dispatch_list,
};
use crate::store::transition::{Source, Transition};
use crate::store::{StoreError, single};
use crate::trace::{Span, place};

/// Links that one statement looks at.
const LINKS_PER_CLAIM: usize = 256;
/// How long to wait before the database is asked again.
pub(crate) const STORE_RETRY: Duration = Duration::from_millis(500);
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
                | Hint::ConfigurationDue(_)
                | Hint::NoticesDue,
            ) => {}
            Heard::Everything => self.everything = true,
            Heard::Closed => return false,
        }
        true
    }

    async fn serve(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let woken_by = if self.everything { "timer" } else { "hint" };
        let mut links: HashSet<LinkKey> =
            self.devices.drain().filter_map(|device| Some(shared.registry.find(device)?.key)).collect();
        if std::mem::take(&mut self.everything) {
            let store = &shared.store;
            let due = async { single!(store, |connection| dispatch_list(connection, &shared.node)) };
            links.extend(store.within(due).await?);
        }
        let links: Vec<LinkKey> = links.into_iter().collect();
        for links in links.chunks(LINKS_PER_CLAIM) {
            let store = &shared.store;
            let asked_at = Instant::now();
            let dispatch =
                store.within(async { single!(store, |connection| dispatch_claim(connection, links)) }).await?;
            let claimed = dispatch.commands.len() + dispatch.unreadable.len();
            if i64::try_from(claimed).is_ok_and(|claimed| claimed >= CLAIM_MAX) {
                self.devices.extend(links.iter().map(|link| link.device_id));
            }
            let unreadable = deliver(shared, dispatch, Waking { woken_by, asked_at });
            give_up(shared, unreadable).await;
        }
        Ok(())
    }
}

/// How it came that commands are sent, for their traces.
#[derive(Clone, Copy)]
pub(super) struct Waking {
    pub(super) woken_by: &'static str,
    pub(super) asked_at: Instant,
}

/// Hands out what was claimed, and gives what cannot be. A link that is gone by now gets nothing: the device's next one does.
fn deliver(shared: &Shared, dispatch: Dispatch, waking: Waking) -> Vec<UnreadableCommand> {
    for mut command in dispatch.commands {
        let _span = note_sending(shared, &mut command, waking);
        if let Some(handle) = shared.registry.find_exactly(command.link) {
            handle.order(Order::Command(Box::new(command)));
        }
    }
    for callback in dispatch.callbacks {
        if let Some(handle) = shared.registry.find_exactly(callback.link) {
            handle.order(Order::Callback(callback.command_id, callback.reason));
        }
    }
    dispatch.unreadable
}

/// Counts a command that is marked as sent, and tells others. It is its sending's doing from here on.
pub(super) fn note_sending(shared: &Shared, command: &mut ClaimedCommand, waking: Waking) -> Option<Span> {
    let kind = command.instruction.kind();
    shared.metrics.commands.with_label_values(&[kind.name, "sent"]).inc();
    shared.bus.send(Hint::CommandChanged(command.command_id));
    trace(shared, command, waking)
}

fn trace(shared: &Shared, command: &mut ClaimedCommand, waking: Waking) -> Option<Span> {
    let (link, id) = (command.link, command.command_id);
    let cause = command.trace?;
    let own = place::dispatch_span(id, link.epoch);
    let mut span = shared.tracer.child_named(SpanKind::Consumer, "command.dispatch", cause, own)?;
    command.trace = Some(span.place());
    span.began_ago(waking.asked_at.elapsed());
    span.set("cloudlink.command.id", id.to_string());
    span.set("cloudlink.device.id", link.device_id.to_string());
    span.set("cloudlink.link.epoch", link.epoch.cast_signed());
    span.set("cloudlink.dispatch.woken_by", waking.woken_by);
    span.set("cloudlink.dispatch.is_resent", command.is_resent);
    Some(span)
}

/// Ends commands that this binary cannot read. What cannot be written now, its deadline does.
pub(super) async fn give_up(shared: &Shared, unreadable: Vec<UnreadableCommand>) {
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
            account(shared, command_id, applied);
        }
        shared.bus.send(Hint::CommandChanged(command_id));
    }))
    .await;
}
