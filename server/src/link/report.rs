//! Metrics reports on their way to the database: the newest of each device, written in batches.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::message::MetricsReport;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::store::report::NewReport;

/// Devices whose report waits for the database. Of one more, it is dropped: the device's next one is newer anyway.
const WAITING_MAX: usize = 100_000;

/// The newest report of each device that is not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    waiting: Mutex<HashMap<DeviceId, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    tenant_id: TenantId,
    received_at: Instant,
    report: Box<MetricsReport>,
    clock_offset_ms: Option<i64>,
}

/// Reports that were taken to be stored, and can be put back.
#[derive(Debug)]
pub(crate) struct Taken(Vec<(DeviceId, Waiting)>);

impl Reports {
    pub(super) fn put(
        &self,
        device_id: DeviceId,
        tenant_id: TenantId,
        report: MetricsReport,
        clock_offset_ms: Option<i64>,
        now: Instant,
    ) {
        let mut waiting = self.waiting();
        if waiting.len() < WAITING_MAX || waiting.contains_key(&device_id) {
            waiting
                .insert(device_id, Waiting { tenant_id, received_at: now, report: Box::new(report), clock_offset_ms });
        }
    }

    /// Takes up to `max` reports out.
    pub(crate) fn take(&self, max: usize) -> Option<Taken> {
        let mut waiting = self.waiting();
        let devices: Vec<DeviceId> = waiting.keys().take(max).copied().collect();
        let taken: Vec<_> = devices.into_iter().filter_map(|device| Some((device, waiting.remove(&device)?))).collect();
        (!taken.is_empty()).then_some(Taken(taken))
    }

    /// Keeps what could not be stored, unless a newer one has come.
    pub(crate) fn put_back(&self, taken: Taken) {
        let mut waiting = self.waiting();
        for (device, report) in taken.0 {
            waiting.entry(device).or_insert(report);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<DeviceId, Waiting>> {
        // Consistent after each statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    pub(crate) fn rows(&self, now: Instant) -> Vec<NewReport> {
        self.0
            .iter()
            .map(|(device_id, waiting)| NewReport {
                device_id: *device_id,
                tenant_id: waiting.tenant_id,
                received_ms_ago: u64::try_from(now.duration_since(waiting.received_at).as_millis()).unwrap_or(0),
                report: to_json(&waiting.report, waiting.clock_offset_ms),
            })
            .collect()
    }
}

/// The JSON form of a report: the names of `link.proto`; what the device cannot measure is absent. Of its clock, how far it is ahead.
fn to_json(report: &MetricsReport, clock_offset_ms: Option<i64>) -> Value {
    let fields: [(&str, Option<Value>); 11] = [
        ("cpu_percent", report.cpu_percent.map(Value::from)),
        ("memory_used_bytes", report.memory_used_bytes.map(Value::from)),
        ("memory_total_bytes", report.memory_total_bytes.map(Value::from)),
        ("disk_used_bytes", report.disk_used_bytes.map(Value::from)),
        ("disk_total_bytes", report.disk_total_bytes.map(Value::from)),
        ("temperature_celsius", report.temperature_celsius.map(Value::from)),
        ("load_1m", report.load_1m.map(Value::from)),
        ("load_5m", report.load_5m.map(Value::from)),
        ("load_15m", report.load_15m.map(Value::from)),
        ("uptime_seconds", report.uptime_seconds.map(Value::from)),
        ("clock_offset_ms", clock_offset_ms.map(Value::from)),
    ];
    let fields: Map<String, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TENANT: TenantId = TenantId::from_uuid(Uuid::nil());
    const DEVICE: DeviceId = DeviceId::from_uuid(Uuid::nil());

    fn report(uptime_seconds: u64) -> MetricsReport {
        MetricsReport { uptime_seconds: Some(uptime_seconds), ..MetricsReport::default() }
    }

    #[test]
    fn only_the_newest_report_of_a_device_waits() {
        let (reports, now) = (Reports::default(), Instant::now());
        reports.put(DEVICE, TENANT, report(1), None, now);
        reports.put(DEVICE, TENANT, report(2), None, now);
        let taken = reports.take(10).unwrap();
        assert_eq!(taken.rows(now)[0].report, serde_json::json!({"uptime_seconds": 2}));
        assert!(reports.take(10).is_none());
    }

    #[test]
    fn what_could_not_be_stored_waits_on_unless_something_newer_came() {
        let (reports, now) = (Reports::default(), Instant::now());
        reports.put(DEVICE, TENANT, report(1), None, now);
        let taken = reports.take(10).unwrap();
        reports.put(DEVICE, TENANT, report(2), None, now);
        reports.put_back(taken);
        assert_eq!(reports.take(10).unwrap().rows(now)[0].report["uptime_seconds"], 2);
    }
}
