//! Tenants: the customers.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use crate::argument::Limit;
use crate::client::{Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    limit: Limit,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Create a tenant
    Create {
        name: String,
        /// The longest that one grant of it may run, as in 30d
        #[arg(long, value_name = "SPAN")]
        grant_max: Option<Span>,
    },
    /// Show a tenant
    Show {
        /// Name or id; without it, your own
        tenant: Option<String>,
    },
    /// Change a tenant
    Set {
        /// Name or id; without it, your own
        tenant: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Settings {
    /// The longest that one grant of it may run, as in 30d
    #[arg(long, value_name = "SPAN")]
    grant_max: Option<Span>,
    /// How many of its people must approve whatever lets somebody in, 1 or 2; fewer than before takes two people who both ask for it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2))]
    approvals: Option<u32>,
    /// For how many days recordings of its support sessions are kept; older ones are deleted
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    keep_recordings: Option<u32>,
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let list = context.client()?.tenants(self.limit.items()).await?;
        context.list(&list, || {
            let here = context.output.here();
            let mut table = Table::new(&["NAME", "GRANTS AT MOST", "CREATED", "ID"]).whole(3);
            for Answer { value, .. } in &list.items {
                table.row(vec![
                    value.name.clone().into(),
                    span(value.grant_max_seconds).into(),
                    here.local(value.created_at).into(),
                    value.id.to_string().into(),
                ]);
            }
            table
        })
    }
}

impl Tenant {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let answer = match self {
            Self::Create { name, grant_max } => {
                let mut body = json!({ "name": name });
                if let Some(span) = grant_max {
                    body["grant_max_seconds"] = span.as_seconds().into();
                }
                client.tenant_create(body).await?
            }
            Self::Show { tenant } => named_or_own(&client, tenant.as_deref()).await?,
            Self::Set { tenant, settings } => {
                let tenant = named_or_own(&client, tenant.as_deref()).await?;
                let changed = client.tenant_patch(&tenant, settings.body()).await?;
                if changed.value.fewer_approvals.is_some() && settings.approvals.is_some() {
                    let note = "Nothing has changed yet: somebody else of your tenant must ask for the same.";
                    context.output.note(note);
                }
                changed
            }
        };
        context.show(&answer, || record(&answer.value, &context.output.here()))
    }
}

async fn named_or_own(client: &Client, tenant: Option<&str>) -> Result<Answer<model::Tenant>, Failure> {
    match (tenant, client.me().await?.value.tenant_id) {
        (Some(tenant), None) => resolve::tenant(client, tenant).await,
        (None, None) => Err(Failure::Usage("you are of no tenant: say which".to_owned())),
        (named, Some(own)) => {
            // Who may not list tenants knows its own by its name as well.
            let own = client.tenant(own).await?;
            let is_own = named.is_none_or(|named| named == own.value.name || named == own.value.id.to_string());
            if is_own { Ok(own) } else { Err(Failure::NotFound("you see no tenant but your own".to_owned())) }
        }
    }
}

impl Settings {
    fn body(self) -> Value {
        let mut body = json!({});
        if let Some(span) = self.grant_max {
            body["grant_max_seconds"] = span.as_seconds().into();
        }
        if let Some(approvals) = self.approvals {
            body["approvals_needed"] = approvals.into();
        }
        if let Some(days) = self.keep_recordings {
            body["recording_keep_days"] = days.into();
        }
        body
    }
}

fn record(tenant: &model::Tenant, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", tenant.name.clone());
    table.field("grants at most", span(tenant.grant_max_seconds));
    table.field("approvals needed", tenant.approvals_needed.to_string());
    if let Some(fewer) = &tenant.fewer_approvals {
        let text =
            format!("proposed by {}; a second person may agree until {}", fewer.proposed_by, here.full(fewer.until));
        table.field("fewer approvals", Cell::toned(text, Tone::Warn));
    }
    table.field("grants must be signed", if tenant.signed_grants { "yes" } else { "no" });
    table.field("recordings kept", format!("{} days", tenant.recording_keep_days));
    table.field("created", here.full(tenant.created_at));
    table.field("id", tenant.id.to_string());
    table
}

fn span(seconds: u64) -> String {
    Span::of_seconds(seconds).map_or_else(|| format!("{seconds} s"), |span| span.to_string())
}
