//! The cluster at a glance: what is wrong first, with what to do about it.

use anyhow::anyhow;
use clap::Args;
use jiff::SignedDuration;

use super::{Context, node};
use crate::failure::Failure;
use crate::model::{Database, Node, Status, Trouble};
use crate::output::{Cell, Here, Table, Tone, rough};

/// Show how the cluster is: what is wrong, nodes, links, commands, the database; exits with 1 if something is wrong
#[derive(Debug, Args)]
pub(crate) struct Show {}

impl Show {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let answer = context.client()?.status().await?;
        let status = &answer.value;
        if context.output.json {
            context.output.json(&answer.json)?;
        } else {
            show(context, status, &context.output.here())?;
        }
        match status.problems.iter().filter(|problem| problem.is_wrong()).count() {
            0 => Ok(()),
            1 => Err(Failure::Other(anyhow!("something is wrong"))),
            several => Err(Failure::Other(anyhow!("{several} things are wrong"))),
        }
    }
}

fn show(context: &Context, status: &Status, here: &Here) -> Result<(), Failure> {
    let output = &context.output;
    if status.problems.is_empty() {
        output.line("Nothing is wrong that is known of.")?;
    } else {
        output.table(&problems(&status.problems))?;
    }
    output.line("")?;
    output.table(&nodes(&status.nodes, here))?;
    output.line("")?;
    output.table(&figures(status))
}

fn problems(problems: &[Trouble]) -> Table {
    let mut table = Table::new(&["SEVERITY", "NODE", "WHAT IS WRONG", "WHAT TO DO"]);
    for problem in problems {
        let tone = match problem.severity.as_str() {
            "critical" => Tone::Bad,
            "warning" => Tone::Warn,
            _ => Tone::Plain,
        };
        table.row(vec![
            Cell::toned(problem.severity.clone(), tone),
            Cell::or_none(problem.node.clone()),
            problem.what.clone().into(),
            problem.remedy.clone().into(),
        ]);
    }
    table
}

fn nodes(nodes: &[Node], here: &Here) -> Table {
    let mut table =
        Table::new(&["NODE", "STATE", "LINKS", "SESSIONS", "LEASE RENEWED", "NATS", "ISOLATION", "VERSION", "STARTED"]);
    for value in nodes {
        let condition = value.condition.unwrap_or_default();
        table.row(vec![
            value.name.clone().into(),
            node::state(value),
            value.links.to_string().into(),
            value.support_sessions.to_string().into(),
            node::renewed(value).into(),
            yes(condition.bus, "connected", "away"),
            yes(condition.isolation, "in force", "NOT in force"),
            value.version.clone().into(),
            here.local(value.started_at).into(),
        ]);
    }
    table
}

fn yes(is: Option<bool>, well: &'static str, ill: &'static str) -> Cell {
    match is {
        Some(true) => Cell::toned(well, Tone::Good),
        Some(false) => Cell::toned(ill, Tone::Bad),
        None => Cell::none(),
    }
}

fn figures(status: &Status) -> Table {
    let Status { devices, commands, notices, database, .. } = status;
    let mut table = Table::record();
    let linked = devices.linked_by_websocket + devices.linked_by_openvpn;
    table.field("devices", format!("{linked} of {} linked", devices.active));
    table.field("by websocket", devices.linked_by_websocket.to_string());
    let tunnels = devices.linked_by_openvpn;
    table.field("by openvpn", format!("{tunnels}, an agent answers in {}", devices.agents_in_tunnels));
    table.field("in quarantine", devices.quarantined.to_string());
    let waited = commands.sendable_seconds.map(|seconds| format!(", the first that can be sent for {}", span(seconds)));
    table.field("commands queued", format!("{}{}", commands.queued, waited.unwrap_or_default()));
    table.field("commands under way", commands.under_way.to_string());
    table.field("support sessions", status.support_sessions.to_string());
    let due = notices.due_seconds.map(|seconds| format!(", the first is due for {}", span(seconds)));
    table.field("notices waiting", format!("{}{}", notices.waiting, due.unwrap_or_default()));
    let Database { version, size_bytes, connections, connections_max } = database;
    let size = size_bytes / (1024 * 1024);
    table.field("database", format!("Postgres {version}, {size} MiB, {connections} of {connections_max} connections"));
    table
}

fn span(seconds: f64) -> String {
    rough(SignedDuration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}
