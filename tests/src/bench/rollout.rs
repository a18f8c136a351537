//! One command to a whole fleet, as a rollout of a single batch: how long until each result is stored, and what that takes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::connect::{DIALLING, SETTLE, target};
use super::report::{Line, Report};
use super::seed;
use super::usage::Process;
use crate::api::{Api, text};
use crate::clock;
use crate::fleet::Fleet as People;
use crate::load::{Event, Protocol, Swarm};

const SECONDS_MAX: f64 = 4.0;
/// What the node may have grown by after a rollout like one before: allocators round.
const GROWN_KB_PER_DEVICE_MAX: f64 = 1.0;
/// Beyond that something is broken, not slow.
const ENDED_WITHIN: Duration = Duration::from_secs(120);

/// Links so many devices, and has each report its metrics: twice, so that what is made once is not counted.
pub async fn measure(links: usize, report: &mut Report) -> Result<()> {
    let mut people = People::start().await.context("cannot start cloudlinkd")?;
    let database = seed::own_database(&people.server).await?;
    let fleet = Arc::new(seed::devices(&people, database, links, clock::now()).await?);
    let grant = seed::grant(&people).await?;
    let target = target(people.server.device, &fleet)?;
    let process = Process::new(people.server.program().pid());
    let mut swarm = Swarm::connect(&target, &fleet, Protocol::Link, 0..links, DIALLING).await?;
    roll_out(&people.operator, &grant, links, &mut swarm).await?;
    sleep(SETTLE).await;

    let (cpu, database_cpu) = (process.cpu()?, process.descendants_cpu()?);
    let memory = process.anonymous_bytes()?;
    let taken = roll_out(&people.operator, &grant, links, &mut swarm).await?;
    let (cpu, database_cpu) = (process.cpu()? - cpu, process.descendants_cpu()?.saturating_sub(database_cpu));
    sleep(SETTLE).await;
    let grown = process.anonymous_bytes()?.saturating_sub(memory);
    swarm.stop().await;

    let each = u32::try_from(links)?;
    let ms = |cpu: Duration| (cpu / each).as_secs_f64() * 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "a count of bytes, to be shown with three digits")]
    let grown_kb = grown as f64 / f64::from(each) / 1000.0;
    for line in [
        Line::new("rollout", "all_results_stored", taken.as_secs_f64(), "s").with_goal(SECONDS_MAX),
        Line::new("rollout", "results_a_second", f64::from(each) / taken.as_secs_f64(), "1/s"),
        Line::new("rollout", "node_cpu_per_device", ms(cpu), "ms"),
        Line::new("rollout", "database_cpu_per_device", ms(database_cpu), "ms"),
        Line::new("rollout", "memory_grown_per_device", grown_kb, "kB").with_goal(GROWN_KB_PER_DEVICE_MAX),
    ] {
        report.add(&line)?;
    }
    Ok(())
}

/// From the request that applies it until the last device has heard that its result is stored.
async fn roll_out(operator: &Api, grant: &str, links: usize, swarm: &mut Swarm) -> Result<Duration> {
    let plan = json!({
        "grant_id": grant, "selector": seed::selector_text(), "kind": "metrics.collect", "reason": "benchmark",
        "canaries": 0, "batch": links, "rate_per_minute": links, "abort_after": links,
    });
    let plan = operator.post("/rollouts", &plan).await?;
    ensure!(plan["totals"]["waiting"] == links, "{plan}");
    let id = text(&plan, "id")?;
    let begin = Instant::now();
    operator.post(&format!("/rollouts/{id}/apply"), &json!({ "hash": plan["hash"] })).await?;
    let mut last = begin;
    let stored = async {
        for _ in 0..links {
            last = loop {
                if let Event::Stored { at, .. } = swarm.event().await? {
                    break at;
                }
            };
        }
        anyhow::Ok(())
    };
    timeout(ENDED_WITHIN, stored).await.context("a device had no result in time")??;
    let ended = async {
        while operator.get(&format!("/rollouts/{id}")).await?["state"] != "finished" {
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    timeout(ENDED_WITHIN, ended).await.context("the rollout does not end")??;
    let shown = operator.get(&format!("/rollouts/{id}")).await?;
    ensure!(shown["totals"]["succeeded"] == links, "{shown}");
    Ok(last - begin)
}
