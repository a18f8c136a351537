use std::path::PathBuf;

use super::section::section;
use super::value::Seconds;

const START_TIMEOUT: Seconds = Seconds(60);
const STOP_TIMEOUT: Seconds = Seconds(30);
const CONNECTIONS_MAX: u32 = 100;

section! {
    /// The Postgres that the server runs itself when `database.url` is not set.
    pub struct Postgres in "postgres" {
        /// The directory of `postgres` and `initdb`; by default found on PATH, else the newest of /usr/lib/postgresql.
        binaries: Option<PathBuf> = None;
        /// The user that it runs as when the server is started as root, for Postgres refuses to run as root.
        user: String = "postgres".to_owned();
        /// How long it may take to answer after a start. Recovery after a crash takes its time.
        start_timeout_seconds: Seconds = START_TIMEOUT, in 5..=3_600;
        /// How long it may take to stop. After that it is stopped hard, and recovers at the next start.
        stop_timeout_seconds: Seconds = STOP_TIMEOUT, in 1..=600;
        /// Its `max_connections`. `database.connections_max` must leave a few for maintenance.
        connections_max: u32 = CONNECTIONS_MAX, in 10..=1_000;
    }
}
