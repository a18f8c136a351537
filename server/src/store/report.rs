//! What devices measure about themselves: the newest report of each.

use cloudlink_proto::ids::{DeviceId, TenantId};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::StoreError;

/// A report, received this long ago.
#[derive(Clone, Debug)]
pub struct NewReport {
    pub device_id: DeviceId,
    pub tenant_id: TenantId,
    pub received_ms_ago: u64,
    pub report: Value,
}

#[derive(Serialize)]
struct Row<'a> {
    device_id: Uuid,
    tenant_id: Uuid,
    received_ms_ago: u64,
    report: &'a Value,
}

/// Keeps each device's report if it is newer than what is stored. At most one a device.
pub async fn report_upsert(connection: &mut PgConnection, reports: &[NewReport]) -> Result<(), StoreError> {
    let rows: Vec<Row<'_>> = reports
        .iter()
        .map(|report| Row {
            device_id: report.device_id.as_uuid(),
            tenant_id: report.tenant_id.as_uuid(),
            received_ms_ago: report.received_ms_ago,
            report: &report.report,
        })
        .collect();
    sqlx::query!(
        r#"insert into device_metrics as m (device_id, tenant_id, received_at, report)
           select r.device_id, r.tenant_id, clock_timestamp() - r.received_ms_ago * interval '1 millisecond', r.report
             from jsonb_to_recordset($1) as r(device_id uuid, tenant_id uuid, received_ms_ago bigint, report jsonb)
            where set_config('synchronous_commit', 'off', true) is not null
            order by r.device_id
               on conflict (device_id) do update set received_at = excluded.received_at, report = excluded.report
            where m.received_at < excluded.received_at"#,
        Json(&rows) as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
