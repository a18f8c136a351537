//! Receipts: what was done under a grant, signed, and held against the audit log.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use cloudlink_certs::StatementKind;
use cloudlink_certs::receipt::{Entry, LINES_MAX, Receipt as Content};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Context;
use crate::audit::{Chain, LINE_BYTES_MAX};
use crate::failure::Failure;
use crate::model::AuditEntry;
use crate::output::note;
use crate::resolve;
use crate::statement::{self, Verified};

#[derive(Debug, Subcommand)]
pub(crate) enum Receipt {
    /// Show what was done under a grant that is over
    Show {
        /// Id of the grant
        grant: String,
        /// Write the signed receipt to this file, to be kept and verified
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a receipt without any server, and show what it says; exits with 1 if it is not to be believed
    ///
    /// The fleet's certificate (--ca) has to come from somebody you trust, and not with the receipt. With an export of the
    /// audit log, the log is checked as well, and each of the two against the other.
    Verify {
        /// The receipt, `-` for standard input
        file: PathBuf,
        /// An export of your tenant's audit log (cloudlink audit export), made when the receipt was there
        #[arg(long, value_name = "FILE")]
        audit: Option<PathBuf>,
    },
}

impl Receipt {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Show { grant, output } => show(context, resolve::id("grant", grant)?, output.as_deref()).await,
            Self::Verify { file, audit } => verify(context, file, audit.as_deref()),
        }
    }
}

async fn show(context: &Context, grant: Uuid, output: Option<&Path>) -> Result<(), Failure> {
    let statement = context.client()?.receipt(grant).await?.value.statement;
    if let Some(path) = output {
        statement::write(path, &statement).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    print(context, &unverified(&statement)?)?;
    match output {
        Some(path) => note(&format!("Wrote {}: cloudlink receipt verify {0} --ca FILE", path.display())),
        None => note("This is not signed; what is, and can be verified, is written to a file: --output"),
    }
    Ok(())
}

/// The content, believed because the server itself gave it.
fn unverified(statement: &str) -> anyhow::Result<String> {
    let content = statement.split('.').nth(1).context("the server's receipt has another form than is known")?;
    let content = BASE64URL_NOPAD.decode(content.as_bytes()).context("the server's receipt is not base64url")?;
    String::from_utf8(content).context("the server's receipt is not text")
}

fn print(context: &Context, content: &str) -> Result<(), Failure> {
    if context.output.json {
        let json: Value = serde_json::from_str(content).context("the receipt's content is not JSON")?;
        return context.output.json(&json);
    }
    context.output.lines(&understand(content)?.to_string())
}

fn understand(content: &str) -> anyhow::Result<Content> {
    serde_json::from_str(content)
        .context("the receipt is not what this version of cloudlink understands: see it with --json")
}

fn verify(context: &Context, file: &Path, audit: Option<&Path>) -> Result<(), Failure> {
    let Verified { statement, authority } = statement::verify(context, StatementKind::Receipt, file)?;
    let checked =
        match audit {
            Some(path) => {
                let receipt = understand(&statement.content)?;
                let export = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
                Some(compare(&receipt, BufReader::new(export)).with_context(|| {
                    format!("the receipt and the audit log in {} do not say the same", path.display())
                })?)
            }
            None => None,
        };
    print(context, &statement.content)?;
    if context.output.json {
        return Ok(());
    }
    let (signer, authority) = (&statement.certificate.trust_domain, authority.display());
    context.output.line("")?;
    context.output.line(&format!(
        "Valid: signed by spiffe://{signer}/statement, whose certificate the authority in {authority} issued, and unchanged since."
    ))?;
    context.output.line(&match checked {
        Some(entries) => {
            format!("The audit log is whole, and its {entries} entries about the grant are the receipt's.")
        }
        None => "Not held against the audit log: --audit FILE".to_owned(),
    })
}

/// Checks the chain of an export, that it has the receipt's entries and its head, and up to there no other about the grant.
/// Says how many they are.
fn compare(receipt: &Content, export: impl std::io::BufRead) -> anyhow::Result<usize> {
    let subjects: BTreeSet<Uuid> = receipt.subjects().collect();
    let mut chain = Chain::new(None, Some(receipt.audit.head.hash.parse()?));
    let mut expected = receipt.audit.entries.iter().peekable();
    let mut export = export;
    loop {
        let mut line = Vec::new();
        let length = export.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        ensure!(length <= LINE_BYTES_MAX, "a line is longer than {LINE_BYTES_MAX} bytes");
        chain.check_line(&line)?;
        let entry: AuditEntry = serde_json::from_slice(&line)?;
        if entry.seq > receipt.audit.head.seq {
            continue;
        }
        let inside: Value = serde_json::from_str(&entry.entry)?;
        match expected.peek() {
            Some(next) if next.seq == entry.seq => {
                same(next, &entry, &inside)?;
                expected.next();
            }
            // A list that is full ends before the log does. One that is not, and says that something was left out, does not
            // say where.
            None if receipt.audit.entries.len() >= LINES_MAX => {}
            Some(_) | None => ensure!(
                !is_about(&inside, receipt.grant.id, &subjects),
                "entry {} ({}) is about the grant, and the receipt does not name it",
                entry.seq,
                inside["action"]
            ),
        }
    }
    let verified = chain.finish()?;
    ensure!(verified.tenant == receipt.tenant.id, "the log is the one of tenant {}", verified.tenant);
    if let Some(missing) = expected.next() {
        bail!("the log has no entry {} ({:?})", missing.seq, missing.action);
    }
    Ok(receipt.audit.entries.len())
}

fn same(told: &Entry, found: &AuditEntry, inside: &Value) -> anyhow::Result<()> {
    let is_same = told.hash.eq_ignore_ascii_case(&found.hash) && inside["action"] == json!(told.action);
    ensure!(is_same, "entry {} is another one in the receipt than in the log", told.seq);
    Ok(())
}

fn is_about(entry: &Value, grant: Uuid, subjects: &BTreeSet<Uuid>) -> bool {
    let id = |value: &Value| value.as_str().and_then(|text| text.parse::<Uuid>().ok());
    id(&entry["subject"]["id"]).is_some_and(|id| subjects.contains(&id))
        || id(&entry["details"]["grant_id"]) == Some(grant)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::audit::Hash;

    const TENANT: Uuid = Uuid::from_u128(1);
    const GRANT: Uuid = Uuid::from_u128(2);
    const COMMAND: Uuid = Uuid::from_u128(3);

    /// A log: somebody else's grant, this one, a command under it, somebody else's again.
    fn log() -> Vec<Value> {
        let entries = [
            ("grant.created", Uuid::from_u128(9), json!({})),
            ("grant.created", GRANT, json!({})),
            ("command.created", COMMAND, json!({"grant_id": GRANT})),
            ("command.refused", Uuid::from_u128(8), json!({"grant_id": GRANT})),
            ("grant.revoked", Uuid::from_u128(9), json!({})),
        ];
        let mut hash = Hash::START;
        let lines = entries.into_iter().zip(1_u64..).map(|((action, subject, details), seq)| {
            let entry =
                json!({"tenant": TENANT, "seq": seq, "action": action, "subject": {"id": subject}, "details": details});
            let entry = entry.to_string();
            hash = hash.then(&entry);
            json!({"tenant_id": TENANT, "seq": seq, "entry": entry, "hash": hash.to_string()})
        });
        lines.collect()
    }

    /// With the entries of these numbers, and the log's end at the last one.
    fn receipt(log: &[Value], entries: &[usize]) -> Content {
        let named = |id: u128| json!({"id": Uuid::from_u128(id), "name": "n\u{1b}"});
        let at = "2026-11-22T10:00:00Z";
        let entry = |seq: usize| {
            let line = &log[seq - 1];
            let inside: Value = serde_json::from_str(line["entry"].as_str().unwrap()).unwrap();
            json!({"seq": seq, "hash": line["hash"], "action": inside["action"]})
        };
        serde_json::from_value(json!({
            "version": 1, "trust_domain": "example", "made_at": at, "tenant": named(1),
            "grant": {"id": GRANT, "created_by": named(5), "reason": "r", "scopes": ["device:reboot"], "operators": null,
                      "devices": [named(6)], "selector": null, "created_at": at, "starts_at": at, "ends_at": at,
                      "revoked_at": null, "revoked_by": null, "signing_key_id": null},
            "request": null,
            "commands": [{"id": COMMAND, "device": named(6), "requested_by": named(7), "kind": "device.reboot", "arguments": {},
                          "reason": "r", "state": "succeeded", "code": null, "message": null, "created_at": at, "finished_at": at}],
            "sessions": [], "openings": [], "cut_off_ms_max": null,
            "audit": {"entries": entries.iter().map(|seq| entry(*seq)).collect::<Vec<_>>(), "head": entry(log.len())},
            "omitted": 0,
        }))
        .unwrap()
    }

    fn export(log: &[Value]) -> Vec<u8> {
        log.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes()
    }

    #[test]
    fn a_log_and_a_receipt_that_say_the_same_are_believed() {
        let log = log();
        assert_eq!(compare(&receipt(&log, &[2, 3, 4]), &export(&log)[..]).unwrap(), 3);
    }

    #[rstest]
    #[case::entry_left_out(&[2, 4], "entry 3")]
    #[case::refusal_left_out(&[2, 3], "entry 4")]
    fn an_entry_that_the_receipt_lacks_is_found(#[case] entries: &[usize], #[case] said: &str) {
        let log = log();
        let error = compare(&receipt(&log, entries), &export(&log)[..]).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }

    #[test]
    fn a_receipt_that_says_that_something_is_missing_leaves_out_no_entry() {
        let log = log();
        let told = Content { omitted: 1, ..receipt(&log, &[2, 4]) };
        assert!(compare(&told, &export(&log)[..]).unwrap_err().to_string().contains("entry 3"));
        let told = Content { omitted: 1, ..receipt(&log, &[2, 3, 4]) };
        assert_eq!(compare(&told, &export(&log)[..]).unwrap(), 3);
    }

    #[test]
    fn a_log_that_was_cut_or_changed_is_found() {
        let log = log();
        let told = receipt(&log, &[2, 3, 4]);
        compare(&told, &export(&log[..4])[..]).unwrap_err();
        let mut changed = log.clone();
        changed[0]["entry"] = changed[0]["entry"].as_str().unwrap().replace("created", "revoked").into();
        compare(&told, &export(&changed)[..]).unwrap_err();
        let mut other = told.clone();
        other.audit.entries[0].action = "grant.extended".to_owned();
        assert!(compare(&other, &export(&log)[..]).unwrap_err().to_string().contains("entry 2"));
        let mut beyond = told;
        beyond.audit.entries.push(Entry { seq: 5, ..beyond.audit.entries[2].clone() });
        compare(&beyond, &export(&log)[..]).unwrap_err();
    }

    #[test]
    fn the_readable_form_steers_no_terminal() {
        let log = log();
        let text = receipt(&log, &[2, 3, 4]).to_string();
        assert!(text.contains("device.reboot") && text.contains("succeeded") && !text.contains('\u{1b}'), "{text}");
    }
}
