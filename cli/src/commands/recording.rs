//! What was recorded of support sessions.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use nix::sys::termios::{FlushArg, tcflush};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use crate::argument::{NewestLimit, time};
use crate::client::{Answer, Client, RecordingFilter};
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone, note, rough};
use crate::recording::{Event, Events, Pace, Received, hidden_file, receive};
use crate::resolve::{self, Names};

#[derive(Debug, Subcommand)]
pub(crate) enum Recording {
    /// List recordings, newest first
    List(List),
    /// Show what is known of one recording
    Show {
        /// Id of the support session
        session: String,
    },
    /// Show again what was recorded, as fast as it was, or faster
    Play(Play),
    /// Write a recording to a file, checking its digest: asciicast v2 of a terminal, JSON lines of the rest
    Export(Export),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only of this device, by name or id
    #[arg(long)]
    device: Option<String>,
    /// Only of this tenant, by name or id
    #[arg(long)]
    tenant: Option<String>,
    /// Only of sessions that this person opened, joined or watched, by id, or by name for who may list people
    #[arg(long)]
    person: Option<String>,
    /// Only under this grant, by id
    #[arg(long)]
    grant: Option<String>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only those begun at this time or later, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only those begun before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    limit: NewestLimit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Terminal,
    Forward,
    File,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Forward => "forward",
            Self::File => "file",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Play {
    /// Id of the support session
    session: String,
    /// So many times as fast as it was
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = factor)]
    speed: f64,
    /// No pause longer than this, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = factor)]
    idle_limit: Option<f64>,
    /// Without any pause
    #[arg(long, conflicts_with_all = ["speed", "idle_limit"])]
    at_once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Id of the support session
    session: String,
    /// Write to this file, which only appears when it is complete and its digest is right; `-` is standard output. Without it,
    /// a file named after the session
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Recording {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(context).await,
            Self::Show { session } => {
                let client = context.client()?;
                show(context, &client, client.recording(id(session)?).await?).await
            }
            Self::Play(play) => play.run(context).await,
            Self::Export(export) => export.run(context).await,
        }
    }
}

impl List {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let filter = RecordingFilter {
            device_id: match &self.device {
                Some(device) => Some(resolve::device(&client, device).await?.value.id),
                None => None,
            },
            tenant_id: match &self.tenant {
                Some(tenant) => Some(resolve::tenant(&client, tenant).await?.value.id),
                None => None,
            },
            person_id: match &self.person {
                Some(person) => Some(match person.parse() {
                    // Operators may not list people.
                    Ok(id) => id,
                    Err(_) => resolve::person(&client, person).await?.value.id,
                }),
                None => None,
            },
            grant_id: self.grant.as_ref().map(|grant| resolve::id("grant", grant)).transpose()?,
            kind: self.kind.map(Kind::name),
            from: self.from,
            until: self.until,
        };
        let list = client.recordings(self.limit.items(), &filter).await?;
        let names =
            if context.output.json { Names::default() } else { Names::of_recordings(&client, &list.items).await };
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

impl Play {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let (client, session) = (context.client()?, id(&self.session)?);
        let recording = client.recording(session).await?.value;
        // All of it, before a byte is shown: what is not what was recorded is not shown.
        let mut file = hidden_file()?;
        let received =
            receive(client.recording_content(session).await?, recording.digest.as_deref(), &mut file).await?;
        tell(&recording, &received);
        let mut events = Events::of_file(file).map_err(anyhow::Error::new)?;
        if context.output.json {
            while let Some(event) = events.next_event().map_err(anyhow::Error::new)? {
                context.output.json_line(&to_json(&event))?;
            }
            return Ok(());
        }
        let screen = Screen::begin();
        let played = tokio::select! {
            played = self.play(context, events) => played,
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        screen.end()?;
        played
    }

    async fn play<R: io::BufRead>(&self, context: &Context, mut events: Events<R>) -> Result<(), Failure> {
        let pace =
            Pace { speed: self.speed, idle_limit: self.idle_limit.map(Duration::from_secs_f64), at_once: self.at_once };
        let mut before = Duration::ZERO;
        while let Some(event) = events.next_event().map_err(anyhow::Error::new)? {
            let (Event::Output { at, .. } | Event::Other { at, .. } | Event::Entry { at, .. }) = &event;
            tokio::time::sleep(pace.pause(before, *at)).await;
            before = *at;
            match &event {
                // As it was shown on the operator's screen: what steers a terminal is meant to.
                Event::Output { text, .. } => raw(text)?,
                Event::Other { .. } => {}
                Event::Entry { at, entry } => context.output.line(&in_words(*at, entry))?,
            }
        }
        Ok(())
    }
}

impl Export {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let (client, session) = (context.client()?, id(&self.session)?);
        let recording = client.recording(session).await?.value;
        if self.output.as_deref() == Some(Path::new("-")) {
            let mut out = BufWriter::new(io::stdout().lock());
            let pieces = client.recording_content(session).await?;
            tell(&recording, &receive(pieces, recording.digest.as_deref(), &mut out).await?);
            return Ok(());
        }
        let path = match &self.output {
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{session}.{}", extension(&recording.format))),
        };
        let received = export_to(&client, &recording, &path).await?;
        tell(&recording, &received);
        if context.output.json {
            return context.output.json(&json!({
                "session_id": session, "file": path.display().to_string(), "state": recording.state,
                "bytes": received.bytes, "digest": received.digest, "verified": received.verified,
            }));
        }
        context.output.line(&path.display().to_string())
    }
}

/// Into a file that only appears once it is complete, for its owner only.
async fn export_to(client: &Client, recording: &model::Recording, path: &Path) -> Result<Received, Failure> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = async {
        let cannot = || format!("{} cannot be written", path.display());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(cannot)?;
        let mut writer = BufWriter::new(file);
        let pieces = client.recording_content(recording.session_id).await?;
        let received = receive(pieces, recording.digest.as_deref(), &mut writer).await?;
        let file: File = writer.into_inner().map_err(|error| Failure::of_output(error.into_error()))?;
        file.sync_all().map_err(Failure::of_output)?;
        std::fs::rename(&temporary, path).with_context(cannot)?;
        Ok(received)
    }
    .await;
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// What the reader has to know of what he got.
fn tell(recording: &model::Recording, received: &Received) {
    match (recording.state.as_str(), received.verified) {
        ("recording", _) => note("The session goes on: this is what there is so far."),
        ("cut_short", true) => {
            note("The recording was cut short: its last second is missing. What is there is as it was recorded.");
        }
        ("cut_short", false) => note("The recording was cut short, and there is no digest to compare it with."),
        (_, true) => {}
        (_, false) => note("There is no digest to compare the recording with."),
    }
}

async fn show(context: &Context, client: &Client, recording: Answer<model::Recording>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&recording.json);
    }
    let names = Names::of_recordings(client, std::slice::from_ref(&recording)).await;
    context.output.table(&record(&recording.value, &names, &context.output.here()))
}

fn table(recordings: &[Answer<model::Recording>], names: &Names, here: &Here) -> Table {
    let mut table = Table::new(&["BEGAN", "LENGTH", "KIND", "DEVICE", "BY", "STATE", "SIZE", "SESSION"]).whole(7);
    for Answer { value, .. } in recordings {
        table.row(vec![
            here.short(value.started_at).into(),
            Cell::or_none(length(value)),
            value.kind.clone().into(),
            names.name(value.device_id).into(),
            names.name(value.opened_by).into(),
            state(value),
            Cell::or_none(value.bytes.map(|bytes| format!("{bytes} B"))),
            value.session_id.to_string().into(),
        ]);
    }
    table
}

fn record(recording: &model::Recording, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("session", recording.session_id.to_string());
    table.field("state", state(recording));
    table.field("kind", recording.kind.clone());
    table.field("format", recording.format.clone());
    table.field("device", names.name(recording.device_id));
    table.field("opened by", names.name(recording.opened_by));
    table.field("reason", recording.reason.clone());
    table.field("grant", recording.grant_id.to_string());
    table.field("began", here.full(recording.started_at));
    if let Some(at) = recording.ended_at {
        table.field("ended", here.full(at));
    }
    table.field("size", Cell::or_none(recording.bytes.map(|bytes| format!("{bytes} bytes"))));
    table.field("SHA-256", Cell::or_none(recording.digest.clone()));
    match recording.deleted_at {
        Some(at) => table.field("deleted", here.full(at)),
        None => table.field("kept until", here.full(recording.keep_until)),
    }
    table
}

fn length(recording: &model::Recording) -> Option<String> {
    recording.ended_at.map(|ended| rough(ended.duration_since(recording.started_at)))
}

fn state(recording: &model::Recording) -> Cell {
    match recording.state.as_str() {
        "recording" => Cell::toned("recording", Tone::Good),
        "finished" => Cell::new("finished"),
        "cut_short" => Cell::toned("cut short", Tone::Warn),
        other => Cell::toned(other.replace('_', " "), Tone::Dim),
    }
}

fn extension(format: &str) -> &'static str {
    if format == "asciicast-v2" { "cast" } else { "jsonl" }
}

/// `+1.5 s  connection opened  connection 1, host localhost, port 80`
fn in_words(at: Duration, entry: &Value) -> String {
    let Some(entry) = entry.as_object() else { return String::new() };
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rest: Vec<_> = entry
        .iter()
        .filter(|(name, value)| !matches!(name.as_str(), "at" | "event") && !value.is_null())
        .map(|(name, value)| format!("{} {}", name.replace('_', " "), word(value)))
        .collect();
    let event = entry.get("event").map(word).unwrap_or_default().replace('_', " ");
    format!("+{:.3} s  {event}  {}", at.as_secs_f64(), rest.join(", ")).trim_end().to_owned()
}

fn to_json(event: &Event) -> Value {
    match event {
        Event::Output { at, text } => json!([at.as_secs_f64(), "o", text]),
        Event::Other { at, code, text } => json!([at.as_secs_f64(), code, text]),
        Event::Entry { entry, .. } => entry.clone(),
    }
}

fn raw(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Failure::of_output)
}

/// The reader's terminal, which gets back into shape whatever the recording did to it.
struct Screen {
    is_terminal: bool,
}

impl Screen {
    /// Leaves the alternate screen, and ends reports of the mouse, marked pastes, attributes and a hidden cursor.
    const RESTORE: &str = "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\x1b[?25h";

    fn begin() -> Self {
        Self { is_terminal: io::stdout().is_terminal() }
    }

    fn end(self) -> Result<(), Failure> {
        if !self.is_terminal {
            return Ok(());
        }
        raw(Self::RESTORE)?;
        // What was recorded may have asked the terminal questions. Its answers are not for the reader's shell.
        let _ = tcflush(io::stdin(), FlushArg::TCIFLUSH);
        raw("\n")
    }
}

fn id(session: &str) -> Result<Uuid, Failure> {
    session.parse().map_err(|_| {
        Failure::Usage(format!(
            "`{session}` is not the id of a support session\nExpected a UUID; list them with: cloudlink recording list"
        ))
    })
}

/// A positive number.
fn factor(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| (0.01..=10_000.0).contains(number)).ok_or_else(|| "expected 0.01 to 10000".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        recording: Recording,
    }

    fn parse(line: &str) -> Result<Recording, clap::Error> {
        Line::try_parse_from(format!("recording {line}").split(' ')).map(|line| line.recording)
    }

    #[rstest]
    #[case("play")]
    #[case("play x --speed 0")]
    #[case("play x --speed fast")]
    #[case("play x --speed 2 --at-once")]
    #[case("play x --idle-limit -1")]
    #[case("list --kind video")]
    #[case("list --from yesterday")]
    #[case("export")]
    fn what_is_incomplete_is_refused(#[case] line: &str) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_pace_is_that_of_the_recording() {
        let Recording::Play(play) = parse("play x").unwrap() else { panic!("plays nothing") };
        assert!((play.speed - 1.0).abs() < f64::EPSILON && play.idle_limit.is_none() && !play.at_once);
    }

    #[test]
    fn tells_what_happened_without_a_terminal() {
        let entry = json!({"at": 1.5, "event": "connection_opened", "connection": 1, "host": "localhost", "port": 80});
        let words = in_words(Duration::from_millis(1500), &entry);
        assert_eq!(words, "+1.500 s  connection opened  connection 1, host localhost, port 80");
        assert_eq!(in_words(Duration::ZERO, &json!({"event": "left"})), "+0.000 s  left");
    }

    #[test]
    fn shows_what_is_known_of_one() {
        let mut recording: model::Recording = serde_json::from_value(json!({
            "session_id": "018f0000-0000-7000-8000-000000000001", "tenant_id": "018f0000-0000-7000-8000-000000000005",
            "device_id": "018f0000-0000-7000-8000-000000000002", "grant_id": "018f0000-0000-7000-8000-000000000003",
            "opened_by": "018f0000-0000-7000-8000-000000000004", "kind": "terminal", "reason": "stuck",
            "format": "asciicast-v2", "state": "cut_short", "started_at": "2026-11-21T14:00:00Z",
            "ended_at": "2026-11-21T14:10:00Z", "bytes": 1000, "digest": "00ff", "keep_until": "2027-11-21T14:00:00Z",
            "deleted_at": null,
        }))
        .unwrap();
        let here = Here { now: "2026-11-21T14:12:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = record(&recording, &Names::default(), &here).render(false, None);
        assert!(text.contains("cut short") && text.contains("00ff") && text.contains("kept until"), "{text}");
        recording.deleted_at = Some(here.now);
        recording.digest = None;
        let text = record(&recording, &Names::default(), &here).render(false, None);
        assert!(text.contains("deleted") && !text.contains("kept until") && !text.contains("00ff"), "{text}");
        assert_eq!(length(&recording).unwrap(), "10 min");
    }
}
