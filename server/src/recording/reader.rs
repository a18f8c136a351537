//! Reads recordings: chunk by chunk, never whole in memory.

use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256};
use cloudlink_proto::ids::SupportSessionId;

use super::Recorded;
use crate::storage_key::{OpenError, RecordingKey, StorageKey};
use crate::store::recording::recording_chunks;
use crate::store::{Store, StoreError, Visibility};

/// Chunks that are read at a time: about half a megabyte.
const CHUNKS_AT_ONCE: i64 = 8;

/// Why a recording cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("a recording cannot be read")]
    Store(#[from] StoreError),
    #[error("chunk {seq} of a recording cannot be decrypted")]
    Chunk {
        seq: u32,
        #[source]
        source: OpenError,
    },
    #[error("chunk {0} of a recording is missing")]
    Missing(u32),
    /// Chunks are missing at its end.
    #[error("the text of a recording is not what its digest says")]
    Digest,
}

/// A recording that is being read.
pub struct Reader {
    store: Store,
    key: Arc<StorageKey>,
    visibility: Visibility,
    session: SupportSessionId,
    /// The key of the last chunk: usually of all.
    recording: Option<RecordingKey>,
    /// Sealed, and not given out yet. The next one is last.
    fetched: Vec<(u32, Vec<u8>)>,
    /// The next one to be given out.
    seq: u32,
    hash: digest::Context,
    bytes: u64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("session", &self.session).field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl Reader {
    /// Reads what `visibility` shows.
    #[must_use]
    pub fn new(store: Store, key: Arc<StorageKey>, visibility: Visibility, session: SupportSessionId) -> Self {
        let hash = digest::Context::new(&SHA256);
        Self { store, key, visibility, session, recording: None, fetched: Vec::new(), seq: 0, hash, bytes: 0 }
    }

    /// The next part of the text, or `None` when there is no more.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        if self.fetched.is_empty() {
            self.fetched = self.store.within(self.fetch()).await?;
            self.fetched.reverse();
        }
        let Some((seq, sealed)) = self.fetched.pop() else {
            // Every recording has a first chunk.
            return if self.seq == 0 { Err(ReadError::Missing(0)) } else { Ok(None) };
        };
        if seq != self.seq {
            return Err(ReadError::Missing(self.seq));
        }
        let text = self.open(&sealed).map_err(|source| ReadError::Chunk { seq, source })?;
        self.hash.update(&text);
        self.bytes += text.len() as u64;
        self.seq += 1;
        Ok(Some(text))
    }

    /// What was read so far.
    #[must_use]
    pub fn recorded(&self) -> Recorded {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.hash.clone().finish().as_ref());
        Recorded { digest, bytes: self.bytes }
    }

    fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        if let Some(key) = &self.recording
            && key.is_of(sealed)
        {
            return key.open(self.seq, sealed);
        }
        let key = self.key.recording_of(self.session, sealed)?;
        self.recording.insert(key).open(self.seq, sealed)
    }

    async fn fetch(&self) -> Result<Vec<(u32, Vec<u8>)>, StoreError> {
        let mut transaction = self.store.begin(self.visibility).await?;
        recording_chunks(&mut transaction, self.session, self.seq, CHUNKS_AT_ONCE).await
    }
}
