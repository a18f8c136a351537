//! Signing in and out.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use reqwest::Url;
use serde_json::json;

use super::{Context, environment};
use crate::client::Client;
use crate::connection::{Connection, Profile, Secret, Store, api_url, ca_from_file, token_from_file};
use crate::failure::Failure;
use crate::output::Table;
use crate::sign_in::{self, Way};

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// File with an API token, or with the first administrator's, `-` for standard input; without it, CLOUDLINK_TOKEN,
    /// CLOUDLINK_TOKEN_FILE, or the server's OpenID provider; where there is none, a question
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Sign in with a code that you type into a browser on any host
    #[arg(long, conflicts_with = "token_file")]
    device: bool,
    /// Tell the address to sign in at, and open no browser
    #[arg(long, conflicts_with_all = ["token_file", "device"])]
    no_browser: bool,
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
        let token = self.token(&api, ca_pem.as_deref()).await?;
        let token = if token.is_bootstrap() { trade(&api, ca_pem.as_deref(), &token).await? } else { token };
        let connection = Connection { api, ca_pem, token };
        let profile = Profile {
            api: connection.api.to_string(),
            token: connection.token.clone(),
            ca_pem: connection.ca_pem.clone(),
        };
        let client = Client::new(&connection)?;
        let me = client.me().await?;
        store.save(&profile)?;
        context.output.note(&format!("Stored in {}", store.path().display()));
        if context.output.json {
            return context.output.json(&me.json);
        }
        context.output.line(&format!("Signed in to {} as {} ({})", connection.api, me.value.name, me.value.role))
    }

    async fn token(&self, api: &Url, ca_pem: Option<&str>) -> Result<Secret, Failure> {
        if let Some(path) = &self.token_file {
            return token_from_file(path);
        }
        let asks_for_provider = self.device || self.no_browser;
        if let Some(token) = environment().token()?.filter(|_| !asks_for_provider) {
            return Ok(token);
        }
        let nobody = Client::anonymous(api, ca_pem)?;
        let config = nobody.sign_in_config().await?.value;
        let open = !self.no_browser && io::stderr().is_terminal();
        let way = if self.device { Way::Device } else { Way::Loopback { open } };
        if let Some(id_token) = sign_in::id_token(&config, way).await? {
            let made = nobody.session_create(json!({ "id_token": id_token })).await?;
            return Secret::new(made.value.token.as_deref().unwrap_or_default());
        }
        if asks_for_provider {
            return Err(Failure::Usage("the server has no OpenID provider\nGive --token-file FILE".to_owned()));
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage("which token?\nGive --token-file FILE, or `-` for standard input.".to_owned()));
        }
        crate::output::note("API token (not shown while you type):");
        let text = console::Term::stderr().read_secure_line().map_err(|error| Failure::Other(error.into()))?;
        Secret::new(&text)
    }
}

/// The first administrator's token for one that calls the API.
async fn trade(api: &Url, ca_pem: Option<&str>, token: &Secret) -> Result<Secret, Failure> {
    let body = json!({ "bootstrap_token": token.reveal() });
    let made = Client::anonymous(api, ca_pem)?.session_create(body).await?;
    Secret::new(made.value.token.as_deref().unwrap_or_default())
}

#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Forget the token here only: it stays valid for whoever else has it
    #[arg(long)]
    keep_token: bool,
}

impl Logout {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let store = Store::new(&context.wish(), &environment())?;
        let profile = store.load();
        if !store.remove()? {
            context.output.note(&format!("There is no profile `{}`.", store.name));
            return Ok(());
        }
        context.output.note(&format!("Removed {}", store.path().display()));
        if self.keep_token {
            return Ok(());
        }
        // One that cannot be read has told so, and holds nothing to revoke.
        let Some(Profile { api, token, ca_pem }) = profile? else { return Ok(()) };
        let connection = Connection { api: api_url(&api)?, ca_pem, token };
        match Client::new(&connection)?.logout().await {
            Ok(_) => {}
            // It was over before.
            Err(Failure::Refused(problem)) if problem.kind() == "unauthenticated" => {}
            Err(failure) => {
                context.output.note("The token itself could not be revoked, and is still valid.");
                return Err(failure);
            }
        }
        context.output.note("The token is revoked");
        Ok(())
    }
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
        table.field("token", format!("{} ({})", me.value.token_id, me.value.token_kind));
        if let Some(scopes) = &me.value.token_scopes {
            table.field("scopes", scopes.join(", "));
        }
        table.field("valid until", context.output.here().full(me.value.token_expires_at));
        table
    })
}
