//! Grants that are signed here, before a server hears of them, and the proof that one was.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use cloudlink_certs::grant::GRANT_STATEMENT_BYTES_MAX;
use cloudlink_certs::{GrantStatement, GrantStatementError, KeyId, PrivateKey, PublicKey};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{Create, Extend, show_granted};
use crate::client::{Client, DeviceFilter};
use crate::commands::Context;
use crate::failure::Failure;
use crate::model::Grant;
use crate::output::{Cell, Tone};
use crate::resolve::{self, Names};
use crate::{clock, signing};

/// The most devices that a selector is resolved to: more do not fit into one statement.
const DEVICES_MAX: usize = 500;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Id of a grant; or else a statement, a file with one, or - for standard input, and nothing is asked of any server
    statement: String,
    /// File with the key (PEM, either half) that must have signed it (repeatable: one of them)
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
}

impl Create {
    pub(super) async fn run_signed(&self, context: &Context, client: &Client, path: &Path) -> Result<(), Failure> {
        let key = signing::private_key(path)?;
        let tenant = client.me().await?.value.tenant_id.ok_or_else(|| {
            Failure::Usage("only a customer's own people sign grants, and you belong to no customer".to_owned())
        })?;
        let now = clock::now();
        let starts_at = self.from.unwrap_or(now);
        let ends_at = match (self.end.until, self.end.span) {
            (Some(until), _) => until,
            (None, Some(span)) => later(starts_at, span)?,
            (None, None) => return Err(Failure::Usage("give --for or --until".to_owned())),
        };
        let operators = resolve::operator_ids(client, &self.operators).await?;
        let statement = GrantStatement {
            tenant,
            grant: Uuid::now_v7(),
            signed_at: signing::statement_time(now)?,
            starts_at: signing::statement_time(starts_at)?,
            ends_at: signing::statement_time(ends_at)?,
            scopes: each_once(self.scopes.clone()),
            devices: each_once(self.devices_to_sign(context, client).await?),
            operators: (!operators.is_empty()).then(|| each_once(operators)),
            reason: self.reason.clone(),
            request: None,
        };
        let text = sign(context, client, &statement, &key).await?;
        let granted = client.grant_create(json!({ "statement": text })).await?;
        show_granted(context, client, granted).await
    }

    /// What is signed names devices: what a label means is the server's word, and can change.
    async fn devices_to_sign(&self, context: &Context, client: &Client) -> Result<Vec<Uuid>, Failure> {
        if self.labels.is_empty() && self.selector.is_none() {
            return resolve::device_ids(client, &self.devices).await;
        }
        let labels = self.labels.iter().map(|label| format!("{}:{}", label.key, label.value)).collect();
        let filter = DeviceFilter { labels, selector: self.selector.clone(), ..DeviceFilter::default() };
        let devices = resolve::labelled_ids(client, &filter, DEVICES_MAX).await?;
        context.output.note(&format!(
            "A signed grant names devices: it is for the {} that have these labels now, and for none that get them later.",
            devices.len()
        ));
        Ok(devices)
    }
}

impl Extend {
    /// Signs what was signed before, with a later end. Nothing of it is taken from the server's word for the grant.
    pub(super) async fn run_signed(&self, context: &Context, client: &Client, path: &Path) -> Result<(), Failure> {
        let key = signing::private_key(path)?;
        let id = resolve::id("grant", &self.grant)?;
        let grant = client.grant(id).await?;
        let mut statement = signed_before(&grant.value, id, &key, &self.keys)?;
        let ends_at = match (self.end.until, self.end.span) {
            (Some(until), _) => until,
            (None, Some(span)) => later(signing::timestamp(statement.ends_at), span)?,
            (None, None) => return Err(Failure::Usage("give --by or --until".to_owned())),
        };
        statement.signed_at = signing::statement_time(clock::now())?;
        statement.ends_at = signing::statement_time(ends_at)?;
        let text = sign(context, client, &statement, &key).await?;
        let granted = client.grant_extend(&grant, json!({ "statement": text })).await?;
        show_granted(context, client, granted).await
    }
}

/// What was signed of the grant of this id, with this key or one of those in the files. Nothing of it is the server's word for the
/// grant.
pub(in crate::commands) fn signed_before(
    grant: &Grant,
    id: Uuid,
    key: &PrivateKey,
    others: &[PathBuf],
) -> Result<GrantStatement, Failure> {
    let text = grant.statement.as_deref().ok_or_else(|| {
        Failure::Usage("this grant was not signed when it was made\nMake a new one with --sign-with.".to_owned())
    })?;
    let mut keys = vec![key.public_key()];
    keys.extend(others.iter().map(|path| signing::public_key(path)).collect::<Result<Vec<_>, _>>()?);
    let (statement, _) = open(text, &keys)?;
    if statement.grant != id {
        return Err(Failure::Other(anyhow::anyhow!("the server answered with the statement of another grant")));
    }
    Ok(statement)
}

pub(in crate::commands) fn each_once<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}

fn later(from: Timestamp, span: crate::duration::Span) -> Result<Timestamp, Failure> {
    from.checked_add(span.as_duration()).map_err(|_| Failure::Usage("that is beyond all calendars".to_owned()))
}

pub(in crate::commands) async fn sign(
    context: &Context,
    client: &Client,
    statement: &GrantStatement,
    key: &PrivateKey,
) -> Result<String, Failure> {
    let names = Names::of_statement(client, statement).await;
    let record = signing::record(statement, KeyId::of(&key.public_key()), &names, &context.output.here());
    context.output.note("This is signed:");
    context.output.note(&record.render(false, None));
    statement.sign(key).map_err(|error| {
        Failure::Usage(
            error.to_string() + &std::error::Error::source(&error).map_or_else(String::new, |why| format!(": {why}")),
        )
    })
}

impl Verify {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let keys = self.keys.iter().map(|path| signing::public_key(path)).collect::<Result<Vec<_>, _>>()?;
        match self.statement.parse::<Uuid>() {
            Ok(id) => {
                let grant = context.client()?.grant(id).await?.value;
                let text = grant.statement.ok_or_else(|| Failure::NotFound("this grant is not signed".to_owned()))?;
                let (statement, key) = open(&text, &keys)?;
                if statement.grant != id {
                    return Err(Failure::Other(anyhow::anyhow!(
                        "this is the statement of another grant, {}",
                        statement.grant
                    )));
                }
                report(context, &statement, key)
            }
            Err(_) => {
                let (statement, key) = open(&text_of(&self.statement)?, &keys)?;
                report(context, &statement, key)
            }
        }
    }
}

/// The statement itself, or what is in the file, or comes in.
fn text_of(argument: &str) -> Result<String, Failure> {
    let bounded = |source: &mut dyn std::io::Read| {
        let mut text = String::new();
        source.take(GRANT_STATEMENT_BYTES_MAX as u64 + 2).read_to_string(&mut text).map(|_| text)
    };
    let text = match argument {
        "-" => bounded(&mut std::io::stdin().lock()).context("standard input cannot be read")?,
        _ if argument.starts_with("eyJ") => argument.to_owned(),
        path => {
            let mut file = std::fs::File::open(path).with_context(|| format!("{path} cannot be read"))?;
            bounded(&mut file).with_context(|| format!("{path} cannot be read"))?
        }
    };
    Ok(text.trim_end().to_owned())
}

fn open(text: &str, keys: &[PublicKey]) -> Result<(GrantStatement, KeyId), Failure> {
    GrantStatement::open(text, keys).map_err(|error| not_believed(&error))
}

fn not_believed(error: &GrantStatementError) -> Failure {
    let why = std::error::Error::source(error).map_or_else(String::new, |why| format!(": {why}"));
    Failure::Other(anyhow::anyhow!("{error}{why}"))
}

/// Says what was signed. It is genuine, whether or not it is in force.
fn report(context: &Context, statement: &GrantStatement, key: KeyId) -> Result<(), Failure> {
    let now = signing::statement_time(clock::now())?;
    let (state, tone) = if statement.ends_at <= now {
        ("ended", Tone::Dim)
    } else if statement.starts_at > now {
        ("not yet in force", Tone::Warn)
    } else {
        ("holds now, if it was not revoked", Tone::Good)
    };
    if context.output.json {
        return context.output.json(&json!({
            "genuine": true, "key_id": key.to_string(), "grant_id": statement.grant, "tenant_id": statement.tenant,
            "scopes": statement.scopes, "device_ids": statement.devices, "operator_ids": statement.operators,
            "starts_at": signing::timestamp(statement.starts_at), "ends_at": signing::timestamp(statement.ends_at),
            "signed_at": signing::timestamp(statement.signed_at), "reason": statement.reason, "request_id": statement.request,
        }));
    }
    let mut table = signing::record(statement, key, &Names::default(), &context.output.here());
    table.field("state", Cell::toned(state, tone));
    context.output.table(&table)?;
    context.output.note("The signature is good: this is what was signed with the key.");
    Ok(())
}
