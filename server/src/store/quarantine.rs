//! Quarantine: which devices may have their link and nothing else. The nodes look here and keep to it.

use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, PersonId, TenantId};
use serde_json::json;
use sqlx::PgConnection;

use super::StoreError;
use super::audit::audit_append;
use super::opening::{Closing, opening_end_in_txn, opening_lock_in_txn};
use super::support_session::{
    Closing as SessionClosing, support_session_end_in_txn, support_session_lock_in_txn, support_session_tell_in_txn,
};
use crate::model::audit::{Actor, Subject};
use crate::model::opening::EndReason;
use crate::model::support_session::EndReason as SessionEndReason;

/// Why a device is put into quarantine, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct NewQuarantine<'a> {
    /// `None`: the server itself.
    pub by: Option<PersonId>,
    pub actor: &'a Actor,
    pub reason: &'a str,
}

/// Puts a device into quarantine, ends its openings and support sessions, and writes that down. Gives the devices whose nodes are to be told of ended
/// openings; `None`: it was in quarantine before, or is not there, and nothing changes. Call it last before the commit.
pub async fn quarantine_begin_in_txn(
    connection: &mut PgConnection,
    device: DeviceId,
    new: NewQuarantine<'_>,
) -> Result<Option<Vec<DeviceId>>, StoreError> {
    let begun = sqlx::query!(
        "update devices set quarantined_at = clock_timestamp(), quarantined_by = $2, quarantine_reason = $3,
                            version = version + 1
          where id = $1 and quarantined_at is null
         returning tenant_id, name",
        device.as_uuid(),
        new.by.map(PersonId::as_uuid),
        new.reason
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(begun) = begun else { return Ok(None) };
    let openings = opening_lock_in_txn(&mut *connection, Closing::OfDevice(device)).await?;
    let sessions = support_session_lock_in_txn(&mut *connection, SessionClosing::OfDevice(device)).await?;
    let (tenant, subject) = (TenantId::from_uuid(begun.tenant_id), Subject::new("device", device.as_uuid()));
    let details = json!({"name": begun.name, "reason": new.reason});
    audit_append(&mut *connection, tenant, new.actor, "device.quarantined", subject, details).await?;
    let (actor, reason) = (new.actor.to_json(), SessionEndReason::Quarantined);
    let ended = support_session_end_in_txn(&mut *connection, &sessions, actor.clone(), reason, Duration::ZERO).await?;
    support_session_tell_in_txn(&mut *connection, &ended).await?;
    Ok(Some(opening_end_in_txn(connection, &openings, actor, EndReason::Quarantined).await?))
}

/// Ends a quarantine, and writes that down. False: there was none. Call it last before the commit.
pub async fn quarantine_end_in_txn(
    connection: &mut PgConnection,
    device: DeviceId,
    actor: &Actor,
) -> Result<bool, StoreError> {
    let ended = sqlx::query!(
        r#"with before as materialized (
               select id, quarantined_at, quarantine_reason from devices
                where id = $1 and quarantined_at is not null for no key update
           )
           update devices d set quarantined_at = null, quarantined_by = null, quarantine_reason = null,
                                version = version + 1
             from before b where d.id = b.id
           returning d.tenant_id, d.name, b.quarantine_reason as "reason!",
                     extract(epoch from clock_timestamp() - b.quarantined_at)::bigint as "seconds!""#,
        device.as_uuid()
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(ended) = ended else { return Ok(false) };
    let (tenant, subject) = (TenantId::from_uuid(ended.tenant_id), Subject::new("device", device.as_uuid()));
    let details = json!({"name": ended.name, "reason": ended.reason, "seconds": ended.seconds});
    audit_append(connection, tenant, actor, "device.released", subject, details).await?;
    Ok(true)
}

/// Every device that is in quarantine, of all nodes.
pub async fn quarantine_list(connection: &mut PgConnection) -> Result<Vec<DeviceId>, StoreError> {
    let ids = sqlx::query_scalar!("select id from devices where quarantined_at is not null");
    Ok(ids.fetch_all(connection).await?.into_iter().map(DeviceId::from_uuid).collect())
}
