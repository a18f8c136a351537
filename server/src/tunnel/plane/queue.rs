//! Reads one queue of the interface, and gives each packet to the tunnel it is for.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tun_rs::AsyncDevice;

use super::Plane;
use super::offload::{HEAD_BYTES, Large, PACKET_BYTES_MAX};
use super::port::Line;
use crate::metrics::TunnelDrop;

/// Reads before others get their turn. Their tasks empty what this fills: a burst that is longer only overflows.
const READS_MAX: usize = 16;
/// How long to wait when the interface cannot be read.
const RETRY: Duration = Duration::from_secs(1);

/// Reads the queue until the interface is gone. Nobody can bring that back: the node has to begin anew.
pub(super) async fn read(plane: &Plane, number: usize) {
    let queue = &plane.queues[number];
    let has_head = queue.tcp_gso();
    let mut buffer = vec![0; HEAD_BYTES + PACKET_BYTES_MAX].into_boxed_slice();
    loop {
        let result = match queue.readable().await {
            Ok(()) => drain(plane, queue, has_head, &mut buffer),
            Err(error) => Err(error),
        };
        match result {
            // Maybe more.
            Ok(()) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(Errno::EBADFD as i32) => {
                return tracing::error!("somebody has removed the tunnels' interface");
            }
            Err(error) => {
                tracing::error!(%error, "the tunnels' interface cannot be read");
                sleep(RETRY).await;
            }
        }
    }
}

fn drain(plane: &Plane, queue: &AsyncDevice, has_head: bool, buffer: &mut [u8]) -> io::Result<()> {
    for _ in 0..READS_MAX {
        let bytes = queue.try_recv(buffer)?;
        let packet = &mut buffer[..bytes];
        let large = if has_head { Large::read(packet) } else { Ok(Large::whole(packet)) };
        match large {
            Ok(large) => plane.deliver(&large),
            Err(_) => plane.meters.dropped(TunnelDrop::Interface, 1),
        }
    }
    Ok(())
}

impl Plane {
    /// Gives a packet of the kernel to the tunnel it is for.
    fn deliver(&self, large: &Large<'_>) {
        let found = large.destination().and_then(|destination| self.directory.find(destination));
        let Some(line) = found.as_ref().and_then(|found| found.as_ref()) else {
            let segments = u64::try_from(large.segments()).unwrap_or(0);
            self.show(large);
            return self.meters.dropped(TunnelDrop::NoTunnel, segments);
        };
        if let Some(reason) = self.forbids(line, large) {
            let dropped = u64::try_from(large.segments()).unwrap_or(0);
            self.show(large);
            return line.dropped(reason, dropped, &self.meters);
        }
        let dropped = line.put(|room| {
            room.reserve(large.segments(), large.segment_bytes_max());
            large.segment(room)
        });
        if dropped > 0 {
            let dropped = u64::try_from(dropped).unwrap_or(0);
            line.dropped(TunnelDrop::QueueFull, dropped, &self.meters);
        }
    }

    /// Why the device must not get this.
    fn forbids(&self, line: &Line, large: &Large<'_>) -> Option<TunnelDrop> {
        if !large.source().is_some_and(|source| self.is_gateway(source)) {
            return Some(TunnelDrop::Forwarded);
        }
        let passage = self.wall.judge_outward(large.headers());
        (!passage.is_some_and(|passage| line.doors.lets_out(passage, Instant::now))).then_some(TunnelDrop::Closed)
    }

    /// What is not cut is all headers; nothing else is worth a look.
    fn show(&self, large: &Large<'_>) {
        if let Some(witness) = self.witness.get() {
            witness(large.headers());
        }
    }
}
