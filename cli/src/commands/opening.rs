//! Openings: ports of devices that the node at the other end of their tunnels may reach, for a while.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use crate::argument::NewestLimit;
use crate::client::{Answer, Client, OpeningFilter};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve::{self, Names};

#[derive(Debug, Subcommand)]
pub(crate) enum Opening {
    /// Open a TCP port of a device to the node that has its tunnel
    Open(Open),
    /// List openings, newest first
    List(List),
    /// Show one opening
    Show {
        /// Id of the opening
        opening: String,
    },
    /// Close a port before its time; connections through it are cut
    Close {
        /// Id of the opening
        opening: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Open {
    /// Name or id of the device
    device: String,
    /// The TCP port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// For how long, as in 10m, but never beyond the end of the grant; without it, an hour
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
    /// Id of the grant to act under; without it, the server chooses one that allows it
    #[arg(long, value_name = "GRANT")]
    grant: Option<String>,
    /// Why, for the record
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only openings of this device, by name or id
    #[arg(long)]
    device: Option<String>,
    /// Only openings under this grant, by id
    #[arg(long)]
    grant: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    limit: NewestLimit,
}

impl Opening {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Open(open) => open.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { opening } => {
                let client = context.client()?;
                let opening = client.opening(resolve::id("opening", opening)?).await?;
                show(context, &client, opening).await
            }
            Self::Close { opening } => {
                let answer = context.client()?.opening_close(resolve::id("opening", opening)?).await?;
                if context.output.json {
                    return context.output.json(&answer.json);
                }
                let why = answer.value.end_reason.unwrap_or_default();
                context.output.line(&format!("Opening {opening} has ended: {}", words(&why)))
            }
        }
    }
}

impl Open {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let grant = self.grant.as_ref().map(|grant| resolve::id("grant", grant)).transpose()?;
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?.value.id;
        let opening = client.opening_create(device, self.body(grant)).await?;
        if opening.value.state == "requested" {
            context.output.note("The device's node has not opened the port yet; look with: cloudlink opening show");
        }
        show(context, &client, opening).await
    }

    fn body(&self, grant: Option<uuid::Uuid>) -> Value {
        let mut body = json!({ "port": self.port, "reason": self.reason });
        if let Some(grant) = grant {
            body["grant_id"] = json!(grant);
        }
        // A span is sent as such: the server's clock counts, and this one may be wrong.
        if let Some(span) = self.span {
            body["seconds"] = span.as_seconds().into();
        }
        body
    }
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let filter = OpeningFilter {
            device_id: match &self.device {
                Some(device) => Some(resolve::device(&client, device).await?.value.id),
                None => None,
            },
            grant_id: self.grant.as_ref().map(|grant| resolve::id("grant", grant)).transpose()?,
            open: self.open.then_some(true),
        };
        let list = client.openings(self.limit.items(), &filter).await?;
        let names = if context.output.json { Names::default() } else { Names::of_openings(&client, &list.items).await };
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

async fn show(context: &Context, client: &Client, opening: Answer<model::Opening>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&opening.json);
    }
    let names = Names::of_openings(client, std::slice::from_ref(&opening)).await;
    context.output.table(&record(&opening.value, &names, &context.output.here()))
}

fn table(openings: &[Answer<model::Opening>], names: &Names, here: &Here) -> Table {
    let mut table = Table::new(&["STATE", "DEVICE", "PORT", "UNTIL", "BY", "REASON", "ID"]).whole(6);
    for Answer { value, .. } in openings {
        table.row(vec![
            state(value),
            names.name(value.device_id).into(),
            value.port.to_string().into(),
            here.short(value.ended_at.unwrap_or(value.expires_at)).into(),
            names.name(value.opened_by).into(),
            value.reason.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(opening: &model::Opening, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("opening", opening.id.to_string());
    table.field("state", state(opening));
    table.field("device", names.name(opening.device_id));
    table.field("port", opening.port.to_string());
    if let Some(endpoint) = &opening.endpoint {
        table.field("node", endpoint.node.clone());
        table.field("reached at", format!("{}, {}", endpoint.ipv4, endpoint.ipv6));
    } else if opening.ended_at.is_none() {
        table.field("reached at", Cell::toned("nowhere: the device has no tunnel now", Tone::Warn));
    }
    table.field("asked for", here.full(opening.created_at));
    if let Some(at) = opening.opened_at {
        table.field("opened", here.full(at));
    }
    match opening.ended_at {
        Some(at) => table.field("ended", here.full(at)),
        None => table.field("until", here.full(opening.expires_at)),
    }
    table.field("grant", opening.grant_id.to_string());
    table.field("opened by", names.name(opening.opened_by));
    table.field("reason", opening.reason.clone());
    table
}

fn state(opening: &model::Opening) -> Cell {
    match (opening.state.as_str(), &opening.end_reason) {
        ("open", _) => Cell::toned("open", Tone::Good),
        ("requested", _) => Cell::toned("requested", Tone::Warn),
        ("ended", Some(reason)) => Cell::toned(format!("ended: {}", words(reason)), Tone::Dim),
        (other, _) => Cell::toned(words(other), Tone::Dim),
    }
}

fn words(name: &str) -> String {
    name.replace('_', " ")
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
        opening: Opening,
    }

    fn parse(line: &str) -> Result<Opening, clap::Error> {
        Line::try_parse_from(format!("opening {line}").split(' ')).map(|line| line.opening)
    }

    fn body(line: &str, grant: Option<Uuid>) -> Value {
        let Opening::Open(open) = parse(line).unwrap() else { panic!("{line} opens nothing") };
        open.body(grant)
    }

    #[test]
    fn a_span_is_left_to_the_clock_of_the_server() {
        let body = body("open gw-1 --port 22 --for 10m --reason test", Some(Uuid::from_u128(1)));
        let grant = "00000000-0000-0000-0000-000000000001";
        assert_eq!(body, json!({"port": 22, "reason": "test", "seconds": 600, "grant_id": grant}));
    }

    #[test]
    fn what_is_not_said_is_left_to_the_server() {
        assert_eq!(body("open gw-1 --port 65535 --reason test", None), json!({"port": 65535, "reason": "test"}));
    }

    #[rstest]
    #[case("open gw-1 --reason r")]
    #[case("open gw-1 --port 22")]
    #[case("open --port 22 --reason r")]
    #[case("open gw-1 --port 0 --reason r")]
    #[case("open gw-1 --port 65536 --reason r")]
    #[case("open gw-1 --port ssh --reason r")]
    #[case("open gw-1 --port 22 --for 10 --reason r")]
    #[case("close")]
    #[case("show")]
    fn what_is_incomplete_is_refused(#[case] line: &str) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn tells_where_a_port_is_reached_and_until_when() {
        let mut opening: model::Opening = serde_json::from_value(json!({
            "id": "018f0000-0000-7000-8000-000000000001", "device_id": "018f0000-0000-7000-8000-000000000002",
            "grant_id": "018f0000-0000-7000-8000-000000000003", "opened_by": "018f0000-0000-7000-8000-000000000004",
            "port": 22, "reason": "stuck", "state": "open", "created_at": "2026-11-21T14:00:00Z",
            "expires_at": "2026-11-21T14:10:00Z", "opened_at": "2026-11-21T14:00:00Z", "ended_at": null,
            "end_reason": null, "endpoint": {"node": "node-1", "ipv4": "100.64.0.2", "ipv6": "fd00::2"},
        }))
        .unwrap();
        let here = Here { now: "2026-11-21T14:02:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = record(&opening, &Names::default(), &here).render(false, None);
        assert!(text.contains("100.64.0.2, fd00::2") && text.contains("in 8 min"), "{text}");
        opening.endpoint = None;
        let text = record(&opening, &Names::default(), &here).render(false, None);
        assert!(text.contains("nowhere: the device has no tunnel now"), "{text}");
        opening.state = "ended".to_owned();
        opening.end_reason = Some("grant_revoked".to_owned());
        opening.ended_at = Some("2026-11-21T14:01:00Z".parse().unwrap());
        let text = record(&opening, &Names::default(), &here).render(false, None);
        assert!(text.contains("ended: grant revoked") && !text.contains("nowhere"), "{text}");
    }
}
