//! Several nodes: one Postgres and one NATS server, both started here, and as many servers as a test wants.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::fleet::{Fleet, directory};
use crate::poll::wait_for;
use crate::port;
use crate::program::{Program, bound};
use crate::server::{Plan, Server, Settings};

const START_LIMIT: Duration = Duration::from_secs(30);
/// Short, so that a test sees its end.
const LEASE_SECONDS: u32 = 5;

/// Dropped in this order.
#[derive(Debug)]
pub struct Cluster {
    /// All nodes but the first.
    pub others: Vec<Server>,
    /// With the first node.
    pub fleet: Fleet,
    pub nats: Nats,
    pub database: Database,
}

impl Cluster {
    /// Starts so many nodes, `node-1` and so on.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        let database = Database::start().await?;
        let nats = Nats::start().await?;
        let settings = |number: usize| -> anyhow::Result<Settings> {
            let internal = port::free()?;
            let set = [
                format!("node=node-{number}"),
                format!("database.url={}", database.url()),
                format!("cluster.nats=nats://{}", nats.address),
                format!("cluster.listen={internal}"),
                format!("cluster.address={internal}"),
                format!("cluster.lease_seconds={LEASE_SECONDS}"),
            ];
            Ok(Settings { set: set.into(), ..Settings::default() })
        };
        let fleet = Fleet::start_with(&settings(1)?).await?;
        let mut others = Vec::new();
        for number in 2..=nodes {
            let plan = Plan::new(&fleet.path(&format!("node-{number}")), &settings(number)?)?;
            // Joining is configuration, and the keys that all nodes share.
            let pki = fleet.path(&format!("node-{number}/data"));
            std::fs::create_dir_all(&pki)?;
            let copied = Command::new("cp").arg("-a").arg(fleet.server.data_dir().join("pki")).arg(&pki).status()?;
            anyhow::ensure!(copied.success(), "cannot copy the keys: {copied}");
            others.push(plan.start().await?);
        }
        Ok(Self { others, fleet, nats, database })
    }
}

/// A Postgres that a test may kill.
#[derive(Debug)]
pub struct Database {
    program: Program,
    address: SocketAddr,
    directory: TempDir,
}

impl Database {
    pub async fn start() -> anyhow::Result<Self> {
        let directory = directory()?;
        // Postgres does not run as root.
        if Uid::effective().is_root() {
            let owner = User::from_name("postgres")?.context("there is no user postgres")?;
            chown(directory.path(), Some(owner.uid), Some(owner.gid))?;
        }
        let data = directory.path().join("data");
        let made = as_postgres(&postgres_program("initdb")?)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&data)
            .output()?;
        anyhow::ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let address = port::free()?;
        let program = run(&data, address, directory.path())?;
        let mut database = Self { program, address, directory };
        database.until_listening().await?;
        Ok(database)
    }

    /// As the owner of everything.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// As a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.program.kill().map(drop)
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let data = self.directory.path().join("data");
        // What a killed one has left behind.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        self.program = run(&data, self.address, self.directory.path())?;
        self.until_listening().await
    }

    async fn until_listening(&mut self) -> anyhow::Result<()> {
        until_listening(&mut self.program, self.address).await
    }
}

fn run(data: &Path, address: SocketAddr, directory: &Path) -> anyhow::Result<Program> {
    let mut command = as_postgres(&postgres_program("postgres")?);
    command.arg("-D").arg(data).arg("-h").arg(address.ip().to_string()).arg("-p").arg(address.port().to_string());
    command.arg("-k").arg(directory);
    // What is committed outlives its processes, but not the machine.
    for setting in ["fsync=off", "full_page_writes=off", "max_connections=200"] {
        command.arg("-c").arg(setting);
    }
    Program::start("postgres", command, &directory.join("postgres.log"))
}

/// A command as the user whom Postgres belongs to.
fn as_postgres(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return bound(program);
    }
    let mut command = bound("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program);
    command
}

/// On PATH, or the newest that Debian has.
fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|place| place.join(name)).find(|program| program.is_file()) {
        return Ok(found);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("postgresql is not installed")?;
    let mut versions: Vec<_> = versions.filter_map(|version| Some(version.ok()?.path())).collect();
    versions.sort();
    versions
        .into_iter()
        .rev()
        .map(|version| version.join("bin").join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("{name} of Postgres is not installed"))
}

/// A NATS server on the loopback interface.
#[derive(Debug)]
pub struct Nats {
    program: Program,
    pub address: SocketAddr,
    directory: TempDir,
}

impl Nats {
    pub async fn start() -> anyhow::Result<Self> {
        let directory = directory()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
        let address = port::free()?;
        let program = Self::run(address, directory.path())?;
        let mut nats = Self { program, address, directory };
        until_listening(&mut nats.program, address).await?;
        Ok(nats)
    }

    fn run(address: SocketAddr, directory: &Path) -> anyhow::Result<Program> {
        let mut command = bound("nats-server");
        command.arg("-a").arg(address.ip().to_string()).arg("-p").arg(address.port().to_string());
        Program::start("nats-server", command, &directory.join("nats.log"))
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.program = Self::run(self.address, self.directory.path())?;
        until_listening(&mut self.program, self.address).await
    }
}

async fn until_listening(program: &mut Program, address: SocketAddr) -> anyhow::Result<()> {
    wait_for("a listening server", START_LIMIT, async || {
        program.ensure_running()?;
        TcpStream::connect(address).await?;
        Ok(())
    })
    .await
}

/// One address in front of several, as simple as can be: a connection goes to whichever was chosen last.
#[derive(Debug)]
pub struct Switch {
    pub address: SocketAddr,
    chosen: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Switch {
    /// Begins with the first.
    pub async fn start(targets: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, chosen) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let current = Arc::clone(&chosen);
        let accepting = tokio::spawn(async move {
            // Dropped with this, they end.
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let target = targets[current.load(Ordering::Relaxed)];
                connections.spawn(async move {
                    if let Ok(mut other) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut stream, &mut other).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, chosen, accepting: accepting.abort_handle() })
    }

    /// Where connections go from now on.
    pub fn choose(&self, target: usize) {
        self.chosen.store(target, Ordering::Relaxed);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
