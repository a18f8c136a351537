//! Access requests: an operator asks, the customer's people answer.

mod policy;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use cloudlink_certs::GrantStatement;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::grant::sign::{each_once, sign, signed_before};
use super::{Context, device};
use crate::argument::{self, NewestLimit, SELECTOR_HELP};
use crate::client::{AccessRequestFilter, Answer, Client, DeviceFilter};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::{AccessDecision, AccessRequest};
use crate::output::{Cell, Here, Table, Tone, note};
use crate::resolve::{self, Names};
use crate::{clock, signing};

/// Between two looks at a request that is waited for.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the one who waits is told that it goes on.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// The server may restart meanwhile: the request is there when it is back.
const UNREACHABLE_MAX: Duration = Duration::from_secs(120);
/// The most devices that one request is for.
const DEVICES_MAX: usize = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    /// Ask a customer to be let in, for a while
    Request(Request),
    /// List access requests, newest first
    List(List),
    /// Show one access request: what is asked for, until when, and who answered what
    Show {
        /// Id of the request
        request: String,
    },
    /// Let somebody in who has asked, to all of it or to less
    Approve(Approve),
    /// Do not let somebody in who has asked
    Deny {
        /// Id of the request
        request: String,
        /// Why, for whoever asked
        #[arg(long)]
        comment: Option<String>,
    },
    /// Take back what you have asked for
    Withdraw {
        /// Id of the request
        request: String,
    },
    /// What is allowed without being asked each time
    #[command(subcommand)]
    Policy(policy::Policy),
}

#[derive(Debug, Args)]
pub(crate) struct Request {
    /// What is to be done: metrics:read, service:restart, device:reboot, device:shutdown, os:update, agent:update, container:update, tcp:open, shell:open, file:read, file:write (repeatable)
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// On which device, by name or id (repeatable; all of one customer)
    #[arg(long = "device", value_name = "DEVICE", required_unless_present = "selector")]
    devices: Vec<String>,
    /// On the devices whose labels are as this says now, as in 'site=north,role in (a,b),!retired'; on none that get them later
    #[arg(short = 'l', long, value_name = "SELECTOR", long_help = SELECTOR_HELP, conflicts_with = "devices")]
    selector: Option<String>,
    #[command(flatten)]
    until: Until,
    /// For how long it can be answered, as in 2h; without it, a day, and never longer than the access itself
    #[arg(long, value_name = "SPAN", conflicts_with = "answer_by")]
    answer_within: Option<Span>,
    /// Until when it can be answered, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    answer_by: Option<Timestamp>,
    /// Why, for those who decide
    #[arg(long)]
    reason: String,
    /// Number or address of the ticket that it is about
    #[arg(long)]
    ticket: Option<String>,
    /// Wait until it is decided; exit code 0 if it is approved, 6 if it is not
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Until {
    /// For how long from now on, as in 2h, whenever it is answered
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
    /// Until when, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those in this state: open, approved, denied, withdrawn, expired
    #[arg(long)]
    state: Option<String>,
    /// Only those about this device, by name or id
    #[arg(long)]
    device: Option<String>,
    /// Only those to this tenant, by name or id
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    limit: NewestLimit,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// Id of the request
    request: String,
    /// Only this scope of those that were asked for (repeatable)
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Only this device of those that were asked for, by name or id (repeatable)
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// No longer than this from now on, as in 30m
    #[arg(long = "for", value_name = "SPAN", conflicts_with = "until")]
    span: Option<Span>,
    /// No longer than this, as in 2026-11-21T15:30:00+01:00
    #[arg(long, value_name = "TIME", value_parser = argument::time)]
    until: Option<Timestamp>,
    /// For whoever asked, and the record
    #[arg(long)]
    comment: Option<String>,
    /// Sign the grant that comes of it with this private key (PEM); where two people must approve, the one who approves last
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// Of a later end: file with the key (PEM, either half) that signed the grant, if it was another one (repeatable)
    #[arg(long = "key", value_name = "FILE", requires = "sign_with")]
    keys: Vec<PathBuf>,
}

impl Access {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Request(request) => request.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show { request } => {
                let client = context.client()?;
                let request = client.access_request(id(request)?).await?;
                show(context, &client, request).await
            }
            Self::Approve(approve) => approve.run(context).await,
            Self::Deny { request, comment } => {
                let body = comment.as_ref().map_or_else(|| json!({}), |comment| json!({ "comment": comment }));
                answer(context, request, "deny", body).await
            }
            Self::Withdraw { request } => answer(context, request, "withdraw", json!({})).await,
            Self::Policy(policy) => policy.run(context).await,
        }
    }
}

fn id(text: &str) -> Result<Uuid, Failure> {
    resolve::id_listed("access request", text, "access list")
}

async fn answer(context: &Context, request: &str, verb: &str, body: Value) -> Result<(), Failure> {
    let client = context.client()?;
    let request = client.access_request_answer(id(request)?, verb, body).await?;
    show(context, &client, request).await
}

impl Request {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let devices = match &self.selector {
            None => resolve::device_ids(&client, &self.devices).await?,
            Some(selector) => {
                let filter = DeviceFilter { selector: Some(selector.clone()), ..DeviceFilter::default() };
                resolve::labelled_ids(&client, &filter, DEVICES_MAX).await?
            }
        };
        let request = client.access_request_create(self.body(&devices)).await?;
        if !self.wait {
            return show(context, &client, request).await;
        }
        let request = wait(context, &client, request).await?;
        let is_approved = request.value.state == "approved";
        show(context, &client, request).await?;
        if is_approved { Ok(()) } else { Err(Failure::Ended) }
    }

    fn body(&self, devices: &[Uuid]) -> Value {
        let mut body = json!({ "device_ids": devices, "scopes": self.scopes, "reason": self.reason });
        if let Some(ticket) = &self.ticket {
            body["ticket"] = json!(ticket);
        }
        // A span is sent as such: the server's clock counts, and this one may be wrong.
        if let Some(span) = self.until.span {
            body["access_seconds"] = span.as_seconds().into();
        }
        if let Some(until) = self.until.until {
            body["access_until"] = until.to_string().into();
        }
        if let Some(span) = self.answer_within {
            body["answer_within_seconds"] = span.as_seconds().into();
        }
        if let Some(by) = self.answer_by {
            body["answer_by"] = by.to_string().into();
        }
        body
    }
}

/// Looks at the request until somebody has decided, or nobody can any more.
async fn wait(
    context: &Context,
    client: &Client,
    request: Answer<AccessRequest>,
) -> Result<Answer<AccessRequest>, Failure> {
    let id = request.value.id;
    let decided = tokio::select! {
        decided = decided(context, client, request) => decided,
        _ = tokio::signal::ctrl_c() => Err(Failure::Other(anyhow::anyhow!("you stopped waiting for it"))),
    };
    decided.inspect_err(|_| note(&format!("The request stays. See it with: cloudlink access show {id}")))
}

async fn decided(
    context: &Context,
    client: &Client,
    mut request: Answer<AccessRequest>,
) -> Result<Answer<AccessRequest>, Failure> {
    let (mut heard_at, mut told_at, mut approvals) = (Instant::now(), None::<Instant>, usize::MAX);
    while request.value.state == "open" {
        let given = approvals_given(&request.value);
        if given != approvals || told_at.is_none_or(|told_at| told_at.elapsed() >= REMIND_EVERY) {
            context.output.note(&progress(&request.value, &context.output.here()));
            (told_at, approvals) = (Some(Instant::now()), given);
        }
        sleep(POLL_INTERVAL).await;
        match client.access_request(request.value.id).await {
            Ok(latest) => {
                heard_at = Instant::now();
                request = latest;
            }
            Err(failure) if failure.is_transient() && heard_at.elapsed() < UNREACHABLE_MAX => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(request)
}

fn approvals_given(request: &AccessRequest) -> usize {
    request.decisions.iter().filter(|decision| decision.decision == "approve").count()
}

fn progress(request: &AccessRequest, here: &Here) -> String {
    let given = approvals_given(request);
    let approvals = if request.approvals_needed > 1 {
        format!(" ({given} of {} approvals)", request.approvals_needed)
    } else {
        String::new()
    };
    format!(
        "Request {} is open{approvals}: it can be answered until {}, for access until {}.",
        request.id,
        here.full(request.answer_by),
        here.full(request.access_until)
    )
}

impl List {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let filter = AccessRequestFilter {
            state: self.state.clone(),
            device_id: match &self.device {
                Some(device) => Some(resolve::device(&client, device).await?.value.id),
                None => None,
            },
            tenant_id: match &self.tenant {
                Some(tenant) => Some(match tenant.parse() {
                    Ok(id) => id,
                    Err(_) => resolve::tenant(&client, tenant).await?.value.id,
                }),
                None => None,
            },
        };
        let list = client.access_requests(self.limit.items(), &filter).await?;
        let names = if context.output.json { Names::default() } else { Names::of_requests(&client, &list.items).await };
        context.list(&list, || table(&list.items, &names, &context.output.here()))
    }
}

impl Approve {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let devices = resolve::device_ids(&client, &self.devices).await?;
        let until = match self.span {
            // What is approved is a moment; one that is wrong by this machine's clock is shown in the answer.
            Some(span) => Some(
                context
                    .output
                    .here()
                    .now
                    .checked_add(span.as_duration())
                    .map_err(|_| Failure::Usage("that is beyond all calendars".to_owned()))?,
            ),
            None => self.until,
        };
        let body = match &self.sign_with {
            Some(path) => self.signed_body(context, &client, path, devices, until).await?,
            None => self.body(&devices, until),
        };
        let request = client.access_request_answer(id(&self.request)?, "approve", body).await?;
        if request.value.state == "open" {
            context.output.note("Your approval is noted. Somebody else of your tenant must approve, too.");
        }
        show(context, &client, request).await
    }

    /// What is asked for, or less of it, signed.
    async fn signed_body(
        &self,
        context: &Context,
        client: &Client,
        path: &Path,
        devices: Vec<Uuid>,
        until: Option<Timestamp>,
    ) -> Result<Value, Failure> {
        let key = signing::private_key(path)?;
        let request = client.access_request(id(&self.request)?).await?.value;
        let ends_at = until.map_or(request.access_until, |until| until.min(request.access_until));
        let mut statement = match request.extends_grant_id {
            Some(grant) if self.scopes.is_empty() && devices.is_empty() => {
                signed_before(&client.grant(grant).await?.value, grant, &key, &self.keys)?
            }
            Some(_) => return Err(Failure::Usage("of a later end, only the time can be less".to_owned())),
            None => self.new_statement(client, request, devices).await?,
        };
        statement.signed_at = signing::statement_time(clock::now())?;
        statement.ends_at = signing::statement_time(ends_at)?;
        let text = sign(context, client, &statement, &key).await?;
        let mut body = json!({ "statement": text });
        if let Some(comment) = &self.comment {
            body["comment"] = json!(comment);
        }
        Ok(body)
    }

    /// It begins no later than the grant will, whatever this machine's clock says.
    async fn new_statement(
        &self,
        client: &Client,
        request: AccessRequest,
        devices: Vec<Uuid>,
    ) -> Result<GrantStatement, Failure> {
        let tenant = client.me().await?.value.tenant_id.ok_or_else(|| {
            Failure::Usage("only a customer's own people sign grants, and you belong to no customer".to_owned())
        })?;
        let asked = request
            .device_ids
            .ok_or_else(|| Failure::Usage("this request cannot be signed: only what names its devices".to_owned()))?;
        Ok(GrantStatement {
            tenant,
            grant: Uuid::now_v7(),
            signed_at: signing::statement_time(clock::now())?,
            starts_at: signing::statement_time(request.starts_at.unwrap_or(request.created_at))?,
            ends_at: signing::statement_time(request.access_until)?,
            scopes: each_once(if self.scopes.is_empty() { request.scopes } else { self.scopes.clone() }),
            devices: each_once(if devices.is_empty() { asked } else { devices }),
            operators: request.operator_ids,
            reason: request.reason,
            request: Some(request.id),
        })
    }

    fn body(&self, devices: &[Uuid], until: Option<Timestamp>) -> Value {
        let mut body = json!({});
        if !self.scopes.is_empty() {
            body["scopes"] = json!(self.scopes);
        }
        if !devices.is_empty() {
            body["device_ids"] = json!(devices);
        }
        if let Some(until) = until {
            body["access_until"] = until.to_string().into();
        }
        if let Some(comment) = &self.comment {
            body["comment"] = json!(comment);
        }
        body
    }
}

pub(super) async fn show(context: &Context, client: &Client, request: Answer<AccessRequest>) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(&request.json);
    }
    let names = Names::of_requests(client, std::slice::from_ref(&request)).await;
    context.output.table(&record(&request.value, &names, &context.output.here()))
}

fn table(requests: &[Answer<AccessRequest>], names: &Names, here: &Here) -> Table {
    let header = ["STATE", "ANSWER BY", "ACCESS UNTIL", "SCOPES", "DEVICES", "BY", "REASON", "ID"];
    let mut table = Table::new(&header).whole(7);
    for Answer { value, .. } in requests {
        table.row(vec![
            state(value),
            here.short(value.answer_by).into(),
            here.short(value.access_until).into(),
            value.scopes.join(", ").into(),
            devices(value, names).into(),
            names.name(value.requested_by).into(),
            value.reason.clone().into(),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(request: &AccessRequest, names: &Names, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("request", request.id.to_string());
    table.field("state", state(request));
    match (request.kind.as_str(), request.extends_grant_id) {
        ("extension", Some(grant)) => table.field("is about", format!("a later end of grant {grant}")),
        ("grant", _) => table.field("is about", "a grant that your tenant gives by itself"),
        _ => {}
    }
    table.field("scopes", request.scopes.join(", "));
    table.field("devices", devices(request, names));
    table.field(
        "operators",
        request.operator_ids.as_ref().map_or_else(|| "every operator".to_owned(), |ids| names.list(ids)),
    );
    if let Some(at) = request.starts_at {
        table.field("access from", here.full(at));
    }
    table.field("access until", here.full(request.access_until));
    table.field("answer by", here.full(request.answer_by));
    table.field("reason", request.reason.clone());
    if let Some(ticket) = &request.ticket {
        table.field("ticket", ticket.clone());
    }
    table.field("asked by", format!("{}, {}", names.name(request.requested_by), here.full(request.created_at)));
    if request.approvals_needed > 1 {
        table.field("approvals", format!("{} of {}", approvals_given(request), request.approvals_needed));
    }
    for decision in &request.decisions {
        let label = if decision.decision == "approve" { "approved by" } else { "denied by" };
        table.field(label, answered(decision, names, here));
    }
    if let Some(policy) = request.policy_id {
        table.field("approved by", format!("policy {policy}"));
    }
    if let Some(at) = request.closed_at {
        table.field("decided", here.full(at));
    }
    if let Some(grant) = request.grant_id {
        table.field("grant", grant.to_string());
    }
    table
}

fn answered(decision: &AccessDecision, names: &Names, here: &Here) -> String {
    let mut text = format!("{}, {}", names.name(decision.person_id), here.full(decision.at));
    let less = [
        decision.scopes.as_ref().map(|scopes| scopes.join(", ")),
        decision.device_ids.as_ref().map(|ids| format!("on {}", names.list(ids))),
        decision.access_until.map(|at| format!("until {}", here.full(at))),
    ];
    let less: Vec<_> = less.into_iter().flatten().collect();
    if !less.is_empty() {
        text += &format!("; only {}", less.join(", "));
    }
    if let Some(comment) = &decision.comment {
        text += &format!(": {comment}");
    }
    text
}

fn state(request: &AccessRequest) -> Cell {
    match request.state.as_str() {
        "open" => Cell::toned("open", Tone::Warn),
        "approved" => Cell::toned("approved", Tone::Good),
        "denied" => Cell::toned("denied", Tone::Bad),
        other => Cell::toned(other.replace('_', " "), Tone::Dim),
    }
}

fn devices(request: &AccessRequest, names: &Names) -> String {
    match (&request.device_ids, &request.selector) {
        (Some(ids), _) => names.list(ids),
        (None, Some(selector)) => device::selected(selector, request.selector_text.as_ref()),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        access: Access,
    }

    fn parse(line: &str) -> Result<Access, clap::Error> {
        Line::try_parse_from(format!("access {line}").split(' ')).map(|line| line.access)
    }

    #[test]
    fn spans_are_left_to_the_clock_of_the_server() {
        let line = "request --device gw-1 --scope shell:open --for 2h --answer-within 30m --reason test --ticket 4711";
        let Access::Request(request) = parse(line).unwrap() else { panic!("{line} asks for nothing") };
        let device = Uuid::from_u128(1);
        assert_eq!(
            request.body(&[device]),
            json!({"device_ids": [device], "scopes": ["shell:open"], "reason": "test", "ticket": "4711",
                   "access_seconds": 7200, "answer_within_seconds": 1800})
        );
    }

    #[test]
    fn an_approval_says_only_what_is_less() {
        let line = "approve 018f0000-0000-7000-8000-000000000001 --scope metrics:read --comment fine";
        let Access::Approve(approve) = parse(line).unwrap() else { panic!("{line} approves nothing") };
        assert_eq!(approve.body(&[], None), json!({"scopes": ["metrics:read"], "comment": "fine"}));
        let Access::Approve(approve) = parse("approve 018f0000-0000-7000-8000-000000000001").unwrap() else { panic!() };
        assert_eq!(approve.body(&[], None), json!({}));
    }

    #[rstest]
    #[case("request --scope s --for 1h --reason r")]
    #[case("request --device d --for 1h --reason r")]
    #[case("request --device d --scope s --reason r")]
    #[case("request --device d --scope s --for 1h")]
    #[case("request --device d --scope s --for 1h --until 2026-11-21T14:30:00Z --reason r")]
    #[case("request --device d --scope s --for 1h --answer-within 1h --answer-by 2026-11-21T14:30:00Z --reason r")]
    #[case("request --device d --scope s --until tomorrow --reason r")]
    #[case("approve")]
    #[case("approve r --for 1h --until 2026-11-21T14:30:00Z")]
    #[case("deny")]
    #[case("withdraw")]
    fn what_is_incomplete_or_contradictory_is_refused(#[case] line: &str) {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2);
    }

    fn request(changes: Value) -> AccessRequest {
        let mut json = json!({
            "id": "018f0000-0000-7000-8000-000000000001", "kind": "access", "requested_by": "018f0000-0000-7000-8000-000000000002",
            "operator_ids": ["018f0000-0000-7000-8000-000000000002"], "scopes": ["shell:open"],
            "device_ids": ["018f0000-0000-7000-8000-000000000003"], "selector": null, "reason": "stuck", "ticket": null,
            "state": "open", "created_at": "2026-11-21T14:00:00Z", "starts_at": null, "answer_by": "2026-11-21T14:30:00Z",
            "access_until": "2026-11-21T16:00:00Z", "approvals_needed": 2, "decisions": [], "closed_at": null, "grant_id": null,
            "extends_grant_id": null, "policy_id": null,
        });
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn both_times_are_shown_as_moments() {
        let here = Here { now: "2026-11-21T14:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let decisions = json!([{
            "person_id": "018f0000-0000-7000-8000-000000000004", "decision": "approve", "scopes": ["shell:open"], "device_ids": null,
            "access_until": "2026-11-21T15:00:00Z", "comment": "fine", "at": "2026-11-21T14:00:00Z",
        }]);
        let request = request(json!({"decisions": decisions}));
        let text = record(&request, &Names::default(), &here).render(false, None);
        for part in [
            "2026-11-21 14:30:00 UTC (in 30 min)",
            "2026-11-21 16:00:00 UTC (in 2 h)",
            "1 of 2",
            "only shell:open, until 2026-11-21 15:00:00 UTC (in 60 min): fine",
        ] {
            let part = part.replace("in 60 min", "in 1 h");
            assert!(text.contains(&part), "{part}: {text}");
        }
        let line = progress(&request, &here);
        assert!(
            line.contains("1 of 2 approvals") && line.contains("14:30:00 UTC") && line.contains("16:00:00 UTC"),
            "{line}"
        );
    }
}
