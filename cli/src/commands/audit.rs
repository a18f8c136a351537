//! The audit log: reading, exporting and verifying it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use crate::argument::NewestLimit;
use crate::audit::{Chain, Hash, LINE_BYTES_MAX, Verified};
use crate::client::{Answer, Lines};
use crate::failure::Failure;
use crate::model::AuditEntry;
use crate::output::{Here, Table, note};
use crate::resolve;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Audit {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Whose, by name or id, for administrators; without it, the platform's own
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    limit: NewestLimit,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write the whole log as NDJSON, checking it on the way
    Export {
        /// Whose, by name or id, for administrators; without it, the platform's own
        #[arg(long)]
        tenant: Option<String>,
        /// Write to this file, which only appears when it is complete; without it, to standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check an export without any server: nothing removed, moved or changed
    Verify {
        /// The export, `-` for standard input
        file: PathBuf,
        /// A head hash that was noted before: it must be in the chain, or its end was cut off
        #[arg(long, value_name = "HASH")]
        head: Option<Hash>,
        /// The hash of the entry before the first one, for an export that does not begin at entry 1
        #[arg(long, value_name = "HASH")]
        after: Option<Hash>,
    },
}

impl Audit {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match &self.verb {
            None => self.list.run(context).await,
            Some(Verb::Export { tenant, output }) => export(context, tenant.as_deref(), output.as_deref()).await,
            Some(Verb::Verify { file, head, after }) => verify(context, file, *head, *after),
        }
    }
}

impl List {
    async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let tenant = match &self.tenant {
            Some(tenant) => Some(resolve::tenant(&client, tenant).await?.value.id),
            None => None,
        };
        let list = client.audit(self.limit.items(), tenant).await?;
        context.list(&list, || table(&list.items, &context.output.here()))
    }
}

fn table(entries: &[Answer<AuditEntry>], here: &Here) -> Table {
    let mut table = Table::new(&["NO", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAILS"]).whole(0).whole(1);
    for Answer { value, .. } in entries {
        let entry: Value = serde_json::from_str(&value.entry).unwrap_or_default();
        let at = entry["at"].as_str().and_then(|at| at.parse().ok());
        table.row(vec![
            value.seq.to_string().into(),
            at.map_or_else(|| text(&entry["at"]), |at| here.local(at)).into(),
            actor(&entry["actor"]).into(),
            text(&entry["action"]).into(),
            format!("{} {}", text(&entry["subject"]["kind"]), text(&entry["subject"]["id"])).into(),
            details(&entry["details"]).into(),
        ]);
    }
    table
}

/// People by their name; what is no person says so: `device gw-1`, `server`.
fn actor(actor: &Value) -> String {
    let kind = text(&actor["kind"]);
    let name = [&actor["name"], &actor["id"]].into_iter().map(text).find(|name| !name.is_empty()).unwrap_or_default();
    if name.is_empty() || name == kind {
        return kind;
    }
    if kind == "person" { name } else { format!("{kind} {name}") }
}

/// `reason=stuck service=nginx`; what is empty says nothing and is left out.
fn details(details: &Value) -> String {
    let Some(fields) = details.as_object() else { return text(details) };
    let filled = fields.iter().map(|(name, value)| (name, text(value))).filter(|(_, value)| !is_empty(value));
    filled.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn is_empty(value: &str) -> bool {
    matches!(value, "" | "{}" | "[]")
}

/// A JSON string as its text, another value as JSON, nothing as nothing.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_null() => String::new(),
        None => value.to_string(),
    }
}

async fn export(context: &Context, tenant: Option<&str>, output: Option<&Path>) -> Result<(), Failure> {
    let client = context.client()?;
    let tenant = match tenant {
        Some(tenant) => Some(resolve::tenant(&client, tenant).await?.value.id),
        None => None,
    };
    let lines = Lines::new(client.audit_export(tenant).await?);
    let verified = match output {
        None => copy(lines, &mut BufWriter::new(io::stdout().lock())).await?,
        Some(path) => export_to(lines, path).await?,
    };
    note(&summary(&verified, &context.output.here()));
    note(&format!("Keep the head hash apart from the export: cloudlink audit verify --head {} FILE", verified.head));
    Ok(())
}

/// Into a file that only appears once it is complete.
async fn export_to(lines: Lines, path: &Path) -> Result<Verified, Failure> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = async {
        let file =
            File::create_new(&temporary).with_context(|| format!("{} cannot be written", temporary.display()))?;
        let mut writer = BufWriter::new(file);
        let verified = copy(lines, &mut writer).await?;
        let file = writer.into_inner().map_err(|error| Failure::of_output(error.into_error()))?;
        file.sync_all().map_err(Failure::of_output)?;
        std::fs::rename(&temporary, path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(verified)
    }
    .await;
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Copies the lines as they came, byte for byte, and checks them.
async fn copy(mut lines: Lines, to: &mut impl Write) -> Result<Verified, Failure> {
    let mut chain = Chain::new(None, None);
    while let Some(line) = lines.next_line(LINE_BYTES_MAX).await? {
        chain.check_line(&line).map_err(anyhow::Error::new).context("the server's audit log is broken")?;
        to.write_all(&line).and_then(|()| to.write_all(b"\n")).map_err(Failure::of_output)?;
    }
    to.flush().map_err(Failure::of_output)?;
    let verified = chain.finish().map_err(anyhow::Error::new).context("the server's audit log is broken")?;
    Ok(verified)
}

fn verify(context: &Context, file: &Path, head: Option<Hash>, after: Option<Hash>) -> Result<(), Failure> {
    let verified = if file == Path::new("-") {
        verify_reader(&mut io::stdin().lock(), head, after)
    } else {
        let file = File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
        verify_reader(&mut BufReader::new(file), head, after)
    };
    let verified = verified.context("the audit log does not verify")?;
    if context.output.json {
        return context.output.json(&json!({
            "tenant_id": verified.tenant, "entries": verified.entries,
            "first_seq": verified.first.seq, "last_seq": verified.last.seq,
            "first_at": verified.first.at.map(|at| at.to_string()), "last_at": verified.last.at.map(|at| at.to_string()),
            "head": verified.head.to_string(), "noted_head_seq": verified.noted_at,
        }));
    }
    for line in summary(&verified, &context.output.here()).lines() {
        context.output.line(line)?;
    }
    match verified.noted_at {
        Some(seq) => context.output.line(&format!("The noted head is entry {seq}: nothing up to it is missing.")),
        None => {
            note("Whether entries are missing at the end, only a head hash that was noted before can tell: --head");
            Ok(())
        }
    }
}

fn verify_reader(reader: &mut impl BufRead, head: Option<Hash>, after: Option<Hash>) -> anyhow::Result<Verified> {
    let mut chain = Chain::new(after, head);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read =
            reader.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).context("the export cannot be read")?;
        if read == 0 {
            return Ok(chain.finish()?);
        }
        anyhow::ensure!(line.len() <= LINE_BYTES_MAX, "a line is longer than {LINE_BYTES_MAX} bytes");
        chain.check_line(line.strip_suffix(b"\n").unwrap_or(&line))?;
    }
}

fn summary(verified: &Verified, here: &Here) -> String {
    let time = |at: Option<jiff::Timestamp>| at.map_or_else(|| "an unknown time".to_owned(), |at| here.full(at));
    format!(
        "Verified {} entries of tenant {}, {} to {}, nothing removed, moved or changed.\n\
         From {} to {}.\n\
         Head: {}",
        verified.entries,
        verified.tenant,
        verified.first.seq,
        verified.last.seq,
        time(verified.first.at),
        time(verified.last.at),
        verified.head
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(json!({"kind": "person", "id": "p-1", "name": "tina"}), "tina")]
    #[case(json!({"kind": "person", "id": "p-1", "name": ""}), "p-1")]
    #[case(json!({"kind": "device", "id": "d-1", "name": "gw-1"}), "device gw-1")]
    #[case(json!({"kind": "device", "id": "d-1", "name": ""}), "device d-1")]
    #[case(json!({"kind": "device", "id": "d-1"}), "device d-1")]
    #[case(json!({"kind": "server", "id": null, "name": ""}), "server")]
    #[case(json!({"kind": "server", "id": null, "name": "node-1"}), "server node-1")]
    #[case(Value::Null, "")]
    fn says_who_did_it_also_when_nobody_did(#[case] entry: Value, #[case] expected: &str) {
        assert_eq!(actor(&entry), expected);
    }

    #[test]
    fn leaves_out_details_that_say_nothing() {
        let entry = json!({"code": "", "arguments": {}, "revoked_at": null, "reason": "stuck", "percent": 0});
        assert_eq!(details(&entry), "percent=0 reason=stuck");
    }
}
