use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::fault::{Fault, Origin, Problem};
use super::section::{Given, section};
use super::value::{Seconds, Secret, Value, quoted};

const CONNECTIONS_MAX: u32 = 16;
const ACQUIRE_TIMEOUT: Seconds = Seconds(3);
const STATEMENT_TIMEOUT: Seconds = Seconds(10);
const LOCK_TIMEOUT: Seconds = Seconds(5);
const IDLE_TIMEOUT: Seconds = Seconds(600);
const LIFETIME: Seconds = Seconds(1_800);

/// What shares connections between nodes and the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooler {
    None,
    /// It gives a connection for a transaction, and another one for the next.
    Transaction,
}

impl Value for Pooler {
    const EXPECTED: &'static str = "\"none\" or \"transaction\"";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "transaction" => Some(Self::Transaction),
            _ => None,
        }
    }

    fn show(&self) -> Option<String> {
        Some(quoted(match self {
            Self::None => "none",
            Self::Transaction => "transaction",
        }))
    }
}

section! {
    /// The database. Without `url`, the server runs its own Postgres in its data directory.
    pub struct Database in "database" {
        /// A Postgres 15 or newer, as `postgres://login@host/cloudlink`. The login must be a member of the role
        /// `cloudlink_app`, which the server takes on each connection. Of several hosts (`host-1:5432,host-2:5432`, at most 8) the
        /// one with the newest history is the database, as docs/OPERATIONS.md tells.
        url: Option<Secret> = None;
        /// A file that holds `url`, instead of `url`.
        url_file: Option<PathBuf> = None;
        /// The owner of the tables, who applies migrations at start; by default `url`.
        migrate_url: Option<Secret> = None;
        /// A file that holds `migrate_url`, instead of `migrate_url`.
        migrate_url_file: Option<PathBuf> = None;
        /// Whether to apply migrations at start. When not, a schema that is not this version's is refused.
        migrate: bool = true;
        /// What shares connections between nodes and the database. `none`: nothing does, or by whole sessions. `transaction`:
        /// PgBouncer in this mode, which migrations go past (docs/OPERATIONS.md).
        pooler: Pooler = Pooler::None;
        /// The most connections of this node, and three more that it keeps for its place among nodes. All nodes together must
        /// stay below Postgres' `max_connections`.
        connections_max: u32 = CONNECTIONS_MAX, in 2..=1_000;
        /// How long a request waits for a free connection before it is answered with 503. Bounds the queue while the
        /// database is away.
        acquire_timeout_seconds: Seconds = ACQUIRE_TIMEOUT, in 1..=60;
        /// Postgres gives up on a statement after this long.
        statement_timeout_seconds: Seconds = STATEMENT_TIMEOUT, in 1..=600;
        /// Postgres gives up on waiting for a lock after this long. Must not be above `statement_timeout_seconds`.
        lock_timeout_seconds: Seconds = LOCK_TIMEOUT, in 1..=600;
        /// A connection that nobody used for this long is closed.
        idle_timeout_seconds: Seconds = IDLE_TIMEOUT, in 10..=86_400;
        /// A connection this old is closed and made anew, so that a change of address or of rights is seen.
        lifetime_seconds: Seconds = LIFETIME, in 60..=86_400;
    }
}

/// The most bytes of a file that holds a secret.
const SECRET_BYTES_MAX: u64 = 4_096;

impl Database {
    /// Replaces each `…_file` by what it holds.
    pub(in crate::config) fn read_secrets(&mut self, given: &mut Given<'_>) {
        read_secret(&mut self.url, self.url_file.as_deref(), "database", ("url", "url_file"), given);
        read_secret(
            &mut self.migrate_url,
            self.migrate_url_file.as_deref(),
            "database",
            ("migrate_url", "migrate_url_file"),
            given,
        );
        if self.migrate_url.is_some() && self.url.is_none() {
            given.faults.add(fault(
                given.origin("database", "migrate_url"),
                "migrate_url",
                Problem::Needs { other: "database.url" },
            ));
        }
        // Migrations take a lock that is the session's.
        if self.pooler == Pooler::Transaction && self.migrate && self.migrate_url.is_none() {
            let needs = Problem::Needs { other: "database.migrate_url, or database.migrate = false" };
            given.faults.add(fault(given.origin("database", "pooler"), "pooler", needs));
        }
    }
}

/// Takes the secret of `key` out of the file that `file_key` names, if it does.
pub(in crate::config) fn read_secret(
    secret: &mut Option<Secret>,
    path: Option<&Path>,
    table: &'static str,
    (key, file_key): (&'static str, &'static str),
    given: &mut Given<'_>,
) {
    let Some(path) = path else { return };
    let origin = given.origin(table, file_key);
    let full = |problem| Fault { origin, key: Some(format!("{table}.{file_key}")), problem };
    if secret.is_some() {
        return given.faults.add(full(Problem::Excludes { other: key }));
    }
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => *secret = Some(text.trim().to_owned().into()),
        Err(error) => {
            given.faults.add(full(Problem::SecretFile { path: path.to_owned(), kind: error.kind() }));
        }
    }
}

fn fault(origin: Origin, key: &str, problem: Problem) -> Fault {
    Fault { origin, key: Some(format!("database.{key}")), problem }
}
