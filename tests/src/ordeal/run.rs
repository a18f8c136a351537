//! A run, from starting everything to the checker's verdict.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::Row as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::plan::{Blow, plan};
use super::swarm;
use super::watch::watch;
use super::work::{Answers, Work};
use crate::balancer::PEOPLE_PORT;
use crate::bench::seed;
use crate::cluster::Centre;
use crate::history::{self, Book, Harm, now_us};
use crate::load::Fleet;
use crate::poll::wait_for;
use crate::program::{Program, binary};
use crate::{clock, netns};

pub const NODES: usize = 3;
/// Whether the database can be switched over.
const HAS_STANDBY: bool = true;
/// Of one process, which has 20,000 open files on many a machine.
const DEVICES_PER_PROCESS: usize = 4_000;
/// One device of so many is in a tunnel.
const TUNNELS_OF: usize = 10;
/// Devices that come in a second at the begin.
const COME_PER_SECOND: u64 = 150;
/// A link on which nothing came for so long is dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const MISSED_PINGS: u32 = 3;
/// Short, so that nodes are taken to be gone within a harm; the default where a storm of thousands keeps two processors busy for
/// longer than that.
const LEASE: Duration = Duration::from_secs(5);
const LEASE_OF_MANY: Duration = Duration::from_secs(15);
const MANY: usize = 2_000;
/// Until presence is right, beside a dead link and a dead node's lease: reconcilers look every few seconds.
const LOOKS: Duration = Duration::from_secs(5);
/// A command that is under way when its grant is taken back can be begun as long as its link lives.
const REVOCATION_LIMIT: Duration = Duration::from_secs(16);
/// Until all devices have come.
const COME_LIMIT: Duration = Duration::from_secs(120);
const COME_LIMIT_PER_DEVICE: Duration = Duration::from_millis(30);
/// Until nobody waits for anything after the last harm: a command that was sent is given up a minute after it has expired.
const SETTLED_LIMIT: Duration = Duration::from_secs(200);
/// So many commands of hundred that were asked for must have been made, or little was tried.
const MADE_OF_100_MIN: usize = 30;

/// How long, how many, how much.
#[derive(Clone, Debug)]
pub struct Scale {
    pub seed: u64,
    pub length: Duration,
    pub devices: usize,
    pub commands_per_second: u32,
    /// Where histories are kept; by default they go with the run.
    pub directory: Option<PathBuf>,
}

/// Runs all of it, in a network of its own. An error is a promise that was not kept, or a run that says nothing.
pub fn run(scale: &Scale) -> anyhow::Result<()> {
    netns::run(async || {
        let mut run = Run::start(scale).await?;
        let finished = run.finish(scale).await;
        if let Some(directory) = &scale.directory {
            run.centre.keep_logs(directory)?;
        }
        finished
    })
}

struct Run {
    centre: Centre,
    fleet: Fleet,
    directory: PathBuf,
    swarms: Vec<Program>,
    begun: Instant,
}

impl Scale {
    fn lease(&self) -> Duration {
        if self.devices > MANY { LEASE_OF_MANY } else { LEASE }
    }

    /// For how long presence may be wrong.
    fn presence_limit(&self) -> Duration {
        PING_INTERVAL * MISSED_PINGS + self.lease() + LOOKS
    }
}

impl Run {
    async fn start(scale: &Scale) -> anyhow::Result<Self> {
        let begun = Instant::now();
        say(&format!("CHAOS_SEED={} CHAOS_SECONDS={} DEVICES={}", scale.seed, scale.length.as_secs(), scale.devices));
        let centre = Centre::start(NODES, scale.devices, HAS_STANDBY, &settings(scale)).await?;
        let directory = scale.directory.clone().unwrap_or_else(|| centre.path("histories"));
        std::fs::create_dir_all(&directory)?;
        let fleet = seed::devices(&centre.fleet, centre.database.look().await?, scale.devices, clock::now()).await?;
        let mut run = Self { centre, fleet, directory, swarms: Vec::new(), begun };
        run.start_devices(scale)?;
        Ok(run)
    }

    fn start_devices(&mut self, scale: &Scale) -> anyhow::Result<()> {
        let credentials = self.centre.path("credentials");
        let lines: Vec<_> = self.fleet.devices.iter().map(|device| device.to_line()).collect();
        std::fs::write(&credentials, lines.join("\n"))?;
        for (process, first) in (0..scale.devices).step_by(DEVICES_PER_PROCESS).enumerate() {
            let history = history::of_devices(&self.directory, process);
            ensure!(!history.exists(), "{} is of another run", history.display());
            let arguments = swarm::Arguments {
                credentials: credentials.clone(),
                first,
                count: DEVICES_PER_PROCESS.min(scale.devices - first),
                tunnels_of: TUNNELS_OF,
                addresses: self.centre.device_addresses(),
                ca: self.centre.fleet.server.ca_file(),
                history,
                seed: scale.seed,
                spread_ms: scale.devices as u64 * 1_000 / COME_PER_SECOND,
            };
            self.swarms.push(arguments.start(&self.centre.path(&format!("devices-{process}.log")))?);
        }
        Ok(())
    }

    async fn all_are_there(&mut self, devices: usize, limit: Duration) -> anyhow::Result<()> {
        let mut database = self.centre.database.look().await?;
        let swarms = &mut self.swarms;
        wait_for("all devices", limit, async || {
            for swarm in &mut *swarms {
                if let Err(ended) = swarm.ensure_running() {
                    return Ok(Err(ended));
                }
            }
            let live = one(&mut database, "select count(*) from links where closed_at is null").await?;
            ensure!(live == i64::try_from(devices)?, "{live} of {devices}");
            Ok(Ok(()))
        })
        .await?
    }

    async fn finish(&mut self, scale: &Scale) -> anyhow::Result<()> {
        let limit = COME_LIMIT + COME_LIMIT_PER_DEVICE * u32::try_from(scale.devices)?;
        self.all_are_there(scale.devices, limit).await?;
        say(&format!("{} devices are linked after {:?}", scale.devices, self.begun.elapsed()));
        let stop_watching = CancellationToken::new();
        let watching = tokio::spawn({
            let (hosts, directory, stop) = (self.hosts(), self.directory.clone(), stop_watching.clone());
            async move { watch(hosts, &directory, stop).await }
        });
        let stop_working = CancellationToken::new();
        let working = tokio::spawn({
            let (work, directory, stop) = (self.work(scale)?, self.directory.clone(), stop_working.clone());
            async move { work.run(&directory, stop).await }
        });
        self.hurt(&plan(scale.seed, scale.length, NODES, HAS_STANDBY), scale.length).await?;
        stop_working.cancel();
        let answers = working.await??;
        say(&format!("{answers:?}"));
        self.settled(scale).await?;
        stop_watching.cancel();
        watching.await??;
        for swarm in &mut self.swarms {
            let status = swarm.stop()?;
            ensure!(status.success(), "the devices ended with {status}: {}", swarm.log_text()?);
        }
        self.audit_holds().await?;
        self.verdict(scale)?;
        say(&format!("done after {:?}", self.begun.elapsed()));
        enough_was_tried(&answers)
    }

    /// Does one harm after another.
    async fn hurt(&mut self, blows: &[Blow], length: Duration) -> anyhow::Result<()> {
        let book = Book::open(&self.directory.join(history::HARMS))?;
        let zero = Instant::now();
        for Blow { at, lasts, harm } in blows {
            sleep_until(zero + *at).await;
            let (from, from_us) = (zero.elapsed(), now_us());
            let was_possible = harm.run(&mut self.centre, *lasts).await.with_context(|| harm.to_string())?;
            let how = if was_possible { "" } else { ": not possible on this machine" };
            say(&format!("{:.1} to {:.1} s: {harm}{how}", from.as_secs_f64(), zero.elapsed().as_secs_f64()));
            let (what, stops_database) = (harm.to_string(), harm.stops_database());
            book.write(&Harm { from_us, to_us: now_us(), what, stops_database })?;
        }
        sleep_until(zero + length).await;
        Ok(())
    }

    /// Waits until every device is there again, and no command is open.
    async fn settled(&mut self, scale: &Scale) -> anyhow::Result<()> {
        let begun = Instant::now();
        for number in 0..self.centre.nodes() {
            self.centre.node(number).ready().await?;
        }
        self.all_are_there(scale.devices, SETTLED_LIMIT + COME_LIMIT_PER_DEVICE * u32::try_from(scale.devices)?)
            .await?;
        say(&format!("all devices are back {:?} after the end of the run", begun.elapsed()));
        let mut database = self.centre.database.look().await?;
        wait_for("the end of all commands", SETTLED_LIMIT, async || {
            let open = one(&mut database, "select count(*) from commands where finished_at is null").await?;
            ensure!(open == 0, "{open} are open");
            Ok(())
        })
        .await?;
        say(&format!("all commands have ended {:?} after the end of the run", begun.elapsed()));
        let unconfirmed = states(&mut database).await?;
        say(&format!("{unconfirmed:?}"));
        // Whoever is wrong now has to be wrong for the limit before it counts.
        sleep_until(Instant::now() + scale.presence_limit() + Duration::from_secs(2)).await;
        Ok(())
    }

    fn hosts(&self) -> Vec<PgConnectOptions> {
        let host = |at: &std::net::SocketAddr| {
            let options = PgConnectOptions::new_without_pgpass().host(&at.ip().to_string()).port(at.port());
            options.username("postgres").database("postgres")
        };
        self.centre.database.addresses().iter().map(host).collect()
    }

    fn work(&self, scale: &Scale) -> anyhow::Result<Work> {
        let front = self.centre.balancers.first().context("there is a load balancer")?;
        let people = &self.centre.fleet;
        Ok(Work {
            people: (front.site.ipv4, PEOPLE_PORT).into(),
            ca_file: people.server.ca_file(),
            operator_token: people.operator.token().to_owned(),
            operator_id: people.operator_id.clone(),
            tenant_token: people.tenant.token().to_owned(),
            selector: seed::selector(),
            devices: self.fleet.devices.iter().map(|device| device.id.as_uuid()).collect(),
            per_second: scale.commands_per_second,
            seed: scale.seed,
        })
    }

    /// As the command line judges it, too.
    async fn audit_holds(&self) -> anyhow::Result<()> {
        let people = &self.centre.fleet;
        let cli = people.cli(people.tenant.token());
        let log = self.directory.join("audit.ndjson");
        let log = log.to_str().context("a path")?;
        let exported = cli.run(&["audit", "export", "--output", log]).await?;
        ensure!(exported.code == Some(0), "{exported:?}");
        let verified = cli.run(&["audit", "verify", log]).await?;
        ensure!(verified.code == Some(0), "{verified:?}");
        Ok(())
    }

    /// What the checker says, which knows nothing but files and the database.
    fn verdict(&self, scale: &Scale) -> anyhow::Result<()> {
        let mut check = Command::new(binary("ordeal")?);
        check.arg("check").arg(&self.directory);
        check.arg("--database").arg(format!("postgres://postgres@{}/postgres", self.centre.database.address()));
        check.args(["--presence-seconds", &scale.presence_limit().as_secs().to_string()]);
        check.args(["--revocation-ms", &REVOCATION_LIMIT.as_millis().to_string()]);
        let output = check.output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        say(&said);
        ensure!(output.status.success(), "promises were not kept:\n{said}");
        Ok(())
    }
}

/// So that what time-outs bound is seen in a run of minutes.
fn settings(scale: &Scale) -> Vec<String> {
    let set = [
        format!("cluster.lease_seconds={}", scale.lease().as_secs()),
        "tunnel.enabled=true".to_owned(),
        // Devices of the nodes' own would be counted among the others.
        "isolation.proofs=false".to_owned(),
        format!("link.ping_interval_seconds={}", PING_INTERVAL.as_secs()),
        format!("link.max_missed_pings={MISSED_PINGS}"),
        format!("tunnel.ping_interval_seconds={}", PING_INTERVAL.as_secs()),
        format!("tunnel.dead_after_seconds={}", (PING_INTERVAL * MISSED_PINGS).as_secs()),
        "link.reconnect_spread_seconds=5".to_owned(),
        "shutdown.drain_seconds=15".to_owned(),
        "shutdown.soft_seconds=5".to_owned(),
        "log.filter=info".to_owned(),
    ];
    set.into()
}

async fn one(database: &mut PgConnection, query: &'static str) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(database).await?)
}

async fn states(database: &mut PgConnection) -> anyhow::Result<Vec<(String, i64)>> {
    let rows =
        sqlx::query("select state, count(*) from commands group by state order by 2 desc").fetch_all(database).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A run in which hardly anything was done has shown nothing.
fn enough_was_tried(answers: &Answers) -> anyhow::Result<()> {
    let of = |is: fn(&str) -> bool| answers.iter().filter(|(how, _)| is(how)).map(|(_, count)| count).sum::<usize>();
    let (made, asked) = (of(|how| how.starts_with("command: 20")), of(|how| how.starts_with("command: ")));
    ensure!(made * 100 >= asked * MADE_OF_100_MIN, "only {made} of {asked} commands were made: {answers:?}");
    let revoked = of(|how| how.starts_with("revocation: 20"));
    ensure!(revoked > 0, "no grant was taken back: {answers:?}");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "whoever runs it sees what was drawn, and what came of it")]
fn say(what: &str) {
    eprintln!("figure: {what}");
}
