//! Recordings of support sessions: "no recording, no session".
//!
//! ```text
//! session ── output, resize, note ──> buffer ──(every second, or 32 kB)──> writer: digest, seal, one statement a chunk
//!    ^                                                                        │
//!    └──────────────── health: failed, when the oldest byte waits too long ───┘
//! ```
//!
//! To drive it: [`Recorder::begin`] before the session is let through; it fails, and there is no session, when nothing can be
//! written. Then, for each piece of output: `recorder.room().await`, read, `recorder.output(…)`, and pass the bytes on only if
//! that was taken. Close the session when [`Recorder::health`] says `Failed`. [`Recorder::finish`] at its end.
//!
//! A terminal's output is recorded, its input is not: what is typed and not shown may be a password. What else happens
//! is an [`Entry`].

mod asciicast;
mod buffer;
mod entry;
pub mod reader;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use cloudlink_proto::ids::SupportSessionId;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::asciicast::Terminal;
pub use self::entry::Entry;

use self::asciicast::Asciicast;
use self::buffer::{Buffer, Lines};
use self::writer::Writer;
use crate::clock;
use crate::metrics::Metrics;
use crate::storage_key::StorageKey;
use crate::store::recording::{Begun, recording_begin};
use crate::store::{Store, StoreError, Visibility};

/// How long the first chunk, with which a session begins, may take.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);
/// How long the end of a session waits until all of it is written. Longer, and the recording counts as cut short, which loses
/// nothing of what is written.
pub const FINISH_WITHIN: Duration = Duration::from_secs(30);

/// What is recorded, and how.
#[derive(Clone, Debug)]
pub struct New {
    pub session: SupportSessionId,
    pub subject: Subject,
    /// `support.recording_lag_seconds`.
    pub lag: Duration,
}

/// The format follows from this.
#[derive(Clone, Debug)]
pub enum Subject {
    /// asciicast v2.
    Terminal(Terminal),
    /// events-v1. `kind` and `target` as in the session's row.
    Events { kind: &'static str, target: Value },
}

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("there is no live session, or it has a recording already")]
    NoSession,
    #[error("a recording cannot be written")]
    Store(#[from] StoreError),
    #[error("a recording could not be written in time")]
    TooSlow,
    /// Somebody else has judged this recording to be cut short, or the database has lost it.
    #[error("the recording was closed by another node")]
    Closed,
}

/// It was not recorded, and must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recording has failed")]
pub struct Unrecorded;

/// Whether recording goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Well,
    /// The database was away for too long, or will not take it. The session must close.
    Failed,
}

/// What a finished recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// SHA-256 of the whole text.
    pub digest: [u8; 32],
    pub bytes: u64,
}

/// Takes what happens in one session. Nothing here waits for the database but [`Self::begin`] and [`Self::finish`]. Dropped
/// unfinished, it still writes what it has.
#[derive(Debug)]
pub struct Recorder {
    buffer: Arc<Buffer>,
    health: watch::Receiver<Health>,
    writer: Option<JoinHandle<Result<Recorded, RecordError>>>,
}

impl Recorder {
    /// Writes the head of a recording. When this returns, it is in the database.
    pub async fn begin(store: Store, key: &StorageKey, metrics: Arc<Metrics>, new: New) -> Result<Self, RecordError> {
        let New { session, subject, lag } = new;
        let (head, lines) = subject.begin(session);
        let key = key.recording(session);
        let sealed = key.seal(0, &head);
        let format = lines.format();
        let begin = async {
            let mut transaction = store.begin(Visibility::All).await?;
            let begun = recording_begin(&mut transaction, session, format, &sealed).await?;
            store.commit(transaction).await?;
            Ok::<_, StoreError>(begun)
        };
        match timeout(BEGIN_WITHIN, begin).await {
            Err(_) => return Err(RecordError::TooSlow),
            Ok(begun) => match begun? {
                Begun::Yes => {}
                Begun::NoSession => return Err(RecordError::NoSession),
            },
        }
        let mut hash = digest::Context::new(&SHA256);
        hash.update(&head);
        let buffer = Arc::new(Buffer::new(lines));
        let (health, healthy) = watch::channel(Health::Well);
        let bytes = head.len() as u64;
        let buffered = Arc::clone(&buffer);
        let writer = Writer { store, key, session, lag, metrics, health, buffer: buffered, hash, bytes, seq: 1 };
        Ok(Self { buffer, health: healthy, writer: Some(tokio::spawn(writer.run())) })
    }

    /// What came from a terminal.
    pub fn output(&self, elapsed: Duration, bytes: &[u8]) -> Result<(), Unrecorded> {
        self.buffer.add(|lines, into| lines.output(elapsed, bytes, into))
    }

    pub fn resize(&self, elapsed: Duration, columns: u16, rows: u16) -> Result<(), Unrecorded> {
        self.buffer.add(|lines, into| lines.resize(elapsed, columns, rows, into))
    }

    pub fn note(&self, elapsed: Duration, entry: &Entry) -> Result<(), Unrecorded> {
        self.buffer.add(|lines, into| lines.note(elapsed, entry, into))
    }

    /// Waits until what comes next is sure to find room, or recording has failed: a terminal that says more than the database
    /// takes is slowed down.
    pub async fn room(&self) {
        self.buffer.room().await;
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Writes what there still is, and closes the recording. `elapsed`: how long the session was.
    pub async fn finish(mut self, elapsed: Duration) -> Result<Recorded, RecordError> {
        self.buffer.finish(elapsed);
        let Some(mut writer) = self.writer.take() else { return Err(RecordError::Closed) };
        match timeout(FINISH_WITHIN, &mut writer).await {
            Ok(Ok(done)) => done,
            // It panicked, or the runtime stops.
            Ok(Err(_)) => Err(RecordError::Closed),
            Err(_) => {
                writer.abort();
                Err(RecordError::TooSlow)
            }
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.buffer.abandon();
    }
}

impl Subject {
    fn begin(self, session: SupportSessionId) -> (Vec<u8>, Lines) {
        let (mut head, timestamp) = (Vec::new(), clock::now().unix_timestamp());
        let lines = match self {
            Self::Terminal(terminal) => {
                Asciicast::header(&terminal, timestamp, &mut head);
                Lines::Terminal(Asciicast::default())
            }
            Self::Events { kind, target } => {
                entry::write_header(session, kind, &target, timestamp, &mut head);
                Lines::Events
            }
        };
        (head, lines)
    }
}

#[cfg(test)]
pub(crate) mod tests;
