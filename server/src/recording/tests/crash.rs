//! A process that records is killed. It is this test program itself, started again for one test.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::tasks::recording::Keeper;

const SESSION: &str = "CLOUDLINK_TEST_RECORD_SESSION";
const DATABASE: &str = "CLOUDLINK_TEST_RECORD_DATABASE";
/// The last second, and the commit that was under way.
const LOST_MAX: Duration = Duration::from_millis(1500);

/// What is killed: records numbers, and says each once it was taken.
#[tokio::test]
#[ignore = "records until it is killed, for the other test"]
async fn records_until_it_is_killed() {
    let (Ok(session), Ok(name)) = (std::env::var(SESSION), std::env::var(DATABASE)) else { return };
    let server: PgConnectOptions = std::env::var("DATABASE_URL").unwrap().parse().unwrap();
    let store = Store::new(PgPoolOptions::new(), server.database(&name));
    let key = StorageKey::from_bytes(STORAGE_KEY);
    let new = new(session.parse().unwrap());
    let recorder = Recorder::begin(store, &key, Arc::new(Metrics::new()), new).await.unwrap();
    for number in 0_u64.. {
        recorder.output(Duration::from_millis(10 * number), format!("{number}\n").as_bytes()).unwrap();
        let mut stdout = std::io::stdout();
        writeln!(stdout, "taken {number}").unwrap();
        stdout.flush().unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_killed_process_loses_its_last_second_and_no_more(pool: PgPoolOptions, database: PgConnectOptions) {
    let name = database.get_database().unwrap().to_owned();
    let scene = Scene::new(pool, database).await;
    let session = session(&scene, "terminal").await;
    let told =
        tokio::task::spawn_blocking(move || kill_after(Duration::from_millis(3500), session, &name)).await.unwrap();
    assert!(told[0].1 > LOST_MAX, "it was killed before anything had to be there");

    let ended = "update support_sessions set ended_at = clock_timestamp(), end_reason = 'node_lost' where id = $1";
    scene.sql(ended, session.as_uuid()).await;
    let (store, key) = (scene.store.clone(), Arc::new(StorageKey::from_bytes(STORAGE_KEY)));
    Keeper { store, key, metrics: Arc::new(Metrics::new()) }.close_abandoned().await.unwrap();

    let text = read(&scene, session).await.unwrap();
    let shown = recording_show(&mut scene.store.connection().await.unwrap(), session, None).await.unwrap().unwrap();
    assert_eq!(shown.state, RecordingState::CutShort);
    let digest = digest::digest(&SHA256, &text);
    assert_eq!(shown.digest, Some(data_encoding::HEXLOWER.encode(digest.as_ref())));
    let recorded = output(&text);
    let numbers: Vec<u64> = recorded.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "something in the middle is missing");
    let lost = told.iter().filter(|(number, before_kill)| *before_kill > LOST_MAX && !numbers.contains(number)).count();
    assert_eq!(lost, 0, "what was said long before the end is missing");
}

/// The numbers that were taken, and how long before the kill each was.
fn kill_after(time: Duration, session: SupportSessionId, database: &str) -> Vec<(u64, Duration)> {
    let test = "recording::tests::crash::records_until_it_is_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env(SESSION, session.to_string())
        .env(DATABASE, database)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut taken = Vec::new();
    let mut killed = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(number) = line.unwrap().strip_prefix("taken ") {
            taken.push((number.parse().unwrap(), Instant::now()));
        }
        if killed.is_none() && began.elapsed() > time {
            // SIGKILL.
            child.kill().unwrap();
            killed = Some(Instant::now());
        }
    }
    let killed = killed.expect("it ended by itself");
    child.wait().unwrap();
    taken.into_iter().map(|(number, at)| (number, killed.saturating_duration_since(at))).collect()
}
