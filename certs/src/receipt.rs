//! What a tenant is told when a grant is over: who asked, who let them in, what was done, what was recorded of it, and how soon
//! it was closed. A [signed statement](crate::statement) of the kind [`Receipt`](crate::StatementKind::Receipt).
//!
//! A receipt names the entries of the tenant's audit log that are about the grant, by number and hash, and the head of the log
//! at that moment. So it can be held against an export of the log, and an entry that either of them lacks shows.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

/// Grows when a field changes its meaning or goes; that fields are added is no reason.
pub const VERSION: u32 = 1;
/// Entries of one list. What is more is counted in [`Receipt::omitted`].
pub const LINES_MAX: usize = 10_000;

const TIME: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");

/// The content of the statement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`VERSION`].
    pub version: u32,
    pub trust_domain: String,
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    pub tenant: Named,
    pub grant: Grant,
    /// What the grant came of; null when the tenant gave it without being asked.
    pub request: Option<Request>,
    pub commands: Vec<Command>,
    pub sessions: Vec<Session>,
    pub openings: Vec<Opening>,
    /// The longest of the sessions' `cut_off_ms`.
    pub cut_off_ms_max: Option<i32>,
    pub audit: Audit,
    /// Commands, sessions, openings and entries that found no room.
    pub omitted: u64,
}

/// Somebody, or something, by id and by the name that it had when the receipt was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub id: Uuid,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    pub id: Uuid,
    pub created_by: Named,
    pub reason: String,
    pub scopes: Vec<String>,
    /// Null: every operator.
    pub operators: Option<Vec<Named>>,
    /// Null: all that the selector chose.
    pub devices: Option<Vec<Named>>,
    /// Labels with their values, or the text of a selector that says more.
    pub selector: Option<Value>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub starts_at: OffsetDateTime,
    /// As it was agreed at last.
    #[serde(with = "time::serde::rfc3339")]
    pub ends_at: OffsetDateTime,
    /// Sooner than `ends_at`, if somebody took it back.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    pub revoked_by: Option<Named>,
    /// The key of the tenant's own with which it was signed.
    pub signing_key_id: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub id: Uuid,
    pub requested_by: Named,
    pub reason: String,
    pub ticket: Option<String>,
    pub scopes: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub access_until: OffsetDateTime,
    pub decisions: Vec<Decision>,
    /// The rule of the tenant's that allowed it without being asked.
    pub policy: Option<Named>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub by: Named,
    /// `approve` or `deny`.
    pub decision: String,
    pub comment: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub id: Uuid,
    pub device: Named,
    pub requested_by: Named,
    pub kind: String,
    pub arguments: Value,
    pub reason: String,
    pub state: String,
    pub code: Option<String>,
    pub message: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub id: Uuid,
    pub device: Named,
    pub opened_by: Named,
    pub guests: Vec<Named>,
    /// `terminal`, `forward` or `file`.
    pub kind: String,
    pub target: Value,
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
    /// Milliseconds from the moment at which it had to be over to its last byte; null when it was over before.
    pub cut_off_ms: Option<i32>,
    pub bytes_to_device: i64,
    pub bytes_from_device: i64,
    pub result: Value,
    pub recording: Option<Recording>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    pub format: String,
    pub bytes: i64,
    /// SHA-256 of the whole text, in hex.
    pub sha256: Option<String>,
    pub is_cut_short: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    pub id: Uuid,
    pub device: Named,
    pub opened_by: Named,
    pub port: i32,
    pub reason: String,
    #[serde(with = "time::serde::rfc3339::option")]
    pub opened_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub end_reason: Option<String>,
}

/// Where all that stands in the tenant's audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// All that are about the grant, in order.
    pub entries: Vec<Entry>,
    /// The last entry of the log when the receipt was made.
    pub head: Entry,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub seq: u64,
    /// In hex.
    pub hash: String,
    pub action: String,
}

impl Receipt {
    /// The ids of everything that it is about: the subjects of its entries.
    pub fn subjects(&self) -> impl Iterator<Item = Uuid> {
        let of_lists = self.commands.iter().map(|command| command.id);
        let of_lists = of_lists.chain(self.sessions.iter().map(|session| session.id));
        let of_lists = of_lists.chain(self.openings.iter().map(|opening| opening.id));
        std::iter::once(self.grant.id).chain(self.request.iter().map(|request| request.id)).chain(of_lists)
    }
}

/// The readable form. Whatever somebody else has written stands in quotes, with control characters escaped.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grant = &self.grant;
        writeln!(f, "Receipt for grant {} of {:?}", grant.id, self.tenant.name)?;
        writeln!(f, "Made {} by {}", At(self.made_at), self.trust_domain)?;
        writeln!(f)?;
        if let Some(request) = &self.request {
            writeln!(f, "Asked by    {:?}, {}", request.requested_by.name, At(request.created_at))?;
            writeln!(f, "            for {} until {}", request.scopes.join(", "), At(request.access_until))?;
            writeln!(f, "            because {:?}", request.reason)?;
            if let Some(ticket) = &request.ticket {
                writeln!(f, "            ticket {ticket:?}")?;
            }
            for Decision { by, decision, comment, at } in &request.decisions {
                writeln!(f, "Answered    {decision} by {:?}, {}", by.name, At(*at))?;
                if let Some(comment) = comment {
                    writeln!(f, "            {comment:?}")?;
                }
            }
            if let Some(policy) = &request.policy {
                writeln!(f, "Allowed     by the policy {:?}", policy.name)?;
            }
        } else {
            writeln!(f, "Given by    {:?}, unasked, because {:?}", grant.created_by.name, grant.reason)?;
        }
        writeln!(f, "For         {}", grant.scopes.join(", "))?;
        writeln!(f, "Operators   {}", names(grant.operators.as_deref()).unwrap_or_else(|| "all".to_owned()))?;
        match (names(grant.devices.as_deref()), &grant.selector) {
            (Some(devices), _) => writeln!(f, "Devices     {devices}")?,
            (None, Some(selector)) => writeln!(f, "Devices     all with the labels {selector}")?,
            (None, None) => {}
        }
        writeln!(f, "From        {}", At(grant.starts_at))?;
        writeln!(f, "Until       {}", At(grant.ends_at))?;
        if let (Some(at), Some(by)) = (grant.revoked_at, &grant.revoked_by) {
            writeln!(f, "Taken back  {} by {:?}", At(at), by.name)?;
        }
        self.show_deeds(f)?;
        let audit = &self.audit;
        writeln!(f, "\n{} entries of the audit log are about it.", audit.entries.len())?;
        writeln!(f, "The log's head was entry {}, {}.", audit.head.seq, audit.head.hash)?;
        if self.omitted > 0 {
            writeln!(f, "{} lines found no room in this receipt: see the audit log.", self.omitted)?;
        }
        Ok(())
    }
}

impl Receipt {
    fn show_deeds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.commands.is_empty() && self.sessions.is_empty() && self.openings.is_empty() {
            writeln!(f, "\nNothing was done.")?;
        }
        for command in &self.commands {
            let (device, by) = (&command.device.name, &command.requested_by.name);
            writeln!(f, "\nCommand     {} {} on {device:?} by {by:?}", command.kind, command.arguments)?;
            writeln!(f, "            {}, because {:?}", At(command.created_at), command.reason)?;
            write!(f, "            {}", command.state)?;
            if let Some(code) = &command.code {
                write!(f, " ({code})")?;
            }
            writeln!(f, "{}", Then(command.finished_at))?;
        }
        for session in &self.sessions {
            self::show_session(f, session)?;
        }
        for opening in &self.openings {
            let (device, by) = (&opening.device.name, &opening.opened_by.name);
            writeln!(f, "\nOpen port   {} of {device:?} by {by:?}, because {:?}", opening.port, opening.reason)?;
            let end = opening.end_reason.as_deref().unwrap_or("open");
            writeln!(f, "            opened{}; {end}{}", Then(opening.opened_at), Then(opening.ended_at))?;
        }
        if let Some(ms) = self.cut_off_ms_max {
            writeln!(f, "\nWhat had to end was cut within {ms} ms.")?;
        }
        Ok(())
    }
}

fn show_session(f: &mut fmt::Formatter<'_>, session: &Session) -> fmt::Result {
    let (device, by) = (&session.device.name, &session.opened_by.name);
    writeln!(f, "\nSession     {} {} on {device:?} by {by:?}", session.kind, session.target)?;
    writeln!(f, "            {}, because {:?}", At(session.created_at), session.reason)?;
    if !session.guests.is_empty() {
        writeln!(f, "            also there: {}", names(Some(&session.guests)).unwrap_or_default())?;
    }
    let end = session.end_reason.as_deref().unwrap_or("not ended");
    write!(f, "            {end}{}", Then(session.ended_at))?;
    if let Some(ms) = session.cut_off_ms {
        write!(f, ", {ms} ms after it had to be")?;
    }
    writeln!(f)?;
    writeln!(f, "            {} bytes to the device, {} from it", session.bytes_to_device, session.bytes_from_device)?;
    if let Some(recording) = &session.recording {
        let cut = if recording.is_cut_short { ", cut short" } else { "" };
        let digest = recording.sha256.as_deref().unwrap_or("unknown");
        writeln!(f, "            recording: {} bytes{cut}, SHA-256 {digest}", recording.bytes)?;
    }
    Ok(())
}

fn names(all: Option<&[Named]>) -> Option<String> {
    all.map(|all| all.iter().map(|named| format!("{:?}", named.name)).collect::<Vec<_>>().join(", "))
}

struct At(OffsetDateTime);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0.to_offset(time::UtcOffset::UTC);
        f.write_str(&at.format(TIME).map_err(|_| fmt::Error)?)
    }
}

/// A comma and when, if it is known when.
struct Then(Option<OffsetDateTime>);

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |at| write!(f, ", {}", At(at)))
    }
}
