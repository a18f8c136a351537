//! API tokens.

use clap::Subcommand;
use serde_json::json;

use super::Context;
use crate::argument::Limit;
use crate::client::Answer;
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Create a token; its secret is printed, once
    Create {
        /// What it is for
        name: String,
        /// Whose it is, by name or id; without it, your own
        #[arg(long = "for", visible_alias = "person", value_name = "PERSON")]
        person: Option<String>,
        /// How long it is valid, as in 90d; without it, as the server decides
        #[arg(long = "expires", visible_alias = "expires-in", value_name = "SPAN")]
        expires_in: Option<Span>,
        /// What it may be used for: read, devices, commands, grants, support, admin; several times for several. Without it,
        /// all that your own may
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
    },
    /// List tokens, without their secrets
    List {
        /// Whose, by name or id; without it, your own
        #[arg(long)]
        person: Option<String>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Let a token be refused from now on
    Revoke {
        /// Id of the token
        id: String,
    },
}

impl Token {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create { name, person, expires_in, scopes } => {
                let mut body = json!({ "name": name });
                if let Some(person) = person {
                    body["person_id"] = resolve::person(&client, person).await?.value.id.to_string().into();
                }
                if let Some(span) = expires_in {
                    body["expires_in_seconds"] = span.as_seconds().into();
                }
                if !scopes.is_empty() {
                    body["scopes"] = json!(scopes);
                }
                let answer = client.token_create(body).await?;
                let about = format!(
                    "Token {} is valid until {}. It is shown only now:",
                    answer.value.id,
                    context.output.here().full(answer.value.expires_at)
                );
                context.show_secret(&answer.json, answer.value.token.as_deref(), &about)
            }
            Self::List { person, limit } => {
                let person = match person {
                    Some(person) => Some(resolve::person(&client, person).await?.value.id),
                    None => None,
                };
                let list = client.tokens(limit.items(), person).await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
            Self::Revoke { id } => {
                let answer = client.token_revoke(resolve::id("token", id)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.line(&format!("Token {id} is revoked"))
            }
        }
    }
}

fn table(tokens: &[Answer<model::Token>], here: &Here) -> Table {
    let mut table = Table::new(&["NAME", "KIND", "STATE", "SCOPES", "EXPIRES", "LAST USED", "PERSON", "ID"]).whole(7);
    for Answer { value, .. } in tokens {
        let state = if value.revoked_at.is_some() {
            Cell::toned("revoked", Tone::Bad)
        } else if value.expires_at <= here.now {
            Cell::toned("expired", Tone::Warn)
        } else {
            Cell::toned("valid", Tone::Good)
        };
        table.row(vec![
            value.name.clone().into(),
            value.kind.clone().into(),
            state,
            value.scopes.as_ref().map_or_else(|| "all".to_owned(), |scopes| scopes.join(", ")).into(),
            here.short(value.expires_at).into(),
            Cell::or_none(value.last_used_at.map(|at| here.relative(at))),
            value.person_id.to_string().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}
