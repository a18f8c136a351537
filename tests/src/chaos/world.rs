//! The fleet: its database, its nodes, its people and its devices.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use super::database::Database;
use super::relay::Relay;
use super::target::Target;
use crate::api::{Api, text};
use crate::cli::Cli;
use crate::fleet::{self, LINK_LIMIT};
use crate::machine::Machine;
use crate::poll::wait_for;
use crate::server::{Plan, Server, Settings};

/// Who calls gives up on a node that stands still, and asks the other.
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Dropped in this order: the database and the directory last.
#[derive(Debug)]
pub struct World {
    pub devices: Vec<Gateway>,
    pub nodes: Vec<Server>,
    pub admin: Api,
    pub tenant: Api,
    pub database: Database,
    pub target: Target,
    directory: TempDir,
}

/// A device with its agent, on its way to one of the nodes.
#[derive(Debug)]
pub struct Gateway {
    pub id: String,
    pub name: String,
    /// Of `nodes`.
    pub node: usize,
    pub machine: Machine,
    pub relay: Relay,
}

/// An operator: who, and how the API is called.
#[derive(Clone, Debug)]
pub struct Operator {
    pub id: String,
    pub api: Api,
}

impl World {
    /// So many nodes, and so many devices that are linked to them in turn.
    pub async fn start(nodes: usize, devices: usize, set: &[&str]) -> anyhow::Result<Self> {
        let directory = fleet::directory()?;
        let database = Database::start(&directory.path().join("postgres")).await?;
        database.make_login("cloudlink_server").await?;
        let nodes = start_nodes(directory.path(), &database, nodes, set).await?;
        let first = nodes.first().context("no node")?;
        let admin = first.admin().await?;
        let tenant_id = text(&admin.post("/tenants", &json!({ "name": "customer" })).await?, "id")?;
        let (tenant, _) = fleet::person(&admin, "customer user", "tenant", Some(&tenant_id)).await?;
        let target = Target::start().await?;
        let mut world = Self { devices: Vec::new(), nodes, admin, tenant, database, target, directory };
        let made = (0..devices).map(|number| world.gateway(number));
        world.devices = try_join_all(made).await?;
        Ok(world)
    }

    async fn gateway(&self, number: usize) -> anyhow::Result<Gateway> {
        let (name, node) = (format!("gw-{number}"), number % self.nodes.len());
        let relay = Relay::start(self.nodes[node].device).await?;
        let made = self.tenant.post("/enrollment-tokens", &json!({ "device_name": name })).await?;
        let token = text(&made, "token")?;
        let machine = Machine::new(&self.directory.path().join(&name), relay.address, &self.nodes[node].ca_file())?
            .with_terminal(&self.target.terminal_argv())?;
        let enroll = move || {
            machine.enroll(&token)?;
            anyhow::Ok(machine)
        };
        let mut machine = tokio::task::spawn_blocking(enroll).await??;
        // Not there: it would end with the thread that starts it.
        machine.power_on()?;
        let id = wait_for("a linked device", LINK_LIMIT, async || {
            let devices = self.tenant.get("/devices?limit=200").await?;
            let found =
                devices["items"].as_array().into_iter().flatten().find(|device| device["name"] == name.as_str());
            let found = found.context("it is not there")?;
            anyhow::ensure!(found["link"]["state"] == "live", "{found}");
            text(found, "id")
        })
        .await?;
        Ok(Gateway { id, name, node, machine, relay })
    }

    /// Another operator.
    pub async fn operator(&self, name: &str) -> anyhow::Result<Operator> {
        let (api, id) = fleet::person(&self.admin, name, "operator", None).await?;
        Ok(Operator { id, api })
    }

    /// The same caller, of another node.
    pub fn at(&self, node: usize, somebody: &Api) -> anyhow::Result<Api> {
        let server = &self.nodes[node];
        Api::new(&server.api_url(), &server.ca_file(), somebody.token())
    }

    /// A caller who asks each of the nodes in turn until one answers.
    pub fn anywhere(&self, somebody: &Api) -> anyhow::Result<Anywhere> {
        Ok(Anywhere((0..self.nodes.len()).map(|node| self.at(node, somebody)).collect::<Result<_, _>>()?))
    }

    /// A command line that calls this node.
    #[must_use]
    pub fn cli(&self, node: usize, token: &str) -> Cli {
        let server = &self.nodes[node];
        Cli::new(&self.path("cli")).with_token(&server.api_url(), &server.ca_file(), token)
    }

    #[must_use]
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

impl Gateway {
    pub fn agent_pid(&self) -> anyhow::Result<Pid> {
        self.machine.agent_pid()
    }
}

/// Somebody who does not give up.
#[derive(Clone, Debug)]
pub struct Anywhere(Vec<Api>);

impl Anywhere {
    /// Calls until it is done, or was done by a call of before whose answer was lost.
    pub async fn insist(&self, method: reqwest::Method, path: &str, body: Option<&serde_json::Value>) {
        for api in self.0.iter().cycle() {
            let called = tokio::time::timeout(CALL_LIMIT, api.call(method.clone(), path, &[], body)).await;
            let is_done =
                |status: reqwest::StatusCode| status.is_success() || matches!(status.as_u16(), 404 | 409 | 410);
            match called {
                Ok(Ok(answer)) if is_done(answer.status) => return,
                Ok(Ok(_) | Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn start_nodes(directory: &Path, database: &Database, count: usize, set: &[&str]) -> anyhow::Result<Vec<Server>> {
    let mut nodes: Vec<Server> = Vec::new();
    for number in 0..count {
        let mut all: Vec<String> = set.iter().map(|assignment| (*assignment).to_owned()).collect();
        all.push(format!("node=node-{number}"));
        all.push(format!("database.url={}", database.url("cloudlink_server")));
        all.push(format!("database.migrate_url={}", database.url("postgres")));
        let settings = Settings { set: all, ..Settings::default() };
        let own = directory.join(format!("node-{number}"));
        let plan = Plan::new(&own, &settings)?;
        match nodes.first() {
            None => drop(plan.init_pki()?),
            // All nodes of a fleet have the same authority and keys.
            Some(first) => copy(&first.data_dir().join("pki"), &own.join("data/pki"))?,
        }
        nodes.push(plan.start().await?);
    }
    Ok(nodes)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, from.metadata()?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
