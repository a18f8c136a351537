//! What the tables hold, as plain data: what the model predicts, and what the checks look at.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use sqlx::PgPool;
use uuid::Uuid;

pub(super) type Scopes = BTreeSet<String>;
pub(super) type Ids = BTreeSet<Uuid>;

/// Times are microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Rows {
    pub(super) tenants: BTreeMap<Uuid, Tenant>,
    pub(super) people: BTreeMap<Uuid, Person>,
    pub(super) devices: BTreeMap<Uuid, Device>,
    pub(super) links: BTreeMap<Uuid, Link>,
    pub(super) policies: BTreeMap<Uuid, Policy>,
    pub(super) requests: BTreeMap<Uuid, Request>,
    pub(super) grants: BTreeMap<Uuid, Grant>,
    pub(super) commands: BTreeMap<Uuid, Command>,
    pub(super) sessions: BTreeMap<Uuid, Stay>,
    pub(super) openings: BTreeMap<Uuid, Stay>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Tenant {
    pub(super) needed: usize,
    pub(super) max_seconds: i64,
    pub(super) fewer_by: Option<Uuid>,
    pub(super) fewer_until: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Person {
    pub(super) tenant: Option<Uuid>,
    pub(super) role: String,
    pub(super) is_human: bool,
    pub(super) is_active: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Device {
    pub(super) tenant: Uuid,
    pub(super) is_north: bool,
    pub(super) is_revoked: bool,
    pub(super) is_quarantined: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Link {
    pub(super) epoch: i64,
    pub(super) is_live: bool,
    pub(super) has_agent: bool,
    pub(super) has_tunnel: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Policy {
    pub(super) tenant: Uuid,
    pub(super) by: Uuid,
    pub(super) scopes: Scopes,
    pub(super) from_minute: i64,
    pub(super) to_minute: i64,
    pub(super) max_seconds: i64,
    pub(super) approved_by: Option<Uuid>,
    pub(super) is_revoked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Request {
    pub(super) tenant: Uuid,
    pub(super) kind: String,
    pub(super) by: Uuid,
    pub(super) extends: Option<Uuid>,
    pub(super) scopes: Scopes,
    pub(super) operators: Option<Ids>,
    pub(super) devices: Option<Ids>,
    pub(super) start: Option<i64>,
    pub(super) answer_by: i64,
    pub(super) until: i64,
    pub(super) needed: usize,
    pub(super) outcome: Option<String>,
    pub(super) is_told: bool,
    pub(super) grant: Option<Uuid>,
    pub(super) decisions: BTreeMap<Uuid, Decision>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Decision {
    pub(super) approves: bool,
    pub(super) scopes: Option<Scopes>,
    pub(super) devices: Option<Ids>,
    pub(super) until: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    pub(super) tenant: Uuid,
    pub(super) by: Uuid,
    pub(super) scopes: Scopes,
    pub(super) operators: Option<Ids>,
    /// `None`: those in the north.
    pub(super) devices: Option<Ids>,
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) is_revoked: bool,
    pub(super) is_told: bool,
    pub(super) request: Option<Uuid>,
    pub(super) policy: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Command {
    pub(super) device: Uuid,
    pub(super) grant: Uuid,
    pub(super) by: Uuid,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) expires: i64,
    pub(super) deadline: Option<i64>,
    pub(super) epoch: Option<i64>,
    pub(super) is_accepted: bool,
    pub(super) is_called_back: bool,
}

impl Command {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "sent" | "accepted" | "running")
    }
}

/// A support session, or an opening.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Stay {
    pub(super) device: Uuid,
    pub(super) grant: Uuid,
    pub(super) by: Uuid,
    pub(super) scope: String,
    pub(super) expires: i64,
    pub(super) end: Option<String>,
}

/// All that was looked up at once.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Look {
    pub(super) rows: Rows,
    /// How often each action is in the audit log.
    pub(super) audited: BTreeMap<String, usize>,
    /// How many commands, sessions and openings say themselves that they were made outside their grant, or sent after their expiry.
    pub(super) outside: usize,
    /// Whether every hash of the audit log is that of what it follows, and the heads are those of the last entries.
    pub(super) chain_is_whole: bool,
}

const LOOK: &str = "
select jsonb_build_object('rows', jsonb_build_object(
    'tenants', (select coalesce(jsonb_object_agg(t.id, jsonb_build_object(
                    'needed', t.approvals_needed, 'max_seconds', t.grant_max_seconds, 'fewer_by', t.fewer_approvals_by,
                    'fewer_until', virtual.at(t.fewer_approvals_until))), '{}') from tenants t),
    'people', (select coalesce(jsonb_object_agg(p.id, jsonb_build_object(
                    'tenant', p.tenant_id, 'role', p.role, 'is_human', p.kind = 'human', 'is_active', p.active)), '{}') from people p),
    'devices', (select coalesce(jsonb_object_agg(d.id, jsonb_build_object(
                    'tenant', d.tenant_id, 'is_north', d.labels ->> 'site' = 'north', 'is_revoked', d.state = 'revoked',
                    'is_quarantined', d.quarantined_at is not null)), '{}') from devices d),
    'links', (select coalesce(jsonb_object_agg(l.device_id, jsonb_build_object(
                    'epoch', l.epoch, 'is_live', l.closed_at is null, 'has_agent', l.has_agent,
                    'has_tunnel', l.tunnel_id is not null)), '{}') from links l),
    'policies', (select coalesce(jsonb_object_agg(p.id, jsonb_build_object(
                    'tenant', p.tenant_id, 'by', p.created_by, 'scopes', p.scopes, 'from_minute', p.from_minute,
                    'to_minute', p.to_minute, 'max_seconds', p.max_seconds, 'approved_by', p.approved_by,
                    'is_revoked', p.revoked_at is not null)), '{}') from access_policies p),
    'requests', (select coalesce(jsonb_object_agg(r.id, jsonb_build_object(
                    'tenant', r.tenant_id, 'kind', r.kind, 'by', r.requested_by, 'extends', r.extends_id, 'scopes', r.scopes,
                    'operators', r.operator_ids, 'devices', r.device_ids, 'start', virtual.at(r.starts_at),
                    'answer_by', virtual.at(r.answer_by), 'until', virtual.at(r.access_until), 'needed', r.approvals_needed,
                    'outcome', r.outcome, 'is_told', r.expiry_told_at is not null, 'grant', r.grant_id,
                    'decisions', (select coalesce(jsonb_object_agg(d.person_id, jsonb_build_object(
                                     'approves', d.decision = 'approve', 'scopes', d.scopes, 'devices', d.device_ids,
                                     'until', virtual.at(d.access_until))), '{}')
                                    from access_decisions d where d.request_id = r.id))), '{}') from access_requests r),
    'grants', (select coalesce(jsonb_object_agg(g.id, jsonb_build_object(
                    'tenant', g.tenant_id, 'by', g.created_by, 'scopes', g.scopes, 'operators', g.operator_ids,
                    'devices', g.device_ids, 'start', virtual.at(g.starts_at), 'end', virtual.at(g.ends_at),
                    'is_revoked', g.revoked_at is not null, 'is_told', g.end_told_at is not null, 'request', g.request_id,
                    'policy', g.policy_id)), '{}') from grants g),
    'commands', (select coalesce(jsonb_object_agg(c.id, jsonb_build_object(
                    'device', c.device_id, 'grant', c.grant_id, 'by', c.requested_by, 'kind', c.kind, 'state', c.state,
                    'expires', virtual.at(c.expires_at), 'deadline', virtual.at(c.deadline_at), 'epoch', c.sent_epoch,
                    'is_accepted', c.accepted_at is not null, 'is_called_back', c.cancel_requested_at is not null)), '{}') from commands c),
    'sessions', (select coalesce(jsonb_object_agg(s.id, jsonb_build_object(
                    'device', s.device_id, 'grant', s.grant_id, 'by', s.opened_by,
                    'scope', case s.kind when 'terminal' then 'shell:open' else 'tcp:open' end,
                    'expires', virtual.at(s.expires_at), 'end', s.end_reason)), '{}') from support_sessions s),
    'openings', (select coalesce(jsonb_object_agg(o.id, jsonb_build_object(
                    'device', o.device_id, 'grant', o.grant_id, 'by', o.opened_by, 'scope', 'tcp:open',
                    'expires', virtual.at(o.expires_at), 'end', o.end_reason)), '{}') from openings o)),
  'audited', (select coalesce(jsonb_object_agg(a.action, a.times), '{}') from (select action, count(*) as times from audit group by 1) a),
  'outside', (select count(*) from (
        select grant_id, created_at from commands union all select grant_id, created_at from openings
        union all select grant_id, created_at from support_sessions) made
      join grants g on g.id = made.grant_id
     where made.created_at < g.starts_at or made.created_at >= g.ends_at)
    + (select count(*) from commands where sent_at >= expires_at),
  'chain_is_whole', (
      select coalesce(bool_and(a.hash = sha256(coalesce(a.before, decode(repeat('00', 32), 'hex')) || convert_to(a.entry, 'UTF8'))
                               and a.seq = a.position), true)
        from (select *, lag(hash) over chain as before, row_number() over chain as position from audit
              window chain as (partition by tenant_id order by seq)) a)
      and not exists (select from audit_chains c
                       where c.seq <> (select count(*) from audit a where a.tenant_id = c.tenant_id)
                          or c.seq > 0 and c.hash <> (select a.hash from audit a where a.tenant_id = c.tenant_id and a.seq = c.seq)))";

impl Look {
    pub(super) async fn at(root: &PgPool) -> Self {
        let text: sqlx::types::Json<Self> = sqlx::query_scalar(LOOK).fetch_one(root).await.unwrap();
        text.0
    }
}
