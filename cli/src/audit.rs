//! The audit log's hash chain, checked with SHA-256 alone: `hash(n) = SHA-256(hash(n-1) || entry(n))`, `hash(0)` = 32 zero
//! bytes (docs/API.md). Whoever changes, removes or moves an entry must change every hash after it; a head hash that was
//! noted elsewhere then no longer appears.

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::{DecodeError, HEXLOWER_PERMISSIVE};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::model::AuditEntry;

/// The longest line of an export that is read.
pub(crate) const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A SHA-256 hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    /// What comes before the first entry.
    pub(crate) const START: Self = Self([0; 32]);

    /// The hash of an entry after the one with this hash.
    #[must_use]
    pub(crate) fn then(self, entry: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(entry.as_bytes());
        Self(context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes"))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseHashError {
    #[error("a hash is 64 hexadecimal digits")]
    Hex(#[source] DecodeError),
    #[error("a hash is 64 hexadecimal digits, these are {0}")]
    Length(usize),
}

impl std::str::FromStr for Hash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(ParseHashError::Hex)?;
        bytes.try_into().map(Self).map_err(|_| ParseHashError::Length(text.len()))
    }
}

/// What is wrong with a chain, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("line {line} is not an entry of an audit export")]
    Malformed { line: u64, source: serde_json::Error },
    #[error("line {line} has a hash that is none")]
    MalformedHash { line: u64, source: ParseHashError },
    #[error("line {line} is of tenant {found}, the chain is of tenant {expected}")]
    Tenant { line: u64, expected: Uuid, found: Uuid },
    #[error("the export begins with entry {found}, not with entry 1: its beginning is missing (or give --after)")]
    Beginning { found: u64 },
    #[error(
        "line {line} is entry {found} where entry {expected} belongs: entries are missing, repeated or out of order"
    )]
    Sequence { line: u64, expected: u64, found: u64 },
    #[error("entry {seq} (line {line}) does not match its hash: it or an entry before it was changed")]
    Hash { line: u64, seq: u64 },
    #[error("entry {seq} (line {line}) says of itself that it is entry {said_seq} of tenant {said_tenant}")]
    Inside { line: u64, seq: u64, said_seq: String, said_tenant: String },
    #[error("no entry has the hash {0}: the end of the chain is missing, or it is another chain")]
    Head(Hash),
    #[error("there are no entries")]
    Empty,
}

/// Checks entries one by one, in constant memory.
#[derive(Debug)]
pub(crate) struct Chain {
    line: u64,
    tenant: Option<Uuid>,
    first: Option<Entry>,
    last: Option<Entry>,
    hash: Hash,
    /// Begins in the middle, after an entry with a known hash.
    from_middle: bool,
    /// A hash that must appear, and the entry at which it did.
    noted: Option<(Hash, Option<u64>)>,
}

/// What is kept of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) at: Option<Timestamp>,
}

/// What was found to be whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) tenant: Uuid,
    pub(crate) entries: u64,
    pub(crate) first: Entry,
    pub(crate) last: Entry,
    pub(crate) head: Hash,
    /// The entry with the hash that was asked for.
    pub(crate) noted_at: Option<u64>,
}

impl Chain {
    /// `after`: the hash of the entry before the first one, for an export that does not begin at entry 1. `noted`: a head
    /// hash that was noted before, which must appear.
    #[must_use]
    pub(crate) fn new(after: Option<Hash>, noted: Option<Hash>) -> Self {
        Self {
            line: 0,
            tenant: None,
            first: None,
            last: None,
            hash: after.unwrap_or(Hash::START),
            from_middle: after.is_some(),
            noted: noted.map(|hash| (hash, None)),
        }
    }

    /// Checks the next line.
    pub(crate) fn check_line(&mut self, text: &[u8]) -> Result<(), ChainError> {
        self.line += 1;
        let entry = serde_json::from_slice(text).map_err(|source| ChainError::Malformed { line: self.line, source })?;
        self.check(&entry)
    }

    fn check(&mut self, entry: &AuditEntry) -> Result<(), ChainError> {
        let line = self.line;
        let tenant = *self.tenant.get_or_insert(entry.tenant_id);
        if entry.tenant_id != tenant {
            return Err(ChainError::Tenant { line, expected: tenant, found: entry.tenant_id });
        }
        self.check_sequence(entry.seq)?;
        let stated = entry.hash.parse().map_err(|source| ChainError::MalformedHash { line, source })?;
        let hash = self.hash.then(&entry.entry);
        if hash != stated {
            return Err(ChainError::Hash { line, seq: entry.seq });
        }
        let at = self.check_inside(entry)?;
        self.hash = hash;
        if let Some((noted, found)) = &mut self.noted
            && *noted == hash
        {
            *found = Some(entry.seq);
        }
        let entry = Entry { seq: entry.seq, at };
        self.first.get_or_insert_with(|| entry.clone());
        self.last = Some(entry);
        Ok(())
    }

    fn check_sequence(&self, found: u64) -> Result<(), ChainError> {
        match &self.last {
            None if found == 1 || self.from_middle => Ok(()),
            None => Err(ChainError::Beginning { found }),
            Some(last) if last.seq.checked_add(1) == Some(found) => Ok(()),
            Some(last) => Err(ChainError::Sequence { line: self.line, expected: last.seq.saturating_add(1), found }),
        }
    }

    /// The number and the tenant beside the text are not hashed, those inside are: they must agree.
    fn check_inside(&self, entry: &AuditEntry) -> Result<Option<Timestamp>, ChainError> {
        let inside: Value =
            serde_json::from_str(&entry.entry).map_err(|source| ChainError::Malformed { line: self.line, source })?;
        let seq = inside["seq"].as_u64();
        let tenant = inside["tenant"].as_str().and_then(|text| text.parse::<Uuid>().ok());
        if seq != Some(entry.seq) || tenant != Some(entry.tenant_id) {
            return Err(ChainError::Inside {
                line: self.line,
                seq: entry.seq,
                said_seq: inside["seq"].to_string(),
                said_tenant: inside["tenant"].to_string(),
            });
        }
        Ok(inside["at"].as_str().and_then(|text| text.parse().ok()))
    }

    /// What was checked, after the last line.
    pub(crate) fn finish(self) -> Result<Verified, ChainError> {
        let (Some(tenant), Some(first), Some(last)) = (self.tenant, self.first, self.last) else {
            return Err(self.noted.map_or(ChainError::Empty, |(hash, _)| ChainError::Head(hash)));
        };
        let noted_at = match self.noted {
            Some((hash, None)) => return Err(ChainError::Head(hash)),
            Some((_, Some(seq))) => Some(seq),
            None => None,
        };
        Ok(Verified { tenant, entries: last.seq - first.seq + 1, first, last, head: self.hash, noted_at })
    }
}

#[cfg(test)]
mod tests;
