//! Grants: a customer's permission for operators.

pub(super) mod sign;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, access, device};
use crate::argument::{self, Label, Limit, SELECTOR_HELP};
use crate::client::{Answer, Client};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::{self, Granted};
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve::{self, Names};

#[derive(Debug, Subcommand)]
pub(crate) enum Grant {
    /// Allow operators to do something on devices, for a while
    Create(Create),
    /// List grants
    List(List),
    /// Show one grant
    Show {
        /// Id of the grant
        grant: String,
    },
    /// End a grant now; what it allowed and has not begun is called back, ports that were opened are closed
    Revoke {
        /// Id of the grant
        grant: String,
    },
    /// Let a grant end later than it would
    Extend(Extend),
    /// Check who signed a grant, and show what it says; nobody is asked but for a grant's id
    Verify(sign::Verify),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What is allowed: metrics:read, service:restart, device:reboot, device:shutdown, os:update, agent:update, container:update, shell:open, tcp:open, file:read, file:write (repeatable)
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// On which device, by name or id (repeatable)
    #[arg(long = "device", value_name = "DEVICE", required_unless_present_any = ["labels", "selector"])]
    devices: Vec<String>,
    /// On all devices with this label, later ones included, as in site=north (repeatable: with all of them)
    #[arg(long = "label", value_name = "KEY=VALUE", conflicts_with = "devices")]
    labels: Vec<Label>,
    /// On all devices whose labels are as this says, then or later, as in 'site=north,role in (a,b),!retired'
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP, conflicts_with_all = ["devices", "labels"])]
    selector: Option<String>,
    /// To which operator, by name or id (repeatable); without it, to every operator
    #[arg(long = "operator", value_name = "OPERATOR")]
    operators: Vec<String>,
    #[command(flatten)]
    end: End,
    /// When it begins, as in 2026-11-21T15:30:00+01:00; without it, now
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    from: Option<Timestamp>,
    /// Why, for the record
    #[arg(long)]
    reason: String,
    /// File with the key (PEM) to sign it with, on this machine: devices that want it take no other
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct End {
    /// For how long from its beginning, as in 15m
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
    /// Until when, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    limit: Limit,
}

#[derive(Debug, Args)]
pub(crate) struct Extend {
    /// Id of the grant
    grant: String,
    #[command(flatten)]
    end: NewEnd,
    /// File with the key (PEM) to sign the later end with
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// File with the key (PEM, either half) that signed the grant, if it was another one (repeatable)
    #[arg(long = "key", value_name = "FILE", requires = "sign_with")]
    keys: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewEnd {
    /// How much later than it would end, as in 15m
    #[arg(long = "by", value_name = "SPAN")]
    span: Option<Span>,
    /// The new end, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    until: Option<Timestamp>,
}

impl Grant {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { grant } => {
                let client = context.client()?;
                let grant = client.grant(resolve::id("grant", grant)?).await?;
                show(context, &client, grant).await
            }
            Self::Revoke { grant } => {
                let answer = context.client()?.grant_revoke(resolve::id("grant", grant)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                context.output.line(&format!("Grant {grant} is revoked"))
            }
            Self::Extend(extend) => extend.run(context).await,
            Self::Verify(verify) => verify.run(context).await,
        }
    }
}

impl Create {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        if let Some(path) = &self.sign_with {
            return self.run_signed(context, &client, path).await;
        }
        let devices = resolve::device_ids(&client, &self.devices).await?;
        let operators = resolve::operator_ids(&client, &self.operators).await?;
        let granted = client.grant_create(self.body(&devices, &operators)).await?;
        if self.operators.is_empty() {
            context.output.note("No --operator was given: this grant is for every operator.");
        }
        show_granted(context, &client, granted).await
    }

    fn body(&self, devices: &[uuid::Uuid], operators: &[uuid::Uuid]) -> Value {
        let mut body = json!({ "reason": self.reason, "scopes": self.scopes });
        if let Some(selector) = &self.selector {
            body["selector"] = json!(selector);
        } else if devices.is_empty() {
            // As servers of before there were other selectors take it.
            body["selector"] = json!(argument::labels(&self.labels));
        } else {
            body["device_ids"] = json!(devices);
        }
        if !operators.is_empty() {
            body["operator_ids"] = json!(operators);
        }
        if let Some(from) = self.from {
            body["starts_at"] = from.to_string().into();
        }
        if let Some(until) = self.end.until {
            body["ends_at"] = until.to_string().into();
        }
        // A span is sent as such: the server's clock counts, and this one may be wrong.
        if let Some(span) = self.end.span {
            body["duration_seconds"] = span.as_seconds().into();
        }
        body
    }
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let list = client.grants(self.limit.items()).await?;
        let names = if context.output.json { Names::default() } else { Names::of_grants(&client, &list.items).await };
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

impl Extend {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        if let Some(path) = &self.sign_with {
            return self.run_signed(context, &client, path).await;
        }
        let grant = client.grant(resolve::id("grant", &self.grant)?).await?;
        let ends_at = match (self.end.until, self.end.span) {
            (Some(until), _) => until,
            (None, Some(span)) => grant
                .value
                .ends_at
                .checked_add(span.as_duration())
                .map_err(|_| Failure::Usage("that is beyond all calendars".to_owned()))?,
            (None, None) => return Err(Failure::Usage("give --by or --until".to_owned())),
        };
        let granted = client.grant_extend(&grant, json!({ "ends_at": ends_at.to_string() })).await?;
        show_granted(context, &client, granted).await
    }
}

/// The grant, or what a second person must approve.
async fn show_granted(context: &Context, client: &Client, granted: Answer<Granted>) -> Result<(), Failure> {
    let Answer { value, json, etag } = granted;
    match value {
        Granted::Grant(grant) => show(context, client, Answer { value: *grant, json, etag }).await,
        Granted::Request(request) => {
            context
                .output
                .note("Nobody is let in yet: two people of your tenant must approve, and you are one of them.");
            context.output.note(&format!("The other one: cloudlink access approve {}", request.id));
            access::show(context, client, Answer { value: *request, json, etag }).await
        }
    }
}

async fn show(context: &Context, client: &Client, grant: Answer<model::Grant>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&grant.json);
    }
    let names = Names::of_grants(client, std::slice::from_ref(&grant)).await;
    context.output.table(&record(&grant.value, &names, &context.output.here()))
}

fn table(grants: &[Answer<model::Grant>], names: &Names, here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "ENDS", "SCOPES", "DEVICES", "OPERATORS", "REASON", "ID"]).whole(6);
    for Answer { value, .. } in grants {
        table.row(vec![
            state(value),
            here.short(value.ends_at).into(),
            value.scopes.join(", ").into(),
            devices(value, names).into(),
            operators(value, names).into(),
            value.reason.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(grant: &model::Grant, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("grant", grant.id.to_string());
    table.field("state", state(grant));
    table.field("scopes", grant.scopes.join(", "));
    table.field("devices", devices(grant, names));
    table.field("operators", operators(grant, names));
    table.field("begins", here.full(grant.starts_at));
    table.field("ends", here.full(grant.ends_at));
    if let Some(at) = grant.revoked_at {
        table.field("revoked", Cell::toned(here.full(at), Tone::Bad));
    }
    table.field("reason", grant.reason.clone());
    table.field("signed", if grant.statement.is_some() { "by the customer (`cloudlink grant verify`)" } else { "no" });
    table.field("given by", format!("{}, {}", names.name(grant.created_by), here.full(grant.created_at)));
    table
}

fn state(grant: &model::Grant) -> Cell {
    match grant.state.as_str() {
        "in_force" => Cell::toned("in force", Tone::Good),
        "scheduled" => Cell::toned("scheduled", Tone::Warn),
        "revoked" => Cell::toned("revoked", Tone::Bad),
        other => Cell::toned(other.replace('_', " "), Tone::Dim),
    }
}

fn devices(grant: &model::Grant, names: &Names) -> String {
    match (&grant.device_ids, &grant.selector) {
        (Some(ids), _) => names.list(ids),
        (None, Some(selector)) => device::selected(selector, grant.selector_text.as_ref()),
        (None, None) => String::new(),
    }
}

fn operators(grant: &model::Grant, names: &Names) -> String {
    grant.operator_ids.as_ref().map_or_else(|| "every operator".to_owned(), |ids| names.list(ids))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;
    use uuid::Uuid;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        grant: Grant,
    }

    fn parse(line: &str) -> Result<Grant, clap::Error> {
        Line::try_parse_from(format!("grant {line}").split(' ')).map(|line| line.grant)
    }

    fn body(line: &str, devices: &[Uuid]) -> Value {
        let Grant::Create(create) = parse(line).unwrap() else { panic!("{line} is not a create") };
        create.body(devices, &[])
    }

    #[test]
    fn a_span_is_left_to_the_clock_of_the_server() {
        let id = Uuid::from_u128(1);
        assert_eq!(
            body("create --scope device:reboot --device gw-1 --for 15m --reason test", &[id]),
            json!({"reason": "test", "scopes": ["device:reboot"], "device_ids": [id], "duration_seconds": 900})
        );
    }

    #[test]
    fn labels_become_a_selector_and_times_are_in_utc() {
        assert_eq!(
            body("create --scope a --scope b --label site=north --until 2026-11-21T15:30:00+01:00 --reason r", &[]),
            json!({"reason": "r", "scopes": ["a", "b"], "selector": {"site": "north"}, "ends_at": "2026-11-21T14:30:00Z"})
        );
    }

    #[rstest]
    #[case("create --device d --for 15m --reason r")]
    #[case("create --scope s --for 15m --reason r")]
    #[case("create --scope s --device d --reason r")]
    #[case("create --scope s --device d --for 15m")]
    #[case("create --scope s --device d --label a=b --for 15m --reason r")]
    #[case("create --scope s --device d --for 15m --until 2026-11-21T14:30:00Z --reason r")]
    #[case("create --scope s --device d --for 15 --reason r")]
    #[case("create --scope s --device d --until tomorrow --reason r")]
    #[case("extend id")]
    #[case("extend id --by 1h --until 2026-11-21T14:30:00Z")]
    fn what_is_incomplete_or_contradictory_is_refused(#[case] line: &str) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }
}
