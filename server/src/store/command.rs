//! Commands as people make, see and call them back. What becomes of them on devices is in `store::dispatch` and
//! `store::transition`.

use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, GrantId, PersonId, RolloutId, TenantId};
use cloudlink_proto::trace_parent::TraceParent;
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use crate::model::command::{Command, Instruction, State};

/// The constraint that refuses a second command with the same key of the same person.
pub const KEY_USED: &str = "commands_requested_by_idempotency_key_key";

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    device_id: Uuid,
    grant_id: Uuid,
    requested_by: Uuid,
    kind: String,
    arguments: Value,
    reason: String,
    state: String,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    deadline_at: Option<OffsetDateTime>,
    sent_at: Option<OffsetDateTime>,
    accepted_at: Option<OffsetDateTime>,
    finished_at: Option<OffsetDateTime>,
    cancel_requested_at: Option<OffsetDateTime>,
    percent: Option<i16>,
    code: Option<String>,
    message: Option<String>,
    data: Option<Value>,
    proof: Option<Value>,
    override_busy: bool,
    runs_by: Option<OffsetDateTime>,
    request_hash: Vec<u8>,
}

impl TryFrom<Row> for Command {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            device_id: row.device_id,
            grant_id: row.grant_id,
            requested_by: row.requested_by,
            kind: row.kind,
            arguments: row.arguments,
            reason: row.reason,
            state: State::named(&row.state).ok_or(StoreError::Inconsistent { table: "commands", column: "state" })?,
            created_at: row.created_at,
            expires_at: row.expires_at,
            deadline_at: row.deadline_at,
            sent_at: row.sent_at,
            accepted_at: row.accepted_at,
            finished_at: row.finished_at,
            cancel_requested_at: row.cancel_requested_at,
            percent: row.percent,
            code: row.code,
            message: row.message,
            data: row.data,
            proof: row.proof,
            override_busy: row.override_busy,
            runs_by: row.runs_by,
        })
    }
}

/// A statement that yields commands `c`: the head comes before the columns, the tail after them.
macro_rules! command_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" c.id as "id!", c.tenant_id as "tenant_id!", c.device_id as "device_id!", c.grant_id as "grant_id!",
                      c.requested_by as "requested_by!", c.kind as "kind!", c.arguments as "arguments!",
                      c.reason as "reason!", c.state as "state!", c.created_at as "created_at!",
                      c.expires_at as "expires_at!", c.deadline_at, c.sent_at, c.accepted_at, c.finished_at,
                      c.cancel_requested_at, c.percent, c.code, c.message, c.data, c.proof,
                      c.override_busy as "override_busy!",
                      command_runs_by(c.device_id, c.by_polling, c.state, c.expires_at, clock_timestamp()) as runs_by,
                      c.request_hash as "request_hash!" "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A command that somebody asks for.
#[derive(Clone, Debug)]
pub struct NewCommand {
    pub id: CommandId,
    pub operator: PersonId,
    /// Who asks, for the audit log.
    pub actor: Value,
    pub device: DeviceId,
    /// Only under this grant.
    pub grant: Option<GrantId>,
    pub instruction: Instruction,
    pub reason: String,
    /// How soon the device must begin.
    pub start_within: Duration,
    /// Whether it may wait for the device to link.
    pub may_queue: bool,
    /// Whether it is to be done also while the device holds a busy lock.
    pub override_busy: bool,
    pub idempotency_key: Option<String>,
    pub request_hash: [u8; 32],
    /// Whose doing it is.
    pub trace: Option<TraceParent>,
}

#[derive(Serialize)]
struct Asked<'a> {
    id: Uuid,
    operator_id: Uuid,
    actor: &'a Value,
    device_id: Uuid,
    grant_id: Option<Uuid>,
    scope: &'static str,
    kind: &'static str,
    arguments: Value,
    reason: &'a str,
    start_within_seconds: f64,
    run_seconds: u64,
    may_queue: bool,
    idempotency_key: Option<&'a str>,
    request_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_parent: Option<String>,
    by_polling: bool,
    disturbs: bool,
    override_busy: bool,
}

impl<'a> Asked<'a> {
    fn new(command: &'a NewCommand) -> Self {
        let kind = command.instruction.kind();
        Self {
            id: command.id.as_uuid(),
            operator_id: command.operator.as_uuid(),
            actor: &command.actor,
            device_id: command.device.as_uuid(),
            grant_id: command.grant.map(GrantId::as_uuid),
            scope: kind.scope,
            kind: kind.name,
            arguments: command.instruction.arguments(),
            reason: &command.reason,
            start_within_seconds: command.start_within.as_secs_f64(),
            run_seconds: kind.run_within.as_secs(),
            may_queue: command.may_queue,
            idempotency_key: command.idempotency_key.as_deref(),
            request_hash: HEXLOWER.encode(&command.request_hash),
            trace_parent: command.trace.map(|trace| trace.to_string()),
            by_polling: kind.by_polling,
            disturbs: kind.disturbs,
            override_busy: command.override_busy,
        }
    }
}

/// Makes each of the commands that a grant in force allows at this moment, with its audit entry: one statement, and a
/// transaction of its own when the connection is in none. Gives those that were made; a command whose key was used before is
/// not. Fails on [`KEY_USED`] if that happens meanwhile, or if two of the commands have the same key.
///
/// All commands are made before the first entry is written, tenant by tenant: whoever locks a grant, a device or a person may
/// go on to the audit log, never the other way round.
pub async fn command_create(
    connection: &mut PgConnection,
    commands: &[NewCommand],
) -> Result<Vec<Command>, StoreError> {
    let asked: Vec<Asked<'_>> = commands.iter().map(Asked::new).collect();
    command_query!(
        "with asked as (
             select a.value, (a.value ->> 'id')::uuid as id, a.value -> 'actor' as actor
               from jsonb_array_elements($1) a
              where (select k.id from commands k
                      where k.requested_by = (a.value ->> 'operator_id')::uuid
                        and k.idempotency_key = a.value ->> 'idempotency_key') is null
         ),
         made as materialized (
             select c.*, a.actor
               from commands_create((select jsonb_agg(value) from asked)) c join asked a on a.id = c.id
         ),
         audited as materialized (
             select audit_append_all(tenant_id, actors, actions, subjects, details) as seq
               from (select tenant_id,
                            array_agg(actor order by id) as actors,
                            array_agg('command.created'::text) as actions,
                            array_agg(jsonb_build_object('kind', 'command', 'id', id) order by id) as subjects,
                            array_agg(jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind,
                                                         'arguments', arguments, 'reason', reason, 'expires_at', expires_at)
                                      || case when override_busy then jsonb_build_object('override_busy', true)
                                              else '{}' end order by id) as details
                       from made
                      group by tenant_id
                      order by tenant_id) t
         )
         select",
        "from made c where (select count(seq) from audited) > 0",
        Json(&asked) as _
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Command::try_from)
    .collect()
}

/// The command that this person made with this key, and the hash of the request that made it.
pub async fn command_of_key(
    connection: &mut PgConnection,
    person: PersonId,
    key: &str,
) -> Result<Option<(Command, Vec<u8>)>, StoreError> {
    let row = command_query!(
        "select",
        "from commands c where c.requested_by = $1 and c.idempotency_key = $2",
        person.as_uuid(),
        key
    )
    .fetch_optional(connection)
    .await?;
    let Some(mut row) = row else { return Ok(None) };
    let hash = std::mem::take(&mut row.request_hash);
    Ok(Some((row.try_into()?, hash)))
}

/// Why [`command_create`] made nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    DeviceUnknown,
    DeviceRevoked,
    Grant {
        tenant: TenantId,
        missing: Missing,
    },
    NotLinked,
    /// The live link is a tunnel in which no agent answers.
    NoAgent {
        tenant: TenantId,
    },
    /// No agent answers on a live link, but the device polls.
    Polling {
        tenant: TenantId,
        /// Its next poll comes by then.
        next_by: OffsetDateTime,
    },
    /// Nothing any more: what was in the way has gone.
    Gone,
}

/// What is missing of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    None,
    Scope,
    Ended,
    Revoked,
    NotStarted,
    NotNamed,
}

impl Missing {
    const ALL: [Self; 6] = [Self::None, Self::Scope, Self::Ended, Self::Revoked, Self::NotStarted, Self::NotNamed];

    /// Name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Scope => "scope",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
            Self::NotStarted => "not_started",
            Self::NotNamed => "not_named",
        }
    }
}

/// Tells what stands in the way of a command: of the grants that come near, the nearest.
pub async fn command_explain(
    connection: &mut PgConnection,
    operator: PersonId,
    device: DeviceId,
    grant: Option<GrantId>,
    scopes: &[&str],
) -> Result<Obstacle, StoreError> {
    let scopes: Vec<String> = scopes.iter().map(|&scope| scope.to_owned()).collect();
    let row = sqlx::query!(
        r#"select d.tenant_id, d.state,
                  (select l.has_agent from links l where l.device_id = d.id and l.closed_at is null) as has_agent,
                  device_next_poll_by(d.id, clock_timestamp()) as next_poll_by,
                  (select near.missing
                     from (select case
                                    when is_named and has_scope and state = 'in_force' then 'nothing'
                                    when is_named and state = 'in_force' then 'scope'
                                    when is_named and has_scope and state = 'scheduled' then 'not_started'
                                    when is_named and has_scope then state
                                    when has_scope and state = 'in_force' then 'not_named'
                                  end as missing,
                                  over_at
                             from (select g.operator_ids is null or $2 = any (g.operator_ids) as is_named,
                                          $4::text[] <@ g.scopes as has_scope,
                                          grant_state(g, clock_timestamp()) as state,
                                          coalesce(g.revoked_at, g.ends_at) as over_at
                                     from grants g
                                    where g.tenant_id = d.tenant_id and ($3::uuid is null or g.id = $3)
                                      and coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector))) g) near
                    where near.missing is not null
                    order by array_position(array['nothing', 'scope', 'not_started', 'revoked', 'ended', 'not_named'],
                                            case when near.missing = 'ended' then 'revoked' else near.missing end),
                             near.over_at desc
                    limit 1) as missing
             from devices d join tenants n on n.id = d.tenant_id and not n.internal where d.id = $1"#,
        device.as_uuid(),
        operator.as_uuid(),
        grant.map(GrantId::as_uuid),
        &scopes as &[String]
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(Obstacle::DeviceUnknown) };
    if row.state == "revoked" {
        return Ok(Obstacle::DeviceRevoked);
    }
    let tenant = TenantId::from_uuid(row.tenant_id);
    match (row.missing.as_deref(), row.has_agent, row.next_poll_by) {
        (Some("nothing"), Some(true), _) => Ok(Obstacle::Gone),
        (Some("nothing"), _, Some(next_by)) => Ok(Obstacle::Polling { tenant, next_by }),
        (Some("nothing"), Some(false), None) => Ok(Obstacle::NoAgent { tenant }),
        (Some("nothing"), None, None) => Ok(Obstacle::NotLinked),
        (missing, _, _) => {
            let named = Missing::ALL.into_iter().find(|known| Some(known.name()) == missing);
            Ok(Obstacle::Grant { tenant, missing: named.unwrap_or(Missing::None) })
        }
    }
}

pub async fn command_show(connection: &mut PgConnection, id: CommandId) -> Result<Option<Command>, StoreError> {
    command_query!("select", "from commands c where c.id = $1", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(Command::try_from)
        .transpose()
}

/// What [`command_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommandFilter {
    pub device: Option<DeviceId>,
    pub grant: Option<GrantId>,
    pub state: Option<State>,
}

/// Commands, newest first, after the position given.
pub async fn command_list(
    connection: &mut PgConnection,
    filter: CommandFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<Command>, StoreError> {
    let (after_time, after_id) = after.unzip();
    command_query!(
        "select",
        "from commands c
          where ($1::uuid is null or c.device_id = $1) and ($2::uuid is null or c.grant_id = $2)
            and ($3::text is null or c.state = $3)
            and ($4::timestamptz is null or (c.created_at, c.id) < ($4, $5::uuid))
          order by c.created_at desc, c.id desc limit $6",
        filter.device.map(DeviceId::as_uuid),
        filter.grant.map(GrantId::as_uuid),
        filter.state.map(State::name),
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(Command::try_from)
    .collect()
}

/// Which open commands are to be called back.
#[derive(Clone, Copy, Debug)]
pub enum Cancellation {
    One(CommandId),
    UnderGrant(GrantId),
    OfDevice(DeviceId),
    OfPerson(PersonId),
    OfRollout(RolloutId),
}

/// What calling back did to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalledBack {
    pub command: CommandId,
    pub device: DeviceId,
    pub kind: String,
    /// True: it is `cancelled`. False: it was sent, and its device is still to be told.
    pub is_cancelled: bool,
}

/// Open commands, locked to be called back.
#[derive(Debug)]
pub struct OpenCommands(Vec<Uuid>);

/// Waits for the open commands that have not begun, and keeps them as they are to the end of this transaction. Comes before
/// anything that writes to the audit log: whoever reports on a command locks it first and the log second, too.
pub async fn command_lock_in_txn(
    connection: &mut PgConnection,
    which: Cancellation,
) -> Result<OpenCommands, StoreError> {
    let (mut one, mut grant, mut device, mut person, mut rollout) = (None, None, None, None, None);
    match which {
        Cancellation::One(id) => one = Some(id.as_uuid()),
        Cancellation::UnderGrant(id) => grant = Some(id.as_uuid()),
        Cancellation::OfDevice(id) => device = Some(id.as_uuid()),
        Cancellation::OfPerson(id) => person = Some(id.as_uuid()),
        Cancellation::OfRollout(id) => rollout = Some(id.as_uuid()),
    }
    let ids = sqlx::query_scalar!(
        "select id from commands
          where finished_at is null and state in ('queued', 'sent', 'accepted')
            and ($1::uuid is null or id = $1) and ($2::uuid is null or grant_id = $2)
            and ($3::uuid is null or device_id = $3) and ($4::uuid is null or requested_by = $4)
            and ($5::uuid is null or id in (select t.command_id from rollout_targets t where t.rollout_id = $5))
          order by id for no key update",
        one,
        grant,
        device,
        person,
        rollout
    );
    Ok(OpenCommands(ids.fetch_all(connection).await?))
}

/// Calls back commands: queued ones are cancelled here and now; for those that were sent it is noted, and whoever serves the
/// device's link tells it. Each with its entry in the audit log.
pub async fn command_cancel_in_txn(
    connection: &mut PgConnection,
    open: &OpenCommands,
    actor: Value,
    code: &str,
    message: &str,
) -> Result<Vec<CalledBack>, StoreError> {
    let rows = sqlx::query!(
        r#"with before as (
               select id, state = 'queued' as is_queued, cancel_requested_at is null as is_first from commands
                where id = any ($1) and state in ('queued', 'sent', 'accepted')
           ), called as (
               update commands c
                  set state = case when is_queued then 'cancelled' else c.state end,
                      deadline_at = case when is_queued then null else c.deadline_at end,
                      finished_at = case when is_queued then clock_timestamp() end,
                      code = case when is_queued then $2 else c.code end,
                      message = case when is_queued then $3 else c.message end,
                      cancel_requested_at = coalesce(c.cancel_requested_at, clock_timestamp())
                 from before b where c.id = b.id
               returning c.id, c.tenant_id, c.device_id, c.grant_id, c.kind, c.state, c.code, c.message, is_queued, is_first
           )
           select id, device_id, kind, is_queued as "is_cancelled!",
                  case when is_queued then audit_append(
                      tenant_id, $4, 'command.finished', jsonb_build_object('kind', 'command', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind, 'state', state,
                                         'code', code, 'message', message, 'proof', null))
                  when is_first then audit_append(
                      tenant_id, $4, 'command.cancel_requested', jsonb_build_object('kind', 'command', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind, 'code', $2))
                  end as audited
             from (select * from called order by tenant_id, id) c"#,
        &open.0,
        code,
        message,
        actor
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| CalledBack {
            command: CommandId::from_uuid(row.id),
            device: DeviceId::from_uuid(row.device_id),
            kind: row.kind,
            is_cancelled: row.is_cancelled,
        })
        .collect())
}
