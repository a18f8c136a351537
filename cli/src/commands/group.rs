//! Groups of devices: selectors with a name.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Context, confirm, device};
use crate::argument::{Limit, SELECTOR_HELP};
use crate::client::{Answer, Client, DeviceFilter};
use crate::failure::Failure;
use crate::model;
use crate::output::{Here, Table};
use crate::resolve;

/// Devices that are listed with their group.
const SHOWN_MAX: usize = 200;

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Name a selector: @NAME means it wherever one is taken
    Create(Create),
    /// List groups, newest first
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Show a group, and the devices that are in it now
    Show {
        /// Name or id
        group: String,
    },
    /// Rename a group, or let it mean something else; what was made of it before stays as it is
    Set(Set),
    /// Delete a group; what was made of it before stays as it is
    Delete {
        /// Name or id
        group: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What to call it
    name: String,
    /// Which devices are in it, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP)]
    selector: String,
}

#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true)]
pub(crate) struct Set {
    /// Name or id
    group: String,
    /// The new name
    #[arg(long, group = "change")]
    name: Option<String>,
    /// Which devices are in it from now on
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP, group = "change")]
    selector: Option<String>,
}

impl Group {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create(create) => {
                let body = json!({ "name": create.name, "selector": create.selector });
                let group = client.group_create(body).await?;
                context.show(&group, || record(&group.value, &context.output.here()))
            }
            Self::List { limit } => {
                let list = client.groups(limit.items()).await?;
                context.list(&list, || table(&list.items))
            }
            Self::Show { group } => show(context, &client, &resolve::group(&client, group).await?).await,
            Self::Set(set) => {
                let group = resolve::group(&client, &set.group).await?;
                let group = client.group_patch(&group, set.body()).await?;
                context.show(&group, || record(&group.value, &context.output.here()))
            }
            Self::Delete { group, yes } => {
                let group = resolve::group(&client, group).await?.value;
                confirm(&format!("Delete the group {} ({})?", group.name, group.selector), *yes)?;
                let deleted = client.group_delete(group.id).await?;
                if context.output.json {
                    return context.output.json(&deleted.json);
                }
                context.output.line(&format!("Group {} is deleted", group.name))
            }
        }
    }
}

impl Set {
    fn body(&self) -> serde_json::Value {
        let mut body = json!({});
        if let Some(name) = &self.name {
            body["name"] = json!(name);
        }
        if let Some(selector) = &self.selector {
            body["selector"] = json!(selector);
        }
        body
    }
}

async fn show(context: &Context, client: &Client, group: &Answer<model::Group>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&group.json);
    }
    // By what it says, and not by its name: that may mean something else by now.
    let filter = DeviceFilter { selector: Some(group.value.selector.clone()), ..DeviceFilter::default() };
    let devices = client.devices(SHOWN_MAX, &filter).await?;
    context.output.table(&record(&group.value, &context.output.here()))?;
    context.list(&devices, || device::table(&devices.items, &context.output.here()))
}

fn table(groups: &[Answer<model::Group>]) -> Table {
    let mut table = Table::new(&["NAME", "SELECTOR", "ID"]).whole(2);
    for Answer { value, .. } in groups {
        table.row(vec![value.name.clone().into(), value.selector.clone().into(), value.id.to_string().into()]);
    }
    table
}

fn record(group: &model::Group, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("group", group.name.clone());
    table.field("id", group.id.to_string());
    table.field("selector", group.selector.clone());
    match group.tenant_id {
        Some(tenant) => table.field("tenant", tenant.to_string()),
        None => table.field("tenant", "none: the vendor's own"),
    }
    table.field("created", here.full(group.created_at));
    if let Some(at) = group.deleted_at {
        table.field("deleted", here.full(at));
    }
    table
}
