//! Commands whose time is up, whoever was to act on them.

use std::time::Duration;

use cloudlink_proto::ids::CommandId;
use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::StoreError;
use super::transition::{Applied, Durability, Source, Transition, transition_apply};
use crate::model::command::{Instruction, Proof, State};

/// How the loss of a link is judged.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// How long a device that was told to shut down may take to come back with the same boot, which shows that it did not.
    pub grace: Duration,
    /// For how long, up to now, devices could come back. A loss before that proves nothing: the device may have knocked.
    pub watched_for: Duration,
}

/// How long after the grace a loss may still be judged, by whichever node has watched for long enough.
const UNDECIDED_FOR: Duration = Duration::from_secs(15);

/// Commands that one sweep ends. Whoever gets as many sweeps again.
pub const SWEEP_MAX: i64 = 256;

/// Ends, within the caller's transaction, what is over at this moment by the database's clock:
/// * queued, and the grant has ended: cancelled; queued and expired: expired;
/// * a shutdown whose link was lost longer ago than the grace, with no link of the device since, while it could have come
///   back all the time: succeeded;
/// * sent, accepted or running past the deadline: unconfirmed, unless the loss of the link may still prove it.
///
/// Several nodes may sweep at once: what one has locked, another passes over.
pub async fn deadline_sweep_in_txn(
    connection: &mut PgConnection,
    watch: Watch,
) -> Result<Vec<(CommandId, Applied)>, StoreError> {
    let kinds_proven_by_loss: Vec<String> = Instruction::KINDS
        .into_iter()
        .filter(|kind| kind.proof == Proof::LinkLost)
        .map(|kind| kind.name.to_owned())
        .collect();
    let rows = sqlx::query!(
        r#"with over as (
               select c.id, null::timestamptz as lost_at from commands c
                where c.finished_at is null and c.deadline_at <= clock_timestamp()
                  and (c.link_lost_at is null or c.kind <> all ($1)
                       or c.link_lost_at <= clock_timestamp() - make_interval(secs => $2::float8 + $5::float8))
               union
               select c.id, null from commands c join grants g on g.id = c.grant_id
                where c.finished_at is null and c.state = 'queued' and not grant_in_force(g, clock_timestamp())
               union
               select c.id, c.link_lost_at from commands c
                where c.finished_at is null and c.state = 'running' and c.kind = any ($1)
                  and c.link_lost_at <= clock_timestamp() - make_interval(secs => $2)
                  and c.link_lost_at >= clock_timestamp() - make_interval(secs => $4)
                  and not exists (select from links l where l.device_id = c.device_id and l.closed_at is null)
           )
           select c.id, c.state, o.lost_at as "lost_at?", g.revoked_at is not null as "is_revoked!",
                  grant_in_force(g, clock_timestamp()) as "is_in_force!"
             from (select id, max(lost_at) as lost_at from over group by id) o
             join commands c on c.id = o.id join grants g on g.id = c.grant_id
            where c.finished_at is null
            order by c.id
            limit $3
              for update of c skip locked"#,
        &kinds_proven_by_loss,
        watch.grace.as_secs_f64(),
        SWEEP_MAX,
        watch.watched_for.as_secs_f64(),
        UNDECIDED_FOR.as_secs_f64(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let transitions: Vec<Transition> = rows
        .into_iter()
        .map(|row| {
            let (target, code, message, proof) = match (State::named(&row.state), row.lost_at) {
                (Some(State::Queued), _) if row.is_revoked => {
                    (State::Cancelled, Some("grant_revoked"), Some("the grant was revoked"), None)
                }
                (Some(State::Queued), _) if !row.is_in_force => {
                    (State::Cancelled, Some("grant_ended"), Some("the grant ended before the device could begin"), None)
                }
                (Some(State::Queued), _) => {
                    (State::Expired, Some("expired"), Some("the device did not begin in time"), None)
                }
                (_, Some(lost_at)) => (State::Succeeded, None, None, Some(link_lost(lost_at))),
                (_, None) => (
                    State::Unconfirmed,
                    Some("no_report"),
                    Some("it was sent, and the device did not say in time what became of it"),
                    None,
                ),
            };
            Transition {
                command_id: CommandId::from_uuid(row.id),
                target,
                source: Source::Server { proof },
                code: code.map(str::to_owned),
                message: message.map(str::to_owned),
                percent: None,
                data: None,
            }
        })
        .collect();
    if transitions.is_empty() {
        return Ok(Vec::new());
    }
    let applied = transition_apply(connection, &transitions, Durability::Stored).await?;
    Ok(transitions.into_iter().map(|transition| transition.command_id).zip(applied).collect())
}

fn link_lost(at: OffsetDateTime) -> serde_json::Value {
    json!({"kind": "link_lost", "lost_at": at.format(&Rfc3339).unwrap_or_default()})
}
