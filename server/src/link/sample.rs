//! Samples on their way to the database: all reports of all devices, written in batches. Nobody waits for them: when the database does
//! not keep up, the oldest are dropped, and counted.

pub(crate) mod metrics;
pub(super) mod pace;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::message::MetricsReport;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::store::sample::{Clock, Gauges, NewSample};

/// Samples that wait for the database, at about 200 bytes each: ten seconds of a fleet that reports 10,000 a second.
const WAITING_MAX: usize = 100_000;
/// What waited for longer has no partition to go to any more.
const WAITING_FOR_MAX: Duration = Duration::from_secs(20 * 3600);
/// No load, temperature or offset of a clock is beyond that: what is, was not measured.
const REAL_MAX: f64 = 1e9;
/// What is closer to zero is zero: the database refuses a mean that a `real` cannot hold, and with it the means of all devices.
const REAL_MIN: f64 = 1e-30;

/// Samples that are not stored yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    waiting: Mutex<VecDeque<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    received_at: Instant,
    /// `at` is set when it is first taken, and stays: a sample that is written twice is one.
    sample: NewSample,
    is_dated: bool,
}

/// Samples that were taken to be stored, and can be put back.
#[derive(Debug)]
pub(crate) struct Taken(Vec<Waiting>);

impl Samples {
    /// Gives how many had to go for it.
    pub(super) fn put(&self, device_id: DeviceId, tenant_id: TenantId, gauges: Gauges, now: Instant) -> u64 {
        let sample = NewSample { device_id, tenant_id, at: OffsetDateTime::UNIX_EPOCH, gauges };
        let mut waiting = self.waiting();
        waiting.push_back(Waiting { received_at: now, sample, is_dated: false });
        shorten(&mut waiting)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting().len()
    }

    /// Takes up to `max` samples out, oldest first, and says when they came. Gives how many were too old besides.
    pub(crate) fn take(&self, max: usize, now: Clock) -> (Taken, u64) {
        let mut waiting = self.waiting();
        let count = waiting.len().min(max);
        let mut taken: Vec<Waiting> = waiting.drain(..count).collect();
        drop(waiting);
        taken.retain(|sample| now.instant.duration_since(sample.received_at) < WAITING_FOR_MAX);
        for sample in taken.iter_mut().filter(|sample| !sample.is_dated) {
            sample.sample.at = now.at - now.instant.duration_since(sample.received_at);
            sample.is_dated = true;
        }
        let too_old = count - taken.len();
        (Taken(taken), too_old as u64)
    }

    /// Keeps what could not be stored. Gives how many had to go for it.
    pub(crate) fn put_back(&self, taken: Taken) -> u64 {
        let mut waiting = self.waiting();
        for sample in taken.0.into_iter().rev() {
            waiting.push_front(sample);
        }
        shorten(&mut waiting)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        // Consistent after each statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the oldest beyond the limit.
fn shorten(waiting: &mut VecDeque<Waiting>) -> u64 {
    let excess = waiting.len().saturating_sub(WAITING_MAX);
    waiting.drain(..excess);
    excess as u64
}

impl Taken {
    pub(crate) fn rows(&self) -> Vec<NewSample> {
        self.0.iter().map(|waiting| waiting.sample.clone()).collect()
    }
}

/// What a report holds, as far as a column can hold it.
pub(super) fn gauges(report: &MetricsReport, clock_offset_ms: Option<i64>) -> Gauges {
    let whole = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough, and it is within the range")]
    let real = |value: Option<f64>| {
        let value = value.filter(|value| value.abs() <= REAL_MAX)?;
        Some(if value.abs() < REAL_MIN { 0.0 } else { value as f32 })
    };
    Gauges {
        memory_used_bytes: whole(report.memory_used_bytes),
        memory_total_bytes: whole(report.memory_total_bytes),
        disk_used_bytes: whole(report.disk_used_bytes),
        disk_total_bytes: whole(report.disk_total_bytes),
        uptime_seconds: whole(report.uptime_seconds),
        clock_offset_ms,
        cpu_percent: real(report.cpu_percent),
        temperature_celsius: real(report.temperature_celsius),
        load_1m: real(report.load_1m),
        load_5m: real(report.load_5m),
        load_15m: real(report.load_15m),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TENANT: TenantId = TenantId::from_uuid(Uuid::nil());
    const DEVICE: DeviceId = DeviceId::from_uuid(Uuid::nil());
    const AT: OffsetDateTime = time::macros::datetime!(2026-11-21 12:00 UTC);

    fn put(samples: &Samples, uptime_seconds: i64, now: Instant) -> u64 {
        samples.put(DEVICE, TENANT, Gauges { uptime_seconds: Some(uptime_seconds), ..Gauges::default() }, now)
    }

    fn rows(taken: &Taken) -> Vec<(i64, OffsetDateTime)> {
        taken.rows().iter().map(|row| (row.gauges.uptime_seconds.unwrap(), row.at)).collect()
    }

    #[test]
    fn what_no_mean_could_be_made_of_is_zero_or_nothing() {
        for (told, kept) in
            [(1.4e-45, Some(0.0)), (-1e-31, Some(0.0)), (0.5, Some(0.5)), (1e10, None), (f64::NAN, None)]
        {
            let report = MetricsReport { load_1m: Some(told), ..MetricsReport::default() };
            assert_eq!(gauges(&report, None).load_1m, kept, "{told}");
        }
    }

    #[test]
    fn what_is_taken_again_has_the_time_of_the_first_attempt() {
        let (samples, now) = (Samples::default(), Instant::now());
        put(&samples, 1, now);
        put(&samples, 2, now + Duration::from_secs(3));
        let (taken, _) = samples.take(10, Clock { at: AT, instant: now + Duration::from_secs(5) });
        let expected = [(1, AT - Duration::from_secs(5)), (2, AT - Duration::from_secs(2))];
        assert_eq!(rows(&taken), expected);
        assert_eq!(samples.put_back(taken), 0);
        put(&samples, 3, now + Duration::from_secs(60));
        // The database's clock was set meanwhile.
        let later = Clock { at: AT + Duration::from_secs(3600), instant: now + Duration::from_secs(60) };
        let (taken, _) = samples.take(2, later);
        assert_eq!(rows(&taken), expected);
        assert_eq!((samples.len(), rows(&samples.take(2, later).0)), (1, vec![(3, later.at)]));
    }

    #[test]
    fn the_oldest_go_first_and_are_told() {
        let (samples, now) = (Samples::default(), Instant::now());
        let dated = Clock { at: AT, instant: now };
        assert_eq!((0..100_000).map(|n| put(&samples, n, now)).sum::<u64>(), 0);
        assert_eq!(put(&samples, 100_000, now), 1);
        let (taken, too_old) = samples.take(10, dated);
        assert_eq!((rows(&taken)[0].0, too_old), (1, 0));
        assert_eq!((0..15).map(|n| put(&samples, 200_000 + n, now)).sum::<u64>(), 5);
        assert_eq!(samples.put_back(taken), 10, "newer ones have come");
        assert_eq!(rows(&samples.take(1, dated).0)[0].0, 16);
        let late = Clock { at: AT, instant: now + WAITING_FOR_MAX };
        let (taken, too_old) = samples.take(7, late);
        assert_eq!((rows(&taken).len(), too_old), (0, 7));
    }

    #[test]
    fn what_no_column_can_hold_is_absent() {
        let report = MetricsReport {
            uptime_seconds: Some(u64::MAX),
            load_1m: Some(1e300),
            load_5m: Some(-1.5),
            temperature_celsius: Some(-1e10),
            ..MetricsReport::default()
        };
        assert_eq!(
            gauges(&report, Some(-7)),
            Gauges { load_5m: Some(-1.5), clock_offset_ms: Some(-7), ..Gauges::default() }
        );
    }
}
