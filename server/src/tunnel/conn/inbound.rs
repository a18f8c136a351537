//! From the connection to the interface: reads, decrypts, lets through what may pass.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::{Driver, End};
use crate::tunnel::plane::Counts;

/// Bytes of one read.
const READ_BYTES: usize = 128 * 1024;
/// Room for the one packet that the read before had begun. The largest MTU that can be configured fits.
const BEGUN_BYTES: usize = 16 * 1024;

thread_local! {
    /// Shared by all tunnels of a worker: none keeps anything in it from one turn to the next.
    static ROOM: RefCell<Room> = RefCell::new(Room::new());
}

/// Where packets are decrypted.
struct Room {
    /// The packet that the read before had begun, then what was read.
    bytes: Box<[u8]>,
    /// Where in `bytes` the packets for the interface are.
    packets: Vec<Range<usize>>,
}

impl Room {
    fn new() -> Self {
        Self { bytes: vec![0; BEGUN_BYTES + READ_BYTES].into_boxed_slice(), packets: Vec::new() }
    }
}

impl Driver {
    /// Reads once. Says whether there may be more.
    pub(super) fn read(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        ROOM.with_borrow_mut(|room| {
            let mut read = ReadBuf::new(&mut room.bytes[BEGUN_BYTES..]);
            let polled = Pin::new(&mut self.tunnel.stream).poll_read(context, &mut read);
            let bytes = read.filled().len();
            match polled {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(())) if bytes == 0 => self.tunnel.session.handle_end_of_stream(now.into_std()),
                Poll::Ready(Ok(())) => self.take(now, room, bytes),
                // A signal is no reason.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Err(End::Lost(error)),
            }
            Ok(true)
        })
    }

    /// Decrypts what was read, and gives it to the interface.
    fn take(&mut self, now: Instant, room: &mut Room, bytes: usize) {
        self.tunnel.handle.heard(now);
        room.packets.clear();
        let port = &self.tunnel.port;
        let (begun, read) = room.bytes.split_at_mut(BEGUN_BYTES);
        let mut at = 0;
        while at < bytes {
            let rest = &mut read[at..bytes];
            let (rest_at, rest_bytes) = (rest.as_ptr().addr(), rest.len());
            let received = self.tunnel.session.handle_input(now.into_std(), rest);
            if let Some(packet) = received.packet {
                let offset = packet.as_ptr().addr().wrapping_sub(rest_at);
                if let Err(reason) = port.judge(packet) {
                    port.drop_packets(reason, 1);
                } else if offset < rest_bytes {
                    let start = BEGUN_BYTES + at + offset;
                    room.packets.push(start..start + packet.len());
                } else {
                    // It came in pieces and lies with the session, which needs its place again.
                    begun[..packet.len()].copy_from_slice(packet);
                    room.packets.push(0..packet.len());
                }
            }
            at += received.consumed;
        }
        if !room.packets.is_empty() {
            port.send_in(&room.bytes, &room.packets);
            port.count(Counts {
                packets_in: u64::try_from(room.packets.len()).unwrap_or(0),
                bytes_in: u64::try_from(room.packets.iter().map(ExactSizeIterator::len).sum::<usize>()).unwrap_or(0),
                ..Counts::default()
            });
        }
        self.count_drops();
    }
}
