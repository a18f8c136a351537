//! Several nodes: one NATS server and one Postgres, or two that follow one another, all started here, and as many servers as a
//! test wants.

mod centre;
mod database;
mod nats;
mod pgbouncer;
mod switch;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

pub use self::centre::{Centre, Peer};
pub use self::database::{Database, Place};
pub use self::nats::Nats;
pub use self::pgbouncer::PgBouncer;
pub use self::switch::Switch;

use crate::fleet::Fleet;
use crate::poll::wait_for;
use crate::port;
use crate::program::Program;
use crate::server::{Plan, Runner, Server, Settings};

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
        Self::start_on(Database::start().await?, nodes, &[]).await
    }

    /// The same on a database that is there, with more of the configuration.
    pub async fn start_on(database: Database, nodes: usize, set: &[String]) -> anyhow::Result<Self> {
        Self::start_with(database, nodes, set, None).await
    }

    /// The same, and the first node is run by the program of the release before.
    pub async fn start_with(
        database: Database,
        nodes: usize,
        set: &[String],
        first: Option<Runner>,
    ) -> anyhow::Result<Self> {
        Self::start_around(Nats::start().await?, database, nodes, set, first).await
    }

    /// The same, with a NATS server that is there.
    pub async fn start_around(
        nats: Nats,
        database: Database,
        nodes: usize,
        set: &[String],
        first: Option<Runner>,
    ) -> anyhow::Result<Self> {
        let is_of_before = first.is_some();
        let settings = Settings { runner: first, is_of_before, ..settings(&database, &nats, 1, set)? };
        let fleet = Fleet::start_with(&settings).await?;
        let mut cluster = Self { others: Vec::new(), fleet, nats, database };
        for _ in 1..nodes {
            cluster.join(set).await?;
        }
        Ok(cluster)
    }

    /// Starts one more node.
    pub async fn join(&mut self, set: &[String]) -> anyhow::Result<()> {
        let number = self.others.len() + 2;
        let settings = settings(&self.database, &self.nats, number, set)?;
        let plan = Plan::new(&self.fleet.path(&format!("node-{number}")), &settings)?;
        // Joining is configuration, and the keys that all nodes share.
        let pki = self.fleet.path(&format!("node-{number}/data"));
        std::fs::create_dir_all(&pki)?;
        let copied = Command::new("cp").arg("-a").arg(self.fleet.server.data_dir().join("pki")).arg(&pki).status()?;
        anyhow::ensure!(copied.success(), "cannot copy the keys: {copied}");
        self.others.push(plan.start().await?);
        Ok(())
    }
}

fn settings(database: &Database, nats: &Nats, number: usize, set: &[String]) -> anyhow::Result<Settings> {
    let internal = port::free()?;
    let own = [
        format!("node=node-{number}"),
        format!("database.url={}", database.url()),
        format!("cluster.listen={internal}"),
        format!("cluster.address={internal}"),
        format!("cluster.lease_seconds={LEASE_SECONDS}"),
    ];
    Ok(Settings {
        set: own.into_iter().chain(nats.settings()).chain(set.iter().cloned()).collect(),
        ..Settings::default()
    })
}

async fn until_listening(program: &mut Program, address: SocketAddr) -> anyhow::Result<()> {
    wait_for("a listening server", START_LIMIT, async || {
        program.ensure_running()?;
        TcpStream::connect(address).await?;
        Ok(())
    })
    .await
}
