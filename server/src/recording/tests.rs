use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use super::reader::{ReadError, Reader};
use super::*;
use crate::http::testing::{STORAGE_KEY, Scene};
use crate::model::new_id;
use crate::model::recording::RecordingState;
use crate::storage_key::OpenError;
use crate::store::recording::recording_show;

/// A live session of the scene's operator.
pub(crate) async fn session(scene: &Scene, kind: &str) -> SupportSessionId {
    let grant = scene.grant(serde_json::json!({})).await;
    let id = new_id();
    sqlx::query(
        "insert into support_sessions (id, tenant_id, device_id, grant_id, opened_by, kind, target, reason, node, expires_at)
         select $1, g.tenant_id, $2, g.id, $3, $4, '{}', 'as agreed', 'node-1', g.ends_at from grants g where g.id = $5",
    )
    .bind(id)
    .bind(scene.device.as_uuid())
    .bind(scene.operator.id.as_uuid())
    .bind(kind)
    .bind(grant.as_uuid())
    .execute(&scene.root)
    .await
    .unwrap();
    SupportSessionId::from_uuid(id)
}

fn new(session: SupportSessionId) -> New {
    let terminal = Terminal { columns: 80, rows: 24, term: None, title: "lobby".into() };
    New { session, subject: Subject::Terminal(terminal), lag: Duration::from_secs(3) }
}

pub(crate) async fn begin(scene: &Scene, session: SupportSessionId) -> Recorder {
    try_begin(scene, new(session)).await.unwrap()
}

async fn try_begin(scene: &Scene, new: New) -> Result<Recorder, RecordError> {
    let key = StorageKey::from_bytes(STORAGE_KEY);
    Recorder::begin(scene.store.clone(), &key, Arc::new(Metrics::new()), new).await
}

async fn read(scene: &Scene, session: SupportSessionId) -> Result<Vec<u8>, ReadError> {
    let key = Arc::new(StorageKey::from_bytes(STORAGE_KEY));
    let mut reader = Reader::new(scene.store.clone(), key, Visibility::All, session);
    let mut text = Vec::new();
    while let Some(part) = reader.next().await? {
        text.extend(part);
    }
    Ok(text)
}

async fn chunks(scene: &Scene, session: SupportSessionId) -> i64 {
    let count = sqlx::query_scalar("select count(*) from recording_chunks where session_id = $1");
    count.bind(session.as_uuid()).fetch_one(&scene.root).await.unwrap()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_was_recorded_is_read_back(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = begin(&scene, session).await;
    let line = "an\u{e4}\r\n".repeat(1000);
    for part in line.as_bytes().chunks(7) {
        recorder.room().await;
        recorder.output(Duration::from_millis(5), part).unwrap();
    }
    recorder.resize(Duration::from_secs(1), 100, 30).unwrap();
    recorder.note(Duration::from_secs(2), &Entry::Exited { status: Some(0), signal: None }).unwrap();
    let recorded = recorder.finish(Duration::from_secs(2)).await.unwrap();

    let text = read(&scene, session).await.unwrap();
    assert_eq!(
        (text.len() as u64, &digest::digest(&SHA256, &text).as_ref()[..]),
        (recorded.bytes, &recorded.digest[..])
    );
    let text = String::from_utf8(text).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&events[0]["version"], &events[0]["width"]), (&2.into(), &80.into()));
    let output: String =
        events[1..].iter().filter(|event| event[1] == "o").map(|event| event[2].as_str().unwrap()).collect();
    assert_eq!(output, line);
    assert_eq!(events[events.len() - 1], serde_json::json!([2.0, "m", "exited: 0"]));
    assert!(chunks(&scene, session).await >= 2);

    let shown = recording_show(&mut scene.store.connection().await.unwrap(), session, None).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.bytes), (RecordingState::Finished, Some(recorded.bytes.cast_signed())));
    assert_eq!(shown.digest, Some(data_encoding::HEXLOWER.encode(&recorded.digest)));
    assert_eq!(scene.audited(scene.tenant).await, ["grant.created", "recording.finished"]);
    let plain: i64 =
        sqlx::query_scalar("select count(*) from recording_chunks where position('lobby'::bytea in sealed) > 0")
            .fetch_one(&scene.root)
            .await
            .unwrap();
    assert_eq!(plain, 0, "a chunk is not encrypted");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_session_is_recorded_once_and_only_while_it_lives(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let unknown = SupportSessionId::from_uuid(Uuid::nil());
    assert!(matches!(try_begin(&scene, new(unknown)).await, Err(RecordError::NoSession)));
    let session = session(&scene, "terminal").await;
    let _recorder = begin(&scene, session).await;
    assert!(matches!(try_begin(&scene, new(session)).await, Err(RecordError::NoSession)));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_chunk_that_is_changed_moved_or_missing_is_found(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = begin(&scene, session).await;
    for _ in 0..4 {
        recorder.output(Duration::ZERO, &[b'x'; 40_000]).unwrap();
    }
    recorder.finish(Duration::ZERO).await.unwrap();
    assert!(chunks(&scene, session).await >= 4);
    let changed = async |statement: &'static str| {
        let save = "create table if not exists saved as select * from recording_chunks";
        sqlx::query(save).execute(&scene.root).await.unwrap();
        scene.sql(statement, session.as_uuid()).await;
        let error = read(&scene, session).await.unwrap_err();
        for restore in ["delete from recording_chunks", "insert into recording_chunks select * from saved"] {
            sqlx::query(restore).execute(&scene.root).await.unwrap();
        }
        error
    };
    let error = changed(
        "update recording_chunks set sealed = set_byte(sealed, 100, (get_byte(sealed, 100) + 1) % 256)
                          where session_id = $1 and seq = 2",
    )
    .await;
    assert!(matches!(error, ReadError::Chunk { seq: 2, source: OpenError::Changed }), "{error:?}");
    let error = changed(
        "update recording_chunks c set sealed = o.sealed from recording_chunks o
                          where c.session_id = $1 and o.session_id = $1 and c.seq + o.seq = 3 and c.seq in (1, 2)",
    )
    .await;
    assert!(matches!(error, ReadError::Chunk { seq: 1, source: OpenError::Changed }), "{error:?}");
    let error = changed("delete from recording_chunks where session_id = $1 and seq = 1").await;
    assert!(matches!(error, ReadError::Missing(1)), "{error:?}");
    let error = changed("delete from recording_chunks where session_id = $1 and seq = 0").await;
    assert!(matches!(error, ReadError::Missing(0)), "{error:?}");
    assert!(read(&scene, session).await.is_ok());
}
