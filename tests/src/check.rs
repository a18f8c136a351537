//! The independent checker: whether what devices and the database remember of a run can have come of a server that keeps its
//! promises. It knows nothing of the server's code, was not there, and reads only files and tables.
//!
//! `evidence` reads, `command`, `presence` and `audit` judge. [`Evidence::faults`] is a pure function; its tests break good
//! evidence in each way there is.

use std::time::Duration;

use uuid::Uuid;

mod audit;
mod command;
mod evidence;
mod presence;
#[cfg(test)]
mod tests;

pub use evidence::{AuditRow, ChainRow, CommandRow, Evidence, GrantRow};

/// What is promised within a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For how long the database may show a link otherwise than the device sees it.
    pub presence: Duration,
    /// How long after a grant was taken back a command that had been sent before may be begun.
    pub revocation: Duration,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("command {0} was made, the API said, and is not in the database")]
    Lost(Uuid),
    #[error("command {0} is {1}: that is no final state")]
    NotFinal(Uuid, String),
    #[error("command {command} has {finals} ends in the audit log")]
    NotOneEnd { command: Uuid, finals: usize },
    #[error("command {0} was begun twice")]
    BegunTwice(Uuid),
    #[error("command {0} was begun by a device that it was not for")]
    Foreign(Uuid),
    #[error("command {0} was begun, and is not in the database")]
    Unknown(Uuid),
    #[error("command {0} is {1}, which says that it was never begun, and it was")]
    BegunAllTheSame(Uuid, String),
    #[error("command {0} is {1}, and its device never began it")]
    NeverBegun(Uuid, String),
    #[error("command {command} was begun {late_ms} ms after it had expired")]
    AfterExpiry { command: Uuid, late_ms: i64 },
    #[error("command {command} was begun {late_ms} ms after its grant's end")]
    AfterGrant { command: Uuid, late_ms: i64 },
    #[error("command {command} was begun {early_ms} ms before its grant's begin")]
    BeforeGrant { command: Uuid, early_ms: i64 },
    #[error("command {command} was begun {late_ms} ms after its grant was taken back")]
    AfterRevocation { command: Uuid, late_ms: i64 },
    #[error("command {0} was sent after its grant had been taken back")]
    SentAfterRevocation(Uuid),
    #[error("command {0} is of no grant that gives it to this device and this person")]
    NotGranted(Uuid),
    #[error("the device was told that command {command} is stored as {told}, and it is {stored}")]
    ResultLost { command: Uuid, told: String, stored: String },
    #[error("the device told the end of command {0}, again and again, and was never told that it is stored")]
    NotReceipted(Uuid),
    #[error("command {0} was sent again over a newer link than that which brought its receipt")]
    SentAfterReceipt(Uuid),
    #[error("device {device} was welcomed with epoch {next} after {before}")]
    EpochNotGrowing { device: Uuid, before: u64, next: u64 },
    #[error(
        "device {device}: the device says {device_says}, the database {database_says}, for more than {wrong_ms} ms until {until_us}"
    )]
    PresenceWrong { device: Uuid, device_says: String, database_says: String, wrong_ms: i64, until_us: i64 },
    #[error("entry {seq} of the audit log of {tenant} does not follow from those before it")]
    AuditBroken { tenant: Uuid, seq: i64 },
    #[error("the audit log of {0} does not end where it says")]
    AuditCut(Uuid),
}

/// What was there to be judged: a run in which nothing happened has shown nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub commands: usize,
    pub succeeded: usize,
    pub unconfirmed: usize,
    pub begun: usize,
    /// Commands that came to a device more than once.
    pub delivered_again: usize,
    /// Commands under grants that were taken back or ran out before the command had ended.
    pub ended_by_grant: usize,
    pub devices: usize,
    pub links: usize,
    /// Looks at one device's link that could be judged.
    pub looks: usize,
    /// The longest that the database showed something wrong.
    pub wrong_ms: i64,
    /// The latest begin after a grant was taken back.
    pub after_revocation_ms: i64,
    pub audit_entries: usize,
}

impl Evidence {
    /// All that is wrong, and how much was looked at.
    #[must_use]
    pub fn faults(&self, limits: &Limits) -> (Vec<Fault>, Figures) {
        let (mut faults, mut figures) = (Vec::new(), Figures::default());
        command::check(self, limits, &mut faults, &mut figures);
        presence::check(self, limits, &mut faults, &mut figures);
        audit::check(self, &mut faults, &mut figures);
        (faults, figures)
    }
}
