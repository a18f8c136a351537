mod crash;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use super::reader::{ReadError, Reader};
use super::*;
use crate::http::testing::{Relay, STORAGE_KEY, Scene};
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
    assert_eq!((text.len() as u64, digest::digest(&SHA256, &text).as_ref()), (recorded.bytes, &recorded.digest[..]));
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

/// What a terminal's recording says it has shown.
fn output(text: &[u8]) -> String {
    let text = std::str::from_utf8(text).unwrap();
    let events = text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event[1] == "o").map(|event| event[2].as_str().unwrap().to_owned()).collect()
}

async fn behind(relay: &Relay, pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
    let database = database.host("127.0.0.1").port(relay.address.port());
    Scene::new(pool.acquire_timeout(Duration::from_secs(10)), database).await
}

async fn failed(recorder: &Recorder) {
    let mut health = recorder.health();
    let failed = health.wait_for(|health| *health == Health::Failed);
    timeout(Duration::from_secs(10), failed).await.expect("nobody is told").unwrap();
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_database_that_is_away_for_less_than_the_lag_costs_nothing(pool: PgPoolOptions, database: PgConnectOptions) {
    let mut relay = Relay::open((database.get_host().to_owned(), database.get_port()), 0).await;
    let scene = behind(&relay, pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = try_begin(&scene, New { lag: Duration::from_secs(20), ..new(session) }).await.unwrap();
    relay.cut().await;
    let line = "x".repeat(50_000);
    for _ in 0..4 {
        recorder.output(Duration::ZERO, line.as_bytes()).unwrap();
    }
    let held_up = timeout(Duration::from_millis(1500), recorder.room()).await;
    assert!(held_up.is_err(), "who waits for room reads on, with nothing written");
    let _relay = relay.mend().await;
    timeout(Duration::from_secs(10), recorder.room()).await.expect("no room again");
    recorder.output(Duration::ZERO, b"after").unwrap();
    assert_eq!(*recorder.health().borrow(), Health::Well);
    recorder.finish(Duration::ZERO).await.unwrap();
    assert_eq!(output(&read(&scene, session).await.unwrap()), line.repeat(4) + "after");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_database_that_is_away_for_longer_ends_the_session_and_keeps_what_was(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let mut relay = Relay::open((database.get_host().to_owned(), database.get_port()), 0).await;
    let scene = behind(&relay, pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = try_begin(&scene, New { lag: Duration::from_secs(1), ..new(session) }).await.unwrap();
    relay.cut().await;
    recorder.output(Duration::ZERO, b"the last words").unwrap();
    let since = tokio::time::Instant::now();
    failed(&recorder).await;
    let took = since.elapsed();
    assert!((900..2000).contains(&took.as_millis()), "told after {took:?}");
    assert_eq!(recorder.output(Duration::ZERO, b"unheard"), Err(Unrecorded));
    timeout(Duration::from_secs(1), recorder.room()).await.expect("a session that is to close is held up");
    let _relay = relay.mend().await;
    recorder.finish(Duration::ZERO).await.unwrap();
    assert_eq!(output(&read(&scene, session).await.unwrap()), "the last words");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_database_that_only_hangs_is_away(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = try_begin(&scene, New { lag: Duration::from_secs(1), ..new(session) }).await.unwrap();
    let mut lock = scene.root.begin().await.unwrap();
    sqlx::query("lock table recording_chunks in exclusive mode").execute(&mut *lock).await.unwrap();
    recorder.output(Duration::ZERO, b"the last words").unwrap();
    failed(&recorder).await;
    assert_eq!(recorder.output(Duration::ZERO, b"unheard"), Err(Unrecorded));
    lock.rollback().await.unwrap();
    recorder.finish(Duration::ZERO).await.unwrap();
    assert_eq!(output(&read(&scene, session).await.unwrap()), "the last words");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn without_a_database_there_is_no_session_and_who_does_not_wait_is_refused(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let mut relay = Relay::open((database.get_host().to_owned(), database.get_port()), 0).await;
    let scene = behind(&relay, pool, database).await;
    let (one, other) = (session(&scene, "terminal").await, session(&scene, "terminal").await);
    let recorder = try_begin(&scene, New { lag: Duration::from_secs(60), ..new(one) }).await.unwrap();
    relay.cut().await;
    assert!(matches!(try_begin(&scene, new(other)).await, Err(RecordError::Store(_))));
    let mut taken = 0;
    while recorder.output(Duration::ZERO, &[b'x'; 65_536]).is_ok() {
        taken += 65_536;
        assert!(taken < 4 << 20, "it fills the memory");
    }
    assert!(taken >= 1 << 20);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whoever_goes_without_a_word_has_written_what_was_said(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let session = session(&scene, "terminal").await;
    let recorder = begin(&scene, session).await;
    recorder.output(Duration::ZERO, b"the last words").unwrap();
    drop(recorder);
    let written = async {
        while output(&read(&scene, session).await.unwrap()) != "the last words" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), written).await.expect("it was not written");
    let shown = recording_show(&mut scene.store.connection().await.unwrap(), session, None).await.unwrap().unwrap();
    assert_eq!(shown.state, RecordingState::Recording, "nobody has said that this was the end");
}
