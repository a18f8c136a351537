//! A tunnel's place in the plane: what waits to be sent to its client, and what went through.

use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TunnelId};
use cloudlink_proto::openvpn::{HEADROOM, TAILROOM};
use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::door::Doors;
use super::meter::Meters;
use super::tally::Tally;
use super::{Plane, offload};
use crate::metrics::TunnelDrop;
use crate::model::device::is_probe;

/// Whose tunnel an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) tunnel: TunnelId,
    pub(crate) device: DeviceId,
}

/// One tunnel, as the readers of the interface's queues see it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) owner: Owner,
    pub(crate) traffic: Traffic,
    pub(super) tally: Tally,
    pub(super) doors: Doors,
    waiting_bytes_max: usize,
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
}

impl Line {
    pub(super) fn new(owner: Owner, waiting_bytes_max: usize) -> Self {
        Self {
            owner,
            traffic: Traffic::default(),
            tally: Tally::default(),
            doors: Doors::default(),
            waiting_bytes_max,
            waiting: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// Lets `put` add packets for the client, and wakes its task if it had none.
    pub(super) fn put<T>(&self, put: impl FnOnce(&mut Room<'_>) -> T) -> T {
        let mut waiting = self.waiting();
        let was_empty = waiting.bytes.is_empty();
        let done = put(&mut Room { waiting: &mut waiting, bytes_max: self.waiting_bytes_max });
        let is_first = was_empty && !waiting.bytes.is_empty();
        drop(waiting);
        if is_first {
            self.waker.wake();
        }
        done
    }

    /// Counts packets that went no further. What the node's own devices try is nobody's concern.
    pub(super) fn dropped(&self, reason: TunnelDrop, packets: u64, meters: &Meters) {
        self.traffic.add(&Counts { dropped: packets, ..Counts::default() });
        if !is_probe(self.owner.device) {
            meters.dropped(reason, packets);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Consistent after each statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets that wait for a client: each with the room around it that sealing needs, and its length at the front of that room.
/// One allocation for all of them, none while there are none.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: Vec<u8>,
}

impl Waiting {
    /// Moves the packets to the front one after another through `seal`, which says where in its slot the frame lies that it
    /// made of a packet, or that there is none. What is left is those frames, one behind the other.
    pub(crate) fn seal(mut self, mut seal: impl FnMut(&mut [u8], usize) -> Option<Range<usize>>) -> Vec<u8> {
        let bytes = &mut self.bytes;
        let (mut read, mut written) = (0, 0);
        while let Some(length) = bytes.get(read..).and_then(|slot| slot.first_chunk()) {
            let packet_bytes = usize::from(u16::from_be_bytes(*length));
            let end = read + slot_bytes(packet_bytes);
            if let Some(frame) = seal(&mut bytes[read..end], packet_bytes) {
                let frame = read + frame.start..read + frame.end;
                let frame_bytes = frame.len();
                bytes.copy_within(frame, written);
                written += frame_bytes;
            }
            read = end;
        }
        bytes.truncate(written);
        self.bytes
    }
}

const fn slot_bytes(packet_bytes: usize) -> usize {
    HEADROOM + packet_bytes + TAILROOM
}

/// The room that is left for a client's packets.
pub(super) struct Room<'a> {
    waiting: &'a mut Waiting,
    bytes_max: usize,
}

impl Room<'_> {
    /// Makes room for so many packets at once.
    pub(super) fn reserve(&mut self, packets: usize, packet_bytes: usize) {
        let free = self.bytes_max.saturating_sub(self.waiting.bytes.len());
        self.waiting.bytes.reserve(free.min(packets * slot_bytes(packet_bytes)));
    }
}

impl offload::Room for Room<'_> {
    /// There is no room beyond the limit: who does not read what it is sent, loses it.
    fn add(&mut self, headers: &[u8], payload: &[u8]) -> Option<&mut [u8]> {
        let packet_bytes = u16::try_from(headers.len() + payload.len()).ok()?;
        let bytes = &mut self.waiting.bytes;
        let start = bytes.len();
        if start + slot_bytes(packet_bytes.into()) > self.bytes_max {
            return None;
        }
        bytes.extend_from_slice(&packet_bytes.to_be_bytes());
        bytes.extend_from_slice(&[0; HEADROOM - 2]);
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&[0; TAILROOM]);
        Some(&mut bytes[start + HEADROOM..][..packet_bytes.into()])
    }
}

/// What went through one tunnel. In: from its device. Counted inside: without what encryption adds.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    dropped: AtomicU64,
}

/// [`Traffic`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) packets_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) packets_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) dropped: u64,
}

impl Traffic {
    pub(crate) fn add(&self, counts: &Counts) {
        let pairs = [
            (&self.packets_in, counts.packets_in),
            (&self.bytes_in, counts.bytes_in),
            (&self.packets_out, counts.packets_out),
            (&self.bytes_out, counts.bytes_out),
            (&self.dropped, counts.dropped),
        ];
        for (counter, count) in pairs {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            packets_in: read(&self.packets_in),
            bytes_in: read(&self.bytes_in),
            packets_out: read(&self.packets_out),
            bytes_out: read(&self.bytes_out),
            dropped: read(&self.dropped),
        }
    }
}

/// A tunnel's hold on its place: the packets to its address are its own until this is dropped, or a newer tunnel takes the
/// place.
#[derive(Debug)]
pub(crate) struct Port {
    plane: Arc<Plane>,
    host: u32,
    line: Arc<Line>,
}

impl Port {
    pub(super) fn new(plane: Arc<Plane>, host: u32, line: Arc<Line>) -> Self {
        Self { plane, host, line }
    }

    /// Whether a packet out of the tunnel may pass, or why it may not.
    pub(crate) fn judge(&self, packet: &[u8]) -> Result<(), TunnelDrop> {
        self.line.doors.check(self.plane.wall.judge(packet)?, Instant::now)
    }

    /// Gives packets out of the tunnel to the interface, always through the same queue: the kernel sends answers through it,
    /// too, and keeps them in order. Whose place was taken has no address any more: what it sends would count as the other's.
    pub(crate) fn send_in(&self, bytes: &[u8], packets: &[Range<usize>]) {
        if !self.plane.directory.has(self.host, &self.line) {
            // Nothing that the device did.
            return self.count_dropped(TunnelDrop::Source, u64::try_from(packets.len()).unwrap_or(0));
        }
        let lost = self.plane.send_in(self.host, bytes, packets);
        self.drop_packets(TunnelDrop::Interface, lost);
    }

    /// Counts what went through.
    pub(crate) fn count(&self, counts: Counts) {
        self.line.traffic.add(&counts);
        if !is_probe(self.line.owner.device) {
            self.plane.meters.count(&counts);
        }
    }

    /// Counts what did not, and who tried it. This node's own probes try all the time.
    pub(crate) fn drop_packets(&self, reason: TunnelDrop, packets: u64) {
        if packets > 0 {
            if !is_probe(self.line.owner.device) {
                self.line.tally.add(reason, packets);
            }
            self.count_dropped(reason, packets);
        }
    }

    fn count_dropped(&self, reason: TunnelDrop, packets: u64) {
        if packets > 0 {
            self.line.dropped(reason, packets, &self.plane.meters);
        }
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.line.traffic
    }

    /// How long a client may take nothing of what waits for it.
    pub(crate) fn deaf_after(&self) -> Duration {
        self.plane.deaf_after
    }

    /// Whom to wake when packets wait.
    pub(crate) fn wake(&self, waker: &Waker) {
        self.line.waker.register(waker);
    }

    /// Takes all packets that wait, if there are any, and leaves `spare` for the next ones.
    pub(crate) fn take(&self, spare: &mut Vec<u8>) -> Option<Waiting> {
        let mut waiting = self.line.waiting();
        if waiting.bytes.is_empty() {
            return None;
        }
        spare.clear();
        Some(mem::replace(&mut *waiting, Waiting { bytes: mem::take(spare) }))
    }

    /// Gives back the room of packets that are gone.
    pub(crate) fn shrink(&self) {
        let mut waiting = self.line.waiting();
        if waiting.bytes.is_empty() {
            waiting.bytes = Vec::new();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.plane.directory.leave(self.host, &self.line);
        if let Some(drops) = self.line.tally.take() {
            self.plane.ended.add(self.line.owner.device, &drops);
        }
    }
}
