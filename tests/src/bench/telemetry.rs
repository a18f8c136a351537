//! Samples of a fleet that reports each second: whether all of them are stored, and how long the node waits for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use super::report::{Line, Report};
use super::usage::Process;
use super::{connect, seed};
use crate::clock;
use crate::fleet::Fleet as People;
use crate::load::{Protocol, Swarm};
use crate::server::{Server, Settings};

const MEASURED_FOR: Duration = Duration::from_secs(60);
const SAMPLES_A_SECOND: f64 = 10_000.0;
const INSERT_P99_MS_MAX: f64 = 50.0;
/// Devices report a little less often than each second: it is counted from when the last report was sent.
const DEVICES_MORE: usize = 50;
const INSERT: &str = "cloudlink_telemetry_insert_seconds";

/// Links so many devices, and a fiftieth more, each of which reports once a second.
pub async fn measure(links: usize, report: &mut Report) -> Result<()> {
    let settings = Settings { set: vec!["link.metrics_interval_seconds=1".to_owned()], ..Settings::default() };
    let mut people = People::start_with(&settings).await.context("cannot start cloudlinkd")?;
    let links = links + links / DEVICES_MORE;
    let database = seed::own_database(&people.server).await?;
    let fleet = Arc::new(seed::devices(&people, database, links, clock::now()).await?);
    let mut database = seed::own_database(&people.server).await?;
    let target = connect::target(people.server.device, &fleet)?;
    let process = Process::new(people.server.program().pid());
    let swarm = Swarm::connect(&target, &fleet, Protocol::Link, 0..links, connect::DIALLING).await?;
    sleep(connect::SETTLE).await;

    let before = Taken::until_now(&people.server, process).await?;
    sleep(MEASURED_FOR).await;
    let after = Taken::until_now(&people.server, process).await?;
    swarm.stop().await;

    let stored = after.stored - before.stored;
    let rate = stored / (after.at - before.at).as_secs_f64();
    let percentile = |share| Ok::<_, anyhow::Error>(percentile(&before.inserts, &after.inserts, share)? * 1000.0);
    let per_thousand = |after: Duration, before: Duration| (after - before).as_secs_f64() * 1000.0 * 1000.0 / stored;
    let (rows, bytes) = rows(&mut database).await?;
    for line in [
        Line::new("telemetry", "samples_stored", rate, "1/s"),
        Line::new("telemetry", "short_of_10000_a_second", (SAMPLES_A_SECOND - rate).max(0.0), "1/s").with_goal(0.0),
        Line::new("telemetry", "samples_dropped", after.dropped - before.dropped, "").with_goal(0.0),
        Line::new("telemetry", "insert_p50", percentile(0.5)?, "ms"),
        Line::new("telemetry", "insert_p99", percentile(0.99)?, "ms").with_goal(INSERT_P99_MS_MAX),
        Line::new("telemetry", "node_cpu_per_1000_samples", per_thousand(after.cpu, before.cpu), "ms"),
        Line::new(
            "telemetry",
            "database_cpu_per_1000_samples",
            per_thousand(after.database_cpu, before.database_cpu),
            "ms",
        ),
        Line::new("telemetry", "stored_per_sample", bytes / rows, "B"),
    ] {
        report.add(&line)?;
    }
    ensure!(rows >= after.stored, "the node says that it stored {} samples, and there are {rows}", after.stored);
    Ok(())
}

/// Samples that the database has, and what they take there with their indexes.
async fn rows(database: &mut PgConnection) -> Result<(f64, f64)> {
    let sql = "select (select count(*) from samples)::float8,
                      (select sum(pg_total_relation_size(inhrelid)) from pg_inherits where inhparent = 'samples'::regclass)::float8";
    Ok(sqlx::query_as(sql).fetch_one(database).await?)
}

/// What the node has counted since its start.
struct Taken {
    at: Instant,
    cpu: Duration,
    database_cpu: Duration,
    stored: f64,
    dropped: f64,
    /// Statements that took at most so long, by the microsecond.
    inserts: BTreeMap<u64, f64>,
}

impl Taken {
    async fn until_now(server: &Server, process: Process) -> Result<Self> {
        let (_, text) = server.operations("/metrics").await?;
        let (at, cpu, database_cpu) = (Instant::now(), process.cpu()?, process.descendants_cpu()?);
        let bucket = format!("{INSERT}_bucket{{le=\"");
        let inserts = text.lines().filter_map(|line| line.strip_prefix(&bucket)?.split_once("\"} "));
        let inserts = inserts.filter_map(|(limit, count)| Some((micros(limit)?, count.parse().ok()?))).collect();
        let sum = |name: &str| -> f64 {
            let series = text.lines().filter(|line| line.starts_with(name));
            series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        let (stored, dropped) = (sum("cloudlink_telemetry_stored_total"), sum("cloudlink_telemetry_dropped_total"));
        Ok(Self { at, cpu, database_cpu, stored, dropped, inserts })
    }
}

/// Of a bucket's limit in seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds, or no limit")]
fn micros(limit: &str) -> Option<u64> {
    let seconds: f64 = limit.parse().ok()?;
    Some(if seconds.is_finite() { (seconds * 1e6).round() as u64 } else { u64::MAX })
}

/// The limit of the bucket that the percentile is in, in seconds: it was not longer.
fn percentile(before: &BTreeMap<u64, f64>, after: &BTreeMap<u64, f64>, share: f64) -> Result<f64> {
    let counts: Vec<(u64, f64)> =
        after.iter().map(|(limit, count)| (*limit, count - before.get(limit).unwrap_or(&0.0))).collect();
    let all = counts.last().context("nothing was counted")?.1;
    ensure!(all > 0.0, "nothing was stored");
    let limit = counts.iter().find(|(_, count)| *count >= all * share).context("buckets do not add up")?.0;
    #[expect(clippy::cast_precision_loss, reason = "a few million microseconds")]
    Ok(limit as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_limit_of_its_bucket() {
        let before = BTreeMap::from([(1000, 5.0), (50_000, 5.0), (u64::MAX, 5.0)]);
        let after = BTreeMap::from([(1000, 55.0), (50_000, 104.0), (u64::MAX, 105.0)]);
        assert_eq!(
            (percentile(&before, &after, 0.5).unwrap(), percentile(&before, &after, 0.99).unwrap()),
            (0.001, 0.05)
        );
        assert!(percentile(&before, &after, 1.0).unwrap() > 1e6);
        assert!(percentile(&after, &after, 0.5).is_err());
        assert_eq!((micros("0.0025"), micros("+Inf"), micros("x")), (Some(2500), Some(u64::MAX), None));
    }
}
