//! Hints between the parts of a node, and between nodes: "look at the database now". A lost hint costs latency, never a fact, because whoever
//! listens also looks on a timer and whenever it has fallen behind.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cloudlink_proto::ids::{CommandId, DeviceId, PersonId, TenantId};
use tokio::sync::{broadcast, mpsc};
use uuid::Uuid;

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
    /// The device has a newer link than before.
    DeviceLinked(DeviceId),
    /// What is open of the device may have changed.
    OpeningsDue(DeviceId),
    /// Support sessions of the device may have to end, or may end later than before.
    SupportDue(DeviceId),
    /// The person may have been shut out, or may do less than before.
    PersonChanged(PersonId),
    /// What devices of this tenant are to have may have changed, or their labels.
    ConfigurationDue(TenantId),
    /// Somebody outside is to be told of something.
    NoticesDue,
}

impl Hint {
    /// Its name between nodes, and whom it is about.
    fn parts(self) -> (&'static str, Option<Uuid>) {
        match self {
            Self::CommandsDue(device) => ("commands_due", Some(device.as_uuid())),
            Self::CommandChanged(command) => ("command_changed", Some(command.as_uuid())),
            Self::DeviceChanged(device) => ("device_changed", Some(device.as_uuid())),
            Self::DeviceLinked(device) => ("device_linked", Some(device.as_uuid())),
            Self::OpeningsDue(device) => ("openings_due", Some(device.as_uuid())),
            Self::SupportDue(device) => ("support_due", Some(device.as_uuid())),
            Self::PersonChanged(person) => ("person_changed", Some(person.as_uuid())),
            Self::ConfigurationDue(tenant) => ("configuration_due", Some(tenant.as_uuid())),
            Self::NoticesDue => ("notices_due", None),
        }
    }

    /// Whether other nodes have something to do about it. Whoever makes a notice sends it.
    const fn is_for_all(self) -> bool {
        !matches!(self, Self::NoticesDue)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (name, Some(id)) => write!(formatter, "{name} {id}"),
            (name, None) => formatter.write_str(name),
        }
    }
}

/// What another node says is no hint that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hint of this version")]
pub struct UnknownHint;

impl FromStr for Hint {
    type Err = UnknownHint;

    fn from_str(text: &str) -> Result<Self, UnknownHint> {
        let (name, id) = text.split_once(' ').ok_or(UnknownHint)?;
        let id: Uuid = id.parse().map_err(|_| UnknownHint)?;
        let device = DeviceId::from_uuid(id);
        match name {
            "commands_due" => Ok(Self::CommandsDue(device)),
            "command_changed" => Ok(Self::CommandChanged(CommandId::from_uuid(id))),
            "device_changed" => Ok(Self::DeviceChanged(device)),
            "device_linked" => Ok(Self::DeviceLinked(device)),
            "openings_due" => Ok(Self::OpeningsDue(device)),
            "support_due" => Ok(Self::SupportDue(device)),
            "configuration_due" => Ok(Self::ConfigurationDue(TenantId::from_uuid(id))),
            "person_changed" => Ok(Self::PersonChanged(PersonId::from_uuid(id))),
            _ => Err(UnknownHint),
        }
    }
}

/// Where hints are sent and heard.
#[derive(Clone, Debug)]
pub struct Bus {
    words: broadcast::Sender<Word>,
    /// To the other nodes, if there can be any.
    outgoing: Arc<OnceLock<mpsc::Sender<Hint>>>,
    /// Hints that other nodes were not told of, since that was last asked.
    untold: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug)]
enum Word {
    Hint(Hint),
    Everything,
}

impl Bus {
    #[must_use]
    pub fn new() -> Self {
        Self { words: broadcast::Sender::new(PENDING_MAX), outgoing: Arc::default(), untold: Arc::default() }
    }

    /// To every listener of every node. Never waits, never fails: without a listener there is nobody to tell.
    pub fn send(&self, hint: Hint) {
        self.deliver(hint);
        if let Some(outgoing) = self.outgoing.get().filter(|_| hint.is_for_all())
            && outgoing.try_send(hint).is_err()
        {
            self.untold.store(true, Ordering::Relaxed);
        }
    }

    /// To the listeners of this node alone: another one has said it.
    pub fn deliver(&self, hint: Hint) {
        let _ = self.words.send(Word::Hint(hint));
    }

    /// Whatever other nodes have said lately was not heard: everybody is to look.
    pub fn deliver_everything(&self) {
        let _ = self.words.send(Word::Everything);
    }

    /// From now on, what other nodes are to be told. Once.
    pub(crate) fn outgoing(&self) -> mpsc::Receiver<Hint> {
        let (sender, receiver) = mpsc::channel(PENDING_MAX);
        // A second one would hear nothing.
        let _ = self.outgoing.set(sender);
        receiver
    }

    /// Whether something was not told since this was last asked: others are to look at everything.
    pub(crate) fn take_untold(&self) -> bool {
        self.untold.swap(false, Ordering::Relaxed)
    }

    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener { words: self.words.subscribe() }
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
    words: broadcast::Receiver<Word>,
}

impl Listener {
    pub async fn hear(&mut self) -> Heard {
        match self.words.recv().await {
            Ok(Word::Hint(hint)) => Heard::Hint(hint),
            Ok(Word::Everything) | Err(broadcast::error::RecvError::Lagged(_)) => Heard::Everything,
            Err(broadcast::error::RecvError::Closed) => Heard::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_go_between_nodes_as_text() {
        let id = Uuid::from_u128(7);
        let device = DeviceId::from_uuid(id);
        for hint in [
            Hint::CommandsDue(device),
            Hint::CommandChanged(CommandId::from_uuid(id)),
            Hint::DeviceChanged(device),
            Hint::DeviceLinked(device),
            Hint::OpeningsDue(device),
            Hint::SupportDue(device),
            Hint::PersonChanged(PersonId::from_uuid(id)),
            Hint::ConfigurationDue(TenantId::from_uuid(id)),
        ] {
            assert_eq!(hint.to_string().parse(), Ok(hint));
            assert!(hint.is_for_all());
        }
        assert!(!Hint::NoticesDue.is_for_all());
        for junk in
            ["", "commands_due", "commands_due x", "of_tomorrow 00000000-0000-0000-0000-000000000007", "notices_due"]
        {
            assert_eq!(junk.parse::<Hint>(), Err(UnknownHint));
        }
    }

    #[tokio::test]
    async fn what_other_nodes_are_told_is_bounded_and_its_loss_is_known() {
        let bus = Bus::new();
        bus.send(Hint::CommandsDue(DeviceId::from_uuid(Uuid::nil())));
        assert!(!bus.take_untold(), "there is nobody to tell");
        let mut outgoing = bus.outgoing();
        bus.deliver(Hint::DeviceChanged(DeviceId::from_uuid(Uuid::nil())));
        bus.send(Hint::NoticesDue);
        assert!(outgoing.try_recv().is_err(), "what others said, and what concerns this node alone");
        for _ in 0..=PENDING_MAX {
            bus.send(Hint::CommandsDue(DeviceId::from_uuid(Uuid::nil())));
        }
        assert!(bus.take_untold() && !bus.take_untold());
    }
}
