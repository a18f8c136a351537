//! Webhooks: where other systems are told of events.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::argument::{Limit, NewestLimit};
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

/// How long a trial may take, beyond what the server waits for a receiver by default.
const TEST_WITHIN: Duration = Duration::from_secs(30);
const TEST_POLL: Duration = Duration::from_millis(200);
/// What came of a trial is among so many of the newest deliveries.
const TEST_LOOK_AT: usize = 50;

#[derive(Debug, Subcommand)]
pub(crate) enum Webhook {
    /// Have a system told of events; the secret of its signatures is printed, once
    Create(Create),
    /// List webhooks, without their secrets
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one webhook
    Show {
        /// Id of the webhook
        webhook: String,
    },
    /// Send a trial, and wait for what comes of it
    Test {
        /// Id of the webhook
        webhook: String,
    },
    /// List what was and is to be sent, newest first
    Deliveries {
        /// Id of the webhook
        webhook: String,
        #[command(flatten)]
        limit: NewestLimit,
    },
    /// Print another secret, once; the one before signs as well for a day
    Rotate {
        /// Id of the webhook
        webhook: String,
    },
    /// Send nothing more, what waits included
    Disable {
        /// Id of the webhook
        webhook: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    // Not a comment, in which rustdoc would see a link.
    #[arg(help = "Where to, as in https://example.com/hooks/cloudlink")]
    url: String,
    /// Of what, as in grant.created; several times for several, left out for everything
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
}

impl Webhook {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create(create) => {
                let mut body = json!({ "url": create.url });
                if !create.events.is_empty() {
                    body["events"] = json!(create.events);
                }
                show_secret(context, &client.webhook_create(body).await?, "was made")
            }
            Self::List { limit } => {
                let list = client.webhooks(limit.items()).await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
            Self::Show { webhook } => {
                let answer = client.webhook(resolve::id("webhook", webhook)?).await?;
                context.show(&answer, || record(&answer.value, &context.output.here()))
            }
            Self::Test { webhook } => {
                let id = resolve::id("webhook", webhook)?;
                let trial = client.webhook_test(id).await?;
                let delivery = follow(&client, id, trial).await?;
                context
                    .show(&delivery, || deliveries_table(std::slice::from_ref(&delivery), &context.output.here()))?;
                match delivery.value.state.as_str() {
                    "delivered" => Ok(()),
                    _ => Err(anyhow::anyhow!("the trial was not delivered").into()),
                }
            }
            Self::Deliveries { webhook, limit } => {
                let list = client.webhook_deliveries(resolve::id("webhook", webhook)?, limit.items()).await?;
                context.list(&list, || deliveries_table(&list.items, &context.output.here()))
            }
            Self::Rotate { webhook } => {
                let answer = client.webhook_rotate(resolve::id("webhook", webhook)?).await?;
                show_secret(context, &answer, "has another secret; the one before signs as well for a day")
            }
            Self::Disable { webhook } => {
                let answer = client.webhook_disable(resolve::id("webhook", webhook)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.line(&format!("Nothing more is sent to webhook {webhook}"))
            }
        }
    }
}

fn show_secret(context: &Context, answer: &Answer<model::Webhook>, what: &str) -> Result<(), Failure> {
    let about = format!("Webhook {} {what}. Its secret is shown only now:", answer.value.id);
    context.show_secret(&answer.json, answer.value.secret.as_deref(), &about)
}

/// Waits until the trial is over, and not for ever.
async fn follow(
    client: &Client,
    webhook: uuid::Uuid,
    trial: Answer<model::Delivery>,
) -> Result<Answer<model::Delivery>, Failure> {
    let (end, mut latest) = (Instant::now() + TEST_WITHIN, trial);
    while latest.value.state == "waiting" && Instant::now() < end {
        sleep(TEST_POLL).await;
        let list = client.webhook_deliveries(webhook, TEST_LOOK_AT).await?;
        latest = list.items.into_iter().find(|item| item.value.id == latest.value.id).unwrap_or(latest);
    }
    Ok(latest)
}

fn table(webhooks: &[Answer<model::Webhook>], here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "URL", "EVENTS", "CREATED", "ID"]).whole(4);
    for Answer { value, .. } in webhooks {
        table.row(vec![
            state(value, here),
            value.url.clone().into(),
            value.events.join(", ").into(),
            here.short(value.created_at).into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(webhook: &model::Webhook, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("webhook", webhook.id.to_string());
    table.field("state", state(webhook, here));
    table.field("url", webhook.url.clone());
    table.field("events", webhook.events.join(", "));
    match webhook.tenant_id {
        Some(tenant) => table.field("tenant", tenant.to_string()),
        None => table.field("tenant", "all: the vendor's own"),
    }
    table.field("created", here.full(webhook.created_at));
    if let Some(at) = webhook.previous_secret_until {
        table.field("secret before", format!("signs as well until {}", here.full(at)));
    }
    table
}

fn state(webhook: &model::Webhook, here: &Here) -> Cell {
    match (webhook.disabled_at, webhook.failing_since) {
        (Some(_), _) => Cell::toned("disabled", Tone::Dim),
        (None, Some(since)) => Cell::toned(format!("failing since {}", here.short(since)), Tone::Bad),
        (None, None) => Cell::toned("works", Tone::Good),
    }
}

fn deliveries_table(deliveries: &[Answer<model::Delivery>], here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "EVENT", "CREATED", "ATTEMPTS", "RESULT", "NEXT", "ID"]).whole(6);
    for Answer { value, .. } in deliveries {
        let state = match value.state.as_str() {
            "delivered" => Cell::toned("delivered", Tone::Good),
            "failed" => Cell::toned("failed", Tone::Bad),
            other => Cell::toned(other.to_owned(), Tone::Warn),
        };
        table.row(vec![
            state,
            value.event.clone().into(),
            here.short(value.created_at).into(),
            value.attempts.to_string().into(),
            Cell::or_none(value.last_result.clone()),
            Cell::or_none(value.next_at.map(|at| here.short(at))),
            value.id.to_string().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whether_it_works() {
        let mut webhook: model::Webhook = serde_json::from_value(json!({
            "id": "018f0000-0000-7000-8000-000000000001", "tenant_id": null, "url": "https://example.com/",
            "events": ["grant.created", "something.new"], "created_at": "2026-11-21T14:00:00Z", "disabled_at": null,
            "failing_since": null, "previous_secret_until": null,
        }))
        .unwrap();
        let here = Here { now: "2026-11-21T14:02:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = record(&webhook, &here).render(false, None);
        assert!(text.contains("works") && text.contains("grant.created, something.new"), "{text}");
        webhook.failing_since = Some("2026-11-21T14:01:00Z".parse().unwrap());
        let text = record(&webhook, &here).render(false, None);
        assert!(text.contains("failing since"), "{text}");
        webhook.disabled_at = webhook.failing_since;
        let text = record(&webhook, &here).render(false, None);
        assert!(text.contains("disabled") && !text.contains("failing"), "{text}");
    }
}
