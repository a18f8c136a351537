//! Proofs: rounds in which devices of a node's own try to get around its isolation.

use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::super::Context;
use crate::argument::NewestLimit;
use crate::client::{Answer, Client, ProofFilter};
use crate::failure::Failure;
use crate::model::Proof;
use crate::output::{Cell, Here, Table, Tone};

/// How long the result of a round is waited for. One of every port takes some 20 s.
const WAIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Prove {
    /// Try each of the 65,535 ports, not only those that something listens on and a part of the others
    #[arg(long)]
    all_ports: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Proofs {
    /// Only those of this node
    #[arg(long)]
    node: Option<String>,
    /// Only those that came out so
    #[arg(long)]
    outcome: Option<Outcome>,
    /// Only those that began at this time or later, as in 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Only those that began before this time
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    #[command(flatten)]
    limit: NewestLimit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Outcome {
    /// What must not work did not, and what must did
    Proven,
    /// It could not be proven
    Failed,
    /// Something got through
    Leak,
}

impl Prove {
    /// Waits for the result; anything but `proven` is a failure.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let answer = client.proof_create(self.all_ports).await?;
        let answer = match answer.value.outcome {
            Some(_) => answer,
            None => wait(&client, answer.value.id).await?,
        };
        let (proof, output) = (&answer.value, &context.output);
        if output.json {
            output.json(&answer.json)?;
        } else {
            output.table(&record(proof, &output.here()))?;
            output.line("")?;
            output.table(&results(proof))?;
        }
        if proof.outcome.as_deref() == Some("proven") {
            return Ok(());
        }
        Err(Failure::Other(anyhow!("the isolation of {} is not proven", proof.node.as_deref().unwrap_or("the node"))))
    }
}

/// The round goes on: its result is there when it is over.
async fn wait(client: &Client, id: uuid::Uuid) -> Result<Answer<Proof>, Failure> {
    let deadline = Instant::now() + WAIT;
    loop {
        match client.proof(id).await {
            Err(failure) if failure.exit_code() == 4 && Instant::now() < deadline => sleep(LOOK_EVERY).await,
            found => return found,
        }
    }
}

impl Proofs {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let outcome = self.outcome.and_then(|outcome| outcome.to_possible_value());
        let filter = ProofFilter {
            node: self.node.clone(),
            outcome: outcome.map(|value| value.get_name().to_owned()),
            from: self.from,
            to: self.to,
        };
        let list = context.client()?.proofs(self.limit.items(), &filter).await?;
        context.list(&list, || table(&list.items, &context.output.here()))
    }
}

fn table(proofs: &[Answer<Proof>], here: &Here) -> Table {
    let mut table = Table::new(&["OUTCOME", "NODE", "WHEN", "WHY", "ATTEMPTS", "WRONG", "ID"]).whole(6);
    for Answer { value, .. } in proofs {
        let wrong = value.results.iter().filter(|result| result.wrong > 0).map(|result| result.kind.clone());
        let wrong = wrong.collect::<Vec<_>>().join(", ");
        table.row(vec![
            outcome(value),
            Cell::or_none(value.node.clone()),
            Cell::or_none(value.started_at.map(|at| here.local(at))),
            Cell::or_none(value.trigger.clone()),
            value.attempts.to_string().into(),
            Cell::or_none(Some(wrong).filter(|wrong| !wrong.is_empty())),
            value.id.to_string().into(),
        ]);
    }
    table
}

fn record(proof: &Proof, here: &Here) -> Table {
    let mut table = Table::record();
    table.field("outcome", outcome(proof));
    table.field("node", Cell::or_none(proof.node.clone()));
    table.field("began", Cell::or_none(proof.started_at.map(|at| here.full(at))));
    table.field("ended", Cell::or_none(proof.finished_at.map(|at| here.full(at))));
    table.field("attempts", proof.attempts.to_string());
    table.field("policy", Cell::or_none(proof.policy_hash.clone()));
    table.field("id", proof.id.to_string());
    table
}

/// A line a kind; below one that came out wrong, what was seen.
fn results(proof: &Proof) -> Table {
    let mut table = Table::new(&["TRIED", "MUST BE", "ATTEMPTS", "WRONG", "SEEN"]);
    for result in &proof.results {
        let wrong = match (result.wrong, result.must.as_str()) {
            (0, _) => Cell::new("0"),
            (wrong, "refused") => Cell::toned(wrong.to_string(), Tone::Bad),
            (wrong, _) => Cell::toned(wrong.to_string(), Tone::Warn),
        };
        let seen = Some(result.seen.join("; ")).filter(|seen| !seen.is_empty());
        let (kind, must) = (result.kind.replace('_', " "), result.must.clone());
        table.row(vec![kind.into(), must.into(), result.attempts.to_string().into(), wrong, Cell::or_none(seen)]);
    }
    table
}

fn outcome(proof: &Proof) -> Cell {
    let outcome = proof.outcome.clone().unwrap_or_default();
    let tone = match outcome.as_str() {
        "proven" => Tone::Good,
        "failed" => Tone::Warn,
        _ => Tone::Bad,
    };
    Cell::toned(outcome, tone)
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_came_of_each_kind_and_does_not_steer_the_terminal() {
        let proof: Proof = serde_json::from_value(json!({
            "id": "00000000-0000-0000-0000-000000000007", "node": "node-1", "trigger": "demand", "outcome": "leak",
            "started_at": "2026-11-21T10:00:00Z", "finished_at": "2026-11-21T10:00:02Z", "policy_hash": "abcd",
            "attempts": 21, "a field of a newer server": 1,
            "results": [
                {"kind": "internet", "must": "refused", "attempts": 20, "wrong": 1, "seen": ["UDP got \u{1b}out"]},
                {"kind": "link_port", "must": "possible", "attempts": 1, "wrong": 0},
            ],
        }))
        .unwrap();
        let here = Here { now: "2026-11-21T10:01:00Z".parse().unwrap(), zone: TimeZone::UTC };
        let text = format!("{}\n\n{}", record(&proof, &here).render(false, None), results(&proof).render(false, None));
        insta::assert_snapshot!(text, @r"
        outcome   leak
        node      node-1
        began     2026-11-21 10:00:00 UTC (1 min ago)
        ended     2026-11-21 10:00:02 UTC (58 s ago)
        attempts  21
        policy    abcd
        id        00000000-0000-0000-0000-000000000007

        TRIED      MUST BE   ATTEMPTS  WRONG  SEEN
        internet   refused   20        1      UDP got \u{1b}out
        link port  possible  1         0      -
        ");
        let listed = [Answer { value: proof, json: json!({}), etag: None }];
        insta::assert_snapshot!(table(&listed, &here).render(false, None), @r"
        OUTCOME  NODE    WHEN                     WHY     ATTEMPTS  WRONG     ID
        leak     node-1  2026-11-21 10:00:00 UTC  demand  21        internet  00000000-0000-0000-0000-000000000007
        ");
    }
}
