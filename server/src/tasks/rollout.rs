//! Takes rollouts on: makes the commands of the next devices, halts what fails, ends what is over. Whichever node comes first holds the
//! rollout's row meanwhile; what it has not committed when it dies has not happened, and the next one decides the same.

use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, RolloutId, TenantId};
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::Hint;
use crate::lifecycle::Shutdown;
use crate::link::{Links, Shared};
use crate::model::audit::{Actor, Subject};
use crate::model::command;
use crate::model::rollout::{Event, State};
use crate::store::audit::audit_append;
use crate::store::command::CalledBack;
use crate::store::rollout::{Begun, rollout_hold, rollout_list_due, rollout_pass_idle, rollout_put_off};
use crate::store::{Store, StoreError, Visibility, single};

/// How soon a result of one batch has the next one begun, at most.
const EVERY: Duration = Duration::from_millis(250);
/// How long one transaction may take that makes many commands.
const STEP_WITHIN: Duration = Duration::from_secs(30);
/// For the metrics of failed tasks.
const NAME: &str = "rollout";

/// Until the soft stop.
pub(super) async fn run(links: Links, shutdown: Shutdown) {
    let Links(shared) = links;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            _ = tick.tick() => {}
        }
        match look(&shared.store, &shutdown, |stepped| tell(&shared, stepped)).await {
            Ok(failures) => shared.metrics.task_failures.with_label_values(&[NAME]).inc_by(failures),
            Err(error) => {
                shared.metrics.task_failures.with_label_values(&[NAME]).inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for rollouts");
            }
        }
    }
}

/// Takes each that is due, and for which something has moved, as far as it goes at this moment. One that fails is put off, so that it
/// keeps no other from its turn. Gives how many failed.
pub(crate) async fn look(store: &Store, shutdown: &Shutdown, tell: impl Fn(&Stepped)) -> Result<u64, StoreError> {
    let mut failures = 0;
    let passed = store.within(async { single!(store, |connection| rollout_pass_idle(connection)) });
    if let Err(error) = passed.await {
        // It only saves reading them.
        failures += 1;
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot pass by rollouts in which nothing has moved");
    }
    for id in store.within(async { single!(store, |connection| rollout_list_due(connection)) }).await? {
        if let Err(error) = go_on(store, shutdown, id, &tell).await {
            failures += 1;
            tracing::warn!(rollout.id = %id, error = &error as &dyn std::error::Error, "cannot go on with a rollout");
            let put_off = store.within(async { single!(store, |connection| rollout_put_off(connection, id)) });
            if let Err(error) = put_off.await {
                tracing::warn!(rollout.id = %id, error = &error as &dyn std::error::Error, "cannot put a rollout off");
            }
        }
    }
    Ok(failures)
}

async fn go_on(store: &Store, shutdown: &Shutdown, id: RolloutId, tell: impl Fn(&Stepped)) -> Result<(), StoreError> {
    while !shutdown.soft.is_cancelled()
        && let Some(stepped) = store.within_time(STEP_WITHIN, step(store, id)).await?
    {
        tell(&stepped);
        if stepped.begun.commands.is_empty() {
            break;
        }
    }
    Ok(())
}

/// What one step has done.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub(crate) begun: Begun,
    called_back: Vec<CalledBack>,
}

/// One step of one rollout, in one transaction. `None`: another node has it.
pub(crate) async fn step(store: &Store, id: RolloutId) -> Result<Option<Stepped>, StoreError> {
    let mut transaction = store.begin(Visibility::All).await?;
    let Some(mut held) = rollout_hold(&mut transaction, id, false).await? else { return Ok(None) };
    if held.record.ends_at.is_some_and(|end| end <= held.now) && held.rollout.state().after(Event::Expire).is_some() {
        // It is possible then: the line above has looked.
        let _ = held.handle(Event::Expire);
    }
    let begun = held.step_in_txn(&mut transaction).await?;
    let actor = Actor::Server { name: "rollout".to_owned() };
    let called_back = held.store_in_txn(&mut transaction, begun.again_at, &actor.to_json()).await?;
    if let Some(action) = held.news().and_then(action) {
        let (tenant, subject) = (TenantId::from_uuid(held.record.tenant_id), Subject::new("rollout", held.record.id));
        audit_append(&mut transaction, tenant, &actor, action, subject, held.details()).await?;
    }
    store.commit(transaction).await?;
    Ok(Some(Stepped { begun, called_back }))
}

/// What the audit log calls it when a rollout comes to stand there by itself.
const fn action(state: State) -> Option<&'static str> {
    match state {
        State::Halted => Some("rollout.halted"),
        State::Expiring => Some("rollout.expiring"),
        State::Finished | State::Cancelled | State::Expired => Some("rollout.finished"),
        State::Planned | State::Running | State::Paused | State::Cancelling => None,
    }
}

/// Has the nodes of the devices send what is due.
fn tell(shared: &Shared, stepped: &Stepped) {
    for made in &stepped.begun.commands {
        shared.metrics.commands.with_label_values(&[made.kind.as_str(), command::State::Queued.name()]).inc();
        shared.bus.send(Hint::CommandsDue(DeviceId::from_uuid(made.device_id)));
    }
    for called_back in &stepped.called_back {
        if called_back.is_cancelled {
            let labels = [called_back.kind.as_str(), command::State::Cancelled.name()];
            shared.metrics.commands.with_label_values(&labels).inc();
            shared.bus.send(Hint::CommandChanged(called_back.command));
        } else {
            shared.bus.send(Hint::CommandsDue(called_back.device));
        }
    }
}
