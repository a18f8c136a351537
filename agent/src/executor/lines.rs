//! What commands that take long say to the rest of the agent, and hear from it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    contact: Mutex<Contact>,
    contact_wanted: Notify,
}

/// Whether the server was heard of since somebody wanted to know.
#[derive(Clone, Copy, Debug)]
enum Contact {
    NotWanted,
    WantedSince(Instant),
    Heard,
}

impl Lines {
    pub(super) fn new(busy: Arc<Busy>) -> (Arc<Self>, Steps) {
        let (steps, told) = mpsc::channel(STEPS_MAX);
        let lines = Self { busy, steps, contact: Mutex::new(Contact::NotWanted), contact_wanted: Notify::new() };
        (Arc::new(lines), told)
    }

    /// Tells how far a command is. A step that nobody hears of does no harm.
    pub(super) fn tell(&self, id: CommandId, percent: u32) {
        let _ = self.steps.try_send((id, percent));
    }

    /// The server has answered what it was asked then. What was asked before somebody wanted to know proves nothing.
    pub(super) fn answered(&self, asked_at: Instant) {
        let mut contact = self.contact();
        if matches!(*contact, Contact::WantedSince(since) if since <= asked_at) {
            *contact = Contact::Heard;
        }
    }

    /// What the server was heard by is lost.
    pub(super) fn lost(&self) {
        let mut contact = self.contact();
        if matches!(*contact, Contact::Heard) {
            *contact = Contact::WantedSince(Instant::now());
        }
    }

    /// Wants the server to be heard of: what was heard before proves nothing any more.
    pub(super) fn want_contact(&self) {
        *self.contact() = Contact::WantedSince(Instant::now());
        self.contact_wanted.notify_one();
    }

    /// Nobody waits for it any more.
    pub(super) fn end_contact(&self) {
        *self.contact() = Contact::NotWanted;
    }

    /// Whether it was heard of since.
    pub(super) fn has_contact(&self) -> bool {
        matches!(*self.contact(), Contact::Heard)
    }

    /// Whether somebody waits for it to be heard of.
    pub(super) fn wants_contact(&self) -> bool {
        matches!(*self.contact(), Contact::WantedSince(_))
    }

    /// Waits until the server is to be heard of soon.
    pub(super) async fn contact_wanted(&self) {
        self.contact_wanted.notified().await;
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing on the device asks not to be disturbed: hours may have passed since the command was taken.
    pub(super) async fn wait_for_quiet(&self, by: Instant) -> Result<(), Failure> {
        self.busy.ended(by).await.map_err(|lock| Failure::new("device_busy", lock.to_string()))
    }
}
