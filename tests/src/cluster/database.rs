use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tempfile::TempDir;

use super::START_LIMIT;
use crate::fleet::directory;
use crate::poll::wait_for;
use crate::port;
use crate::program::{Program, bound};

/// Who may do everything in it.
const OWNER: &str = "postgres";
const NAME: &str = "postgres";
/// For a standby to have all that its primary has, or to be one.
const FOLLOW_LIMIT: Duration = Duration::from_secs(30);

/// Of the sites that a test may have: [`crate::netns::Site`].
const NETWORKS: &str = "198.18.0.0/15";

/// Where a database runs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub ip: IpAddr,
    /// Whether what is committed is on the disk, so that a slow disk is felt.
    pub is_durable: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), is_durable: false }
    }
}

/// A Postgres that a test may kill; on request one with a standby, which has all that was committed: nothing is committed
/// before the standby has it.
#[derive(Debug)]
pub struct Database {
    hosts: Vec<Host>,
    /// Which of the hosts is the primary.
    primary: usize,
    directory: TempDir,
}

impl Database {
    /// A single one.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at(Place::default()).await
    }

    /// A single one, elsewhere.
    pub async fn start_at(place: Place) -> anyhow::Result<Self> {
        let directory = directory()?;
        // Postgres does not run as root.
        if Uid::effective().is_root() {
            let owner = User::from_name(OWNER)?.context("there is no user postgres")?;
            chown(directory.path(), Some(owner.uid), Some(owner.gid))?;
        }
        let mut host = Host::new(directory.path(), 1, place)?;
        let mut initdb = as_postgres(&postgres_program("initdb")?);
        initdb.args(["-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"]).arg(host.data());
        done("initdb", &mut initdb)?;
        // Whoever is in the same network may come, as others do on the loopback interface.
        let mut who = File::options().append(true).open(host.data().join("pg_hba.conf"))?;
        writeln!(who, "host all,replication all samenet trust\nhost all all {NETWORKS} trust")?;
        host.start().await?;
        Ok(Self { hosts: vec![host], primary: 0, directory })
    }

    /// Two, the first of which begins as the primary.
    pub async fn start_with_standby() -> anyhow::Result<Self> {
        Self::start_with_standby_at(Place::default()).await
    }

    /// Two, elsewhere.
    pub async fn start_with_standby_at(place: Place) -> anyhow::Result<Self> {
        let mut database = Self::start_at(place).await?;
        database.hosts.push(Host::new(database.directory.path(), 2, place)?);
        database.follow(1).await?;
        Ok(database)
    }

    /// As the owner of everything; with a standby, both hosts, as a server takes it.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(|host| host.address.to_string()).collect();
        format!("postgres://{OWNER}@{}/{NAME}", hosts.join(","))
    }

    /// Where all of its hosts listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.address).collect()
    }

    /// Where the primary listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.hosts[self.primary].address
    }

    /// As the owner of everything, at the primary, to look.
    pub async fn look(&self) -> anyhow::Result<PgConnection> {
        self.hosts[self.primary].connect().await
    }

    /// Of the primary.
    pub fn program(&mut self) -> anyhow::Result<&mut Program> {
        self.hosts[self.primary].program.as_mut().context("the database was killed")
    }

    /// The process ids of all hosts' first processes.
    #[must_use]
    pub fn pids(&self) -> Vec<Pid> {
        self.hosts.iter().filter_map(|host| Some(host.program.as_ref()?.pid())).collect()
    }

    /// The primary, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.hosts[self.primary].kill()
    }

    /// The primary that was killed.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.hosts[self.primary].start().await
    }

    /// Kills the primary, and makes the standby the primary.
    pub async fn switch_over(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.promote().await
    }

    /// Makes the standby the primary, whatever the one before thinks that it is. Nothing follows it until
    /// [`Self::follow_again`].
    pub async fn promote(&mut self) -> anyhow::Result<()> {
        let standby = self.other()?;
        let mut owner = self.hosts[standby].connect().await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote(true, 30)").fetch_one(&mut owner).await?;
        ensure!(promoted, "the standby is not promoted");
        owner.close().await?;
        self.primary = standby;
        Ok(())
    }

    /// The host that was the primary is started as if nothing had happened: a second one that takes what is written to it, and
    /// waits for nobody. Gives a connection to it.
    pub async fn start_the_one_before(&mut self) -> anyhow::Result<PgConnection> {
        let before = self.other()?;
        self.hosts[before].start().await?;
        let mut owner = self.hosts[before].connect().await?;
        synchronous_with(&mut owner, "").await?;
        Ok(owner)
    }

    /// Makes a standby of the host that was the primary, with the primary's data.
    pub async fn follow_again(&mut self) -> anyhow::Result<()> {
        let before = self.other()?;
        self.hosts[before].kill()?;
        std::fs::remove_dir_all(self.hosts[before].data())?;
        self.follow(before).await
    }

    fn other(&self) -> anyhow::Result<usize> {
        ensure!(self.hosts.len() == 2, "the database has no standby");
        Ok(1 - self.primary)
    }

    /// Copies the primary to a host, which then follows it, and waits until the primary waits for it.
    async fn follow(&mut self, standby: usize) -> anyhow::Result<()> {
        let (from, name) = (self.address(), self.hosts[standby].name.clone());
        let mut copy = as_postgres(&postgres_program("pg_basebackup")?);
        copy.arg("-d").arg(format!("host={} port={} user={OWNER} application_name={name}", from.ip(), from.port()));
        copy.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "-D"]);
        done("pg_basebackup", copy.arg(self.hosts[standby].data()))?;
        self.hosts[standby].start().await?;
        let mut owner = self.look().await?;
        synchronous_with(&mut owner, &name).await?;
        wait_for("a standby that follows", FOLLOW_LIMIT, async || {
            let state: Option<String> =
                sqlx::query_scalar("select sync_state from pg_stat_replication where application_name = $1")
                    .bind(&name)
                    .fetch_optional(&mut owner)
                    .await?;
            ensure!(state.as_deref() == Some("sync"), "{state:?}");
            Ok(())
        })
        .await?;
        Ok(owner.close().await?)
    }
}

/// Whom a primary waits for.
async fn synchronous_with(owner: &mut PgConnection, name: &str) -> anyhow::Result<()> {
    let names = if name.is_empty() { String::new() } else { format!("FIRST 1 (\"{name}\")") };
    // Neither may be in a transaction.
    owner.execute(AssertSqlSafe(format!("alter system set synchronous_standby_names = '{names}'"))).await?;
    owner.execute("select pg_reload_conf()").await?;
    Ok(())
}

/// One Postgres: its files, and its processes while it runs.
#[derive(Debug)]
struct Host {
    name: String,
    program: Option<Program>,
    address: SocketAddr,
    is_durable: bool,
    directory: PathBuf,
}

impl Host {
    fn new(directory: &Path, number: usize, place: Place) -> anyhow::Result<Self> {
        let directory = directory.join(format!("host-{number}"));
        std::fs::create_dir(&directory)?;
        if Uid::effective().is_root() {
            let owner = User::from_name(OWNER)?.context("there is no user postgres")?;
            chown(&directory, Some(owner.uid), Some(owner.gid))?;
        }
        let address = SocketAddr::new(place.ip, port::free()?.port());
        Ok(Self { name: format!("host-{number}"), program: None, address, is_durable: place.is_durable, directory })
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass().host(&self.address.ip().to_string());
        Ok(options.port(self.address.port()).username(OWNER).database(NAME).connect().await?)
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        ensure!(self.program.is_none(), "{} runs", self.name);
        // What a killed one has left behind.
        let _ = std::fs::remove_file(self.data().join("postmaster.pid"));
        let mut command = as_postgres(&postgres_program("postgres")?);
        command.arg("-D").arg(self.data()).arg("-h").arg(self.address.ip().to_string());
        command.arg("-p").arg(self.address.port().to_string()).arg("-k").arg(&self.directory);
        command.args(["-c", "max_connections=200"]);
        if !self.is_durable {
            // What is committed outlives its processes, but not the machine.
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        let mut program = Program::start(&self.name, command, &self.directory.join("postgres.log"))?;
        // It listens some time before it is there.
        wait_for("Postgres", START_LIMIT, async || {
            program.ensure_running()?;
            Ok(self.connect().await?.close().await?)
        })
        .await?;
        self.program = Some(program);
        Ok(())
    }

    /// All its processes at once: each is in a group of its own, and would go on for a moment without the first of them.
    fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        // So that it starts none. It may be about to.
        program.signal(Signal::SIGSTOP)?;
        until("it to stand still", || state(program.pid()).is_none_or(|state| state == 'T'))?;
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", program.pid()))?;
        let children: Vec<Pid> = children
            .split_whitespace()
            .map(|child| Ok(Pid::from_raw(child.parse()?)))
            .collect::<anyhow::Result<_>>()?;
        for child in &children {
            // One may have ended by itself.
            let _ = kill(*child, Signal::SIGKILL);
        }
        program.kill()?;
        // Each holds on to the shared memory until it is gone, and the next first process refuses to share it.
        until("its processes to end", || children.iter().all(|child| state(*child).is_none_or(|state| state == 'Z')))
    }
}

/// What a process is doing (proc(5), `/proc/<pid>/stat`), if there is one.
fn state(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Short blocking looks, as it is also called from `drop`.
fn until(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + START_LIMIT;
    while !is_so() {
        ensure!(Instant::now() < end, "waited {START_LIMIT:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Drop for Host {
    /// Nothing of it is wanted any more, whoever is connected still.
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn done(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A command as the user whom Postgres belongs to.
fn as_postgres(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return bound(program);
    }
    let mut command = bound("setpriv");
    command.args(["--reuid", OWNER, "--regid", OWNER, "--clear-groups", "--"]).arg(program);
    command
}

/// The newest that Debian has, whose own programs on PATH only choose among them, or the one on PATH.
fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = versions.max_by_key(version).map(|newest| newest.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = newest.into_iter().chain(std::env::split_paths(&path));
    let mut programs = places.map(|place| place.join(name));
    programs.find(|program| program.is_file()).with_context(|| format!("{name} of Postgres is not installed"))
}
