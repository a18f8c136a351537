//! What must hold after every act, whatever the model says: told from the tables before and after it.

use uuid::Uuid;

use super::act::Act;
use super::rows::{Command, Grant, Ids, Look, Request, Rows, Stay};
use super::world::Done;

/// What must not be, in words.
pub(super) fn violations(act: &Act, done: &Done, before: &Look, after: &Look, now: i64) -> Vec<String> {
    let mut found = done.wrong.clone();
    let step = Step { act, before: &before.rows, after: &after.rows, now };
    step.commands(&mut found);
    step.stays(&mut found);
    step.grants(&mut found);
    step.requests(&mut found);
    step.ends(&mut found);
    step.node(done, &mut found);
    audit(after, &mut found);
    found
}

struct Step<'a> {
    act: &'a Act,
    before: &'a Rows,
    after: &'a Rows,
    now: i64,
}

impl Step<'_> {
    /// Whether, at this moment, this grant lets this operator do this on this device.
    fn covers(&self, grant: Uuid, device: Uuid, by: Uuid, scope: &str) -> bool {
        let rows = self.after;
        let (Some(grant), Some(device_row), Some(person)) =
            (rows.grants.get(&grant), rows.devices.get(&device), rows.people.get(&by))
        else {
            return false;
        };
        let names_device = grant.devices.as_ref().map_or(device_row.is_north, |devices| devices.contains(&device));
        let names_operator = grant.operators.as_ref().is_none_or(|operators| operators.contains(&by));
        is_in_force(grant, self.now)
            && grant.tenant == device_row.tenant
            && names_device
            && names_operator
            && grant.scopes.contains(scope)
            && !device_row.is_revoked
            && person.is_active
            && person.role == "operator"
    }

    fn covers_stay(&self, stay: &Stay) -> bool {
        self.covers(stay.grant, stay.device, stay.by, &stay.scope) && !self.after.devices[&stay.device].is_quarantined
    }

    fn covers_command(&self, command: &Command) -> bool {
        let scope = if command.kind == "metrics.collect" { "metrics:read" } else { "service:restart" };
        self.covers(command.grant, command.device, command.by, scope)
    }

    fn commands(&self, found: &mut Vec<String>) {
        for (id, command) in &self.after.commands {
            let Some(earlier) = self.before.commands.get(id) else {
                if !self.covers_command(command) {
                    found.push(format!("command {id} was made without a grant for it"));
                }
                if command.expires > self.after.grants[&command.grant].end || command.expires <= self.now {
                    found.push(format!("command {id} may begin until after its grant's end, or never could"));
                }
                continue;
            };
            if !earlier.is_open() && earlier != command {
                found.push(format!("command {id} was {} and is {} now", earlier.state, command.state));
            }
            let is_sent = command.epoch != earlier.epoch;
            if is_sent && (!self.covers_command(command) || command.expires <= self.now || earlier.is_called_back) {
                found.push(format!("command {id} was sent without a grant for it"));
            }
            let has_begun = matches!(command.state.as_str(), "accepted" | "running" | "succeeded" | "failed");
            if has_begun && (command.epoch.is_none() || earlier.state == "queued") {
                found.push(format!("command {id} has begun and was never sent"));
            }
        }
    }

    fn stays(&self, found: &mut Vec<String>) {
        for (what, before, after) in [
            ("session", &self.before.sessions, &self.after.sessions),
            ("opening", &self.before.openings, &self.after.openings),
        ] {
            for (id, stay) in after {
                match before.get(id) {
                    None if !self.covers_stay(stay) => {
                        found.push(format!("{what} {id} was made without a grant for it"));
                    }
                    Some(earlier) if earlier.end.is_some() && earlier != stay => {
                        found.push(format!("{what} {id} had ended and has changed"));
                    }
                    None | Some(_) => {}
                }
                if what == "opening" && stay.expires > self.after.grants[&stay.grant].end {
                    found.push(format!("opening {id} goes on after its grant"));
                }
            }
        }
    }

    fn grants(&self, found: &mut Vec<String>) {
        for (id, grant) in &self.after.grants {
            let Some(earlier) = self.before.grants.get(id) else {
                self.new_grant(*id, grant, found);
                continue;
            };
            let unchanged =
                Grant { end: earlier.end, is_revoked: earlier.is_revoked, is_told: earlier.is_told, ..grant.clone() };
            if unchanged != *earlier || earlier.is_revoked && !grant.is_revoked || grant.end < earlier.end {
                found.push(format!("grant {id} was {earlier:?}"));
            }
            if grant.end > earlier.end {
                self.extension(*id, grant, earlier, found);
            }
            if grant.is_revoked && !earlier.is_revoked && !self.is_by_tenant(grant.tenant) {
                found.push(format!("grant {id} was revoked by somebody else"));
            }
        }
        if self.before.grants.keys().any(|id| !self.after.grants.contains_key(id)) {
            found.push("a grant has gone".to_owned());
        }
    }

    fn new_grant(&self, id: Uuid, grant: &Grant, found: &mut Vec<String>) {
        if grant.start < self.now {
            found.push(format!("grant {id} begins in the past"));
        }
        let Some(request) = grant.request else {
            // One person alone.
            if !self.is_by_tenant(grant.tenant) || self.before.tenants[&grant.tenant].needed != 1 {
                found.push(format!("grant {id} was made by one who may not"));
            }
            return;
        };
        let Some(request) = self.after.requests.get(&request).filter(|request| request.grant == Some(id)) else {
            found.push(format!("grant {id} comes of nothing"));
            return;
        };
        let is_no_wider = grant.scopes.is_subset(&request.scopes)
            && grant
                .devices
                .as_ref()
                .is_none_or(|given| request.devices.as_ref().is_some_and(|asked| given.is_subset(asked)))
            && (grant.devices.is_some() || request.devices.is_none())
            && grant.end <= request.until;
        if !is_no_wider {
            found.push(format!("grant {id} is wider than what was asked for"));
        }
        let operators =
            if request.kind == "access" { Some(Ids::from([request.by])) } else { request.operators.clone() };
        if grant.operators != operators {
            found.push(format!("grant {id} is for somebody else"));
        }
        match grant.policy {
            Some(policy) => self.by_policy(id, grant, policy, found),
            None => self.approved(id, grant, request, found),
        }
    }

    fn by_policy(&self, id: Uuid, grant: &Grant, policy: Uuid, found: &mut Vec<String>) {
        let is_in_force = self.before.policies.get(&policy).is_some_and(|policy| {
            let is_approved =
                self.before.tenants[&grant.tenant].needed < 2 || policy.approved_by.is_some_and(|by| by != policy.by);
            !policy.is_revoked
                && is_approved
                && policy.tenant == grant.tenant
                && grant.scopes.is_subset(&policy.scopes)
                && grant.end - grant.start <= policy.max_seconds * super::clock::SECOND
        });
        if !is_in_force {
            found.push(format!("grant {id} was made by a policy that does not allow it"));
        }
    }

    /// By as many different people as are needed, each of whom gave at least that.
    fn approved(&self, id: Uuid, grant: &Grant, request: &Request, found: &mut Vec<String>) {
        let needed = request.needed.max(self.before.tenants[&request.tenant].needed);
        let gave_it = request.decisions.iter().filter(|(person, decision)| {
            let person = &self.after.people[person];
            decision.approves
                && person.is_active
                && person.role == "tenant"
                && person.tenant == Some(request.tenant)
                && (needed < 2 || person.is_human)
                && decision.until.is_none_or(|until| grant.end <= until)
                && (request.extends.is_some()
                    || decision.scopes.as_ref().is_none_or(|given| grant.scopes.is_subset(given)))
                && (request.extends.is_some()
                    || decision
                        .devices
                        .as_ref()
                        .is_none_or(|given| grant.devices.as_ref().is_some_and(|granted| granted.is_subset(given))))
        });
        if gave_it.count() < needed {
            found.push(format!("grant {id} was not approved by {needed}"));
        }
    }

    fn extension(&self, id: Uuid, grant: &Grant, earlier: &Grant, found: &mut Vec<String>) {
        if earlier.is_revoked || earlier.is_told || earlier.end <= self.now {
            found.push(format!("grant {id} was over, and goes on"));
        }
        let approves_it = |(request, row): (&Uuid, &Request)| {
            row.extends == Some(id)
                && row.outcome.as_deref() == Some("approved")
                && self.before.requests.get(request).is_some_and(|row| row.outcome.is_none())
                && row.until >= grant.end
        };
        match self.after.requests.iter().find(|entry| approves_it(*entry)) {
            Some((_, request)) => self.approved(id, grant, request, found),
            None if self.is_by_tenant(grant.tenant) && self.before.tenants[&grant.tenant].needed == 1 => {}
            None => found.push(format!("grant {id} was extended by one who may not")),
        }
    }

    /// Whether somebody acts who is of this tenant's people, and may.
    fn is_by_tenant(&self, tenant: Uuid) -> bool {
        let (Act::Grant { who, .. }
        | Act::Extend { who, .. }
        | Act::Revoke { who, .. }
        | Act::RevokePolicy { who, .. }) = self.act
        else {
            return false;
        };
        let person = &self.before.people[who];
        person.is_active && person.role == "tenant" && person.tenant == Some(tenant)
    }

    fn requests(&self, found: &mut Vec<String>) {
        for (id, request) in &self.after.requests {
            let Some(earlier) = self.before.requests.get(id) else { continue };
            if earlier.outcome.is_some() && (&earlier.outcome, earlier.grant) != (&request.outcome, request.grant) {
                found.push(format!("request {id} has ended twice"));
            }
            if earlier.is_told && request.outcome.is_some() {
                found.push(format!("request {id} was said to have expired, and is {:?}", request.outcome));
            }
            let is_answered = request.outcome.is_some() && earlier.outcome.is_none();
            if is_answered && self.now >= request.answer_by.min(request.until) {
                found.push(format!("request {id} was answered after its time"));
            }
            if is_answered
                && request.outcome.as_deref() == Some("withdrawn")
                && !matches!(self.act, Act::Withdraw { who, .. } if *who == request.by)
            {
                found.push(format!("request {id} was withdrawn by somebody else"));
            }
        }
    }

    /// What a revocation or a shut-out ends, it ends in the same transaction; what time ends, the next look does.
    fn ends(&self, found: &mut Vec<String>) {
        let is_swept = matches!(self.act, Act::Sweep);
        for (id, command) in self.after.commands.iter().filter(|(_, command)| command.state == "queued") {
            if !self.covers_command(command) && (is_swept || !self.only_time_ended(command.grant)) {
                found.push(format!("command {id} still waits, without a grant for it"));
            }
        }
        for stay in self.after.sessions.iter().chain(&self.after.openings).filter(|(_, stay)| stay.end.is_none()) {
            if !self.covers_stay(stay.1) && (is_swept || !self.only_time_ended(stay.1.grant)) {
                found.push(format!("{} goes on without a grant for it", stay.0));
            }
        }
    }

    fn only_time_ended(&self, grant: Uuid) -> bool {
        let grant = &self.after.grants[&grant];
        !grant.is_revoked && !is_in_force(grant, self.now)
    }

    /// After a look, the node serves what is covered, and nothing else.
    fn node(&self, done: &Done, found: &mut Vec<String>) {
        for id in done.going_on.iter().flatten() {
            if !self.after.sessions.get(id).is_some_and(|stay| stay.end.is_none() && self.covers_stay(stay)) {
                found.push(format!("bytes pass in session {id}, without a grant for it"));
            }
        }
        for id in done.held.iter().flatten() {
            if !self
                .after
                .openings
                .get(id)
                .is_some_and(|stay| stay.end.is_none() && self.covers_stay(stay) && self.now < stay.expires)
            {
                found.push(format!("opening {id} is held open without a grant for it"));
            }
        }
        for id in &done.sent {
            if !self.after.commands.get(id).is_some_and(|command| self.covers_command(command)) {
                found.push(format!("command {id} goes to its device without a grant for it"));
            }
        }
    }
}

fn is_in_force(grant: &Grant, now: i64) -> bool {
    !grant.is_revoked && !grant.is_told && grant.start <= now && now < grant.end
}

/// Whatever anybody did is in the audit log, once, and the log is whole; and what the rows say of themselves.
pub(super) fn audit(look: &Look, found: &mut Vec<String>) {
    if look.outside > 0 {
        found.push(format!("{} were made outside their grant, or sent too late", look.outside));
    }
    if !look.chain_is_whole {
        found.push("the audit log is broken".to_owned());
    }
    let rows = &look.rows;
    let ended =
        |stays: &std::collections::BTreeMap<Uuid, Stay>| stays.values().filter(|stay| stay.end.is_some()).count();
    let denied = |outcome: &str| rows.requests.values().filter(|row| row.outcome.as_deref() == Some(outcome)).count();
    for (action, count) in [
        ("grant.created", rows.grants.len()),
        ("grant.revoked", rows.grants.values().filter(|grant| grant.is_revoked).count()),
        ("access_request.created", rows.requests.len()),
        ("access_request.denied", denied("denied")),
        ("access_request.withdrawn", denied("withdrawn")),
        ("access_request.expired", rows.requests.values().filter(|request| request.is_told).count()),
        ("access_policy.created", rows.policies.len()),
        ("access_policy.revoked", rows.policies.values().filter(|policy| policy.is_revoked).count()),
        ("command.created", rows.commands.len()),
        ("command.finished", rows.commands.values().filter(|command| !command.is_open()).count()),
        ("support_session.opened", rows.sessions.len()),
        ("support_session.ended", ended(&rows.sessions)),
        ("opening.created", rows.openings.len()),
        ("opening.closed", ended(&rows.openings)),
    ] {
        let audited = look.audited.get(action).copied().unwrap_or(0);
        if audited != count {
            found.push(format!("{action} is {audited} times in the audit log, and was {count} times"));
        }
    }
}
