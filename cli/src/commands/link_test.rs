//! How fast the way to a device is: a test now, and those of before.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Context;
use super::command::bytes;
use super::instruction::Common;
use crate::argument::NewestLimit;
use crate::client::Answer;
use crate::failure::Failure;
use crate::model;
use crate::output::{Cell, Here, Table, Tone};
use crate::resolve;

#[derive(Debug, Args)]
pub(crate) struct LinkTest {
    /// Name or id of the device
    device: String,
    /// Why, for the record
    #[arg(long, default_value = "test of the link")]
    reason: String,
    /// How long each direction is tested, 1 to 10
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10))]
    seconds: u32,
    /// Test only this direction, as the device sees it
    #[arg(long)]
    direction: Option<Direction>,
    /// Id of the grant to act under; without it, the server chooses one that allows it
    #[arg(long, value_name = "GRANT")]
    grant: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    Download,
    Upload,
}

impl LinkTest {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?;
        let mut arguments = json!({ "seconds": self.seconds });
        if let Some(direction) = self.direction.and_then(|direction| direction.to_possible_value()) {
            arguments["directions"] = json!([direction.get_name()]);
        }
        let body = json!({ "kind": "link.test", "arguments": arguments, "reason": self.reason });
        Common::now_or_never(self.device.clone(), self.grant.clone()).run(context, &client, &device, body).await
    }
}

/// What a test came to, as the command tells it.
pub(crate) fn results(data: &Value) -> Table {
    let mut table = Table::new(&["DIRECTION", "DEVICE SAW", "NODE SAW", "BYTES", "SECONDS", "MIN RTT", "SENT AGAIN"]);
    for direction in ["download", "upload"] {
        let result = &data[direction];
        if result.is_null() {
            continue;
        }
        // Whoever receives knows what has arrived.
        let receiver = &result[if direction == "download" { "client" } else { "server" }];
        table.row(vec![
            direction.into(),
            rate(result["client"]["bits_per_second"].as_f64()).into(),
            rate(result["server"]["bits_per_second"].as_f64()).into(),
            amount(receiver["bytes"].as_f64()).into(),
            receiver["seconds"].as_f64().map_or_else(none, |seconds| format!("{seconds:.1}")).into(),
            time(result["min_rtt_us"].as_f64()).into(),
            amount(result["retransmitted_bytes"].as_f64()).into(),
        ]);
    }
    table
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Name or id
    device: String,
    #[command(flatten)]
    limit: NewestLimit,
}

impl List {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?;
        let list = client.device_link_tests(device.value.id, self.limit.items()).await?;
        context.list(&list, || table(&list.items, &context.output.here()))
    }
}

fn table(tests: &[Answer<model::LinkTest>], here: &Here) -> Table {
    let mut table =
        Table::new(&["STARTED", "DIRECTION", "RATE", "BYTES", "MIN RTT", "SENT AGAIN", "ENDED", "NODE", "CLIENT"]);
    for Answer { value: test, .. } in tests {
        let outcome = test.outcome.as_deref();
        let tone = if matches!(outcome, None | Some("done")) { Tone::Plain } else { Tone::Warn };
        table.row(vec![
            here.relative(test.started_at).into(),
            test.direction.clone().into(),
            rate(test.bits_per_second).into(),
            amount(test.bytes).into(),
            time(test.min_rtt_us).into(),
            amount(test.retransmitted_bytes).into(),
            Cell::toned(outcome.unwrap_or("not yet").to_owned(), tone),
            test.node.clone().into(),
            format!("{} {}", test.client_name, test.client_version).trim().to_owned().into(),
        ]);
    }
    table
}

fn rate(bits: Option<f64>) -> String {
    bits.map_or_else(none, |bits| format!("{:.1} Mbit/s", bits / 1e6))
}

fn amount(number: Option<f64>) -> String {
    number.map_or_else(none, bytes)
}

fn time(micros: Option<f64>) -> String {
    micros.map_or_else(none, |micros| format!("{:.1} ms", micros / 1e3))
}

fn none() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_a_line_of_what_both_ends_saw() {
        let seen = |rate: u64| json!({"bits_per_second": rate, "bytes": 1_048_576, "seconds": 2.04});
        let text = results(&json!({
            "client": "cloudlink-agent/0.1.0", "seconds": 2,
            "download": {"client": seen(8_000_000), "server": seen(9_500_000), "min_rtt_us": 1500, "retransmitted_bytes": 2048},
            "upload": {"client": seen(1_000_000), "server": null, "min_rtt_us": null, "retransmitted_bytes": null},
        }))
        .render(false, None);
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1], "download 8.0 Mbit/s 9.5 Mbit/s 1.0 MiB 2.0 1.5 ms 2.0 KiB");
        assert_eq!(lines[2], "upload 1.0 Mbit/s - - - - -");
    }

    #[test]
    fn tests_of_before_are_a_list() {
        let here = Here { now: "2026-11-21T16:00:00Z".parse().unwrap(), zone: jiff::tz::TimeZone::UTC };
        let json = json!({
            "direction": "upload", "started_at": "2026-11-21T15:00:00Z", "node": "n1", "client_name": "ndt7-js",
            "client_version": "0.1.4", "outcome": null, "bytes": null, "bits_per_second": null, "min_rtt_us": null,
            "retransmitted_bytes": null,
        });
        let value = serde_json::from_value(json.clone()).unwrap();
        let text = table(&[Answer { value, json, etag: None }], &here).render(false, None);
        assert!(text.contains("not yet") && text.contains("ndt7-js 0.1.4"), "{text}");
    }
}
