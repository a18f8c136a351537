//! What the device measures about itself. What it cannot measure is absent, never zero.

use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::link::message::MetricsReport;
use nix::sys::statvfs::statvfs;
use serde_json::{Map, Value};
use sysinfo::{Components, MINIMUM_CPU_UPDATE_INTERVAL, System};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Measures. Keeps what it needs to tell how busy the processors were since the last time.
#[derive(Debug)]
pub struct Sampler {
    system: Option<System>,
    processors_seen_at: Option<Instant>,
}

/// How long a measurement may take.
pub const SAMPLED_WITHIN: Duration = Duration::from_secs(5);
/// Longer ago than this, the last look at the processors says nothing about now.
const PROCESSORS_LOOKED_AT_WITHIN: Duration = Duration::from_secs(3600);

impl Sampler {
    #[must_use]
    pub fn new() -> Self {
        Self { system: System::new().ok(), processors_seen_at: None }
    }

    /// Measures now. Takes a fifth of a second when there is no earlier look at the processors to compare with; blocks.
    pub fn sample(&mut self) -> MetricsReport {
        let load = System::load_average().ok();
        let (memory_used_bytes, memory_total_bytes) = self.memory().unzip();
        let (disk_used_bytes, disk_total_bytes) = disk_of_root().unzip();
        MetricsReport {
            cpu_percent: self.cpu_percent(),
            memory_used_bytes,
            memory_total_bytes,
            disk_used_bytes,
            disk_total_bytes,
            temperature_celsius: hottest_celsius(),
            load_1m: load.as_ref().map(|load| load.one),
            load_5m: load.as_ref().map(|load| load.five),
            load_15m: load.as_ref().map(|load| load.fifteen),
            uptime_seconds: System::uptime().ok().filter(|seconds| *seconds > 0),
            // Whoever sends it knows when.
            clock_unix_ms: None,
        }
    }

    fn memory(&mut self) -> Option<(u64, u64)> {
        let system = self.system.as_mut()?;
        system.refresh_memory();
        let total = system.total_memory();
        (total > 0).then(|| (system.used_memory().min(total), total))
    }

    fn cpu_percent(&mut self) -> Option<f64> {
        let system = self.system.as_mut()?;
        let seen = self.processors_seen_at.map(|at| at.elapsed());
        if !seen.is_some_and(|ago| (MINIMUM_CPU_UPDATE_INTERVAL..PROCESSORS_LOOKED_AT_WITHIN).contains(&ago)) {
            system.refresh_cpu_usage();
            std::thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
        }
        system.refresh_cpu_usage();
        self.processors_seen_at = Some(Instant::now());
        let percent = f64::from(system.global_cpu_usage());
        (!system.cpus().is_empty() && percent.is_finite()).then(|| percent.clamp(0.0, 100.0))
    }
}

/// Measures, if that takes no longer than [`SAMPLED_WITHIN`]. A sensor may hang: one thread hangs with it, and no other.
pub async fn sample(sampler: &Arc<Mutex<Sampler>>) -> Option<MetricsReport> {
    within(SAMPLED_WITHIN, Arc::clone(sampler), Sampler::sample).await
}

async fn within<T, R>(limit: Duration, of: Arc<Mutex<T>>, look: impl FnOnce(&mut T) -> R + Send + 'static) -> Option<R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let looking = async {
        let mut of = of.lock_owned().await;
        tokio::task::spawn_blocking(move || look(&mut of)).await.ok()
    };
    timeout(limit, looking).await.ok().flatten()
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

fn disk_of_root() -> Option<(u64, u64)> {
    let root = statvfs("/").ok()?;
    let total = root.blocks().checked_mul(root.fragment_size())?;
    let free = root.blocks_free().checked_mul(root.fragment_size())?;
    (total > 0).then(|| (total.saturating_sub(free), total))
}

fn hottest_celsius() -> Option<f64> {
    let components = Components::new_with_refreshed_list().ok()?;
    let temperatures = components.iter().filter_map(|component| component.temperature());
    temperatures.filter(|celsius| celsius.is_finite()).map(f64::from).max_by(f64::total_cmp)
}

/// The JSON form of a report: the names of `link.proto`, without what is absent.
#[must_use]
pub fn to_json(report: &MetricsReport) -> Value {
    let values = [
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
    ];
    let present = values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_this_machine_plausibly() {
        let mut sampler = Sampler::new();
        for _ in 0..2 {
            let report = sampler.sample();
            assert!((0.0..=100.0).contains(&report.cpu_percent.unwrap()));
            assert!(report.memory_used_bytes.unwrap() <= report.memory_total_bytes.unwrap());
            assert!(report.memory_total_bytes.unwrap() > 1024 * 1024);
            assert!(report.disk_used_bytes.unwrap() <= report.disk_total_bytes.unwrap());
            assert!(report.load_1m.unwrap() >= 0.0);
            assert!(report.uptime_seconds.unwrap() > 0);
            assert!(report.temperature_celsius.is_none_or(|celsius| (-50.0..200.0).contains(&celsius)));
        }
    }

    #[tokio::test]
    async fn a_sensor_that_hangs_holds_up_nobody_and_takes_one_thread() {
        let (sensor, limit) = (Arc::new(Mutex::new(0)), Duration::from_millis(100));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let stuck = within(limit, Arc::clone(&sensor), move |_| hangs.recv().is_ok());
        assert_eq!(stuck.await, None);
        let looked = within(limit, Arc::clone(&sensor), |looks| *looks += 1);
        assert_eq!(looked.await, None, "it still hangs");
        release.send(()).unwrap();
        let looks = within(Duration::from_secs(30), sensor, |looks| *looks);
        assert_eq!(looks.await, Some(0), "nobody else began to look while it hung");
    }

    #[test]
    fn what_is_absent_is_absent_in_json_too() {
        let report =
            MetricsReport { cpu_percent: Some(1.5), uptime_seconds: Some(u64::MAX), ..MetricsReport::default() };
        assert_eq!(to_json(&report).to_string(), format!(r#"{{"cpu_percent":1.5,"uptime_seconds":{}}}"#, u64::MAX));
    }
}
