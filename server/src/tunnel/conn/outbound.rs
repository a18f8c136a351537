//! From the plane to the connection: encrypts what waits, and writes it with as few calls as the connection allows.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use cloudlink_proto::openvpn::SealError;
use socket2::SockRef;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::{Driver, End};
use crate::metrics::TunnelDrop;
use crate::tunnel::plane::Counts;

/// Bytes of the session's own that may wait behind packets. An honest client needs a few hundred; one that sends control
/// packets without reading the answers gets so far.
const OWN_BYTES_MAX: usize = 64 * 1024;

/// What is to be written next, in this order: whole frames, of which the first may be written in part.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: Vec<u8>,
    written: usize,
    /// Bytes of the session's own in `frames`.
    own_bytes: usize,
    /// Since when the connection has taken nothing of it.
    stuck_since: Option<Instant>,
    /// Room that packets waited in before; the next ones will.
    spare: Vec<u8>,
}

/// The client does not read the answers to what it sends.
#[derive(Debug)]
pub(super) struct Full;

impl Outbox {
    /// Adds frames of the session's own.
    pub(super) fn push(&mut self, frames: Vec<u8>) -> Result<(), Full> {
        self.own_bytes += frames.len();
        if self.frames.is_empty() {
            self.frames = frames;
        } else {
            self.frames.extend_from_slice(&frames);
        }
        if self.own_bytes > OWN_BYTES_MAX { Err(Full) } else { Ok(()) }
    }

    /// Gives back all room that is not in use.
    pub(super) fn shrink(&mut self) {
        self.spare = Vec::new();
        if self.frames.is_empty() {
            self.frames = Vec::new();
        }
    }

    fn rest(&self) -> &[u8] {
        &self.frames[self.written..]
    }

    fn wrote(&mut self, bytes: usize) {
        self.stuck_since = None;
        self.written += bytes;
        if self.written == self.frames.len() {
            self.written = 0;
            self.own_bytes = 0;
            self.frames.clear();
            if self.frames.capacity() > self.spare.capacity() {
                std::mem::swap(&mut self.frames, &mut self.spare);
            }
        }
    }
}

impl Driver {
    /// Writes what can be written. Says whether there may be more to write at once.
    pub(super) fn write(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if self.outbox.rest().is_empty() && !self.seal_waiting(now) {
            return Ok(false);
        }
        match Pin::new(&mut self.tunnel.stream).poll_write(context, self.outbox.rest()) {
            Poll::Pending => {
                self.outbox.stuck_since.get_or_insert(now);
                return Ok(false);
            }
            Poll::Ready(Ok(bytes)) => self.outbox.wrote(bytes),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(Err(error)) => return Err(End::Lost(error)),
        }
        Ok(true)
    }

    /// When the client is given up, if the connection takes nothing before.
    pub(super) fn deaf_at(&self) -> Option<Instant> {
        Some(self.outbox.stuck_since? + self.tunnel.port.deaf_after())
    }

    /// Gives up a client that reads nothing, though it may say that it is there. The kernel tells of new room only when there is
    /// much of it, which a very slow client takes long to make: so it is asked once more.
    pub(super) fn give_up_deaf(&mut self, now: Instant) -> Result<(), End> {
        if self.deaf_at().is_none_or(|deaf_at| now < deaf_at) {
            return Ok(());
        }
        match SockRef::from(&self.tunnel.stream).send(self.outbox.rest()) {
            Ok(bytes) => self.outbox.wrote(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(End::Deaf),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(End::Lost(error)),
        }
        Ok(())
    }

    /// Encrypts the packets that wait, in place. Says whether there is something to write now.
    fn seal_waiting(&mut self, now: Instant) -> bool {
        let Some(waiting) = self.tunnel.port.take(&mut self.outbox.spare) else { return false };
        let (session, port) = (&mut self.tunnel.session, &self.tunnel.port);
        let mut counts = Counts::default();
        let (mut too_large, mut unsealed) = (0, 0);
        self.outbox.frames = waiting.seal(|slot, packet_bytes| {
            match session.seal(now.into_std(), slot, packet_bytes) {
                Ok(frame) => {
                    counts.packets_out += 1;
                    counts.bytes_out += u64::try_from(packet_bytes).unwrap_or(0);
                    return Some(frame);
                }
                Err(SealError::TooLarge) => too_large += 1,
                Err(SealError::NotLive | SealError::NoRoom | SealError::Exhausted) => unsealed += 1,
            }
            None
        });
        port.count(counts);
        port.drop_packets(TunnelDrop::TooLarge, too_large);
        port.drop_packets(TunnelDrop::Unsealed, unsealed);
        !self.outbox.frames.is_empty()
    }
}
