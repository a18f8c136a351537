//! What a device measured over time.

use clap::Args;
use jiff::Timestamp;

use super::{Context, command};
use crate::duration::Span;
use crate::failure::Failure;
use crate::model::{DeviceSamples, Series};
use crate::output::{Here, Table};
use crate::resolve;

/// From the least to the most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Bars of one line.
const BARS_MAX: usize = 40;

#[derive(Debug, Args)]
pub(crate) struct Samples {
    /// Name or id
    device: String,
    /// Only these, as in cpu_percent,memory_used_bytes; of one alone, each point is shown
    #[arg(long, value_name = "NAMES")]
    metric: Option<String>,
    /// How long back, as in 1h or 7d
    #[arg(long, value_name = "SPAN", default_value = "1h", conflicts_with = "from")]
    last: Span,
    /// From when, as in 2026-11-21T14:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Until when; without it, now
    #[arg(long, value_name = "TIME", requires = "from")]
    until: Option<Timestamp>,
    /// From one point to the next, as in 5m; without it, so that there are about 300
    #[arg(long, value_name = "SPAN")]
    step: Option<Span>,
}

impl Samples {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?;
        let here = context.output.here();
        let from =
            self.from.unwrap_or_else(|| here.now.checked_sub(self.last.as_duration()).unwrap_or(Timestamp::UNIX_EPOCH));
        let step = self.step.map(Span::as_seconds);
        let samples = client.device_samples(device.value.id, self.metric.as_deref(), from, self.until, step).await?;
        context.show(&samples, || match samples.value.series.as_slice() {
            [series] => points(series, &here),
            _ => overview(&samples.value),
        })
    }
}

fn points(series: &Series, here: &Here) -> Table {
    let mut table = Table::new(&["FROM", "SAMPLES", "MIN", "MEAN", "MAX"]);
    let number = |number| command::number(&series.metric, number);
    for point in &series.points {
        table.row(vec![
            here.local(point.at).into(),
            point.count.to_string().into(),
            number(point.min).into(),
            number(point.avg).into(),
            number(point.max).into(),
        ]);
    }
    table
}

fn overview(samples: &DeviceSamples) -> Table {
    let mut table = Table::new(&["METRIC", "MIN", "MAX", "LAST", "MEANS"]);
    for series in &samples.series {
        let Some(last) = series.points.last() else { continue };
        let number = |number| command::number(&series.metric, number);
        let least = series.points.iter().map(|point| point.min).fold(f64::INFINITY, f64::min);
        let most = series.points.iter().map(|point| point.max).fold(f64::NEG_INFINITY, f64::max);
        table.row(vec![
            series.metric.clone().into(),
            number(least).into(),
            number(most).into(),
            number(last.avg).into(),
            bars(&series.points.iter().map(|point| point.avg).collect::<Vec<_>>()).into(),
        ]);
    }
    table
}

/// The means as bars between the least and the most of them: many points share one.
fn bars(means: &[f64]) -> String {
    let shared = means.len().div_ceil(BARS_MAX).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a number of points")]
    let means: Vec<f64> = means.chunks(shared).map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64).collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let most = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let bar = |mean: &f64| {
        let share = if most > least { (mean - least) / (most - least) } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let bar = (share * 7.0).round().clamp(0.0, 7.0) as usize;
        BARS[bar]
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn samples() -> DeviceSamples {
        let point = |minute: u32, value: f64| json!({"at": format!("2026-11-21T14:{minute:02}:00Z"), "count": 2, "min": value - 1.0, "max": value + 1.0, "avg": value});
        let points: Vec<_> = (0..8_u32).map(|n| point(n, f64::from(n) * 10.0 + 1.0)).collect();
        serde_json::from_value(json!({
            "device_id": "018f0000-0000-7000-8000-000000000001", "from": "2026-11-21T14:00:00Z", "until": "2026-11-21T15:00:00Z",
            "step_seconds": 60,
            "series": [{"metric": "cpu_percent", "points": points}, {"metric": "load_1m", "points": []},
                       {"metric": "memory_used_bytes", "points": [point(0, 1_048_577.0)]}],
        }))
        .unwrap()
    }

    #[test]
    fn each_metric_has_a_line_and_what_was_not_measured_has_none() {
        let text = overview(&samples()).render(false, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].contains("cpu_percent") && lines[1].contains("▁▂▃▄▅▆▇█") && lines[1].contains("72.0 %"),
            "{text}"
        );
        assert!(lines[2].contains("1.0 MiB"), "{text}");
    }

    #[test]
    fn of_one_metric_each_point_is_shown() {
        let here = Here { now: "2026-11-21T16:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let text = points(&samples().series[0], &here).render(false, None);
        assert_eq!(text.lines().count(), 9, "{text}");
        assert!(
            text.lines().nth(2).unwrap().starts_with("2026-11-21 14:01:00 UTC  2        10.0 %  11.0 %  12.0 %"),
            "{text}"
        );
    }

    #[test]
    fn many_points_share_bars() {
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&[5.0, 5.0]), "▁▁");
        let many: Vec<f64> = (0..1500).map(f64::from).collect();
        let bars = bars(&many);
        assert!((30..=40).contains(&bars.chars().count()) && bars.starts_with('▁') && bars.ends_with('█'), "{bars}");
    }
}
