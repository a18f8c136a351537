//! How long it takes until a whole fleet is back.

use clap::Args;
use jiff::SignedDuration;

use super::Context;
use crate::client::Client;
use crate::failure::Failure;
use crate::model::StormPlan;
use crate::output::{Cell, Table, Tone, rough};

#[derive(Debug, Args)]
pub(crate) struct PlanStorm {
    /// Devices that lose their links together, at most 1000000
    #[arg(long, value_name = "N")]
    devices: u32,
    /// Nodes that are left, each like the one that answers
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u32,
}

impl PlanStorm {
    pub(crate) async fn run(&self, context: &Context, client: &Client) -> Result<(), Failure> {
        let answer = client.storm_plan(self.devices, self.nodes).await?;
        context.show(&answer, || record(&answer.value))?;
        if answer.value.costs.connections_measured == 0 {
            context
                .output
                .note("Nothing has connected to this node since its start: what a connection costs is a guess.");
        }
        Ok(())
    }
}

fn record(plan: &StormPlan) -> Table {
    let costs = &plan.costs;
    let mut table = Table::record();
    table.field("devices", format!("{} to {} nodes", plan.devices, plan.nodes));
    table.field("half of them back", after(plan.half_back_seconds));
    table.field("nine of ten back", after(plan.nine_tenths_back_seconds));
    table.field("99 of 100 back", after(plan.most_back_seconds));
    table.field("the last one back", after(plan.all_back_seconds));
    table.field("each node takes", format!("{:.0} a second", plan.per_node_per_second));
    table.field("what holds them up", bottleneck(&plan.bottleneck));
    table.field("a device dials", format!("{:.1} times", plan.attempts_per_device));
    table.field("processor time", format!("{:.1} s on each node", plan.cpu_seconds_per_node));
    table.field("a connection costs", milliseconds(Some(costs.connection_cpu_ms)));
    table.field("… full TLS", milliseconds(costs.full_cpu_ms));
    table.field("… resumed TLS", milliseconds(costs.resumed_cpu_ms));
    table.field("… OpenVPN", milliseconds(costs.openvpn_cpu_ms));
    table.field("… of the database", milliseconds(costs.database_ms));
    table.field("measured on", format!("{} connections", costs.connections_measured));
    table
}

fn after(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("after {seconds:.1} s");
    }
    format!("after {}", rough(SignedDuration::try_from_secs_f64(seconds).unwrap_or_default()))
}

fn milliseconds(ms: Option<f64>) -> String {
    ms.map_or_else(|| "not measured".to_owned(), |ms| format!("{ms:.2} ms"))
}

fn bottleneck(name: &str) -> Cell {
    match name {
        "processor" => "the share of processors in admission.cpu_share_percent".into(),
        "fixed_rate" => "admission.handshakes_per_second".into(),
        "database" => "the database".into(),
        "links" => Cell::toned("device.links_max: not all of them find a place".to_owned(), Tone::Bad),
        other => other.to_owned().into(),
    }
}
