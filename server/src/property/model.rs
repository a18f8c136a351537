//! What must come of each act, by what docs/ACCESS.md, docs/API.md and docs/SUPPORT.md promise. It knows nothing of SQL, locks or
//! transactions: one act after the other, and a clock.
//!
//! Where the documents leave open what it will be (the id of something new, which of two reasons is named), the model takes what
//! came of it if that is among what is allowed.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::act::{Act, NewGrant};
use super::clock::{DAY, SECOND};
use super::op::{Kind, LinkKind, Report, Way};
use super::rows::{Command, Decision, Device, Grant, Ids, Link, Person, Policy, Request, Rows, Scopes, Stay};
use super::world::{Done, SESSIONS_MAX};

/// How long somebody has to answer a colleague.
const COLLEAGUE_ANSWERS_WITHIN: i64 = DAY;
/// How long a device may take to begin what does not wait.
const BEGIN_WITHIN: i64 = 30 * SECOND;
/// How long after a command's expiry its device may still say what became of it.
const REPORT_GRACE: i64 = 60 * SECOND;
const OPENINGS_MAX: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) now: i64,
    pub(super) rows: Rows,
    /// Sessions that the node serves.
    known: Ids,
}

/// Why an act cannot have come to this.
pub(super) type Contradiction = String;

impl Model {
    pub(super) fn new(rows: Rows, now: i64) -> Self {
        Self { now, rows, known: Ids::new() }
    }

    /// What it comes to. `after` is what the tables hold then, `done` what else was seen.
    pub(super) fn act(&mut self, act: &Act, done: &Done, after: &Rows) -> Result<(), Contradiction> {
        match act {
            Act::Ask { who, devices, scopes, seconds, answer_seconds } => {
                return self.ask(*who, devices, scopes, (*seconds, *answer_seconds), done.made, after);
            }
            Act::Approve { who, request, scopes, devices, until, way } => {
                let decision =
                    Decision { approves: true, scopes: scopes.clone(), devices: devices.clone(), until: *until };
                self.approve(*who, *request, decision, *way, after);
            }
            Act::Deny { who, request, way } => self.deny(*who, *request, *way),
            Act::Withdraw { who, request } => self.withdraw(*who, *request),
            Act::Grant { who, tenant, grant, way } => return self.grant(*who, *tenant, grant, *way, done.made),
            Act::Extend { who, grant, end } => return self.extend(*who, *grant, *end, done.made),
            Act::Revoke { who, grant } => {
                if self.is_customer(*who, self.rows.grants[grant].tenant) {
                    self.revoke(*grant);
                }
            }
            Act::MakePolicy { who, scopes, max_seconds, minutes } => {
                return self.make_policy(*who, scopes, *max_seconds, *minutes, done.made);
            }
            Act::ApprovePolicy { who, policy } => self.approve_policy(*who, *policy),
            Act::RevokePolicy { who, policy, with_grants } => self.revoke_policy(*who, *policy, *with_grants),
            Act::Need { who, tenant, approvals } => self.need(*who, *tenant, *approvals),
            Act::Activate { who, whom, active } => self.activate(*who, *whom, *active),
            Act::RevokeDevice { who, device } => self.revoke_device(*who, *device),
            Act::Quarantine { who, device, begins } => self.quarantine(*who, *device, *begins),
            Act::Link { device, kind } => self.link(*device, *kind),
            Act::Unlink { device } => {
                if let Some(link) = self.rows.links.get_mut(device) {
                    link.is_live = false;
                }
            }
            Act::Command { who, device, kind, under, queue_seconds } => {
                return self.command(*who, *device, *kind, (*under, *queue_seconds), done.made, after);
            }
            Act::Cancel { who, command } => self.cancel(*who, *command),
            Act::Claim => return self.claim(&done.sent),
            Act::Report { command, state } => self.report(*command, *state),
            Act::OpenSession { who, device, is_terminal, under } => {
                let scope = if *is_terminal { "shell:open" } else { "tcp:open" };
                return self.open_session(*who, *device, scope, *under, done.made, after);
            }
            Act::CloseSession { who, session } => self.close(*who, *session, |rows| &mut rows.sessions),
            Act::OpenPort { who, device, seconds, under } => {
                return self.open_port(*who, *device, (*seconds, *under), done.made, after);
            }
            Act::ClosePort { who, opening } => self.close(*who, *opening, |rows| &mut rows.openings),
            Act::Watch => self.watch(after),
            Act::Sweep => self.sweep(after),
            Act::Crash { seconds } => self.crash(*seconds, after),
            Act::Clock { to } => self.now = *to,
        }
        Ok(())
    }

    // Who is who.

    fn person(&self, id: Uuid) -> &Person {
        &self.rows.people[&id]
    }

    fn is_customer(&self, id: Uuid, tenant: Uuid) -> bool {
        let person = self.person(id);
        person.is_active && person.role == "tenant" && person.tenant == Some(tenant)
    }

    fn is_operator(&self, id: Uuid) -> bool {
        self.person(id).is_active && self.person(id).role == "operator"
    }

    /// Whose devices somebody rules, who is no operator.
    fn rules(&self, id: Uuid, tenant: Uuid) -> bool {
        self.is_customer(id, tenant) || self.person(id).is_active && self.person(id).role == "admin"
    }

    // Grants.

    fn is_in_force(&self, grant: &Grant) -> bool {
        !grant.is_revoked && !grant.is_told && grant.start <= self.now && self.now < grant.end
    }

    fn is_over(&self, grant: &Grant) -> bool {
        grant.is_revoked || grant.is_told || grant.end <= self.now
    }

    /// The grants that let somebody do this now; of those, the ones that end last.
    fn longest(&self, who: Uuid, device: Uuid, scope: &str, under: Option<Uuid>) -> Vec<Uuid> {
        let of = &self.rows.devices[&device];
        let allows = |(id, grant): &(&Uuid, &Grant)| {
            under.is_none_or(|under| under == **id)
                && self.is_in_force(grant)
                && grant.tenant == of.tenant
                && grant.scopes.contains(scope)
                && grant.operators.as_ref().is_none_or(|operators| operators.contains(&who))
                && grant.devices.as_ref().map_or(of.is_north, |devices| devices.contains(&device))
        };
        let allowing: Vec<(&Uuid, &Grant)> = self.rows.grants.iter().filter(allows).collect();
        let last = allowing.iter().map(|(_, grant)| grant.end).max();
        allowing.iter().filter(|(_, grant)| Some(grant.end) == last).map(|(id, _)| **id).collect()
    }

    fn revoke(&mut self, id: Uuid) {
        let grant = self.rows.grants.get_mut(&id).expect("picked among those that are there");
        if grant.is_revoked {
            return;
        }
        grant.is_revoked = true;
        self.end_all("grant_revoked", |_, grant, _| grant == id);
    }

    /// Ends what is under way of what is chosen by device, grant and operator.
    fn end_all(&mut self, reason: &str, is_chosen: impl Fn(Uuid, Uuid, Uuid) -> bool) {
        for command in self.rows.commands.values_mut() {
            if is_chosen(command.device, command.grant, command.by) {
                call_back(command);
            }
        }
        for stay in self.rows.sessions.values_mut().chain(self.rows.openings.values_mut()) {
            if stay.end.is_none() && is_chosen(stay.device, stay.grant, stay.by) {
                stay.end = Some(reason.to_owned());
            }
        }
    }

    fn grant(
        &mut self,
        who: Uuid,
        tenant: Uuid,
        new: &NewGrant,
        way: Way,
        made: Option<Uuid>,
    ) -> Result<(), Contradiction> {
        let is_of_tenant = |id: &Uuid| self.rows.devices[id].tenant == tenant;
        let start = new.start.unwrap_or(self.now).max(self.now);
        let end = start + new.seconds * SECOND;
        let needed = self.rows.tenants[&tenant].needed;
        let is_allowed = self.is_customer(who, tenant)
            && end - start <= self.rows.tenants[&tenant].max_seconds * SECOND
            && match way {
                Way::Api => {
                    new.devices.as_ref().is_none_or(|devices| devices.iter().all(is_of_tenant))
                        && new
                            .operators
                            .as_ref()
                            .is_none_or(|ids| ids.iter().all(|id| self.person(*id).role == "operator"))
                        && (needed == 1 || self.person(who).is_human)
                }
                // By itself, the database asks for no more than that.
                Way::Database => needed == 1,
            };
        let Some(id) = must_be_made(is_allowed, made)? else { return Ok(()) };
        if needed == 1 {
            let grant = Grant {
                tenant,
                by: who,
                scopes: new.scopes.clone(),
                operators: new.operators.clone(),
                devices: new.devices.clone(),
                start,
                end,
                is_revoked: false,
                is_told: false,
                request: None,
                policy: None,
            };
            self.rows.grants.insert(id, grant);
        } else {
            let request = Request {
                kind: "grant".to_owned(),
                extends: None,
                operators: new.operators.clone(),
                devices: new.devices.clone(),
                scopes: new.scopes.clone(),
                start: (start > self.now).then_some(start),
                answer_by: end.min(self.now + COLLEAGUE_ANSWERS_WITHIN),
                ..proposal(who, tenant, end, needed)
            };
            self.rows.requests.insert(id, request);
        }
        Ok(())
    }

    fn extend(&mut self, who: Uuid, id: Uuid, end: i64, made: Option<Uuid>) -> Result<(), Contradiction> {
        let grant = self.rows.grants[&id].clone();
        let tenant = &self.rows.tenants[&grant.tenant];
        let is_allowed = self.is_customer(who, grant.tenant)
            && !self.is_over(&grant)
            && end > grant.end
            && end - grant.start <= tenant.max_seconds * SECOND
            && (tenant.needed == 1 || self.person(who).is_human);
        if tenant.needed == 1 {
            if is_allowed {
                self.rows.grants.get_mut(&id).expect("as above").end = end;
            }
            return if made.is_none() { Ok(()) } else { Err("a request where one approval is enough".to_owned()) };
        }
        let needed = tenant.needed;
        let Some(request) = must_be_made(is_allowed, made)? else { return Ok(()) };
        let proposed = Request {
            kind: "extension".to_owned(),
            extends: Some(id),
            operators: grant.operators,
            devices: grant.devices,
            scopes: grant.scopes,
            start: (grant.start > self.now).then_some(grant.start),
            answer_by: grant.end.min(self.now + COLLEAGUE_ANSWERS_WITHIN),
            ..proposal(who, grant.tenant, end, needed)
        };
        self.rows.requests.insert(request, proposed);
        Ok(())
    }

    // Requests.

    fn is_open(&self, request: &Request) -> bool {
        request.outcome.is_none() && !request.is_told && self.now < request.answer_by.min(request.until)
    }

    fn ask(
        &mut self,
        who: Uuid,
        devices: &Ids,
        scopes: &Scopes,
        (seconds, answer_seconds): (i64, i64),
        made: Option<Uuid>,
        after: &Rows,
    ) -> Result<(), Contradiction> {
        let asked: Vec<&Device> = devices.iter().map(|id| &self.rows.devices[id]).collect();
        let tenant = asked[0].tenant;
        let is_allowed = self.is_operator(who)
            && asked.iter().all(|device| device.tenant == tenant && !device.is_revoked)
            && seconds <= self.rows.tenants[&tenant].max_seconds;
        let Some(id) = must_be_made(is_allowed, made)? else { return Ok(()) };
        let until = self.now + seconds * SECOND;
        let needed = self.rows.tenants[&tenant].needed;
        let mut request = Request {
            kind: "access".to_owned(),
            extends: None,
            operators: None,
            devices: Some(devices.clone()),
            scopes: scopes.clone(),
            start: None,
            answer_by: until.min(self.now + answer_seconds * SECOND),
            decisions: BTreeMap::new(),
            ..proposal(who, tenant, until, needed)
        };
        let allows = |policy: &Policy| {
            policy.tenant == tenant
                && !policy.is_revoked
                && (needed == 1 || policy.approved_by.is_some())
                && scopes.is_subset(&policy.scopes)
                && seconds <= policy.max_seconds
                && self.is_in_hours(policy, until)
        };
        let allowing: Vec<Uuid> =
            self.rows.policies.iter().filter(|(_, policy)| allows(policy)).map(|(id, _)| *id).collect();
        if !allowing.is_empty() {
            let made = after.requests.get(&id).and_then(|request| request.grant);
            let made = made.ok_or("a policy allows it, and nothing came of it")?;
            let policy = after.grants.get(&made).and_then(|grant| grant.policy).filter(|id| allowing.contains(id));
            let policy = policy.ok_or("a policy that does not allow it")?;
            request.outcome = Some("approved".to_owned());
            request.grant = Some(made);
            let grant = Grant {
                tenant,
                by: self.rows.policies[&policy].by,
                scopes: scopes.clone(),
                operators: Some(Ids::from([who])),
                devices: Some(devices.clone()),
                start: self.now,
                end: until,
                is_revoked: false,
                is_told: false,
                request: Some(id),
                policy: Some(policy),
            };
            self.rows.grants.insert(made, grant);
        }
        self.rows.requests.insert(id, request);
        Ok(())
    }

    /// Whether all of the time from now on lies in its hours (UTC, each day).
    fn is_in_hours(&self, policy: &Policy, until: i64) -> bool {
        let minute = 60 * SECOND;
        let (begin, last) = (self.now.rem_euclid(DAY), (until - 1).rem_euclid(DAY));
        let is_one_day = self.now.div_euclid(DAY) == (until - 1).div_euclid(DAY);
        let is_whole = policy.from_minute == 0 && policy.to_minute == 24 * 60;
        is_whole || is_one_day && begin >= policy.from_minute * minute && last < policy.to_minute * minute
    }

    /// How many must approve it now.
    fn needed(&self, request: &Request) -> usize {
        request.needed.max(self.rows.tenants[&request.tenant].needed)
    }

    /// Whether somebody may answer it at all.
    fn may_answer(&self, who: Uuid, request: &Request) -> bool {
        self.is_customer(who, request.tenant)
            && self.is_open(request)
            && (self.needed(request) == 1 || self.person(who).is_human)
    }

    fn approve(&mut self, who: Uuid, id: Uuid, decision: Decision, _: Way, after: &Rows) {
        let mut request = self.rows.requests[&id].clone();
        let is_wider = decision.scopes.as_ref().is_some_and(|given| !given.is_subset(&request.scopes))
            || decision
                .devices
                .as_ref()
                .is_some_and(|given| request.devices.as_ref().is_none_or(|asked| !given.is_subset(asked)))
            || decision.until.is_some_and(|until| until > request.until)
            || request.extends.is_some() && (decision.scopes.is_some() || decision.devices.is_some());
        if !self.may_answer(who, &request) || is_wider {
            return;
        }
        request.decisions.insert(who, decision);
        let needed = self.needed(&request);
        let counts =
            |person: &Uuid| self.is_customer(*person, request.tenant) && (needed == 1 || self.person(*person).is_human);
        let counting: Vec<&Decision> = request
            .decisions
            .iter()
            .filter(|(person, given)| given.approves && counts(person))
            .map(|(_, given)| given)
            .collect();
        let until = counting.iter().filter_map(|given| given.until).fold(request.until, i64::min);
        let mut scopes = request.scopes.clone();
        scopes.retain(|scope| {
            counting.iter().all(|given| given.scopes.as_ref().is_none_or(|given| given.contains(scope)))
        });
        let devices = request.devices.clone().map(|mut devices| {
            devices.retain(|id| {
                let device = &self.rows.devices[id];
                device.tenant == request.tenant
                    && !device.is_revoked
                    && counting.iter().all(|given| given.devices.as_ref().is_none_or(|given| given.contains(id)))
            });
            devices
        });
        let extended = request.extends.map(|id| (id, self.rows.grants[&id].clone()));
        let start = request.start.map_or(self.now, |start| start.max(self.now));
        let is_nothing = scopes.is_empty()
            || request.extends.is_none() && devices.as_ref().is_some_and(Ids::is_empty)
            || until <= start
            || extended.as_ref().is_some_and(|(_, grant)| until <= grant.end);
        let is_void = request.kind == "access" && !self.is_operator(request.by)
            || extended.as_ref().is_some_and(|(_, grant)| self.is_over(grant));
        if is_nothing || is_void {
            return;
        }
        if counting.len() >= needed {
            let begins = extended.as_ref().map_or(start, |(_, grant)| grant.start);
            if until - begins > self.rows.tenants[&request.tenant].max_seconds * SECOND {
                return;
            }
            // A new id, or that of the grant that is extended.
            let made = extended.map(|(id, _)| id).or_else(|| after.requests.get(&id).and_then(|request| request.grant));
            request.outcome = Some("approved".to_owned());
            request.grant = made;
            let grant = Grant {
                tenant: request.tenant,
                by: who,
                scopes,
                operators: if request.kind == "access" {
                    Some(Ids::from([request.by]))
                } else {
                    request.operators.clone()
                },
                devices,
                start,
                end: until,
                is_revoked: false,
                is_told: false,
                request: Some(id),
                policy: None,
            };
            // Nil where none was made: a row that the tables do not have.
            self.rows.grants.entry(made.unwrap_or_default()).and_modify(|grant| grant.end = until).or_insert(grant);
        }
        self.rows.requests.insert(id, request);
    }

    fn deny(&mut self, who: Uuid, id: Uuid, _: Way) {
        if self.may_answer(who, &self.rows.requests[&id]) {
            let request = self.rows.requests.get_mut(&id).expect("as above");
            let denial = Decision { approves: false, scopes: None, devices: None, until: None };
            request.decisions.insert(who, denial);
            request.outcome = Some("denied".to_owned());
        }
    }

    fn withdraw(&mut self, who: Uuid, id: Uuid) {
        let request = &self.rows.requests[&id];
        let person = self.person(who);
        if person.is_active && request.by == who && self.is_open(request) {
            self.rows.requests.get_mut(&id).expect("as above").outcome = Some("withdrawn".to_owned());
        }
    }

    // What a tenant says beforehand.

    fn make_policy(
        &mut self,
        who: Uuid,
        scopes: &Scopes,
        max_seconds: i64,
        (from_minute, to_minute): (i64, i64),
        made: Option<Uuid>,
    ) -> Result<(), Contradiction> {
        let tenant = self.person(who).tenant;
        let Some(id) = must_be_made(tenant.is_some() && self.person(who).is_active, made)? else { return Ok(()) };
        let policy = Policy {
            tenant: tenant.unwrap_or_default(),
            by: who,
            scopes: scopes.clone(),
            from_minute,
            to_minute,
            max_seconds,
            approved_by: None,
            is_revoked: false,
        };
        self.rows.policies.insert(id, policy);
        Ok(())
    }

    fn approve_policy(&mut self, who: Uuid, id: Uuid) {
        let policy = &self.rows.policies[&id];
        let is_second = self.is_customer(who, policy.tenant) && who != policy.by;
        let are_human = self.person(who).is_human && self.person(policy.by).is_human;
        if is_second && are_human && !policy.is_revoked && policy.approved_by.is_none() {
            self.rows.policies.get_mut(&id).expect("as above").approved_by = Some(who);
        }
    }

    fn revoke_policy(&mut self, who: Uuid, id: Uuid, with_grants: bool) {
        if !self.is_customer(who, self.rows.policies[&id].tenant) {
            return;
        }
        self.rows.policies.get_mut(&id).expect("as above").is_revoked = true;
        if with_grants {
            let under =
                |(grant, row): (&Uuid, &Grant)| (row.policy == Some(id) && row.end > self.now).then_some(*grant);
            let grants: Vec<Uuid> = self.rows.grants.iter().filter_map(under).collect();
            grants.into_iter().for_each(|grant| self.revoke(grant));
        }
    }

    fn need(&mut self, who: Uuid, tenant: Uuid, approvals: usize) {
        if !self.is_customer(who, tenant) {
            return;
        }
        let now = self.rows.tenants[&tenant].clone();
        let humans = self.rows.people.iter().filter(|(id, person)| self.is_customer(**id, tenant) && person.is_human);
        let (humans, is_human) = (humans.count(), self.person(who).is_human);
        let is_proposed = now.fewer_by.is_some_and(|by| by != who && self.is_customer(by, tenant))
            && now.fewer_until.is_some_and(|until| until > self.now);
        let row = self.rows.tenants.get_mut(&tenant).expect("everybody's tenant is there");
        if approvals < now.needed && !is_human || approvals > now.needed && humans < approvals {
            return;
        }
        if approvals < now.needed && !is_proposed {
            (row.fewer_by, row.fewer_until) = (Some(who), Some(self.now + COLLEAGUE_ANSWERS_WITHIN));
            return;
        }
        (row.needed, row.fewer_by, row.fewer_until) = (approvals, None, None);
    }

    // People and devices.

    fn activate(&mut self, who: Uuid, whom: Uuid, active: bool) {
        let (person, other) = (self.person(who), self.person(whom));
        let is_own_service =
            person.role == "tenant" && person.is_human && !other.is_human && other.tenant == person.tenant;
        if !person.is_active || person.role != "admin" && !is_own_service || who == whom && !active {
            return;
        }
        let is_tenants = other.role == "tenant";
        self.rows.people.get_mut(&whom).expect("one of the cast").is_active = active;
        if !active && !is_tenants {
            self.end_all("operator_shut_out", |_, _, by| by == whom);
        }
    }

    fn revoke_device(&mut self, who: Uuid, id: Uuid) {
        let device = &self.rows.devices[&id];
        if self.rules(who, device.tenant) && !device.is_revoked {
            self.rows.devices.get_mut(&id).expect("one of the cast").is_revoked = true;
            self.end_all("device_revoked", |device, _, _| device == id);
        }
    }

    fn quarantine(&mut self, who: Uuid, id: Uuid, begins: bool) {
        let device = &self.rows.devices[&id];
        if !self.rules(who, device.tenant) || device.is_quarantined == begins {
            return;
        }
        self.rows.devices.get_mut(&id).expect("one of the cast").is_quarantined = begins;
        if begins {
            // Its link stays, and commands come over it.
            let commands = self.rows.commands.clone();
            self.end_all("quarantined", |device, _, _| device == id);
            self.rows.commands = commands;
        }
    }

    fn link(&mut self, id: Uuid, kind: LinkKind) {
        if self.rows.devices[&id].is_revoked {
            return;
        }
        let epoch = self.rows.links.get(&id).map_or(0, |link| link.epoch);
        let epoch = epoch + if kind == LinkKind::AgentInTunnel { 2 } else { 1 };
        let (has_agent, has_tunnel) = (kind != LinkKind::Tunnel, kind != LinkKind::Websocket);
        self.rows.links.insert(id, Link { epoch, is_live: true, has_agent, has_tunnel });
    }

    fn live_link(&self, device: Uuid) -> Option<&Link> {
        self.rows.links.get(&device).filter(|link| link.is_live)
    }

    // Commands.

    fn command(
        &mut self,
        who: Uuid,
        device: Uuid,
        kind: Kind,
        (under, queue_seconds): (Option<Uuid>, Option<i64>),
        made: Option<Uuid>,
        after: &Rows,
    ) -> Result<(), Contradiction> {
        let (name, scope) = match kind {
            Kind::Metrics => ("metrics.collect", "metrics:read"),
            Kind::Restart => ("service.restart", "service:restart"),
        };
        let grants = self.longest(who, device, scope, under);
        let is_allowed = self.is_operator(who)
            && !self.rows.devices[&device].is_revoked
            && !grants.is_empty()
            && (queue_seconds.is_some() || self.live_link(device).is_some_and(|link| link.has_agent));
        let Some(id) = must_be_made(is_allowed, made)? else { return Ok(()) };
        let grant = after.commands.get(&id).map(|row| row.grant).filter(|grant| grants.contains(grant));
        let grant = grant.ok_or("a command under another grant")?;
        let within = queue_seconds.map_or(BEGIN_WITHIN, |seconds| seconds * SECOND);
        let expires = (self.now + within).min(self.rows.grants[&grant].end);
        let command = Command {
            device,
            grant,
            by: who,
            kind: name.to_owned(),
            state: "queued".to_owned(),
            expires,
            deadline: Some(expires),
            epoch: None,
            is_accepted: false,
            is_called_back: false,
        };
        self.rows.commands.insert(id, command);
        Ok(())
    }

    fn cancel(&mut self, who: Uuid, id: Uuid) {
        let tenant = self.rows.devices[&self.rows.commands[&id].device].tenant;
        if self.is_operator(who) || self.is_customer(who, tenant) {
            call_back(self.rows.commands.get_mut(&id).expect("picked among those that are there"));
        }
    }

    fn claim(&mut self, sent: &Ids) -> Result<(), Contradiction> {
        let mut due = Ids::new();
        for (id, command) in &self.rows.commands {
            let Some(link) = self.live_link(command.device).filter(|link| link.has_agent) else { continue };
            let is_waiting = match command.state.as_str() {
                "queued" => true,
                // Over a link before this one, and perhaps lost with it.
                "sent" => command.epoch < Some(link.epoch),
                _ => false,
            };
            if is_waiting
                && self.is_in_force(&self.rows.grants[&command.grant])
                && !self.rows.devices[&command.device].is_revoked
                && command.expires > self.now
                && !command.is_called_back
            {
                due.insert(*id);
            }
        }
        for id in &due {
            let epoch = self.rows.links[&self.rows.commands[id].device].epoch;
            let command = self.rows.commands.get_mut(id).expect("from above");
            command.state = "sent".to_owned();
            command.epoch = Some(epoch);
            command.deadline = Some(command.expires + REPORT_GRACE);
        }
        if *sent == due { Ok(()) } else { Err(format!("sent {sent:?}, due {due:?}")) }
    }

    fn report(&mut self, id: Uuid, report: Report) {
        let command = &self.rows.commands[&id];
        let Some(link) = self.live_link(command.device).filter(|link| link.has_agent) else { return };
        let (from, to): (&[&str], _) = match report {
            Report::Accepted => (&["sent"], "accepted"),
            Report::Running => (&["sent", "accepted", "running"], "running"),
            Report::Succeeded => (&["sent", "accepted", "running"], "succeeded"),
            Report::Failed => (&["sent", "accepted", "running"], "failed"),
            Report::Refused => (&["sent", "accepted"], "refused"),
        };
        if command.epoch.is_none_or(|epoch| epoch > link.epoch) || !from.contains(&command.state.as_str()) {
            return;
        }
        let run = if command.kind == "metrics.collect" { 30 } else { 180 } * SECOND;
        let now = self.now;
        let command = self.rows.commands.get_mut(&id).expect("as above");
        command.state = to.to_owned();
        if !command.is_open() {
            command.deadline = None;
        } else if !command.is_accepted {
            command.deadline = Some(now + run);
        }
        command.is_accepted |= report != Report::Refused;
    }

    // Sessions and openings.

    fn open_session(
        &mut self,
        who: Uuid,
        device: Uuid,
        scope: &str,
        under: Option<Uuid>,
        made: Option<Uuid>,
        after: &Rows,
    ) -> Result<(), Contradiction> {
        let grants = self.longest(who, device, scope, under);
        let live = self.rows.sessions.values().filter(|stay| stay.device == device && stay.end.is_none()).count();
        let is_allowed =
            self.may_stay(who, device) && !grants.is_empty() && live < SESSIONS_MAX && self.live_link(device).is_some();
        let Some(id) = must_be_made(is_allowed, made)? else { return Ok(()) };
        let grant = after.sessions.get(&id).map(|row| row.grant).filter(|grant| grants.contains(grant));
        let grant = grant.ok_or("a session under another grant")?;
        let expires = self.rows.grants[&grant].end;
        let stay = Stay { device, grant, by: who, scope: scope.to_owned(), expires, end: None };
        self.rows.sessions.insert(id, stay);
        self.known.insert(id);
        Ok(())
    }

    fn open_port(
        &mut self,
        who: Uuid,
        device: Uuid,
        (seconds, under): (i64, Option<Uuid>),
        made: Option<Uuid>,
        after: &Rows,
    ) -> Result<(), Contradiction> {
        let grants = self.longest(who, device, "tcp:open", under);
        let live = self.rows.openings.values().filter(|stay| stay.device == device && stay.end.is_none()).count();
        let is_allowed = self.may_stay(who, device)
            && !grants.is_empty()
            && live < OPENINGS_MAX
            && self.live_link(device).is_some_and(|link| link.has_tunnel);
        let Some(id) = must_be_made(is_allowed, made)? else { return Ok(()) };
        let grant = after.openings.get(&id).map(|row| row.grant).filter(|grant| grants.contains(grant));
        let grant = grant.ok_or("an opening under another grant")?;
        let expires = (self.now + seconds * SECOND).min(self.rows.grants[&grant].end);
        let stay = Stay { device, grant, by: who, scope: "tcp:open".to_owned(), expires, end: None };
        self.rows.openings.insert(id, stay);
        Ok(())
    }

    /// Apart from grants and links.
    fn may_stay(&self, who: Uuid, device: Uuid) -> bool {
        let device = &self.rows.devices[&device];
        self.is_operator(who) && !device.is_revoked && !device.is_quarantined
    }

    fn close(&mut self, who: Uuid, id: Uuid, stays: impl Fn(&mut Rows) -> &mut BTreeMap<Uuid, Stay>) {
        let stay = stays(&mut self.rows)[&id].clone();
        let is_own = self.is_operator(who) && stay.by == who;
        if (is_own || self.is_customer(who, self.rows.devices[&stay.device].tenant)) && stay.end.is_none() {
            stays(&mut self.rows).get_mut(&id).expect("as above").end = Some("closed".to_owned());
        }
    }

    /// Each reason for which it is over.
    fn reasons(&self, stay: &Stay) -> Vec<&'static str> {
        let (grant, device) = (&self.rows.grants[&stay.grant], &self.rows.devices[&stay.device]);
        let reasons = [
            (grant.is_revoked, "grant_revoked"),
            (device.is_revoked, "device_revoked"),
            (!self.is_operator(stay.by), "operator_shut_out"),
            (device.is_quarantined, "quarantined"),
            (!self.is_in_force(grant), "grant_ended"),
        ];
        reasons.into_iter().filter_map(|(is_so, reason)| is_so.then_some(reason)).collect()
    }

    fn watch(&mut self, after: &Rows) {
        for id in self.known.clone() {
            let stay = self.rows.sessions[&id].clone();
            let mut watched = stay.clone();
            if stay.end.is_none() {
                watched.expires = self.rows.grants[&stay.grant].end;
                watched.end = one_of(&self.reasons(&stay), after.sessions.get(&id));
            }
            if watched.end.is_some() {
                self.known.remove(&id);
            }
            self.rows.sessions.insert(id, watched);
        }
    }

    /// Sessions that the node goes on with.
    pub(super) fn known(&self) -> &Ids {
        &self.known
    }

    /// Openings that the node must hold open, and no other.
    pub(super) fn held(&self) -> Ids {
        let is_held = |stay: &Stay| {
            stay.end.is_none()
                && self.now < stay.expires
                && self.reasons(stay).is_empty()
                && self.live_link(stay.device).is_some_and(|link| link.has_tunnel)
        };
        self.rows.openings.iter().filter(|(_, stay)| is_held(stay)).map(|(id, _)| *id).collect()
    }

    fn sweep(&mut self, after: &Rows) {
        for (id, command) in self.rows.commands.clone() {
            let is_in_force = self.is_in_force(&self.rows.grants[&command.grant]);
            let is_late = command.deadline.is_some_and(|deadline| deadline <= self.now);
            let end = match command.state.as_str() {
                "queued" if !is_in_force => "cancelled",
                "queued" if is_late => "expired",
                "sent" | "accepted" | "running" if is_late => "unconfirmed",
                _ => continue,
            };
            let command = self.rows.commands.get_mut(&id).expect("from above");
            (command.state, command.deadline) = (end.to_owned(), None);
        }
        for (id, stay) in self.rows.openings.clone() {
            let mut reasons = self.reasons(&stay);
            if stay.expires <= self.now || reasons.contains(&"grant_ended") {
                reasons.push("expired");
            }
            reasons.retain(|reason| *reason != "grant_ended");
            if stay.end.is_none() {
                let end = one_of(&reasons, after.openings.get(&id));
                self.rows.openings.get_mut(&id).expect("from above").end = end;
            }
        }
        self.sweep_sessions(after);
        let now = self.now;
        for request in self.rows.requests.values_mut() {
            request.is_told |= request.outcome.is_none() && request.answer_by.min(request.until) <= now;
        }
        for grant in self.rows.grants.values_mut() {
            grant.is_told |= !grant.is_revoked && grant.end <= now;
        }
    }

    fn sweep_sessions(&mut self, after: &Rows) {
        for (id, stay) in self.rows.sessions.clone() {
            let mut reasons = self.reasons(&stay);
            if reasons.is_empty() && !self.known.contains(&id) {
                reasons.push("node_lost");
            }
            if stay.end.is_none() {
                let end = one_of(&reasons, after.sessions.get(&id));
                self.rows.sessions.get_mut(&id).expect("from above").end = end;
            }
        }
    }

    fn crash(&mut self, seconds: i64, after: &Rows) {
        self.known.clear();
        self.now = super::act::clamp(self.now + seconds * SECOND);
        for link in self.rows.links.values_mut() {
            link.is_live = false;
        }
        self.sweep_sessions(after);
    }
}

/// What is allowed must come to something, and nothing else may.
fn must_be_made(is_allowed: bool, made: Option<Uuid>) -> Result<Option<Uuid>, Contradiction> {
    match (is_allowed, made) {
        (true, Some(id)) => Ok(Some(id)),
        (false, None) => Ok(None),
        (true, None) => Err("refused, and must not be".to_owned()),
        (false, Some(_)) => Err("done, and must be refused".to_owned()),
    }
}

/// The reason that was named, if it is one of these; else one of these.
fn one_of(reasons: &[&str], named: Option<&Stay>) -> Option<String> {
    let named = named.and_then(|stay| stay.end.as_deref());
    let reason = reasons.iter().find(|reason| Some(**reason) == named).or(reasons.first());
    reason.map(|reason| (*reason).to_owned())
}

fn call_back(command: &mut Command) {
    match command.state.as_str() {
        "queued" => {
            command.state = "cancelled".to_owned();
            command.deadline = None;
            command.is_called_back = true;
        }
        "sent" | "accepted" => command.is_called_back = true,
        _ => {}
    }
}

/// A request that is open. What somebody of the tenant proposes is approved by whoever proposes it.
fn proposal(by: Uuid, tenant: Uuid, until: i64, needed: usize) -> Request {
    let approval = Decision { approves: true, scopes: None, devices: None, until: None };
    Request {
        tenant,
        kind: String::new(),
        by,
        extends: None,
        scopes: Scopes::new(),
        operators: None,
        devices: None,
        start: None,
        answer_by: until,
        until,
        needed,
        outcome: None,
        is_told: false,
        grant: None,
        decisions: BTreeMap::from([(by, approval)]),
    }
}
