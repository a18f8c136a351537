//! Support sessions: terminals, port forwards and file copies, live or over.

use std::io::{self, IsTerminal, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use crate::argument::{self, NewestLimit};
use crate::client::{Answer, Client, SupportSessionFilter};
use crate::failure::Failure;
use crate::model::{self, SupportSession};
use crate::output::{Cell, Here, Table, Tone, plain};
use crate::resolve::{self, Names};

#[derive(Debug, Subcommand)]
pub(crate) enum Support {
    /// List support sessions, newest first
    List(List),
    /// Show one support session: who, what, until when, and how it ended
    Show {
        /// Id of the session
        session: String,
    },
    /// End a support session now; all its streams are cut
    Close {
        /// Id of the session
        session: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only sessions on this device, by name or id
    #[arg(long)]
    device: Option<String>,
    /// Only sessions under this grant, by id
    #[arg(long)]
    grant: Option<String>,
    /// Only sessions that this person opened, by name or id
    #[arg(long)]
    person: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    live: bool,
    /// Only those that were opened at this time or later, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    from: Option<Timestamp>,
    /// Only those that were opened before this time
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    limit: NewestLimit,
}

/// Why, and under which grant, a session is opened.
#[derive(Clone, Debug, Args)]
pub(crate) struct Why {
    /// Why, for the record; it is asked for at a terminal
    #[arg(long)]
    reason: Option<String>,
    /// Id of the grant to act under; without it, the server chooses one that allows it
    #[arg(long, value_name = "GRANT")]
    grant: Option<String>,
}

impl Why {
    /// Opens a session.
    pub(super) async fn open(
        &self,
        context: &Context,
        client: &Client,
        device: &str,
        kind: &str,
        target: Value,
    ) -> Result<Answer<SupportSession>, Failure> {
        let device = resolve::device(client, device).await?.value.id;
        let body = self.body(context, kind, target)?;
        client.support_session_create(device, body).await
    }

    fn body(&self, context: &Context, kind: &str, target: Value) -> Result<Value, Failure> {
        let mut body = json!({ "kind": kind, "target": target, "reason": self.reason(context)? });
        if let Some(grant) = &self.grant {
            body["grant_id"] = json!(resolve::id("grant", grant)?);
        }
        Ok(body)
    }

    /// What was given, or what somebody says who can be asked.
    fn reason(&self, context: &Context) -> Result<String, Failure> {
        if let Some(reason) = &self.reason {
            return Ok(reason.clone());
        }
        let missing = || Failure::Usage("why?\nGive --reason: it is kept with the recording.".to_owned());
        if context.output.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(missing());
        }
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "Reason, for the record: ").and_then(|()| stderr.flush());
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|error| Failure::Other(error.into()))?;
        let answer = answer.trim();
        if answer.is_empty() { Err(missing()) } else { Ok(answer.to_owned()) }
    }

    /// The same for several sessions: asks once.
    pub(super) fn asked(self, context: &Context) -> Result<Self, Failure> {
        Ok(Self { reason: Some(self.reason(context)?), grant: self.grant })
    }
}

pub(super) fn id(text: &str) -> Result<Uuid, Failure> {
    resolve::id_listed("support session", text, "support list")
}

impl Support {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(context).await,
            Self::Show { session } => {
                let client = context.client()?;
                let session = client.support_session(id(session)?).await?;
                let names = names(context, &client, std::slice::from_ref(&session)).await;
                context.show(&session, || record(&session.value, &names, &context.output.here()))
            }
            Self::Close { session } => {
                let answer = context.client()?.support_session_close(id(session)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                let why = answer.value.end_reason.unwrap_or_else(|| "closed".to_owned());
                context.output.line(&format!("Session {} has ended: {}", answer.value.id, words(&why)))
            }
        }
    }
}

impl List {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let filter = SupportSessionFilter {
            device_id: match &self.device {
                Some(device) => Some(resolve::device(&client, device).await?.value.id),
                None => None,
            },
            grant_id: self.grant.as_ref().map(|grant| resolve::id("grant", grant)).transpose()?,
            person_id: match &self.person {
                Some(person) => Some(person_id(&client, person).await?),
                None => None,
            },
            live: self.live.then_some(true),
            from: self.from,
            until: self.until,
        };
        let list = client.support_sessions(self.limit.items(), &filter).await?;
        let names = names(context, &client, &list.items).await;
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

/// Who may not list people can still name them by their id.
async fn person_id(client: &Client, text: &str) -> Result<Uuid, Failure> {
    match text.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(resolve::person(client, text).await?.value.id),
    }
}

async fn names(context: &Context, client: &Client, sessions: &[Answer<SupportSession>]) -> Names {
    if context.output.json { Names::default() } else { Names::of_sessions(client, sessions).await }
}

fn table(sessions: &[Answer<SupportSession>], names: &Names, here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "KIND", "DEVICE", "BY", "BEGAN", "REASON", "ID"]).whole(6);
    for Answer { value, .. } in sessions {
        table.row(vec![
            state(value),
            what(value).into(),
            names.name(value.device_id).into(),
            names.name(value.opened_by).into(),
            here.short(value.created_at).into(),
            value.reason.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(session: &SupportSession, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("session", session.id.to_string());
    table.field("state", state(session));
    table.field("kind", what(session));
    table.field("device", names.name(session.device_id));
    table.field("opened by", names.name(session.opened_by));
    table.field("reason", session.reason.clone());
    table.field("grant", session.grant_id.to_string());
    table.field("opened", here.full(session.created_at));
    if let Some(at) = session.started_at {
        table.field("began", here.full(at));
    }
    match session.ended_at {
        Some(at) => table.field("ended", here.full(at)),
        None => table.field("until", here.full(session.expires_at)),
    }
    if let Some(cut_off_ms) = session.cut_off_ms {
        table.field("cut off", format!("{cut_off_ms} ms from when it had to be over to its last byte"));
    }
    table.field("bytes", format!("{} to the device, {} from it", session.bytes_to_device, session.bytes_from_device));
    for model::Guest { person_id, joined_at, left_at } in &session.guests {
        let left = left_at.map_or_else(|| "is there still".to_owned(), |at| format!("until {}", here.short(at)));
        table.field("guest", format!("{}, from {}, {left}", names.name(*person_id), here.short(*joined_at)));
    }
    for (name, value) in session.result.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.field("result", format!("{}: {value}", words(name)));
    }
    table
}

/// `forward of localhost:80`
fn what(session: &SupportSession) -> String {
    let target = &session.target;
    match (session.kind.as_str(), target["path"].as_str(), target["host"].as_str()) {
        ("file", Some(path), _) if target["direction"] == "to_device" => format!("file to {path}"),
        ("file", Some(path), _) => format!("file {path}"),
        ("forward", _, Some(host)) => {
            let direct = if target["via"] == "node" { ", direct" } else { "" };
            format!("forward of {host}:{}{direct}", target["port"])
        }
        (kind, ..) => words(kind),
    }
}

fn state(session: &SupportSession) -> Cell {
    match (session.state.as_str(), &session.end_reason) {
        ("live", _) => Cell::toned("live", Tone::Good),
        ("waiting", _) => Cell::toned("waiting", Tone::Warn),
        ("ended", Some(reason)) => Cell::toned(format!("ended: {}", words(reason)), Tone::Dim),
        (other, _) => Cell::toned(words(other), Tone::Dim),
    }
}

fn words(name: &str) -> String {
    plain(name).replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> SupportSession {
        serde_json::from_value(json!({
            "id": "018f0000-0000-7000-8000-000000000001", "tenant_id": "018f0000-0000-7000-8000-000000000009",
            "device_id": "018f0000-0000-7000-8000-000000000002", "grant_id": "018f0000-0000-7000-8000-000000000003",
            "opened_by": "018f0000-0000-7000-8000-000000000004", "kind": "forward",
            "target": {"host": "localhost", "port": 80, "via": "node"}, "reason": "stuck", "state": "live",
            "created_at": "2026-11-21T14:00:00Z", "started_at": "2026-11-21T14:00:01Z",
            "expires_at": "2026-11-21T14:10:00Z", "ended_at": null, "end_reason": null, "cut_off_ms": null,
            "bytes_to_device": 10, "bytes_from_device": 20, "result": {"connections": 3}, "guests": [],
        }))
        .unwrap()
    }

    fn shown(session: &SupportSession) -> String {
        let here = Here { now: "2026-11-21T14:02:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        record(session, &Names::default(), &here).render(false, None)
    }

    #[test]
    fn tells_what_a_live_session_is_and_until_when() {
        let text = shown(&session());
        for part in ["live", "forward of localhost:80, direct", "in 8 min", "10 to the device", "connections: 3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("cut off"), "{text}");
    }

    #[test]
    fn tells_how_long_a_cut_took_and_why() {
        let ended = SupportSession {
            state: "ended".to_owned(),
            end_reason: Some("grant_revoked".to_owned()),
            ended_at: Some("2026-11-21T14:01:00Z".parse().unwrap()),
            cut_off_ms: Some(37),
            ..session()
        };
        let text = shown(&ended);
        assert!(text.contains("ended: grant revoked") && text.contains("37 ms from when it had to be over"), "{text}");
    }

    #[test]
    fn a_file_shows_its_way() {
        let file = |direction: &str| SupportSession {
            kind: "file".to_owned(),
            target: json!({"path": "/etc/hosts", "direction": direction}),
            ..session()
        };
        assert_eq!(what(&file("to_device")), "file to /etc/hosts");
        assert_eq!(what(&file("from_device")), "file /etc/hosts");
    }
}
