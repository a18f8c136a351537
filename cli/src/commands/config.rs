//! Desired configuration: documents, what they come to for a device, who does not have it, and the schema.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use crate::argument::{Limit, NewestLimit, SELECTOR_HELP};
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::model::{ConfigurationDocument, ConfigurationDrift, ConfigurationStanding, DeviceConfiguration};
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

/// Room for the largest document and for blanks in it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Have a document say something else from now on; one that is not there is made
    Set(Set),
    /// Show what a device is to have, and how far it is with that
    Show {
        /// Name or id of the device
        device: String,
    },
    /// List documents, those that changed last first
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// List the versions of a document, newest first, or show one
    Versions {
        #[command(flatten)]
        document: Document,
        /// Show this version
        #[arg(long, value_name = "VERSION")]
        show: Option<i64>,
        #[command(flatten)]
        limit: NewestLimit,
    },
    /// Make a new version of a document, with what an older one had
    Rollback {
        #[command(flatten)]
        document: Document,
        /// The version to bring back
        #[arg(long, value_name = "VERSION")]
        to: i64,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// List devices that are not as they are to be
    Drift {
        /// Only those in this state: pending, failed or invalid
        #[arg(long)]
        state: Option<String>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show what the devices of a tenant understand, or set it
    Schema {
        /// Name or id of the tenant, for administrators
        #[arg(long)]
        tenant: Option<String>,
        /// File with the JSON Schema to set; - for standard input
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
    },
}

/// Which document.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Document {
    /// The one of this device alone, by the device's name or id
    #[arg(long)]
    device: Option<String>,
    /// The one of this name, or of this id
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    document: Document,
    /// File with the JSON object; - for standard input
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Which devices it is for; without it, as before
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP, conflicts_with = "device")]
    selector: Option<String>,
    /// A document of a higher priority wins, -1000 to 1000; without it, as before, or 0
    #[arg(long, value_name = "N", allow_negative_numbers = true, conflicts_with = "device")]
    priority: Option<i32>,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    /// Name or id of the tenant, for administrators
    #[arg(long)]
    tenant: Option<String>,
}

impl Config {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Set(set) => {
                let document = set.run(&client).await?;
                context.show(&document, || document_record(&document.value, &context.output.here()))
            }
            Self::Show { device } => {
                let device = resolve::device(&client, device).await?.value.id;
                let shown = client.device_configuration(device).await?;
                context.show(&shown, || record(&shown.value, &context.output.here()))
            }
            Self::List { limit } => {
                let list = client.configuration_documents(limit.items(), None, None).await?;
                context.list(&list, || documents(&list.items, &context.output.here()))
            }
            Self::Versions { document, show: Some(version), .. } => {
                let id = document.needed(&client).await?.value.id;
                let shown = client.configuration_version(id, *version).await?;
                context.show(&shown, || document_record(&shown.value, &context.output.here()))
            }
            Self::Versions { document, show: None, limit } => {
                let id = document.needed(&client).await?.value.id;
                let list = client.configuration_versions(id, limit.items()).await?;
                context.list(&list, || versions(&list.items, &context.output.here()))
            }
            Self::Rollback { document, to, reason } => {
                let document = document.needed(&client).await?;
                let restored =
                    client.configuration_rollback(&document, json!({"version": to, "reason": reason})).await?;
                context.show(&restored, || document_record(&restored.value, &context.output.here()))
            }
            Self::Drift { state, limit } => {
                let list = client.configuration_drift(limit.items(), state.as_deref()).await?;
                context.list(&list, || drift(&list.items, &context.output.here()))
            }
            Self::Schema { tenant, set } => schema(context, &client, tenant.as_deref(), set.as_ref()).await,
        }
    }
}

impl Document {
    /// The document, if there is one.
    async fn find(&self, client: &Client) -> Result<Option<Answer<ConfigurationDocument>>, Failure> {
        let id = match (&self.device, &self.name) {
            (Some(device), _) => {
                let device = resolve::device(client, device).await?.value.id;
                first(client.configuration_documents(1, Some(device), None).await?.items)
            }
            (None, Some(name)) => match name.parse() {
                Ok(id) => Some(id),
                Err(_) => {
                    let named = client.configuration_documents(2, None, Some(name)).await?.items;
                    if named.len() > 1 {
                        return Err(Failure::Usage(format!(
                            "several tenants have a document {name}: give its id (cloudlink config list)"
                        )));
                    }
                    first(named)
                }
            },
            (None, None) => None,
        };
        match id {
            Some(id) => client.configuration_document(id).await.map(Some),
            None => Ok(None),
        }
    }

    async fn needed(&self, client: &Client) -> Result<Answer<ConfigurationDocument>, Failure> {
        let missing = || Failure::NotFound("there is no such document (cloudlink config list)".to_owned());
        self.find(client).await?.ok_or_else(missing)
    }
}

fn first(found: Vec<Answer<ConfigurationDocument>>) -> Option<Uuid> {
    found.into_iter().next().map(|document| document.value.id)
}

impl Set {
    async fn run(&self, client: &Client) -> Result<Answer<ConfigurationDocument>, Failure> {
        let mut body = json!({"content": read(&self.file)?, "reason": self.reason});
        if let Some(selector) = &self.selector {
            body["selector"] = json!(selector);
        }
        if let Some(priority) = self.priority {
            body["priority"] = json!(priority);
        }
        if let Some(document) = self.document.find(client).await? {
            return client.configuration_update(&document, body).await;
        }
        if let Some(tenant) = &self.tenant {
            body["tenant_id"] = json!(resolve::tenant(client, tenant).await?.value.id);
        }
        if let Some(device) = &self.document.device {
            let device = resolve::device(client, device).await?.value;
            body["device_id"] = json!(device.id);
            body["tenant_id"] = json!(device.tenant_id);
        }
        if let Some(name) = &self.document.name {
            if self.selector.is_none() {
                let message = format!("there is no document {name} yet: say with --selector which devices it is for");
                return Err(Failure::Usage(message));
            }
            body["name"] = json!(name);
        }
        client.configuration_create(body).await
    }
}

fn read(file: &Path) -> Result<Value, Failure> {
    let unreadable = || format!("{} cannot be read", file.display());
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        File::open(file).with_context(unreadable)?.take(FILE_BYTES_MAX).read_to_string(&mut text)
    };
    read.with_context(unreadable)?;
    serde_json::from_str(&text).map_err(|error| Failure::Usage(format!("{} is not JSON: {error}", file.display())))
}

async fn schema(
    context: &Context,
    client: &Client,
    tenant: Option<&str>,
    set: Option<&PathBuf>,
) -> Result<(), Failure> {
    let tenant = match tenant {
        Some(tenant) => resolve::tenant(client, tenant).await?.value.id,
        None => client
            .me()
            .await?
            .value
            .tenant_id
            .ok_or_else(|| Failure::Usage("say with --tenant whose devices are meant".to_owned()))?,
    };
    let before = client.configuration_schema(tenant).await?;
    let shown = match set {
        Some(file) => client.configuration_schema_set(tenant, &before, json!({"schema": read(file)?})).await?,
        None => before,
    };
    if context.output.json {
        return context.output.json(&shown.json);
    }
    context.output.line(&pretty(&shown.json["schema"]))
}

/// Several lines, of which each key is one.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn state(standing: &ConfigurationStanding) -> Cell {
    let tone = match standing.state.as_str() {
        "applied" => Tone::Good,
        "failed" | "invalid" => Tone::Bad,
        _ => Tone::Warn,
    };
    Cell::toned(standing.state.clone(), tone)
}

fn record(shown: &DeviceConfiguration, here: &Here) -> Table {
    let mut table = Table::record();
    let standing = &shown.standing;
    table.field("state", state(standing));
    table.field("since", here.full(standing.since));
    if let Some(error) = &standing.error {
        table.field("  because", Cell::toned(error.clone(), Tone::Bad));
    }
    table.field("desired", format!("version {}", standing.desired_version));
    table.field("applied", format!("version {}", standing.applied_version));
    for source in &shown.documents {
        let name = source.name.as_deref().unwrap_or("its own");
        table.field("from", format!("{name}, version {} ({})", source.version, source.id));
    }
    table.field("content", pretty(&shown.content));
    table
}

fn document_record(document: &ConfigurationDocument, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("document", document.name.clone().unwrap_or_else(|| "of one device".to_owned()));
    table.field("id", document.id.to_string());
    if let Some(device) = document.device_id {
        table.field("device", device.to_string());
    }
    if let Some(selector) = &document.selector {
        table.field("selector", selector.clone());
        table.field("priority", document.priority.to_string());
    }
    table.field("version", document.version.to_string());
    if let Some(restores) = document.restores {
        table.field("  as was", format!("version {restores}"));
    }
    table.field("made", here.full(document.created_at));
    table.field("  because", document.reason.clone());
    if let Some(content) = &document.content {
        table.field("content", pretty(content));
    }
    table
}

fn documents(documents: &[Answer<ConfigurationDocument>], here: &Here) -> Table {
    let mut table = Table::new(&["NAME", "SELECTOR", "PRIORITY", "DEVICE ID", "VERSION", "CHANGED", "ID"]).whole(6);
    for Answer { value, .. } in documents {
        table.row(vec![
            Cell::or_none(value.name.clone()),
            Cell::or_none(value.selector.clone()),
            value.priority.to_string().into(),
            Cell::or_none(value.device_id.map(|id| id.to_string())),
            value.version.to_string().into(),
            here.short(value.created_at).into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn versions(versions: &[Answer<ConfigurationDocument>], here: &Here) -> Table {
    let mut table = Table::new(&["VERSION", "MADE", "AS WAS", "SELECTOR", "BY", "REASON"]);
    for Answer { value, .. } in versions {
        table.row(vec![
            value.version.to_string().into(),
            here.short(value.created_at).into(),
            Cell::or_none(value.restores.map(|version| version.to_string())),
            Cell::or_none(value.selector.clone()),
            value.created_by.to_string().into(),
            value.reason.clone().into(),
        ]);
    }
    table
}

fn drift(drift: &[Answer<ConfigurationDrift>], here: &Here) -> Table {
    let mut table = Table::new(&["DEVICE", "STATE", "SINCE", "DESIRED", "APPLIED", "WHY"]);
    for Answer { value, .. } in drift {
        let standing = &value.standing;
        table.row(vec![
            value.device_name.clone().into(),
            state(standing),
            here.short(standing.since).into(),
            standing.desired_version.to_string().into(),
            standing.applied_version.to_string().into(),
            Cell::or_none(standing.error.clone()),
        ]);
    }
    table
}
