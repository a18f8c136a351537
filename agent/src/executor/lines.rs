//! What commands that take long say to the rest of the agent, and hear from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cloudlink_proto::ids::CommandId;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::Failure;
use crate::busy::Busy;

/// Steps that wait to be told. One more is left out.
const STEPS_MAX: usize = 16;

/// How far commands are, in percent, for the server.
pub type Steps = mpsc::Receiver<(CommandId, u32)>;

#[derive(Debug)]
pub(super) struct Lines {
    busy: Arc<Busy>,
    steps: mpsc::Sender<(CommandId, u32)>,
    /// Whether the server was heard of since somebody wanted to know.
    contact: AtomicBool,
    contact_wanted: Notify,
}

impl Lines {
    pub(super) fn new(busy: Arc<Busy>) -> (Arc<Self>, Steps) {
        let (steps, told) = mpsc::channel(STEPS_MAX);
        let lines = Self { busy, steps, contact: AtomicBool::new(false), contact_wanted: Notify::new() };
        (Arc::new(lines), told)
    }

    /// Tells how far a command is. A step that nobody hears of does no harm.
    pub(super) fn tell(&self, id: CommandId, percent: u32) {
        let _ = self.steps.try_send((id, percent));
    }

    /// The server was heard of just now, or its link is lost.
    pub(super) fn set_contact(&self, contact: bool) {
        self.contact.store(contact, Ordering::Relaxed);
    }

    /// Wants the server to be heard of: what was heard before proves nothing any more.
    pub(super) fn want_contact(&self) {
        self.set_contact(false);
        self.contact_wanted.notify_one();
    }

    /// Whether it was heard of since.
    pub(super) fn has_contact(&self) -> bool {
        self.contact.load(Ordering::Relaxed)
    }

    /// Waits until the server is to be heard of soon.
    pub(super) async fn contact_wanted(&self) {
        self.contact_wanted.notified().await;
    }

    /// Waits until nothing on the device asks not to be disturbed: hours may have passed since the command was taken.
    pub(super) async fn wait_for_quiet(&self, by: Instant) -> Result<(), Failure> {
        self.busy.ended(by).await.map_err(|lock| Failure::new("device_busy", lock.to_string()))
    }
}
