//! Ends support sessions that the database says are over: at once on a hint, within a second without. What the database does not
//! say, because it is away, the sessions' own deadlines do.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::SupportSessionId;
use cloudlink_proto::stream::Mode;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::bus::{Heard, Hint, Listener};
use crate::model::support_session::EndReason;
use crate::store::node::node_is_gone_in_txn;
use crate::store::support_session::{
    PresentGuest, server, support_guest_list_over, support_session_end_in_txn, support_session_facts,
    support_session_list_open, support_session_lock_some_in_txn, support_session_sweep_in_txn,
    support_session_tell_in_txn, support_session_watch,
};
use crate::store::{Store, StoreError, Transaction, Visibility, single};
use crate::support::Support;
use crate::support::session::Session;

/// Between two looks at the sessions of this node: well below the time for which an answer holds.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// How long one look may take: the next one is due.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// For the metrics of failed tasks.
const NAME: &str = "support";

/// Until the hard stop: sessions live on through the soft one.
pub(super) async fn run(support: Support) {
    let links = Arc::clone(support.links());
    let mut listener = links.bus.listen();
    tokio::select! {
        () = support.finished() => {}
        () = watch(&support, &mut listener) => {}
        () = sweep(&support) => {}
    }
}

/// Cuts off sessions of this node.
async fn watch(support: &Support, listener: &mut Listener) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = listener.hear() => match heard {
                Heard::Hint(Hint::SupportDue(_) | Hint::DeviceChanged(_) | Hint::PersonChanged(_)) | Heard::Everything => {}
                Heard::Hint(
                    Hint::CommandsDue(_) | Hint::CommandChanged(_) | Hint::DeviceLinked(_) | Hint::OpeningsDue(_)
                    | Hint::ConfigurationDue(_) | Hint::NoticesDue,
                ) => continue,
                Heard::Closed => return,
            },
            _ = tick.tick() => {}
        }
        within(support, look(support)).await;
    }
}

/// Ends in the database what nobody else ends there. Apart from the watch: whoever waits for the audit log must not hold that up.
async fn sweep(support: &Support) {
    let mut tick = interval(SWEEP_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        within(support, sweep_once(support)).await;
    }
}

async fn within(support: &Support, work: impl Future<Output = Result<(), StoreError>>) {
    let done = timeout(LOOK_WITHIN, work).await;
    if let Err(error) = done.unwrap_or(Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut))) {
        support.links().metrics.task_failures.with_label_values(&[NAME]).inc();
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell which support sessions are over");
    }
}

async fn look(support: &Support) -> Result<(), StoreError> {
    // A session that is made from here on was judged by the database later than that.
    let asked_at = Instant::now();
    let sessions = support.live();
    if !sessions.is_empty() {
        let store = &support.links().store;
        let ids: Vec<Uuid> = sessions.iter().map(|session| session.facts.id.as_uuid()).collect();
        let watched = single!(store, |connection| support_session_watch(connection, &ids))?;
        let mut extended = Vec::new();
        let seen: HashSet<SupportSessionId> = watched.iter().map(|session| session.id).collect();
        for watched in watched {
            let Some(session) = sessions.iter().find(|session| session.facts.id == watched.id) else { continue };
            match watched.over {
                Some((reason, over_at)) => session.end(reason, over_at),
                None => {
                    if session.set_deadline(watched.deadline) {
                        extended.push(Arc::clone(session));
                    }
                }
            }
        }
        // Whose row is gone was never granted.
        for session in sessions.iter().filter(|session| !seen.contains(&session.facts.id)) {
            session.end(EndReason::NodeLost, Instant::now());
        }
        single!(store, |connection| part_guests(connection, &sessions))?;
        for session in extended {
            let facts = single!(store, |connection| support_session_facts(connection, session.facts.id))?;
            if let Some(facts) = facts {
                let support = support.clone();
                tokio::spawn(async move { support.extend(&session, facts).await });
            }
        }
    }
    support.freshness().heard(asked_at);
    Ok(())
}

async fn part_guests(connection: &mut sqlx::PgConnection, sessions: &[Arc<Session>]) -> Result<(), StoreError> {
    let guests: Vec<(Uuid, Mode, &Arc<Session>)> = sessions
        .iter()
        .flat_map(|session| session.guests().into_iter().map(move |(id, mode)| (id, mode, session)))
        .collect();
    if guests.is_empty() {
        return Ok(());
    }
    let present: Vec<_> = guests
        .iter()
        .map(|(id, mode, session)| PresentGuest {
            id: *id,
            scope: session.facts.target.scope(),
            operates: *mode == Mode::Operate,
        })
        .collect();
    for over in support_guest_list_over(connection, &present).await? {
        if let Some((id, _, session)) = guests.iter().find(|(id, ..)| *id == over) {
            session.part(*id);
        }
    }
    Ok(())
}

/// Ends in the database what is over, on whichever node, and what nobody serves: sessions of an earlier life of this node.
async fn sweep_once(support: &Support) -> Result<(), StoreError> {
    let links = support.links();
    if sweep_sessions(&links.store, support.node(), |id| support.knows(id)).await? {
        links.bus.send(Hint::NoticesDue);
    }
    Ok(())
}

/// The same for a node that knows these sessions. Whether there is anybody outside to be told.
pub(crate) async fn sweep_sessions(
    store: &Store,
    node: &str,
    knows: impl Fn(SupportSessionId) -> bool,
) -> Result<bool, StoreError> {
    let open = single!(store, |connection| support_session_list_open(connection, node))?;
    // After the question: a session has its place before it has its row.
    let lost: Vec<_> = open.into_iter().filter(|id| !knows(*id)).collect();
    end_over_and_lost(store, store.begin(Visibility::All).await?, &lost).await
}

/// The same for a node that others have taken to be gone. One that is back meanwhile keeps what it has by now.
pub(crate) async fn sweep_sessions_of_gone(store: &Store, node: &str) -> Result<bool, StoreError> {
    let mut transaction = store.begin(Visibility::All).await?;
    if !node_is_gone_in_txn(&mut transaction, node).await? {
        return Ok(false);
    }
    let lost = support_session_list_open(&mut transaction, node).await?;
    end_over_and_lost(store, transaction, &lost).await
}

async fn end_over_and_lost(
    store: &Store,
    mut transaction: Transaction,
    lost: &[SupportSessionId],
) -> Result<bool, StoreError> {
    let mut ended = support_session_sweep_in_txn(&mut transaction).await?;
    if !lost.is_empty() {
        let live = support_session_lock_some_in_txn(&mut transaction, lost).await?;
        let reason = EndReason::NodeLost;
        ended.extend(support_session_end_in_txn(&mut transaction, &live, server(), reason, Duration::ZERO).await?);
        tracing::info!(sessions = lost.len(), "ended support sessions that nobody serves");
    }
    let is_told = support_session_tell_in_txn(&mut transaction, &ended).await?;
    store.commit(transaction).await?;
    Ok(is_told)
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tokio::time::sleep;

    use super::*;
    use crate::http::testing::Scene;
    use crate::recording::tests::session;

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_node_that_is_just_coming_back_keeps_its_sessions(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        session(&scene, "terminal").await;
        let ended = async || {
            let ended = "select count(*) from support_sessions where end_reason = 'node_lost'";
            sqlx::query_scalar::<_, i64>(ended).fetch_one(&scene.root).await.unwrap()
        };
        scene.node_is_gone("node-1").await;
        let mut back = scene.root.begin().await.unwrap();
        sqlx::query("update nodes set gone_at = null").execute(&mut *back).await.unwrap();
        let store = scene.store.clone();
        let sweeping = tokio::spawn(async move { sweep_sessions_of_gone(&store, "node-1").await.unwrap() });
        let begun = Instant::now();
        while !sweeping.is_finished() && scene.waiting().await == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it neither ends them nor waits");
            sleep(Duration::from_millis(2)).await;
        }
        back.commit().await.unwrap();
        sweeping.await.unwrap();
        assert_eq!(ended().await, 0);
        scene.node_is_gone("node-1").await;
        sweep_sessions_of_gone(&scene.store, "node-1").await.unwrap();
        assert_eq!(ended().await, 1);
    }
}
