//! Hints between the parts of a node: "look at the database now". A lost hint costs latency, never a fact, because whoever
//! listens also looks on a timer and whenever it has fallen behind.

use cloudlink_proto::ids::{CommandId, DeviceId, PersonId};
use tokio::sync::broadcast;

/// Hints that wait for the slowest listener. One that falls further behind is told so and looks at everything.
const PENDING_MAX: usize = 8192;

/// What may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The device may have commands to be sent, or sent ones to be called back.
    CommandsDue(DeviceId),
    /// The command's state may have changed.
    CommandChanged(CommandId),
    /// The device or one of its certificates may have been revoked, or its quarantine may have begun or ended.
    DeviceChanged(DeviceId),
    /// What is open of the device may have changed.
    OpeningsDue(DeviceId),
    /// Support sessions of the device may have to end, or may end later than before.
    SupportDue(DeviceId),
    /// The person may have been shut out, or may do less than before.
    PersonChanged(PersonId),
    /// Somebody outside is to be told of something.
    NoticesDue,
}

/// Where hints are sent and heard.
#[derive(Clone, Debug)]
pub struct Bus {
    hints: broadcast::Sender<Hint>,
}

impl Bus {
    #[must_use]
    pub fn new() -> Self {
        Self { hints: broadcast::Sender::new(PENDING_MAX) }
    }

    /// Never waits, never fails: without a listener there is nobody to tell.
    pub fn send(&self, hint: Hint) {
        let _ = self.hints.send(hint);
    }

    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener { hints: self.hints.subscribe() }
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

/// What a listener hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Hint(Hint),
    /// Hints were lost: anything may have changed.
    Everything,
    /// The bus is gone, the node is stopping.
    Closed,
}

#[derive(Debug)]
pub struct Listener {
    hints: broadcast::Receiver<Hint>,
}

impl Listener {
    pub async fn hear(&mut self) -> Heard {
        match self.hints.recv().await {
            Ok(hint) => Heard::Hint(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => Heard::Everything,
            Err(broadcast::error::RecvError::Closed) => Heard::Closed,
        }
    }
}
