//! What devices measured over time.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// Something that devices measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    CpuPercent,
    MemoryUsedBytes,
    MemoryTotalBytes,
    DiskUsedBytes,
    DiskTotalBytes,
    TemperatureCelsius,
    Load1m,
    Load5m,
    Load15m,
    UptimeSeconds,
    ClockOffsetMs,
}

impl Metric {
    /// In the order in which the database adds them up: a new one comes last.
    pub const ALL: [Self; 11] = [
        Self::CpuPercent,
        Self::MemoryUsedBytes,
        Self::MemoryTotalBytes,
        Self::DiskUsedBytes,
        Self::DiskTotalBytes,
        Self::TemperatureCelsius,
        Self::Load1m,
        Self::Load5m,
        Self::Load15m,
        Self::UptimeSeconds,
        Self::ClockOffsetMs,
    ];

    /// As in the link protocol's `MetricsReport`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CpuPercent => "cpu_percent",
            Self::MemoryUsedBytes => "memory_used_bytes",
            Self::MemoryTotalBytes => "memory_total_bytes",
            Self::DiskUsedBytes => "disk_used_bytes",
            Self::DiskTotalBytes => "disk_total_bytes",
            Self::TemperatureCelsius => "temperature_celsius",
            Self::Load1m => "load_1m",
            Self::Load5m => "load_5m",
            Self::Load15m => "load_15m",
            Self::UptimeSeconds => "uptime_seconds",
            Self::ClockOffsetMs => "clock_offset_ms",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }
}

/// What a device measured from one time to another.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceSamples {
    pub device_id: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub from: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// From one point to the next: what was asked for, or more where samples are not kept for so long.
    pub step_seconds: u32,
    pub series: Vec<Series>,
}

/// One metric.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Series {
    pub metric: &'static str,
    /// In the order of time. Where nothing was measured, there is none.
    pub points: Vec<Point>,
}

/// What the samples of one step come to.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Point {
    /// When the step began.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How many samples there are.
    pub count: i64,
    pub min: f64,
    pub max: f64,
    pub avg: f64,
}
