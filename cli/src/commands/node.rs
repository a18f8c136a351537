//! Nodes of the cluster: how they are, and sending their devices to other nodes.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use jiff::SignedDuration;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Context;
use super::plan_storm::PlanStorm;
use crate::client::{Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::Node;
use crate::output::{Cell, Here, Table, Tone, rough};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long `--wait` goes on after the time that was given: by then the last devices were told to come back, and their links end.
const WAIT_GRACE: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes of the cluster
    List,
    /// Show one node
    Show {
        /// Its name; without it, the node that answers
        node: Option<String>,
    },
    /// Send a node's devices to other nodes, before it is stopped
    Drain(Drain),
    /// Tell how long it takes until all devices are back when they lose their links together
    PlanStorm(PlanStorm),
    /// Have a drained node take devices again
    Resume {
        /// Its name; without it, the node that answers
        node: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Its name; without it, the node that answers
    node: Option<String>,
    /// When the last device is to be gone, 5s to 1d
    #[arg(long, value_name = "SPAN", default_value = "5m")]
    within: Span,
    /// Wait until the last device is gone; exits with 1 if one is left
    #[arg(long)]
    wait: bool,
}

impl NodeVerb {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let list = client.nodes().await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
            Self::Show { node } => {
                let name = named_or_asked(&client, node.as_deref()).await?;
                let answer = client.node(&name).await?;
                context.show(&answer, || record(&answer.value, &context.output.here()))
            }
            Self::Drain(drain) => drain.run(context, &client).await,
            Self::PlanStorm(plan) => plan.run(context, &client).await,
            Self::Resume { node } => {
                let name = named_or_asked(&client, node.as_deref()).await?;
                let answer = client.node_resume(&name).await?;
                context.show(&answer, || record(&answer.value, &context.output.here()))
            }
        }
    }
}

impl Drain {
    async fn run(&self, context: &Context, client: &Client) -> Result<(), Failure> {
        let name = named_or_asked(client, self.node.as_deref()).await?;
        let deadline = Instant::now() + self.within.as_duration() + WAIT_GRACE;
        let mut answer = client.node_drain(&name, json!({ "within_seconds": self.within.as_seconds() })).await?;
        while self.wait && answer.value.links > 0 && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
            answer = client.node(&name).await?;
            if !matches!(answer.value.state.as_str(), "draining" | "drained") {
                break;
            }
        }
        context.show(&answer, || record(&answer.value, &context.output.here()))?;
        let node = &answer.value;
        if node.support_sessions > 0 {
            let sessions = node.support_sessions;
            context
                .output
                .note(&format!("Support sessions that go on through the node until it is stopped: {sessions}"));
        }
        if self.wait && node.links > 0 {
            return Err(Failure::Other(anyhow!("{name} is {}, and has {} devices left", node.state, node.links)));
        }
        Ok(())
    }
}

async fn named_or_asked(client: &Client, name: Option<&str>) -> Result<String, Failure> {
    if let Some(name) = name {
        return Ok(name.to_owned());
    }
    let nodes = client.nodes().await?.items;
    let asked = nodes.into_iter().find(|node| node.value.is_asked);
    asked.map(|node| node.value.name).ok_or_else(|| Failure::Usage("which one? Say its name".to_owned()))
}

fn table(nodes: &[Answer<Node>], here: &Here) -> Table {
    let mut table =
        Table::new(&["NODE", "STATE", "LINKS", "TUNNELS", "SESSIONS", "LEASE RENEWED", "VERSION", "STARTED"]);
    for Answer { value, .. } in nodes {
        table.row(vec![
            value.name.clone().into(),
            state(value),
            value.links.to_string().into(),
            value.tunnels.to_string().into(),
            value.support_sessions.to_string().into(),
            renewed(value).into(),
            value.version.clone().into(),
            here.local(value.started_at).into(),
        ]);
    }
    table
}

fn record(node: &Node, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", node.name.clone());
    table.field("state", state(node));
    if let Some(since) = node.draining_since {
        table.field("drained since", here.full(since));
    }
    if let Some(by) = node.drain_by {
        table.field("nobody left by", here.full(by));
    }
    table.field("links", node.links.to_string());
    table.field("of them in tunnels", node.tunnels.to_string());
    table.field("support sessions", node.support_sessions.to_string());
    table.field("lease renewed", renewed(node));
    if let Some(us) = node.handshake_us {
        table.field("a new link costs", format!("{} µs of a processor", us));
    }
    if let Some(per_second) = node.handshakes_per_second {
        table.field("new links it takes", format!("{per_second:.0} a second"));
    }
    table.field("version", node.version.clone());
    table.field("started", here.full(node.started_at));
    table
}

pub(super) fn state(node: &Node) -> Cell {
    let tone = match node.state.as_str() {
        "serving" => Tone::Good,
        "draining" | "drained" => Tone::Warn,
        _ => Tone::Bad,
    };
    Cell::toned(node.state.clone(), tone)
}

pub(super) fn renewed(node: &Node) -> String {
    format!("{} ago", rough(SignedDuration::try_from_secs_f64(node.renewed_ago_seconds).unwrap_or_default()))
}
