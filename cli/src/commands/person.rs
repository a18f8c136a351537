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
        /// Name or id of the tenant, for role `tenant`; without it, your own
        #[arg(long)]
        tenant: Option<String>,
        /// A robot: it never signs in, and has tokens that you make for it (token create --for)
        #[arg(long)]
        service: bool,
    },
    /// Let a person in again
    Activate {
        /// Name or id
        person: String,
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
            let mut table = Table::new(&["NAME", "ROLE", "KIND", "ACTIVE", "SIGNED IN", "TENANT", "ID"]).whole(6);
            for Answer { value, .. } in &list.items {
                table.row(vec![
                    value.name.clone().into(),
                    value.role.clone().into(),
                    value.kind.clone().into(),
                    active(value),
                    Cell::or_none(value.signed_in_at.map(|at| context.output.here().relative(at))),
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
            Self::Create { name, role, tenant, service } => {
                let mut body = json!({ "name": name, "role": role.name() });
                if *service {
                    body["kind"] = "service".into();
                }
                match (tenant, role) {
                    (Some(tenant), _) => {
                        body["tenant_id"] = resolve::tenant(&client, tenant).await?.value.id.to_string().into();
                    }
                    (None, Role::Tenant) => {
                        let own = client.me().await?.value.tenant_id;
                        let own = own.ok_or_else(|| Failure::Usage("which tenant?\nGive --tenant NAME".to_owned()))?;
                        body["tenant_id"] = own.to_string().into();
                    }
                    (None, Role::Admin | Role::Operator) => {}
                }
                client.person_create(body).await?
            }
            Self::Activate { person } => {
                let person = resolve::person(&client, person).await?;
                client.person_activate(person.value.id, true).await?
            }
            Self::Deactivate { person } => {
                let person = resolve::person(&client, person).await?;
                client.person_activate(person.value.id, false).await?
            }
        };
        context.show(&answer, || record(&answer.value, &context.output.here()))
    }
}

fn record(person: &model::Person, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("name", person.name.clone());
    table.field("role", person.role.clone());
    table.field("kind", person.kind.clone());
    table.field("active", active(person));
    if let Some(email) = &person.email {
        table.field("email", email.clone());
    }
    if let Some(at) = person.signed_in_at {
        table.field("signed in", here.full(at));
    }
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
