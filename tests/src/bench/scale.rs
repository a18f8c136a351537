//! What a fleet takes all the time, and what each thing that happens leaves behind: three nodes that share a database and a NATS
//! server. One of the nodes has the links, another has them afterwards, without reports, and the first one is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::{Connection as _, Executor as _};
use tokio::time::{Instant, sleep};

use super::report::{Line, Report};
use super::usage::Process;
use super::{command, connect, seed};
use crate::clock;
use crate::cluster::{Cluster, Database};
use crate::load::{Protocol, Swarm};
use crate::server::get;

/// How long links idle. Devices report their metrics each minute, and each link is proven every 25 s.
const IDLE: Duration = Duration::from_secs(120);
/// How long nodes without a link are watched before.
const WITHOUT_LINKS: Duration = Duration::from_secs(30);
const NODES: f64 = 3.0;
/// Devices are told to report no metrics.
const SILENT: &str = "link.metrics_interval_seconds=0";
/// Commands at the same time, by so many people.
const AT_ONCE: usize = 200;
const OPERATORS: usize = 16;
const KB: f64 = 1000.0;
const MILLION: f64 = 1_000_000.0;

/// Connects so many devices, lets them idle, and runs so many commands.
pub async fn measure(links: usize, commands: usize, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::start_on(database_with_page_images().await?, 2, &[]).await?;
    let now = clock::now();
    let fleet = Arc::new(seed::devices(&cluster.fleet, cluster.database.look().await?, links, now).await?);
    seed::grant(&cluster.fleet).await?;
    let operators = seed::operators(&cluster.fleet, OPERATORS).await?;
    cluster.join(&[SILENT.to_owned()]).await?;
    let [holder, silent] = cluster.others.as_slice() else { anyhow::bail!("three nodes are needed") };
    let (target, silent) = (connect::target(holder.device, &fleet)?, connect::target(silent.device, &fleet)?);
    sleep(connect::SETTLE).await;

    let begun = Taken::until_now(&mut cluster).await?;
    sleep(WITHOUT_LINKS).await;
    let before = Taken::until_now(&mut cluster).await?;
    let unasked = before.since(&begun);
    unasked.a_second("scale_idle_node", NODES, report)?;
    let mut swarm = Swarm::connect(&target, &fleet, Protocol::Link, 0..links, connect::DIALLING).await?;
    sleep(connect::SETTLE).await;
    let connected = Taken::until_now(&mut cluster).await?;
    connected.since(&before).by("scale_connect", links, report)?;

    sleep(IDLE).await;
    let idled = Taken::until_now(&mut cluster).await?;
    let million = f64::from(u32::try_from(links)?) / MILLION;
    idled.since(&connected).beyond(&unasked).a_second("scale_million_idle_links", million, report)?;

    let before = Taken::until_now(&mut cluster).await?;
    command::throughput(&operators, &fleet, &mut swarm, commands, AT_ONCE).await?;
    let done = Taken::until_now(&mut cluster).await?;
    done.since(&before).by("scale_command", commands, report)?;

    swarm.stop().await;
    sleep(connect::SETTLE).await;
    let parted = Taken::until_now(&mut cluster).await?;
    parted.since(&done).by("scale_disconnect", links, report)?;

    let swarm = Swarm::connect(&silent, &fleet, Protocol::Link, 0..links, connect::DIALLING).await?;
    sleep(connect::SETTLE).await;
    let connected = Taken::until_now(&mut cluster).await?;
    sleep(IDLE).await;
    let idled = Taken::until_now(&mut cluster).await?;
    idled.since(&connected).beyond(&unasked).a_second("scale_million_silent_links", million, report)?;
    swarm.stop().await;
    Ok(())
}

/// As in earnest, its log has the whole of each page that is changed for the first time after a checkpoint.
async fn database_with_page_images() -> Result<Database> {
    let database = Database::start().await?;
    let mut owner = database.look().await?;
    owner.execute("alter system set full_page_writes = on").await?;
    owner.execute("select pg_reload_conf()").await?;
    owner.close().await?;
    Ok(database)
}

/// What everybody has taken since they began.
#[derive(Clone, Copy, Debug)]
struct Taken {
    at: Instant,
    /// The node that is asked, and the one that has the links.
    nodes_cpu: Duration,
    database_cpu: Duration,
    /// Of the log that a standby or an archive gets.
    log_bytes: f64,
    /// Of tables and indexes.
    stored_bytes: f64,
    transactions: f64,
    nats_messages: f64,
    nats_bytes: f64,
}

impl Taken {
    async fn until_now(cluster: &mut Cluster) -> Result<Self> {
        let mut nodes_cpu = Process::new(cluster.fleet.server.program().pid()).cpu()?;
        for node in &mut cluster.others {
            nodes_cpu += Process::new(node.program().pid()).cpu()?;
        }
        let postgres = Process::new(cluster.database.program()?.pid());
        let database_cpu = postgres.cpu()? + postgres.descendants_cpu()?;
        let mut owner = cluster.database.look().await?;
        let sql = "select (pg_current_wal_lsn() - '0/0')::float8, pg_database_size(current_database())::float8,
                          (select (xact_commit + xact_rollback)::float8 from pg_stat_database where datname = current_database())";
        let (log_bytes, stored_bytes, transactions) = sqlx::query_as(sql).fetch_one(&mut owner).await?;
        owner.close().await?;
        let (_, traffic) = get(cluster.nats.monitor, "/varz").await?;
        let traffic: Value = serde_json::from_str(&traffic)?;
        let passed = |name: &str| traffic[name].as_f64().with_context(|| format!("NATS says no {name}"));
        let (nats_messages, nats_bytes) = (passed("in_msgs")?, passed("in_bytes")?);
        let at = Instant::now();
        Ok(Self { at, nodes_cpu, database_cpu, log_bytes, stored_bytes, transactions, nats_messages, nats_bytes })
    }

    fn since(self, before: &Self) -> Spent {
        Spent {
            time: self.at - before.at,
            nodes_cpu: self.nodes_cpu.saturating_sub(before.nodes_cpu),
            // A backend that has ended takes its time with it.
            database_cpu: self.database_cpu.saturating_sub(before.database_cpu),
            log_bytes: self.log_bytes - before.log_bytes,
            stored_bytes: self.stored_bytes - before.stored_bytes,
            transactions: self.transactions - before.transactions,
            nats_messages: self.nats_messages - before.nats_messages,
            nats_bytes: self.nats_bytes - before.nats_bytes,
        }
    }
}

/// What was taken meanwhile.
#[derive(Clone, Copy, Debug)]
struct Spent {
    time: Duration,
    nodes_cpu: Duration,
    database_cpu: Duration,
    log_bytes: f64,
    stored_bytes: f64,
    transactions: f64,
    nats_messages: f64,
    nats_bytes: f64,
}

impl Spent {
    /// For each of the things that happened.
    fn by(self, bench: &'static str, count: usize, report: &mut Report) -> Result<()> {
        let count = f64::from(u32::try_from(count)?);
        let lines = [
            ("nodes_cpu", self.nodes_cpu.as_secs_f64() * 1000.0, "ms"),
            ("database_cpu", self.database_cpu.as_secs_f64() * 1000.0, "ms"),
            ("database_log", self.log_bytes / KB, "kB"),
            ("stored", self.stored_bytes / KB, "kB"),
            ("transactions", self.transactions, ""),
            ("nats_messages", self.nats_messages, ""),
            ("nats_traffic", self.nats_bytes / KB, "kB"),
        ];
        lines
            .into_iter()
            .try_for_each(|(metric, value, unit)| report.add(&Line::new(bench, metric, value / count, unit)))
    }

    /// Without what is taken all the time: nothing where that is more, as the little that differs is noise.
    fn beyond(self, unasked: &Self) -> Self {
        let share = self.time.as_secs_f64() / unasked.time.as_secs_f64();
        let more = |taken: f64, unasked: f64| (taken - unasked * share).max(0.0);
        Self {
            time: self.time,
            nodes_cpu: self.nodes_cpu.saturating_sub(unasked.nodes_cpu.mul_f64(share)),
            database_cpu: self.database_cpu.saturating_sub(unasked.database_cpu.mul_f64(share)),
            log_bytes: more(self.log_bytes, unasked.log_bytes),
            stored_bytes: more(self.stored_bytes, unasked.stored_bytes),
            transactions: more(self.transactions, unasked.transactions),
            nats_messages: more(self.nats_messages, unasked.nats_messages),
            nats_bytes: more(self.nats_bytes, unasked.nats_bytes),
        }
    }

    /// All the time, for each of so many.
    fn a_second(self, bench: &'static str, count: f64, report: &mut Report) -> Result<()> {
        let share = self.time.as_secs_f64() * count;
        let lines = [
            ("nodes_cpu", self.nodes_cpu.as_secs_f64(), "cores"),
            ("database_cpu", self.database_cpu.as_secs_f64(), "cores"),
            ("database_log", self.log_bytes / MILLION, "MB/s"),
            ("transactions", self.transactions, "1/s"),
            ("nats_messages", self.nats_messages, "1/s"),
        ];
        lines
            .into_iter()
            .try_for_each(|(metric, value, unit)| report.add(&Line::new(bench, metric, value / share, unit)))
    }
}
