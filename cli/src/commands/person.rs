//! People and robots who call the API.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::Context;
use crate::argument::Limit;
use crate::client::Answer;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Admin,
    Operator,
    Tenant,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Person {
    /// Create a person or robot
    Create {
        name: String,
        #[arg(long)]
        role: Role,
        /// Name or id of the tenant, for role `tenant`
        #[arg(long, required_if_eq("role", "tenant"))]
        tenant: Option<String>,
    },
    /// Say, or show, where a person is mailed to
    Email(super::email::Email),
    /// Let a person's tokens be refused from now on
    Deactivate {
        /// Name or id
        person: String,
    },
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let list = context.client()?.people(self.limit.items()).await?;
        context.list(&list, || {
            let mut table = Table::new(&["NAME", "ROLE", "ACTIVE", "TENANT", "ID"]).whole(4);
            for Answer { value, .. } in &list.items {
                table.row(vec![
                    value.name.clone().into(),
                    value.role.clone().into(),
                    active(value),
                    Cell::or_none(value.tenant_id.map(|id| id.to_string())),
                    value.id.to_string().into(),
                ]);
            }
            table
        })
    }
}

impl Person {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let answer = match self {
            Self::Email(email) => return email.run(context).await,
            Self::Create { name, role, tenant } => {
                let mut body = json!({ "name": name, "role": role.name() });
                if let Some(tenant) = tenant {
                    body["tenant_id"] = resolve::tenant(&client, tenant).await?.value.id.to_string().into();
                }
                client.person_create(body).await?
            }
            Self::Deactivate { person } => {
                let person = resolve::person(&client, person).await?;
                client.person_deactivate(person.value.id).await?
            }
        };
        context.show(&answer, || record(&answer.value, &context.output.here()))
    }
}

fn record(person: &model::Person, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", person.name.clone());
    table.field("role", person.role.clone());
    table.field("active", active(person));
    if let Some(tenant) = person.tenant_id {
        table.field("tenant", tenant.to_string());
    }
    table.field("created", here.full(person.created_at));
    table.field("id", person.id.to_string());
    table
}

fn active(person: &model::Person) -> Cell {
    if person.active { "yes".into() } else { Cell::toned("no", Tone::Bad) }
}
