//! Rollouts: planned, applied, watched, and taken back.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Context, confirm};
use crate::argument::{Limit, SELECTOR_HELP};
use crate::client::{Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Here, Table};
use crate::resolve;

/// How often a rollout that is watched is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The server may restart meanwhile: the rollout goes on, and so does watching it.
const UNREACHABLE_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Freeze which devices it is for, and see why it is not for others; nothing is begun
    Plan(Box<Plan>),
    /// Begin what was planned, if the devices are still as they were then, but for as many as the plan lets drift
    Apply {
        /// Id of the plan
        rollout: String,
        /// Its hash, as `plan` has printed it
        hash: String,
        /// Return at once, and do not watch it to its end
        #[arg(long)]
        no_wait: bool,
    },
    /// List rollouts and plans, newest first
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one, and its devices in their order
    Show {
        /// Id of the rollout
        rollout: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Begin nothing more until it is resumed
    Pause {
        /// Id of the rollout
        rollout: String,
    },
    /// Go on, also with one that has halted because too many had failed
    Resume {
        /// Id of the rollout
        rollout: String,
    },
    /// Begin nothing more, and call back what has not begun
    Cancel {
        /// Id of the rollout
        rollout: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Watch it until it is over or has halted
    Watch {
        /// Id of the rollout
        rollout: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// What each device is to do: metrics.collect, service.restart, device.reboot, ...
    kind: String,
    /// What the kind asks for, as JSON: '{"service": "nginx"}'
    #[arg(long, value_name = "JSON")]
    arguments: Option<String>,
    /// Id of the grant to act under
    #[arg(long)]
    grant: String,
    /// Which devices, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP)]
    selector: String,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    /// How many devices are tried first; one that fails halts the rollout
    #[arg(long, value_name = "N", default_value_t = 1)]
    canaries: u32,
    /// How many there are in each later batch
    #[arg(long, value_name = "N", default_value_t = 50)]
    batch: u32,
    /// How many are begun within a minute
    #[arg(long, value_name = "N", default_value_t = 600)]
    rate: u32,
    /// How many must have failed for it to halt
    #[arg(long, value_name = "N", default_value_t = 1)]
    abort_after: u32,
    /// Let each command wait this long for its device to link; without it, devices without a link are out
    #[arg(long, value_name = "SPAN")]
    queue_for: Option<Span>,
    /// Begin nothing after this time; without it, a day
    #[arg(long, value_name = "SPAN")]
    lasts: Option<Span>,
    /// Leave out devices whose agent is this one
    #[arg(long, value_name = "AGENT")]
    unless_agent: Option<String>,
    /// For how many devices it may have changed by then whether they can be reached, or are busy; without it, one in a hundred
    #[arg(long, value_name = "N")]
    drift_max: Option<u32>,
    /// Only within these hours of each device's own day, as in 22:00-05:00
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = hours)]
    window: Option<(u32, u32)>,
    /// Days of the window: 1 is Monday, 7 is Sunday; without it, all
    #[arg(long, value_name = "DAY", value_delimiter = ',', requires = "window")]
    days: Vec<u32>,
    /// Time zone of devices without the label `timezone`, as in Europe/Berlin; without it, UTC
    #[arg(long, value_name = "ZONE", requires = "window")]
    time_zone: Option<String>,
}

/// Minutes of the day, from and to.
fn hours(text: &str) -> Result<(u32, u32), String> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
        (minute < 60 && hour * 60 + minute <= 1440).then_some(hour * 60 + minute)
    };
    let hours = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    hours
        .filter(|(from, to)| from != to && *from < 1440)
        .map(|(from, to)| (from, if to == 0 { 1440 } else { to }))
        .ok_or_else(|| "expected two times of the day, as in 22:00-05:00".to_owned())
}

impl Rollout {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Plan(plan) => {
                let planned = client.rollout_plan(plan.body()?).await?;
                context.show(&planned, || record(&planned.value, &context.output.here()))?;
                context.output.note(&format!(
                    "Nothing is begun. See each device: cloudlink rollout show {id}\nBegin it within an hour: cloudlink rollout apply {id} {}",
                    planned.value.hash,
                    id = planned.value.id,
                ));
                Ok(())
            }
            Self::Apply { rollout, hash, no_wait } => {
                let begun = client.rollout_change(id(rollout)?, "apply", json!({ "hash": hash })).await?;
                if *no_wait {
                    return context.show(&begun, || record(&begun.value, &context.output.here()));
                }
                watch(context, &client, begun.value.id).await
            }
            Self::List { limit } => {
                let list = client.rollouts(limit.items()).await?;
                context.list(&list, || table(&list.items, &context.output.here()))
            }
            Self::Show { rollout, limit } => {
                let (id, limit) = (id(rollout)?, limit.items());
                let rollout = client.rollout(id).await?;
                let executions = client.rollout_executions(id, limit).await?;
                if context.output.json {
                    let mut object = rollout.json.clone();
                    object["executions"] = executions.items.iter().map(|one| one.json.clone()).collect();
                    return context.output.json(&object);
                }
                context.output.table(&record(&rollout.value, &context.output.here()))?;
                context.list(&executions, || devices(&executions.items))
            }
            Self::Pause { rollout } => change(context, &client, rollout, "pause").await,
            Self::Resume { rollout } => change(context, &client, rollout, "resume").await,
            Self::Cancel { rollout, yes } => {
                confirm(&format!("Cancel the rollout {rollout}?"), *yes)?;
                change(context, &client, rollout, "cancel").await
            }
            Self::Watch { rollout } => watch(context, &client, id(rollout)?).await,
        }
    }
}

fn id(text: &str) -> Result<Uuid, Failure> {
    resolve::id_listed("rollout", text, "rollout list")
}

async fn change(context: &Context, client: &Client, rollout: &str, verb: &str) -> Result<(), Failure> {
    let changed = client.rollout_change(id(rollout)?, verb, json!({})).await?;
    context.show(&changed, || record(&changed.value, &context.output.here()))
}

/// Tells each change, until the rollout is over or has halted. Whoever waits for it has a failure unless all devices that are in have
/// succeeded.
async fn watch(context: &Context, client: &Client, id: Uuid) -> Result<(), Failure> {
    let (mut told, mut heard_at) = (None, Instant::now());
    loop {
        match client.rollout(id).await {
            Ok(rollout) => {
                heard_at = Instant::now();
                let now = &rollout.value;
                let standing = (now.state.clone(), now.totals);
                if told.as_ref() != Some(&standing) {
                    if context.output.json {
                        context.output.json_line(&rollout.json)?;
                    } else {
                        context.output.line(&format!("{}: {}", now.state, totals(&now.totals)))?;
                    }
                    told = Some(standing);
                }
                match now.state.as_str() {
                    "finished" if now.totals.failed + now.totals.skipped == 0 => return Ok(()),
                    "finished" | "cancelled" | "expired" | "halted" => return Err(Failure::Ended),
                    _ => {}
                }
            }
            Err(failure) if failure.is_transient() && heard_at.elapsed() < UNREACHABLE_MAX => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Plan {
    fn body(&self) -> Result<Value, Failure> {
        let mut body = json!({
            "grant_id": resolve::id("grant", &self.grant)?, "selector": self.selector, "kind": self.kind, "reason": self.reason,
            "canaries": self.canaries, "batch": self.batch, "rate_per_minute": self.rate, "abort_after": self.abort_after,
        });
        if let Some(arguments) = &self.arguments {
            body["arguments"] = serde_json::from_str(arguments)
                .map_err(|error| Failure::Usage(format!("--arguments is not JSON: {error}")))?;
        }
        if let Some(span) = self.queue_for {
            body["queue_for_seconds"] = json!(span.as_seconds());
        }
        if let Some(span) = self.lasts {
            body["lasts_seconds"] = json!(span.as_seconds());
        }
        if let Some(agent) = &self.unless_agent {
            body["unless_agent"] = json!(agent);
        }
        if let Some(devices) = self.drift_max {
            body["drift_max"] = json!(devices);
        }
        if let Some((from, to)) = self.window {
            body["window"] = json!({ "from_minute": from, "to_minute": to });
            if !self.days.is_empty() {
                body["window"]["days"] = json!(self.days);
            }
            if let Some(zone) = &self.time_zone {
                body["window"]["time_zone"] = json!(zone);
            }
        }
        Ok(body)
    }
}

fn totals(totals: &model::RolloutTotals) -> String {
    let model::RolloutTotals { waiting, under_way, succeeded, failed, skipped } = totals;
    format!("{succeeded} succeeded, {failed} failed, {skipped} skipped, {under_way} under way, {waiting} waiting")
}

fn table(rollouts: &[Answer<model::Rollout>], here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "KIND", "SELECTOR", "CREATED", "ID"]).whole(4);
    for Answer { value, .. } in rollouts {
        table.row(vec![
            value.state.clone().into(),
            value.kind.clone().into(),
            value.selector.clone().into(),
            here.short(value.created_at).into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn devices(executions: &[Answer<model::Execution>]) -> Table {
    let mut table = Table::new(&["DEVICE", "STATE", "WHY", "COMMAND"]).whole(3);
    for Answer { value, .. } in executions {
        table.row(vec![
            value.device_name.clone().into(),
            value.state.clone().unwrap_or_else(|| "out".to_owned()).into(),
            value.why.clone().or_else(|| value.code.clone()).unwrap_or_default().into(),
            value.command_id.map(|id| id.to_string()).unwrap_or_default().into(),
        ]);
    }
    table
}

fn record(rollout: &model::Rollout, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("rollout", rollout.id.to_string());
    table.field("state", rollout.state.clone());
    table.field("kind", rollout.kind.clone());
    table.field("selector", rollout.selector.clone());
    table.field("grant", rollout.grant_id.to_string());
    table.field("reason", rollout.reason.clone());
    table.field("in", totals(&rollout.totals));
    let out: Vec<String> = rollout.out.iter().map(|(why, count)| format!("{count} {why}")).collect();
    table.field("out", if out.is_empty() { "none".to_owned() } else { out.join(", ") });
    table.field("created", here.full(rollout.created_at));
    table.field("drift", format!("up to {}", rollout.drift_max));
    if let Some(at) = rollout.ends_at {
        table.field("ends", here.full(at));
    }
    if let Some(at) = rollout.finished_at {
        table.field("finished", here.full(at));
    }
    table.field("hash", rollout.hash.clone());
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        verb: Rollout,
    }

    fn plan(line: &str) -> Result<Value, String> {
        let words = std::iter::once("rollout").chain(line.split(' '));
        let verb = Line::try_parse_from(words).map_err(|error| error.to_string())?.verb;
        let Rollout::Plan(plan) = verb else { panic!("{verb:?} is no plan") };
        plan.body().map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn a_plan_says_what_was_asked_for() {
        let grant = Uuid::from_u128(7);
        let line = format!(
            "plan device.reboot --grant {grant} -l site=north --reason r --canaries 2 --window 22:00-05:00 --days 1,5 --time-zone Europe/Berlin --queue-for 1h --drift-max 3"
        );
        let expected = json!({
            "grant_id": grant, "selector": "site=north", "kind": "device.reboot", "reason": "r", "canaries": 2, "batch": 50,
            "rate_per_minute": 600, "abort_after": 1, "queue_for_seconds": 3600, "drift_max": 3,
            "window": {"from_minute": 1320, "to_minute": 300, "days": [1, 5], "time_zone": "Europe/Berlin"},
        });
        assert_eq!(plan(&line).unwrap(), expected);
    }

    #[rstest]
    #[case("plan device.reboot --grant 7 -l site=north --reason r")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 --reason r")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 -l a=b --reason r --days 1")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 -l a=b --reason r --window 9-17")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 -l a=b --reason r --window 9:00-9:00")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 -l a=b --reason r --window 24:00-9:00")]
    #[case("plan device.reboot --grant 00000000-0000-0000-0000-000000000007 -l a=b --reason r --arguments {")]
    fn what_makes_no_sense_is_refused(#[case] line: &str) {
        plan(line).unwrap_err();
    }
}
