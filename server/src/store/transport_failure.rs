//! Which transports failed, and how. Written with the links of devices, by `store::link`.

use sqlx::PgConnection;

use super::StoreError;
use crate::model::transport_failure::TransportReportItem;

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
