//! Signing in and out.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;

use super::{Context, environment};
use crate::client::Client;
use crate::connection::{Connection, Profile, Secret, Store, api_url, ca_from_file, token_from_file};
use crate::failure::Failure;
use crate::output::Table;

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// File with the API token, `-` for standard input; without it, CLOUDLINK_TOKEN, CLOUDLINK_TOKEN_FILE, or a question
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Login {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let wish = context.wish();
        let store = Store::new(&wish, &environment())?;
        let api = match &wish.api {
            Some(api) => api_url(api)?,
            None => match store.load()? {
                Some(profile) => api_url(&profile.api)?,
                None => return Err(Failure::Usage("which API?\nGive --api https://HOST:8443".to_owned())),
            },
        };
        let ca_pem = match &wish.ca {
            Some(path) => Some(ca_from_file(path)?),
            // Signing in again to the same API needs no second --ca.
            None => store
                .load()
                .ok()
                .flatten()
                .filter(|profile| api_url(&profile.api).is_ok_and(|old| old == api))
                .and_then(|profile| profile.ca_pem),
        };
        let connection = Connection { api, ca_pem, token: self.token()? };
        let me = Client::new(&connection)?.me().await?;
        store.save(&Profile { api: connection.api.to_string(), token: connection.token, ca_pem: connection.ca_pem })?;
        context.output.note(&format!("Stored in {}", store.path().display()));
        if context.output.json {
            return context.output.json(&me.json);
        }
        context.output.line(&format!("Signed in to {} as {} ({})", connection.api, me.value.name, me.value.role))
    }

    fn token(&self) -> Result<Secret, Failure> {
        if let Some(path) = &self.token_file {
            return token_from_file(path);
        }
        if let Some(token) = environment().token()? {
            return Ok(token);
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage("which token?\nGive --token-file FILE, or `-` for standard input.".to_owned()));
        }
        crate::output::note("API token (not shown while you type):");
        let text = console::Term::stderr().read_secure_line().map_err(|error| Failure::Other(error.into()))?;
        Secret::new(&text)
    }
}

pub(crate) fn logout(context: &Context) -> Result<(), Failure> {
    let store = Store::new(&context.wish(), &environment())?;
    let path = store.path();
    if store.remove()? {
        context
            .output
            .note(&format!("Removed {}. The token itself is still valid: cloudlink token revoke", path.display()));
    } else {
        context.output.note(&format!("There is no profile `{}`.", store.name));
    }
    Ok(())
}

pub(crate) async fn whoami(context: &Context) -> Result<(), Failure> {
    let me = context.client()?.me().await?;
    context.show(&me, || {
        let mut table = Table::record();
        table.field("name", me.value.name.clone());
        table.field("role", me.value.role.clone());
        if let Some(tenant) = me.value.tenant_id {
            table.field("tenant", tenant.to_string());
        }
        table.field("id", me.value.id.to_string());
        table.field("token", me.value.token_id.to_string());
        table.field("valid until", context.output.here().full(me.value.token_expires_at));
        table
    })
}
