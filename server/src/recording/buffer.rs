//! What is recorded and not written yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Unrecorded;
use super::asciicast::Asciicast;
use super::entry::{self, Entry};
use crate::model::recording::Format;

/// A chunk that has this many bytes is written without waiting for more.
pub(super) const CHUNK_BYTES: usize = 32 * 1024;
/// While so many bytes wait to be written, [`Buffer::room`] lets nobody read on.
const ROOM_BYTES: usize = 4 * CHUNK_BYTES;
/// Bytes of one session that wait to be written. Beyond it, which takes somebody who does not wait for room, recording fails.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of one recording: days of work at a terminal. Beyond it, which takes a device that never stops talking, recording fails: the
/// disk of the database is everybody's.
const RECORDING_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Lines of one format.
#[derive(Debug)]
pub(super) enum Lines {
    Terminal(Asciicast),
    Events,
}

impl Lines {
    pub(super) fn format(&self) -> Format {
        match self {
            Self::Terminal(_) => Format::AsciicastV2,
            Self::Events => Format::EventsV1,
        }
    }

    pub(super) fn output(&mut self, elapsed: Duration, bytes: &[u8], into: &mut Vec<u8>) {
        // What connections and files carry is not recorded, but counted and hashed.
        if let Self::Terminal(cast) = self {
            cast.output(elapsed, bytes, into);
        }
    }

    pub(super) fn resize(&mut self, elapsed: Duration, columns: u16, rows: u16, into: &mut Vec<u8>) {
        if let Self::Terminal(cast) = self {
            cast.resize(elapsed, columns, rows, into);
        }
    }

    pub(super) fn note(&mut self, elapsed: Duration, entry: &Entry, into: &mut Vec<u8>) {
        match self {
            Self::Terminal(cast) => cast.marker(elapsed, &entry.label(), into),
            Self::Events => entry::write_entry(elapsed, entry, into),
        }
    }

    fn end(&mut self, elapsed: Duration, into: &mut Vec<u8>) {
        if let Self::Terminal(cast) = self {
            cast.end(elapsed, into);
        }
    }
}

/// Whole lines that are written together.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) text: Vec<u8>,
    /// When its first byte came.
    pub(super) since: Instant,
}

/// What the writer does next.
#[derive(Debug)]
pub(super) enum Next {
    Write(Chunk),
    /// There is nothing more, and there will be nothing.
    Finished,
    /// The same, but nobody has said that this is the end.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Buffer {
    state: Mutex<State>,
    /// There is something for the writer.
    more: Notify,
    /// There is room again.
    less: Notify,
}

#[derive(Debug)]
struct State {
    lines: Lines,
    chunks: VecDeque<Chunk>,
    /// Of the chunks, and of what the writer has taken and not written yet.
    waiting: usize,
    /// Of all of it.
    taken: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Finished,
    Abandoned,
    Failed,
}

impl Buffer {
    pub(super) fn new(lines: Lines) -> Self {
        let state = State { lines, chunks: VecDeque::new(), waiting: 0, taken: 0, end: End::Open };
        Self { state: Mutex::new(state), more: Notify::new(), less: Notify::new() }
    }

    /// Adds what `write` writes: whole lines.
    pub(super) fn add(&self, write: impl FnOnce(&mut Lines, &mut Vec<u8>)) -> Result<(), Unrecorded> {
        let mut state = self.lock();
        // What was left out once would be missed in what follows: there is none.
        let is_too_much = state.waiting >= WAITING_BYTES_MAX || state.taken >= RECORDING_BYTES_MAX;
        if state.end == End::Open && is_too_much {
            state.end = End::Failed;
            self.less.notify_waiters();
        }
        if state.end != End::Open {
            return Err(Unrecorded);
        }
        state.write(write);
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    pub(super) async fn room(&self) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            // Before the look, so that no change in between is missed.
            less.as_mut().enable();
            {
                let state = self.lock();
                if state.waiting < ROOM_BYTES || state.end != End::Open {
                    return;
                }
            }
            less.await;
        }
    }

    pub(super) fn finish(&self, elapsed: Duration) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.write(|lines, into| lines.end(elapsed, into));
        }
        // Also after a failure: all that was taken is still to be written, and then it is whole.
        state.end = End::Finished;
        drop(state);
        self.more.notify_one();
    }

    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        if matches!(state.end, End::Open | End::Failed) {
            state.end = End::Abandoned;
        }
        drop(state);
        self.more.notify_one();
        self.less.notify_waiters();
    }

    /// Takes nothing more.
    pub(super) fn fail(&self) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.end = End::Failed;
        }
        drop(state);
        self.less.notify_waiters();
    }

    /// So many bytes are written.
    pub(super) fn written(&self, bytes: usize) {
        self.lock().waiting -= bytes;
        self.less.notify_waiters();
    }

    /// What is to be written next: a full chunk, one that has waited for long enough, or, at the end, any.
    pub(super) async fn next(&self, wait: Duration) -> Next {
        loop {
            let more = self.more.notified();
            let due = match self.lock().look(wait) {
                Look::Next(next) => return next,
                Look::At(due) => due,
            };
            match due {
                Some(due) => tokio::select! {
                    () = more => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => more.await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Look {
    Next(Next),
    /// Nothing until then, or until there is more.
    At(Option<Instant>),
}

impl State {
    fn write(&mut self, write: impl FnOnce(&mut Lines, &mut Vec<u8>)) {
        let is_full = self.chunks.back().is_none_or(|chunk| chunk.text.len() >= CHUNK_BYTES);
        if is_full {
            self.chunks.push_back(Chunk { text: Vec::new(), since: Instant::now() });
        }
        let chunk = self.chunks.back_mut().expect("it was just made, if there was none");
        let before = chunk.text.len();
        write(&mut self.lines, &mut chunk.text);
        let added = chunk.text.len() - before;
        self.waiting += added;
        self.taken += added as u64;
        if chunk.text.is_empty() {
            self.chunks.pop_back();
        }
    }

    fn look(&mut self, wait: Duration) -> Look {
        let Some(first) = self.chunks.front() else {
            return match self.end {
                End::Open | End::Failed => Look::At(None),
                End::Finished => Look::Next(Next::Finished),
                End::Abandoned => Look::Next(Next::Abandoned),
            };
        };
        let due = first.since + wait;
        if self.end == End::Open && self.chunks.len() == 1 && first.text.len() < CHUNK_BYTES && Instant::now() < due {
            return Look::At(Some(due));
        }
        self.chunks.pop_front().map_or(Look::At(None), |chunk| Look::Next(Next::Write(chunk)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_something_was_left_out_nothing_more_is_recorded() {
        let buffer = Buffer::new(Lines::Events);
        let add = |bytes: usize| buffer.add(|_, into| into.resize(into.len() + bytes, b'x'));
        let mut taken = 0;
        while add(CHUNK_BYTES).is_ok() {
            taken += CHUNK_BYTES;
        }
        assert_eq!(taken, WAITING_BYTES_MAX);
        while taken > 0 {
            let Next::Write(chunk) = buffer.next(Duration::ZERO).await else { panic!("{taken} bytes are left") };
            buffer.written(chunk.text.len());
            taken -= chunk.text.len();
        }
        assert_eq!(add(1), Err(Unrecorded));
        // Whoever waits for room learns of it.
        buffer.room().await;
    }

    #[test]
    fn a_recording_has_an_end() {
        let buffer = Buffer::new(Lines::Events);
        let add = || buffer.add(|_, into| into.push(b'x'));
        buffer.lock().taken = RECORDING_BYTES_MAX - 1;
        assert_eq!(add(), Ok(()));
        assert_eq!(add(), Err(Unrecorded));
    }
}
