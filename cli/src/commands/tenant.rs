//! Tenants: the customers.

use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use crate::argument::Limit;
use crate::client::Answer;
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Here, Table};
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
    /// Change a tenant
    Set {
        /// Name or id
        tenant: String,
        /// The longest that one grant of it may run, as in 30d
        #[arg(long, value_name = "SPAN")]
        grant_max: Span,
    },
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
            Self::Set { tenant, grant_max } => {
                let tenant = resolve::tenant(&client, tenant).await?;
                client.tenant_patch(&tenant, json!({ "grant_max_seconds": grant_max.as_seconds() })).await?
            }
        };
        context.show(&answer, || record(&answer.value, &context.output.here()))
    }
}

fn record(tenant: &model::Tenant, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", tenant.name.clone());
    table.field("grants at most", span(tenant.grant_max_seconds));
    table.field("created", here.full(tenant.created_at));
    table.field("id", tenant.id.to_string());
    table
}

fn span(seconds: u64) -> String {
    Span::of_seconds(seconds).map_or_else(|| format!("{seconds} s"), |span| span.to_string())
}
