//! The one statement that moves commands from state to state after they were claimed. Whoever learns what became of a
//! command (a device's report, a proof, a deadline) comes here; what is not in `State::TRANSITIONS` does not happen.

use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId};
use cloudlink_proto::trace_parent::TraceParent;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::StoreError;
use crate::model::command::{Instruction, Kind, Proof, State};
use crate::trace::place;

/// What is to become of a command. In one call, at most one a command.
#[derive(Clone, Debug)]
pub struct Transition {
    pub command_id: CommandId,
    pub target: State,
    pub source: Source,
    pub code: Option<String>,
    pub message: Option<String>,
    pub percent: Option<u8>,
    pub data: Option<Value>,
}

/// Who says so.
#[derive(Clone, Debug)]
pub enum Source {
    /// A device, over the link of this epoch, in this boot. Believed only about its own commands, and only while the link
    /// is its newest. A device that polls has the epoch of its last link, 0 if it never had one.
    Report { device_id: DeviceId, epoch: u64, boot_id: String },
    /// The server, with what proves it.
    Server { proof: Option<Value> },
}

/// What came of a [`Transition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command is now in this state.
    Moved(State),
    /// The device says that it succeeded, but the proof is still to come: the command counts as running.
    Unproven,
    /// It is in that final state already.
    Repeated,
    /// It ended otherwise before: the first such report is in the audit log, the state stays.
    Late,
    /// The table of transitions has no such step.
    Illegal,
    /// The link that says so is not the device's newest, or older than the sending, or nothing is known of a sending.
    Stale,
    /// The command is another device's.
    Foreign,
    /// There is no such command.
    Unknown,
}

/// What came of a [`Transition`], and of which command.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    pub outcome: Outcome,
    /// The command's kind, if the command and the kind are known.
    pub kind: Option<&'static Kind>,
    /// From the insert of the command to now.
    pub age: Duration,
    /// Of a command that has ended now, and is in a trace.
    pub traced: Option<Traced>,
}

/// The course of a command, for its trace.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    /// Whose doing the command is.
    pub place: TraceParent,
    /// Over the link of this epoch it was sent last, and how long ago.
    pub sent: Option<(u64, Duration)>,
    /// How long ago its device said that it has it.
    pub accepted: Option<Duration>,
}

/// How soon a change must survive a crash of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the call returns.
    Stored,
    /// Within a second: for progress, which the device's next report would repeat.
    Soon,
}

#[derive(Serialize)]
struct Asked<'a> {
    id: Uuid,
    target: &'static str,
    is_final: bool,
    device_id: Option<Uuid>,
    epoch: Option<u64>,
    boot_id: Option<&'a str>,
    code: Option<&'a str>,
    message: Option<&'a str>,
    percent: Option<u8>,
    data: Option<&'a Value>,
    proof: Option<&'a Value>,
}

impl<'a> Asked<'a> {
    fn new(transition: &'a Transition) -> Self {
        let (device_id, epoch, boot_id, proof) = match &transition.source {
            Source::Report { device_id, epoch, boot_id } => {
                (Some(device_id.as_uuid()), Some(*epoch), Some(boot_id.as_str()), None)
            }
            Source::Server { proof } => (None, None, None, proof.as_ref()),
        };
        Self {
            id: transition.command_id.as_uuid(),
            target: transition.target.name(),
            is_final: transition.target.is_final(),
            device_id,
            epoch,
            boot_id,
            code: transition.code.as_deref(),
            message: transition.message.as_deref(),
            percent: transition.percent,
            data: transition.data.as_ref(),
            proof,
        }
    }
}

/// Makes the transitions that are legal, each final one with its audit entry, and says what came of each, in order.
pub async fn transition_apply(
    connection: &mut PgConnection,
    transitions: &[Transition],
    durability: Durability,
) -> Result<Vec<Applied>, StoreError> {
    let asked: Vec<Asked<'_>> = transitions.iter().map(Asked::new).collect();
    let (origins, targets): (Vec<String>, Vec<String>) = State::TRANSITIONS
        .iter()
        .flat_map(|(from, to)| to.iter().map(|to| (from.name().to_owned(), to.name().to_owned())))
        .unzip();
    // Subqueries that give a value, where `exists` would do: that, the planner turns into a look at all links there are.
    let rows = sqlx::query!(
        r#"with asked as (
               select a.* from jsonb_to_recordset($1) as a(
                   id uuid, target text, is_final boolean, device_id uuid, epoch bigint, boot_id text,
                   code text, message text, percent smallint, data jsonb, proof jsonb)
                where not $2 or set_config('synchronous_commit', 'off', true) is not null
           ),
           locked as materialized (
               select c.id, c.tenant_id, c.device_id, c.grant_id, c.kind, c.state as before, c.finished_at is not null as was_final,
                      a.device_id as reported_by, a.code, a.message, a.percent, a.data,
                      a.device_id is null or a.device_id = c.device_id as is_own,
                      a.epoch is null or coalesce(c.sent_epoch <= a.epoch, c.finished_at is not null) and coalesce(
                          (select l.epoch from links l where l.device_id = c.device_id), 0) = a.epoch as is_current,
                      a.target as asked, unproven, a.is_final as asked_final,
                      extract(epoch from clock_timestamp() - c.created_at)::float8 as age_seconds,
                      c.trace_parent, c.sent_epoch, extract(epoch from clock_timestamp() - c.sent_at)::float8 as sent_seconds,
                      extract(epoch from clock_timestamp() - c.accepted_at)::float8 as accepted_seconds,
                      case when unproven then 'running' else a.target end as target,
                      a.is_final and not unproven as is_final,
                      case when not a.is_final or unproven then null
                           when a.device_id is null then a.proof
                           when needs_boot and a.target = 'succeeded'
                           then jsonb_build_object('kind', 'boot_id', 'before', c.boot_id, 'after', a.boot_id)
                           else jsonb_build_object('kind', 'device_report', 'epoch', a.epoch) end as proof
                 -- One by one, and locked in one order: the planner would rather look at all commands there are.
                 from (select * from asked order by id) a
                cross join lateral (select * from commands where id = a.id for update) c
                cross join lateral (select c.kind = any($3) as needs_boot) n
                cross join lateral (
                    select a.device_id is not null and needs_boot and a.target = 'succeeded'
                           and coalesce((select b.seen_at from device_boots b
                                          where b.device_id = c.device_id and b.boot_id = a.boot_id) <= c.sent_at,
                                        true) as unproven) u
           ),
           moved as (
               update commands c
                  set state = l.target,
                      accepted_at = case when l.target in ('accepted', 'running', 'succeeded', 'failed')
                                         then coalesce(c.accepted_at, clock_timestamp()) else c.accepted_at end,
                      deadline_at = case when l.is_final then null
                                         when c.accepted_at is null then clock_timestamp() + make_interval(secs => c.run_seconds)
                                         else c.deadline_at end,
                      finished_at = case when l.is_final then clock_timestamp() end,
                      percent = coalesce(l.percent, c.percent),
                      code = l.code, message = l.message, data = l.data, proof = l.proof
                 from locked l
                where c.id = l.id and l.is_own and l.is_current
                  and exists (select from unnest($4::text[], $5::text[]) as t(origin, target)
                               where t.origin = l.before and t.target = l.target)
               returning c.id
           ),
           late as (
               insert into late_results (command_id)
               select l.id from locked l
                where l.is_own and l.is_current and l.was_final and l.asked_final and l.before <> l.asked
                   on conflict do nothing
               returning command_id
           ),
           told as (
               select l.tenant_id, l.id,
                      case when l.reported_by is null then jsonb_build_object('kind', 'server')
                           else jsonb_build_object('kind', 'device', 'id', l.reported_by) end as actor,
                      case when l.was_final then 'command.late_result' else 'command.finished' end as action,
                      jsonb_build_object('kind', 'command', 'id', l.id) as subject,
                      jsonb_build_object('device_id', l.device_id, 'grant_id', l.grant_id, 'kind', l.kind,
                                         'state', case when l.was_final then l.asked else l.target end,
                                         'code', l.code, 'message', l.message, 'proof', l.proof) as details
                 from locked l
                where l.is_final and l.id in (select id from moved) or l.id in (select command_id from late)
           ),
           audited as materialized (
               select audit_append_all(tenant_id, actors, actions, subjects, details) as seq
                 from (select tenant_id,
                              array_agg(actor order by id) as actors, array_agg(action order by id) as actions,
                              array_agg(subject order by id) as subjects, array_agg(details order by id) as details
                         from told group by tenant_id order by tenant_id) t
           )
           select l.id, l.before, l.kind, l.age_seconds as "age_seconds!", l.unproven as "is_unproven!", l.was_final as "was_final!",
                  l.is_own as "is_own!", l.is_current as "is_current!", m.id is not null as "moved!",
                  l.trace_parent, l.sent_epoch, l.sent_seconds, l.accepted_seconds, (select count(seq) from audited) as audited
             from locked l left join moved m on m.id = l.id"#,
        Json(&asked) as _,
        durability == Durability::Soon,
        &kinds_proven_by_boot() as &[String],
        &origins,
        &targets,
    )
    .fetch_all(connection)
    .await?;
    Ok(transitions
        .iter()
        .map(|transition| {
            let Some(row) = rows.iter().find(|row| row.id == transition.command_id.as_uuid()) else {
                return Applied { outcome: Outcome::Unknown, kind: None, age: Duration::ZERO, traced: None };
            };
            let outcome = if !row.is_own {
                Outcome::Foreign
            } else if !row.is_current {
                Outcome::Stale
            } else if row.is_unproven && !row.was_final {
                Outcome::Unproven
            } else if row.moved {
                Outcome::Moved(transition.target)
            } else if row.was_final && row.before == transition.target.name() {
                Outcome::Repeated
            } else if row.was_final && transition.target.is_final() {
                Outcome::Late
            } else {
                Outcome::Illegal
            };
            let has_ended = matches!(outcome, Outcome::Moved(state) if state.is_final());
            let traced = place::of_text(row.trace_parent.as_deref()).filter(|_| has_ended).map(|place| Traced {
                place,
                sent: row.sent_epoch.map(i64::unsigned_abs).zip(row.sent_seconds.map(duration)),
                accepted: row.accepted_seconds.map(duration),
            });
            Applied { outcome, kind: Instruction::kind_named(&row.kind), age: duration(row.age_seconds), traced }
        })
        .collect())
}

/// Of the database's clock, which may have been put back.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Kinds that a device's word alone does not prove: another boot must report.
pub(super) fn kinds_proven_by_boot() -> Vec<String> {
    Instruction::KINDS
        .into_iter()
        .filter(|kind| match kind.proof {
            Proof::OtherBoot | Proof::LinkLost => true,
            Proof::Report => false,
        })
        .map(|kind| kind.name.to_owned())
        .collect()
}
