//! The server as it is: its routes in front of its database, its tasks, its node. Each act goes the way that it goes for real.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use cloudlink_proto::ids::{
    AccessRequestId, CommandId, DeviceId, GrantId, PersonId, SupportSessionId, TenantId, TunnelId,
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::act::{Act, Cast, NewGrant, clamp};
use super::clock::{self, SECOND, START};
use super::op::{Kind, LinkKind, Report, Way};
use super::rows::{Ids, Look, Rows, Scopes};
use crate::http::Settings;
use crate::http::testing::{Answer as Response, Call, Scene, Somebody, create_somebody};
use crate::model::access_request::Decision;
use crate::model::audit::{Actor, Subject};
use crate::model::command::State;
use crate::model::new_id;
use crate::model::person::Role;
use crate::model::support_session::{ForwardTarget, Target, Via};
use crate::store::access_request::{Answer, Decided, access_request_decide};
use crate::store::audit::audit_append;
use crate::store::deadline::{Watch, deadline_sweep_in_txn};
use crate::store::dispatch::{dispatch_claim, dispatch_list};
use crate::store::grant::{End, NewGrant as StoredGrant, grant_create};
use crate::store::link::{ClosedLink, Ended, NewLink, NewTunnel, link_close, link_close_node, link_open};
use crate::store::opening::{opening_list_due, opening_sweep};
use crate::store::support_session::{
    Closing, NewSession, server, support_session_create, support_session_end_in_txn, support_session_lock_in_txn,
    support_session_watch,
};
use crate::store::transition::{Durability, Source, Transition, transition_apply};
use crate::store::{Store, StoreError, Transaction, Visibility};
use crate::tasks::{access, support};

const NODE: &str = "node-1";
const QUIET_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// The most sessions of one device.
pub(super) const SESSIONS_MAX: usize = 3;
/// The longest grant of either tenant.
const GRANT_MAX_SECONDS: i64 = 4 * 3600;

pub(super) struct World {
    scene: Scene,
    people: [Somebody; 7],
    pub(super) cast: Cast,
    /// The sessions that the node serves: what it forgets when it crashes.
    known: Mutex<BTreeSet<Uuid>>,
}

/// What came of an act, besides what is in the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// The request, grant, command, session, opening or policy that was made.
    pub(super) made: Option<Uuid>,
    /// Commands that the node sends.
    pub(super) sent: Ids,
    /// Sessions that the node goes on with, after a look.
    pub(super) going_on: Option<Ids>,
    /// Openings that the node holds open, after a look.
    pub(super) held: Option<Ids>,
    /// What must not be.
    pub(super) wrong: Vec<String>,
}

impl World {
    pub(super) async fn new(pool: PgPoolOptions, database: PgConnectOptions) -> Self {
        clock::install(&database).await;
        let settings = Settings { opening_within: Duration::ZERO, failures_burst: u32::MAX, ..Settings::default() };
        let scene = Scene::with_settings(pool, database, settings).await;
        let theo = scene.second_customer().await;
        let robot = create_somebody(&scene.store, "robot", Role::Tenant, Some(scene.tenant)).await;
        let people = [
            scene.operator.clone(),
            scene.colleague.clone(),
            scene.admin.clone(),
            scene.customer.clone(),
            theo,
            robot,
            scene.other_customer.clone(),
        ];
        let cellar = DeviceId::from_uuid(new_id());
        scene.insert_device(cellar, scene.tenant, "cellar", json!({"site": "south"})).await;
        let cast = Cast {
            people: people.each_ref().map(|somebody| somebody.id.as_uuid()),
            devices: [scene.device, cellar, scene.other_device],
            tenant: scene.tenant.as_uuid(),
        };
        let prepare = format!(
            "update people set kind = 'service' where name = 'robot';
             update tenants set grant_max_seconds = {GRANT_MAX_SECONDS};
             update api_tokens set expires_at = '2100-01-01';
             create function virtual.at(at timestamptz) returns bigint language sql immutable
                 as $$ select (extract(epoch from at) * 1000000)::bigint $$;
             do $$
             declare
                 t text;
             begin
                 for t in select tablename from pg_tables where schemaname = 'public' loop
                     execute format('create table virtual.%I as table public.%I', t, t);
                 end loop;
             end $$;
             create function virtual.restore() returns void language plpgsql set session_replication_role = replica as $$
             declare
                 t text;
             begin
                 for t in select tablename from pg_tables where schemaname = 'public' loop
                     execute format('delete from public.%I', t);
                     execute format('insert into public.%I table virtual.%I', t, t);
                 end loop;
             end $$;"
        );
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&scene.root).await.unwrap();
        Self { scene, people, cast, known: Mutex::default() }
    }

    /// Everything as it was at the beginning.
    pub(super) async fn restore(&self) {
        sqlx::query("select virtual.restore()").execute(self.root()).await.unwrap();
        clock::set(self.root(), START).await;
        self.known.lock().unwrap().clear();
    }

    pub(super) fn root(&self) -> &PgPool {
        &self.scene.root
    }

    /// What there is, once everything is done that was begun: a request that is refused lets go of its transaction, and of the rows
    /// that it holds, a moment after its answer, and whoever passes over what is held would do so.
    pub(super) async fn look(&self) -> Look {
        let busy =
            "select exists (select from pg_stat_activity where datname = current_database() and xact_start is not null
                                     and backend_type = 'client backend' and pid <> pg_backend_pid())";
        let quiet = async {
            while sqlx::query_scalar(busy).fetch_one(self.root()).await.unwrap() {
                sleep(LOOK_AGAIN_AFTER).await;
            }
        };
        timeout(QUIET_WITHIN, quiet).await.expect("all transactions end");
        Look::at(self.root()).await
    }

    /// Does it, at `now`.
    pub(super) async fn act(&self, act: &Act, rows: &Rows, now: i64) -> Done {
        let mut done = Done::default();
        let made = match act {
            Act::Ask { .. }
            | Act::Approve { way: Way::Api, .. }
            | Act::Deny { way: Way::Api, .. }
            | Act::Withdraw { .. } => self.request(act, &mut done).await,
            Act::Grant { way: Way::Api, .. } | Act::Extend { .. } | Act::Revoke { .. } => {
                self.grant(act, &mut done).await
            }
            Act::MakePolicy { .. } | Act::ApprovePolicy { .. } | Act::RevokePolicy { .. } | Act::Need { .. } => {
                self.policy(act, &mut done).await
            }
            Act::Activate { .. } | Act::RevokeDevice { .. } | Act::Quarantine { .. } => self.rule(act, &mut done).await,
            Act::Command { .. }
            | Act::Cancel { .. }
            | Act::CloseSession { .. }
            | Act::OpenPort { .. }
            | Act::ClosePort { .. } => self.operate(act, &mut done).await,
            Act::Approve { who, request, scopes, devices, until, way: Way::Database } => {
                let answer = (Decision::Approve, scopes.as_ref(), devices.as_ref(), *until);
                self.decide(*who, *request, rows, answer).await
            }
            Act::Deny { who, request, way: Way::Database } => {
                self.decide(*who, *request, rows, (Decision::Deny, None, None, None)).await
            }
            Act::Grant { who, tenant, grant, way: Way::Database } => self.insert_grant(*who, *tenant, grant, now).await,
            Act::OpenSession { who, device, is_terminal, under } => {
                self.open_session(*who, *device, *is_terminal, *under).await
            }
            Act::Link { device, kind } => self.link(*device, *kind, rows).await,
            Act::Unlink { device } => self.unlink(*device, rows).await,
            Act::Report { command, state } => self.report(*command, *state, rows).await,
            Act::Claim => self.claim(rows, now, &mut done).await,
            Act::Watch => self.watch(rows, now, &mut done).await,
            Act::Sweep => self.sweep().await,
            Act::Crash { seconds } => self.crash(clamp(now + seconds * SECOND)).await,
            Act::Clock { to } => {
                clock::set(self.root(), *to).await;
                Ok(None)
            }
        };
        match made {
            Ok(made) => done.made = made,
            // What the database itself refuses.
            Err(error) if error.constraint().is_some() => {}
            Err(error) => done.wrong.push(format!("{error}: {:?}", std::error::Error::source(&error))),
        }
        done
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others go another way")]
    async fn request(&self, act: &Act, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let call = match act {
            Act::Ask { who, devices, scopes, seconds, answer_seconds } => {
                let body = json!({"device_ids": devices, "scopes": scopes, "reason": "r", "access_seconds": seconds,
                                  "answer_within_seconds": answer_seconds});
                return Ok(self.make(self.scene.post("/access-requests"), *who, body, done).await);
            }
            Act::Approve { who, request, scopes, devices, until, .. } => {
                let path = format!("/access-requests/{request}/approve");
                let body = json!({"scopes": scopes, "device_ids": devices, "access_until": until.map(rfc3339)});
                self.scene.post(&path).by(self.somebody(*who)).json(body)
            }
            Act::Deny { who, request, .. } => {
                let path = format!("/access-requests/{request}/deny");
                self.scene.post(&path).by(self.somebody(*who)).json(json!({}))
            }
            Act::Withdraw { who, request } => {
                self.scene.post(&format!("/access-requests/{request}/withdraw")).by(self.somebody(*who))
            }
            other => unreachable!("{other:?}"),
        };
        send(call, done).await;
        Ok(None)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others go another way")]
    async fn grant(&self, act: &Act, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        match act {
            Act::Grant { who, grant, .. } => {
                let NewGrant { operators, devices, scopes, start, seconds } = grant;
                let mut body = json!({"operator_ids": operators, "scopes": scopes, "reason": "r", "duration_seconds": seconds,
                                      "starts_at": start.map(rfc3339)});
                match devices {
                    Some(devices) => body["device_ids"] = json!(devices),
                    None => body["selector"] = json!({"site": "north"}),
                }
                Ok(self.make(self.scene.post("/grants"), *who, body, done).await)
            }
            Act::Extend { who, grant, end } => {
                let call = self.scene.post(&format!("/grants/{grant}/extend")).header("if-match", "*");
                let body = json!({"ends_at": rfc3339(*end)});
                // The id of the request, where two must approve: that of the grant is none that was made.
                Ok(self.make(call, *who, body, done).await.filter(|id| id != grant))
            }
            Act::Revoke { who, grant } => {
                send(self.scene.post(&format!("/grants/{grant}/revoke")).by(self.somebody(*who)), done).await;
                Ok(None)
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others go another way")]
    async fn policy(&self, act: &Act, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let call = match act {
            Act::MakePolicy { who, scopes, max_seconds, minutes } => {
                let body = json!({"name": "p", "scopes": scopes, "max_seconds": max_seconds, "from_minute": minutes.0,
                                  "to_minute": minutes.1});
                return Ok(self.make(self.scene.post("/access-policies"), *who, body, done).await);
            }
            Act::ApprovePolicy { who, policy } => {
                self.scene.post(&format!("/access-policies/{policy}/approve")).by(self.somebody(*who))
            }
            Act::RevokePolicy { who, policy, with_grants } => {
                let path = format!("/access-policies/{policy}/revoke?revoke_grants={with_grants}");
                self.scene.post(&path).by(self.somebody(*who))
            }
            Act::Need { who, tenant, approvals } => {
                let call = self.scene.patch(&format!("/tenants/{tenant}")).by(self.somebody(*who));
                call.header("if-match", "*").json(json!({"approvals_needed": approvals}))
            }
            other => unreachable!("{other:?}"),
        };
        send(call, done).await;
        Ok(None)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others go another way")]
    async fn rule(&self, act: &Act, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let call = match act {
            Act::Activate { who, whom, active } => {
                let call = self.scene.patch(&format!("/people/{whom}")).by(self.somebody(*who));
                call.json(json!({"active": active}))
            }
            Act::RevokeDevice { who, device } => {
                self.scene.post(&format!("/devices/{device}/revoke")).by(self.somebody(*who))
            }
            Act::Quarantine { who, device, begins: true } => {
                let call = self.scene.post(&format!("/devices/{device}/quarantine")).by(self.somebody(*who));
                call.json(json!({"reason": "r"}))
            }
            Act::Quarantine { who, device, begins: false } => {
                self.scene.post(&format!("/devices/{device}/release")).by(self.somebody(*who))
            }
            other => unreachable!("{other:?}"),
        };
        send(call, done).await;
        Ok(None)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the others go another way")]
    async fn operate(&self, act: &Act, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let call = match act {
            Act::Command { who, device, kind, under, queue_seconds } => {
                let (kind, arguments) = match kind {
                    Kind::Metrics => ("metrics.collect", json!({})),
                    Kind::Restart => ("service.restart", json!({"service": "web"})),
                };
                let body = json!({"kind": kind, "arguments": arguments, "reason": "r", "grant_id": under,
                                  "queue_for_seconds": queue_seconds});
                let path = format!("/devices/{device}/commands");
                return Ok(self.make(self.scene.post(&path), *who, body, done).await);
            }
            Act::OpenPort { who, device, seconds, under } => {
                let body = json!({"port": 22, "reason": "r", "grant_id": under, "seconds": seconds});
                let path = format!("/devices/{device}/openings");
                return Ok(self.make(self.scene.post(&path), *who, body, done).await);
            }
            Act::Cancel { who, command } => {
                self.scene.post(&format!("/commands/{command}/cancel")).by(self.somebody(*who))
            }
            Act::CloseSession { who, session } => {
                self.scene.post(&format!("/support-sessions/{session}/close")).by(self.somebody(*who))
            }
            Act::ClosePort { who, opening } => {
                self.scene.post(&format!("/openings/{opening}/close")).by(self.somebody(*who))
            }
            other => unreachable!("{other:?}"),
        };
        send(call, done).await;
        Ok(None)
    }

    /// The id of what was made.
    async fn make(&self, call: Call, who: Uuid, body: Value, done: &mut Done) -> Option<Uuid> {
        let mut body = body;
        body.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let answer = send(call.by(self.somebody(who)).json(body), done).await;
        answer.status.is_success().then(|| answer.json()["id"].as_str().unwrap().parse().unwrap())
    }

    fn somebody(&self, id: Uuid) -> &Somebody {
        self.people.iter().find(|somebody| somebody.id.as_uuid() == id).unwrap()
    }

    /// As the route does, for whoever is named.
    async fn decide(
        &self,
        who: Uuid,
        request: Uuid,
        rows: &Rows,
        (decision, scopes, devices, until): (Decision, Option<&Scopes>, Option<&Ids>, Option<i64>),
    ) -> Result<Option<Uuid>, StoreError> {
        let tenant = TenantId::from_uuid(rows.requests[&request].tenant);
        let scopes: Option<Vec<String>> = scopes.map(|scopes| scopes.iter().cloned().collect());
        let devices: Option<Vec<Uuid>> = devices.map(|devices| devices.iter().copied().collect());
        let mut transaction = self.store().begin(Visibility::Tenant(tenant)).await?;
        let answer = Answer {
            request: AccessRequestId::from_uuid(request),
            person: PersonId::from_uuid(who),
            decision,
            scopes: scopes.as_deref(),
            device_ids: devices.as_deref(),
            access_until: until.map(time),
            comment: None,
            grant: GrantId::from_uuid(new_id()),
            statement: None,
        };
        let action = match access_request_decide(&mut transaction, answer).await? {
            Decided::Approved if rows.requests[&request].kind == "extension" => Some("grant.extended"),
            Decided::Approved => Some("grant.created"),
            Decided::Recorded | Decided::Denied => None,
            Decided::Again
            | Decided::Unknown
            | Decided::NoPerson
            | Decided::Robot
            | Decided::Wider
            | Decided::NothingLeft
            | Decided::OperatorGone
            | Decided::GrantOver
            | Decided::Closed(_) => return Ok(None),
        };
        let step = if decision == Decision::Approve { "access_request.approved" } else { "access_request.denied" };
        for action in [Some(step), action].into_iter().flatten() {
            self.audit(&mut transaction, tenant, who, action).await?;
        }
        self.store().commit(transaction).await?;
        Ok(None)
    }

    /// As the route does where one approval is enough, for whoever is named.
    async fn insert_grant(
        &self,
        who: Uuid,
        tenant: Uuid,
        grant: &NewGrant,
        now: i64,
    ) -> Result<Option<Uuid>, StoreError> {
        let (id, tenant) = (new_id(), TenantId::from_uuid(tenant));
        let scopes: Vec<String> = grant.scopes.iter().cloned().collect();
        let ids = |ids: &Option<Ids>| ids.as_ref().map(|ids| ids.iter().copied().collect::<Vec<Uuid>>());
        let (operators, devices) = (ids(&grant.operators), ids(&grant.devices));
        let selector = serde_json::from_value(json!({"site": "north"})).unwrap();
        let start = grant.start.unwrap_or(now);
        let new = StoredGrant {
            id: GrantId::from_uuid(id),
            tenant,
            created_by: PersonId::from_uuid(who),
            reason: "r",
            scopes: &scopes,
            operator_ids: operators.as_deref(),
            device_ids: devices.as_deref(),
            selector: devices.is_none().then_some(&selector),
            starts_at: Some(time(start)),
            ends_at: End::At(time(start + grant.seconds * SECOND)),
            statement: None,
        };
        let mut transaction = self.store().begin(Visibility::Tenant(tenant)).await?;
        grant_create(&mut transaction, new).await?;
        self.audit(&mut transaction, tenant, who, "grant.created").await?;
        self.store().commit(transaction).await?;
        Ok(Some(id))
    }

    async fn audit(
        &self,
        transaction: &mut Transaction,
        tenant: TenantId,
        who: Uuid,
        action: &str,
    ) -> Result<(), StoreError> {
        let actor = Actor::Person { id: who, name: "somebody".to_owned() };
        audit_append(transaction, tenant, &actor, action, Subject::new("test", who), json!({})).await
    }

    /// As the route does, for whoever is named.
    async fn open_session(
        &self,
        who: Uuid,
        device: Uuid,
        is_terminal: bool,
        under: Option<Uuid>,
    ) -> Result<Option<Uuid>, StoreError> {
        let forward = ForwardTarget { host: "localhost".to_owned(), port: 80, via: Via::Agent };
        let target = if is_terminal { Target::Terminal } else { Target::Forward(forward) };
        let id = new_id();
        let new = NewSession {
            id: SupportSessionId::from_uuid(id),
            operator: PersonId::from_uuid(who),
            actor: server(),
            device: DeviceId::from_uuid(device),
            grant: under.map(GrantId::from_uuid),
            target: &target,
            reason: "r",
            node: NODE,
            sessions_max: i32::try_from(SESSIONS_MAX).unwrap(),
        };
        let mut transaction = self.store().begin(Visibility::All).await?;
        let made = support_session_create(&mut transaction, &new).await?;
        // A session has its place before it has its row.
        self.known.lock().unwrap().insert(id);
        self.store().commit(transaction).await?;
        if made.is_none() {
            self.known.lock().unwrap().remove(&id);
        }
        Ok(made.map(|_| id))
    }

    async fn link(&self, device: Uuid, kind: LinkKind, rows: &Rows) -> Result<Option<Uuid>, StoreError> {
        let tunnel = TunnelId::from_uuid(new_id());
        let new = NewLink {
            device_id: DeviceId::from_uuid(device),
            tunnel_id: (kind != LinkKind::Websocket).then_some(tunnel),
            has_agent: kind == LinkKind::Websocket,
            tunnel: (kind != LinkKind::Websocket).then(|| NewTunnel {
                ipv4: [100, 64, 0, 2].into(),
                ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
                client: "c".to_owned(),
                platform: "p".to_owned(),
                cipher: "AES-256-GCM",
            }),
            certificate_serial: device.simple().to_string(),
            node: NODE.to_owned(),
            transport: if kind == LinkKind::Websocket { "websocket" } else { "openvpn" },
            remote_address: [192, 0, 2, 7].into(),
            boot_id: if kind == LinkKind::Websocket { "boot".to_owned() } else { String::new() },
            agent: String::new(),
            os: String::new(),
            hostname: String::new(),
            clock_offset_ms: 0,
            capabilities: Vec::new(),
            transport_failures: Vec::new(),
            boot_hint: None,
        };
        let mut connection = self.store().connection().await?;
        link_open(&mut connection, std::slice::from_ref(&new)).await?;
        if kind == LinkKind::AgentInTunnel && !rows.devices[&device].is_revoked {
            let agent = NewLink { has_agent: true, tunnel: None, boot_id: "boot".to_owned(), ..new };
            link_open(&mut connection, &[agent]).await?;
        }
        Ok(None)
    }

    async fn unlink(&self, device: Uuid, rows: &Rows) -> Result<Option<Uuid>, StoreError> {
        let Some(link) = rows.links.get(&device).filter(|link| link.is_live) else { return Ok(None) };
        let device_id = DeviceId::from_uuid(device);
        let ended = if link.has_tunnel {
            let tunnel = sqlx::query_scalar("select tunnel_id from links where device_id = $1").bind(device);
            Ended::Tunnel(TunnelId::from_uuid(tunnel.fetch_one(self.root()).await?))
        } else {
            Ended::Link(link.epoch.unsigned_abs())
        };
        let closed = ClosedLink { device_id, ended, reason: "lost", is_loss: true };
        link_close(&mut *self.store().connection().await?, &[closed]).await?;
        Ok(None)
    }

    async fn report(&self, command: Uuid, state: Report, rows: &Rows) -> Result<Option<Uuid>, StoreError> {
        let device = rows.commands[&command].device;
        let Some(link) = rows.links.get(&device).filter(|link| link.is_live && link.has_agent) else { return Ok(None) };
        let target = match state {
            Report::Accepted => State::Accepted,
            Report::Running => State::Running,
            Report::Succeeded => State::Succeeded,
            Report::Failed => State::Failed,
            Report::Refused => State::Refused,
        };
        let source = Source::Report {
            device_id: DeviceId::from_uuid(device),
            epoch: link.epoch.unsigned_abs(),
            boot_id: "boot".to_owned(),
        };
        let transition = Transition {
            command_id: CommandId::from_uuid(command),
            target,
            source,
            code: None,
            message: None,
            percent: None,
            data: None,
        };
        let mut connection = self.store().connection().await?;
        transition_apply(&mut connection, &[transition], Durability::Stored).await?;
        Ok(None)
    }

    async fn claim(&self, rows: &Rows, now: i64, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let mut connection = self.store().connection().await?;
        let links = dispatch_list(&mut connection, NODE).await?;
        let dispatch = dispatch_claim(&mut connection, &links).await?;
        for command in dispatch.commands {
            let id = command.command_id.as_uuid();
            // One that was made at the same moment is not there yet.
            let left = rows.commands.get(&id).map(|row| micros(row.expires - now));
            if left.is_some_and(|left| command.start_by > Instant::now() + left) {
                done.wrong.push(format!("command {id} may be begun after its expiry"));
            }
            done.sent.insert(id);
        }
        Ok(None)
    }

    async fn watch(&self, rows: &Rows, now: i64, done: &mut Done) -> Result<Option<Uuid>, StoreError> {
        let known: Vec<Uuid> = self.known.lock().unwrap().iter().copied().collect();
        let watched = support_session_watch(&mut *self.store().connection().await?, &known).await?;
        for session in watched {
            let id = session.id.as_uuid();
            let Some((reason, _)) = session.over else {
                let left = rows.sessions.get(&id).map(|row| micros(rows.grants[&row.grant].end - now));
                if left.is_some_and(|left| session.deadline > Instant::now() + left) {
                    done.wrong.push(format!("session {id} has a deadline after the end of its grant"));
                }
                continue;
            };
            let mut transaction = self.store().begin(Visibility::All).await?;
            let live = support_session_lock_in_txn(&mut transaction, Closing::One(session.id)).await?;
            support_session_end_in_txn(&mut transaction, &live, server(), reason, Duration::ZERO).await?;
            self.store().commit(transaction).await?;
            self.known.lock().unwrap().remove(&id);
        }
        done.going_on = Some(self.known.lock().unwrap().iter().copied().collect());
        let mut held = Ids::new();
        for due in opening_list_due(&mut *self.store().connection().await?, NODE).await? {
            let left =
                due.news.iter().filter_map(|id| rows.openings.get(&id.as_uuid())).map(|row| row.expires - now).max();
            if due.until > Instant::now() + micros(left.unwrap_or(0)) {
                done.wrong.push(format!("port {} is held open after its time", due.port));
            }
            held.extend(due.news.iter().map(|id| id.as_uuid()));
        }
        done.held = Some(held);
        Ok(None)
    }

    async fn sweep(&self) -> Result<Option<Uuid>, StoreError> {
        let mut transaction = self.store().begin(Visibility::All).await?;
        let watch = Watch { grace: Duration::from_secs(45), watched_for: Duration::ZERO };
        deadline_sweep_in_txn(&mut transaction, watch).await?;
        self.store().commit(transaction).await?;
        opening_sweep(&mut *self.store().connection().await?).await?;
        self.sweep_sessions().await?;
        loop {
            let mut transaction = self.store().begin(Visibility::All).await?;
            let told = access::tell_one_in_txn(&mut transaction, NODE).await?;
            self.store().commit(transaction).await?;
            if told.is_none() {
                return Ok(None);
            }
        }
    }

    async fn sweep_sessions(&self) -> Result<(), StoreError> {
        let knows = |id: SupportSessionId| self.known.lock().unwrap().contains(&id.as_uuid());
        support::sweep_sessions(self.store(), NODE, knows).await?;
        Ok(())
    }

    /// Nothing is written: the process is gone. The next one finds the database as it is.
    async fn crash(&self, back_at: i64) -> Result<Option<Uuid>, StoreError> {
        self.known.lock().unwrap().clear();
        clock::set(self.root(), back_at).await;
        link_close_node(&mut *self.store().connection().await?, NODE, "node_restarted", 1_000).await?;
        self.sweep_sessions().await?;
        Ok(None)
    }

    /// How many wait for a row, a transaction or a lock that somebody else has.
    pub(super) async fn waiting(&self) -> i64 {
        self.scene.waiting().await
    }

    fn store(&self) -> &Store {
        &self.scene.store
    }
}

async fn send(call: Call, done: &mut Done) -> Response {
    let answer = call.send().await;
    if answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS {
        done.wrong.push(format!("{}: {}", answer.status, answer.text));
    }
    answer
}

fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn time(micros: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).unwrap()
}

fn rfc3339(micros: i64) -> String {
    time(micros).format(&Rfc3339).unwrap()
}
