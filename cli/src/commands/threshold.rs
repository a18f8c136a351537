//! Rules over what devices measure, and the devices that are across one.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Context, confirm};
use crate::argument::{Limit, SELECTOR_HELP};
use crate::client::{AlertFilter, Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone, rough};
use crate::resolve;

#[derive(Debug, Subcommand)]
pub(crate) enum Threshold {
    /// Have webhooks told when a device's metric is above or below a value, and when it is not any more
    Create(Create),
    /// List thresholds, newest first
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Show a threshold, and the devices that are across it now
    Show {
        /// Name or id
        threshold: String,
    },
    /// Change a threshold; its metric stays
    Set(Set),
    /// Delete a threshold; what was told to be across it is told to be clear
    Delete {
        /// Name or id
        threshold: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What to call it
    name: String,
    /// What is measured, as cpu_percent; or `no_contact_seconds`: for how long a device has been neither linked nor polling
    #[arg(long)]
    metric: String,
    /// Across it is what is above this value
    #[arg(
        long,
        value_name = "VALUE",
        required_unless_present = "below",
        conflicts_with = "below",
        allow_negative_numbers = true
    )]
    above: Option<f64>,
    /// Across it is what is below this value
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    below: Option<f64>,
    /// For which devices, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP)]
    selector: String,
    #[command(flatten)]
    more: More,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name or id
    threshold: String,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// Across it is what is above this value
    #[arg(long, value_name = "VALUE", conflicts_with = "below", allow_negative_numbers = true)]
    above: Option<f64>,
    /// Across it is what is below this value
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    below: Option<f64>,
    /// For which devices from now on
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP)]
    selector: Option<String>,
    #[command(flatten)]
    more: More,
}

#[derive(Debug, Args)]
pub(crate) struct More {
    /// A device is clear of it again at this value, or beyond it on the good side; otherwise at the value that it is not to cross
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    clear: Option<f64>,
    /// How long it must last before it counts, as 5m; 0: not at all
    #[arg(long = "for", value_name = "SPAN", value_parser = seconds)]
    lasting: Option<u64>,
    /// How bad it is, for whoever is told: info, warning or critical
    #[arg(long, value_parser = ["info", "warning", "critical"])]
    severity: Option<String>,
    /// How long nothing more is told of a site after something was, as 15m; what happens meanwhile is told together then
    #[arg(long, value_name = "SPAN", value_parser = seconds)]
    hold_down: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Alerts {
    /// Only of this threshold
    #[arg(long, value_name = "NAME|ID")]
    threshold: Option<String>,
    /// Only of this device
    #[arg(long, value_name = "NAME|ID")]
    device: Option<String>,
    /// Only those that have lasted for long enough
    #[arg(long)]
    firing: bool,
    #[command(flatten)]
    limit: Limit,
}

/// A span of time, or none at all.
fn seconds(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    text.parse::<Span>().map(Span::as_seconds).map_err(|error| error.to_string())
}

impl Threshold {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create(create) => {
                let threshold = client.threshold_create(create.body()).await?;
                context.show(&threshold, || record(&threshold.value, &context.output.here()))
            }
            Self::List { limit } => {
                let list = client.thresholds(limit.items()).await?;
                context.list(&list, || table(&list.items))
            }
            Self::Show { threshold } => show(context, &client, &resolve::threshold(&client, threshold).await?).await,
            Self::Set(set) => {
                let threshold = resolve::threshold(&client, &set.threshold).await?;
                let threshold = client.threshold_patch(&threshold, set.body()?).await?;
                context.show(&threshold, || record(&threshold.value, &context.output.here()))
            }
            Self::Delete { threshold, yes } => {
                let threshold = resolve::threshold(&client, threshold).await?.value;
                confirm(&format!("Delete the threshold {} ({})?", threshold.name, line(&threshold)), *yes)?;
                let deleted = client.threshold_delete(threshold.id).await?;
                if context.output.json {
                    return context.output.json(&deleted.json);
                }
                context.output.line(&format!("Threshold {} is deleted", threshold.name))
            }
        }
    }
}

impl Create {
    fn body(&self) -> Value {
        let mut body = json!({ "name": self.name, "metric": self.metric, "selector": self.selector });
        set_line(&mut body, self.above, self.below);
        self.more.add_to(&mut body);
        body
    }
}

impl Set {
    fn body(&self) -> Result<Value, Failure> {
        let mut body = json!({});
        set_line(&mut body, self.above, self.below);
        let texts = [("name", &self.name), ("selector", &self.selector)];
        for (member, text) in texts.into_iter().filter_map(|(member, text)| Some((member, text.as_ref()?))) {
            body[member] = json!(text);
        }
        self.more.add_to(&mut body);
        if body == json!({}) {
            return Err(Failure::Usage("Say what is to change, as in --above 95; see --help".to_owned()));
        }
        Ok(body)
    }
}

impl More {
    fn add_to(&self, body: &mut Value) {
        if let Some(clear) = self.clear {
            body["clear_value"] = json!(clear);
        }
        if let Some(severity) = &self.severity {
            body["severity"] = json!(severity);
        }
        for (member, seconds) in [("for_seconds", self.lasting), ("hold_down_seconds", self.hold_down)] {
            if let Some(seconds) = seconds {
                body[member] = json!(seconds);
            }
        }
    }
}

fn set_line(body: &mut Value, above: Option<f64>, below: Option<f64>) {
    for (comparison, value) in [("above", above), ("below", below)] {
        if let Some(value) = value {
            body["comparison"] = json!(comparison);
            body["value"] = json!(value);
        }
    }
}

impl Alerts {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let threshold_id = match &self.threshold {
            Some(threshold) => Some(resolve::threshold(&client, threshold).await?.value.id),
            None => None,
        };
        let device_id = match &self.device {
            Some(device) => Some(resolve::device(&client, device).await?.value.id),
            None => None,
        };
        let filter = AlertFilter { threshold_id, device_id, is_firing: self.firing };
        let list = client.alerts(self.limit.items(), &filter).await?;
        context.list(&list, || alert_table(&list.items, &context.output.here()))
    }
}

async fn show(context: &Context, client: &Client, threshold: &Answer<model::Threshold>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&threshold.json);
    }
    let filter = AlertFilter { threshold_id: Some(threshold.value.id), ..AlertFilter::default() };
    let alerts = client.alerts(SHOWN_MAX, &filter).await?;
    context.output.table(&record(&threshold.value, &context.output.here()))?;
    context.list(&alerts, || alert_table(&alerts.items, &context.output.here()))
}

/// Devices that are listed with their threshold.
const SHOWN_MAX: usize = 200;

/// As in `cpu_percent above 90`.
fn line(threshold: &model::Threshold) -> String {
    format!("{} {} {}", threshold.metric, threshold.comparison, threshold.value)
}

fn span(seconds: u32) -> String {
    if seconds == 0 { "-".to_owned() } else { rough(jiff::SignedDuration::from_secs(seconds.into())) }
}

fn table(thresholds: &[Answer<model::Threshold>]) -> Table {
    let mut table = Table::new(&["NAME", "THRESHOLD", "FOR", "SELECTOR", "SEVERITY", "ID"]).whole(5);
    for Answer { value, .. } in thresholds {
        table.row(vec![
            value.name.clone().into(),
            line(value).into(),
            span(value.for_seconds).into(),
            value.selector.clone().into(),
            severity(&value.severity),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn severity(severity: &str) -> Cell {
    let tone = match severity {
        "critical" => Tone::Bad,
        "warning" => Tone::Warn,
        _ => Tone::Plain,
    };
    Cell::toned(severity, tone)
}

fn alert_table(alerts: &[Answer<model::Alert>], here: &Here) -> Table {
    let header = ["DEVICE", "SITE", "THRESHOLD", "SEVERITY", "STATE", "SINCE", "VALUE", "TOLD"];
    let mut table = Table::new(&header);
    for Answer { value, .. } in alerts {
        table.row(vec![
            value.device_name.clone().into(),
            Cell::or_none(value.site.clone()),
            value.threshold_name.clone().into(),
            severity(&value.severity),
            value.state.clone().into(),
            here.full(value.since).into(),
            Cell::or_none(value.value.map(|value| value.to_string())),
            if value.is_told { "yes" } else { "not yet" }.into(),
        ]);
    }
    table
}

fn record(threshold: &model::Threshold, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("threshold", threshold.name.clone());
    table.field("id", threshold.id.to_string());
    table.field("across", line(threshold));
    table.field("clear at", threshold.clear_value.to_string());
    table.field("lasting", span(threshold.for_seconds));
    table.field("selector", threshold.selector.clone());
    table.field("severity", severity(&threshold.severity));
    table.field("hold-down of a site", span(threshold.hold_down_seconds));
    table.field("created", here.full(threshold.created_at));
    if let Some(at) = threshold.deleted_at {
        table.field("deleted", here.full(at));
    }
    table
}
