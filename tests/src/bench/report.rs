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
    /// `value` by `peer_value`.
    pub ratio: Option<f64>,
    /// The most that `value` may be; without one the figure only informs.
    pub goal: Option<f64>,
    /// Whether the goal is met; a figure without one is.
    pub met: bool,
}

impl Line {
    #[must_use]
    pub fn new(bench: &'static str, metric: &'static str, value: f64, unit: &'static str) -> Self {
        let value = round(value);
        Self { bench, metric, value, unit, peer: None, peer_value: None, ratio: None, goal: None, met: true }
    }

    /// The figure is not to be above this.
    #[must_use]
    pub fn with_goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), met: self.value <= goal, ..self }
    }

    #[must_use]
    pub fn beside(self, peer: &'static str, peer_value: f64) -> Self {
        let ratio = Some(round(self.value / peer_value));
        Self { peer: Some(peer), peer_value: Some(round(peer_value)), ratio, ..self }
    }
}

/// Three digits behind the point: more would claim a precision that no run has.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
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
            r#"{"bench":"connect","metric":"cpu","value":0.8,"unit":"ms","peer":"nats-server","peer_value":1.25,"ratio":0.64,"goal":0.9,"met":true}"#
        );
        assert!(!Line::new("connect", "cpu", 0.95, "ms").with_goal(0.9).met);
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
