//! Busy locks, as devices tell of them. Whether one is in force, `busy_lock_in_force()` says.

use cloudlink_proto::ids::{DeviceId, TenantId};
use sqlx::PgConnection;

use super::StoreError;
use super::dispatch::LinkKey;
use crate::model::busy_lock::{BusyLock, NewBusyLock};

/// A lock that ends so much later or earlier than was known is another one. Less comes of how long a message was under way.
const SAME_WITHIN_SECONDS: f64 = 30.0;

/// The lock that is in force, and whose device it is.
pub async fn busy_lock_show(
    connection: &mut PgConnection,
    device: DeviceId,
) -> Result<Option<(TenantId, BusyLock)>, StoreError> {
    let lock = sqlx::query!(
        "select tenant_id, reason, since, until from busy_locks
          where device_id = $1 and until = busy_lock_in_force($1, clock_timestamp())",
        device.as_uuid()
    )
    .fetch_optional(connection)
    .await?;
    Ok(lock.map(|row| {
        (TenantId::from_uuid(row.tenant_id), BusyLock { reason: row.reason, since: row.since, until: row.until })
    }))
}

/// Writes down which lock a device holds, if any; a change comes with an entry in the audit log. Nothing happens if the device has a
/// newer link than the one that it said so over, or after.
pub async fn busy_lock_tell(
    connection: &mut PgConnection,
    reporter: LinkKey,
    lock: Option<&NewBusyLock>,
) -> Result<(), StoreError> {
    let (device, epoch) = (reporter.device_id.as_uuid(), reporter.epoch.cast_signed());
    let Some(lock) = lock else {
        sqlx::query!(
            r#"with cleared as (
                   delete from busy_locks b
                    where b.device_id = $1
                      and coalesce((select l.epoch from links l where l.device_id = b.device_id), 0) = $2
                   returning tenant_id, until > clock_timestamp() as was_in_force
               )
               select audit_append(c.tenant_id, jsonb_build_object('kind', 'device', 'id', d.id, 'name', d.name),
                                   'device.busy_lock_cleared', jsonb_build_object('kind', 'device', 'id', d.id), '{}') as audited
                 from cleared c join devices d on d.id = $1
                where c.was_in_force"#,
            device,
            epoch
        )
        .fetch_optional(connection)
        .await?;
        return Ok(());
    };
    sqlx::query!(
        r#"with before as (
               select reason, until from busy_locks where device_id = $1 and until = busy_lock_in_force($1, clock_timestamp())
           ),
           told as (
               insert into busy_locks as b (device_id, tenant_id, reason, since, until)
               select d.id, d.tenant_id, $3, n.at, n.at + make_interval(secs => $4)
                 from devices d cross join (select clock_timestamp() as at) n
                where d.id = $1 and d.state = 'active'
                  and coalesce((select l.epoch from links l where l.device_id = d.id), 0) = $2
                   on conflict (device_id) do update
                  set reason = excluded.reason, until = excluded.until,
                      -- One that was renewed is the same, for as long as the table's bound goes.
                      since = case when b.reason = excluded.reason and b.until > excluded.since
                                        and excluded.until <= b.since + interval '8 days'
                                   then b.since else excluded.since end
               returning tenant_id, reason, until
           )
           select audit_append(t.tenant_id, jsonb_build_object('kind', 'device', 'id', d.id, 'name', d.name),
                               'device.busy_lock_set', jsonb_build_object('kind', 'device', 'id', d.id),
                               jsonb_build_object('reason', t.reason, 'until', t.until)) as audited
             from told t join devices d on d.id = $1 left join before b on true
            where b.reason is distinct from t.reason or abs(extract(epoch from t.until - b.until)) > $5::float8"#,
        device,
        epoch,
        lock.reason,
        lock.left.as_secs_f64(),
        SAME_WITHIN_SECONDS
    )
    .fetch_optional(connection)
    .await?;
    Ok(())
}
