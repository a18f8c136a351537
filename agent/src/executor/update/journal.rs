//! How far an update is, on the disk: what an agent goes by that finds one unfinished.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Update;
use crate::disk;

/// Long URLs and versions, escaped.
const BYTES_MAX: u64 = 32 * 1024;

/// One update that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) id: Uuid,
    pub(super) update: Update,
    /// Whether it may disturb a busy device. Agents of before did not note it.
    #[serde(default)]
    pub(super) override_busy: bool,
    /// The boot in which it was begun, or in which it was begun to start what was installed.
    pub(super) boot_id: String,
    pub(super) version_before: String,
    pub(super) phase: Phase,
}

/// What may have been done to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing: fetching may go on.
    Fetching,
    /// The installer was begun: never again.
    Installing,
    /// It is done. What it installed is not started yet.
    Installed,
    /// That was begun, and the new version is waited for.
    Activating {
        /// That went on with it after the one that began it. Agents of before did not note it.
        #[serde(default)]
        agents: u32,
    },
    /// What was before is put back, for this reason.
    RollingBack { reason: String, detail: String, attempts: u32 },
}

impl Journal {
    /// `None` when there is none, or nothing that can be read: then the update is told as interrupted.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let content = disk::read_if_there(path, BYTES_MAX);
        let content =
            content.inspect_err(|error| tracing::warn!(%error, "the journal of an update is unread")).ok()??;
        serde_json::from_slice(&content)
            .inspect_err(|error| tracing::warn!(%error, "the journal of an update is not one"))
            .ok()
    }

    /// On the disk when it returns.
    pub(super) fn enter(&mut self, phase: Phase, path: &Path) -> io::Result<()> {
        let next = Self { phase, ..self.clone() };
        let content = serde_json::to_vec(&next).map_err(io::Error::other)?;
        disk::write_atomically(path, &content, disk::MODE_SECRET)?;
        *self = next;
        Ok(())
    }
}
