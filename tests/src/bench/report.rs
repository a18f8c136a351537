//! What was measured, one JSON object a line.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub bench: &'static str,
    pub metric: &'static str,
    pub value: f64,
    pub unit: &'static str,
    /// The other server that was measured in the same run, if any.
    pub peer: Option<&'static str>,
    pub peer_value: Option<f64>,
    /// `value` by `peer_value`, or the median of what that was in each round.
    pub ratio: Option<f64>,
    /// The most that `value` may be; without any goal the figure only informs.
    pub goal: Option<f64>,
    /// What `ratio` is to be.
    pub ratio_goal: Option<Bound>,
    /// Whether the goals are met; a figure without one is.
    pub met: bool,
}

/// A limit, included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl Line {
    #[must_use]
    pub fn new(bench: &'static str, metric: &'static str, value: f64, unit: &'static str) -> Self {
        let value = round(value);
        Self {
            bench,
            metric,
            value,
            unit,
            peer: None,
            peer_value: None,
            ratio: None,
            goal: None,
            ratio_goal: None,
            met: true,
        }
    }

    /// The figure is not to be above this.
    #[must_use]
    pub fn with_goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), met: self.value <= goal, ..self }
    }

    /// The figure is to be so much of the other server's.
    #[must_use]
    pub fn with_ratio_goal(self, goal: Bound) -> Self {
        Self { ratio_goal: Some(goal), met: self.ratio.is_some_and(|ratio| goal.holds(ratio)), ..self }
    }

    #[must_use]
    pub fn beside(self, peer: &'static str, peer_value: f64) -> Self {
        let ratio = Some(round(self.value / peer_value));
        Self { peer: Some(peer), peer_value: Some(round(peer_value)), ratio, ..self }
    }

    /// A ratio that was measured by itself: the median of those of pairs, where the machine is not the same all the time.
    #[must_use]
    pub fn with_ratio(self, ratio: f64) -> Self {
        Self { ratio: Some(round(ratio)), ..self }
    }
}

/// Three digits behind the point: more would claim a precision that no run has.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The middle one, or the mean of both in the middle.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(below), Some(above)) if values.len().is_multiple_of(2) => f64::midpoint(*below, *above),
        (_, Some(value)) => *value,
        (_, None) => f64::NAN,
    }
}

/// Where lines go: standard output and a file.
#[derive(Debug)]
pub struct Report {
    file: File,
    /// Goals that were missed.
    missed: usize,
}

impl Report {
    /// Begins a new report in this directory, in place of the one that is there.
    pub fn create(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join("results.jsonl");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, missed: 0 })
    }

    pub fn add(&mut self, line: &Line) -> Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        self.file.write_all(&json)?;
        std::io::stdout().write_all(&json)?;
        self.missed += usize::from(!line.met);
        Ok(())
    }

    #[must_use]
    pub fn missed(&self) -> usize {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_has_every_member_in_order() {
        let line = Line::new("connect", "cpu", 0.80001, "ms").beside("nats-server", 1.25).with_goal(0.9);
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"bench":"connect","metric":"cpu","value":0.8,"unit":"ms","peer":"nats-server","peer_value":1.25,"ratio":0.64,"goal":0.9,"ratio_goal":null,"met":true}"#
        );
        assert!(!Line::new("connect", "cpu", 0.95, "ms").with_goal(0.9).met);
    }

    #[test]
    fn ratio_has_a_limit_above_or_below() {
        let line = |value| Line::new("openvpn", "cpu", value, "ms").beside("openvpn", 2.0);
        assert!(line(1.0).with_ratio_goal(Bound::AtMost(0.5)).met);
        assert!(!line(1.1).with_ratio_goal(Bound::AtMost(0.5)).met);
        assert!(line(3.0).with_ratio_goal(Bound::AtLeast(1.5)).met);
        assert!(!line(2.9).with_ratio_goal(Bound::AtLeast(1.5)).met);
        let json = serde_json::to_value(line(1.0).with_ratio_goal(Bound::AtMost(0.5))).unwrap();
        assert_eq!(json["ratio_goal"], serde_json::json!({ "at_most": 0.5 }));
        assert!(!Line::new("openvpn", "cpu", 1.0, "ms").with_ratio_goal(Bound::AtMost(0.5)).met, "there is no ratio");
    }

    #[test]
    fn median_is_in_the_middle() {
        for (values, expected) in [(vec![3.0], 3.0), (vec![9.0, 1.0], 5.0), (vec![5.0, 1.0, 100.0], 5.0)] {
            assert!((median(values) - expected).abs() < 1e-9);
        }
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn report_is_in_the_file_and_counts_what_is_missed() {
        let directory = tempfile::tempdir().unwrap();
        let mut report = Report::create(directory.path()).unwrap();
        report.add(&Line::new("a", "b", 1.0, "s").with_goal(2.0)).unwrap();
        report.add(&Line::new("a", "b", 3.0, "s").with_goal(2.0)).unwrap();
        assert_eq!(report.missed(), 1);
        let lines = std::fs::read_to_string(directory.path().join("results.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 2);
    }
}
