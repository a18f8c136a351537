//! Single-use tokens with which new devices enroll.

use clap::Subcommand;
use serde_json::json;

use super::{Context, device};
use crate::argument::{self, Label, Limit};
use crate::client::Answer;
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Subcommand)]
pub(crate) enum EnrollToken {
    /// Create a token for one device; its secret is printed, once
    Create {
        /// What the device will be called
        device_name: String,
        /// A label of the device, as in site=north (repeatable)
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Label>,
        /// How long it may be used, at most 30d; without it, a day
        #[arg(long, value_name = "SPAN")]
        expires_in: Option<Span>,
        /// Name or id of the tenant, for administrators
        #[arg(long)]
        tenant: Option<String>,
    },
    /// List enrollment tokens, without their secrets
    List {
        #[command(flatten)]
        limit: Limit,
    },
}

impl EnrollToken {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create { device_name, labels, expires_in, tenant } => {
                let mut body = json!({ "device_name": device_name, "labels": argument::labels(labels) });
                if let Some(span) = expires_in {
                    body["expires_in_seconds"] = span.as_seconds().into();
                }
                if let Some(tenant) = tenant {
                    body["tenant_id"] = resolve::tenant(&client, tenant).await?.value.id.to_string().into();
                }
                let answer = client.enrollment_token_create(body).await?;
                let about = format!(
                    "One device may enroll as {} until {}. The token is shown only now:",
                    answer.value.device_name,
                    context.output.here().full(answer.value.expires_at)
                );
                context.show_secret(&answer.json, answer.value.token.as_deref(), &about)
            }
            Self::List { limit } => {
                let list = client.enrollment_tokens(limit.items()).await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
        }
    }
}

fn table(tokens: &[Answer<model::EnrollmentToken>], here: &Here) -> Table {
    let mut table = Table::new(&["DEVICE", "STATE", "EXPIRES", "LABELS", "DEVICE ID", "ID"]).whole(5);
    for Answer { value, .. } in tokens {
        let state = match value.used_at {
            Some(at) => Cell::new(format!("used {}", here.relative(at))),
            None if value.expires_at <= here.now => Cell::toned("expired", Tone::Warn),
            None => Cell::toned("open", Tone::Good),
        };
        table.row(vec![
            value.device_name.clone().into(),
            state,
            here.short(value.expires_at).into(),
            device::labels(&value.labels).into(),
            Cell::or_none(value.device_id.map(|id| id.to_string())),
            value.id.to_string().into(),
        ]);
    }
    table
}
