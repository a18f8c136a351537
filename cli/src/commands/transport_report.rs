//! Ways to the server that did not work: of one device, or summed by a label, as by site.

use clap::Args;

use super::Context;
use crate::failure::Failure;
use crate::model::{TransportFailure, TransportReport};
use crate::output::{Here, Table};
use crate::resolve;

/// Which transports failed, how far they got and why: of a device, or of all by a label
#[derive(Debug, Args)]
#[command(after_help = "Of a device, its newest 32 kinds of failures are shown, however long ago they were.")]
pub(crate) struct Show {
    /// Name or id; without it, those of all devices are summed
    #[arg(conflicts_with_all = ["by", "days"])]
    device: Option<String>,
    /// Sum by the values of this label, as by site
    #[arg(long, value_name = "LABEL")]
    by: Option<String>,
    /// Failures that were last met within so many days: 1 to 90; without it, 7
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
}

impl Show {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let here = context.output.here();
        if let Some(device) = &self.device {
            let device = resolve::device(&client, device).await?;
            if context.output.json {
                return context.output.json(&device.json["transport_failures"]);
            }
            return match device.value.transport_failures.as_slice() {
                [] => {
                    context.output.note("none");
                    Ok(())
                }
                failures => context.output.table(&of_device(failures, &here)),
            };
        }
        let report = client.transport_report(self.by.as_deref(), self.days).await?;
        context.show(&report, || summed(&report.value, &here))?;
        if report.value.is_cut {
            context.output.note(&format!("There are more than these {}: see --days.", report.value.items.len()));
        }
        Ok(())
    }
}

fn of_device(failures: &[TransportFailure], here: &Here) -> Table {
    let mut table = Table::new(&["TRANSPORT", "GOT AS FAR AS", "FAILED WITH", "TIMES", "LAST"]);
    for failure in failures {
        table.row(vec![
            failure.transport.clone().into(),
            failure.stage.clone().into(),
            failure.code.clone().into(),
            failure.count.to_string().into(),
            here.relative(failure.last_at).into(),
        ]);
    }
    table
}

fn summed(report: &TransportReport, here: &Here) -> Table {
    let rest = ["TRANSPORT", "GOT AS FAR AS", "FAILED WITH", "DEVICES", "TIMES", "LAST"];
    let titles: Vec<&str> = report.by.iter().map(|_| "OF").chain(rest).collect();
    let mut table = Table::new(&titles);
    for item in &report.items {
        let value = report.by.is_some().then(|| item.value.as_deref().unwrap_or("-").into());
        let rest = [
            item.failure.transport.clone().into(),
            item.failure.stage.clone().into(),
            item.failure.code.clone().into(),
            item.devices.to_string().into(),
            item.failure.count.to_string().into(),
            here.relative(item.failure.last_at).into(),
        ];
        table.row(value.into_iter().chain(rest).collect());
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn here() -> Here {
        Here { now: "2026-11-21T14:00:09Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC }
    }

    fn item(value: &serde_json::Value, devices: u64) -> serde_json::Value {
        json!({"value": value, "transport": "websocket", "stage": "tls", "code": "connection_reset", "devices": devices,
               "count": 3 * devices, "last_at": "2026-11-21T14:00:00Z"})
    }

    #[test]
    fn a_report_has_a_line_a_site_and_kind() {
        let report = json!({"by": "site", "days": 7, "is_cut": false, "items": [item(&json!("north"), 2), item(&json!(null), 1)]});
        let text = summed(&serde_json::from_value(report).unwrap(), &here()).render(false, None);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..2], ["OF", "TRANSPORT"]);
        assert_eq!(lines[1][..6], ["north", "websocket", "tls", "connection_reset", "2", "6"]);
        assert_eq!(lines[2][..6], ["-", "websocket", "tls", "connection_reset", "1", "3"]);
    }

    #[test]
    fn without_a_label_all_devices_are_one_and_of_a_device_there_is_no_number_of_them() {
        let report = json!({"by": null, "days": 7, "is_cut": false, "items": [item(&json!(null), 2)]});
        let text = summed(&serde_json::from_value(report).unwrap(), &here()).render(false, None);
        assert!(text.starts_with("TRANSPORT") && text.contains("websocket  tls"), "{text}");
        let failures: Vec<TransportFailure> = vec![serde_json::from_value(item(&json!(null), 2)).unwrap()];
        let text = of_device(&failures, &here()).render(false, None);
        assert!(!text.contains("DEVICES") && text.contains("connection_reset"), "{text}");
    }
}
