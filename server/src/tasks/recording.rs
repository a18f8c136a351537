//! Closes recordings that nobody will finish, and deletes those that their tenants do not keep for longer.

use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::SupportSessionId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::lifecycle::Shutdown;
use crate::metrics::Metrics;
use crate::recording::reader::{ReadError, Reader};
use crate::recording::{FINISH_WITHIN, Recorded};
use crate::storage_key::StorageKey;
use crate::store::recording::{DELETE_MAX, recording_abandoned_lock, recording_cut_short_in_txn, recording_trim};
use crate::store::{Store, StoreError, Visibility, single};

/// How often it is looked for those that nobody will finish; at the start at once.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked for those that are too old.
const TRIM_EVERY: Duration = Duration::from_secs(600);
/// A writer that has not finished this long after its session's end never will.
const GIVEN_UP_AFTER: Duration = FINISH_WITHIN.saturating_mul(2);
/// For the metrics of failed tasks.
const NAME: &str = "recording";

/// What the task works with.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) key: Arc<StorageKey>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Keeper {
    /// Until the soft stop.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trim_at = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.soft.cancelled() => return,
                _ = tick.tick() => {}
            }
            let closed = self.close_abandoned().await;
            self.note(closed, "cannot close recordings that were cut short");
            if Instant::now() >= trim_at {
                trim_at = Instant::now() + TRIM_EVERY;
                let trimmed = self.trim().await;
                self.note(trimmed, "cannot delete old recordings");
            }
        }
    }

    /// Closes every recording that nobody will finish.
    pub(crate) async fn close_abandoned(&self) -> Result<(), StoreError> {
        while self.close_one().await? {}
        Ok(())
    }

    /// Its row is locked while its text is read: another node takes the next one.
    async fn close_one(&self) -> Result<bool, StoreError> {
        let mut transaction = self.store.within(self.store.begin(Visibility::All)).await?;
        let lock = recording_abandoned_lock(&mut transaction, GIVEN_UP_AFTER.as_secs_f64());
        let Some(session) = self.store.within(lock).await? else { return Ok(false) };
        let recorded = self.read(session).await?;
        let close = async {
            recording_cut_short_in_txn(&mut transaction, session, recorded).await?;
            self.store.commit(transaction).await
        };
        self.store.within(close).await?;
        tracing::warn!(%session, bytes = recorded.map(|recorded| recorded.bytes), "a recording was cut short");
        Ok(true)
    }

    /// What is there of it, if all of that can be read.
    async fn read(&self, session: SupportSessionId) -> Result<Option<Recorded>, StoreError> {
        let mut reader = Reader::new(self.store.clone(), Arc::clone(&self.key), Visibility::All, session);
        loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Some(reader.recorded())),
                Err(ReadError::Store(error)) => return Err(error),
                Err(error @ (ReadError::Chunk { .. } | ReadError::Missing(_) | ReadError::Digest)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(%session, error, "a recording that was cut short cannot be read");
                    return Ok(None);
                }
            }
        }
    }

    async fn trim(&self) -> Result<(), StoreError> {
        loop {
            let trim = async { single!(self.store, |connection| recording_trim(connection)) };
            let deleted = self.store.within(trim).await?;
            if deleted > 0 {
                tracing::info!(deleted, "deleted recordings that their tenants do not keep for longer");
            }
            if deleted < DELETE_MAX {
                return Ok(());
            }
        }
    }

    fn note(&self, done: Result<(), StoreError>, what: &'static str) {
        if let Err(error) = done {
            self.metrics.task_failures.with_label_values(&[NAME]).inc();
            tracing::warn!(error = &error as &dyn std::error::Error, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::http::testing::{Kind, STORAGE_KEY, Scene};
    use crate::recording::tests::{begin, session};

    fn keeper(scene: &Scene, key: [u8; 32]) -> Keeper {
        let metrics = Arc::new(Metrics::new());
        Keeper { store: scene.store.clone(), key: Arc::new(StorageKey::from_bytes(key)), metrics }
    }

    async fn shown(scene: &Scene, session: SupportSessionId) -> serde_json::Value {
        let path = format!("/support-sessions/{session}/recording");
        scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK)
    }

    const NODE_LOST: &str =
        "update support_sessions set ended_at = clock_timestamp(), end_reason = 'node_lost' where id = $1";
    const ENDED_LONG_AGO: &str =
        "update support_sessions set ended_at = clock_timestamp() - interval '61 s', end_reason = 'closed'
                                   where id = $1";
    const ENDED_JUST_NOW: &str =
        "update support_sessions set ended_at = clock_timestamp(), end_reason = 'closed' where id = $1";

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_nobody_will_finish_is_cut_short_and_can_be_read(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (lost, old, fresh, live) = (
            session(&scene, "terminal").await,
            session(&scene, "terminal").await,
            session(&scene, "terminal").await,
            session(&scene, "terminal").await,
        );
        let mut recorders = Vec::new();
        for session in [lost, old, fresh, live] {
            recorders.push(begin(&scene, session).await);
        }
        for (statement, session) in [(NODE_LOST, lost), (ENDED_LONG_AGO, old), (ENDED_JUST_NOW, fresh)] {
            scene.sql(statement, session.as_uuid()).await;
        }
        keeper(&scene, STORAGE_KEY).close_abandoned().await.unwrap();
        for (session, state) in [(lost, "cut_short"), (old, "cut_short"), (fresh, "recording"), (live, "recording")] {
            assert_eq!(shown(&scene, session).await["state"], state);
        }
        let recording = shown(&scene, lost).await;
        let path = format!("/support-sessions/{lost}/recording/content");
        let text = scene.get(&path).by(&scene.customer).send().await.text;
        assert_eq!(recording["bytes"], json!(text.len()));
        assert!(text.starts_with("{\"version\":2,"), "{text}");
        let audited = scene.audited(scene.tenant).await;
        assert_eq!(audited.iter().filter(|action| *action == "recording.cut_short").count(), 2);

        // Its writer was only away, and comes back: nothing is added, and the session is told.
        let writer = recorders.remove(0);
        let mut health = writer.health();
        writer.output(Duration::ZERO, b"late").unwrap();
        let failed = health.wait_for(|health| *health == crate::recording::Health::Failed);
        tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap().unwrap();
        assert_eq!(scene.get(&path).by(&scene.customer).send().await.text, text);
        assert!(writer.finish(Duration::ZERO).await.is_err());
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn without_its_key_one_has_no_digest(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let session = session(&scene, "terminal").await;
        let _recorder = begin(&scene, session).await;
        scene.sql(NODE_LOST, session.as_uuid()).await;
        keeper(&scene, [8; 32]).close_abandoned().await.unwrap();
        let recording = shown(&scene, session).await;
        assert_eq!((&recording["state"], &recording["digest"]), (&json!("cut_short"), &json!(null)));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn what_is_too_old_is_deleted_and_its_digest_stays(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = Scene::new(pool, database).await;
        let (old, young, live) =
            (session(&scene, "terminal").await, session(&scene, "terminal").await, session(&scene, "terminal").await);
        begin(&scene, old).await.finish(Duration::ZERO).await.unwrap();
        begin(&scene, young).await.finish(Duration::ZERO).await.unwrap();
        let _recorder = begin(&scene, live).await;
        scene.sql("update tenants set recording_keep_days = 30 where id = $1", scene.tenant.as_uuid()).await;

        for (session, age) in [(old, "31 days"), (young, "29 days"), (live, "31 days")] {
            let sql = format!("update recordings set started_at = started_at - interval '{age}' where session_id = $1");
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(session.as_uuid()).execute(&scene.root).await.unwrap();
        }
        let digest = shown(&scene, old).await["digest"].clone();
        keeper(&scene, STORAGE_KEY).trim().await.unwrap();

        let recording = shown(&scene, old).await;
        assert_eq!((&recording["state"], &recording["digest"]), (&json!("deleted"), &digest));
        assert!(recording["deleted_at"].is_string());
        let path = format!("/support-sessions/{old}/recording/content");
        scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::RecordingDeleted);
        assert_eq!(shown(&scene, young).await["state"], "finished");
        assert_eq!(shown(&scene, live).await["state"], "recording");
        let left = "select count(*) from recording_chunks where session_id = $1";
        for (session, expected) in [(old, 0), (young, 1), (live, 1)] {
            let left: i64 = sqlx::query_scalar(left).bind(session.as_uuid()).fetch_one(&scene.root).await.unwrap();
            assert_eq!(left, expected);
        }
        assert!(scene.audited(scene.tenant).await.contains(&"recording.deleted".to_owned()));
    }
}
