//! What operators tell devices to do. Each is one command under one grant; the server refuses it without one.

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Context, command, confirm, watch};
use crate::client::{Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::Device;
use crate::output::{Table, note};
use crate::resolve;

/// What all instructions have in common.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Name or id of the device
    pub(super) device: String,
    /// Wait this long for the device to link, as in 10m; without it, it is now or never
    #[arg(long, value_name = "SPAN")]
    queue_for: Option<Span>,
    /// Id of the grant to act under; without it, the server chooses one that allows it
    #[arg(long, value_name = "GRANT")]
    grant: Option<String>,
    /// Do it also while the device asks not to be disturbed; needs busy:override
    #[arg(long)]
    override_busy: bool,
    /// Wait for the end, which is the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Do not wait for the end
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// Asking twice with the same key does it once; without it, a new key for each call of this program
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Reboot {
    #[command(flatten)]
    common: Common,
    /// Why, for the record
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Shutdown {
    #[command(flatten)]
    common: Common,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    common: Common,
    /// Name of the service, as on the device's list of what may be restarted
    service: String,
    /// Why, for the record
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Metrics {
    #[command(flatten)]
    common: Common,
    /// Why, for the record
    #[arg(long, required_unless_present = "latest")]
    reason: Option<String>,
    /// Show the newest regular report instead of asking the device
    #[arg(long, conflicts_with_all = ["reason", "queue_for", "grant", "override_busy", "wait", "no_wait", "idempotency_key"])]
    latest: bool,
}

impl Reboot {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        let body = json!({ "kind": "device.reboot", "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}

impl Shutdown {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        let Device { name, id, .. } = &device.value;
        confirm(&format!("Shut down {name} ({id})? Somebody has to go there to switch it on again."), self.yes)?;
        let body = json!({ "kind": "device.shutdown", "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}

impl Restart {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        let body =
            json!({ "kind": "service.restart", "arguments": { "service": self.service }, "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}

impl Metrics {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.common.device).await?;
        if self.latest {
            let report = client.device_metrics(device.value.id).await?;
            return context.show(&report, || latest(&report.json, context));
        }
        let body = json!({ "kind": "metrics.collect", "reason": self.reason });
        self.common.run(context, &client, &device, body).await
    }
}

fn latest(report: &Value, context: &Context) -> Table {
    if let Some(at) = report["received_at"].as_str().and_then(|text| text.parse().ok()) {
        note(&format!("Reported {}", context.output.here().full(at)));
    }
    command::data_table(&report["report"])
}

impl Common {
    pub(super) fn now_or_never(device: String, grant: Option<String>) -> Self {
        Self { device, queue_for: None, grant, wait: true, no_wait: false, idempotency_key: None, override_busy: false }
    }

    /// Asks for it and, unless told otherwise, waits for what becomes of it.
    pub(super) async fn run(
        &self,
        context: &Context,
        client: &Client,
        device: &Answer<Device>,
        mut body: Value,
    ) -> Result<(), Failure> {
        if let Some(span) = self.queue_for {
            body["queue_for_seconds"] = span.as_seconds().into();
        }
        if self.override_busy {
            body["override_busy"] = true.into();
        }
        if let Some(grant) = &self.grant {
            body["grant_id"] = resolve::id("grant", grant)?.to_string().into();
        }
        // One key for all attempts: when the answer to the first was lost, the next one gets it.
        let key = self.idempotency_key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        let created = client.command_create(device.value.id, body, &key).await.inspect_err(|failure| {
            if failure.is_transient() {
                note(&format!("It is not known whether it was asked for. To make sure, add: --idempotency-key {key}"));
            }
        })?;
        let name = &device.value.name;
        if self.no_wait {
            if context.output.json {
                return context.output.json(&created.json);
            }
            let state = watch::state_here(&created.value, &context.output.here());
            context.output.note(&format!("{} on {name} is {state}", created.value.kind));
            return context.output.line(&created.value.id.to_string());
        }
        if !device.value.has_agent() && self.queue_for.is_some() {
            let here = context.output.here();
            let waits = match (created.value.runs_by, device.value.is_linked()) {
                (Some(by), _) => format!("{name} polls; it will run by {}", here.full(by)),
                (None, true) => {
                    format!("{name} has no agent now; waiting until {}", here.full(created.value.expires_at))
                }
                (None, false) => {
                    format!("{name} has no link now; waiting until {}", here.full(created.value.expires_at))
                }
            };
            note(&waits);
        }
        let label = format!("{} on {name}", created.value.kind);
        let command = watch::follow_visibly(client, &context.output, created, &label).await?;
        command::result(&context.output, &command, name)
    }
}
