//! A server, the people of two companies, and devices: what most tests begin with.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Api, text};
use crate::cli::Cli;
use crate::machine::Machine;
use crate::poll::wait_for;
use crate::server::{Server, Settings};

/// From switching a device on, or from a change, until the server shows it.
pub const LINK_LIMIT: Duration = Duration::from_secs(20);
/// Until a command has reached its final state. A shutdown is believed when the device has stayed away for 45 s.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Fields are dropped in this order: the server before the directory that its files are in.
#[derive(Debug)]
pub struct Fleet {
    pub server: Server,
    /// Platform administrator.
    pub admin: Api,
    /// The vendor's support engineer.
    pub operator: Api,
    pub operator_id: String,
    /// A customer's user, and the customer.
    pub tenant: Api,
    pub tenant_id: String,
    directory: TempDir,
}

/// A device that is enrolled and linked.
#[derive(Debug)]
pub struct Device {
    pub id: String,
    pub name: String,
    pub machine: Machine,
}

impl Fleet {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&Settings::default()).await
    }

    pub async fn start_with(settings: &Settings) -> anyhow::Result<Self> {
        let directory = directory()?;
        let server = Server::start(&directory.path().join("server"), settings).await?;
        let admin = server.admin().await?;
        let tenant = admin.post("/tenants", &json!({ "name": "customer" })).await?;
        let tenant_id = text(&tenant, "id")?;
        let (operator, operator_id) = person(&admin, "operator", "operator", None).await?;
        let (tenant, _) = person(&admin, "customer user", "tenant", Some(&tenant_id)).await?;
        Ok(Self { server, admin, operator, operator_id, tenant, tenant_id, directory })
    }

    /// Another customer with a user of its own, and its id.
    pub async fn other_tenant(&self, name: &str) -> anyhow::Result<(Api, String)> {
        let id = text(&self.admin.post("/tenants", &json!({ "name": name })).await?, "id")?;
        let (api, _) = person(&self.admin, &format!("User of {name}"), "tenant", Some(&id)).await?;
        Ok((api, id))
    }

    /// Another operator, and its id.
    pub async fn other_operator(&self, name: &str) -> anyhow::Result<(Api, String)> {
        person(&self.admin, name, "operator", None).await
    }

    /// A single-use token for a device with this name.
    pub async fn enrollment_token(&self, device_name: &str) -> anyhow::Result<String> {
        let made = self.tenant.post("/enrollment-tokens", &json!({ "device_name": device_name })).await?;
        text(&made, "token")
    }

    /// A device that has not been enrolled.
    pub fn new_machine(&self, name: &str) -> anyhow::Result<Machine> {
        self.new_machine_dialling(name, self.server.device)
    }

    /// The same, with something in between.
    pub fn new_machine_dialling(&self, name: &str, address: SocketAddr) -> anyhow::Result<Machine> {
        Machine::new(&self.directory.path().join(name), address, &self.server.ca_file())
    }

    /// A device that is enrolled, switched on and linked.
    pub async fn device(&self, name: &str) -> anyhow::Result<Device> {
        self.device_dialling(name, self.server.device).await
    }

    /// The same, with something in between, or another node.
    pub async fn device_dialling(&self, name: &str, address: SocketAddr) -> anyhow::Result<Device> {
        let mut machine = self.new_machine_dialling(name, address)?;
        machine.enroll(&self.enrollment_token(name).await?)?;
        machine.power_on()?;
        let id = wait_for("the device to be listed", LINK_LIMIT, async || self.device_id(name).await).await?;
        self.wait_for_link(&id, "live").await?;
        Ok(Device { id, name: name.to_owned(), machine })
    }

    async fn device_id(&self, name: &str) -> anyhow::Result<String> {
        let devices = self.tenant.get("/devices").await?;
        let found = devices["items"].as_array().into_iter().flatten().find(|device| device["name"] == name);
        text(found.unwrap_or(&Value::Null), "id")
    }

    /// Waits until the server shows the device's link as `live` or `closed`.
    pub async fn wait_for_link(&self, device: &str, state: &str) -> anyhow::Result<Value> {
        wait_for(&format!("a {state} link"), LINK_LIMIT, async || {
            let shown = self.tenant.get(&format!("/devices/{device}")).await?;
            anyhow::ensure!(shown["link"]["state"] == state, "{shown}");
            Ok(shown)
        })
        .await
    }

    /// A grant of the tenant to the operator, for some minutes.
    pub async fn grant(&self, device: &str, scopes: &[&str]) -> anyhow::Result<String> {
        let made = self
            .tenant
            .post(
                "/grants",
                &json!({
                    "reason": "maintenance",
                    "scopes": scopes,
                    "operator_ids": [self.operator_id],
                    "device_ids": [device],
                    "duration_seconds": 900,
                }),
            )
            .await?;
        text(&made, "id")
    }

    /// Opens a TCP port of a device in a tunnel, under a grant of its own, and waits until the node reaches it. Gives back the
    /// opening.
    pub async fn open_port(&self, device: &str, port: u16) -> anyhow::Result<Value> {
        // Its client may know sooner than everybody that the tunnel is up.
        self.wait_for_link(device, "live").await?;
        self.grant(device, &["tcp:open"]).await?;
        let body = json!({ "port": port, "reason": "a test" });
        let made = self.operator.post(&format!("/devices/{device}/openings"), &body).await?;
        let path = format!("/openings/{}", text(&made, "id")?);
        wait_for("an open port", LINK_LIMIT, async || {
            let shown = self.operator.get(&path).await?;
            anyhow::ensure!(shown["state"] == "open", "{shown}");
            Ok(shown)
        })
        .await
    }

    /// Asks for a command as the operator, and gives back its id.
    pub async fn command(&self, device: &str, kind: &str, arguments: &Value) -> anyhow::Result<String> {
        let body = json!({ "kind": kind, "arguments": arguments, "reason": "a test" });
        text(&self.operator.command(device, &body).await?.success()?, "id")
    }

    /// Waits until the command is in this state.
    pub async fn reaches(&self, command: &str, state: &str) -> anyhow::Result<Value> {
        wait_for(&format!("the command to be {state}"), COMMAND_LIMIT, async || {
            let shown = self.operator.get(&format!("/commands/{command}")).await?;
            anyhow::ensure!(shown["state"] == state, "{shown}");
            Ok(shown)
        })
        .await
    }

    /// Waits for the command's final state.
    pub async fn finished(&self, command: &str) -> anyhow::Result<Value> {
        wait_for("the end of the command", COMMAND_LIMIT, async || {
            let shown = self.operator.get(&format!("/commands/{command}")).await?;
            anyhow::ensure!(!shown["finished_at"].is_null(), "{shown}");
            Ok(shown)
        })
        .await
    }

    /// A command line with this token.
    #[must_use]
    pub fn cli(&self, token: &str) -> Cli {
        Cli::new(&self.path("cli")).with_token(&self.server.api_url(), &self.server.ca_file(), token)
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub(crate) async fn person(admin: &Api, name: &str, role: &str, tenant: Option<&str>) -> anyhow::Result<(Api, String)> {
    let mut body = json!({ "name": name, "role": role });
    if let Some(tenant) = tenant {
        body["tenant_id"] = tenant.into();
    }
    let id = text(&admin.post("/people", &body).await?, "id")?;
    let token = text(&admin.post("/tokens", &json!({ "person_id": id, "name": "test" })).await?, "token")?;
    Ok((admin.with_token(&token), id))
}

/// A directory that the embedded Postgres, which is another user when this is root, can pass through.
pub fn directory() -> anyhow::Result<TempDir> {
    let directory = TempDir::with_prefix("cloudlink-")?;
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    Ok(directory)
}
