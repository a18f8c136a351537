//! Support sessions: made by `support_session_create()` in the database and by nothing else, ended by their node, or by whoever
//! ends their grant, device or operator. What must be over is what `support_session_over()` says.

use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, GrantId, PersonId, SupportSessionId, TenantId};
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::command::{self, Missing, command_explain};
use super::notice::notice_emit;
use super::{StoreError, TELLS_WHEN_WITHIN};
use crate::model::audit::Actor;
use crate::model::notice::Event;
use crate::model::support_session::{EndReason, Guest, Kind, SessionState, SupportSession, Target};

struct Row {
    id: Uuid,
    tenant_id: Uuid,
    device_id: Uuid,
    grant_id: Uuid,
    opened_by: Uuid,
    kind: String,
    target: Value,
    reason: String,
    node: String,
    created_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    expires_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    end_reason: Option<String>,
    cut_off_ms: Option<i32>,
    bytes_to_device: i64,
    bytes_from_device: i64,
    result: Value,
    guests: Json<Vec<Guest>>,
}

impl TryFrom<Row> for SupportSession {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let state = match (row.ended_at, row.started_at) {
            (Some(_), _) => SessionState::Ended,
            (None, Some(_)) => SessionState::Live,
            (None, None) => SessionState::Waiting,
        };
        Ok(Self {
            id: row.id,
            tenant_id: row.tenant_id,
            device_id: row.device_id,
            grant_id: row.grant_id,
            opened_by: row.opened_by,
            kind: kind(&row.kind)?,
            target: row.target,
            reason: row.reason,
            state,
            node: row.node,
            created_at: row.created_at,
            started_at: row.started_at,
            expires_at: row.expires_at,
            ended_at: row.ended_at,
            end_reason: row.end_reason,
            cut_off_ms: row.cut_off_ms,
            bytes_to_device: row.bytes_to_device,
            bytes_from_device: row.bytes_from_device,
            result: row.result,
            guests: row.guests.0,
        })
    }
}

fn kind(name: &str) -> Result<Kind, StoreError> {
    Kind::named(name).ok_or(StoreError::Inconsistent { table: "support_sessions", column: "kind" })
}

/// A statement that yields sessions `s`: the head comes before the columns, the tail after them.
macro_rules! session_query {
    ($head:literal, $tail:literal $(, $argument:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            $head
                + r#" s.id as "id!", s.tenant_id as "tenant_id!", s.device_id as "device_id!", s.grant_id as "grant_id!",
                      s.opened_by as "opened_by!", s.kind as "kind!", s.target as "target!", s.reason as "reason!",
                      s.node as "node!", s.created_at as "created_at!", s.started_at, s.expires_at as "expires_at!",
                      s.ended_at, s.end_reason, s.cut_off_ms, s.bytes_to_device as "bytes_to_device!",
                      s.bytes_from_device as "bytes_from_device!", s.result as "result!",
                      coalesce((select jsonb_agg(jsonb_build_object('person_id', q.person_id, 'joined_at', q.joined_at,
                                                                    'left_at', q.left_at) order by q.joined_at, q.id)
                                  from support_guests q where q.session_id = s.id), '[]') as "guests!: Json<Vec<Guest>>" "#
                + $tail
            $(, $argument)*
        )
    };
}

/// A session that somebody asks for.
#[derive(Clone, Debug)]
pub struct NewSession<'a> {
    pub id: SupportSessionId,
    pub operator: PersonId,
    /// Who asks, for the audit log.
    pub actor: Value,
    pub device: DeviceId,
    /// Only under this grant.
    pub grant: Option<GrantId>,
    pub target: &'a Target,
    pub reason: &'a str,
    pub node: &'a str,
    /// The most sessions of the device that have not ended.
    pub sessions_max: i32,
}

/// Makes a session if a grant in force allows it at this moment and the device has a link, with its audit entry: one statement.
pub async fn support_session_create(
    connection: &mut PgConnection,
    new: &NewSession<'_>,
) -> Result<Option<SupportSession>, StoreError> {
    session_query!(
        "with made as materialized (
             select * from support_session_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         )
         select",
        "from (
            select m.*, audit_append(
                       m.tenant_id, $11, 'support_session.opened',
                       jsonb_build_object('kind', 'support_session', 'id', m.id),
                       jsonb_build_object('device_id', m.device_id, 'grant_id', m.grant_id, 'kind', m.kind,
                                          'target', m.target, 'reason', m.reason, 'expires_at', m.expires_at)) as audited
              from made m
            offset 0) s
          where s.audited > 0",
        new.id.as_uuid(),
        new.operator.as_uuid(),
        new.device.as_uuid(),
        new.grant.map(GrantId::as_uuid),
        new.target.scope(),
        new.target.kind().name(),
        new.target.to_json(),
        new.reason,
        new.node,
        new.sessions_max,
        new.actor,
    )
    .fetch_optional(connection)
    .await?
    .map(SupportSession::try_from)
    .transpose()
}

/// Why [`support_session_create`] made nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    DeviceUnknown,
    DeviceRevoked,
    Grant {
        tenant: TenantId,
        missing: Missing,
    },
    Quarantined {
        tenant: TenantId,
    },
    NotLinked {
        tenant: TenantId,
    },
    /// It has no live link, and polls.
    Polling {
        tenant: TenantId,
    },
    TooMany {
        tenant: TenantId,
    },
    /// Nothing any more: what was in the way has gone.
    Gone,
}

/// Tells what stands in the way of a session. Who has no grant learns nothing else.
pub async fn support_session_explain(
    connection: &mut PgConnection,
    new: &NewSession<'_>,
) -> Result<Obstacle, StoreError> {
    let is_polling =
        match command_explain(connection, new.operator, new.device, new.grant, &[new.target.scope()]).await? {
            command::Obstacle::DeviceUnknown => return Ok(Obstacle::DeviceUnknown),
            command::Obstacle::DeviceRevoked => return Ok(Obstacle::DeviceRevoked),
            command::Obstacle::Grant { tenant, missing } => return Ok(Obstacle::Grant { tenant, missing }),
            // The grant is there.
            command::Obstacle::Polling { .. } => true,
            command::Obstacle::NotLinked | command::Obstacle::NoAgent { .. } | command::Obstacle::Gone => false,
        };
    let row = sqlx::query!(
        r#"select d.tenant_id, d.quarantined_at is not null as "is_quarantined!",
                  exists (select from links l where l.device_id = d.id and l.closed_at is null) as "is_linked!",
                  (select count(*) from support_sessions s where s.device_id = d.id and s.ended_at is null) >= $2::integer
                      as "is_full!"
             from devices d where d.id = $1"#,
        new.device.as_uuid(),
        new.sessions_max
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(Obstacle::DeviceUnknown) };
    let tenant = TenantId::from_uuid(row.tenant_id);
    Ok(match (row.is_quarantined, row.is_linked, row.is_full) {
        (true, _, _) => Obstacle::Quarantined { tenant },
        (false, false, _) if is_polling => Obstacle::Polling { tenant },
        (false, false, _) => Obstacle::NotLinked { tenant },
        (false, true, true) => Obstacle::TooMany { tenant },
        (false, true, false) => Obstacle::Gone,
    })
}

/// What a node needs to know to serve a session that was made a moment ago.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// Never later than the database's clock says.
    pub deadline: Instant,
    /// The grant as the tenant signed it, if it did.
    pub grant_statement: Option<String>,
    /// Where the device's live link is, and what it can do.
    pub link: Option<LinkFacts>,
}

#[derive(Clone, Debug)]
pub struct LinkFacts {
    pub node: String,
    pub has_agent: bool,
    pub has_tunnel: bool,
    pub capabilities: Vec<String>,
}

/// To be asked in the transaction that makes the session.
pub async fn support_session_facts(
    connection: &mut PgConnection,
    id: SupportSessionId,
) -> Result<Option<SessionFacts>, StoreError> {
    // Before the database reads its clock: what it says is left then is left from here on at most.
    let asked_at = Instant::now();
    let row = sqlx::query!(
        r#"select extract(epoch from g.ends_at - clock_timestamp())::float8 as "seconds_left!", g.statement,
                  l.node as "node?", l.has_agent as "has_agent?", l.tunnel_id is not null as "has_tunnel!",
                  l.capabilities as "capabilities?"
             from support_sessions s
             join grants g on g.id = s.grant_id
             left join links l on l.device_id = s.device_id and l.closed_at is null
            where s.id = $1"#,
        id.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| SessionFacts {
        deadline: deadline(asked_at, row.seconds_left),
        grant_statement: row.statement,
        link: row.node.map(|node| LinkFacts {
            node,
            has_agent: row.has_agent.unwrap_or_default(),
            has_tunnel: row.has_tunnel,
            capabilities: row.capabilities.unwrap_or_default(),
        }),
    }))
}

fn deadline(asked_at: Instant, seconds_left: f64) -> Instant {
    asked_at + Duration::try_from_secs_f64(seconds_left).unwrap_or_default()
}

pub async fn support_session_show(
    connection: &mut PgConnection,
    id: SupportSessionId,
) -> Result<Option<SupportSession>, StoreError> {
    session_query!("select", "from support_sessions s where s.id = $1", id.as_uuid())
        .fetch_optional(connection)
        .await?
        .map(SupportSession::try_from)
        .transpose()
}

/// What [`support_session_list`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionFilter {
    pub device: Option<DeviceId>,
    pub grant: Option<GrantId>,
    /// Who opened it.
    pub person: Option<PersonId>,
    /// Whether it has not ended.
    pub live: Option<bool>,
    /// Made at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Made before this time.
    pub until: Option<OffsetDateTime>,
}

/// Sessions, newest first, after the position given.
pub async fn support_session_list(
    connection: &mut PgConnection,
    filter: SessionFilter,
    after: Option<(OffsetDateTime, Uuid)>,
    limit: i64,
) -> Result<Vec<SupportSession>, StoreError> {
    let (after_time, after_id) = after.unzip();
    session_query!(
        "select",
        "from support_sessions s
          where ($1::uuid is null or s.device_id = $1) and ($2::uuid is null or s.grant_id = $2)
            and ($3::uuid is null or s.opened_by = $3) and ($4::boolean is null or (s.ended_at is null) = $4)
            and ($5::timestamptz is null or s.created_at >= $5) and ($6::timestamptz is null or s.created_at < $6)
            and ($7::timestamptz is null or (s.created_at, s.id) < ($7, $8::uuid))
          order by s.created_at desc, s.id desc limit $9",
        filter.device.map(DeviceId::as_uuid),
        filter.grant.map(GrantId::as_uuid),
        filter.person.map(PersonId::as_uuid),
        filter.live,
        filter.from,
        filter.until,
        after_time,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(SupportSession::try_from)
    .collect()
}

/// Notes that the first stream of a session is there. False: the session has ended meanwhile.
pub async fn support_session_start_in_txn(
    connection: &mut PgConnection,
    id: SupportSessionId,
) -> Result<bool, StoreError> {
    let started = sqlx::query!(
        "update support_sessions set started_at = coalesce(started_at, clock_timestamp()) where id = $1 and ended_at is null",
        id.as_uuid()
    )
    .execute(connection)
    .await?;
    Ok(started.rows_affected() > 0)
}

/// Which sessions are to be ended.
#[derive(Clone, Copy, Debug)]
pub enum Closing {
    One(SupportSessionId),
    UnderGrant(GrantId),
    OfDevice(DeviceId),
    OfPerson(PersonId),
}

/// Sessions that have not ended, locked to be.
#[derive(Debug)]
pub struct LiveSessions(Vec<Uuid>);

/// Waits for the sessions that have not ended, and keeps them as they are to the end of this transaction. Comes before anything
/// that writes to the audit log.
pub async fn support_session_lock_in_txn(
    connection: &mut PgConnection,
    which: Closing,
) -> Result<LiveSessions, StoreError> {
    let (one, grant, device, person) = match which {
        Closing::One(id) => (Some(id.as_uuid()), None, None, None),
        Closing::UnderGrant(id) => (None, Some(id.as_uuid()), None, None),
        Closing::OfDevice(id) => (None, None, Some(id.as_uuid()), None),
        Closing::OfPerson(id) => (None, None, None, Some(id.as_uuid())),
    };
    let ids = sqlx::query_scalar!(
        "select id from support_sessions
          where ended_at is null and ($1::uuid is null or id = $1) and ($2::uuid is null or grant_id = $2)
            and ($3::uuid is null or device_id = $3) and ($4::uuid is null or opened_by = $4)
          order by id for no key update",
        one,
        grant,
        device,
        person
    );
    Ok(LiveSessions(ids.fetch_all(connection).await?))
}

/// A session that has just ended in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedSession {
    pub id: SupportSessionId,
    pub tenant: TenantId,
    pub device: DeviceId,
}

/// Ends sessions, each with its entry in the audit log. Their nodes are to be told.
pub async fn support_session_end_in_txn(
    connection: &mut PgConnection,
    sessions: &LiveSessions,
    actor: Value,
    reason: EndReason,
    ago: Duration,
) -> Result<Vec<EndedSession>, StoreError> {
    let rows = sqlx::query!(
        r#"with ended as (
               update support_sessions
                  set ended_at = greatest(created_at, clock_timestamp() - make_interval(secs => $4)), end_reason = $2
                where id = any ($1) and ended_at is null
               returning id, tenant_id, device_id, grant_id, kind, end_reason
           )
           select id, tenant_id, device_id, audit_append(
                      tenant_id, $3, 'support_session.ended', jsonb_build_object('kind', 'support_session', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind,
                                         'reason', end_reason)) as audited
             from (select * from ended order by tenant_id, id) e"#,
        &sessions.0,
        reason.name(),
        actor,
        ago.as_secs_f64()
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| ended(row.id, row.tenant_id, row.device_id)).collect())
}

fn ended(id: Uuid, tenant: Uuid, device: Uuid) -> EndedSession {
    EndedSession {
        id: SupportSessionId::from_uuid(id),
        tenant: TenantId::from_uuid(tenant),
        device: DeviceId::from_uuid(device),
    }
}

/// Tells people outside that sessions have ended, in the same transaction. Says whether there is anybody to be told.
pub async fn support_session_tell_in_txn(
    connection: &mut PgConnection,
    sessions: &[EndedSession],
) -> Result<bool, StoreError> {
    let mut is_told = false;
    for session in sessions {
        is_told |= tell(&mut *connection, session.id, session.tenant, Event::SupportSessionEnded).await?;
    }
    Ok(is_told)
}

/// The same of one that has started.
pub async fn support_session_tell_start_in_txn(
    connection: &mut PgConnection,
    id: SupportSessionId,
    tenant: TenantId,
) -> Result<bool, StoreError> {
    tell(connection, id, tenant, Event::SupportSessionStarted).await
}

async fn tell(
    connection: &mut PgConnection,
    id: SupportSessionId,
    tenant: TenantId,
    event: Event,
) -> Result<bool, StoreError> {
    let Some(session) = support_session_show(&mut *connection, id).await? else { return Ok(false) };
    notice_emit(connection, tenant, event, json!(session)).await
}

/// What a session came to, as its node knows it.
#[derive(Clone, Debug)]
pub struct SessionFigures {
    pub cut_off: Option<Duration>,
    pub bytes_to_device: u64,
    pub bytes_from_device: u64,
    /// Never empty.
    pub result: Value,
}

/// Writes what a session that has ended came to, once, with an entry in the audit log.
pub async fn support_session_account_in_txn(
    connection: &mut PgConnection,
    id: SupportSessionId,
    figures: &SessionFigures,
) -> Result<(), StoreError> {
    let cut_off_ms = figures.cut_off.map(|cut_off| i32::try_from(cut_off.as_millis()).unwrap_or(i32::MAX));
    sqlx::query!(
        r#"with accounted as (
               update support_sessions
                  set cut_off_ms = $2, bytes_to_device = $3, bytes_from_device = $4, result = $5
                where id = $1 and ended_at is not null and result = '{}'
               returning *
           ), left_behind as (
               update support_guests set left_at = clock_timestamp()
                where session_id in (select id from accounted) and left_at is null
           )
           select audit_append(
                      tenant_id, $6, 'support_session.accounted', jsonb_build_object('kind', 'support_session', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind, 'reason', end_reason,
                                         'cut_off_ms', cut_off_ms, 'bytes_to_device', bytes_to_device,
                                         'bytes_from_device', bytes_from_device, 'result', result)) as audited
             from accounted"#,
        id.as_uuid(),
        cut_off_ms,
        i64::try_from(figures.bytes_to_device).unwrap_or(i64::MAX),
        i64::try_from(figures.bytes_from_device).unwrap_or(i64::MAX),
        figures.result,
        server(),
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// Who ends what nobody ends.
#[must_use]
pub fn server() -> Value {
    Actor::Server { name: "cloudlinkd".to_owned() }.to_json()
}

/// Sessions that one sweep ends. Whoever gets as many sweeps again.
const SWEEP_MAX: i64 = 256;

/// Ends what is over at this moment by the database's clock, whatever it was that ended it: one statement. Several nodes may
/// sweep at once: what one has locked, another passes over.
pub async fn support_session_sweep_in_txn(connection: &mut PgConnection) -> Result<Vec<EndedSession>, StoreError> {
    let rows = sqlx::query!(
        r#"with over as materialized (
               select s.id, v.reason,
                      case v.reason when 'grant_ended' then g.ends_at when 'grant_revoked' then g.revoked_at
                                    when 'device_revoked' then d.revoked_at when 'quarantined' then d.quarantined_at
                      end as at
                 from support_sessions s
                 join grants g on g.id = s.grant_id
                 join devices d on d.id = s.device_id
                 join people p on p.id = s.opened_by
                cross join lateral (select support_session_over(s, g, d, p, clock_timestamp()) as reason) v
                where s.ended_at is null and v.reason is not null
                order by s.id
                limit $1
                  for update of s skip locked
           ), ended as (
               update support_sessions s
                  set ended_at = greatest(s.created_at, coalesce(v.at, clock_timestamp())), end_reason = v.reason
                 from over v where s.id = v.id
               returning s.id, s.tenant_id, s.device_id, s.grant_id, s.kind, s.end_reason
           )
           select id, tenant_id, device_id, audit_append(
                      tenant_id, $2, 'support_session.ended', jsonb_build_object('kind', 'support_session', 'id', id),
                      jsonb_build_object('device_id', device_id, 'grant_id', grant_id, 'kind', kind,
                                         'reason', end_reason)) as audited
             from (select * from ended order by tenant_id, id) e"#,
        SWEEP_MAX,
        server(),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| ended(row.id, row.tenant_id, row.device_id)).collect())
}

/// How a session of a node stands.
#[derive(Clone, Debug)]
pub struct WatchedSession {
    pub id: SupportSessionId,
    /// When its grant ends. Never later than the database's clock says.
    pub deadline: Instant,
    /// Why it is over, and since when. Never later than the database's clock says.
    pub over: Option<(EndReason, Instant)>,
}

/// How these sessions stand, and notes grants that end at another time than before.
pub async fn support_session_watch(
    connection: &mut PgConnection,
    sessions: &[Uuid],
) -> Result<Vec<WatchedSession>, StoreError> {
    let mut asked_at = Instant::now();
    let mut rows = watched_rows(connection, sessions).await?;
    if asked_at.elapsed() > TELLS_WHEN_WITHIN && rows.iter().any(|row| row.reason.is_some()) {
        asked_at = Instant::now();
        rows = watched_rows(connection, sessions).await?;
    }
    rows.into_iter()
        .map(|row| {
            let unreadable = || StoreError::Inconsistent { table: "support_sessions", column: "end_reason" };
            let since = Duration::try_from_secs_f64(row.seconds_over).unwrap_or_default();
            // A moment before the start of this machine is none.
            let over_at = asked_at.checked_sub(since).unwrap_or(asked_at);
            let reason = row.reason.map(|name| EndReason::named(&name).ok_or_else(unreadable)).transpose()?;
            Ok(WatchedSession {
                id: SupportSessionId::from_uuid(row.id),
                deadline: deadline(asked_at, row.seconds_left),
                over: reason.map(|reason| (reason, over_at)),
            })
        })
        .collect()
}

struct WatchedRow {
    id: Uuid,
    seconds_left: f64,
    reason: Option<String>,
    seconds_over: f64,
}

async fn watched_rows(connection: &mut PgConnection, sessions: &[Uuid]) -> Result<Vec<WatchedRow>, StoreError> {
    let rows = sqlx::query_as!(
        WatchedRow,
        r#"with moved as (
               update support_sessions s set expires_at = m.ends_at
                 from (select s.id, g.ends_at
                         from support_sessions s
                         join grants g on g.id = s.grant_id
                        where s.id = any ($1) and s.ended_at is null and s.expires_at <> g.ends_at
                          -- Whoever holds one for long must not hold up what ends the others.
                          for update of s skip locked) m
                where s.id = m.id
           )
           select s.id, extract(epoch from g.ends_at - clock_timestamp())::float8 as "seconds_left!",
                  v.reason,
                  extract(epoch from clock_timestamp() - coalesce(
                      case v.reason when 'grant_ended' then g.ends_at when 'grant_revoked' then g.revoked_at
                                    when 'device_revoked' then d.revoked_at when 'quarantined' then d.quarantined_at
                      end, s.ended_at, clock_timestamp()))::float8 as "seconds_over!"
             from support_sessions s
             join grants g on g.id = s.grant_id
             join devices d on d.id = s.device_id
             join people p on p.id = s.opened_by
            cross join lateral (
                select coalesce(s.end_reason, support_session_over(s, g, d, p, clock_timestamp())) as reason) v
            where s.id = any ($1)"#,
        sessions
    );
    Ok(rows.fetch_all(connection).await?)
}

/// The sessions of a node that have not ended, by the database.
pub async fn support_session_list_open(
    connection: &mut PgConnection,
    node: &str,
) -> Result<Vec<SupportSessionId>, StoreError> {
    let ids = sqlx::query_scalar!("select id from support_sessions where node = $1 and ended_at is null", node);
    Ok(ids.fetch_all(connection).await?.into_iter().map(SupportSessionId::from_uuid).collect())
}

/// Keeps these sessions as they are to the end of this transaction, as far as they have not ended.
pub async fn support_session_lock_some_in_txn(
    connection: &mut PgConnection,
    sessions: &[SupportSessionId],
) -> Result<LiveSessions, StoreError> {
    let ids: Vec<Uuid> = sessions.iter().map(|id| id.as_uuid()).collect();
    let ids = sqlx::query_scalar!(
        "select id from support_sessions where id = any ($1) and ended_at is null order by id for no key update",
        &ids
    );
    Ok(LiveSessions(ids.fetch_all(connection).await?))
}

/// Somebody who is to join a session.
#[derive(Clone, Debug)]
pub struct NewGuest<'a> {
    pub id: Uuid,
    pub session: SupportSessionId,
    pub person: PersonId,
    pub actor: Value,
    pub scope: &'a str,
    /// Whether to type, or only to see.
    pub operates: bool,
}

/// Lets somebody join if that is allowed at this moment: an operator under a grant of its own, people of the device's tenant to
/// watch. With its audit entry: one statement.
pub async fn support_guest_join(connection: &mut PgConnection, new: &NewGuest<'_>) -> Result<bool, StoreError> {
    let rows = sqlx::query!(
        r#"with joined as materialized (
               insert into support_guests (id, session_id, tenant_id, person_id)
               select $1, s.id, s.tenant_id, p.id
                 from support_sessions s
                 join devices d on d.id = s.device_id
                 join people p on p.id = $3
                where s.id = $2 and s.ended_at is null and support_guest_may(s, d, p, $4, $5)
               returning *
           )
           select audit_append(
                      tenant_id, $6, 'support_session.joined',
                      jsonb_build_object('kind', 'support_session', 'id', session_id),
                      jsonb_build_object('mode', case when $5 then 'operate' else 'watch' end)) as audited
             from joined"#,
        new.id,
        new.session.as_uuid(),
        new.person.as_uuid(),
        new.scope,
        new.operates,
        new.actor,
    )
    .fetch_all(connection)
    .await?;
    Ok(!rows.is_empty())
}

/// Notes that guests have gone.
pub async fn support_guest_leave(connection: &mut PgConnection, guests: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query!(
        "update support_guests set left_at = clock_timestamp() where id = any ($1) and left_at is null",
        guests
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Somebody who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentGuest<'a> {
    pub id: Uuid,
    pub scope: &'a str,
    pub operates: bool,
}

/// Those of them who may not be there any more.
pub async fn support_guest_list_over(
    connection: &mut PgConnection,
    guests: &[PresentGuest<'_>],
) -> Result<Vec<Uuid>, StoreError> {
    let ids: Vec<Uuid> = guests.iter().map(|guest| guest.id).collect();
    let scopes: Vec<String> = guests.iter().map(|guest| guest.scope.to_owned()).collect();
    let operates: Vec<bool> = guests.iter().map(|guest| guest.operates).collect();
    let over = sqlx::query_scalar!(
        r#"select q.id
             from unnest($1::uuid[], $2::text[], $3::boolean[]) as t(id, scope, operates)
             join support_guests q on q.id = t.id
             join support_sessions s on s.id = q.session_id
             join devices d on d.id = s.device_id
             join people p on p.id = q.person_id
            where not support_guest_may(s, d, p, t.scope, t.operates)"#,
        &ids,
        &scopes,
        &operates
    );
    Ok(over.fetch_all(connection).await?)
}
