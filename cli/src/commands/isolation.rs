//! How devices are kept apart: its proofs, and the signed statements about it.

mod proof;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use cloudlink_certs::StatementKind;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Context;
use crate::failure::Failure;
use crate::model::{IsolationStatement, NodeDay};
use crate::output::{Cell, Here, Table, Tone, note};
use crate::resolve;
use crate::statement::{self, Verified};

#[derive(Debug, Subcommand)]
pub(crate) enum Isolation {
    /// Show the signed statement about a tenant's devices and one day
    Report {
        /// Whose, by name or id, for administrators; without it, your own
        #[arg(long)]
        tenant: Option<String>,
        /// A day in UTC, as in 2026-11-21, or `today`, which is not over yet
        #[arg(long, value_name = "DAY", default_value = "yesterday", value_parser = day)]
        day: Day,
        /// Write the signed statement to this file, to be kept and checked
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a signed statement without any server, and show what it says; exits with 1 if it is not to be believed
    ///
    /// The fleet's certificate (--ca) has to come from somebody you trust, and not with the statement.
    Check {
        /// The statement, `-` for standard input
        file: PathBuf,
    },
    /// Let the node that answers try at once to get around its isolation; exits with 1 if it is not proven
    Prove(proof::Prove),
    /// List what came of each time that nodes tried to get around their isolation, newest first
    Proofs(proof::Proofs),
}

impl Isolation {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Report { tenant, day, output } => report(context, tenant.as_deref(), *day, output.as_deref()).await,
            Self::Check { file } => check(context, file),
            Self::Prove(prove) => prove.run(context).await,
            Self::Proofs(proofs) => proofs.run(context).await,
        }
    }
}

/// Which day a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Day {
    Yesterday,
    Today,
    Of(Date),
}

impl Day {
    pub(super) fn date(self, now: Timestamp) -> Date {
        let today = now.to_zoned(TimeZone::UTC).date();
        match self {
            Self::Of(date) => date,
            Self::Today => today,
            Self::Yesterday => today.yesterday().unwrap_or(today),
        }
    }
}

pub(super) fn day(text: &str) -> Result<Day, String> {
    match text {
        "today" => Ok(Day::Today),
        "yesterday" => Ok(Day::Yesterday),
        // Ten characters: a time has a date in it as well.
        _ => text
            .parse()
            .ok()
            .filter(|_| text.len() == 10)
            .map(Day::Of)
            .ok_or_else(|| "expected a day, as in 2026-11-21, or `today` or `yesterday`".to_owned()),
    }
}

async fn report(context: &Context, tenant: Option<&str>, day: Day, output: Option<&Path>) -> Result<(), Failure> {
    let client = context.client()?;
    let tenant = match tenant {
        Some(tenant) => resolve::tenant(&client, tenant).await?.value.id,
        None => client
            .me()
            .await?
            .value
            .tenant_id
            .ok_or_else(|| Failure::Usage("whose?\nYou belong to no tenant: say which with --tenant".to_owned()))?,
    };
    let date = day.date(context.output.here().now);
    let answer = client.isolation_statement(tenant, date).await?;
    if let Some(path) = output {
        statement::write(path, &answer.value.statement)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if context.output.json {
        context.output.json(&answer.json)?;
    } else {
        show(context, &answer.value.content)?;
    }
    match output {
        Some(path) => note(&format!("Wrote {}: cloudlink isolation check {0} --ca FILE", path.display())),
        None => note("This is not signed; what is, and can be checked, is written to a file: --output"),
    }
    Ok(())
}

/// Says which check failed, or what the statement says.
fn check(context: &Context, file: &Path) -> Result<(), Failure> {
    let Verified { statement, authority } = statement::verify(context, StatementKind::Isolation, file)?;
    let json: Value = serde_json::from_str(&statement.content).context("the statement's content is not JSON")?;
    if context.output.json {
        return context.output.json(&json);
    }
    let content = understand(&json)?;
    show(context, &content)?;
    context.output.line("")?;
    context.output.line(&format!(
        "Valid: signed by spiffe://{}/statement, whose certificate the authority in {} issued, and unchanged since.",
        statement.certificate.trust_domain,
        authority.display()
    ))
}

fn understand(json: &Value) -> Result<IsolationStatement, Failure> {
    let content: IsolationStatement = serde::Deserialize::deserialize(json)
        .context("the statement is not what this version of cloudlink understands: see it with --json")?;
    Ok(content)
}

fn show(context: &Context, content: &IsolationStatement) -> Result<(), Failure> {
    let (output, here) = (&context.output, context.output.here());
    output.table(&summary(content, &here))?;
    for (title, table) in details(content, &here) {
        output.line("")?;
        output.line(title)?;
        output.table(&table)?;
    }
    if content.truncated {
        note("A list was too long for the statement, and has only its first lines.");
    }
    Ok(())
}

fn summary(content: &IsolationStatement, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("tenant", format!("{} ({})", content.tenant.name, content.tenant.id));
    table.field("day", format!("{} (UTC){}", content.day, if content.complete { "" } else { ", not over yet" }));
    table.field("conclusion", Cell::toned(content.conclusion.clone(), tone(&content.conclusion)));
    for reason in &content.reasons {
        table.field("because", reason.clone());
    }
    table.field("fleet", content.trust_domain.clone());
    table.field("made", here.full(content.made_at));
    table.field("version", content.version.to_string());
    table
}

fn tone(conclusion: &str) -> Tone {
    match conclusion {
        "proven" => Tone::Good,
        "proven_with_gaps" => Tone::Warn,
        "no_tunnels" => Tone::Plain,
        _ => Tone::Bad,
    }
}

/// What there is something to say about, with its title.
fn details(content: &IsolationStatement, here: &Here) -> Vec<(&'static str, Table)> {
    let mut nodes =
        Table::new(&["NODE", "PROVEN", "FAILED", "LEAKS", "ATTEMPTS", "FIRST", "LAST", "LONGEST GAP", "POLICIES"]);
    let mut drifts = Table::new(&["NODE", "KIND", "FOUND", "REPAIRED", "DIFFERENCES"]);
    for node in &content.nodes {
        nodes.row(node_row(node, here));
        for drift in &node.drifts {
            drifts.row(vec![
                node.node.clone().into(),
                drift.kind.clone().into(),
                here.local(drift.found_at).into(),
                Cell::or_none(drift.repaired_at.map(|at| here.local(at))),
                drift.differences.to_string().into(),
            ]);
        }
    }
    let mut drops = Table::new(&["DEVICE", "PACKETS", "REASON", "LAST"]);
    for drop in &content.drops {
        let cells = [drop.device_name.clone(), drop.packets.to_string(), drop.reason.clone(), here.local(drop.last_at)];
        drops.row(cells.into_iter().map(Cell::new).collect());
    }
    let mut quarantines = Table::new(&["DEVICE", "SINCE", "REASON"]);
    for quarantine in &content.quarantines {
        let cells = [quarantine.device_name.clone(), here.local(quarantine.at), quarantine.reason.clone()];
        quarantines.row(cells.into_iter().map(Cell::new).collect());
    }
    let mut openings = Table::new(&["DEVICE", "PORT", "OPENED", "ENDED", "BY", "REASON", "GRANT"]).whole(6);
    for opening in &content.openings {
        openings.row(vec![
            opening.device_name.clone().into(),
            opening.port.to_string().into(),
            Cell::or_none(opening.opened_at.map(|at| here.local(at))),
            Cell::or_none(opening.ended_at.map(|at| here.local(at))),
            Cell::or_none(opening.end_reason.clone()),
            opening.reason.clone().into(),
            opening.grant_id.to_string().into(),
        ]);
    }
    [
        (!content.nodes.is_empty(), "Proofs, on the nodes that carried tunnels of the tenant:", nodes),
        (content.nodes.iter().any(|node| !node.drifts.is_empty()), "Rules that differed from the policy:", drifts),
        (!content.drops.is_empty(), "Devices of the tenant that tried what they may not:", drops),
        (!content.quarantines.is_empty(), "Devices that were put into quarantine:", quarantines),
        (!content.openings.is_empty(), "Ports of devices that were opened for support:", openings),
    ]
    .into_iter()
    .filter_map(|(is_there, title, table)| is_there.then_some((title, table)))
    .collect()
}

fn node_row(node: &NodeDay, here: &Here) -> Vec<Cell> {
    let proofs = |outcome: &str| node.proofs.get(outcome).copied().unwrap_or(0);
    let bad = |count: u64, tone| if count == 0 { Cell::new("0") } else { Cell::toned(count.to_string(), tone) };
    vec![
        node.node.clone().into(),
        proofs("proven").to_string().into(),
        bad(proofs("failed"), Tone::Warn),
        bad(proofs("leak"), Tone::Bad),
        node.attempts.to_string().into(),
        Cell::or_none(node.first_proven_at.map(|at| here.local(at))),
        Cell::or_none(node.last_proven_at.map(|at| here.local(at))),
        format!("{} s", node.longest_gap_seconds).into(),
        node.policies.iter().map(|hash| hash.chars().take(12).collect()).collect::<Vec<String>>().join(" ").into(),
    ]
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use cloudlink_certs::statement::sign;
    use cloudlink_certs::{Authority, PrivateKey, Serial, Validity, profile};
    use rstest::rstest;
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn content() -> Value {
        json!({
            "version": 1, "trust_domain": "fleet.example", "day": "2026-11-21", "complete": false,
            "tenant": {"id": "00000000-0000-0000-0000-000000000001", "name": "Ho\u{1b}tel"},
            "made_at": "2026-11-21T14:00:00Z", "conclusion": "proven_with_gaps", "reasons": ["node-1: rules differed once"],
            "nodes": [{
                "node": "node-1", "carried": [{"from": "2026-11-21T00:00:00Z", "until": "2026-11-21T14:00:00Z"}],
                "proofs": {"proven": 840, "failed": 1, "leak": 0}, "attempts": 100_920,
                "first_proven_at": "2026-11-21T00:00:12Z", "last_proven_at": "2026-11-21T13:59:12Z",
                "longest_gap_seconds": 121, "policies": ["ab".repeat(32)], "leaks": [],
                "drifts": [{"kind": "rules", "found_at": "2026-11-21T09:00:00Z", "repaired_at": null,
                            "differences": 2}],
            }],
            "drops": [{"device_id": "00000000-0000-0000-0000-000000000002", "device_name": "lobby", "reason": "source",
                       "packets": 7, "first_at": "2026-11-21T10:00:00Z", "last_at": "2026-11-21T10:01:00Z"}],
            "quarantines": [], "truncated": false,
            "openings": [{"device_name": "lobby", "port": 80, "grant_id": "00000000-0000-0000-0000-000000000003",
                          "opened_at": "2026-11-21T11:00:00Z", "ended_at": null, "end_reason": null, "reason": "ticket 7"}],
            "a field of a newer server": true,
        })
    }

    fn rendered() -> String {
        let here = Here { now: "2026-11-21T14:00:00Z".parse().unwrap(), zone: TimeZone::UTC };
        let content = understand(&content()).unwrap();
        let mut text = summary(&content, &here).render(false, None);
        for (title, table) in details(&content, &here) {
            text += &format!("\n\n{title}\n{}", table.render(false, None));
        }
        text
    }

    #[test]
    fn says_what_is_in_a_statement_and_does_not_steer_the_terminal() {
        insta::assert_snapshot!(rendered(), @r"
        tenant      Ho\u{1b}tel (00000000-0000-0000-0000-000000000001)
        day         2026-11-21 (UTC), not over yet
        conclusion  proven_with_gaps
        because     node-1: rules differed once
        fleet       fleet.example
        made        2026-11-21 14:00:00 UTC (now)
        version     1

        Proofs, on the nodes that carried tunnels of the tenant:
        NODE    PROVEN  FAILED  LEAKS  ATTEMPTS  FIRST                    LAST                     LONGEST GAP  POLICIES
        node-1  840     1       0      100920    2026-11-21 00:00:12 UTC  2026-11-21 13:59:12 UTC  121 s        abababababab

        Rules that differed from the policy:
        NODE    KIND   FOUND                    REPAIRED  DIFFERENCES
        node-1  rules  2026-11-21 09:00:00 UTC  -         2

        Devices of the tenant that tried what they may not:
        DEVICE  PACKETS  REASON  LAST
        lobby   7        source  2026-11-21 10:01:00 UTC

        Ports of devices that were opened for support:
        DEVICE  PORT  OPENED                   ENDED  BY  REASON    GRANT
        lobby   80    2026-11-21 11:00:00 UTC  -      -   ticket 7  00000000-0000-0000-0000-000000000003
        ");
    }

    #[rstest]
    #[case("2026-11-21", Some(Day::Of(jiff::civil::date(2026, 11, 21))))]
    #[case("today", Some(Day::Today))]
    #[case("yesterday", Some(Day::Yesterday))]
    #[case("2026-11-31", None)]
    #[case("2026-11-21T00:00:00Z", None)]
    #[case("20261121", None)]
    #[case("", None)]
    fn a_day_is_a_date(#[case] text: &str, #[case] expected: Option<Day>) {
        assert_eq!(day(text).ok(), expected);
    }

    #[test]
    fn days_are_those_of_utc() {
        let now = "2026-11-21T23:30:00-03:00".parse().unwrap();
        assert_eq!(Day::Today.date(now), jiff::civil::date(2026, 11, 22));
        assert_eq!(Day::Yesterday.date(now), jiff::civil::date(2026, 11, 21));
    }

    fn key() -> PrivateKey {
        let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        PrivateKey::from_pkcs8_der(pkcs8.as_ref()).unwrap()
    }

    #[test]
    fn what_was_written_to_a_file_is_valid_and_no_byte_of_it_can_be_changed() {
        let valid = Validity::starting_at(datetime!(2026-11-01 00:00 UTC), profile::STATEMENT_LIFETIME).unwrap();
        let serial = Serial::from_random([1; 16]);
        let authority = Authority::create(key(), "Test", serial, valid).unwrap();
        let trust = cloudlink_certs::TrustAnchor::from_pem(authority.certificate_pem().as_bytes()).unwrap();
        let (key, trust_domain) = (key(), "fleet.example".parse().unwrap());
        let certificate = authority.issue_statement(&key.public_key(), &trust_domain, serial, valid).unwrap();
        let signed = sign(StatementKind::Isolation, &content(), &certificate, &key).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("statement.jws");
        for _ in 0..2 {
            statement::write(&path, &signed).unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let text = statement::read(&path).unwrap();
        let verified = statement::verify_text(&trust, StatementKind::Isolation, &text).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&verified.content).unwrap(), content());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            statement::verify_text(&trust, StatementKind::Isolation, &changed).unwrap_err();
        }
    }
}
