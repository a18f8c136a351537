//! Access policies: what a customer allows without being asked each time.

use std::str::FromStr;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::argument::{self, Label, Limit, SELECTOR_HELP};
use crate::client::{Answer, Client};
use crate::commands::{Context, device};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::AccessPolicy;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve::{self, Names};

/// Monday first, as the API counts them.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Allow something at certain hours, for a while each time
    Create(Create),
    /// List policies, newest first
    List(List),
    /// Show one policy
    Show {
        /// Id of the policy
        policy: String,
    },
    /// Approve a policy that somebody else has made, where two people must
    Approve {
        /// Id of the policy
        policy: String,
    },
    /// Allow nothing more by it; who is let in already stays
    Revoke {
        /// Id of the policy
        policy: String,
        /// Also end what was allowed by it before
        #[arg(long)]
        revoke_grants: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What to call it
    name: String,
    /// What is allowed, as for `grant create` (repeatable)
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// On which device, by name or id (repeatable); without it, on all of them
    #[arg(long = "device", value_name = "DEVICE", conflicts_with_all = ["labels", "selector"])]
    devices: Vec<String>,
    /// On all devices with this label, as in site=north (repeatable: with all of them)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// On all devices whose labels are as this says, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP, conflicts_with = "labels")]
    selector: Option<String>,
    /// To which operator, by name or id (repeatable); without it, to every operator
    #[arg(long = "operator", value_name = "OPERATOR")]
    operators: Vec<String>,
    /// On which days, as in mon-fri or mon,wed; without it, every day
    #[arg(long, value_name = "DAYS")]
    days: Option<Days>,
    /// At which hours, as in 08:00-18:00; without it, at all hours
    #[arg(long, value_name = "FROM-TO")]
    hours: Option<Hours>,
    /// Whose clocks these are, as in Europe/Berlin; without it, UTC
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The longest access each time, as in 2h
    #[arg(long, value_name = "SPAN")]
    max: Span,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    limit: Limit,
}

/// Days of the week: 1 is Monday.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Days(Vec<usize>);

impl FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "expected days as in mon-fri or mon,wed,sun".to_owned();
        let day = |name: &str| DAYS.iter().position(|day| *day == name).map(|day| day + 1).ok_or_else(error);
        let mut days = Vec::new();
        for part in text.to_ascii_lowercase().split(',') {
            match part.split_once('-') {
                None => days.push(day(part)?),
                Some((first, last)) => {
                    let (first, last) = (day(first)?, day(last)?);
                    // Over the end of the week, as in sat-mon.
                    days.extend((first..).map(|day| (day - 1) % 7 + 1).take((last + 7 - first) % 7 + 1));
                }
            }
        }
        days.sort_unstable();
        days.dedup();
        Ok(Self(days))
    }
}

/// Minutes of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hours {
    from: u32,
    to: u32,
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "expected hours as in 08:00-18:00, from 00:00 to 24:00".to_owned();
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2)?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (minute < 60 && hour * 60 + minute <= 1440).then_some(hour * 60 + minute)
        };
        let (from, to) = text.split_once('-').ok_or_else(error)?;
        let (from, to) = minute(from).zip(minute(to)).ok_or_else(error)?;
        if from < to {
            Ok(Self { from, to })
        } else {
            Err("hours end after they begin, on the same day; over midnight takes two policies".to_owned())
        }
    }
}

impl Policy {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::Create(create) => create.run(context, &client).await,
            Self::List(list) => list.run(context, &client).await,
            Self::Show { policy } => show(context, &client, client.access_policy(id(policy)?).await?).await,
            Self::Approve { policy } => show(context, &client, client.access_policy_approve(id(policy)?).await?).await,
            Self::Revoke { policy, revoke_grants } => {
                show(context, &client, client.access_policy_revoke(id(policy)?, *revoke_grants).await?).await
            }
        }
    }
}

fn id(text: &str) -> Result<Uuid, Failure> {
    resolve::id_listed("policy", text, "access policy list")
}

impl Create {
    async fn run(&self, context: &Context, client: &Client) -> Result<(), Failure> {
        let devices = resolve::device_ids(client, &self.devices).await?;
        let operators = resolve::operator_ids(client, &self.operators).await?;
        let policy = client.access_policy_create(self.body(&devices, &operators)).await?;
        if policy.value.state == "proposed" {
            context.output.note("It allows nothing yet: somebody else of your tenant must approve it.");
            context.output.note(&format!("The other one: cloudlink access policy approve {}", policy.value.id));
        }
        show(context, client, policy).await
    }

    fn body(&self, devices: &[Uuid], operators: &[Uuid]) -> Value {
        let mut body = json!({ "name": self.name, "scopes": self.scopes, "max_seconds": self.max.as_seconds() });
        if !devices.is_empty() {
            body["device_ids"] = json!(devices);
        }
        if let Some(selector) = &self.selector {
            body["selector"] = json!(selector);
        } else if !self.labels.is_empty() {
            body["selector"] = json!(argument::labels(&self.labels));
        }
        if !operators.is_empty() {
            body["operator_ids"] = json!(operators);
        }
        if let Some(Days(days)) = &self.days {
            body["days"] = json!(days);
        }
        if let Some(Hours { from, to }) = self.hours {
            body["from_minute"] = from.into();
            body["to_minute"] = to.into();
        }
        if let Some(zone) = &self.time_zone {
            body["time_zone"] = json!(zone);
        }
        body
    }
}

impl List {
    async fn run(&self, context: &Context, client: &Client) -> Result<(), Failure> {
        let list = client.access_policies(self.limit.items()).await?;
        let names = if context.output.json { Names::default() } else { Names::of_policies(client, &list.items).await };
        context.list(&list, || {
            let header = ["STATE", "NAME", "SCOPES", "DEVICES", "OPERATORS", "WHEN", "AT MOST", "ID"];
            let mut table = Table::new(&header).whole(7);
            for Answer { value, .. } in &list.items {
                table.row(vec![
                    state(value),
                    value.name.clone().into(),
                    value.scopes.join(", ").into(),
                    devices(value, &names).into(),
                    operators(value, &names).into(),
                    when(value).into(),
                    span(value.max_seconds).into(),
                    value.id.to_string().into(),
                ]);
            }
            table
        })
    }
}

async fn show(context: &Context, client: &Client, policy: Answer<AccessPolicy>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&policy.json);
    }
    let names = Names::of_policies(client, std::slice::from_ref(&policy)).await;
    context.output.table(&record(&policy.value, &names, &context.output.here()))
}

fn record(policy: &AccessPolicy, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("policy", policy.id.to_string());
    table.field("name", policy.name.clone());
    table.field("state", state(policy));
    table.field("scopes", policy.scopes.join(", "));
    table.field("devices", devices(policy, names));
    table.field("operators", operators(policy, names));
    table.field("when", when(policy));
    table.field("at most", span(policy.max_seconds));
    table.field("made by", format!("{}, {}", names.name(policy.created_by), here.full(policy.created_at)));
    if let Some((by, at)) = policy.approved_by.zip(policy.approved_at) {
        table.field("approved by", format!("{}, {}", names.name(by), here.full(at)));
    }
    if let Some((by, at)) = policy.revoked_by.zip(policy.revoked_at) {
        let text = format!("{}, {}", names.name(by), here.full(at));
        table.field("revoked by", Cell::toned(text, Tone::Bad));
    }
    table
}

fn state(policy: &AccessPolicy) -> Cell {
    match policy.state.as_str() {
        "in_force" => Cell::toned("in force", Tone::Good),
        "proposed" => Cell::toned("proposed: a second person must approve it", Tone::Warn),
        "revoked" => Cell::toned("revoked", Tone::Bad),
        other => Cell::toned(other.replace('_', " "), Tone::Dim),
    }
}

fn devices(policy: &AccessPolicy, names: &Names) -> String {
    match (&policy.device_ids, &policy.selector) {
        (Some(ids), _) => names.list(ids),
        (None, Some(selector)) => device::selected(selector, policy.selector_text.as_ref()),
        (None, None) => "all".to_owned(),
    }
}

fn operators(policy: &AccessPolicy, names: &Names) -> String {
    policy.operator_ids.as_ref().map_or_else(|| "every operator".to_owned(), |ids| names.list(ids))
}

/// `mon, tue 08:00-18:00 Europe/Berlin`
fn when(policy: &AccessPolicy) -> String {
    let days = if policy.days.len() == DAYS.len() {
        "every day".to_owned()
    } else {
        let names: Vec<_> =
            policy.days.iter().filter_map(|day| DAYS.get(usize::from(*day).checked_sub(1)?).copied()).collect();
        names.join(", ")
    };
    if (policy.from_minute, policy.to_minute) == (0, 1440) {
        return format!("{days} ({})", policy.time_zone);
    }
    let clock = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{days} {}-{} {}", clock(policy.from_minute), clock(policy.to_minute), policy.time_zone)
}

fn span(seconds: u64) -> String {
    Span::of_seconds(seconds).map_or_else(|| format!("{seconds} s"), |span| span.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        policy: Policy,
    }

    fn parse(line: &str) -> Result<Policy, clap::Error> {
        Line::try_parse_from(format!("policy {line}").split(' ')).map(|line| line.policy)
    }

    #[test]
    fn days_and_hours_become_numbers() {
        let line = "create office --scope device:reboot --label site=north --days mon-fri --hours 08:00-18:30 --time-zone Europe/Berlin --max 2h";
        let Policy::Create(create) = parse(line).unwrap() else { panic!("{line} makes nothing") };
        assert_eq!(
            create.body(&[], &[]),
            json!({"name": "office", "scopes": ["device:reboot"], "selector": {"site": "north"}, "days": [1, 2, 3, 4, 5],
                   "from_minute": 480, "to_minute": 1110, "time_zone": "Europe/Berlin", "max_seconds": 7200})
        );
    }

    #[rstest]
    #[case("sat-mon", &[1, 6, 7])]
    #[case("SUN,wed", &[3, 7])]
    #[case("mon-sun", &[1, 2, 3, 4, 5, 6, 7])]
    #[case("tue-tue", &[2])]
    fn days_are_read(#[case] text: &str, #[case] days: &[usize]) {
        assert_eq!(text.parse::<Days>().unwrap().0, days);
    }

    #[rstest]
    #[case("create n --scope s")]
    #[case("create n --max 1h")]
    #[case("create --scope s --max 1h")]
    #[case("create n --scope s --max 1h --days funday")]
    #[case("create n --scope s --max 1h --days mon-")]
    #[case("create n --scope s --max 1h --hours 8-18")]
    #[case("create n --scope s --max 1h --hours 18:00-08:00")]
    #[case("create n --scope s --max 1h --hours 08:00-24:01")]
    #[case("create n --scope s --max 1h --hours 08:60-10:00")]
    #[case("create n --scope s --max 1h --device d --label a=b")]
    #[case("revoke")]
    fn what_is_incomplete_or_no_time_is_refused(#[case] line: &str) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn says_when_it_holds() {
        let policy = |changes: Value| {
            let mut json = json!({
                "id": "018f0000-0000-7000-8000-000000000001", "name": "n", "scopes": ["s"], "device_ids": null, "selector": null,
                "operator_ids": null, "days": [1, 5], "from_minute": 480, "to_minute": 1110, "time_zone": "Europe/Berlin",
                "max_seconds": 7200, "state": "in_force", "created_by": "018f0000-0000-7000-8000-000000000002",
                "created_at": "2026-11-21T14:00:00Z", "approved_by": null, "approved_at": null, "revoked_by": null, "revoked_at": null,
            });
            json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            serde_json::from_value::<AccessPolicy>(json).unwrap()
        };
        assert_eq!(when(&policy(json!({}))), "mon, fri 08:00-18:30 Europe/Berlin");
        let always =
            policy(json!({"days": [1, 2, 3, 4, 5, 6, 7], "from_minute": 0, "to_minute": 1440, "time_zone": "UTC"}));
        assert_eq!(when(&always), "every day (UTC)");
    }
}
