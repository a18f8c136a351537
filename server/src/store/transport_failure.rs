//! Which transports failed, and how, as devices tell it with a link or a poll.

use cloudlink_proto::ids::DeviceId;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::StoreError;
use crate::model::transport_failure::{NewTransportFailure, TransportReportItem};

/// Kinds of failed attempts of one device that are kept when it tells of others: as many as it may tell at once.
const KINDS_MAX: i64 = 32;
/// A kind that was not met for so long is counted from the start, in days.
const FORGOTTEN_DAYS: i32 = 30;

#[derive(Serialize)]
struct Row<'a> {
    device_id: uuid::Uuid,
    #[serde(flatten)]
    failure: &'a NewTransportFailure,
}

/// Adds what devices tell: each device once, and each kind of failure of one once.
pub async fn transport_failures_add<'a>(
    connection: &mut PgConnection,
    told: impl Iterator<Item = (DeviceId, &'a [NewTransportFailure])>,
) -> Result<(), StoreError> {
    let rows: Vec<Row<'_>> = told
        .flat_map(|(device, failures)| failures.iter().map(move |failure| Row { device_id: device.as_uuid(), failure }))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"with told as materialized (
               select f.*, d.tenant_id
                 from jsonb_to_recordset($1)
                      as f(device_id uuid, transport text, stage text, code text, count bigint, ms_ago bigint)
                 join devices d on d.id = f.device_id
           ),
           added as (
               insert into transport_failures as t (device_id, tenant_id, transport, stage, code, count, last_at)
               select device_id, tenant_id, transport, stage, code, count,
                      clock_timestamp() - ms_ago * interval '1 millisecond'
                 from told
                order by 1, 3, 4, 5
                   on conflict (device_id, transport, stage, code) do update
                  set last_at = greatest(t.last_at, excluded.last_at),
                      count = case when t.last_at > excluded.last_at - make_interval(days => $3) then t.count else 0 end
                              + excluded.count
           )
           delete from transport_failures t
            using (select distinct device_id from told) d
            where t.device_id = d.device_id
              and (t.transport, t.stage, t.code) not in
                  (select o.transport, o.stage, o.code from transport_failures o
                    where o.device_id = d.device_id order by o.last_at desc limit $2)
              and not exists (select from told f
                               where (f.device_id, f.transport, f.stage, f.code) = (t.device_id, t.transport, t.stage, t.code))"#,
        Json(&rows) as _,
        KINDS_MAX,
        FORGOTTEN_DAYS,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Failures of the last days, summed by the values of a label; what most devices have met comes first.
pub async fn transport_failure_report(
    connection: &mut PgConnection,
    by: Option<&str>,
    days: i32,
    limit: i64,
) -> Result<Vec<TransportReportItem>, StoreError> {
    Ok(sqlx::query_as!(
        TransportReportItem,
        r#"select d.labels ->> $1 as value, f.transport, f.stage, f.code, count(*) as "devices!",
                  least(sum(f.count), 9007199254740991)::bigint as "count!", max(f.last_at) as "last_at!"
             from transport_failures f
             join devices d on d.id = f.device_id and d.state = 'active'
             join tenants n on n.id = d.tenant_id and not n.internal
            where f.last_at > now() - make_interval(days => $2)
            group by 1, 2, 3, 4
            order by 5 desc, 6 desc, 1, 2, 3, 4
            limit $3"#,
        by,
        days,
        limit
    )
    .fetch_all(connection)
    .await?)
}
