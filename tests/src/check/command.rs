//! Commands: each has one end, is begun at most once, and only while it may be.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use uuid::Uuid;

use super::evidence::{CommandRow, Evidence, GrantRow};
use super::{Fault, Figures, Limits};
use crate::history::{Entry, What};

/// What devices say of one command.
#[derive(Debug, Default)]
struct Told<'a> {
    /// The device, when, and under which grant it was told to be.
    begun: Vec<(Uuid, i64, Uuid)>,
    delivered: usize,
    ended: Option<(i64, &'a str)>,
    receipted: Option<u64>,
    was_sent_after_receipt: bool,
}

/// What the audit log says of one command.
#[derive(Clone, Copy, Debug, Default)]
struct Audited {
    finals: usize,
    has_late_result: bool,
}

pub(super) fn check(evidence: &Evidence, limits: &Limits, faults: &mut Vec<Fault>, figures: &mut Figures) {
    let (told, audited) = (told(&evidence.entries), audited(evidence));
    let grants: HashMap<Uuid, &GrantRow> = evidence.grants.iter().map(|grant| (grant.id, grant)).collect();
    let known: HashSet<Uuid> = evidence.commands.iter().map(|command| command.id).collect();

    faults.extend(
        evidence.asked.iter().filter(|asked| !known.contains(&asked.command)).map(|asked| Fault::Lost(asked.command)),
    );
    let mut unknown: Vec<_> =
        told.iter().filter(|(id, told)| !told.begun.is_empty() && !known.contains(*id)).map(|(id, _)| *id).collect();
    unknown.sort_unstable();
    faults.extend(unknown.into_iter().map(Fault::Unknown));

    // Whatever ended before has been told on a link that lasted, since all devices are there at the end of a run.
    let settled_us = evidence
        .samples
        .last()
        .map_or(i64::MIN, |sample| sample.from_us - i64::try_from(limits.presence.as_micros()).unwrap_or(i64::MAX));
    let nothing = Told::default();
    for command in &evidence.commands {
        let told = told.get(&command.id).unwrap_or(&nothing);
        let audited = audited.get(&command.id).copied().unwrap_or_default();
        let grant = grants.get(&command.grant).copied();
        count(command, grant, told, figures);
        check_end(command, told, audited, faults);
        if told.receipted.is_none() && told.ended.is_some_and(|(at_us, _)| at_us < settled_us) {
            faults.push(Fault::NotReceipted(command.id));
        }
        check_begin(command, told, faults);
        match grant {
            Some(grant) => check_grant(command, grant, told, limits, faults, figures),
            None => faults.push(Fault::NotGranted(command.id)),
        }
    }
}

fn told(entries: &[Entry]) -> HashMap<Uuid, Told<'_>> {
    let mut all = HashMap::<_, Told<'_>>::new();
    for Entry { at_us, device, what } in entries {
        match what {
            What::Delivered { command, epoch } => {
                let told = all.entry(*command).or_default();
                told.delivered += 1;
                told.was_sent_after_receipt |= told.receipted.is_some_and(|receipted| receipted < *epoch);
            }
            What::Begun { command, grant, .. } => {
                all.entry(*command).or_default().begun.push((*device, *at_us, *grant));
            }
            What::Ended { command, state } => all.entry(*command).or_default().ended = Some((*at_us, state)),
            What::Receipted { command, epoch } => all.entry(*command).or_default().receipted = Some(*epoch),
            What::Up { .. } | What::Down { .. } => {}
        }
    }
    all
}

fn audited(evidence: &Evidence) -> HashMap<Uuid, Audited> {
    let mut all = HashMap::<_, Audited>::new();
    for row in &evidence.audit {
        // Who cannot be read is found by the check of the chain, or is no entry of a command.
        let Ok(entry) = serde_json::from_str::<Value>(&row.entry) else { continue };
        let Some(command) = entry["subject"]["id"].as_str().and_then(|id| id.parse().ok()) else { continue };
        match entry["action"].as_str() {
            Some("command.finished") => all.entry(command).or_default().finals += 1,
            Some("command.late_result") => all.entry(command).or_default().has_late_result = true,
            _ => {}
        }
    }
    all
}

fn count(command: &CommandRow, grant: Option<&GrantRow>, told: &Told<'_>, figures: &mut Figures) {
    figures.commands += 1;
    figures.succeeded += usize::from(command.state == "succeeded");
    figures.unconfirmed += usize::from(command.state == "unconfirmed");
    figures.begun += usize::from(!told.begun.is_empty());
    figures.delivered_again += usize::from(told.delivered > 1);
    let over_us = grant.map(|grant| grant.revoked_us.unwrap_or(i64::MAX).min(grant.ends_us));
    let was_cut = matches!(command.state.as_str(), "cancelled" | "expired") && command.finished_us >= over_us;
    figures.ended_by_grant += usize::from(was_cut);
}

/// States in which, the API says, nothing was begun.
const NEVER_BEGUN: [&str; 3] = ["refused", "expired", "cancelled"];
/// States in which something was.
const BEGUN: [&str; 2] = ["succeeded", "failed"];

fn check_end(command: &CommandRow, told: &Told<'_>, audited: Audited, faults: &mut Vec<Fault>) {
    let state = command.state.as_str();
    let is_final = NEVER_BEGUN.contains(&state) || BEGUN.contains(&state) || state == "unconfirmed";
    if !is_final || command.finished_us.is_none() {
        faults.push(Fault::NotFinal(command.id, command.state.clone()));
        return;
    }
    if audited.finals != 1 {
        faults.push(Fault::NotOneEnd { command: command.id, finals: audited.finals });
    }
    if let (Some((_, ended)), Some(_)) = (told.ended, told.receipted)
        && ended != state
        && !audited.has_late_result
    {
        let (told, stored) = (ended.to_owned(), command.state.clone());
        faults.push(Fault::ResultLost { command: command.id, told, stored });
    }
    if told.was_sent_after_receipt {
        faults.push(Fault::SentAfterReceipt(command.id));
    }
}

fn check_begin(command: &CommandRow, told: &Told<'_>, faults: &mut Vec<Fault>) {
    let state = command.state.as_str();
    if told.begun.len() > 1 {
        faults.push(Fault::BegunTwice(command.id));
    }
    if told.begun.iter().any(|(device, ..)| *device != command.device) {
        faults.push(Fault::Foreign(command.id));
    }
    if !told.begun.is_empty() && NEVER_BEGUN.contains(&state) {
        faults.push(Fault::BegunAllTheSame(command.id, command.state.clone()));
    }
    if told.begun.is_empty() && BEGUN.contains(&state) {
        faults.push(Fault::NeverBegun(command.id, command.state.clone()));
    }
    let late_us = told.begun.iter().map(|(_, at_us, _)| at_us - command.expires_us).max();
    if let Some(late_us) = late_us.filter(|late_us| *late_us > 0) {
        faults.push(Fault::AfterExpiry { command: command.id, late_ms: late_us / 1_000 });
    }
}

fn check_grant(
    command: &CommandRow,
    grant: &GrantRow,
    told: &Told<'_>,
    limits: &Limits,
    faults: &mut Vec<Fault>,
    figures: &mut Figures,
) {
    let id = command.id;
    let scope = match command.kind.as_str() {
        "metrics.collect" => "metrics:read",
        "service.restart" => "service:restart",
        _ => "none",
    };
    let gives = grant.tenant == command.tenant
        && grant.scopes.iter().any(|given| given == scope)
        && grant.operators.as_ref().is_none_or(|operators| operators.contains(&command.requested_by))
        && grant.devices.as_ref().is_none_or(|devices| devices.contains(&command.device))
        && told.begun.iter().all(|(.., grant)| *grant == command.grant);
    if !gives {
        faults.push(Fault::NotGranted(id));
    }
    if let (Some(sent_us), Some(revoked_us)) = (command.sent_us, grant.revoked_us)
        && sent_us > revoked_us
    {
        faults.push(Fault::SentAfterRevocation(id));
    }
    for (_, at_us, _) in &told.begun {
        let (early_us, late_us) = (grant.starts_us - at_us, at_us - grant.ends_us);
        if early_us > 0 {
            faults.push(Fault::BeforeGrant { command: id, early_ms: early_us / 1_000 });
        }
        if late_us > 0 {
            faults.push(Fault::AfterGrant { command: id, late_ms: late_us / 1_000 });
        }
        if let Some(revoked_us) = grant.revoked_us {
            let late_ms = (at_us - revoked_us) / 1_000;
            figures.after_revocation_ms = figures.after_revocation_ms.max(late_ms);
            if u128::try_from(late_ms).is_ok_and(|late_ms| late_ms > limits.revocation.as_millis()) {
                faults.push(Fault::AfterRevocation { command: id, late_ms });
            }
        }
    }
}
