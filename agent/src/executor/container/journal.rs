//! How far the update of a container is, on the disk: what an agent goes by that finds one unfinished.

use std::io;
use std::path::Path;

use bollard::models::RestartPolicy;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::ContainerUpdate;
use crate::disk;

const BYTES_MAX: u64 = 32 * 1024;

/// One update that was begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) id: Uuid,
    pub(super) update: ContainerUpdate,
    /// Whether it may disturb a device that is busy.
    pub(super) override_busy: bool,
    /// The boot in which it was begun.
    pub(super) boot_id: String,
    /// Whether the device did not have the image. Agents of before did not note it.
    #[serde(default)]
    pub(super) pulls: bool,
    /// What there is to go back to. Nothing is touched before it stands here.
    pub(super) before: Option<Before>,
    pub(super) phase: Phase,
}

/// The container of before, and what was changed about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Before {
    pub(super) container_id: String,
    pub(super) image_id: String,
    /// The same for people.
    pub(super) image: String,
    pub(super) is_running: bool,
    pub(super) restart_policy: Option<RestartPolicy>,
    /// How long it may take to end.
    pub(super) stop_seconds: i32,
    /// The id of the new image, if the device did not have it before.
    pub(super) pulled: Option<String>,
}

/// What may have been done to the device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Phase {
    /// Nothing but pulling, which may be done again.
    Pulling,
    /// The new container is made and takes the place of the other one.
    Replacing,
    /// It was started, and must show that it runs.
    Confirming {
        container_id: String,
        /// That went on with it after the one that began it. Agents of before did not note it.
        #[serde(default)]
        agents: u32,
    },
    /// It stays: what was before is removed.
    Committing { container_id: String },
    /// What was before is put back, for this reason.
    RollingBack { reason: String, detail: String },
    /// It is back.
    RolledBack { reason: String, detail: String },
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

    /// Whether the container of before may be out of its place.
    pub(super) fn is_half_done(&self) -> bool {
        match self.phase {
            Phase::Replacing | Phase::Confirming { .. } | Phase::RollingBack { .. } => true,
            Phase::Pulling | Phase::Committing { .. } | Phase::RolledBack { .. } => false,
        }
    }
}
