//! When devices booted. `store::link` and `store::poll` write it, at the first link or poll of each boot.

use cloudlink_proto::ids::DeviceId;
use sqlx::PgConnection;

use super::StoreError;
use super::transition::kinds_proven_by_boot;
use crate::model::boot::{Boot, BootCause, MissingBoot};

/// The boots of a device that are remembered, newest first. One was ordered if the device had accepted a command to reboot or
/// to shut down in the boot before it.
pub async fn boot_list(connection: &mut PgConnection, device: DeviceId) -> Result<Vec<Boot>, StoreError> {
    let rows = sqlx::query!(
        r#"select b.boot_id, b.seen_at, b.hint, o.id as "command_id?"
             from (select boot_id, seen_at, hint, lag(boot_id) over (order by seen_at) as before
                     from device_boots where device_id = $1) b
             left join lateral (
                 select c.id from commands c
                  where c.device_id = $1 and c.kind = any ($2) and c.boot_id = b.before and c.accepted_at < b.seen_at
                    and c.state in ('accepted', 'running', 'succeeded', 'unconfirmed')
                  order by c.created_at desc limit 1) o on true
            order by b.seen_at desc"#,
        device.as_uuid(),
        &kinds_proven_by_boot() as &[String],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Boot {
            boot_id: row.boot_id,
            seen_at: row.seen_at,
            cause: BootCause::judged(row.command_id.is_some(), row.hint.as_deref()),
            command_id: row.command_id,
        })
        .collect())
}

/// The newest reboot that the device has accepted, if it has neither booted since nor is there now, by a link or by polls. A poll of
/// another boot, or one that the next is still to follow, is as good as a link: of the boot before it may be the last.
pub async fn boot_missing(connection: &mut PgConnection, device: DeviceId) -> Result<Option<MissingBoot>, StoreError> {
    Ok(sqlx::query_as!(
        MissingBoot,
        r#"select c.id as command_id, c.sent_at as "ordered_at!" from commands c
            where c.device_id = $1 and c.kind = 'device.reboot' and c.state in ('accepted', 'running', 'unconfirmed')
              and c.accepted_at is not null and c.sent_at is not null
              and not exists (select from device_boots b where b.device_id = $1 and b.seen_at > c.sent_at)
              and not exists (select from links l where l.device_id = $1 and l.closed_at is null)
              and not exists (select from polls q
                               where q.device_id = $1 and q.polled_at > c.accepted_at
                                 and (q.boot_id is distinct from c.boot_id or clock_timestamp() < q.silent_at))
            order by c.created_at desc limit 1"#,
        device.as_uuid(),
    )
    .fetch_optional(connection)
    .await?)
}
