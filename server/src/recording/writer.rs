//! Brings a recording into the database, chunk by chunk.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use cloudlink_proto::ids::SupportSessionId;
use tokio::sync::watch;
use tokio::time::{sleep, timeout, timeout_at};

use super::buffer::{Buffer, Chunk, Next};
use super::{FINISH_WITHIN, Health, RecordError, Recorded};
use crate::metrics::Metrics;
use crate::storage_key::RecordingKey;
use crate::store::recording::{recording_append, recording_finish};
use crate::store::{Store, StoreError, Visibility, single};

/// What a crash loses at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// One attempt to write. A database that says nothing is asked again over another connection.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often a chunk may be refused. Twice: an attempt of which nobody heard may have written it a moment ago.
const REFUSALS_MAX: u32 = 2;
/// Chunks of one recording: what their numbers allow.
const CHUNKS_MAX: u32 = i32::MAX as u32;

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) key: RecordingKey,
    pub(super) session: SupportSessionId,
    pub(super) lag: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: watch::Sender<Health>,
    pub(super) buffer: Arc<Buffer>,
    /// Of all that was written.
    pub(super) hash: digest::Context,
    pub(super) bytes: u64,
    /// The next chunk's number.
    pub(super) seq: u32,
}

impl Writer {
    /// Until the recording is finished, or cannot be.
    pub(super) async fn run(mut self) -> Result<Recorded, RecordError> {
        let wrote = self.write_all().await;
        if let Err(error) = &wrote {
            self.fail(error);
        }
        wrote
    }

    async fn write_all(&mut self) -> Result<Recorded, RecordError> {
        // The lag begins with the first byte: whoever waits for more must not use it up.
        let wait = WRITE_EVERY.min(self.lag / 4);
        loop {
            match self.buffer.next(wait).await {
                Next::Write(chunk) => self.write(chunk).await?,
                Next::Finished => return self.finish().await,
                Next::Abandoned => return Err(RecordError::Closed),
            }
        }
    }

    async fn write(&mut self, chunk: Chunk) -> Result<(), RecordError> {
        let Chunk { text, since } = chunk;
        if self.seq >= CHUNKS_MAX {
            return Err(RecordError::Closed);
        }
        // Sealed once: the same bytes go into every attempt, for no number may seal two texts.
        let sealed = self.key.seal(self.seq, &text);
        let too_late = since + self.lag;
        let written = match timeout_at(too_late, self.append(&sealed)).await {
            Ok(written) => written,
            Err(_) => {
                self.fail(&RecordError::TooSlow);
                // The session closes. What happened until then is still to be kept, if the database comes back soon.
                timeout(FINISH_WITHIN, self.append(&sealed)).await.unwrap_or(Err(RecordError::TooSlow))
            }
        };
        written?;
        self.metrics.recording_lag.observe(since.elapsed().as_secs_f64());
        self.metrics.recording_bytes.inc_by(text.len() as u64);
        self.hash.update(&text);
        self.bytes += text.len() as u64;
        self.seq += 1;
        self.buffer.written(text.len());
        Ok(())
    }

    /// Tries for as long as the database is not there.
    async fn append(&self, sealed: &[u8]) -> Result<(), RecordError> {
        let mut refusals = 0;
        loop {
            let attempt = async {
                single!(self.store, |connection| recording_append(connection, self.session, self.seq, sealed))
            };
            match timeout(ATTEMPT_WITHIN, attempt).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) if refusals >= REFUSALS_MAX => return Err(RecordError::Closed),
                Ok(Ok(false)) => refusals += 1,
                Ok(Err(error)) if !error.is_retryable() => return Err(error.into()),
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    /// The caller limits how long this takes.
    async fn finish(&self) -> Result<Recorded, RecordError> {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.hash.clone().finish().as_ref());
        let recorded = Recorded { digest, bytes: self.bytes };
        loop {
            match timeout(ATTEMPT_WITHIN, self.close(&recorded)).await {
                Ok(Ok(true)) => return Ok(recorded),
                Ok(Ok(false)) => return Err(RecordError::Closed),
                Ok(Err(error)) if !error.is_retryable() => return Err(error.into()),
                Ok(Err(_)) | Err(_) => sleep(AGAIN_AFTER).await,
            }
        }
    }

    async fn close(&self, recorded: &Recorded) -> Result<bool, StoreError> {
        let mut transaction = self.store.begin(Visibility::All).await?;
        let is_closed = recording_finish(&mut transaction, self.session, recorded).await?;
        self.store.commit(transaction).await?;
        Ok(is_closed)
    }

    fn fail(&self, error: &RecordError) {
        self.buffer.fail();
        // Whoever has gone hears nothing more, and nothing more is to be said.
        let is_news = self.health.send_if_modified(|health| std::mem::replace(health, Health::Failed) == Health::Well);
        if is_news {
            self.metrics.recordings_failed.inc();
            let error = error as &dyn std::error::Error;
            tracing::error!(session = %self.session, error, "a support session cannot be recorded");
        }
    }
}
