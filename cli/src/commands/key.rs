//! Keys with which a customer signs grants.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use cloudlink_certs::KeyId;
use serde_json::json;

use super::Context;
use crate::argument::Limit;
use crate::client::Answer;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::{resolve, signing};

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key (Ed25519), on this machine; nothing is sent
    Create {
        /// File for the private half (PEM, PKCS#8, not encrypted: keep it where only those who may let people in can read it)
        file: PathBuf,
        /// File for the public half; without it, it is printed
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
    },
    /// Let grants be signed with a key; only its public half is sent
    Enroll {
        /// File with either half (PEM)
        file: PathBuf,
        /// What it is called
        #[arg(long)]
        name: String,
    },
    /// List keys that were enrolled
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Let only grants be given that are signed, or others, too
    Require {
        /// yes, or no: devices that were told so at their enrollment keep to it all the same
        #[arg(value_parser = ["yes", "no"])]
        required: String,
    },
    /// Let nothing more that a key signs be taken by the server; devices go by the keys that they know
    Revoke {
        /// Id of the key, as listed
        id: String,
    },
}

impl Key {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create { file, public } => create(context, file, public.as_deref()),
            Self::Enroll { file, name } => {
                let key = signing::public_key(file)?;
                let body = json!({ "name": name, "public_key_pem": key.to_pem() });
                let answer = context.client()?.signing_key_create(body).await?;
                show(context, &answer)
            }
            Self::List { limit } => {
                let list = context.client()?.signing_keys(limit.items()).await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
            Self::Require { required } => {
                let answer = context.client()?.signing_key_require(required == "yes").await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.line(match required.as_str() {
                    "yes" => "Grants must be signed from now on",
                    _ => "Grants need not be signed any more",
                })
            }
            Self::Revoke { id } => {
                let answer = context.client()?.signing_key_revoke(resolve::id("signing key", id)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.note("Grants that it has signed stay in force, and devices that know it still trust it: see docs/SIGNED-GRANTS.md.");
                context.output.line(&format!("Key {id} is revoked"))
            }
        }
    }
}

fn create(context: &Context, file: &Path, public: Option<&Path>) -> Result<(), Failure> {
    let key = signing::create(file)?;
    let (id, pem) = (KeyId::of(&key).to_string(), key.to_pem());
    if let Some(path) = public {
        std::fs::write(path, &pem)
            .map_err(|error| anyhow::Error::new(error).context(format!("{} cannot be written", path.display())))?;
    }
    if context.output.json {
        return context.output.json(&json!({ "key_id": id, "public_key_pem": pem }));
    }
    context.output.note(&format!(
        "Wrote the private half to {}. It is not encrypted. Without it nobody can sign; whoever has it can let anybody in.",
        file.display()
    ));
    context.output.line(&format!("key {id}"))?;
    match public {
        Some(_) => Ok(()),
        None => pem.lines().try_for_each(|line| context.output.line(line)),
    }
}

fn show(context: &Context, key: &Answer<model::SigningKey>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&key.json);
    }
    context
        .output
        .line(&format!("Key {} ({}) is enrolled: grants can be signed with it", key.value.id, key.value.key_id))
}

fn table(keys: &[Answer<model::SigningKey>], here: &Here) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "KIND", "ENROLLED", "KEY", "ID"]).whole(5);
    for Answer { value, .. } in keys {
        let state = match value.revoked_at {
            Some(at) => Cell::toned(format!("revoked {}", here.relative(at)), Tone::Bad),
            None => Cell::toned("good", Tone::Good),
        };
        table.row(vec![
            value.name.clone().into(),
            state,
            value.algorithm.clone().into(),
            here.short(value.created_at).into(),
            value.key_id.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}
