//! Two nodes, and what becomes of the links of one that is killed. Devices know the addresses of both, and dial the second when
//! nobody answers at the first.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::Instant;

use super::report::{Line, Report};
use super::usage::Process;
use super::{connect, seed};
use crate::api::Api;
use crate::clock;
use crate::cluster::{Cluster, Database};
use crate::load::storm::{Device, Storm};
use crate::load::{Fleet, Target};
use crate::server::Server;

/// Until all are back after the end of their node.
const ALL_BACK_SECONDS_MAX: f64 = 30.0;
const WITHIN: Duration = Duration::from_secs(300);
/// The rest of the processors is for the devices and the database, which are on the same machine here.
const CALM: &str = "admission.cpu_share_percent=15";
const NINE_TENTHS_BACK: &str = "/nine_tenths_back_seconds";
const FORESEEN: u32 = 1_000_000;
const FORESEEN_NODES: u32 = 20;
/// A queue that takes everybody: nobody is turned away and pauses.
const SETTINGS: [&str; 3] =
    ["admission.waiting_max=20000", "admission.wait_seconds=20", "device.unauthenticated_max=25000"];
const QUICK: &str = "admission.cpu_share_percent=60";

/// The names of what is measured.
#[derive(Clone, Copy)]
struct Kind {
    rate: &'static str,
    cpu: &'static str,
    all: &'static str,
}

const FULL: Kind = Kind { rate: "full_links_a_second", cpu: "full_cpu_per_link", all: "full_all_live" };
const RESUMED: Kind = Kind { rate: "resumed_links_a_second", cpu: "resumed_cpu_per_link", all: "resumed_all_live" };

/// Links so many devices to one node, with full handshakes and with resumed ones, and kills it.
pub async fn measure(links: usize, report: &mut Report) -> Result<()> {
    let set = settings(QUICK);
    let mut cluster = Cluster::start_on(Database::start().await?, 2, &set).await?;
    let fleet = seed::devices(&cluster.fleet, cluster.database.look().await?, links, clock::now()).await?;
    let dying = connect::target(cluster.fleet.server.device, &fleet)?;
    let staying = connect::target(cluster.others.first().context("a second node")?.device, &fleet)?;
    let targets = [dying, staying];
    let devices = Device::of(&targets[0], &fleet, 0..links, true)?;
    let first = Process::new(cluster.fleet.server.program().pid());
    let second = Process::new(cluster.others.first_mut().context("a second node")?.program().pid());

    come(&targets, &devices, first, FULL, report).await?.stop().await;
    tokio::time::sleep(connect::SETTLE).await;
    let mut storm = come(&targets, &devices, first, RESUMED, report).await?;
    tokio::time::sleep(connect::SETTLE).await;

    let idle_memory = second.peak_bytes()?;
    let cpu = second.cpu()?;
    cluster.fleet.server.kill()?;
    let killed = Instant::now();
    let back = storm.until_back(links, WITHIN).await?;
    let taken = second.cpu()? - cpu;
    let at = |share: usize| (back[(links * share).div_ceil(100) - 1] - killed).as_secs_f64();
    report.add(&Line::new("storm", "node_killed_half_back", at(50), "s"))?;
    report.add(&Line::new("storm", "node_killed_99_of_100_back", at(99), "s"))?;
    report.add(&Line::new("storm", "node_killed_all_back", at(100), "s").with_goal(ALL_BACK_SECONDS_MAX))?;
    let each = u32::try_from(links)?;
    report.add(&Line::new("storm", "node_killed_cpu_per_link", (taken / each).as_secs_f64() * 1_000.0, "ms"))?;
    let memory = megabytes(second.peak_bytes()?.saturating_sub(idle_memory));
    report.add(&Line::new("storm", "node_killed_memory_at_most", memory, "MB"))?;
    storm.stop().await;
    foresee(&cluster, report).await?;
    compare(&mut cluster, &fleet, links, report).await
}

fn settings(share: &str) -> Vec<String> {
    SETTINGS.into_iter().chain([share]).map(str::to_owned).collect()
}

/// What the node that stayed makes of it for a fleet that is a hundred times as large.
async fn foresee(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let staying = cluster.others.first().context("a second node")?;
    let plan = plan(cluster, staying, FORESEEN, FORESEEN_NODES).await?;
    for (metric, pointer, unit) in [
        ("million_on_20_nodes_nine_tenths_back", NINE_TENTHS_BACK, "s"),
        ("million_on_20_nodes_all_back", "/all_back_seconds", "s"),
        ("million_on_20_nodes_per_node", "/per_node_per_second", "1/s"),
        ("million_on_20_nodes_attempts", "/attempts_per_device", ""),
        ("database_time_per_link", "/costs/database_ms", "ms"),
    ] {
        report.add(&Line::new("storm", metric, figure(&plan, pointer)?, unit))?;
    }
    Ok(())
}

/// A storm beside the plan of it, on a node that takes its rate from what it has measured in one before.
async fn compare(cluster: &mut Cluster, fleet: &Fleet, links: usize, report: &mut Report) -> Result<()> {
    cluster.join(&settings(CALM)).await?;
    let node = cluster.others.last().context("a third node")?;
    let targets = [connect::target(node.device, fleet)?];
    let devices = Device::of(&targets[0], fleet, 0..links, false)?;
    let mut storm = Storm::begin(&targets, &devices);
    storm.until_live(links, WITHIN).await?;
    storm.stop().await;
    tokio::time::sleep(connect::SETTLE).await;

    let plan = plan(cluster, node, u32::try_from(links)?, 1).await?;
    let begun = Instant::now();
    let mut storm = Storm::begin(&targets, &devices);
    let live = storm.until_live(links, WITHIN).await?;
    let was = (live[(links * 9).div_ceil(10) - 1] - begun).as_secs_f64();
    storm.stop().await;
    let planned = figure(&plan, NINE_TENTHS_BACK)?;
    report.add(&Line::new("storm", "planned_nine_tenths_back", planned, "s").beside("the storm", was))
}

async fn plan(cluster: &Cluster, node: &Server, devices: u32, nodes: u32) -> Result<Value> {
    let admin = Api::new(&node.api_url(), &cluster.fleet.server.ca_file(), cluster.fleet.admin.token())?;
    admin.get(&format!("/storm-plan?devices={devices}&nodes={nodes}")).await
}

fn figure(plan: &Value, pointer: &str) -> Result<f64> {
    plan.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer}: {plan}"))
}

/// All of them come at once.
async fn come(
    targets: &[Target],
    devices: &[Device],
    process: Process,
    kind: Kind,
    report: &mut Report,
) -> Result<Storm> {
    let (cpu, begun) = (process.cpu()?, Instant::now());
    let mut storm = Storm::begin(targets, devices);
    let live = storm.until_live(devices.len(), WITHIN).await?;
    let taken = process.cpu()? - cpu;
    let count = u32::try_from(devices.len())?;
    // Without the first and the last tenth: then it is not the server that is waited for.
    let (from, to) = (live[devices.len() / 10], live[devices.len() * 9 / 10]);
    let rate = f64::from(count) * 0.8 / (to - from).as_secs_f64();
    report.add(&Line::new("storm", kind.rate, rate, "1/s"))?;
    report.add(&Line::new("storm", kind.cpu, (taken / count).as_secs_f64() * 1_000.0, "ms"))?;
    let all = live.last().map_or(0.0, |last| (*last - begun).as_secs_f64());
    report.add(&Line::new("storm", kind.all, all, "s"))?;
    Ok(storm)
}

#[expect(clippy::cast_precision_loss, reason = "a count of bytes, to be shown with three digits")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
