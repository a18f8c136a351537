//! Somebody beside the operator who opened a terminal: another operator who types as well, or people of the device's owner who
//! watch. A guest never holds up the session: whoever does not read what is shown is sent away.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX, Mode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::Support;
use super::leg::Leg;
use super::session::Session;

/// Output that waits for a guest. Whoever is further behind is sent away.
const BEHIND_BYTES_MAX: usize = 512 * 1024;
/// Output that a guest sees of the time before.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A window, in columns and rows.
pub(super) type Size = (u16, u16);

#[derive(Debug)]
pub(crate) struct Guest {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) leg: Leg,
    pub(super) size: Option<Size>,
    /// Last: the end of the session waits until the connection before it is closed.
    pub(super) seat: Seat,
}

/// A guest's right to be there.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(super) id: Uuid,
    pub(super) session: Arc<Session>,
    pub(super) support: Support,
    /// Tells whoever watches over the guest's token that there is nothing left to watch.
    pub(super) gone: CancellationToken,
    pub(super) _open: TaskTrackerToken,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gone.cancel();
        self.session.dismiss_guest(self.id);
        self.support.note_guest_left(self.id);
    }
}

impl Guest {
    /// Shows output. False: the guest is too far behind.
    pub(super) fn show(&mut self, bytes: &Bytes) -> bool {
        let keeps_up = self.leg.queued_bytes() + bytes.len() <= BEHIND_BYTES_MAX;
        if keeps_up {
            self.leg.pass(bytes.clone());
        }
        keeps_up
    }

    /// Shows what whoever comes later needs to know.
    pub(super) fn welcome(&mut self, screen: &Screen, (columns, rows): Size) {
        self.leg.pass_control(Control::Ready);
        self.leg.pass_control(Control::Screen { columns, rows });
        for part in screen.recent() {
            self.leg.pass(part);
        }
    }

    pub(super) fn operates(&self) -> bool {
        self.mode == Mode::Operate
    }
}

/// The recent output of a terminal.
#[derive(Debug, Default)]
pub(super) struct Screen {
    recent: VecDeque<u8>,
    /// Older output was dropped.
    is_cut: bool,
}

impl Screen {
    pub(super) fn show(&mut self, bytes: &[u8]) {
        self.recent.extend(bytes);
        let surplus = self.recent.len().saturating_sub(REPLAY_BYTES_MAX);
        if surplus > 0 {
            self.recent.drain(..surplus);
            self.is_cut = true;
        }
    }

    /// In parts that fit a message. Begins with a line: the middle of a character or of a control sequence shows as rubbish.
    fn recent(&self) -> Vec<Bytes> {
        let whole: Vec<u8> = self.recent.iter().copied().collect();
        let line = whole.iter().position(|byte| *byte == b'\n').filter(|_| self.is_cut).map_or(0, |end| end + 1);
        whole[line..].chunks(DATA_BYTES_MAX).map(Bytes::copy_from_slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_late_sees_the_recent_lines_and_no_half_one() {
        let mut screen = Screen::default();
        assert!(screen.recent().is_empty());
        screen.show(b"half");
        assert_eq!(screen.recent(), [Bytes::from_static(b"half")]);
        for _ in 0..REPLAY_BYTES_MAX {
            screen.show(b"0123456\n");
        }
        let recent = screen.recent().concat();
        assert!(recent.len() <= REPLAY_BYTES_MAX && recent.len() >= REPLAY_BYTES_MAX - 8);
        assert!(recent.starts_with(b"0123456\n") && recent.ends_with(b"0123456\n"));
    }
}
