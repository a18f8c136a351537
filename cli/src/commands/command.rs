//! Commands: what operators told devices to do, and what became of it.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{Context, link_test, watch};
use crate::argument::NewestLimit;
use crate::client::{Answer, CommandFilter};
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Output, Table, Tone, rough};
use crate::resolve::{self, Names};

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only commands to this device, by name or id
    #[arg(long)]
    device: Option<String>,
    /// Only commands under this grant, by id
    #[arg(long)]
    grant: Option<String>,
    /// Only commands in this state
    #[arg(long)]
    state: Option<State>,
    #[command(flatten)]
    limit: NewestLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Queued,
    Sent,
    Accepted,
    Running,
    Succeeded,
    Failed,
    Refused,
    Expired,
    Cancelled,
    Unconfirmed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show one command
    Show {
        /// Id of the command
        command: String,
    },
    /// Call a command back; what has begun goes on
    Cancel {
        /// Id of the command
        command: String,
    },
    /// Follow a command to its end; with --json, each change is one line
    Watch {
        /// Id of the command
        command: String,
    },
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let filter = CommandFilter {
            device_id: match &self.device {
                Some(device) => Some(resolve::device(&client, device).await?.value.id),
                None => None,
            },
            grant_id: self.grant.as_ref().map(|grant| resolve::id("grant", grant)).transpose()?,
            state: self.state.and_then(|state| state.to_possible_value()).map(|value| value.get_name().to_owned()),
        };
        let list = client.commands(self.limit.items(), &filter).await?;
        let names = if context.output.json { Names::default() } else { Names::of_commands(&client, &list.items).await };
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

impl Command {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let (Self::Show { command: id } | Self::Cancel { command: id } | Self::Watch { command: id }) = self;
        let id = resolve::id("command", id)?;
        let client = context.client()?;
        match self {
            Self::Show { .. } => {
                let command = client.command(id).await?;
                if context.output.json {
                    return context.output.json(&command.json);
                }
                let names = Names::of_commands(&client, std::slice::from_ref(&command)).await;
                context.output.table(&record(&command.value, &names, &context.output.here()))
            }
            Self::Cancel { .. } => {
                let answer = client.command_cancel(id).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                let now = client.command(id).await?;
                context.output.line(&format!("Command {id} is {}", now.value.state))
            }
            Self::Watch { .. } => {
                let command = client.command(id).await?;
                if context.output.json {
                    let last = watch::follow(&client, command, |change| context.output.json_line(&change.json)).await?;
                    return verdict(&last.value);
                }
                let label = command.value.kind.clone();
                let command = watch::follow_visibly(&client, &context.output, command, &label).await?;
                let names = Names::of_commands(&client, std::slice::from_ref(&command)).await;
                result(&context.output, &command, &names.name(command.value.device_id))
            }
        }
    }
}

/// Shows what became of a command, and fails if that is anything but success.
pub(crate) fn result(output: &Output, command: &Answer<model::Command>, device: &str) -> Result<(), Failure> {
    if output.json {
        output.json(&command.json)?;
    } else {
        output.line(&sentence(&command.value, device))?;
        if let Some(data) = command.value.data.as_ref().filter(|data| !is_empty(data)) {
            let is_test = command.value.kind == "link.test";
            output.table(&if is_test { link_test::results(data) } else { data_table(data) })?;
        }
    }
    verdict(&command.value)
}

fn verdict(command: &model::Command) -> Result<(), Failure> {
    if command.has_succeeded() { Ok(()) } else { Err(Failure::Ended) }
}

/// `device.reboot on gw-1: succeeded after 42 s, proven by another boot id`
fn sentence(command: &model::Command, device: &str) -> String {
    let mut text = format!("{} on {device}: {}", what(command), command.state);
    if let Some(at) = command.finished_at {
        text += &format!(" after {}", took(at.duration_since(command.created_at)));
    }
    if let Some(proof) = command.proof.as_ref().filter(|_| command.has_succeeded()) {
        text += &format!(", proven by {}", proof_words(proof));
    }
    let why: Vec<_> = [&command.code, &command.message].into_iter().flatten().map(String::as_str).collect();
    if !command.has_succeeded() && !why.is_empty() {
        text += &format!(": {}", why.join(": "));
    }
    text
}

/// `0.3 s` for what is over in no time, else like any other span.
fn took(span: jiff::SignedDuration) -> String {
    if span.as_secs().abs() < 10 { format!("{:.1} s", span.as_secs_f64()) } else { rough(span) }
}

fn what(command: &model::Command) -> String {
    let about = ["service", "version", "container"].iter().find_map(|key| command.arguments[key].as_str());
    match about {
        Some(about) => format!("{} {about}", command.kind),
        None => command.kind.clone(),
    }
}

fn proof_words(proof: &Value) -> String {
    match proof["kind"].as_str() {
        Some("device_report") => "the device's report".to_owned(),
        Some("boot_id") => "another boot id".to_owned(),
        Some("link_lost") => "the loss of its link".to_owned(),
        Some(_) | None => proof.to_string(),
    }
}

fn table(commands: &[Answer<model::Command>], names: &Names, here: &Here) -> Table {
    let mut table = Table::new(&["ASKED FOR", "WHAT", "DEVICE", "STATE", "BY", "REASON", "ID"]).whole(6);
    for Answer { value, .. } in commands {
        table.row(vec![
            here.relative(value.created_at).into(),
            what(value).into(),
            names.name(value.device_id).into(),
            state(value, here),
            names.name(value.requested_by).into(),
            value.reason.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(command: &model::Command, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("command", command.id.to_string());
    table.field("what", what(command));
    table.field("device", names.name(command.device_id));
    table.field("state", state(command, here));
    if let Some(code) = &command.code {
        table.field("code", code.clone());
    }
    if let Some(message) = &command.message {
        table.field("message", message.clone());
    }
    if let Some(proof) = &command.proof {
        table.field("proof", format!("{} {proof}", proof_words(proof)));
    }
    table.field("grant", command.grant_id.to_string());
    table.field("asked by", names.name(command.requested_by));
    table.field("reason", command.reason.clone());
    table.field("asked for", here.full(command.created_at));
    if !command.is_final() && command.accepted_at.is_none() {
        table.field("expires", here.full(command.expires_at));
    }
    if let Some(by) = command.runs_by {
        table.field("will run by", here.full(by));
    }
    let times = [("sent", command.sent_at), ("accepted", command.accepted_at), ("finished", command.finished_at)];
    for (name, at) in times {
        if let Some(at) = at {
            table.field(name, here.full(at));
        }
    }
    if let Some(data) = command.data.as_ref().filter(|data| !is_empty(data)) {
        table.field("data", data.to_string());
    }
    table
}

fn state(command: &model::Command, here: &Here) -> Cell {
    let tone = match command.state.as_str() {
        "succeeded" => Tone::Good,
        "failed" | "refused" | "unconfirmed" => Tone::Bad,
        "expired" | "cancelled" => Tone::Warn,
        _ => Tone::Plain,
    };
    Cell::toned(watch::state_here(command, here), tone)
}

fn is_empty(data: &Value) -> bool {
    data.is_null() || data.as_object().is_some_and(serde_json::Map::is_empty)
}

/// A command's structured result, one line a value.
pub(crate) fn data_table(data: &Value) -> Table {
    let mut table = Table::new(&["RESULT", "VALUE"]).whole(0);
    if let Some(fields) = data.as_object() {
        for (name, value) in fields {
            table.row(vec![name.clone().into(), measure(name, value).into()]);
        }
    } else {
        table.row(vec!["result".into(), data.to_string().into()]);
    }
    table
}

/// A value in the unit that its name ends with, as people read it.
fn measure(name: &str, value: &Value) -> String {
    let text = match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_null() => "-".to_owned(),
        None => value.to_string(),
    };
    let Some(number) = value.as_f64() else { return text };
    if name.ends_with("_bytes") {
        return bytes(number);
    }
    if name.ends_with("_ms") {
        return format!("{text} ms");
    }
    if name.ends_with("_percent") {
        return format!("{number:.1} %");
    }
    if name.ends_with("_celsius") {
        return format!("{number:.1} °C");
    }
    match value.as_i64() {
        Some(seconds) if name.ends_with("_seconds") => rough(jiff::SignedDuration::from_secs(seconds)),
        Some(_) => text,
        None => format!("{number:.2}"),
    }
}

/// A number in the unit that its name ends with, as people read it.
pub(crate) fn number(name: &str, number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a number of seconds")]
    match name {
        _ if name.ends_with("_bytes") => bytes(number.round()),
        _ if name.ends_with("_ms") => format!("{number:.0} ms"),
        _ if name.ends_with("_seconds") => rough(jiff::SignedDuration::from_secs(number as i64)),
        _ => measure(name, &Value::from(number)),
    }
}

/// A number of bytes in the unit that says it best.
#[must_use]
pub(crate) fn bytes(mut number: f64) -> String {
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1024.0 {
            return if unit == "B" { format!("{number} B") } else { format!("{number:.1} {unit}") };
        }
        number /= 1024.0;
    }
    format!("{number:.1} TiB")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command(state: &str, extra: Value) -> model::Command {
        let mut json = json!({
            "id": "018f0000-0000-7000-8000-000000000001", "device_id": "018f0000-0000-7000-8000-000000000002",
            "grant_id": "018f0000-0000-7000-8000-000000000003", "requested_by": "018f0000-0000-7000-8000-000000000004",
            "kind": "service.restart", "arguments": {"service": "nginx"}, "reason": "stuck", "state": state,
            "created_at": "2026-11-21T14:00:00Z", "expires_at": "2026-11-21T14:00:30Z", "sent_at": null,
            "accepted_at": null, "finished_at": null, "percent": null, "code": null, "message": null, "data": null, "proof": null,
        });
        for (name, value) in extra.as_object().unwrap() {
            json[name] = value.clone();
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn says_what_became_of_a_command_in_a_sentence() {
        let done = json!({"finished_at": "2026-11-21T14:00:42Z", "proof": {"kind": "boot_id"}});
        assert_eq!(
            sentence(&command("succeeded", done), "gw-1"),
            "service.restart nginx on gw-1: succeeded after 42 s, proven by another boot id"
        );
        let refused = json!({"finished_at": "2026-11-21T14:00:01Z", "code": "not_allowed", "message": "nginx is not on the list"});
        assert_eq!(
            sentence(&command("refused", refused), "gw-1"),
            "service.restart nginx on gw-1: refused after 1.0 s: not_allowed: nginx is not on the list"
        );
    }

    #[test]
    fn only_success_is_success() {
        let done = json!({"finished_at": "2026-11-21T14:00:42Z"});
        assert!(verdict(&command("succeeded", done.clone())).is_ok());
        for state in ["failed", "refused", "expired", "cancelled", "unconfirmed", "of a newer server"] {
            assert_eq!(verdict(&command(state, done.clone())).unwrap_err().exit_code(), 6, "{state}");
        }
    }

    #[test]
    fn a_command_is_over_when_the_server_says_when_it_ended() {
        assert!(!command("running", json!({})).is_final());
        assert!(command("of a newer server", json!({"finished_at": "2026-11-21T14:00:42Z"})).is_final());
    }

    #[test]
    fn measures_are_shown_in_units_that_people_read() {
        let data = json!({
            "cpu_percent": 3.25, "memory_used_bytes": 1_610_612_736_u64, "disk_used_bytes": 12, "load_1m": 0.5,
            "temperature_celsius": 51.25, "uptime_seconds": 7200, "duration_ms": 15, "signal": null, "note": "a\u{1b}b", "count": 3,
        });
        insta::assert_snapshot!(data_table(&data).render(false, None), @r"
        RESULT               VALUE
        count                3
        cpu_percent          3.2 %
        disk_used_bytes      12 B
        duration_ms          15 ms
        load_1m              0.50
        memory_used_bytes    1.5 GiB
        note                 a\u{1b}b
        signal               -
        temperature_celsius  51.2 °C
        uptime_seconds       2 h
        ");
    }
}
