//! What is due to be sent to linked devices: queued commands under a grant in force, and calls to hold back.

use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId, GrantId};
use cloudlink_proto::trace_parent::TraceParent;
use serde_json::{Value, json};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::StoreError;
use super::poll::told_within;
use super::transition::kinds_proven_by_boot;
use crate::model::command::{Instruction, SENT_GRACE};
use crate::trace::place;

/// Commands that one call claims, over all its links. Whoever gets as many asks again.
pub const CLAIM_MAX: i64 = 512;

/// The newest link of a device, as its node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkKey {
    pub device_id: DeviceId,
    pub epoch: u64,
}

/// A command that is marked as sent over the link, and is to be sent now.
#[derive(Clone, Debug)]
pub struct ClaimedCommand {
    pub link: LinkKey,
    pub command_id: CommandId,
    pub grant_id: GrantId,
    pub instruction: Instruction,
    /// The moment after which it is not to be begun: what the database's clock had left when it was claimed.
    pub start_by: Instant,
    pub requested_by: String,
    pub reason: String,
    /// The grant as the tenant signed it, if it did.
    pub grant_statement: Option<String>,
    /// Whose doing it is.
    pub trace: Option<TraceParent>,
    /// Whether an earlier link may have delivered it already.
    pub is_resent: bool,
    /// To be done also while the device holds a busy lock.
    pub override_busy: bool,
}

/// A command that was sent and is not to be begun any more.
#[derive(Clone, Copy, Debug)]
pub struct Callback {
    pub link: LinkKey,
    pub command_id: CommandId,
    pub reason: &'static str,
}

/// A command that was claimed, and that this binary cannot read: a newer one made it. It is not to be sent.
#[derive(Clone, Copy, Debug)]
pub struct UnreadableCommand {
    pub command_id: CommandId,
    /// Whether an earlier link may have delivered it already.
    pub is_resent: bool,
}

/// What is to be sent now.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    pub commands: Vec<ClaimedCommand>,
    pub unreadable: Vec<UnreadableCommand>,
    pub callbacks: Vec<Callback>,
}

/// Claims what is due on these links, by one statement: the link is its device's newest, the grant is in force at this
/// moment and still for the device, the command has not expired.
///
/// What was sent over an earlier link and not accepted is due again: the device knows it if it came. A reboot or shutdown
/// that was sent in an earlier boot is not: that boot's end may have been its doing, and the device's ledger will tell.
///
/// The mark of a sending is on the disk before anything is sent: whoever cancels or expires a queued command says that nothing
/// was begun, also after a crash or a switch of the database.
pub async fn dispatch_claim(connection: &mut PgConnection, links: &[LinkKey]) -> Result<Dispatch, StoreError> {
    let devices: Vec<Uuid> = links.iter().map(|link| link.device_id.as_uuid()).collect();
    let epochs: Vec<i64> = links.iter().map(|link| link.epoch.cast_signed()).collect();
    // Before the answer was made: never later than the database's clock says.
    let asked_at = Instant::now();
    // The grants come first among the locks, as in commands_create() and in a revocation: no two can wait for one another.
    let rows = sqlx::query_as!(
        Row,
        r#"with target as materialized (
               select t.device_id, t.epoch, l.boot_id
                 from unnest($1::uuid[], $2::bigint[]) as t(device_id, epoch)
                cross join lateral (select l.boot_id from links l
                                     where l.device_id = t.device_id and l.epoch = t.epoch and l.closed_at is null and l.has_agent
                                    -- One by one: the planner would rather look at all links there are.
                                    offset 0) l
           ),
           due as materialized (
               select c.id, c.state as before, c.kind, t.epoch, t.boot_id, p.name, g.statement
                 from target t
                 join devices d on d.id = t.device_id and d.state = 'active'
                 join commands c on c.device_id = t.device_id and c.finished_at is null
                 join grants g on g.id = c.grant_id and grant_in_force(g, clock_timestamp())
                  and coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector))
                 join people p on p.id = c.requested_by
                where c.expires_at > clock_timestamp() and c.cancel_requested_at is null
                  and (c.state = 'queued'
                       or c.state = 'sent' and c.sent_epoch < t.epoch and (c.kind <> all ($3) or c.boot_id = t.boot_id))
                order by c.created_at, c.id
                limit $4
                  for share of g
                  for update of c skip locked
           ),
           claimed as (
               update commands c
                  set state = 'sent', sent_at = clock_timestamp(), sent_epoch = due.epoch,
                      boot_id = coalesce(c.boot_id, due.boot_id), deadline_at = c.expires_at + make_interval(secs => $5)
                 from due
                -- Whoever held the grant until now may have held it until after the end.
                where c.id = due.id and c.expires_at > clock_timestamp()
               returning c.id, c.device_id, due.epoch, c.grant_id, c.kind, c.arguments, c.reason, due.name, due.before,
                         due.statement,
                         (extract(epoch from c.expires_at - clock_timestamp()) * 1000)::bigint as start_within_ms,
                         c.created_at, c.trace_parent, c.override_busy
           )
           select false as "is_callback!", id as "id!", device_id as "device_id!", epoch as "epoch!", grant_id as "grant_id!",
                  kind as "kind!", arguments as "arguments!", reason as "reason!", name as "name!",
                  start_within_ms as "start_within_ms!", before = 'sent' as "is_resent!", created_at as "created_at!",
                  false as "is_asked!", statement as "statement?", trace_parent as "trace_parent?",
                  override_busy as "override_busy!"
             from claimed
           union all
           select true, c.id, c.device_id, t.epoch, c.grant_id, c.kind, c.arguments, c.reason, '', 0, false, c.created_at,
                  c.cancel_requested_at is not null, null, null, false
             from target t
             join commands c on c.device_id = t.device_id and c.finished_at is null and c.state in ('sent', 'accepted')
             join grants g on g.id = c.grant_id
            where c.cancel_requested_at is not null or not grant_in_force(g, clock_timestamp())
            order by 12, 2"#,
        &devices,
        &epochs,
        &kinds_proven_by_boot() as &[String],
        CLAIM_MAX,
        SENT_GRACE.as_secs_f64(),
    )
    .fetch_all(connection)
    .await?;
    Ok(read(rows, asked_at))
}

/// What a device that polls is to be given.
#[derive(Clone, Debug)]
pub struct PollClaim<'a> {
    /// With the epoch that the device reports in.
    pub device: LinkKey,
    pub boot_id: &'a str,
    /// How often it polls.
    pub interval: Duration,
    pub commands_max: i64,
    pub callbacks_max: i64,
}

/// Claims what a device that polls may be given, as [`dispatch_claim`] does for links: nothing if it has linked meanwhile. What was
/// sent, over whatever, and not accepted is due again: whoever polls has told before what has come.
///
/// The device tells with a later poll what came of it, so it is given the time for that.
pub async fn dispatch_claim_polled(
    connection: &mut PgConnection,
    claim: &PollClaim<'_>,
) -> Result<Dispatch, StoreError> {
    let asked_at = Instant::now();
    let told_within = told_within(claim.interval).as_secs_f64();
    let rows = sqlx::query_as!(
        Row,
        r#"with target as (
               select d.id as device_id, $2::bigint as epoch
                 from devices d left join links l on l.device_id = d.id
                where d.id = $1 and d.state = 'active' and coalesce(l.epoch, 0) = $2
                  and (l.device_id is null or l.closed_at is not null or not l.has_agent)
           ),
           due as materialized (
               select c.id, c.state as before, t.epoch, p.name, g.statement
                 from target t
                 join devices d on d.id = t.device_id
                 join commands c on c.device_id = t.device_id and c.finished_at is null and c.by_polling
                 join grants g on g.id = c.grant_id and grant_in_force(g, clock_timestamp())
                  and coalesce(d.id = any (g.device_ids), labels_match(d.labels, g.selector))
                 join people p on p.id = c.requested_by
                where c.expires_at > clock_timestamp() and c.cancel_requested_at is null
                  and (c.state = 'queued' or c.state = 'sent' and c.sent_epoch <= t.epoch)
                order by c.created_at, c.id
                limit $4
                  for share of g
                  for update of c skip locked
           ),
           claimed as (
               update commands c
                  set state = 'sent', sent_at = clock_timestamp(), sent_epoch = due.epoch,
                      boot_id = coalesce(c.boot_id, $3),
                      run_seconds = greatest(c.run_seconds, least(86400, $6::float8::integer)),
                      deadline_at = c.expires_at + make_interval(secs => $5 + $6)
                 from due
                where c.id = due.id and c.expires_at > clock_timestamp()
               returning c.id, c.device_id, due.epoch, c.grant_id, c.kind, c.arguments, c.reason, due.name, due.before,
                         due.statement,
                         (extract(epoch from c.expires_at - clock_timestamp()) * 1000)::bigint as start_within_ms,
                         c.created_at, c.trace_parent, c.override_busy
           ),
           called_back as (
               select c.id, c.device_id, t.epoch, c.grant_id, c.kind, c.arguments, c.reason, c.created_at,
                      c.cancel_requested_at is not null as is_asked
                 from target t
                 join commands c on c.device_id = t.device_id and c.finished_at is null and c.state in ('sent', 'accepted')
                 join grants g on g.id = c.grant_id
                where c.cancel_requested_at is not null or not grant_in_force(g, clock_timestamp())
                order by c.created_at, c.id
                limit $7
           )
           select false as "is_callback!", id as "id!", device_id as "device_id!", epoch as "epoch!", grant_id as "grant_id!",
                  kind as "kind!", arguments as "arguments!", reason as "reason!", name as "name!",
                  start_within_ms as "start_within_ms!", before = 'sent' as "is_resent!", created_at as "created_at!",
                  false as "is_asked!", statement as "statement?", trace_parent as "trace_parent?",
                  override_busy as "override_busy!"
             from claimed
           union all
           select true, id, device_id, epoch, grant_id, kind, arguments, reason, '', 0, false, created_at, is_asked, null, null, false
             from called_back
            order by 12, 2"#,
        claim.device.device_id.as_uuid(),
        claim.device.epoch.cast_signed(),
        claim.boot_id,
        claim.commands_max,
        SENT_GRACE.as_secs_f64(),
        told_within,
        claim.callbacks_max,
    )
    .fetch_all(connection)
    .await?;
    Ok(read(rows, asked_at))
}

struct Row {
    is_callback: bool,
    id: Uuid,
    device_id: Uuid,
    epoch: i64,
    grant_id: Uuid,
    kind: String,
    arguments: Value,
    reason: String,
    name: String,
    start_within_ms: i64,
    is_resent: bool,
    #[expect(dead_code, reason = "what they are ordered by")]
    created_at: OffsetDateTime,
    is_asked: bool,
    statement: Option<String>,
    trace_parent: Option<String>,
    override_busy: bool,
}

fn read(rows: Vec<Row>, asked_at: Instant) -> Dispatch {
    let mut dispatch = Dispatch::default();
    for row in rows {
        let link = LinkKey { device_id: DeviceId::from_uuid(row.device_id), epoch: row.epoch.unsigned_abs() };
        let command_id = CommandId::from_uuid(row.id);
        if row.is_callback {
            let reason = if row.is_asked { "called back" } else { "the grant is no longer in force" };
            dispatch.callbacks.push(Callback { link, command_id, reason });
            continue;
        }
        let Ok(instruction) = serde_json::from_value(json!({"kind": row.kind, "arguments": row.arguments})) else {
            dispatch.unreadable.push(UnreadableCommand { command_id, is_resent: row.is_resent });
            continue;
        };
        dispatch.commands.push(ClaimedCommand {
            link,
            command_id,
            grant_id: GrantId::from_uuid(row.grant_id),
            instruction,
            start_by: asked_at + Duration::from_millis(u64::try_from(row.start_within_ms).unwrap_or(0)),
            requested_by: row.name,
            reason: row.reason,
            grant_statement: row.statement,
            trace: place::of_text(row.trace_parent.as_deref()),
            is_resent: row.is_resent,
            override_busy: row.override_busy,
        });
    }
    dispatch
}

/// The links of a node on which something may be due.
pub async fn dispatch_list(connection: &mut PgConnection, node: &str) -> Result<Vec<LinkKey>, StoreError> {
    let rows = sqlx::query!(
        r#"select distinct l.device_id, l.epoch
             from commands c
             join links l on l.device_id = c.device_id and l.node = $1 and l.closed_at is null and l.has_agent
             join grants g on g.id = c.grant_id
            where c.finished_at is null
              and (c.state = 'queued'
                   or c.state = 'sent' and c.sent_epoch < l.epoch
                   or c.state in ('sent', 'accepted')
                      and (c.cancel_requested_at is not null or not grant_in_force(g, clock_timestamp())))"#,
        node,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| LinkKey { device_id: DeviceId::from_uuid(row.device_id), epoch: row.epoch.unsigned_abs() })
        .collect())
}
